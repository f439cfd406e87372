//! From the tree to lists of what was written; references are still names.

use std::net::SocketAddr;

use super::settings::{Given, MOST};
use crate::{
    decode::{Fields, Sink, View},
    model::{Backend, Endpoint, EndpointHost, Policy, Target},
    name::{HostName, HostPattern},
};

/// All native documents together.
#[derive(Debug, Default)]
pub(crate) struct Native<'n> {
    pub(crate) given: Given<'n>,
    pub(super) listeners: Vec<NativeListener<'n>>,
    pub(super) routes: Vec<NativeRoute<'n>>,
    pub(super) backends: Vec<NativeBackend<'n>>,
}

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

impl<'n> Native<'n> {
    pub(crate) fn read(&mut self, document: &View<'n>, sink: &mut Sink) {
        let expected = "a mapping with listeners, routes and backends, or a Kubernetes object";
        for problem in document.problems() {
            document.tell(problem, sink);
        }
        let Some(mut fields) = document.fields(expected, sink) else { return };
        self.read_fields(&mut fields, sink);
        fields.finish(sink);
    }

    fn read_fields(&mut self, fields: &mut Fields<'n>, sink: &mut Sink) {
        if let Some(list) = fields.take("listeners") {
            let items = list.list("a list of listeners", sink);
            self.listeners.extend(items.iter().filter_map(|view| listener(view, sink)));
        }
        if let Some(list) = fields.take("routes") {
            let items = list.list("a list of routes", sink);
            self.routes.extend(items.iter().filter_map(|view| route(view, sink)));
        }
        if let Some(list) = fields.take("backends") {
            let items = list.list("a list of backends", sink);
            self.backends.extend(items.iter().filter_map(|view| backend(view, sink)));
        }
        self.given.read(fields, sink);
    }
}

/// Whether a document has a key of this format, or one that may be meant for it.
pub(crate) fn is_own(document: &View<'_>) -> bool {
    let mut probe = Native::default();
    // Whatever it says is said again when the document is read.
    let mut sink = Sink::default();
    let Some(mut fields) = document.fields("", &mut sink) else { return false };
    probe.read_fields(&mut fields, &mut sink);
    fields.has_any()
}

/// From what every host takes over IPv4 (RFC 9293 section 3.7.1) to the most that the kernel does (`MAX_TCP_WINDOW`).
const SEGMENT_BYTES: std::ops::RangeInclusive<u16> = 536..=32_767;

fn listener<'n>(view: &View<'n>, sink: &mut Sink) -> Option<NativeListener<'n>> {
    let mut fields = view.fields("a listener: {name, bind, policies, mss, freebind}", sink)?;
    let name = fields.require("name", "a unique name", sink).and_then(|view| name(&view, sink));
    let expected = "ip:port or [ipv6]:port, for example 0.0.0.0:443";
    let bind = fields.require("bind", expected, sink).map(|list| {
        let items = list.one_or_more("a list of ip:port", sink);
        if items.is_empty() {
            list.bad("the list is empty").expected(expected).to(sink);
        }
        items.into_iter().filter_map(|item| Some((item.clone(), item.parse(expected, sink)?))).collect()
    });
    let policies = fields.take("policies").map(|view| RawPolicies::read(&view, sink)).unwrap_or_default();
    let mss = fields.take("mss").and_then(|view| view.number(SEGMENT_BYTES, sink));
    let freebind = fields.take("freebind").and_then(|view| view.flag(sink)).unwrap_or_default();
    fields.finish(sink);
    Some(NativeListener { view: view.clone(), name: name?, bind: bind?, policies, mss, freebind })
}

fn route<'n>(view: &View<'n>, sink: &mut Sink) -> Option<NativeRoute<'n>> {
    let mut fields = view.fields("a route: {name, listeners, sni, backends}", sink)?;
    let name = fields.take("name").and_then(|view| name(&view, sink));
    let listeners = fields.take("listeners").map(|list| {
        let items = list.one_or_more("a list of names of listeners", sink);
        if items.is_empty() {
            list.bad("the list is empty").remedy("leave the key out to mean all listeners").to(sink);
        }
        items.into_iter().filter_map(|item| Some((item.clone(), self::name(&item, sink)?))).collect()
    });
    let expected = "server names: www.example.com, \"*.example.com\" or \"*\"";
    let sni = fields.require("sni", expected, sink).map(|list| {
        let items = list.one_or_more(expected, sink);
        if items.is_empty() {
            list.bad("the list is empty").expected(expected).to(sink);
        }
        items.into_iter().filter_map(|item| Some((item.clone(), item.parse(expected, sink)?))).collect()
    });
    let expected = "backends: [{name, weight}]";
    let backends = fields.require("backends", expected, sink).map(|list| {
        let items = list.one_or_more(expected, sink);
        if items.is_empty() {
            list.bad("the list is empty").expected(expected).to(sink);
        }
        items.iter().filter_map(|item| backend_ref(item, sink)).collect()
    });
    fields.finish(sink);
    Some(NativeRoute { view: view.clone(), name, listeners, sni: sni?, backends: backends? })
}

fn backend_ref<'n>(view: &View<'n>, sink: &mut Sink) -> Option<(View<'n>, &'n str, u32)> {
    if view.is_text() {
        return Some((view.clone(), name(view, sink)?, 1));
    }
    let mut fields = view.fields("the name of a backend, or {name, weight}", sink)?;
    let reference = fields.require("name", "the name of a backend", sink);
    let weight = fields.take("weight").map_or(Some(1), |view| view.number(0..=Target::MAX_WEIGHT, sink));
    fields.finish(sink);
    let reference = reference?;
    let name = name(&reference, sink)?;
    Some((reference, name, weight?))
}

fn backend<'n>(view: &View<'n>, sink: &mut Sink) -> Option<NativeBackend<'n>> {
    let mut fields =
        view.fields("a backend: {name, endpoints, source, same_host, max_connections, max_pending}", sink)?;
    let name = fields.require("name", "a unique name", sink).and_then(|view| name(&view, sink));
    let expected = "host:port, or {address: host:port, weight}";
    let endpoints = fields.require("endpoints", expected, sink).map(|list| {
        let items = list.one_or_more(expected, sink);
        items.iter().filter_map(|item| endpoint(item, sink)).collect()
    });
    let source = fields.take("source").map_or_else(Vec::new, |list| {
        let expected = "IP addresses of this machine";
        let items = list.one_or_more(expected, sink);
        items.iter().filter_map(|item| item.parse(expected, sink)).collect()
    });
    let same_host = fields.take("same_host").is_some_and(|view| view.flag(sink).unwrap_or(false));
    let max_connections = fields.take("max_connections").and_then(|view| view.number(1..=MOST, sink));
    let max_pending = fields.take("max_pending").and_then(|view| view.number(0..=MOST, sink));
    fields.finish(sink);
    let backend = Backend { source, same_host, max_connections, max_pending, ..Backend::default() };
    Some(NativeBackend { view: view.clone(), name: name?, endpoints: endpoints?, backend })
}

fn endpoint(view: &View<'_>, sink: &mut Sink) -> Option<Endpoint> {
    if view.is_text() {
        let (host, port) = address(view, sink)?;
        return Some(Endpoint { host, port, weight: 1 });
    }
    let mut fields = view.fields("host:port, or {address: host:port, weight}", sink)?;
    let at = fields.require("address", "host:port", sink).and_then(|view| address(&view, sink));
    let weight = fields.take("weight").map_or(Some(1), |view| view.number(0..=Target::MAX_WEIGHT, sink));
    fields.finish(sink);
    let (host, port) = at?;
    Some(Endpoint { host, port, weight: weight? })
}

/// `10.0.0.1:443`, `[fd00::1]:443` or `name:443`.
fn address(view: &View<'_>, sink: &mut Sink) -> Option<(EndpointHost, u16)> {
    let expected = "host:port, for example 10.0.0.1:8443, [fd00::1]:8443 or shop.internal:8443";
    let text = view.text(expected, sink)?;
    let wrong = |why: &str, sink: &mut Sink| {
        view.bad(format!("'{text}': {why}")).expected(expected).to(sink);
        None
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return wrong("the port is 0", sink);
        }
        return Some((EndpointHost::Ip(address.ip()), address.port()));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("the port is missing", sink);
    };
    let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
        return wrong("the port is not a number from 1 to 65535", sink);
    };
    match HostName::parse(host) {
        Ok(name) => Some((EndpointHost::Dns(name), port)),
        Err(why) => wrong(&why.to_string(), sink),
    }
}

fn name<'n>(view: &View<'n>, sink: &mut Sink) -> Option<&'n str> {
    let name = view.text("a name", sink)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        view.bad("a name cannot be empty or hold control characters").to(sink);
        return None;
    }
    Some(name)
}

impl<'n> RawPolicies<'n> {
    pub(super) fn read(view: &View<'n>, sink: &mut Sink) -> Self {
        let expected =
            "a mapping from no_sni, unknown_name, not_tls, malformed, too_large, timeout to policies";
        let Some(mut fields) = view.fields(expected, sink) else { return Self::default() };
        let all = ["no_sni", "unknown_name", "not_tls", "malformed", "too_large", "timeout"]
            .map(|verdict| fields.take(verdict).and_then(|view| policy(&view, sink)));
        fields.finish(sink);
        Self(all)
    }
}

fn policy<'n>(view: &View<'n>, sink: &mut Sink) -> Option<RawPolicy<'n>> {
    let expected = "close, reset, alert or {backend: NAME}";
    if !view.is_text() {
        let mut fields = view.fields(expected, sink)?;
        let backend = fields.require("backend", "the name of a backend", sink);
        fields.finish(sink);
        let backend = backend?;
        let name = name(&backend, sink)?;
        return Some(RawPolicy::Backend(backend, name));
    }
    let text = view.text(expected, sink)?;
    let fixed = match text {
        "close" => Policy::Close,
        "reset" => Policy::Reset,
        "alert" => Policy::Alert,
        _ => {
            let mut found = view.bad(format!("there is no policy '{text}'")).expected(expected);
            found.remedy = sink
                .closest(text, ["close", "reset", "alert"].into_iter())
                .map(|near| format!("did you mean '{near}'?"));
            found.to(sink);
            return None;
        }
    };
    Some(RawPolicy::Fixed(fixed))
}
