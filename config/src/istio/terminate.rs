//! Servers with TLS termination: their rules, once all routes are known.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    destination::refused,
    gateway::{Gateway, Server, ServerKind},
};
use crate::{
    builder::ModelBuilder,
    credentials::missing_secret,
    decode::Diagnostics,
    model::{
        http::{HttpRule, HttpTable, HttpsRedirect, PlainHttp, VirtualHost},
        rank::Rank,
        termination::{Inside, Termination},
    },
    name::HostPattern,
    options::Options,
};

/// The protocols that HTTP servers offer (RFC 7301). The content of a `TLS` server is unknown, so such a server
/// offers none.
const HTTP: [&str; 2] = ["h2", "http/1.1"];

/// The default port of HTTPS.
const HTTPS: u16 = 443;

/// The content of terminated TLS, per server.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// Indexed by [`Server::slot`].
    slots: Vec<Slot>,
    /// Names with invalid routes. They must not fall back to a wider pattern.
    blocked: Vec<(HostPattern, Arc<HttpRule>)>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The termination of a server for bytes that has a route.
    bytes: Option<Arc<Termination>>,
    /// The requests of an HTTP server.
    requests: Vec<Requests>,
}

/// The `http` routes of one `VirtualService` for one server.
#[derive(Debug)]
pub(super) struct Requests {
    /// The names.
    pub(super) patterns: Vec<HostPattern>,
    /// The precedence among others.
    pub(super) rank: Arc<Rank>,
    /// The first matching rule serves a request.
    pub(super) rules: Vec<Arc<HttpRule>>,
    /// The rule for all other requests.
    pub(super) last: Option<Arc<HttpRule>>,
}

/// The rules for the names of one pattern, as far as known.
#[derive(Debug, Default)]
struct Host {
    https_redirect: Option<HttpsRedirect>,
    rules: Vec<Arc<HttpRule>>,
    last: Vec<Arc<HttpRule>>,
}

impl Ends {
    /// Creates a slot for each server, by number.
    pub(super) fn new(gateways: &[Gateway<'_>]) -> Self {
        let servers = gateways.iter().flat_map(|gateway| &gateway.servers);
        let count = servers.filter_map(|server| server.slot).max().map_or(0, |last| last + 1);
        Self { slots: std::iter::repeat_with(Slot::default).take(count).collect(), blocked: Vec::new() }
    }

    /// The termination of a server for bytes. `None` if the server has none.
    pub(super) fn bytes(
        &mut self,
        server: &Server<'_>,
        builder: &mut ModelBuilder,
    ) -> Option<Arc<Termination>> {
        let slot = self.slots.get_mut(server.slot?)?;
        if slot.bytes.is_none() {
            slot.bytes = termination(server, Inside::Bytes, builder);
        }
        slot.bytes.clone()
    }

    /// Adds routes of an HTTP server.
    pub(super) fn add(&mut self, slot: usize, requests: Requests) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.requests.push(requests);
        }
    }

    /// Answers requests for these names by `rule`, where a wider pattern would otherwise serve them.
    pub(super) fn block(&mut self, pattern: HostPattern, rule: &Arc<HttpRule>) {
        self.blocked.push((pattern, Arc::clone(rule)));
    }

    /// Adds each server's hosts to the builder, with their content.
    pub(super) fn finish(
        mut self,
        gateways: &[Gateway<'_>],
        options: &Options,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        for gateway in gateways.iter().filter(|gateway| gateway.is_selected(options)) {
            for server in gateway.servers.iter().filter(|server| server.kind == ServerKind::Terminate) {
                if let Some(listener) = server.listener {
                    self.settle(gateway, server, listener, builder, diagnostics);
                }
            }
        }
        self.add_plain(gateways, options, builder);
    }

    /// Adds HTTP without TLS: one table per listener.
    fn add_plain(&mut self, gateways: &[Gateway<'_>], options: &Options, builder: &mut ModelBuilder) {
        let mut servers: Vec<(usize, &Gateway<'_>, &Server<'_>)> = gateways
            .iter()
            .filter(|gateway| gateway.is_selected(options))
            .flat_map(|gateway| gateway.servers.iter().map(move |server| (gateway, server)))
            .filter(|(_, server)| server.kind == ServerKind::Http)
            .filter_map(|(gateway, server)| Some((server.listener?, gateway, server)))
            .collect();
        servers.sort_by(|(a, _, one), (b, _, other)| {
            a.cmp(b).then_with(|| one.rank.of_hosts().cmp(&other.rank.of_hosts()))
        });
        for servers in servers.chunk_by(|(a, ..), (b, ..)| a == b) {
            let Some(&(listener, _, first)) = servers.first() else { continue };
            let servers: Vec<_> = servers.iter().map(|(_, gateway, server)| (*gateway, *server)).collect();
            let table = Arc::new(self.table(&servers));
            builder.listeners[listener].plain_http =
                Some(PlainHttp { name: first.title(), origin: first.view.origin(), table });
        }
    }

    /// The rules of servers that share a table, by name.
    fn table(&mut self, servers: &[(&Gateway<'_>, &Server<'_>)]) -> HttpTable {
        let mut hosts: HashMap<HostPattern, Host> = HashMap::new();
        for (gateway, server) in servers {
            let Some(slot) = server.slot.and_then(|slot| self.slots.get_mut(slot)) else { continue };
            let mut all = std::mem::take(&mut slot.requests);
            all.sort_by(|a, b| a.rank.against(&b.rank).map_or(Ordering::Equal, |(order, _)| order));
            let redirect = |pattern: &HostPattern| {
                server.https_redirect.then(|| HttpsRedirect { port: port_of_tls(gateway, pattern) })
            };
            for Requests { patterns, rules, last, .. } in all {
                for pattern in patterns {
                    let redirect = redirect(&pattern);
                    let host = hosts.entry(pattern).or_default();
                    host.https_redirect = host.https_redirect.or(redirect);
                    add_new(&mut host.rules, &rules);
                    add_new(&mut host.last, last.as_slice());
                }
            }
            for host in server.hosts.iter().filter(|_| server.https_redirect) {
                let own = hosts.entry(host.pattern.clone()).or_default();
                own.https_redirect = own.https_redirect.or(redirect(&host.pattern));
            }
        }
        for (pattern, rule) in &self.blocked {
            let wider = |other: &HostPattern| other != pattern && pattern.is_subset_of(other);
            if !hosts.contains_key(pattern) && hosts.keys().any(wider) {
                let host = Host { rules: vec![Arc::clone(rule)], ..Host::default() };
                hosts.insert(pattern.clone(), host);
            }
        }
        HttpTable::new(
            hosts
                .into_iter()
                .map(|(pattern, Host { https_redirect, mut rules, last })| {
                    rules.extend(last);
                    VirtualHost { pattern, https_redirect, rules }
                })
                .collect(),
        )
    }

    fn settle(
        &mut self,
        gateway: &Gateway<'_>,
        server: &Server<'_>,
        listener: usize,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        let (Some(tls), Some(slot)) = (&server.tls, server.slot) else { return };
        for (name, view) in &tls.secrets {
            let missing = missing_secret(name, view, "the names of the server are refused");
            builder.want_secret(name.clone(), missing);
        }
        let name = server.title();
        let origin = server.view.origin();
        let rule = if server.is_http() {
            let inside = Inside::Http(Arc::new(self.table(&[(gateway, server)])));
            let ends = termination(server, inside, builder);
            builder.rule_of(name, origin, Vec::new(), ends, None)
        } else {
            if self.slots.get(slot).is_none_or(|slot| slot.bytes.is_none()) {
                server
                    .view
                    .warn("no tcp route of a VirtualService is for the server: its names are refused")
                    .expected(
                        "a VirtualService with 'tcp', or protocol: HTTPS and a VirtualService with 'http'",
                    )
                    .emit(diagnostics);
            }
            builder.rule(name, origin, refused())
        };
        for host in &server.hosts {
            builder.listeners[listener].claim(&host.pattern, &rule, &server.rank);
        }
    }
}

/// Adds rules, except those already added through another server.
fn add_new(rules: &mut Vec<Arc<HttpRule>>, more: &[Arc<HttpRule>]) {
    let known: HashSet<usize> = rules.iter().map(|rule| rule.rule.id).collect();
    let is_new = |rule: &&Arc<HttpRule>| !(known.contains(&rule.rule.id) && rules.contains(rule));
    let new: Vec<_> = more.iter().filter(is_new).cloned().collect();
    rules.extend(new);
}

/// The port of the redirect to HTTPS for names of an HTTP server: that of a TLS server of the same Gateway with these
/// names, 443 before others.
fn port_of_tls(gateway: &Gateway<'_>, pattern: &HostPattern) -> u16 {
    let ports = gateway
        .servers
        .iter()
        .filter(|server| server.kind.serves_tls() && server.listener.is_some())
        .filter(|server| server.hosts.iter().any(|host| host.pattern.intersect(pattern).is_some()))
        .map(|server| server.port);
    let ports: Vec<_> = ports.collect();
    if ports.contains(&HTTPS) { HTTPS } else { ports.first().copied().unwrap_or(HTTPS) }
}

fn termination(server: &Server<'_>, inside: Inside, builder: &mut ModelBuilder) -> Option<Arc<Termination>> {
    let tls = server.tls.as_ref()?;
    let alpn = match &inside {
        Inside::Bytes => Vec::new(),
        Inside::Http(_) => HTTP.map(str::to_owned).into(),
    };
    Some(builder.termination(|id| Termination {
        id,
        name: server.title(),
        origin: server.view.origin(),
        certificates: tls.certificates.clone(),
        client: tls.client.clone(),
        min_version: tls.min_version,
        max_version: tls.max_version,
        cipher_suites: tls.cipher_suites.clone(),
        alpn,
        inside,
    }))
}
