//! The endpoints of a backend in service, and the balancer's position.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use snisplice_config::model::{
    self, Endpoint, EndpointHost,
    balancing::{Algorithm, HashKey, LoadBalancing},
    health::Health,
    proxy_protocol::SendProxy,
    scope::ScopedTimeouts,
};
use tokio::sync::Notify;

use super::{
    affinity::Affinity,
    balance::hash,
    caller::Caller,
    candidates::{Candidates, Members, Place},
    dynamic::{Forward, RequestedNames},
    endpoint::Endpoints,
    monitor::Alarms,
    names::{Kind, Query},
    overrides::{Change, Override, Overrides},
    records::{Known, Target},
};

/// A backend's endpoints and the balancer's position.
#[derive(Debug)]
pub struct Cluster {
    /// The configured name, which is a metric label.
    pub name: Arc<str>,
    /// Whether the short cut to backends on this host may be used.
    pub same_host: bool,
    /// As configured; see [`crate::limits`].
    pub max_connections: Option<usize>,
    /// As configured.
    pub max_pending: Option<usize>,
    /// The time limit of a connect, if the backend has one of its own.
    pub connect_timeout: Option<Duration>,
    /// Whether endpoints see the client's address.
    pub transparent: bool,
    /// Time limits of the backend's connections, if it has its own.
    pub timeouts: Option<Arc<ScopedTimeouts>>,
    /// The configured PROXY protocol header.
    pub proxy_protocol: Option<SendProxy>,
    /// The configured health checks and outlier detection.
    pub health: Health,
    /// Forwarding to the name that the client requests. Such a cluster has no members of its own.
    pub forward: Option<Forward>,
    /// The configured endpoints.
    places: Vec<Endpoint>,
    /// The lookup of each endpoint that is a name.
    queries: Vec<Option<Query>>,
    /// The addresses of each endpoint that is a name. `None` before its first DNS lookup has ended.
    addresses: Mutex<Vec<Option<Known>>>,
    /// The members made from endpoints and addresses.
    members: ArcSwap<Members>,
    /// Notified when the first DNS lookup of a name ends.
    looked_up: Notify,
    endpoints: Arc<Endpoints>,
    sources: Vec<IpAddr>,
    how: LoadBalancing,
    affinity: Option<Arc<Affinity>>,
    turns: Arc<Turns>,
    overrides: Arc<Overrides>,
}

/// An address without a weight and a priority of its own.
fn target(address: SocketAddr) -> Target {
    Target { address, weight: 1, priority: 0 }
}

/// The lookup of each endpoint that is a name.
fn queries(backend: &model::Backend) -> Vec<Option<Query>> {
    let servers: Arc<[SocketAddr]> = backend.resolver.as_slice().into();
    let query = |endpoint: &Endpoint| {
        let (name, kind) = match &endpoint.host {
            EndpointHost::Ip(_) => return None,
            EndpointHost::Dns(name) => (name, Kind::Host),
            EndpointHost::Srv(name) => (name, Kind::Srv),
        };
        Some(Query { name: name.clone(), kind, servers: servers.clone() })
    };
    backend.endpoints.iter().map(query).collect()
}

/// The balancer's positions, which the clusters of one backend share across configurations.
#[derive(Debug, Default)]
struct Turns {
    endpoint: AtomicU64,
    source: AtomicUsize,
}

impl Cluster {
    /// Creates the cluster of a configured backend. `endpoints` are all endpoints of the process, and `requested` are
    /// the names that its clients request. It continues the state of the `former` cluster of the backend.
    #[must_use]
    pub fn new(
        backend: &model::Backend,
        endpoints: &Arc<Endpoints>,
        requested: &Arc<RequestedNames>,
        former: Option<&Self>,
    ) -> Self {
        let new = Self {
            name: backend.name.as_str().into(),
            same_host: backend.same_host,
            max_connections: backend.max_connections,
            max_pending: backend.max_pending,
            connect_timeout: backend.connect_timeout,
            transparent: backend.transparent,
            timeouts: backend.timeouts.clone(),
            proxy_protocol: backend.proxy_protocol.clone(),
            health: backend.health.clone(),
            forward: backend.dynamic.as_ref().map(|rule| Forward {
                rule: rule.clone(),
                servers: backend.resolver.as_slice().into(),
                requested: requested.clone(),
            }),
            places: backend.endpoints.clone(),
            queries: queries(backend),
            addresses: Mutex::new(vec![None; backend.endpoints.len()]),
            members: former.map_or_else(
                || ArcSwap::from_pointee(Members::new([], &backend.load_balancing, 0, None)),
                |former| ArcSwap::new(former.members.load_full()),
            ),
            looked_up: Notify::new(),
            endpoints: endpoints.clone(),
            sources: backend.source.clone(),
            how: backend.load_balancing.clone(),
            affinity: backend.affinity.map(|rule| {
                let former = former.and_then(|former| former.affinity.clone());
                former
                    .filter(|former| *former.rule() == rule)
                    .unwrap_or_else(|| Arc::new(Affinity::new(rule)))
            }),
            turns: former.map(|former| former.turns.clone()).unwrap_or_default(),
            overrides: former.map(|former| former.overrides.clone()).unwrap_or_default(),
        };
        new.assemble(&new.addresses());
        new
    }

    fn addresses(&self) -> std::sync::MutexGuard<'_, Vec<Option<Known>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lookups of the names among the endpoints. A name with several ports comes several times.
    pub fn queries(&self) -> impl Iterator<Item = &Query> {
        self.queries.iter().flatten()
    }

    /// The names among the endpoints with known addresses, and the addresses.
    pub fn known_names(&self) -> Vec<(&Query, Known)> {
        let addresses = self.addresses();
        let known = self.queries.iter().zip(&*addresses);
        known.filter_map(|(query, known)| Some((query.as_ref()?, known.clone()?))).collect()
    }

    /// Applies the addresses of the names, as `found` returns them. A name whose first lookup failed has none, and
    /// keeps those that the former configuration knew.
    pub fn names(&self, found: impl Fn(&Query) -> Option<Known>) {
        let mut addresses = self.addresses();
        let mut changed = false;
        for (query, known) in self.queries.iter().zip(&mut *addresses) {
            if let Some(query) = query
                && let Some(found) = found(query)
                && known.as_ref() != Some(&found)
                && (known.is_none() || !found.is_empty())
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

    /// Makes an endpoint of each address, with the weight of the configured endpoint.
    fn assemble(&self, addresses: &[Option<Known>]) {
        let members = self.resolved(addresses).into_iter().map(|target| Place {
            endpoint: self.endpoint(target.address),
            weight: self.overridden(target.address).unwrap_or_default().apply(target.weight),
            priority: target.priority,
        });
        let threshold = if self.health.is_watched() { self.health.panic_threshold } else { 0 };
        let former = self.members.load();
        self.members.store(Arc::new(Members::new(members, &self.how, threshold, Some(&former))));
    }

    /// Each known address, with the weight and the priority of its configured endpoint and of its record. An address
    /// may come several times.
    fn resolved(&self, addresses: &[Option<Known>]) -> Vec<Target> {
        let mut all = Vec::with_capacity(self.places.len());
        for (place, known) in self.places.iter().zip(addresses) {
            let Endpoint { port, weight, priority, .. } = *place;
            let found: Vec<Target> = match (&place.host, known) {
                (EndpointHost::Ip(ip), _) => vec![target(SocketAddr::new(*ip, port))],
                (_, Some(Known::Addresses(addresses))) => {
                    addresses.iter().map(|&ip| target(SocketAddr::new(ip, port))).collect()
                }
                (_, Some(Known::Targets(targets))) => targets.to_vec(),
                (_, None) => Vec::new(),
            };
            all.extend(found.into_iter().map(|target| Target {
                address: target.address,
                weight: weight.saturating_mul(target.weight).min(model::Target::MAX_WEIGHT),
                priority: priority.saturating_add(target.priority).min(Endpoint::MAX_PRIORITY),
            }));
        }
        all
    }

    /// The change of an endpoint at run time, if there is one.
    #[must_use]
    pub fn overridden(&self, address: SocketAddr) -> Option<Override> {
        self.overrides.of(address)
    }

    /// The endpoints that were changed at run time.
    #[must_use]
    pub fn overrides(&self) -> Vec<(SocketAddr, Override)> {
        self.overrides.all()
    }

    /// The endpoints that get no connection by a change at run time.
    #[must_use]
    pub fn drained(&self) -> Vec<Arc<super::endpoint::Endpoint>> {
        let addresses = self.addresses();
        let mut found: Vec<Arc<super::endpoint::Endpoint>> = Vec::new();
        for Target { address, .. } in self.resolved(&addresses) {
            let receives = |change: Override| change.apply(1) > 0;
            let is_known = found.iter().any(|known| known.address() == address);
            if !is_known && self.overridden(address).is_some_and(|change| !receives(change)) {
                found.push(self.endpoint(address));
            }
        }
        found
    }

    /// Changes an endpoint at run time. `None` if the backend has no endpoint with this address.
    pub fn change(&self, address: SocketAddr, change: Change) -> Option<Override> {
        let addresses = self.addresses();
        if !self.resolved(&addresses).iter().any(|known| known.address == address) {
            return None;
        }
        let result = self.overrides.change(address, change);
        self.assemble(&addresses);
        Some(result)
    }

    /// The endpoint with this address. It has a state of its own if its health is watched.
    fn endpoint(&self, address: SocketAddr) -> Arc<super::endpoint::Endpoint> {
        if self.health.is_watched() {
            self.endpoints.watched(&self.name, address, self.health.outliers.as_ref())
        } else {
            self.endpoints.at(address)
        }
    }

    /// The current endpoints.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// Receives reports of failing endpoints.
    #[must_use]
    pub fn alarms(&self) -> &Arc<Alarms> {
        self.endpoints.alarms()
    }

    /// The endpoints to try for one connection, best first.
    pub fn candidates(&self, caller: &impl Caller) -> Candidates {
        let key = match self.how.algorithm {
            Algorithm::RoundRobin => self.turns.endpoint.fetch_add(1, Relaxed),
            Algorithm::RandomTwoChoices | Algorithm::LeastConnections => fastrand::u64(..),
            Algorithm::SourceHash | Algorithm::Maglev => {
                let source = || caller.source().map(hash::ip);
                let key = match self.how.hash_key {
                    HashKey::Source => source(),
                    HashKey::ServerName => caller.server_name().or_else(source),
                };
                key.unwrap_or_else(|| fastrand::u64(..))
            }
        };
        let candidates = Candidates::new(self.members.load_full(), key);
        match &self.affinity {
            Some(affinity) => match caller.source() {
                Some(source) => candidates.sticky(affinity, affinity.client(source)),
                None => candidates,
            },
            None => candidates,
        }
    }

    /// The candidates of the same connection among the current endpoints.
    pub fn renewed(&self, candidates: Candidates) -> Candidates {
        candidates.among(self.members.load_full())
    }

    /// Whether the only cause of an empty set is that DNS lookups have not ended yet.
    fn is_pending(&self) -> bool {
        let addresses = self.addresses();
        let mut names = self.queries.iter().zip(&*addresses);
        self.members.load().endpoints().is_empty()
            && names.any(|(query, known)| query.is_some() && known.is_none())
    }

    /// Waits while the only cause of an empty set is that DNS lookups have not ended yet.
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

    /// The source addresses for connections to `destination`, in turn.
    pub fn sources_for(&self, destination: SocketAddr) -> impl Iterator<Item = IpAddr> {
        let fits = move |source: &&IpAddr| source.is_ipv4() == destination.is_ipv4();
        let count = self.sources.iter().filter(fits).count();
        let turn = if count > 0 { self.turns.source.fetch_add(1, Relaxed) % count } else { 0 };
        self.sources.iter().filter(fits).cycle().skip(turn).take(count).copied()
    }
}
