//! Makes listeners from the servers of all Gateways, one per port and address.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{
    destination::refused,
    gateway::{Gateway, Server, ServerKind},
};
use crate::{
    builder::{ListenerBuilder, ModelBuilder, first_overlap},
    decode::Diagnostics,
    model::rank::ServerRank,
    model::{Claim, Policies},
    name::HostPattern,
    options::Options,
};

/// A port and an address, or all addresses.
type Place = (u16, Option<IpAddr>);

/// Makes the listeners and records the listener of each server.
pub(super) fn add(
    gateways: &mut [Gateway<'_>],
    builder: &mut ModelBuilder,
    policies: &Policies,
    options: &Options,
    diagnostics: &mut Diagnostics,
) {
    tell_selectors(gateways, options, diagnostics);
    rank(gateways, options);
    let places = Places::of(gateways, options);
    let natives = builder.listeners.len();
    let mut made: HashMap<Place, usize> = HashMap::new();
    let mut with_tls: HashSet<usize> = HashSet::new();
    for server in selected(gateways, options).filter(|server| server.kind.is_served()) {
        let place = places.of_server(server);
        let at = if let Some(&at) = made.get(&place) {
            at
        } else {
            let Some(listener) =
                listener(server, place, &builder.listeners[..natives], policies, diagnostics)
            else {
                // On this port, the names belong to no other server.
                if server.kind.serves_tls() {
                    server.kind = ServerKind::Claims;
                }
                continue;
            };
            builder.listeners.push(listener);
            made.insert(place, builder.listeners.len() - 1);
            builder.listeners.len() - 1
        };
        server.listener = Some(at);
        if !server.kind.serves_tls() {
            continue;
        }
        with_tls.insert(at);
        let hosts = &mut builder.listeners[at].hosts;
        for host in &server.hosts {
            if !hosts.contains(&host.pattern) {
                hosts.push(host.pattern.clone());
            }
        }
    }
    let ends = selected(gateways, options)
        .filter(|server| matches!(server.kind, ServerKind::Terminate | ServerKind::Http))
        .filter(|server| server.listener.is_some());
    for (slot, server) in ends.enumerate() {
        server.slot = Some(slot);
    }
    for server in selected(gateways, options).filter(|server| !server.kind.is_served()) {
        server.listener = made.get(&places.of_server(server)).copied().filter(|at| with_tls.contains(at));
    }
    for gateway in gateways.iter().filter(|gateway| gateway.is_selected(options)) {
        for server in &gateway.servers {
            if let (ServerKind::Claims, Some(at)) = (server.kind, server.listener) {
                let rule = builder.rule(server.title(), server.view.origin(), refused());
                for host in server.hosts.iter().filter(|host| !is_taken(gateways, server, at, &host.pattern))
                {
                    builder.listeners[at].claim(&host.pattern, &rule, &server.rank);
                }
            }
        }
    }
    for gateway in gateways.iter().filter(|gateway| gateway.is_selected(options)) {
        for server in gateway.servers.iter().filter(|server| !server.kind.is_served()) {
            builder.claims.extend(server.hosts.iter().map(|host| Claim {
                pattern: host.pattern.clone(),
                port: server.port,
                by: server.title(),
                origin: server.view.origin(),
            }));
        }
    }
    tell_plain(gateways, options, diagnostics);
    tell_modes(gateways, options, diagnostics);
}

/// Reports hosts that belong both to a server with passthrough and to one with termination.
fn tell_modes(gateways: &[Gateway<'_>], options: &Options, diagnostics: &mut Diagnostics) {
    let mut servers: Vec<&Server<'_>> = gateways
        .iter()
        .filter(|gateway| gateway.is_selected(options))
        .flat_map(|gateway| &gateway.servers)
        .filter(|server| server.kind.serves_tls() && server.listener.is_some())
        .collect();
    if servers.iter().all(|server| server.kind == ServerKind::Passthrough) {
        return;
    }
    servers.sort_by(|a, b| a.rank.of_hosts().cmp(&b.rank.of_hosts()));
    let mut first: HashMap<(Option<usize>, &HostPattern), &Server<'_>> = HashMap::new();
    for server in servers {
        for host in &server.hosts {
            let winner = *first.entry((server.listener, &host.pattern)).or_insert(server);
            if winner.kind == server.kind {
                continue;
            }
            let (does, first_does) = match server.kind {
                ServerKind::Terminate => ("ends TLS", "passes it through"),
                _ => ("passes TLS through", "ends it"),
            };
            server
                .view
                .warn(format!(
                    "the server {does} for '{}', and {} ({}), which comes first, {first_does}: in Istio the first \
                     one has the host and the other server is skipped as a whole; here the route or host that is \
                     the most specific for a name has it, and of equal ones the first server's",
                    host.pattern,
                    winner.title(),
                    winner.view.origin()
                ))
                .remedy("name each host in one of the two servers only")
                .emit(diagnostics);
        }
    }
}

/// Whether an earlier server that is served has the host already.
fn is_taken(gateways: &[Gateway<'_>], claimant: &Server<'_>, listener: usize, host: &HostPattern) -> bool {
    gateways.iter().flat_map(|gateway| &gateway.servers).any(|server| {
        server.kind.serves_tls()
            && server.listener == Some(listener)
            && place(server) < place(claimant)
            && server.hosts.iter().any(|own| own.pattern == *host)
    })
}

fn selected<'s, 'n>(
    gateways: &'s mut [Gateway<'n>],
    options: &'s Options,
) -> impl Iterator<Item = &'s mut Server<'n>> {
    gateways
        .iter_mut()
        .filter(|gateway| gateway.is_selected(options))
        .flat_map(|gateway| &mut gateway.servers)
}

/// Decides the precedence of the servers of each port: see [`ServerRank`].
fn rank(gateways: &mut [Gateway<'_>], options: &Options) {
    let mut order: Vec<usize> = (0..gateways.len()).filter(|at| gateways[*at].is_selected(options)).collect();
    order.sort_by(|a, b| gateways[*a].seniority.cmp(&gateways[*b].seniority));
    let mut protocols: HashMap<Place, Vec<&str>> = HashMap::new();
    for at in order {
        let Gateway { seniority, servers, .. } = &mut gateways[at];
        for server in servers {
            let seen = protocols.entry((server.port, server.bind)).or_default();
            let protocol = seen.iter().position(|seen| *seen == server.protocol).unwrap_or_else(|| {
                seen.push(server.protocol);
                seen.len() - 1
            });
            let gateway = Arc::clone(seniority);
            server.rank = Arc::new(ServerRank { protocol, gateway, index: server.index });
        }
    }
}

/// The ports with a server at all addresses.
struct Places(Vec<u16>);

impl Places {
    fn of(gateways: &mut [Gateway<'_>], options: &Options) -> Self {
        Self(
            selected(gateways, options)
                .filter(|server| server.kind.is_served() && server.bind.is_none())
                .map(|server| server.port)
                .collect(),
        )
    }

    /// `0.0.0.0` and `::` are the listener of all addresses if the port has one, as in Istio.
    fn of_server(&self, server: &Server<'_>) -> Place {
        let bind = server.bind.filter(|bind| !(bind.is_unspecified() && self.0.contains(&server.port)));
        (server.port, bind)
    }
}

fn listener(
    server: &Server<'_>,
    (port, bind): Place,
    natives: &[ListenerBuilder],
    policies: &Policies,
    diagnostics: &mut Diagnostics,
) -> Option<ListenerBuilder> {
    let (name, ips) = match bind {
        Some(address) => (format!("gateway-{address}-{port}"), vec![address]),
        None => (format!("gateway-{port}"), vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]),
    };
    let addresses: Vec<_> = ips.into_iter().map(|address| SocketAddr::new(address, port)).collect();
    let overlapping = natives
        .iter()
        .find_map(|native| first_overlap(&native.bind, &addresses).map(|address| (native, address)));
    if let Some((other, address)) = overlapping {
        server
            .view
            .error(format!("{address} overlaps with the listener '{}' ({})", other.name, other.origin))
            .remedy("give both the same bind, or ports of their own")
            .emit(diagnostics);
        return None;
    }
    if natives.iter().any(|listener| listener.name == name) {
        server
            .view
            .error(format!("its listener would be named '{name}', which is the name of a native one"))
            .remedy("rename the native listener")
            .emit(diagnostics);
        return None;
    }
    let mut listener =
        ListenerBuilder::new(name, server.view.origin(), addresses, Vec::new(), policies.clone());
    listener.beside = true;
    listener.any_address = bind.is_none();
    Some(listener)
}

/// Reports the effect of selectors.
fn tell_selectors(gateways: &[Gateway<'_>], options: &Options, diagnostics: &mut Diagnostics) {
    let mut written = gateways
        .iter()
        .filter_map(|gateway| gateway.selector.as_ref().map(|(view, labels)| (gateway, view, labels)));
    if !options.selector.is_empty() {
        for (_, view, labels) in written.filter(|(_, _, labels)| !labels.selected_by(&options.selector)) {
            view.ignored(format!("{labels} is not selected (--selector): the Gateway is not served"))
                .emit(diagnostics);
        }
        return;
    }
    let Some((first, view, labels)) = written.next() else { return };
    let others: Vec<_> = written.collect();
    if others.iter().all(|(_, _, other)| labels.same(other)) {
        for view in std::iter::once(view).chain(others.iter().map(|(_, view, _)| *view)) {
            view.note("a selector has no meaning outside a cluster: the Gateway is served").emit(diagnostics);
        }
        return;
    }
    for (_, view, other) in others.iter().filter(|(_, _, other)| !labels.same(other)) {
        view.warn(format!(
            "the selector {other} is another one than {labels} of {} ({}): in Istio these Gateways are different \
             proxies, here both are served and share their ports",
            first.view.object(),
            first.view.origin()
        ))
        .remedy(format!("serve only one of them, for example with --selector {labels}"))
        .emit(diagnostics);
    }
}

/// Reports the effect on servers without TLS beside TLS servers.
fn tell_plain(gateways: &[Gateway<'_>], options: &Options, diagnostics: &mut Diagnostics) {
    let all: Vec<(&Gateway<'_>, &Server<'_>)> = gateways
        .iter()
        .filter(|gateway| gateway.is_selected(options))
        .flat_map(|gateway| gateway.servers.iter().map(move |server| (gateway, server)))
        .collect();
    for (_, plain) in &all {
        if !matches!(plain.kind, ServerKind::Http | ServerKind::Tcp) {
            continue;
        }
        let beside = all.iter().filter(|(_, other)| {
            other.kind.serves_tls() && plain.listener.is_some() && other.listener == plain.listener
        });
        let Some((_, tls)) = beside.max_by(|(_, a), (_, b)| place(a).cmp(&place(b))) else {
            if plain.kind == ServerKind::Tcp {
                plain
                    .view
                    .error(format!(
                        "the protocol {} has no server name to route by: the server is not served",
                        plain.protocol
                    ))
                    .expected("HTTPS or TLS, with tls.mode PASSTHROUGH or SIMPLE")
                    .remedy(
                        "write protocol: TLS and tls: {mode: PASSTHROUGH} if the connections begin with TLS",
                    )
                    .emit(diagnostics);
            }
            continue;
        };
        if plain.kind == ServerKind::Tcp && place(tls) < place(plain) {
            continue;
        }
        plain
            .view
            .warn(format!(
                "shares port {} with the TLS server of {} ({}): in Istio the one that comes first takes the port; \
                 here both are served, by what the first bytes are",
                plain.port,
                tls.view.object(),
                tls.view.origin()
            ))
            .remedy("give servers with and without TLS ports of their own")
            .emit(diagnostics);
    }
}

/// The order in which Istio processes the servers of all ports.
fn place(server: &Server<'_>) -> impl Ord + use<> {
    (Arc::clone(&server.rank.gateway), server.rank.index)
}
