//! Who is let in: what all workers share of the limits, and what a connection holds of them.

use std::{
    cell::Cell,
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
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::{
    Overload,
    backends::{BackendRule, Backends, PendingRule},
    cidr::Cidr,
    handshakes::{Full, HandshakePermit, HandshakeRule, Handshakes},
    hellos::{Hellos, Ticket},
    reachability::Reachability,
    source::{SourceRule, Sources},
};

/// A hello that is not complete after this time makes room for a connection that waits for a place. One in several packets
/// is complete far sooner, unless one of them was lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// Clients of listeners that stop which wait for a place, all together, beside one for each socket.
const LAST_WAITING: usize = 64;

/// How often the log tells of the same limit.
const SILENCE: Duration = Duration::from_secs(60);

/// What the workers share. Locks are held for a few instructions each.
#[derive(Debug)]
pub struct Admission {
    /// `limits.connections`; fixed for the life of the process.
    places: Semaphore,
    most: usize,
    /// Accepted connections that wait for a place.
    waiting: AtomicUsize,
    rules: ArcSwap<Rules>,
    sources: Mutex<Sources>,
    hellos: Mutex<Hellos<Arc<Notify>>>,
    handshakes: Mutex<Handshakes>,
    backends: Mutex<Backends>,
    refused: [AtomicU64; Overload::COUNT],
    /// Which backends cannot be reached.
    pub reachability: Reachability,
    /// When the log told of each limit, and of all places taken.
    told: Mutex<[Notice; Overload::COUNT + 1]>,
}

/// What a configuration says, and a reload changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// For each source.
    pub source: SourceRule,
    /// Connections whose hello is not complete.
    pub hellos: usize,
    /// TLS handshakes under way.
    pub handshakes: HandshakeRule,
    /// Connections that wait for an endpoint of one backend, unless that says otherwise.
    pub pending: usize,
    /// Connections that wait for endpoints of such backends, all together.
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

/// When something that may happen often was last told of, and how often it has happened since.
#[derive(Debug, Clone, Copy, Default)]
struct Notice {
    last: Option<Instant>,
    untold: u64,
}

impl Notice {
    /// Counts it once more. How often it has happened since the last line, if it is time for another.
    fn happens(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < SILENCE) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// How things stand, for whoever looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The most that there may be, and how many there are.
    pub connections: (usize, usize),
    /// The same of those whose hello is not complete.
    pub hellos: (usize, usize),
    /// The same of TLS handshakes under way.
    pub handshakes: (usize, usize),
    /// The same of those that wait for an endpoint; the most is what backends without a limit of their own share.
    pub pending: (usize, usize),
    /// The most that one source may have, unless there is no limit, and how many sources have one.
    pub sources: (Option<usize>, usize),
    /// Accepted connections that wait for a place.
    pub waiting: usize,
}

impl Admission {
    /// For as many connections as `limits` say.
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

    /// Follows a new configuration, but for the number of places.
    pub fn follow(&self, limits: &Limits) {
        self.rules.store(Arc::new(Rules::of(self.most, limits)));
    }

    /// Asks for a connection from `peer` that was accepted at `now`. It has no place yet.
    pub fn admit(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Result<Admitted, Overload> {
        let rule = self.rules.load().source;
        let mut source = NONE;
        if let Some(most) = rule.most {
            let prefix = rule.source(peer);
            let key = lock(&self.sources).enter(prefix, most);
            let Some(key) = key else { return Err(self.source_refused(prefix, most, now)) };
            // There are no more connections than descriptors.
            source = u32::try_from(key).unwrap_or(NONE);
        }
        Ok(Admitted(Permit { admission: self.clone(), source, backend: Cell::new(WITHOUT_PLACE) }))
    }

    /// Whether one more client of a listener that stops may wait for a place. It has a descriptor, and those that are kept for
    /// everything else are not many.
    #[must_use]
    pub fn may_wait(&self) -> bool {
        self.waiting.load(Relaxed) < LAST_WAITING
    }

    /// Counts a client that has no place when its listener stops.
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

    /// Counts a connection to a backend that is no single client's, until what is returned is dropped.
    pub fn connect(
        self: &Arc<Self>,
        backend: &Arc<str>,
        max_connections: Option<usize>,
        max_pending: Option<usize>,
        now: Instant,
    ) -> Result<Shared, Overload> {
        let key = self.enter(backend, max_connections, max_pending, now)?;
        Ok(Shared { admission: self.clone(), key, is_pending: true })
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

    /// Whether every place is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// How things stand.
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

    /// How many connections were refused so far for this reason.
    #[must_use]
    pub fn refused(&self, why: Overload) -> u64 {
        self.refused[why as usize].load(Relaxed)
    }

    /// Counts one, and says how many the log is to tell of now.
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

    /// Ends the connection that has waited longest for its hello.
    fn make_room(&self, now: Instant) {
        let gone = lock(&self.hellos).make_room(PATIENCE, now);
        if let Some(call) = gone {
            self.hello_ended(now);
            call.notify_one();
        }
    }
}

/// No source, or no backend.
const NONE: u32 = u32::MAX;
/// Of a permit that has no place yet, instead of its backend.
const WITHOUT_PLACE: u32 = u32::MAX - 1;

/// A connection that was let in and has no place yet.
#[derive(Debug)]
pub struct Admitted(Permit);

impl Admitted {
    /// Takes a place if there is one.
    pub fn try_place(self) -> Result<Permit, Self> {
        let taken = self.0.admission.places.try_acquire().map(tokio::sync::SemaphorePermit::forget);
        if taken.is_err() {
            return Err(self);
        }
        self.0.backend.set(NONE);
        Ok(self.0)
    }

    /// Waits for a place, and has the oldest silent client make room meanwhile. It counts as waiting from now on, and not only
    /// when it is polled.
    pub fn place(self) -> impl Future<Output = Permit> {
        let tried = self.try_place().map_err(|admitted| (Waiting::begin(&admitted.0.admission), admitted));
        async move {
            match tried {
                Ok(permit) => permit,
                Err((waiting, admitted)) => admitted.place_after(waiting).await,
            }
        }
    }

    async fn place_after(self, _waiting: Waiting) -> Permit {
        let permit = self.0;
        let admission = permit.admission.clone();
        admission.is_waited_for(Instant::now());
        let place = admission.places.acquire();
        tokio::pin!(place);
        loop {
            admission.make_room(Instant::now());
            // It is never closed.
            if let Ok(place) = timeout(PATIENCE, &mut place).await {
                place.into_iter().for_each(tokio::sync::SemaphorePermit::forget);
                permit.backend.set(NONE);
                return permit;
            }
        }
    }
}

/// Counts one that waits, for as long as it lives.
struct Waiting(Arc<Admission>);

impl Waiting {
    fn begin(admission: &Arc<Admission>) -> Self {
        admission.waiting.fetch_add(1, Relaxed);
        Self(admission.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// A connection's share of everything limited. Its session holds it, which may last for hours: so it is no larger than
/// the permit of a semaphore would be.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    /// Its source among [`Sources`], or [`NONE`].
    source: u32,
    /// Its backend among [`Backends`], or [`NONE`]; or [`WITHOUT_PLACE`].
    backend: Cell<u32>,
}

impl Permit {
    /// Which backends cannot be reached.
    #[must_use]
    pub fn reachability(&self) -> &Reachability {
        &self.admission.reachability
    }

    /// Counts among those whose hello is not complete, until what is returned is dropped. Another one may have to make
    /// room. `begun` is whether it has said anything.
    #[must_use]
    pub fn hello(&self, begun: bool, now: Instant) -> UnfinishedHello<'_> {
        let admission = &*self.admission;
        let call = Arc::new(Notify::new());
        let most = admission.rules.load().hellos;
        let (ticket, gone) = lock(&admission.hellos).enter(most, begun, now, call.clone());
        if let Some(gone) = gone {
            admission.hello_ended(now);
            gone.notify_one();
        }
        UnfinishedHello { admission, ticket, call }
    }

    /// Counts among the TLS handshakes under way, until what is returned is dropped.
    pub fn handshake(&self, peer: IpAddr, now: Instant) -> Result<Handshake<'_>, Overload> {
        let admission = &*self.admission;
        let rules = admission.rules.load();
        let source = rules.source.source(peer);
        let full = match lock(&admission.handshakes).enter(source, rules.handshakes) {
            Ok(place) => return Ok(Handshake { admission, place: Some(place) }),
            Err(full) => full,
        };
        let why = Overload::Handshakes;
        if let Some(refused) = admission.refuse(why, now) {
            match full {
                Full::All => tracing::warn!(
                    most = rules.handshakes.most,
                    refused,
                    "as many TLS handshakes are under way as the limit allows: refusing more; see limits.handshakes"
                ),
                Full::Source => tracing::warn!(
                    %source,
                    most = rules.handshakes.per_source,
                    refused,
                    "a source has as many TLS handshakes under way as the limit allows: refusing more from it; \
                     see limits.handshakes_per_source"
                ),
            }
        }
        Err(why)
    }

    /// Counts among the connections to a backend, and until what is returned is dropped among those that wait for an
    /// endpoint. To be asked once.
    pub fn connect(
        &self,
        backend: &Arc<str>,
        max_connections: Option<usize>,
        max_pending: Option<usize>,
        now: Instant,
    ) -> Result<Pending<'_>, Overload> {
        let admission = &*self.admission;
        let key = admission.enter(backend, max_connections, max_pending, now)?;
        self.backend.set(u32::try_from(key).unwrap_or(NONE));
        Ok(Pending { admission, key })
    }

    /// The limits, for what outlives this connection.
    #[must_use]
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.source != NONE {
            lock(&self.admission.sources).leave(self.source as usize);
        }
        match self.backend.get() {
            WITHOUT_PLACE => return,
            NONE => {}
            key => lock(&self.admission.backends).leave(key as usize),
        }
        self.admission.places.add_permits(1);
    }
}

/// A connection whose hello is not complete.
#[derive(Debug)]
pub struct UnfinishedHello<'a> {
    admission: &'a Admission,
    ticket: Ticket,
    call: Arc<Notify>,
}

impl UnfinishedHello<'_> {
    /// The client has said something.
    pub fn heard(&self) {
        lock(&self.admission.hellos).heard(self.ticket);
    }

    /// Waits until it has to make room, if it ever has.
    pub async fn made_room(&self) {
        self.call.notified().await;
    }
}

impl Drop for UnfinishedHello<'_> {
    fn drop(&mut self) {
        lock(&self.admission.hellos).leave(self.ticket);
    }
}

/// A TLS handshake that is under way.
#[derive(Debug)]
pub struct Handshake<'a> {
    admission: &'a Admission,
    place: Option<HandshakePermit>,
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            lock(&self.admission.handshakes).leave(place);
        }
    }
}

/// A connection that waits for an endpoint.
#[derive(Debug)]
pub struct Pending<'a> {
    admission: &'a Admission,
    key: usize,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        lock(&self.admission.backends).settle(self.key);
    }
}

/// A connection to a backend that requests of several clients share.
#[derive(Debug)]
pub struct Shared {
    admission: Arc<Admission>,
    key: usize,
    is_pending: bool,
}

impl Shared {
    /// It waits for an endpoint no more.
    pub fn is_settled(&mut self) {
        if std::mem::take(&mut self.is_pending) {
            lock(&self.admission.backends).settle(self.key);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.is_settled();
        lock(&self.admission.backends).leave(self.key);
    }
}

/// A panic elsewhere leaves nothing half done in there.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn one_source_leaves_half_of_the_places_to_others() {
        let admission = Admission::new(64, &Limits::default());
        let now = Instant::now();
        let admit = |last| admission.admit(peer(last), now).map(|one| one.try_place().unwrap());
        let mut held: Vec<_> = (0..32).map(|_| admit(1).unwrap()).collect();
        assert_eq!(admit(1).unwrap_err(), Overload::Source);
        held.extend((0..32).map(|_| admit(2).unwrap()));
        assert!(admission.is_full());
        assert_eq!(admission.refused(Overload::Source), 1);
        drop(held);
        assert_eq!(admission.usage().connections, (64, 0));
        assert_eq!(admission.usage().sources, (Some(32), 0));
    }

    #[test]
    fn a_permit_is_no_larger_than_a_semaphores() {
        assert_eq!(size_of::<Permit>(), size_of::<tokio::sync::OwnedSemaphorePermit>());
    }

    #[test]
    fn what_a_backend_takes_is_given_back() {
        let admission = Admission::new(8, &Limits::default());
        let now = Instant::now();
        let permit = |last| admission.admit(peer(last), now).unwrap().try_place().unwrap();
        let (first, second) = (permit(1), permit(2));
        let name = "shop".into();
        let pending = first.connect(&name, Some(1), None, now).unwrap();
        assert_eq!(second.connect(&name, Some(1), None, now).unwrap_err(), Overload::Backend);
        drop(pending);
        assert_eq!(second.connect(&name, Some(1), None, now).unwrap_err(), Overload::Backend);
        drop(first);
        drop(second.connect(&name, Some(1), None, now).unwrap());
        assert_eq!(admission.usage().pending, (4, 0));
        assert_eq!(admission.refused(Overload::Backend), 2);
    }

    #[test]
    fn a_reload_changes_all_but_the_number_of_places() {
        let admission = Admission::new(8, &Limits::default());
        admission.follow(&Limits { connections_per_source: Some(0), hellos: Some(3), ..Limits::default() });
        let usage = admission.usage();
        assert_eq!((usage.connections.0, usage.hellos.0, usage.sources.0), (8, 3, None));
    }

    #[tokio::test]
    async fn the_oldest_silent_client_makes_room_for_one_that_waits_for_a_place() {
        let admission = Admission::new(1, &Limits { connections_per_source: Some(0), ..Limits::default() });
        let admit = || admission.admit(peer(1), Instant::now()).unwrap();
        let silent = admit().place().await;
        let begun = Instant::now().checked_sub(PATIENCE).unwrap();
        let served = async {
            let hello = silent.hello(false, begun);
            hello.made_room().await;
            drop(hello);
            drop(silent);
        };
        let waits = admit().place();
        let ((), permit) = tokio::join!(served, waits);
        assert_eq!(admission.refused(Overload::Hellos), 1);
        let usage = admission.usage();
        assert_eq!((usage.hellos.1, usage.waiting, usage.connections), (0, 0, (1, 1)));
        drop(permit);
        assert!(!admission.is_full());
    }

    #[test]
    fn the_log_tells_once_a_minute_how_often() {
        let (mut notice, now) = (Notice::default(), Instant::now());
        assert_eq!(notice.happens(now), Some(1));
        for second in 1..60 {
            assert_eq!(notice.happens(now + Duration::from_secs(second)), None);
        }
        assert_eq!(notice.happens(now + SILENCE), Some(60));
    }
}
