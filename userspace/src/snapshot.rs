//! What a configuration becomes while it serves: the immutable model, and beside it what changes per connection.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use snisplice_config::{
    model::{BackendId, Endpoint, EndpointHost, Listener, Model, Rule},
    name::HostName,
};
use tokio::sync::Notify;

use crate::{
    app::listeners::covers,
    metrics::{Gone, Names},
    upstream::{
        balance::Wheel,
        candidates::{Candidates, Members},
        endpoint::Endpoints,
    },
};

/// One configuration in service. A connection takes it once and keeps it, so a reload changes nothing under it.
#[derive(Debug)]
pub struct Live {
    /// The configuration itself.
    pub model: Model,
    /// Counts reloads, from 1.
    pub generation: u64,
    /// Which of the model's listeners has each address.
    by_address: HashMap<SocketAddr, usize>,
    backends: Vec<Backend>,
    /// By [`Rule::id`].
    rules: Vec<RuleState>,
    /// All endpoints of the process.
    endpoints: Arc<Endpoints>,
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
    /// As configured; see [`crate::limits`].
    pub max_connections: Option<usize>,
    /// As configured.
    pub max_pending: Option<usize>,
    /// Where it is, as configured.
    places: Vec<Endpoint>,
    /// The addresses of each place that is a name; `None` before its first look-up has ended.
    addresses: Mutex<Vec<Option<Arc<[IpAddr]>>>>,
    /// What places and addresses come to.
    members: ArcSwap<Members>,
    /// Told when the first look-up of a name ends.
    looked_up: Notify,
    endpoints: Arc<Endpoints>,
    turn: AtomicU64,
    sources: Vec<IpAddr>,
    source_turn: AtomicUsize,
}

impl Live {
    /// Prepares `model` for service. Names are not resolved yet: see [`crate::upstream::dns`].
    #[must_use]
    pub fn new(model: Model, generation: u64) -> Self {
        Self::with_endpoints(model, generation, Arc::default())
    }

    /// Prepares `model` to replace this configuration. What is known of endpoints and of the addresses of names stays
    /// known, so that a reload loses no endpoint while the DNS is silent.
    #[must_use]
    pub fn succeeded_by(&self, model: Model) -> Self {
        let successor = Self::with_endpoints(model, self.generation + 1, self.endpoints.clone());
        let mut known = HashMap::new();
        for backend in &self.backends {
            for (place, addresses) in backend.places.iter().zip(&*backend.addresses()) {
                if let (EndpointHost::Dns(name), Some(addresses)) = (&place.host, addresses) {
                    known.insert(name, addresses.clone());
                }
            }
        }
        for backend in &successor.backends {
            backend.names(|name| known.get(name).cloned());
        }
        successor
    }

    fn with_endpoints(model: Model, generation: u64, endpoints: Arc<Endpoints>) -> Self {
        let backends = model.backends.iter().map(|backend| Backend::new(backend, &endpoints)).collect();
        let rules = (0..model.rules).map(|_| RuleState::default()).collect();
        let by_address = model
            .listeners
            .iter()
            .enumerate()
            .flat_map(|(at, listener)| listener.bind.iter().map(move |address| (*address, at)))
            .collect();
        Self { model, generation, by_address, backends, rules, endpoints }
    }

    /// The listener of an address as the configuration has it, if this one does.
    #[must_use]
    pub fn listener_at(&self, address: SocketAddr) -> Option<&Listener> {
        self.by_address.get(&address).and_then(|at| self.model.listeners.get(*at))
    }

    /// The listener of what a socket at `address` accepts. That address may be none of the configuration, during or after a change
    /// from all addresses of a port to one of them, or back: then the connection's own address says, which `accepted` tells.
    pub fn listener_of(
        &self,
        address: SocketAddr,
        accepted: impl FnOnce() -> Option<SocketAddr>,
    ) -> Option<&Listener> {
        self.listener_at(address).or_else(|| {
            let any: IpAddr =
                if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let wide = SocketAddr::new(any, address.port());
            if wide == address {
                accepted().filter(|accepted| covers(wide, *accepted)).and_then(|one| self.listener_at(one))
            } else {
                Some(wide).filter(|wide| covers(*wide, address)).and_then(|wide| self.listener_at(wide))
            }
        })
    }

    /// Takes over the names of the `former` configuration, so that connections of both share them, and tells which of its names
    /// this one has not.
    pub fn keep_names_of(&mut self, former: &Self) -> Gone {
        let mut gone = Gone::default();
        let mut backends: HashMap<&str, &Arc<str>> =
            former.backends.iter().map(|backend| (&*backend.name, &backend.name)).collect();
        for backend in &mut self.backends {
            if let Some(name) = backends.remove(&*backend.name) {
                backend.name = name.clone();
            }
        }
        gone.backends.extend(backends.into_values().cloned());
        let used = former.rules.iter().filter_map(|rule| rule.label.get());
        let used: HashMap<&str, &Arc<str>> = used.map(|label| (&**label, label)).collect();
        let mut kept = HashSet::new();
        if !used.is_empty() {
            let entries = self.model.listeners.iter().flat_map(|listener| listener.routes.entries());
            for rule in entries.map(|entry| &entry.rule) {
                if let Some((name, label)) = used.get_key_value(&*rule.name) {
                    kept.insert(*name);
                    // One rule may have several entries.
                    let _ = self.rules[rule.id].label.set((*label).clone());
                }
            }
        }
        gone.routes.extend(
            used.into_iter().filter(|(name, _)| !kept.contains(name)).map(|(_, label)| label.clone()),
        );
        let still: HashSet<&str> = self.model.listeners.iter().map(|listener| &*listener.name).collect();
        let listeners = former.model.listeners.iter().map(|listener| &*listener.name);
        gone.listeners.extend(listeners.filter(|name| !still.contains(name)).map(Arc::from));
        gone
    }

    /// The names of listeners, rules and backends.
    #[must_use]
    pub fn names(&self) -> Names<'_> {
        let Model { listeners, backends, .. } = &self.model;
        let rules = listeners.iter().flat_map(|listener| listener.routes.entries()).map(|entry| &entry.rule);
        Names {
            listeners: listeners.iter().map(|listener| &*listener.name).collect(),
            routes: rules.map(|rule| &*rule.name).collect(),
            backends: backends.iter().map(|backend| &*backend.name).collect(),
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
    fn new(backend: &snisplice_config::model::Backend, endpoints: &Arc<Endpoints>) -> Self {
        let new = Self {
            name: backend.name.as_str().into(),
            same_host: backend.same_host,
            max_connections: backend.max_connections,
            max_pending: backend.max_pending,
            places: backend.endpoints.clone(),
            addresses: Mutex::new(vec![None; backend.endpoints.len()]),
            members: ArcSwap::from_pointee(Members::new([])),
            looked_up: Notify::new(),
            endpoints: endpoints.clone(),
            turn: AtomicU64::new(0),
            sources: backend.source.clone(),
            source_turn: AtomicUsize::new(0),
        };
        new.assemble(&new.addresses());
        new
    }

    fn addresses(&self) -> std::sync::MutexGuard<'_, Vec<Option<Arc<[IpAddr]>>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its places that are names. The same name comes once for each of its ports.
    pub fn names_of_places(&self) -> impl Iterator<Item = &HostName> {
        self.places.iter().filter_map(|place| match &place.host {
            EndpointHost::Dns(name) => Some(name),
            EndpointHost::Ip(_) => None,
        })
    }

    /// Takes over what `found` knows of the names among its places: their addresses, none if their look-up has failed.
    pub fn names(&self, found: impl Fn(&HostName) -> Option<Arc<[IpAddr]>>) {
        let mut addresses = self.addresses();
        let mut changed = false;
        for (place, known) in self.places.iter().zip(&mut *addresses) {
            if let EndpointHost::Dns(name) = &place.host
                && let Some(found) = found(name)
                && known.as_ref() != Some(&found)
            {
                *known = Some(found);
                changed = true;
            }
        }
        if changed {
            self.assemble(&addresses);
            drop(addresses);
            self.looked_up.notify_waiters();
        }
    }

    /// Makes each address an endpoint of its own, which has the weight of its place.
    fn assemble(&self, addresses: &[Option<Arc<[IpAddr]>>]) {
        let mut members = Vec::with_capacity(self.places.len());
        for (place, found) in self.places.iter().zip(addresses) {
            let found = match &place.host {
                EndpointHost::Ip(address) => std::slice::from_ref(address),
                EndpointHost::Dns(_) => found.as_deref().unwrap_or_default(),
            };
            let endpoint = |&address| self.endpoints.at(SocketAddr::new(address, place.port));
            members.extend(found.iter().map(|address| (endpoint(address), place.weight)));
        }
        self.members.store(Arc::new(Members::new(members)));
    }

    /// The endpoints to try for one connection, best first.
    pub fn candidates(&self) -> Candidates {
        Candidates::new(self.members.load_full(), self.turn.fetch_add(1, Relaxed))
    }

    /// Whether it has no endpoint only because its names have not been looked up yet.
    fn is_pending(&self) -> bool {
        let addresses = self.addresses();
        let mut places = self.places.iter().zip(&*addresses);
        self.members.load().endpoints().is_empty()
            && places.any(|(place, found)| matches!(place.host, EndpointHost::Dns(_)) && found.is_none())
    }

    /// Waits while it has no endpoint only because its names have not been looked up yet.
    pub async fn looked_up(&self) {
        loop {
            let told = self.looked_up.notified();
            let mut told = std::pin::pin!(told);
            told.as_mut().enable();
            if !self.is_pending() {
                return;
            }
            told.await;
        }
    }

    /// The source addresses for connections to `destination`, beginning with the one whose turn it is.
    pub fn sources_for(&self, destination: SocketAddr) -> impl Iterator<Item = IpAddr> {
        let fits = move |source: &&IpAddr| source.is_ipv4() == destination.is_ipv4();
        let count = self.sources.iter().filter(fits).count();
        let turn = if count > 0 { self.source_turn.fetch_add(1, Relaxed) % count } else { 0 };
        self.sources.iter().filter(fits).cycle().skip(turn).take(count).copied()
    }
}
