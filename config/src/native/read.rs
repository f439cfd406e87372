//! Reads the tree into lists of declarations. References are still names.

use std::net::SocketAddr;

use strum::VariantArray as _;

use super::{
    backend_tls::{self, Towards},
    balancing, health,
    http::{self, NativeRule},
    reference::{BACKENDS, backend_refs, name},
    terminate::{self, Terminate},
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Codec as _, Count, MOST, Time},
    model::{Backend, Endpoint, EndpointHost, Policy, Target, http::HttpsRedirect},
    name::{HostName, HostPattern},
};

#[derive(Debug)]
pub(super) struct NativeListener<'n> {
    pub(super) view: View<'n>,
    pub(super) name: &'n str,
    pub(super) bind: Vec<(View<'n>, SocketAddr)>,
    pub(super) policies: RawPolicies<'n>,
    pub(super) mss: Option<u16>,
    pub(super) freebind: bool,
    /// The rules for HTTP without TLS.
    pub(super) http: Vec<NativeRule<'n>>,
    /// The redirect for requests without TLS.
    pub(super) redirect: Option<HttpsRedirect>,
}

impl NativeListener<'_> {
    /// Whether the listener serves HTTP without TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.redirect.is_some() || !self.http.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct NativeRoute<'n> {
    pub(super) view: View<'n>,
    pub(super) name: Option<&'n str>,
    /// `None` is all listeners.
    pub(super) listeners: Option<Vec<(View<'n>, &'n str)>>,
    pub(super) sni: Vec<(View<'n>, HostPattern)>,
    pub(super) backends: Vec<(View<'n>, &'n str, u32)>,
    /// The termination of TLS. `None` passes TLS through.
    pub(super) terminate: Option<Terminate<'n>>,
}

#[derive(Debug)]
pub(super) struct NativeBackend<'n> {
    pub(super) view: View<'n>,
    pub(super) name: &'n str,
    pub(super) endpoints: Vec<Endpoint>,
    /// All other fields, without a name and endpoints.
    pub(super) backend: Backend,
    /// The TLS settings towards the backend.
    pub(super) towards: Towards<'n>,
}

/// The written policies, in the order of the fields of [`crate::model::Policies`].
#[derive(Debug, Default)]
pub(super) struct RawPolicies<'n>(pub(super) [Option<RawPolicy<'n>>; 6]);

#[derive(Debug)]
pub(super) enum RawPolicy<'n> {
    Fixed(Policy),
    Backend(View<'n>, &'n str),
}

/// From the size that every IPv4 host accepts (RFC 9293 section 3.7.1) to the kernel's maximum (`MAX_TCP_WINDOW`).
pub(super) const SEGMENT_BYTES: std::ops::RangeInclusive<u16> = 536..=32_767;

/// The port of HTTPS (RFC 9110 section 4.2.2).
pub(super) const HTTPS: u16 = 443;

pub(super) fn listener<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<NativeListener<'n>> {
    let expected = "a listener: {name, bind, policies, mss, freebind, http, redirect_https}";
    let mut fields = view.fields(expected, diagnostics)?;
    let name = fields.require("name", "a unique name", diagnostics).and_then(|view| name(&view, diagnostics));
    let expected = "ip:port or [ipv6]:port, for example 0.0.0.0:443";
    let bind = fields.require("bind", expected, diagnostics).map(|list| {
        let items = list.one_or_more("a list of ip:port", diagnostics);
        if items.is_empty() {
            list.error("the list is empty").expected(expected).emit(diagnostics);
        }
        items
            .into_iter()
            .filter_map(|item| Some((item.clone(), item.parse(expected, diagnostics)?)))
            .collect()
    });
    let policies =
        fields.take("policies").map(|view| RawPolicies::read(&view, diagnostics)).unwrap_or_default();
    let mss = fields.take("mss").and_then(|view| view.number(SEGMENT_BYTES, diagnostics));
    let freebind = fields.take("freebind").and_then(|view| view.flag(diagnostics)).unwrap_or_default();
    let http = fields.take("http").map_or(Some(Vec::new()), |view| http::read(&view, true, diagnostics));
    let redirect = fields.take("redirect_https").and_then(|view| redirect_https(&view, diagnostics));
    fields.finish(diagnostics);
    Some(NativeListener {
        view: view.clone(),
        name: name?,
        bind: bind?,
        policies,
        mss,
        freebind,
        http: http?,
        redirect,
    })
}

/// `true`, or a mapping with the port of the TLS listener.
fn redirect_https(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<HttpsRedirect> {
    if view.is_text() {
        return view.flag(diagnostics)?.then_some(HttpsRedirect { port: HTTPS });
    }
    let mut fields = view.fields("true, or {port}", diagnostics)?;
    let port = fields.take("port").map_or(Some(HTTPS), |view| view.port(diagnostics));
    fields.finish(diagnostics);
    Some(HttpsRedirect { port: port? })
}

pub(super) fn route<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<NativeRoute<'n>> {
    let mut fields = view.fields("a route: {name, listeners, sni, backends, terminate}", diagnostics)?;
    let name = fields.take("name").and_then(|view| name(&view, diagnostics));
    let listeners = fields.take("listeners").map(|list| {
        let items = list.one_or_more("a list of names of listeners", diagnostics);
        if items.is_empty() {
            list.error("the list is empty")
                .remedy("leave the key out to mean all listeners")
                .emit(diagnostics);
        }
        items.into_iter().filter_map(|item| Some((item.clone(), self::name(&item, diagnostics)?))).collect()
    });
    let expected = "server names: www.example.com, \"*.example.com\" or \"*\"";
    let sni = fields.require("sni", expected, diagnostics).map(|list| {
        let items = list.one_or_more(expected, diagnostics);
        if items.is_empty() {
            list.error("the list is empty").expected(expected).emit(diagnostics);
        }
        items
            .into_iter()
            .filter_map(|item| Some((item.clone(), item.parse(expected, diagnostics)?)))
            .collect()
    });
    let backends = fields.take("backends");
    let terminate = fields.take("terminate").map(|view| terminate::read(&view, diagnostics));
    fields.finish(diagnostics);
    // A route with an invalid termination must not pass TLS through instead.
    let terminate = match terminate {
        None => None,
        Some(read) => Some(read?),
    };
    let has_rules = terminate.as_ref().is_some_and(|ends| ends.http.is_some());
    let backends = match (backends, has_rules) {
        (None, true) => Vec::new(),
        (None, false) => {
            let missing = if view.peek("backends").is_some() { "is empty" } else { "is missing" };
            view.error(format!("'backends' {missing}")).expected(BACKENDS).emit(diagnostics);
            return None;
        }
        (Some(list), true) => {
            list.error(
                "each rule in terminate.http says where its requests go: nothing goes to these backends",
            )
            .remedy("move them into a last rule of terminate.http, as {backends: NAME}")
            .emit(diagnostics);
            return None;
        }
        (Some(list), false) => backend_refs(&list, diagnostics),
    };
    Some(NativeRoute { view: view.clone(), name, listeners, sni: sni?, backends, terminate })
}

pub(super) fn backend<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<NativeBackend<'n>> {
    let mut fields = view.fields(
        "a backend: {name, endpoints, source, same_host, max_connections, max_pending, connect_timeout, \
         load_balancing, affinity, health_check, outlier_detection, panic_threshold, tls, http}",
        diagnostics,
    )?;
    let name = fields.require("name", "a unique name", diagnostics).and_then(|view| name(&view, diagnostics));
    let expected = "host:port, or {address: host:port, weight, priority}";
    let endpoints = fields.require("endpoints", expected, diagnostics).map(|list| {
        let items = list.one_or_more(expected, diagnostics);
        items.iter().filter_map(|item| endpoint(item, diagnostics)).collect()
    });
    let source = fields.take("source").map_or_else(Vec::new, |list| {
        let expected = "IP addresses of this machine";
        let items = list.one_or_more(expected, diagnostics);
        items.iter().filter_map(|item| item.parse(expected, diagnostics)).collect()
    });
    let same_host = fields.take("same_host").is_some_and(|view| view.flag(diagnostics).unwrap_or(false));
    let max_connections =
        fields.take("max_connections").and_then(|view| Count(1..=MOST).read(&view, diagnostics));
    let max_pending = fields.take("max_pending").and_then(|view| Count(0..=MOST).read(&view, diagnostics));
    let connect_timeout =
        fields.take("connect_timeout").and_then(|view| Time::POSITIVE.read(&view, diagnostics));
    let load_balancing = fields
        .take("load_balancing")
        .and_then(|view| balancing::load_balancing(&view, diagnostics))
        .unwrap_or_default();
    let affinity = fields.take("affinity").and_then(|view| balancing::affinity(&view, diagnostics));
    let health = health::read(&mut fields, diagnostics);
    let (tls, http) = (fields.take("tls"), fields.take("http"));
    let towards = backend_tls::read(tls.as_ref(), http.as_ref(), diagnostics);
    fields.finish(diagnostics);
    let backend = Backend {
        source,
        same_host,
        max_connections,
        max_pending,
        load_balancing,
        affinity,
        connect_timeout,
        health,
        ..Backend::default()
    };
    Some(NativeBackend { view: view.clone(), name: name?, endpoints: endpoints?, backend, towards: towards? })
}

fn endpoint(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Endpoint> {
    if view.is_text() {
        let (host, port) = address(view, diagnostics)?;
        return Some(Endpoint { host, port, weight: 1, priority: 0 });
    }
    let mut fields = view.fields("host:port, or {address: host:port, weight, priority}", diagnostics)?;
    let at = fields.require("address", "host:port", diagnostics).and_then(|view| address(&view, diagnostics));
    let weight =
        fields.take("weight").map_or(Some(1), |view| view.number(0..=Target::MAX_WEIGHT, diagnostics));
    let priority =
        fields.take("priority").map_or(Some(0), |view| view.number(0..=Endpoint::MAX_PRIORITY, diagnostics));
    fields.finish(diagnostics);
    let (host, port) = at?;
    Some(Endpoint { host, port, weight: weight?, priority: priority? })
}

/// `10.0.0.1:443`, `[fd00::1]:443` or `name:443`.
fn address(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<(EndpointHost, u16)> {
    let expected = "host:port, for example 10.0.0.1:8443, [fd00::1]:8443 or shop.internal:8443";
    let text = view.text(expected, diagnostics)?;
    let wrong = |why: &str, diagnostics: &mut Diagnostics| {
        view.error(format!("'{text}': {why}")).expected(expected).emit(diagnostics);
        None
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return wrong("the port is 0", diagnostics);
        }
        return Some((EndpointHost::Ip(address.ip()), address.port()));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("the port is missing", diagnostics);
    };
    let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
        return wrong("the port is not a number from 1 to 65535", diagnostics);
    };
    match HostName::parse(host) {
        Ok(name) => Some((EndpointHost::Dns(name), port)),
        Err(why) => wrong(&why.to_string(), diagnostics),
    }
}

/// A policy that needs no backend.
#[derive(
    Debug, Clone, Copy, strum::EnumMessage, strum::EnumString, strum::IntoStaticStr, strum::VariantArray,
)]
#[strum(serialize_all = "snake_case")]
pub(super) enum FixedPolicy {
    /// FIN without a byte.
    Close,
    /// RST.
    Reset,
    /// A fatal TLS alert, then FIN.
    Alert,
}

impl<'n> RawPolicies<'n> {
    pub(super) fn read(view: &View<'n>, diagnostics: &mut Diagnostics) -> Self {
        let expected =
            "a mapping from no_sni, unknown_name, not_tls, malformed, too_large, timeout to policies";
        let Some(mut fields) = view.fields(expected, diagnostics) else { return Self::default() };
        let all = ["no_sni", "unknown_name", "not_tls", "malformed", "too_large", "timeout"]
            .map(|verdict| fields.take(verdict).and_then(|view| policy(&view, diagnostics)));
        fields.finish(diagnostics);
        Self(all)
    }
}

fn policy<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<RawPolicy<'n>> {
    let expected = "close, reset, alert or {backend: NAME}";
    if !view.is_text() {
        let mut fields = view.fields(expected, diagnostics)?;
        let backend = fields.require("backend", "the name of a backend", diagnostics);
        fields.finish(diagnostics);
        let backend = backend?;
        let name = name(&backend, diagnostics)?;
        return Some(RawPolicy::Backend(backend, name));
    }
    let text = view.text(expected, diagnostics)?;
    let Ok(fixed) = text.parse::<FixedPolicy>() else {
        let mut found = view.error(format!("there is no policy '{text}'")).expected(expected);
        let names = FixedPolicy::VARIANTS.iter().map(Into::<&'static str>::into);
        found.remedy = diagnostics.closest(text, names).map(|near| format!("did you mean '{near}'?"));
        found.emit(diagnostics);
        return None;
    };
    Some(RawPolicy::Fixed(match fixed {
        FixedPolicy::Close => Policy::Close,
        FixedPolicy::Reset => Policy::Reset,
        FixedPolicy::Alert => Policy::Alert,
    }))
}
