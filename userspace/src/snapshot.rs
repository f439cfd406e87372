//! A configuration in service: the immutable model and the state that changes per connection.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use snisplice_config::model::{
    BackendId, Listener, Model, Route, http::HttpTable, scope::ScopedTimeouts, termination::Inside,
};

use crate::{
    metrics::{Gone, Names},
    net::listeners::covers,
    terminate::Terminations,
    upstream::{balance::round_robin::Wheel, cluster::Cluster, upstreams::Upstreams},
};

/// One configuration in service. A connection takes it once and keeps it, so a reload changes nothing for the
/// connection.
#[derive(Debug)]
pub struct Snapshot {
    /// The configuration itself.
    pub model: Model,
    /// The number of the configuration, from 1. Each reload adds 1.
    pub generation: u64,
    /// The index of the model's listener by address.
    by_address: HashMap<SocketAddr, usize>,
    upstreams: Upstreams,
    /// Indexed by [`Route::id`].
    rules: Vec<RuleState>,
    /// The TLS configurations. They follow the secrets, which change also without the configuration.
    terminations: ArcSwap<Terminations>,
}

/// The mutable state of one rule. The first connection of the rule creates it, since most rules of a large table have
/// none.
#[derive(Debug, Default)]
struct RuleState {
    kept: OnceLock<Arc<Kept>>,
    wheel: OnceLock<Wheel>,
}

/// The state that a rule keeps across reloads while its name stays the same.
#[derive(Debug)]
struct Kept {
    label: Arc<str>,
    /// The position of round robin among the rule's targets.
    turn: AtomicU64,
}

/// The configuration in service, replaced as a whole.
pub type SharedSnapshot = ArcSwap<Snapshot>;

impl Snapshot {
    /// Prepares `model` for service. Names are not resolved yet: see [`crate::upstream::dns`].
    #[must_use]
    pub fn new(model: Model, generation: u64) -> Self {
        let upstreams = Upstreams::new(&model.backends);
        Self::with(model, generation, upstreams)
    }

    /// Prepares `model` to replace this configuration. See [`Upstreams::reconcile`].
    #[must_use]
    pub fn succeeded_by(&self, model: Model) -> Self {
        let upstreams = self.upstreams.reconcile(&model.backends);
        Self::with(model, self.generation + 1, upstreams)
    }

    fn with(model: Model, generation: u64, upstreams: Upstreams) -> Self {
        let rules = (0..model.rules).map(|_| RuleState::default()).collect();
        let by_address = model
            .listeners
            .iter()
            .enumerate()
            .flat_map(|(at, listener)| listener.bind.iter().map(move |address| (*address, at)))
            .collect();
        let terminations = ArcSwap::default();
        Self { model, generation, by_address, upstreams, rules, terminations }
    }

    /// The configurations for TLS with clients and with backends.
    #[must_use]
    pub fn terminations(&self) -> Arc<Terminations> {
        self.terminations.load_full()
    }

    /// Replaces the TLS configurations. Open connections keep theirs.
    pub fn terminate_with(&self, terminations: Terminations) {
        self.terminations.store(Arc::new(terminations));
    }

    /// The listener with this configured address, if any.
    #[must_use]
    pub fn listener_at(&self, address: SocketAddr) -> Option<&Listener> {
        self.by_address.get(&address).and_then(|at| self.model.listeners.get(*at))
    }

    /// The listener of a socket at `address`. After a change between all addresses of a port and one address,
    /// `address` may not be in the configuration. The connection's own address then decides, which `accepted`
    /// returns.
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

    /// Moves the names of the `former` configuration here, so that connections of both share them, including the
    /// turns of its rules. Returns the names that this configuration no longer has.
    pub fn keep_names_of(&mut self, former: &Self) -> Gone {
        let mut gone = Gone::default();
        let mut backends: HashMap<&str, &Arc<str>> =
            former.upstreams.clusters().iter().map(|cluster| (&*cluster.name, &cluster.name)).collect();
        // The clusters are not shared before they serve.
        for cluster in self.upstreams.clusters_mut() {
            if let Some(name) = backends.remove(&*cluster.name) {
                cluster.name = name.clone();
            }
        }
        gone.backends.extend(backends.into_values().cloned());
        let used = former.rules.iter().filter_map(|rule| rule.kept.get());
        let used: HashMap<&str, &Arc<Kept>> = used.map(|kept| (&*kept.label, kept)).collect();
        let mut kept = HashSet::new();
        if !used.is_empty() {
            for rule in rules_of(&self.model) {
                if let Some((name, state)) = used.get_key_value(&*rule.name) {
                    kept.insert(*name);
                    // One rule may have several entries.
                    let _ = self.rules[rule.id].kept.set((*state).clone());
                }
            }
        }
        gone.routes.extend(
            used.into_iter().filter(|(name, _)| !kept.contains(name)).map(|(_, state)| state.label.clone()),
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
        Names {
            listeners: listeners.iter().map(|listener| &*listener.name).collect(),
            routes: rules_of(&self.model).map(|rule| &*rule.name).collect(),
            backends: backends.iter().map(|backend| &*backend.name).collect(),
        }
    }

    /// The time limit of a connect to a backend: that of the backend, the connection's own, or that of the process.
    #[must_use]
    pub fn connect_timeout(&self, cluster: &Cluster, own: Option<&ScopedTimeouts>) -> Duration {
        let own = || own.and_then(|own| own.connect);
        cluster.connect_timeout.or_else(own).unwrap_or(self.model.runtime.timeouts.connect)
    }

    /// The time limits for a connection that an earlier process has accepted at `own` and connected to `endpoint`. Its
    /// route is unknown. Of several backends with this endpoint, the first with time limits decides.
    #[must_use]
    pub fn limits_between(&self, own: Option<SocketAddr>, endpoint: Option<SocketAddr>) -> ScopedTimeouts {
        let listener = own.and_then(|own| self.listener_of(own, || Some(own)));
        let listener =
            listener.and_then(|listener| listener.timeouts.as_deref().copied()).unwrap_or_default();
        let has = |cluster: &&Cluster| {
            cluster.timeouts.is_some()
                && endpoint.is_some_and(|endpoint| {
                    cluster.members().endpoints().iter().any(|known| known.address() == endpoint)
                })
        };
        let backend =
            self.clusters().iter().find(has).and_then(|cluster| cluster.timeouts.as_deref().copied());
        backend.unwrap_or_default().within(&listener)
    }

    /// The clusters of all backends, in the order of [`BackendId`].
    #[must_use]
    pub fn clusters(&self) -> &Arc<[Cluster]> {
        self.upstreams.clusters()
    }

    /// The cluster of a backend of this model.
    #[must_use]
    pub fn cluster(&self, id: BackendId) -> &Cluster {
        self.upstreams.cluster(id)
    }

    /// The rule's name as a label that outlives this configuration.
    #[must_use]
    pub fn label(&self, rule: &Route) -> Arc<str> {
        self.kept(rule).label.clone()
    }

    fn kept(&self, rule: &Route) -> &Kept {
        let begin = || Arc::new(Kept { label: rule.name.as_str().into(), turn: AtomicU64::new(0) });
        self.rules[rule.id].kept.get_or_init(begin)
    }

    /// The next target of a rule. `None` rejects the connection, in proportion to the weight of invalid backends
    /// (Gateway API, `BackendRef`: an invalid backend keeps its share).
    #[must_use]
    pub fn next_target(&self, rule: &Route) -> Option<&Cluster> {
        self.next_target_of(rule).map(|(_, cluster)| cluster)
    }

    /// Like [`Self::next_target`], but returns the id.
    #[must_use]
    pub fn next_backend(&self, rule: &Route) -> Option<BackendId> {
        self.next_target_of(rule).and_then(|(index, _)| rule.targets[index].backend)
    }

    /// Like [`Self::next_target`], with the index among the rule's targets.
    #[must_use]
    pub fn next_target_of(&self, rule: &Route) -> Option<(usize, &Cluster)> {
        let chosen = if let [only] = rule.targets.as_slice() {
            (only.weight > 0).then_some(0)
        } else {
            let wheel = self.rules[rule.id]
                .wheel
                .get_or_init(|| Wheel::new(rule.targets.iter().map(|target| target.weight)));
            wheel.pick(self.kept(rule).turn.fetch_add(1, Relaxed))
        };
        let chosen = chosen?;
        Some((chosen, self.cluster(rule.targets[chosen].backend?)))
    }
}

/// All rules: those by server name and those by request. One rule may occur several times.
fn rules_of(model: &Model) -> impl Iterator<Item = &Route> {
    fn of_requests(table: &HttpTable) -> Vec<&Route> {
        table.hosts.iter().flat_map(|host| &host.rules).map(|rule| &*rule.rule).collect()
    }
    model.listeners.iter().flat_map(|listener| {
        let plain = listener.plain_http.iter().flat_map(|plain| of_requests(&plain.table));
        let named = listener.routes.entries().iter().flat_map(|entry| {
            let inside = entry.rule.termination.as_ref().map(|termination| &termination.inside);
            let requests = match inside {
                Some(Inside::Http(table)) => of_requests(table),
                Some(Inside::Bytes) | None => Vec::new(),
            };
            std::iter::once(&entry.rule.route).chain(requests)
        });
        plain.chain(named)
    })
}

#[cfg(test)]
mod tests {
    use snisplice_config::{Options, Source, load};

    use super::*;

    fn model() -> Model {
        let text = "listeners: [{name: https, bind: '127.0.0.1:8443'}]\n\
                    routes: [{name: www, sni: [a.test], backends: [{name: a, weight: 2}, {name: b}]}]\n\
                    backends: [{name: a, endpoints: ['10.0.0.1:443']}, {name: b, endpoints: ['10.0.0.2:443']}]\n";
        let source = Source { name: "test".to_owned(), text: text.to_owned() };
        load(&[source].into_iter().collect(), &Options::default()).model.unwrap()
    }

    fn next(snapshot: &Snapshot) -> String {
        let rule = &snapshot.model.listeners[0].routes.entries()[0].rule;
        snapshot.next_target(rule).unwrap().name.to_string()
    }

    #[test]
    fn a_reload_goes_on_with_the_turn_of_a_rule() {
        let whole = Snapshot::new(model(), 1);
        let expected: Vec<_> = (0..9).map(|_| next(&whole)).collect();
        let mut snapshot = Snapshot::new(model(), 1);
        let mut found = Vec::new();
        for _ in 0..9 {
            found.push(next(&snapshot));
            let mut successor = snapshot.succeeded_by(model());
            successor.keep_names_of(&snapshot);
            snapshot = successor;
        }
        assert_eq!(found, expected);
    }
}
