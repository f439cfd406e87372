//! The model in progress, which all formats share.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use crate::{
    admin::AdminAddress,
    decode::Diagnostics,
    model::{
        Backend, BackendId, Claim, EndpointHost, Listener, Model, Origin, Policies, Policy, Route, Rule,
        Target,
        access::Access,
        http::PlainHttp,
        proxy_protocol::AcceptProxy,
        rank::{Because, Rank, ServerRank},
        route_table::{RouteTable, Shadowed, builder::RouteTableBuilder},
        scope::ScopedTimeouts,
        secret::{self, Secret},
        settings::{Admin, Settings},
        termination::{SecretName, Termination},
    },
    name::HostPattern,
    options::Options,
    report::{Diagnostic, Severity},
};

#[derive(Debug, Default)]
pub(crate) struct ModelBuilder {
    pub(crate) listeners: Vec<ListenerBuilder>,
    backends: Vec<Backend>,
    by_name: HashMap<String, BackendId>,
    /// Whether a backend was left out, since its name is invalid and reported.
    pub(crate) nameless_backends: bool,
    rules: usize,
    terminations: usize,
    /// The claims of servers that are not served.
    pub(crate) claims: Vec<Claim>,
    /// The `Secret` objects of the files.
    pub(crate) secrets: Vec<LoadedSecret>,
    /// The named Secrets, each with the finding for a missing one.
    wanted_secrets: Vec<(SecretName, Diagnostic)>,
}

/// A `Secret` of the files, and its findings.
#[derive(Debug)]
pub(crate) struct LoadedSecret {
    pub(crate) secret: Secret,
    /// Errors, which are reported if an object names the Secret.
    pub(crate) faults: Vec<Diagnostic>,
    /// The finding if no object names it.
    pub(crate) unused: Diagnostic,
}

#[derive(Debug)]
pub(crate) struct ListenerBuilder {
    pub(crate) name: String,
    pub(crate) origin: Origin,
    pub(crate) bind: Vec<SocketAddr>,
    /// The names that the listener admits. A route serves its common names with these.
    pub(crate) hosts: Vec<HostPattern>,
    pub(crate) policies: Policies,
    pub(crate) mss: Option<u16>,
    pub(crate) proxy_protocol: Option<AcceptProxy>,
    /// Whether it is a Gateway's. It may then be at one address beside another Gateway's listener at all addresses of
    /// the port. The kernel gives a connection to the more specific one.
    pub(crate) beside: bool,
    pub(crate) freebind: bool,
    pub(crate) timeouts: Option<Arc<ScopedTimeouts>>,
    /// Whether no address is written: see [`Listener::any_address`].
    pub(crate) any_address: bool,
    /// Its source rules and limits.
    pub(crate) access: Option<Access>,
    /// The service of HTTP without TLS.
    pub(crate) plain_http: Option<PlainHttp>,
    table: RouteTableBuilder,
    /// Names of rules that cannot be served and have no precedence.
    blocked: Vec<(HostPattern, Arc<Rule>)>,
}

impl ModelBuilder {
    /// A rule that passes TLS through, or serves its content.
    pub(crate) fn rule(&mut self, name: String, origin: Origin, targets: Vec<Target>) -> Arc<Rule> {
        self.rule_of(name, origin, targets, None, None)
    }

    /// A rule with an optional termination, and rules for its clients.
    pub(crate) fn rule_of(
        &mut self,
        name: String,
        origin: Origin,
        targets: Vec<Target>,
        termination: Option<Arc<Termination>>,
        access: Option<Access>,
    ) -> Arc<Rule> {
        let route = self.route(name, origin, targets);
        Arc::new(Rule { route, termination, access: access.map(Box::new), timeouts: None })
    }

    /// The destination of requests, with the next id of a rule.
    pub(crate) fn route(&mut self, name: String, origin: Origin, targets: Vec<Target>) -> Route {
        let id = self.rules;
        self.rules += 1;
        Route { id, name, origin, targets }
    }

    /// A termination with the next id.
    pub(crate) fn termination(&mut self, make: impl FnOnce(usize) -> Termination) -> Arc<Termination> {
        let id = self.terminations;
        self.terminations += 1;
        Arc::new(make(id))
    }

    /// Records a named Secret, and the finding if neither a file nor a directory can have it.
    pub(crate) fn want_secret(&mut self, name: SecretName, missing: Diagnostic) {
        self.wanted_secrets.push((name, missing));
    }

    /// Returns the named Secrets. Reports the others and the missing ones.
    fn settle_secrets(&mut self, has_directory: bool, diagnostics: &mut Diagnostics) -> Vec<Secret> {
        let loaded = std::mem::take(&mut self.secrets);
        let mut wanted = vec![false; loaded.len()];
        for (name, missing) in std::mem::take(&mut self.wanted_secrets) {
            let all = || loaded.iter().map(|loaded| &loaded.secret);
            // The certificates of authorities may be in a Secret of their own.
            let authorities =
                SecretName { name: format!("{}{}", name.name, SecretName::AUTHORITIES), ..name.clone() };
            let mut found = false;
            for name in [&name, &authorities] {
                let Some(secret) = secret::find(all(), name) else { continue };
                for (loaded, wanted) in loaded.iter().zip(&mut wanted) {
                    *wanted |= loaded.secret.name == secret.name;
                }
                found = true;
            }
            if !found && !has_directory {
                missing.emit(diagnostics);
            }
        }
        let mut kept = Vec::new();
        for (LoadedSecret { secret, faults, unused }, wanted) in loaded.into_iter().zip(wanted) {
            if wanted {
                for fault in faults {
                    fault.emit(diagnostics);
                }
                kept.push(secret);
            } else {
                unused.emit(diagnostics);
            }
        }
        kept
    }

    /// Adds a backend. `None` if its name is taken.
    pub(crate) fn backend(&mut self, backend: Backend) -> Option<BackendId> {
        if self.by_name.contains_key(&backend.name) {
            return None;
        }
        let id = BackendId(self.backends.len());
        self.by_name.insert(backend.name.clone(), id);
        self.backends.push(backend);
        Some(id)
    }

    pub(crate) fn backend_named(&self, name: &str) -> Option<BackendId> {
        self.by_name.get(name).copied()
    }

    /// Whether the connections of a backend go to the name that the client requests.
    pub(crate) fn is_dynamic(&self, id: BackendId) -> bool {
        self.backends.get(id.0).is_some_and(|backend| backend.dynamic.is_some())
    }

    pub(crate) fn backend_names(&self) -> impl Iterator<Item = &str> {
        self.backends.iter().map(|backend| &*backend.name)
    }

    /// The listener that already has one of these addresses, or all addresses of the port.
    pub(crate) fn overlap(&self, bind: &[SocketAddr]) -> Option<(&ListenerBuilder, SocketAddr)> {
        self.listeners
            .iter()
            .find_map(|listener| first_overlap(&listener.bind, bind).map(|address| (listener, address)))
    }

    /// Moves listeners to the addresses of `--listen`. Listeners that get the same addresses are merged.
    fn rebind(&mut self, ports: &mut Vec<Vec<u16>>, options: &Options, diagnostics: &mut Diagnostics) {
        for listener in &mut self.listeners {
            listener.bind = rebound(&listener.bind, options);
        }
        if options.listen.is_empty() {
            return; // Overlaps of written addresses are reported where they are written.
        }
        let mut listeners: Vec<ListenerBuilder> = Vec::new();
        let mut kept: Vec<Vec<u16>> = Vec::new();
        for (listener, mut own) in std::mem::take(&mut self.listeners).into_iter().zip(ports.drain(..)) {
            if let Some(at) = listeners.iter().position(|other| other.why_apart(&listener).is_none()) {
                let other = &mut listeners[at];
                let message = format!(
                    "--listen puts the listeners '{}' and '{}' both at {}: they are one listener",
                    other.name, listener.name, listener.bind[0]
                );
                Diagnostic::general(Severity::Note, message).emit(diagnostics);
                other.hosts.extend(listener.hosts);
                other.table.append(listener.table);
                other.blocked.extend(listener.blocked);
                other.plain_http = match (other.plain_http.take(), listener.plain_http) {
                    (Some(own), Some(more)) => Some(own.and(&more)),
                    (own, more) => own.or(more),
                };
                kept[at].append(&mut own);
                kept[at].sort_unstable();
                kept[at].dedup();
                continue;
            }
            if let Some((other, address)) = listeners.iter().find_map(|other| {
                let besides = other.beside && listener.beside;
                first_conflict(&other.bind, &listener.bind, besides).map(|at| (other, at))
            }) {
                let message = format!(
                    "--listen puts the listeners '{}' and '{}' both at {address}, and they cannot be one listener: {}",
                    other.name,
                    listener.name,
                    other.why_apart(&listener).unwrap_or_default()
                );
                Diagnostic::general(Severity::Error, message)
                    .remedy("give each listener's port an address of its own, or both exactly the same ones")
                    .emit(diagnostics);
            }
            listeners.push(listener);
            kept.push(own);
        }
        self.listeners = listeners;
        *ports = kept;
    }

    /// Returns the model. Reports an error if the model cannot serve anything.
    pub(crate) fn finish(
        mut self,
        settings: Settings,
        options: &Options,
        diagnostics: &mut Diagnostics,
    ) -> Model {
        let mut ports = Vec::new();
        for listener in &self.listeners {
            let mut own: Vec<_> = listener.bind.iter().map(SocketAddr::port).collect();
            own.sort_unstable();
            own.dedup();
            ports.push(own);
        }
        for listen in &options.listen {
            if !ports.iter().flatten().any(|port| *port == listen.port) {
                Diagnostic::general(
                    Severity::Warning,
                    format!("--listen {listen}: no listener has port {}", listen.port),
                )
                .emit(diagnostics);
            }
        }
        self.rebind(&mut ports, options, diagnostics);
        self.report_loops(diagnostics);

        let Admin { address, ready, status, .. } = &settings.startup.admin;
        let address = address.as_ref().and_then(AdminAddress::tcp);
        let addresses = [("admin", address), ("admin.ready", *ready), ("admin.status", *status)];
        for (field, address) in addresses {
            let Some(address) = address else { continue };
            let Some((listener, _)) = self.overlap(&[address]) else { continue };
            Diagnostic::general(
                Severity::Error,
                format!(
                    "{field} {address} overlaps with the listener '{}' ({})",
                    listener.name, listener.origin
                ),
            )
            .remedy("use another port or address")
            .emit(diagnostics);
        }
        let named_status =
            settings.startup.named_status.filter(|port| self.may_have_status(*port, diagnostics));
        // Parts that are missing because of an error need no further finding.
        let failed = diagnostics.failed();
        if failed {
        } else if self.listeners.is_empty() {
            Diagnostic::general(Severity::Error, "there is nothing to listen on")
                .expected("a listener, or a Gateway with a server")
                .emit(diagnostics);
        } else if self.serves_nothing() {
            Diagnostic::general(Severity::Error, "no route is left to serve")
                .expected("a route that some listener admits")
                .remedy("see the findings above for why each route is left out")
                .emit(diagnostics);
        }
        let Settings { mut startup, mut runtime } = settings;
        if let Some(secrets) = &options.secrets {
            runtime.secrets = Some(secrets.clone());
        }
        let secrets = self.settle_secrets(runtime.secrets.is_some(), diagnostics);
        let Self { listeners, backends, rules, terminations, claims, .. } = self;
        let listeners: Vec<_> = listeners
            .into_iter()
            .zip(ports)
            .map(|(listener, ports)| {
                let listener = listener.build(ports);
                report(&listener, failed, diagnostics);
                listener
            })
            .collect();
        startup.named_status = named_status;
        startup.same_host = backends.iter().any(|backend| backend.same_host);
        Model { listeners, backends, rules, terminations, secrets, claims, startup, runtime }
    }

    /// Whether no listener has the status port of an Istio document.
    fn may_have_status(&self, port: u16, diagnostics: &mut Diagnostics) -> bool {
        let all = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
        let mut taken = self.listeners.iter().filter(|listener| {
            let addresses = all.map(|ip| SocketAddr::new(ip, port));
            first_overlap(&listener.bind, &addresses).is_some()
        });
        let Some(listener) = taken.next() else { return true };
        Diagnostic::general(
            Severity::Warning,
            format!(
                "the status-port {port} is the port of the listener '{}': probes are not answered",
                listener.name
            ),
        )
        .remedy("name another address with --status or admin.status")
        .emit(diagnostics);
        false
    }

    /// Warns of endpoints that are listeners of the same process. Only the daemon knows the addresses of a name.
    fn report_loops(&self, diagnostics: &mut Diagnostics) {
        let ports: HashSet<_> =
            self.listeners.iter().flat_map(|listener| &listener.bind).map(SocketAddr::port).collect();
        for backend in &self.backends {
            for endpoint in &backend.endpoints {
                let EndpointHost::Ip(ip) = endpoint.host else { continue };
                if !ports.contains(&endpoint.port) {
                    continue;
                }
                let address = SocketAddr::new(ip, endpoint.port);
                let own =
                    |listener: &&ListenerBuilder| listener.bind.iter().any(|bind| leads_to(address, bind));
                if let Some(listener) = self.listeners.iter().find(own) {
                    let mut found = Diagnostic::general(
                        Severity::Warning,
                        format!(
                            "the endpoint {address} of the backend '{}' is the listener '{}': its connections would \
                             come back for ever and are refused",
                            backend.name, listener.name
                        ),
                    )
                    .remedy("write the address of the server that is meant, or another port for the listener");
                    found.origin = Some(listener.origin.clone());
                    found.emit(diagnostics);
                }
            }
        }
    }

    fn serves_nothing(&self) -> bool {
        self.listeners.iter().all(|listener| {
            !listener.table.serves_any()
                && listener.plain_http.is_none()
                && !listener.policies.iter().any(|(_, policy)| matches!(policy, Policy::Backend(_)))
        })
    }
}

impl ListenerBuilder {
    pub(crate) fn new(
        name: String,
        origin: Origin,
        bind: Vec<SocketAddr>,
        hosts: Vec<HostPattern>,
        policies: Policies,
    ) -> Self {
        let (table, blocked) = (RouteTable::builder(), Vec::new());
        Self {
            name,
            origin,
            bind,
            hosts,
            policies,
            mss: None,
            proxy_protocol: None,
            freebind: false,
            timeouts: None,
            any_address: false,
            beside: false,
            access: None,
            plain_http: None,
            table,
            blocked,
        }
    }

    /// Serves the common names of `written` and `host`. Returns whether there are any.
    pub(crate) fn serve(
        &mut self,
        written: &HostPattern,
        host: &HostPattern,
        rule: &Arc<Rule>,
        rank: &Arc<Rank>,
    ) -> bool {
        match written.intersect(host) {
            Some(pattern) => {
                self.table.insert(pattern, written, host, rule, rank);
                true
            }
            None => false,
        }
    }

    /// Records names of a server, independent of its routes; see [`RouteTableBuilder::claim`].
    pub(crate) fn claim(&mut self, host: &HostPattern, rule: &Arc<Rule>, server: &Arc<ServerRank>) {
        self.table.claim(host.clone(), rule, server);
    }

    /// Records names of an invalid rule without a precedence. They must not fall back to a wider rule that was not
    /// meant for them. A rule for the same names keeps them.
    pub(crate) fn block(&mut self, written: &HostPattern, rule: &Arc<Rule>) {
        for host in &self.hosts {
            if let Some(pattern) = written.intersect(host) {
                self.blocked.push((pattern, Arc::clone(rule)));
            }
        }
    }

    /// The reason for which `other` cannot be merged with this listener. `None` if it can: both are Gateways', have
    /// exactly the same addresses, and treat connections alike. In Istio, ports of a Service with the same target
    /// port are one listener. A native listener is never merged.
    fn why_apart(&self, other: &Self) -> Option<&'static str> {
        if !(self.beside && other.beside) {
            Some("one of them is native, and its routes are for it alone")
        } else if !same_addresses(&self.bind, &other.bind) {
            Some("their other addresses differ")
        } else if self.policies != other.policies {
            Some("their policies differ")
        } else if self.mss != other.mss {
            Some("their segment sizes (mss) differ")
        } else if self.proxy_protocol != other.proxy_protocol {
            Some("their proxy_protocol settings differ")
        } else {
            None
        }
    }

    fn build(self, ports: Vec<u16>) -> Listener {
        let Self {
            name,
            origin,
            bind,
            hosts: _,
            policies,
            mss,
            proxy_protocol,
            freebind,
            timeouts,
            any_address,
            beside: _,
            access,
            plain_http,
            mut table,
            blocked,
        } = self;
        if !blocked.is_empty() {
            let mut served: HashSet<_> = table.patterns().cloned().collect();
            let mut kept: Vec<_> = blocked
                .into_iter()
                .filter(|(pattern, _)| !served.contains(pattern) && has_wider(&served, pattern))
                .collect();
            kept.retain(|(pattern, _)| served.insert(pattern.clone()));
            for (pattern, rule) in kept {
                table.insert(pattern.clone(), &pattern, &pattern, &rule, &Arc::default());
            }
        }
        let routes = table.build();
        Listener {
            name,
            origin,
            bind,
            mss,
            freebind,
            any_address,
            ports,
            access,
            proxy_protocol,
            routes,
            plain_http,
            policies,
            timeouts,
        }
    }
}

/// Whether the two lists contain the same addresses, in any order. Port 0 is a new port every time.
fn same_addresses(a: &[SocketAddr], b: &[SocketAddr]) -> bool {
    a.len() == b.len() && a.iter().all(|address| address.port() != 0 && b.contains(address))
}

/// Whether a name of `pattern` would match a wider pattern.
fn has_wider(served: &HashSet<HostPattern>, pattern: &HostPattern) -> bool {
    let (HostPattern::Exact(name) | HostPattern::Suffix(name)) = pattern else { return false };
    served.contains(&HostPattern::Any)
        || parents(name.as_str()).any(|parent| {
            HostPattern::parse(&format!("*.{parent}")).is_ok_and(|wider| served.contains(&wider))
        })
}

fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, parent)| parent)).skip(1)
}

fn rebound(bind: &[SocketAddr], options: &Options) -> Vec<SocketAddr> {
    let mut moved = Vec::with_capacity(bind.len());
    for address in bind {
        let mut instead =
            options.listen.iter().filter(|listen| listen.port == address.port()).map(|listen| listen.address);
        match instead.next() {
            None => moved.push(*address),
            Some(first) => {
                for address in std::iter::once(first).chain(instead) {
                    if !moved.contains(&address) {
                        moved.push(address);
                    }
                }
            }
        }
    }
    moved
}

/// An address of `b` that cannot be bound beside those of `a`.
pub(crate) fn first_overlap(a: &[SocketAddr], b: &[SocketAddr]) -> Option<SocketAddr> {
    b.iter().copied().find(|b| a.iter().any(|a| overlaps(a, b)))
}

/// Like [`first_overlap`], but `beside` allows an address beside all addresses of its port.
fn first_conflict(a: &[SocketAddr], b: &[SocketAddr], beside: bool) -> Option<SocketAddr> {
    if beside { b.iter().copied().find(|b| b.port() != 0 && a.contains(b)) } else { first_overlap(a, b) }
}

/// Whether a connection to `address` certainly reaches a socket bound to `bind`. The host decides on the other
/// addresses of a wildcard.
fn leads_to(address: SocketAddr, bind: &SocketAddr) -> bool {
    address.port() == bind.port()
        && address.is_ipv4() == bind.is_ipv4()
        && (address.ip() == bind.ip() || bind.ip().is_unspecified() && address.ip().is_loopback())
}

/// The wildcard address of a family includes all its addresses. Port 0 is a new port every time.
fn overlaps(a: &SocketAddr, b: &SocketAddr) -> bool {
    a.port() != 0
        && a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn report(listener: &Listener, failed: bool, diagnostics: &mut Diagnostics) {
    if !failed && listener.routes.entries().is_empty() && listener.plain_http.is_none() {
        let mut empty = Diagnostic::general(
            Severity::Warning,
            format!("the listener '{}' has no route: every connection meets its policies", listener.name),
        );
        empty.origin = Some(listener.origin.clone());
        empty.emit(diagnostics);
    }
    for Shadowed { pattern, rule, by, because } in listener.routes.shadowed() {
        let mut message = format!(
            "{}: '{pattern}' on the listener '{}' is served by {} ({}) instead, {}",
            rule.name,
            listener.name,
            by.name,
            by.origin,
            because.as_str()
        );
        if rule.termination.is_some() != by.termination.is_some() {
            message += &between_modes(by, *because);
        }
        let mut lost =
            Diagnostic::general(Severity::Warning, message).remedy("let only one of the two claim the name");
        lost.origin = Some(rule.origin.clone());
        lost.emit(diagnostics);
    }
}

/// The additional text if one rule passes TLS through and the other one terminates it.
fn between_modes(winner: &Rule, because: Because) -> String {
    let here = if winner.termination.is_some() { "TLS ends here" } else { "TLS is passed through" };
    let istio = match because {
        Because::ServerFirst => {
            "in Istio the first server has the host too, and the other server is skipped as a whole"
        }
        Because::HostMoreSpecific => "in Istio both claim the name, and Envoy rejects the whole listener",
        _ => return format!(": {here}"),
    };
    format!(": {here}; {istio}")
}
