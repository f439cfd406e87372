//! Attaches a `VirtualService` to the servers of its Gateways.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    destination::{Destination, refused},
    export_to::Exported,
    gateway::{Gateway, Server, ServerKind},
    gateway_ref::GatewayRef,
    registry::{Carried, Registry},
    terminate::Ends,
    virtual_service::{Match, Place, TcpRoute, TlsRoute, VirtualService},
};
use crate::{
    builder::ModelBuilder,
    decode::{Diagnostics, View},
    model::Target,
    model::rank::{Rank, ServerRank},
    name::HostPattern,
    options::Options,
};

mod http;

/// The attachment of a `VirtualService`.
pub(super) struct Attachment<'a, 'n> {
    service: &'a VirtualService<'n>,
    exported: Exported,
    /// The Gateways that exist and are for this workload.
    gateways: Vec<&'a Gateway<'n>>,
    /// Whether it names a Gateway that is missing or rejected as a whole. Its names are then lost as well.
    lost: bool,
}

impl<'a, 'n> Attachment<'a, 'n> {
    /// `None` if the `VirtualService` is for another workload.
    pub(super) fn of(
        service: &'a VirtualService<'n>,
        gateways: &'a [Gateway<'n>],
        options: &Options,
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        let exported = service.export_to.seen_from(options.namespace.as_deref())?;
        let mut own = Self { service, exported, gateways: Vec::new(), lost: false };
        for GatewayRef { view, namespace, name } in &service.gateways {
            let named =
                gateways.iter().filter(|gateway| gateway.namespace == *namespace && gateway.name == *name);
            let mut found = false;
            for gateway in named {
                found = true;
                own.lost |= gateway.lost;
                if gateway.is_selected(options)
                    && !gateway.lost
                    && !own.gateways.iter().any(|other| std::ptr::eq(*other, gateway))
                {
                    own.gateways.push(gateway);
                }
            }
            if !found {
                own.lost = true;
                tell_unknown(view, namespace, name, gateways, diagnostics);
            }
        }
        Some(own)
    }

    /// Adds the routes, and the refusals of invalid ones.
    pub(super) fn add(
        &self,
        registry: &mut Registry<'_, '_, '_, '_>,
        ends: &mut Ends,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        for route in &self.service.tls {
            self.add_tls(route, registry, builder, diagnostics);
        }
        self.add_tcp(registry, ends, builder, diagnostics);
        self.add_http(registry, ends, builder, diagnostics);
    }

    fn add_tls(
        &self,
        route: &TlsRoute<'_>,
        registry: &mut Registry<'_, '_, '_, '_>,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        let TlsRoute { view, index, matches, destinations } = route;
        let name = format!("{} tls[{index}]", self.service.view.object());
        let mut served: BTreeMap<Option<u16>, Vec<Meeting<'_>>> = BTreeMap::new();
        let mut kept = Vec::new();
        // Only a destination without a port depends on the port of the server.
        let by_port = destinations.iter().any(Destination::needs_port);
        for one in matches {
            for meeting in self.meetings(one, diagnostics) {
                if meeting.refused || one.refused || destinations.is_empty() {
                    kept.push(meeting);
                } else {
                    served.entry(by_port.then_some(meeting.server.port)).or_default().push(meeting);
                }
            }
        }
        if served.is_empty() {
            // A route that no connection reaches needs no backend, but its errors are reported.
            self.targets(destinations, None, (false, Carried::Through), registry, builder, diagnostics);
        }
        for (port, meetings) in served {
            let targets =
                self.targets(destinations, port, (true, Carried::Through), registry, builder, diagnostics);
            let rule = builder.rule(name.clone(), view.origin(), targets);
            for meeting in meetings {
                builder.listeners[meeting.listener].serve(
                    meeting.written,
                    meeting.host,
                    &rule,
                    &self.rank(&meeting.server.rank),
                );
            }
        }
        if kept.is_empty() && !self.lost {
            return;
        }
        let rule = builder.rule(name, view.origin(), refused());
        for Meeting { written, host, listener, server, assumed, .. } in kept {
            if assumed {
                builder.listeners[listener].block(written, &rule);
            } else {
                builder.listeners[listener].serve(written, host, &rule, &self.rank(&server.rank));
            }
        }
        if self.lost {
            let names = matches.iter().flat_map(|one| &one.sni_hosts);
            for sni in names {
                for listener in builder.listeners.iter_mut().filter(|listener| listener.beside) {
                    listener.block(&sni.pattern, &rule);
                }
            }
        }
    }

    fn rank(&self, server: &Arc<ServerRank>) -> Arc<Rank> {
        let (server, object) = (Arc::clone(server), Arc::clone(&self.service.seniority));
        Arc::new(Rank::Object { server, exported: self.exported.place(), object })
    }

    fn targets(
        &self,
        destinations: &[Destination<'_>],
        port: Option<u16>,
        (wanted, carried): (bool, Carried),
        registry: &mut Registry<'_, '_, '_, '_>,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) -> Vec<Target> {
        destinations
            .iter()
            .map(|one| Target {
                weight: one.weight,
                backend: one.to.as_ref().and_then(|to| {
                    registry.backend(
                        (self.service.namespace, carried),
                        to,
                        port,
                        wanted,
                        builder,
                        diagnostics,
                    )
                }),
            })
            .collect()
    }

    /// The Gateways of a match: `match.gateways` narrows `spec.gateways`.
    fn narrowed(
        &self,
        gateways: Option<&[GatewayRef<'_>]>,
        diagnostics: &mut Diagnostics,
    ) -> Vec<&'a Gateway<'n>> {
        let Some(named) = gateways else { return self.gateways.clone() };
        for one in named {
            if !self.service.gateways.iter().any(|own| own.is_same(one)) {
                let own: Vec<_> = self
                    .service
                    .gateways
                    .iter()
                    .map(|GatewayRef { namespace, name, .. }| format!("{namespace}/{name}"))
                    .collect();
                one.view
                    .warn(format!(
                        "'{}/{}' is not among spec.gateways ({}), which the gateways of a match only narrow: it \
                         serves nothing there",
                        one.namespace,
                        one.name,
                        own.join(", ")
                    ))
                    .remedy("add it to spec.gateways")
                    .emit(diagnostics);
            }
        }
        let is_named = |gateway: &&Gateway<'_>| {
            named.iter().any(|one| one.namespace == gateway.namespace && one.name == gateway.name)
        };
        self.gateways.iter().copied().filter(is_named).collect()
    }

    /// The common names of a match and the hosts of servers.
    fn meetings<'m>(&self, one: &'m Match<'_>, diagnostics: &mut Diagnostics) -> Vec<Meeting<'m>>
    where
        'a: 'm,
    {
        let Match { at, sni_hosts, .. } = one;
        let gateways = self.narrowed(at.gateways.as_deref(), diagnostics);
        let all: Vec<(&'a Server<'n>, usize)> = gateways
            .iter()
            .flat_map(|gateway| &gateway.servers)
            .filter(|server| server.kind == ServerKind::Passthrough)
            .filter_map(|server| Some((server, server.listener?)))
            .collect();
        if all.is_empty() {
            let ends = gateways.iter().flat_map(|gateway| &gateway.servers);
            if ends
                .filter(|server| server.listener.is_some())
                .any(|server| server.kind == ServerKind::Terminate)
            {
                self.service
                    .view
                    .warn("no server of its Gateways passes TLS through: its tls routes serve nothing")
                    .expected("a server with tls.mode PASSTHROUGH")
                    .remedy(
                        "where TLS ends, a server with protocol HTTPS takes 'http' routes, and one with protocol TLS \
                         takes 'tcp' routes",
                    )
                    .emit(diagnostics);
            } else if !gateways.is_empty() {
                self.service.view.warn("none of its Gateways has a server that is served").emit(diagnostics);
            }
            return Vec::new();
        }
        let on_port: Vec<_> = all
            .iter()
            .filter(|(server, _)| at.port.as_ref().is_none_or(|(_, port)| server.port == *port))
            .collect();
        if let (Some((view, port)), true) = (&at.port, on_port.is_empty()) {
            let mut ports: Vec<_> = all.iter().map(|(server, _)| server.port.to_string()).collect();
            ports.sort_unstable();
            ports.dedup();
            view.warn(format!("no served server of its Gateways has port {port}: the match serves nothing"))
                .expected(format!("the port of a server: {}", ports.join(", ")))
                .emit(diagnostics);
            return Vec::new();
        }
        let mut meetings = Vec::new();
        for sni in sni_hosts {
            let before = meetings.len();
            for &&(server, listener) in &on_port {
                let admitted = server
                    .hosts
                    .iter()
                    .filter(|host| host.namespace.is_none_or(|namespace| namespace == self.service.namespace))
                    .filter(|host| sni.pattern.intersect(&host.pattern).is_some())
                    .map(|host| Meeting {
                        written: &sni.pattern,
                        host: &host.pattern,
                        listener,
                        server,
                        refused: sni.refused,
                        assumed: sni.assumed,
                    });
                meetings.extend(admitted);
            }
            if meetings.len() == before && !sni.refused {
                tell_not_admitted(
                    &sni.view,
                    &sni.pattern,
                    self.service.namespace,
                    on_port.iter().map(|(server, _)| *server),
                    diagnostics,
                );
            }
        }
        meetings
    }

    /// Adds `tcp` routes. The first one for a server serves the content of terminated TLS. On the ports that TCP
    /// servers share with TLS servers, it serves connections without a route by name.
    fn add_tcp(
        &self,
        registry: &mut Registry<'_, '_, '_, '_>,
        ends: &mut Ends,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        let Some(first) = self.service.tcp.first() else { return };
        let mut served = false;
        for (server, listener) in self
            .gateways
            .iter()
            .flat_map(|gateway| &gateway.servers)
            .filter_map(|server| Some((server, server.listener?)))
        {
            let names: Vec<(&HostPattern, &HostPattern)> = server
                .hosts
                .iter()
                .filter(|host| host.namespace.is_none_or(|namespace| namespace == self.service.namespace))
                .flat_map(|host| self.service.hosts.iter().map(|own| (own, &host.pattern)))
                .filter(|(own, host)| own.intersect(host).is_some())
                .collect();
            let is_bytes = server.kind == ServerKind::Terminate && !server.is_http();
            if names.is_empty() || !(is_bytes || server.kind == ServerKind::Tcp) {
                continue;
            }
            let Some((TcpRoute { view, index, destinations, .. }, is_refused)) =
                self.tcp_route(server, diagnostics)
            else {
                continue;
            };
            served = true;
            let targets = if is_refused {
                refused()
            } else {
                {
                    let carried = if is_bytes { Carried::Ended } else { Carried::Through };
                    self.targets(
                        destinations,
                        Some(server.port),
                        (true, carried),
                        registry,
                        builder,
                        diagnostics,
                    )
                }
            };
            let name = format!("{} tcp[{index}]", self.service.view.object());
            let rank = self.rank(&server.rank);
            if is_bytes {
                let termination = ends.bytes(server, builder);
                let rule = builder.rule_of(name, view.origin(), targets, termination, None);
                for (own, host) in names {
                    builder.listeners[listener].serve(own, host, &rule, &rank);
                }
            } else {
                let rule = builder.rule(name, view.origin(), targets);
                builder.listeners[listener].serve(&HostPattern::Any, &HostPattern::Any, &rule, &rank);
            }
        }
        if !served {
            first
                .view
                .error("a TCP route has no server name to route by: it is not served")
                .expected(
                    "tls routes with sniHosts; or a server with protocol TLS and mode SIMPLE, or a TCP server on the \
                     port of a TLS server",
                )
                .remedy(
                    "route by server name with 'tls'; the policies unknown_name and no_sni of the native format \
                     send what has no route to a backend",
                )
                .emit(diagnostics);
        }
    }

    /// The first `tcp` route with a match for a server, and whether that match is refused.
    fn tcp_route(&self, server: &Server<'_>, diagnostics: &mut Diagnostics) -> Option<(&TcpRoute<'n>, bool)> {
        let answer = |(place, refused): &(Place<'_>, bool), diagnostics: &mut Diagnostics| {
            let here = place.port.as_ref().is_none_or(|(_, port)| server.port == *port)
                && self
                    .narrowed(place.gateways.as_deref(), diagnostics)
                    .iter()
                    .any(|gateway| gateway.servers.iter().any(|other| std::ptr::eq(other, server)));
            here.then_some(*refused)
        };
        // A route without destinations is skipped, as in Istio.
        self.service.tcp.iter().filter(|route| !route.destinations.is_empty()).find_map(|route| {
            if route.matches.is_empty() {
                return Some((route, false));
            }
            let refused = route.matches.iter().find_map(|one| answer(one, diagnostics))?;
            Some((route, refused))
        })
    }
}

/// The common names of a match and a host of a server.
struct Meeting<'a> {
    written: &'a HostPattern,
    host: &'a HostPattern,
    listener: usize,
    server: &'a Server<'a>,
    /// Whether the names are refused, independent of the match.
    refused: bool,
    /// Whether the names replace unreadable ones.
    assumed: bool,
}

fn tell_unknown(
    view: &View<'_>,
    namespace: &str,
    name: &str,
    gateways: &[Gateway<'_>],
    diagnostics: &mut Diagnostics,
) {
    let full = format!("{namespace}/{name}");
    let mut unknown = view.error(format!("there is no Gateway '{full}': its names are refused"));
    let elsewhere = gateways.iter().find(|gateway| gateway.name == name);
    unknown.remedy = Some(if let Some(Gateway { namespace, namespace_assumed, .. }) = elsewhere {
        let there = if *namespace_assumed {
            format!("there is '{namespace}/{name}', whose file names no namespace: name one there")
        } else {
            format!("there is '{namespace}/{name}'")
        };
        format!("{there}, or write '{namespace}/{name}' here")
    } else {
        let known = gateways.iter().map(|gateway| format!("{}/{}", gateway.namespace, gateway.name));
        match diagnostics.closest(&full, known) {
            Some(near) => format!("did you mean '{near}'?"),
            None => "load the file with the Gateway too".into(),
        }
    });
    unknown.emit(diagnostics);
}

fn tell_not_admitted<'a>(
    view: &View<'_>,
    written: &HostPattern,
    own: &str,
    servers: impl Iterator<Item = &'a Server<'a>>,
    diagnostics: &mut Diagnostics,
) {
    let hosts: Vec<_> = servers.flat_map(|server| &server.hosts).collect();
    let hidden = hosts.iter().find(|host| host.pattern.intersect(written).is_some());
    if let Some(namespace) = hidden.and_then(|host| host.namespace) {
        view.warn(format!(
            "a server of its Gateways admits '{written}' from the namespace '{namespace}' only, and the \
             VirtualService is in '{own}': it serves nothing"
        ))
        .remedy(format!("write '{own}/{written}' or '{written}' in the hosts of the server"))
        .emit(diagnostics);
        return;
    }
    let hosts: Vec<_> = hosts
        .iter()
        .map(|host| match host.namespace {
            Some(namespace) => format!("{namespace}/{}", host.pattern),
            None => host.pattern.to_string(),
        })
        .collect();
    view.warn(format!("no server of its Gateways admits '{written}': it serves nothing"))
        .expected(format!("a name within the hosts of a server: {}", hosts.join(", ")))
        .emit(diagnostics);
}
