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
use snisplice_config::model::Limits;
use strum::EnumCount as _;
use tokio::sync::{Notify, Semaphore};

use self::permit::NONE;
pub use self::permit::{Admitted, Permit, Shared, UnfinishedHello};
use super::{
    Overload,
    backends::{BackendRule, Backends, PendingRule},
    cidr::Cidr,
    handshakes::{HandshakeRule, Handshakes},
    hellos::Hellos,
    reachability::Reachability,
    source::{SourceRule, Sources},
};

mod permit;

/// An incomplete hello of this age makes room for a connection that waits for a slot. A hello of several packets is
/// complete far sooner, unless one of them was lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// Clients of stopping listeners that may wait for a slot, in addition to one for each socket.
const LAST_WAITING: usize = 64;

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
    /// Connections with an incomplete hello.
    pub hellos: usize,
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
            hellos: limits.unfinished_hellos(connections),
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

    /// Admits a connection from `peer` that was accepted at `now`. It has no slot yet. `None` is a trusted proxy, whose
    /// client counts later ([`Permit::comes_from`]).
    pub fn admit(self: &Arc<Self>, peer: Option<IpAddr>, now: Instant) -> Result<Admitted, Overload> {
        let source = peer.map_or(Ok(NONE), |peer| self.count_source(peer, now))?;
        Ok(Admitted::new(self.clone(), source))
    }

    /// Counts a connection of a source. Returns the source's key, or [`NONE`] without a limit.
    fn count_source(&self, peer: IpAddr, now: Instant) -> Result<u32, Overload> {
        let rule = self.rules.load().source;
        let Some(most) = rule.most else { return Ok(NONE) };
        let prefix = rule.source(peer);
        let key = lock(&self.sources).enter(prefix, most);
        let key = key.ok_or_else(|| self.source_refused(prefix, most, now))?;
        // There are fewer connections than descriptors.
        Ok(u32::try_from(key).unwrap_or(NONE))
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
            hellos: (rules.hellos, lock(&self.hellos).len()),
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

    fn hello_ended(&self, now: Instant) {
        if let Some(ended) = self.refuse(Overload::Hellos, now) {
            let most = self.rules.load().hellos;
            tracing::warn!(
                most,
                ended,
                "clients that do not complete their hello make room for others; see limits.hellos"
            );
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
            self.hello_ended(now);
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
