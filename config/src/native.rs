//! The native format.
//!
//! A file contains one or more documents, and all documents of all files together are one configuration. Lists are
//! joined, and a setting is written once. Keys are `snake_case`. An unknown key, a repeated key and an unknown
//! reference are errors.
//!
//! `docs/configuration.md` lists every key. It is generated from [`schema`].
//!
//! Native routes may name the listeners of Istio Gateways (`gateway-443` for port 443 on all addresses,
//! `gateway-192.0.2.1-443` for one address). They then serve the names that they share with the hosts of the
//! Gateway's servers. Istio's `VirtualService` objects never attach to native listeners.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use self::{
    backend::BackendKeys,
    document::DocumentKeys,
    http::Owner,
    keys::{Keys as _, State},
    listener::{ListenerKeys, ToHttps},
    policies::PoliciesKeys,
    reference::{targets, unknown},
    route::RouteKeys,
    settings::Given,
    timeouts::{ListenerTimeouts, RouteTimeouts},
};
use crate::{
    builder::{ListenerBuilder, ModelBuilder, first_overlap},
    credentials::missing_secret,
    decode::{Diagnostics, Fields, View},
    model::rank::Rank,
    model::{Endpoint, EndpointHost, Policies, Rule, http::PlainHttp},
    name::HostPattern,
    overrides::Overrides,
};

mod access;
mod backend;
mod backend_tls;
mod balancing;
mod codec;
mod document;
mod health;
mod http;
mod keys;
mod listener;
mod policies;
mod proxy_protocol;
mod reference;
mod route;
pub(crate) mod schema;
mod secrets;
mod settings;
mod terminate;
mod timeouts;

/// All native documents together.
#[derive(Debug, Default)]
pub(crate) struct Native<'n> {
    pub(crate) given: Given,
    listeners: Vec<ListenerKeys<'n>>,
    routes: Vec<RouteKeys<'n>>,
    backends: Vec<BackendKeys<'n>>,
    policies: Option<PoliciesKeys<'n>>,
    /// Whether a listener has no valid name.
    nameless_listeners: bool,
    /// Whether a backend has no valid name.
    nameless_backends: bool,
}

impl<'n> Native<'n> {
    pub(crate) fn read(&mut self, document: &View<'n>, diagnostics: &mut Diagnostics) {
        let expected = "a mapping with listeners, routes and backends, or a Kubernetes object";
        for problem in document.problems() {
            document.tell(problem, diagnostics);
        }
        let Some(mut fields) = document.fields(expected, diagnostics) else { return };
        let (listeners, backends) = (self.listeners.len(), self.backends.len());
        self.read_fields(&mut fields, diagnostics);
        let keys_known = fields.finish(diagnostics);
        let named = self.listeners[listeners..].iter().filter(|listener| listener.name.is_some());
        self.nameless_listeners |= has_nameless(document, "listeners", named.count(), keys_known);
        let named = self.backends[backends..].iter().filter(|backend| backend.name.is_some());
        self.nameless_backends |= has_nameless(document, "backends", named.count(), keys_known);
    }

    fn read_fields(&mut self, fields: &mut Fields<'n>, diagnostics: &mut Diagnostics) {
        let DocumentKeys { state: _, listeners, policies, routes, backends } =
            DocumentKeys::take(fields, diagnostics);
        self.listeners.extend(listeners.unwrap_or_default());
        self.routes.extend(routes.unwrap_or_default());
        self.backends.extend(backends.unwrap_or_default());
        match (&mut self.policies, policies) {
            (Some(own), Some(new)) => own.merge(new, diagnostics),
            (own, new) => *own = own.take().or(new),
        }
        self.given.read(fields, diagnostics);
    }
}

/// Whether more items are written under a key than have a name. A missing list may be under a misspelt key.
fn has_nameless(document: &View<'_>, key: &str, named: usize, keys_known: bool) -> bool {
    match document.written(key) {
        None => !keys_known,
        Some(list) => list.items("", &mut Diagnostics::default()).is_none_or(|items| items.len() > named),
    }
}

/// Whether a document has a key of this format, or a similar key.
pub(crate) fn is_own(document: &View<'_>) -> bool {
    let mut probe = Native::default();
    // Discards the findings here, since the document is read again later.
    let mut diagnostics = Diagnostics::default();
    let Some(mut fields) = document.fields("", &mut diagnostics) else { return false };
    probe.read_fields(&mut fields, &mut diagnostics);
    fields.has_any()
}

impl Native<'_> {
    /// Adds the backends, which policies and routes refer to.
    pub(crate) fn add_backends(
        &self,
        builder: &mut ModelBuilder,
        overrides: &mut Overrides<'_>,
        diagnostics: &mut Diagnostics,
    ) {
        let mut seen: HashMap<&str, &View<'_>> = HashMap::new();
        builder.nameless_backends = self.nameless_backends;
        for backend in &self.backends {
            backend.check(diagnostics);
            let Some(name) = backend.name else { continue };
            let view = &backend.state.view;
            if let Some(first) = seen.insert(name, view) {
                twice(view, "backend", name, first, diagnostics);
                continue;
            }
            if backend.has_no_endpoints() {
                view.warn(format!("the backend '{name}' has no endpoints: its connections are rejected"))
                    .emit(diagnostics);
            }
            let endpoints = backend.endpoints.iter().flatten();
            let endpoints = endpoints.flat_map(|endpoint| overridden(endpoint, overrides)).collect();
            for (secret, view) in backend.tls.iter().flat_map(|tls| &tls.secrets) {
                let missing = missing_secret(secret, view, "connections to the backend are refused");
                builder.want_secret(secret.clone(), missing);
            }
            builder.backend(backend.build(name, endpoints));
        }
    }

    /// The policies of listeners without policies of their own.
    pub(crate) fn policies(&self, builder: &ModelBuilder, diagnostics: &mut Diagnostics) -> Policies {
        let mut policies = Policies::default();
        if let Some(written) = &self.policies {
            written.apply(&mut policies, builder, diagnostics);
        }
        policies
    }

    pub(crate) fn add_listeners(
        &self,
        builder: &mut ModelBuilder,
        policies: &Policies,
        diagnostics: &mut Diagnostics,
    ) {
        let mut seen: HashMap<&str, &View<'_>> = HashMap::new();
        for native in &self.listeners {
            let (Some(name), view) = (native.name, &native.state.view) else { continue };
            if let Some(first) = seen.insert(name, view) {
                twice(view, "listener", name, first, diagnostics);
                continue;
            }
            let bind = native.bind.as_deref().unwrap_or_default();
            let addresses: Vec<SocketAddr> = bind.iter().map(|(_, address)| *address).collect();
            for (index, (view, address)) in bind.iter().enumerate() {
                if first_overlap(&addresses[..index], &[*address]).is_some() {
                    view.error(format!("{address} overlaps with another address of this listener"))
                        .remedy("keep one of the two; 0.0.0.0 and [::] hold all addresses of their family")
                        .emit(diagnostics);
                } else if let Some((other, _)) = builder.overlap(&[*address]) {
                    view.error(format!(
                        "{address} overlaps with the listener '{}' ({})",
                        other.name, other.origin
                    ))
                    .remedy("use another port or address, or move the routes to one listener")
                    .emit(diagnostics);
                }
            }
            let mut policies = policies.clone();
            if let Some(own) = &native.policies {
                own.apply(&mut policies, builder, diagnostics);
            }
            let mut listener =
                ListenerBuilder::new(name.into(), view.origin(), addresses, vec![HostPattern::Any], policies);
            listener.mss = native.mss;
            listener.proxy_protocol.clone_from(&native.proxy_protocol);
            listener.freebind = native.freebind.unwrap_or_default();
            listener.access = native.access.build(diagnostics);
            listener.timeouts = native.timeouts.and_then(|ListenerTimeouts(timeouts)| timeouts.shared());
            if native.is_plain() {
                let title = format!("listener {name}");
                let redirect = native.redirect_https.and_then(|ToHttps(redirect)| redirect);
                let owner = Owner { name: &title, hosts: &[HostPattern::Any], redirect };
                let rules = native.http.iter().flatten().map(|rule| &rule.0);
                let table = Arc::new(http::table(rules, &owner, builder, diagnostics));
                listener.plain_http = Some(PlainHttp { name: title, origin: view.origin(), table });
            }
            builder.listeners.push(listener);
        }
    }

    /// Attaches every route. All listeners exist by now.
    pub(crate) fn add_routes(&self, builder: &mut ModelBuilder, diagnostics: &mut Diagnostics) {
        let by_name: HashMap<String, usize> = (builder.listeners.iter().enumerate())
            .map(|(at, listener)| (listener.name.clone(), at))
            .collect();
        let plain: HashSet<usize> = (self.listeners.iter())
            .filter(|listener| listener.is_plain())
            .filter_map(|listener| by_name.get(listener.name?).copied())
            .collect();
        let rank = Arc::new(Rank::default());
        let mut labels = self.route_names(diagnostics);
        for route in &self.routes {
            route.check(diagnostics);
            let RouteKeys { state, name: _, listeners, sni, backends, terminate, timeouts, access } = route;
            let access = access.build(diagnostics);
            let (view, sni) = (&state.view, sni.as_deref().unwrap_or_default());
            let wanted: Vec<usize> = match listeners {
                // A route without `listeners` does not attach to a listener for HTTP without TLS.
                None => (0..builder.listeners.len()).filter(|at| !plain.contains(at)).collect(),
                Some(written) => written
                    .iter()
                    .filter_map(|(view, name)| {
                        let found = by_name.get(*name).copied();
                        if found.is_none() {
                            let known = builder.listeners.iter().map(|listener| &*listener.name);
                            unknown(view, "listener", name, known, self.nameless_listeners, diagnostics);
                        }
                        found
                    })
                    .collect(),
            };
            if state.lacks(&["listeners"]) && wanted.is_empty() && !plain.is_empty() {
                view.error("no listener is for TLS: each of them serves HTTP")
                    .remedy("add a listener without 'http' and 'redirect_https', or name one in 'listeners'")
                    .emit(diagnostics);
            }
            let has_rules = route.has_rules();
            let targets = targets(backends.as_deref().unwrap_or_default(), builder, diagnostics);
            if targets.is_empty() && !has_rules || sni.is_empty() || route.is_broken() {
                continue; // Reported where it was read.
            }
            if !has_rules && targets.iter().all(|target| target.weight == 0) {
                view.warn("all weights are 0: the connections of this route are rejected").emit(diagnostics);
            }
            let name = labels.of(route);
            let name = format!("route {name}");
            let hosts: Vec<HostPattern> = sni.iter().map(|(_, pattern)| pattern.clone()).collect();
            let termination =
                terminate.as_ref().map(|ends| ends.build(&name, view.origin(), &hosts, builder, diagnostics));
            let rule = builder.rule_of(name, view.origin(), targets, termination, access);
            let timeouts = timeouts.and_then(|RouteTimeouts(timeouts)| timeouts.shared());
            let rule = Arc::new(Rule { timeouts, ..Arc::unwrap_or_clone(rule) });
            let mut seen = HashSet::new();
            for (view, written) in sni {
                if !seen.insert(written) {
                    view.warn(format!("'{written}' is there twice")).emit(diagnostics);
                    continue;
                }
                let mut served = wanted.is_empty();
                for &at in &wanted {
                    let listener = &mut builder.listeners[at];
                    for host in listener.hosts.clone() {
                        served |= listener.serve(written, &host, &rule, &rank);
                    }
                }
                if !served {
                    view.warn(format!("no listener of this route admits '{written}'")).emit(diagnostics);
                }
            }
        }
    }

    fn route_names(&self, diagnostics: &mut Diagnostics) -> RouteNames {
        let mut seen: HashMap<&str, &View<'_>> = HashMap::new();
        for RouteKeys { state: State { view, .. }, name, .. } in &self.routes {
            if let Some(name) = name
                && let Some(first) = seen.insert(name, view)
            {
                twice(view, "route", name, first, diagnostics);
            }
        }
        RouteNames { taken: seen.into_keys().map(Into::into).collect() }
    }
}

/// Gives a unique name to every route without one.
struct RouteNames {
    taken: HashSet<String>,
}

impl RouteNames {
    fn of(&mut self, route: &RouteKeys<'_>) -> String {
        if let Some(name) = route.name {
            return name.into();
        }
        let first =
            route.sni.iter().flatten().next().map(|(_, pattern)| pattern.to_string()).unwrap_or_default();
        let mut name = first.clone();
        let mut number = 1;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{first}#{number}");
        }
        name
    }
}

fn overridden(endpoint: &Endpoint, overrides: &mut Overrides<'_>) -> Vec<Endpoint> {
    let addresses = match &endpoint.host {
        EndpointHost::Ip(_) | EndpointHost::Srv(_) => None,
        EndpointHost::Dns(name) => overrides.addresses(name.without_dot(), endpoint.port),
    };
    match addresses {
        None => vec![endpoint.clone()],
        Some(addresses) => addresses
            .iter()
            .map(|at| Endpoint { host: EndpointHost::Ip(at.ip()), port: at.port(), ..endpoint.clone() })
            .collect(),
    }
}

fn twice(view: &View<'_>, what: &str, name: &str, first: &View<'_>, diagnostics: &mut Diagnostics) {
    view.error(format!("the {what} '{name}' is there already ({})", first.origin()))
        .remedy("give each a name of its own")
        .emit(diagnostics);
}
