//! `listeners[]`.

use std::net::SocketAddr;

use super::{
    access::AccessKeys,
    codec::{By, Placed, one_or_more, text},
    http::{ListenerRule, rules},
    keys::{FromKeys, Nested, Partial, TextOr, mapping},
    policies::PoliciesKeys,
    reference::name,
    timeouts::ListenerTimeouts,
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Count, Flag, Kind},
    model::{http::HttpsRedirect, proxy_protocol::AcceptProxy},
};

/// From the size that every IPv4 host accepts (RFC 9293 section 3.7.1) to the kernel's maximum (`MAX_TCP_WINDOW`).
const SEGMENT_BYTES: Count = Count(536..=32_767);

/// The port of HTTPS (RFC 9110 section 4.2.2).
const HTTPS: u16 = 443;

const ADDRESS: &str = "ip:port or [ipv6]:port, for example 0.0.0.0:443";

mapping! {
    /// A set of addresses, and the routes that are reached through it
    pub(super) struct ListenerKeys("listener", "listeners[]") {
        /// Its name; a metric label.
        name: &'n str = required("a unique name"), By(text("a unique name", "public"), name);
        /// Addresses to listen on. `[::]` is IPv6 alone.
        bind: Vec<(View<'n>, SocketAddr)> = required(ADDRESS),
            one_or_more(Placed(By(text("ip:port or [ipv6]:port", "0.0.0.0:443"), bind_address)), "a list of ip:port")
                .at_least(ADDRESS);
        /// Policies instead of the common ones, verdict by verdict.
        policies: PoliciesKeys<'n> = optional, Partial;
        /// Largest segment to announce to clients, in bytes without options (`TCP_MAXSEG`).
        mss: u16 = optional("what the device takes"), SEGMENT_BYTES;
        /// Whether addresses are bound that this host does not have yet (`IP_FREEBIND`).
        freebind: bool = default(false), Flag;
        /// Time limits of its connections.
        timeouts: ListenerTimeouts = optional("those of `timeouts`"), Nested;
        /// The PROXY protocol of proxies in front (see [PROXY protocol](proxy-protocol.md)).
        proxy_protocol: AcceptProxy = optional("no header is read"), Nested;
        /// Rules for HTTP requests without TLS. A listener with them is for no TLS, unless a route names it in
        /// `listeners`; then the first bytes of a connection decide.
        http: Vec<ListenerRule<'n>> = optional("HTTP without TLS is not served"), rules();
        /// Whether HTTP requests without TLS are sent to HTTPS, with 301. Rules in `http` for
        /// `/.well-known/acme-challenge/` come before it.
        redirect_https: ToHttps = optional("false"), TextOr(By(Kind::Flag, redirect_flag));
    }
    and access: AccessKeys;
}

impl ListenerKeys<'_> {
    /// Whether the listener serves HTTP without TLS, or is meant to.
    pub(super) fn is_plain(&self) -> bool {
        let redirects = match self.redirect_https {
            Some(ToHttps(redirect)) => redirect.is_some(),
            None => self.state.view.written("redirect_https").is_some(),
        };
        redirects || self.state.view.written("http").is_some()
    }
}

fn bind_address(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<SocketAddr> {
    view.parse(ADDRESS, diagnostics)
}

/// The redirect of requests without TLS. `None` is `false`.
#[derive(Debug, Clone, Copy)]
pub(super) struct ToHttps(pub(super) Option<HttpsRedirect>);

fn redirect_flag(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<ToHttps> {
    Some(ToHttps(view.flag(diagnostics)?.then_some(HttpsRedirect { port: HTTPS })))
}

mapping! {
    /// Where requests without TLS are sent
    pub(super) struct ToHttpsKeys("redirect_https", "listeners[].redirect_https") {
        /// The port of HTTPS.
        port: u16 = default(HTTPS), Count(1..=65_535);
    }
}

impl<'n> FromKeys<'n> for ToHttps {
    type Keys = ToHttpsKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        Some(Self(Some(HttpsRedirect { port: keys.port? })))
    }
}
