//! What a configuration becomes while it serves: the immutable model, and beside it what changes per connection.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use snisplice_config::model::{BackendId, Endpoint, EndpointHost, Listener, Model, Rule};

use crate::balance::Wheel;

/// One configuration in service. A connection takes it once and keeps it, so a reload changes nothing under it.
#[derive(Debug)]
pub struct Live {
    /// The configuration itself.
    pub model: Model,
    /// Counts reloads, from 1.
    pub generation: u64,
    backends: Vec<Backend>,
    /// By [`Rule::id`].
    rules: Vec<RuleState>,
}

/// What one rule needs beside its immutable part; filled in when the first connection takes it, since most of a
/// large table is never taken.
#[derive(Debug, Default)]
struct RuleState {
    label: OnceLock<Arc<str>>,
    wheel: OnceLock<Wheel>,
    turn: AtomicU64,
}

/// The configuration in service, replaced as a whole.
pub type Current = ArcSwap<Live>;

/// A backend's endpoints and whose turn it is.
#[derive(Debug)]
pub struct Backend {
    /// The configured name; a metric label.
    pub name: Arc<str>,
    /// Whether it may take the short cut of backends on this host.
    pub same_host: bool,
    endpoints: Vec<Resolved>,
    wheel: Wheel,
    turn: AtomicU64,
    sources: Vec<IpAddr>,
    source_turn: AtomicUsize,
}

/// One endpoint with the addresses that its name stands for right now.
#[derive(Debug)]
pub struct Resolved {
    /// As configured.
    pub endpoint: Endpoint,
    /// Never empty for a literal address; empty while a name does not resolve.
    pub addresses: ArcSwap<Vec<SocketAddr>>,
}

impl Live {
    /// Prepares `model` for service. Names are not resolved yet: see [`crate::resolve`].
    #[must_use]
    pub fn new(model: Model, generation: u64) -> Self {
        let backends = model.backends.iter().map(Backend::new).collect();
        let rules = (0..model.rules).map(|_| RuleState::default()).collect();
        Self { model, generation, backends, rules }
    }

    /// The listener with this name, if this configuration has it.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.model.listeners.iter().find(|listener| listener.name == name)
    }

    /// Takes over what the `former` configuration knew of the addresses of names, so that a reload does not lose an
    /// endpoint while the DNS is silent.
    pub fn keep_addresses_of(&self, former: &Self) {
        let known: HashMap<_, _> = former
            .backends
            .iter()
            .flat_map(|backend| &backend.endpoints)
            .map(|resolved| ((&resolved.endpoint.host, resolved.endpoint.port), &resolved.addresses))
            .collect();
        for resolved in self.backends.iter().flat_map(|backend| &backend.endpoints) {
            if let Some(addresses) = known.get(&(&resolved.endpoint.host, resolved.endpoint.port)) {
                resolved.addresses.store(addresses.load_full());
            }
        }
    }

    /// All backends, in the order of [`BackendId`].
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The backend behind an id of this model.
    #[must_use]
    pub fn backend(&self, id: BackendId) -> &Backend {
        &self.backends[id.0]
    }

    /// A rule's name as a label that outlives this configuration.
    #[must_use]
    pub fn label(&self, rule: &Rule) -> Arc<str> {
        self.rules[rule.id].label.get_or_init(|| rule.name.as_str().into()).clone()
    }

    /// Whose turn it is among a rule's targets; `None` rejects the connection, in proportion to the weight of what
    /// cannot be served (Gateway API, `BackendRef`: an invalid backend keeps its share).
    #[must_use]
    pub fn next_target(&self, rule: &Rule) -> Option<&Backend> {
        let chosen = if let [only] = rule.targets.as_slice() {
            (only.weight > 0).then_some(only)
        } else {
            let state = &self.rules[rule.id];
            let wheel =
                state.wheel.get_or_init(|| Wheel::new(rule.targets.iter().map(|target| target.weight)));
            wheel.pick(state.turn.fetch_add(1, Relaxed)).map(|member| &rule.targets[member])
        };
        chosen?.backend.map(|id| self.backend(id))
    }
}

impl Backend {
    fn new(backend: &snisplice_config::model::Backend) -> Self {
        Self {
            name: backend.name.as_str().into(),
            same_host: backend.same_host,
            endpoints: backend.endpoints.iter().map(Resolved::new).collect(),
            wheel: Wheel::new(backend.endpoints.iter().map(|endpoint| endpoint.weight)),
            turn: AtomicU64::new(0),
            sources: backend.source.clone(),
            source_turn: AtomicUsize::new(0),
        }
    }

    /// The endpoints.
    #[must_use]
    pub fn endpoints(&self) -> &[Resolved] {
        &self.endpoints
    }

    /// The addresses to try for one connection, best first: the endpoint whose turn it is, then its siblings.
    pub fn candidates(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let first = self.wheel.pick(self.turn.fetch_add(1, Relaxed));
        let count = self.endpoints.len();
        first
            .into_iter()
            .flat_map(move |first| (first..first + count).map(move |index| &self.endpoints[index % count]))
            .filter(|resolved| resolved.endpoint.weight > 0)
            .flat_map(|resolved| {
                let addresses = resolved.addresses.load_full();
                (0..addresses.len()).map(move |index| addresses[index])
            })
    }

    /// The source address for the next connection to `destination`; `None` leaves it to the kernel.
    #[must_use]
    pub fn source_for(&self, destination: SocketAddr) -> Option<IpAddr> {
        let count = self.sources.iter().filter(|source| source.is_ipv4() == destination.is_ipv4()).count();
        let turn = (count > 0).then(|| self.source_turn.fetch_add(1, Relaxed) % count)?;
        self.sources.iter().copied().filter(|source| source.is_ipv4() == destination.is_ipv4()).nth(turn)
    }
}

impl Resolved {
    fn new(endpoint: &Endpoint) -> Self {
        let addresses = match endpoint.host {
            EndpointHost::Ip(address) => vec![SocketAddr::new(address, endpoint.port)],
            EndpointHost::Dns(_) => Vec::new(),
        };
        Self { endpoint: endpoint.clone(), addresses: ArcSwap::from_pointee(addresses) }
    }
}
