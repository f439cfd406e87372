//! Admission: the state of the limits that all workers share.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use snisplice_config::model::{Limits, access::Rate};
use strum::EnumCount as _;
use tokio::sync::{Notify, Semaphore};

pub use self::permit::{Admitted, Group, Permit, Shared, UnfinishedHello};
use super::{
    Overload,
    backends::{BackendRule, Backends, PendingRule},
    cidr::Cidr,
    handshakes::{HandshakeRule, Handshakes},
    hellos::{HelloRule, Hellos},
    memberships::Memberships,
    rate::Buckets,
    reachability::Reachability,
    source::{SourceRule, Sources},
};

mod permit;

/// An incomplete hello of this age makes room for a connection that waits for a slot. A hello of several packets is
/// complete far sooner, unless one of them was lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// Clients of stopping listeners that may wait for a slot, in addition to one for each socket.
const LAST_WAITING: usize = 64;

/// Sources whose token bucket is not full, each in some 100 bytes. Beyond that the fullest one is forgotten.
const BUCKETS_OF_SOURCES: usize = 65_536;

/// The period in which the log reports the same limit once.
const SILENCE: Duration = Duration::from_secs(60);

/// The state that the workers share. Each lock is held for a few instructions.
#[derive(Debug)]
pub struct Admission {
    /// `limits.connections`; fixed for the life of the process.
    places: Semaphore,
    most: usize,
    /// Accepted connections that wait for a slot.
    waiting: AtomicUsize,
    rules: ArcSwap<Rules>,
    sources: Mutex<Sources>,
    source_rates: Mutex<Buckets<Cidr>>,
    memberships: Mutex<Memberships>,
    listener_rates: Mutex<Buckets<Arc<str>>>,
    route_rates: Mutex<Buckets<Arc<str>>>,
    hellos: Mutex<Hellos<Arc<Notify>>>,
    handshakes: Mutex<Handshakes>,
    backends: Mutex<Backends>,
    refused: [AtomicU64; Overload::COUNT],
    /// The backends that are unreachable.
    pub reachability: Reachability,
    /// The last report of each limit, and of the moment when all slots were taken.
    told: Mutex<[Notice; Overload::COUNT + 1]>,
}

/// The limits of a configuration. A reload changes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Limits of each source.
    pub source: SourceRule,
    /// New connections of each source; `None` is no limit.
    pub source_rate: Option<Rate>,
    /// Connections with an incomplete hello.
    pub hellos: HelloRule,
    /// TLS handshakes under way.
    pub handshakes: HandshakeRule,
    /// Connections that wait for an endpoint of one backend without a limit of its own.
    pub pending: usize,
    /// Connections that wait for endpoints of all such backends.
    pub pending_room: usize,
}

impl Rules {
    fn of(connections: usize, limits: &Limits) -> Self {
        Self {
            source: SourceRule {
                most: limits.per_source(connections),
                ipv4: limits.source_prefix_ipv4,
                ipv6: limits.source_prefix_ipv6,
            },
            source_rate: limits.rate_of_a_source(),
            hellos: HelloRule {
                most: limits.unfinished_hellos(connections),
                per_source: limits.hellos_of_a_source(connections),
            },
            handshakes: HandshakeRule {
                most: limits.handshakes_at_once(connections),
                per_source: limits.handshakes_of_a_source(connections),
            },
            pending: Limits::pending(connections),
            pending_room: connections / 2,
        }
    }
}

/// The last report of a frequent event, and the number of events since.
#[derive(Debug, Clone, Copy, Default)]
struct Notice {
    last: Option<Instant>,
    untold: u64,
}

impl Notice {
    /// Counts an event. If another report is due, returns the number of events since the last one.
    fn happens(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < SILENCE) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// The use of the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The limit and the number of connections.
    pub connections: (usize, usize),
    /// The limit and the number of incomplete hellos.
    pub hellos: (usize, usize),
    /// The limit and the number of TLS handshakes under way.
    pub handshakes: (usize, usize),
    /// The limit and the number of connections that wait for an endpoint. The limit is shared by all backends without
    /// one of their own.
    pub pending: (usize, usize),
    /// The limit of one source, if any, and the number of sources with a connection.
    pub sources: (Option<usize>, usize),
    /// The limit of incomplete hellos of one source, if any.
    pub hellos_per_source: Option<usize>,
    /// Accepted connections that wait for a slot.
    pub waiting: usize,
}

impl Admission {
    /// For `connections` slots.
    #[must_use]
    pub fn new(connections: usize, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            places: Semaphore::new(connections.min(Semaphore::MAX_PERMITS)),
            most: connections,
            waiting: AtomicUsize::new(0),
            rules: ArcSwap::from_pointee(Rules::of(connections, limits)),
            sources: Mutex::default(),
            source_rates: Mutex::new(Buckets::new(BUCKETS_OF_SOURCES)),
            memberships: Mutex::default(),
            // The configuration bounds the number of names.
            listener_rates: Mutex::new(Buckets::new(usize::MAX)),
            route_rates: Mutex::new(Buckets::new(usize::MAX)),
            hellos: Mutex::default(),
            handshakes: Mutex::default(),
            backends: Mutex::default(),
            refused: Default::default(),
            reachability: Reachability::default(),
            told: Mutex::default(),
        })
    }

    /// Applies a new configuration. The number of slots stays.
    pub fn follow(&self, limits: &Limits) {
        self.rules.store(Arc::new(Rules::of(self.most, limits)));
    }

    /// Admits a connection that was accepted on `listener` at `now`. It has no slot yet. Without a `peer`, it comes from
    /// a trusted proxy, whose client counts later: see [`Permit::comes_from`].
    pub fn admit(
        self: &Arc<Self>,
        peer: Option<IpAddr>,
        listener: Group<'_>,
        now: Instant,
    ) -> Result<Admitted, Overload> {
        let permit = Permit::new(self.clone());
        // The source first: a flood from one source takes nothing of the listener.
        if let Some(peer) = peer {
            permit.comes_from(peer, now)?;
        }
        permit.enters(listener, now)?;
        Ok(permit.into())
    }

    /// Whether one more client of a stopping listener may wait for a slot. Such a client holds one of the few
    /// descriptors that are reserved for other purposes.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        self.waiting.load(Relaxed) < LAST_WAITING
    }

    /// Counts a client without a slot when its listener stops.
    pub fn has_no_place(&self, now: Instant) -> Overload {
        let why = Overload::Places;
        if let Some(refused) = self.refuse(why, now) {
            tracing::warn!(
                connections = self.most,
                refused,
                "the limit of connections is reached, and a listener stops: refusing clients that wait for a place; \
                 see limits.connections"
            );
        }
        why
    }

    /// Counts a connection to a backend that several clients share, until the result is dropped.
    pub fn connect(
        self: &Arc<Self>,
        backend: &Arc<str>,
        max_connections: Option<usize>,
        max_pending: Option<usize>,
        now: Instant,
    ) -> Result<Shared, Overload> {
        let key = self.enter(backend, max_connections, max_pending, now)?;
        Ok(Shared::pending(self.clone(), key))
    }

    fn enter(
        &self,
        backend: &Arc<str>,
        max_connections: Option<usize>,
        max_pending: Option<usize>,
        now: Instant,
    ) -> Result<usize, Overload> {
        let rules = self.rules.load();
        let pending = match max_pending {
            None => PendingRule::Fair { most: rules.pending, room: rules.pending_room },
            Some(0) => PendingRule::Any,
            Some(most) => PendingRule::Most(most),
        };
        let entered =
            lock(&self.backends).enter(backend, BackendRule { connections: max_connections, pending });
        entered.inspect_err(|why| {
            if let Some(refused) = self.refuse(*why, now) {
                let key = if *why == Overload::Backend { "max_connections" } else { "max_pending" };
                tracing::warn!(
                    %backend, refused,
                    "a backend has as many connections as its limit allows: refusing more for it; see {key}"
                );
            }
        })
    }

    /// Whether every slot is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// The use of the limits.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let rules = self.rules.load();
        Usage {
            connections: (self.most, self.most.saturating_sub(self.places.available_permits())),
            hellos: (rules.hellos.most, lock(&self.hellos).len()),
            hellos_per_source: rules.hellos.per_source,
            handshakes: (rules.handshakes.most, lock(&self.handshakes).len()),
            pending: (rules.pending_room, lock(&self.backends).pending()),
            sources: (rules.source.most, lock(&self.sources).len()),
            waiting: self.waiting.load(Relaxed),
        }
    }

    /// The number of connections refused for this reason.
    #[must_use]
    pub fn refused(&self, why: Overload) -> u64 {
        self.refused[why as usize].load(Relaxed)
    }

    /// Counts a refusal. Returns the number to log, if a report is due.
    fn refuse(&self, why: Overload, now: Instant) -> Option<u64> {
        self.refused[why as usize].fetch_add(1, Relaxed);
        lock(&self.told)[why as usize].happens(now)
    }

    fn source_refused(&self, source: Cidr, most: usize, now: Instant) -> Overload {
        let why = Overload::Source;
        if let Some(refused) = self.refuse(why, now) {
            tracing::warn!(
                %source, most, refused,
                "a source has as many connections as the limit allows: refusing more from it; \
                 see limits.connections_per_source"
            );
        }
        why
    }

    fn source_too_fast(&self, source: Cidr, rate: Rate, now: Instant) -> Overload {
        let why = Overload::SourceRate;
        if let Some(refused) = self.refuse(why, now) {
            let Rate { per_second, burst } = rate;
            tracing::warn!(
                %source, per_second, burst, refused,
                "a source opens connections faster than the limit allows: refusing more from it; \
                 see limits.connection_rate_per_source"
            );
        }
        why
    }

    /// Counts a connection that a listener or a route refuses.
    fn group_refused(&self, why: Overload, group: Group<'_>, now: Instant) -> Overload {
        if let Some(refused) = self.refuse(why, now) {
            let (kind, key) = match why {
                Overload::Listener => ("listener", "listeners[].max_connections"),
                Overload::ListenerRate => ("listener", "listeners[].connection_rate"),
                Overload::Route => ("route", "routes[].max_connections"),
                _ => ("route", "routes[].connection_rate"),
            };
            tracing::warn!(
                kind,
                name = group.name,
                refused,
                "a listener or route has as many connections, or as many new ones, as its limit allows: refusing more; \
                 see {key}"
            );
        }
        why
    }

    fn hello_ended(&self, source: Option<Cidr>, now: Instant) {
        let Some(ended) = self.refuse(Overload::Hellos, now) else { return };
        let HelloRule { most, per_source } = self.rules.load().hellos;
        match source {
            None => tracing::warn!(
                most,
                ended,
                "clients that do not complete their hello make room for others; see limits.hellos"
            ),
            Some(source) => tracing::warn!(
                %source,
                most = per_source,
                ended,
                "a source has as many incomplete hellos as the limit allows: the oldest ones make room for its own \
                 newer ones; see limits.hellos_per_source"
            ),
        }
    }

    fn is_waited_for(&self, now: Instant) {
        let waited = lock(&self.told)[Overload::COUNT].happens(now);
        if let Some(waited) = waited {
            tracing::warn!(
                connections = self.most,
                waited,
                "the limit of connections is reached: further clients wait; see limits.connections"
            );
        }
    }

    /// Ends the connection whose hello has been incomplete for the longest time.
    fn make_room(&self, now: Instant) {
        let gone = lock(&self.hellos).make_room(PATIENCE, now);
        if let Some(call) = gone {
            self.hello_ended(None, now);
            call.notify_one();
        }
    }
}

/// A panic elsewhere leaves these values consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
