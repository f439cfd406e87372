//! A `VirtualService` meets the servers of its Gateways.

use super::{
    destination::Destinations,
    gateway::{Gateway, Server},
    virtual_service::{GatewayRef, Match, TlsRoute, VirtualService},
};
use crate::{
    decode::{Sink, View},
    draft::Draft,
    model::Target,
    name::HostPattern,
};

/// The targets of a rule that cannot be served.
pub(super) fn refused() -> Vec<Target> {
    vec![Target { weight: 1, backend: None }]
}

pub(super) fn attach(
    service: &VirtualService<'_>,
    gateways: &[Gateway<'_>],
    destinations: &mut Destinations<'_, '_, '_, '_>,
    draft: &mut Draft,
    sink: &mut Sink,
) {
    let own = referenced(service, &service.gateways, gateways, sink);
    for route in &service.tls {
        let TlsRoute { view, index, matches, destinations: written } = route;
        let mut served = Vec::new();
        let mut blocked = Vec::new();
        for one in matches {
            let overriding = one.gateways.as_ref().map(|refs| referenced(service, refs, gateways, sink));
            let meetings = meetings(service, one, overriding.as_ref().unwrap_or(&own), sink);
            if one.refused || written.is_empty() { &mut blocked } else { &mut served }.extend(meetings);
        }
        // What nobody can reach needs no backend, but its faults are told all the same.
        let wanted = !served.is_empty();
        let targets = written
            .iter()
            .map(|one| Target {
                weight: one.weight,
                backend: (one.to.as_ref())
                    .and_then(|to| destinations.backend(service.namespace, to, wanted, draft, sink)),
            })
            .collect();
        let name = format!("{} tls[{index}]", service.view.object());
        if wanted {
            let rule = draft.rule(name.clone(), view.origin(), targets);
            for Meeting { written, host, listener } in served {
                draft.listeners[listener].serve(written, host, &rule, &service.rank);
            }
        }
        if !blocked.is_empty() {
            let rule = draft.rule(name, view.origin(), refused());
            for Meeting { written, host, listener } in blocked {
                draft.listeners[listener].block(written, host, &rule);
            }
        }
    }
}

/// The Gateways that are there and may be attached to.
fn referenced<'g, 'n>(
    service: &VirtualService<'_>,
    refs: &[GatewayRef<'_>],
    gateways: &'g [Gateway<'n>],
    sink: &mut Sink,
) -> Vec<&'g Gateway<'n>> {
    refs.iter()
        .filter_map(|GatewayRef { view, namespace, name }| {
            let found =
                gateways.iter().find(|gateway| gateway.namespace == *namespace && gateway.name == *name);
            let Some(gateway) = found else {
                let full = format!("{namespace}/{name}");
                let known: Vec<_> = gateways
                    .iter()
                    .map(|gateway| format!("{}/{}", gateway.namespace, gateway.name))
                    .collect();
                let mut unknown = view.bad(format!("there is no Gateway '{full}'"));
                unknown.remedy = match sink.closest(&full, known.iter().map(String::as_str)) {
                    Some(near) => Some(format!("did you mean '{near}'?")),
                    None => Some("load the file with the Gateway too".into()),
                };
                unknown.to(sink);
                return None;
            };
            if !service.export_to.admits(gateway.namespace) {
                view.bad(format!(
                    "exportTo hides the VirtualService from the namespace '{}': it is not attached",
                    gateway.namespace
                ))
                .remedy("add the namespace to spec.exportTo")
                .to(sink);
                return None;
            }
            Some(gateway)
        })
        .collect()
}

/// Names that a match and a host of a server have in common.
struct Meeting<'a> {
    written: &'a HostPattern,
    host: &'a HostPattern,
    listener: usize,
}

fn meetings<'a>(
    service: &VirtualService<'_>,
    one: &'a Match<'_>,
    gateways: &[&'a Gateway<'_>],
    sink: &mut Sink,
) -> Vec<Meeting<'a>> {
    let Match { port, sni_hosts, .. } = one;
    let all: Vec<(&Server<'_>, usize)> = gateways
        .iter()
        .flat_map(|gateway| &gateway.servers)
        .filter_map(|server| Some((server, server.listener?)))
        .collect();
    if all.is_empty() {
        if !gateways.is_empty() {
            service.view.warn("none of its Gateways has a server that is served").to(sink);
        }
        return Vec::new();
    }
    let on_port: Vec<_> =
        all.iter().filter(|(server, _)| port.as_ref().is_none_or(|(_, port)| server.port == *port)).collect();
    if let (Some((view, port)), true) = (port, on_port.is_empty()) {
        let mut ports: Vec<_> = all.iter().map(|(server, _)| server.port.to_string()).collect();
        ports.sort_unstable();
        ports.dedup();
        view.warn(format!("no served server of its Gateways has port {port}: the match serves nothing"))
            .expected(format!("the port of a server: {}", ports.join(", ")))
            .to(sink);
        return Vec::new();
    }
    let mut meetings = Vec::new();
    for (view, written) in sni_hosts {
        let before = meetings.len();
        for &&(server, listener) in &on_port {
            let admitted = server
                .hosts
                .iter()
                .filter(|host| host.namespace.is_none_or(|namespace| namespace == service.namespace))
                .filter(|host| written.intersect(&host.pattern).is_some())
                .map(|host| Meeting { written, host: &host.pattern, listener });
            meetings.extend(admitted);
        }
        if meetings.len() == before {
            report_not_admitted(view, written, on_port.iter().map(|(server, _)| *server), sink);
        }
    }
    meetings
}

fn report_not_admitted<'a>(
    view: &View<'_>,
    written: &HostPattern,
    servers: impl Iterator<Item = &'a Server<'a>>,
    sink: &mut Sink,
) {
    let hosts: Vec<_> = servers
        .flat_map(|server| &server.hosts)
        .map(|host| match host.namespace {
            Some(namespace) => format!("{namespace}/{}", host.pattern),
            None => host.pattern.to_string(),
        })
        .collect();
    view.warn(format!("no server of its Gateways admits '{written}': it serves nothing"))
        .expected(format!("a name within the hosts of a server: {}", hosts.join(", ")))
        .to(sink);
}
