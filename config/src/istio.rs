//! Istio objects of `networking.istio.io` (v1alpha3, v1beta1, v1): `Gateway`, `VirtualService` and `ServiceEntry`.
//!
//! What is served is served as Istio serves it; what is not is said, with the object, the field and what to do.
//! A fault costs the smallest part that it makes meaningless and the rest is served. Names whose route is lost
//! that way are refused: they never fall to a wider route that was not meant for them.
//!
//! | Object | Field | Here |
//! |---|---|---|
//! | `Gateway` | `servers[]` with `tls.mode: PASSTHROUGH` | a listener for each port and `bind`; servers of several Gateways share it |
//! | | `servers[].bind` | one address; without it `0.0.0.0` and `[::]` |
//! | | `servers[].hosts[]` | `[namespace/]name`; narrows what attached routes serve |
//! | | other modes, protocols, `httpsRedirect` | rejected; the other servers are served |
//! | | `selector` | no meaning outside a cluster, noted |
//! | `VirtualService` | `gateways[]`, `exportTo[]` | as in Istio; `mesh` has no meaning here |
//! | | `tls[].match[]` | `port`, `sniHosts` (within `hosts`), `gateways`; others are rejected |
//! | | `tls[].route[]` | `weight`, `destination.host` and `.port.number`; `subset` is rejected |
//! | | `http[]`, `tcp[]` | rejected |
//! | `ServiceEntry` | `resolution: STATIC`, `DNS` | endpoints with `ports` and `weight`, else the host by DNS |
//!
//! A destination is looked for in `--resolve`, then among the `ServiceEntry` objects that its `VirtualService` can
//! see, and is else left to DNS. A host without a dot is a service of the `VirtualService`'s namespace.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use self::{
    gateway::{Gateway, Server},
    object::Object,
    service_entry::ServiceEntry,
    virtual_service::VirtualService,
};
use crate::{
    decode::{Sink, View},
    draft::{Draft, DraftListener},
    model::Policies,
    name::HostPattern,
    report::Severity,
    resolve::Resolver,
};

mod attach;
mod destination;
mod gateway;
mod object;
mod service_entry;
mod virtual_service;

pub(crate) use object::is_object;

/// All Istio objects together.
#[derive(Debug, Default)]
pub(crate) struct Istio<'n> {
    gateways: Vec<Gateway<'n>>,
    virtual_services: Vec<VirtualService<'n>>,
    service_entries: Vec<ServiceEntry<'n>>,
    /// Every object by kind, namespace and name.
    seen: HashMap<String, View<'n>>,
}

impl<'n> Istio<'n> {
    /// Reads a document with `apiVersion` or `kind`; a `List` is read item by item.
    pub(crate) fn read(&mut self, document: &View<'n>, sink: &mut Sink) {
        let kind = document.peek_text("kind").unwrap_or_default();
        if kind.ends_with("List")
            && let Some(items) = document.peek("items")
        {
            for item in items.list("a list of objects", sink) {
                self.read(&item, sink);
            }
            return;
        }
        let Some(object) = object::read(document, sink) else { return };
        if reject_problems(&object, sink) {
            return;
        }
        if let Some(first) = self.seen.insert(object.view.object().to_owned(), object.view.clone()) {
            object
                .view
                .bad(format!("there is another object of this kind and name ({})", first.origin()))
                .remedy("keep one of the two, or give each a name or namespace of its own")
                .to(sink);
            self.seen.insert(object.view.object().to_owned(), first);
            return;
        }
        match object.kind {
            object::Kind::Gateway => self.gateways.extend(gateway::read(object, sink)),
            object::Kind::VirtualService => {
                self.virtual_services.extend(virtual_service::read(object, sink));
            }
            object::Kind::ServiceEntry => self.service_entries.extend(service_entry::read(object, sink)),
        }
    }

    /// One listener for each port and address of a served server.
    pub(crate) fn add_listeners(&mut self, draft: &mut Draft, policies: &Policies, sink: &mut Sink) {
        let mut made: HashMap<(u16, Option<IpAddr>), usize> = HashMap::new();
        for server in self.gateways.iter_mut().flat_map(|gateway| &mut gateway.servers) {
            if !server.passthrough {
                continue;
            }
            let key = (server.port, server.bind);
            let at = if let Some(&at) = made.get(&key) {
                at
            } else {
                let Some(listener) = listener(server, draft, policies, sink) else { continue };
                draft.listeners.push(listener);
                made.insert(key, draft.listeners.len() - 1);
                draft.listeners.len() - 1
            };
            server.listener = Some(at);
            let hosts = &mut draft.listeners[at].hosts;
            for host in &server.hosts {
                if !hosts.contains(&host.pattern) {
                    hosts.push(host.pattern.clone());
                }
            }
        }
        // What a server of another mode would serve on the same port must not fall to a passed-through wildcard.
        for server in self.gateways.iter_mut().flat_map(|gateway| &mut gateway.servers) {
            if server.passthrough {
                continue;
            }
            let Some(&at) = made.get(&(server.port, server.bind)) else { continue };
            let name = format!("{} servers[{}]", server.view.object(), server.index);
            let rule = draft.rule(name, server.view.origin(), attach::refused());
            for host in &server.hosts {
                draft.listeners[at].block(&host.pattern, &HostPattern::Any, &rule);
            }
        }
    }

    /// Attaches every route; all listeners are there.
    pub(crate) fn add_routes(&self, draft: &mut Draft, resolver: &mut Resolver<'_>, sink: &mut Sink) {
        let mut destinations = destination::Destinations::new(&self.service_entries, resolver, sink);
        for service in &self.virtual_services {
            attach::attach(service, &self.gateways, &mut destinations, draft, sink);
        }
    }
}

fn listener(
    server: &Server<'_>,
    draft: &Draft,
    policies: &Policies,
    sink: &mut Sink,
) -> Option<DraftListener> {
    let port = server.port;
    let (name, addresses) = match server.bind {
        Some(address) => (format!("gateway-{address}-{port}"), vec![address]),
        None => (format!("gateway-{port}"), vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]),
    };
    let bind: Vec<_> = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
    if let Some((other, address)) = draft.overlap(&bind) {
        server
            .view
            .bad(format!("{address} overlaps with the listener '{}' ({})", other.name, other.origin))
            .remedy("give both the same bind, or ports of their own")
            .to(sink);
        return None;
    }
    if draft.listeners.iter().any(|listener| listener.name == name) {
        server
            .view
            .bad(format!("its listener would be named '{name}', which is the name of a native one"))
            .remedy("rename the native listener")
            .to(sink);
        return None;
    }
    Some(DraftListener::new(name, server.view.origin(), bind, Vec::new(), policies.clone()))
}

/// Whether there were any.
fn reject_problems(object: &Object<'_>, sink: &mut Sink) -> bool {
    let subject = object.subject();
    let mut any = false;
    for problem in object.view.problems() {
        sink.push(subject.problem(problem, Severity::Rejected));
        any = true;
    }
    any
}
