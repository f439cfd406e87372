//! From the tree to lists of what was written; references are still names.

use std::net::SocketAddr;

use strum::VariantArray as _;

use super::{
    health,
    terminate::{self, Terminate},
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Codec as _, Count, MOST},
    model::{Backend, Endpoint, EndpointHost, Policy, Target},
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
}

#[derive(Debug)]
pub(super) struct NativeRoute<'n> {
    pub(super) view: View<'n>,
    pub(super) name: Option<&'n str>,
    /// `None` is all of them.
    pub(super) listeners: Option<Vec<(View<'n>, &'n str)>>,
    pub(super) sni: Vec<(View<'n>, HostPattern)>,
    pub(super) backends: Vec<(View<'n>, &'n str, u32)>,
    /// How TLS ends here; it is passed through without.
    pub(super) terminate: Option<Terminate<'n>>,
}

#[derive(Debug)]
pub(super) struct NativeBackend<'n> {
    pub(super) view: View<'n>,
    pub(super) name: &'n str,
    pub(super) endpoints: Vec<Endpoint>,
    /// Everything else, under no name and without endpoints.
    pub(super) backend: Backend,
}

/// The policies that were written, in the order of the fields of [`crate::model::Policies`].
#[derive(Debug, Default)]
pub(super) struct RawPolicies<'n>(pub(super) [Option<RawPolicy<'n>>; 6]);

#[derive(Debug)]
pub(super) enum RawPolicy<'n> {
    Fixed(Policy),
    Backend(View<'n>, &'n str),
}

/// From what every host takes over IPv4 (RFC 9293 section 3.7.1) to the most that the kernel does (`MAX_TCP_WINDOW`).
pub(super) const SEGMENT_BYTES: std::ops::RangeInclusive<u16> = 536..=32_767;

pub(super) fn listener<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<NativeListener<'n>> {
    let mut fields = view.fields("a listener: {name, bind, policies, mss, freebind}", diagnostics)?;
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
    fields.finish(diagnostics);
    Some(NativeListener { view: view.clone(), name: name?, bind: bind?, policies, mss, freebind })
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
    let expected = "backends: [{name, weight}]";
    let backends = fields.require("backends", expected, diagnostics).map(|list| {
        let items = list.one_or_more(expected, diagnostics);
        if items.is_empty() {
            list.error("the list is empty").expected(expected).emit(diagnostics);
        }
        items.iter().filter_map(|item| backend_ref(item, diagnostics)).collect()
    });
    let terminate = fields.take("terminate").map(|view| terminate::read(&view, diagnostics));
    fields.finish(diagnostics);
    // A route whose termination cannot be read must not pass TLS through instead.
    let terminate = match terminate {
        None => None,
        Some(read) => Some(read?),
    };
    Some(NativeRoute { view: view.clone(), name, listeners, sni: sni?, backends: backends?, terminate })
}

fn backend_ref<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<(View<'n>, &'n str, u32)> {
    if view.is_text() {
        return Some((view.clone(), name(view, diagnostics)?, 1));
    }
    let mut fields = view.fields("the name of a backend, or {name, weight}", diagnostics)?;
    let reference = fields.require("name", "the name of a backend", diagnostics);
    let weight =
        fields.take("weight").map_or(Some(1), |view| view.number(0..=Target::MAX_WEIGHT, diagnostics));
    fields.finish(diagnostics);
    let reference = reference?;
    let name = name(&reference, diagnostics)?;
    Some((reference, name, weight?))
}

pub(super) fn backend<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<NativeBackend<'n>> {
    let mut fields = view.fields(
        "a backend: {name, endpoints, source, same_host, max_connections, max_pending, health_check, outlier_detection, \
         panic_threshold}",
        diagnostics,
    )?;
    let name = fields.require("name", "a unique name", diagnostics).and_then(|view| name(&view, diagnostics));
    let expected = "host:port, or {address: host:port, weight}";
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
    let health = health::read(&mut fields, diagnostics);
    fields.finish(diagnostics);
    let backend = Backend { source, same_host, max_connections, max_pending, health, ..Backend::default() };
    Some(NativeBackend { view: view.clone(), name: name?, endpoints: endpoints?, backend })
}

fn endpoint(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Endpoint> {
    if view.is_text() {
        let (host, port) = address(view, diagnostics)?;
        return Some(Endpoint { host, port, weight: 1 });
    }
    let mut fields = view.fields("host:port, or {address: host:port, weight}", diagnostics)?;
    let at = fields.require("address", "host:port", diagnostics).and_then(|view| address(&view, diagnostics));
    let weight =
        fields.take("weight").map_or(Some(1), |view| view.number(0..=Target::MAX_WEIGHT, diagnostics));
    fields.finish(diagnostics);
    let (host, port) = at?;
    Some(Endpoint { host, port, weight: weight? })
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

fn name<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<&'n str> {
    let name = view.text("a name", diagnostics)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        view.error("a name cannot be empty or hold control characters").emit(diagnostics);
        return None;
    }
    Some(name)
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
