//! Permits: a connection's shares of the limits, which it returns when it is dropped.

use std::{
    cell::Cell,
    net::IpAddr,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Instant,
};

use snisplice_config::model::access::Access;
use tokio::{sync::Notify, time::timeout};

use super::{Admission, PATIENCE, lock};
use crate::limits::{
    Overload,
    handshakes::{Full, HandshakePermit},
    hellos::{Evicted, Ticket},
    memberships::{self, Memberships},
    rate::Buckets,
    reachability::Reachability,
};

/// No source.
const NO_SOURCE: u32 = u32::MAX;
/// The bit of `membership` in a permit with a slot. The other bits are a key in [`memberships::Memberships`].
const HAS_PLACE: u32 = !memberships::NONE;

/// A listener or a route, with the rules for its clients.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Its name. Connections count for a name, also across a reload.
    pub name: &'a str,
    /// Its limits, if any.
    pub access: Option<&'a Access>,
}

impl Group<'_> {
    fn most(self) -> Option<usize> {
        self.access.and_then(|access| access.max_connections)
    }

    fn may_take(self, buckets: &Mutex<Buckets<Arc<str>>>, now: Instant) -> bool {
        let rate = self.access.and_then(|access| access.rate);
        rate.is_none_or(|rate| lock(buckets).take(self.name.into(), rate, now))
    }
}

/// An admitted connection without a slot.
#[derive(Debug)]
pub struct Admitted(Permit);

impl From<Permit> for Admitted {
    fn from(permit: Permit) -> Self {
        Self(permit)
    }
}

impl Admitted {
    /// Takes a slot if one is free.
    pub fn try_place(self) -> Result<Permit, Self> {
        let taken = self.0.admission.places.try_acquire().map(tokio::sync::SemaphorePermit::forget);
        if taken.is_err() {
            return Err(self);
        }
        self.0.has_place();
        Ok(self.0)
    }

    /// Waits for a slot. Meanwhile the oldest silent clients make room. The connection counts as waiting from this call
    /// on, not from the first poll.
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
            // The semaphore is never closed.
            if let Ok(place) = timeout(PATIENCE, &mut place).await {
                place.into_iter().for_each(tokio::sync::SemaphorePermit::forget);
                permit.has_place();
                return permit;
            }
        }
    }
}

/// Counts a waiting connection while it lives.
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

/// A connection's shares of all limits. Its session holds it for hours, so it is no larger than a semaphore's permit.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    /// The key of its source in [`Sources`](crate::limits::source::Sources), or [`NO_SOURCE`].
    source: Cell<u32>,
    /// The key of its listener, route and backend, and [`HAS_PLACE`].
    membership: Cell<u32>,
}

impl Permit {
    /// A connection without a slot that counts for no limit.
    pub(super) fn new(admission: Arc<Admission>) -> Self {
        Self { admission, source: Cell::new(NO_SOURCE), membership: Cell::new(memberships::NONE) }
    }

    fn has_place(&self) {
        self.membership.set(self.membership.get() | HAS_PLACE);
    }

    /// Changes the key of the listener, route and backend. The slot stays.
    fn join(&self, change: impl FnOnce(&mut Memberships, u32) -> Option<u32>) -> bool {
        let (key, place) = (self.membership.get() & !HAS_PLACE, self.membership.get() & HAS_PLACE);
        let joined = change(&mut lock(&self.admission.memberships), key);
        if let Some(key) = joined {
            self.membership.set(key | place);
        }
        joined.is_some()
    }

    /// Counts the connection for the source of its client, until it ends, and no longer for any other source. The client
    /// is the peer, or the one that a trusted proxy names.
    pub fn comes_from(&self, client: IpAddr, now: Instant) -> Result<(), Overload> {
        self.leave_source();
        let admission = &*self.admission;
        let rules = admission.rules.load();
        let source = rules.source.source(client);
        if let Some(most) = rules.source.most {
            let key = lock(&admission.sources).enter(source, most);
            let Some(key) = key else { return Err(admission.source_refused(source, most, now)) };
            // There are fewer connections than descriptors.
            self.source.set(u32::try_from(key).unwrap_or(NO_SOURCE));
        }
        match rules.source_rate {
            Some(rate) if !lock(&admission.source_rates).take(source, rate, now) => {
                Err(admission.source_too_fast(source, rate, now))
            }
            _ => Ok(()),
        }
    }

    /// Counts the connection for its listener, until it ends. Called once.
    pub(super) fn enters(&self, listener: Group<'_>, now: Instant) -> Result<(), Overload> {
        let admission = &*self.admission;
        if !self.join(|memberships, _| memberships.enter(listener.name, listener.most())) {
            return Err(admission.group_refused(Overload::Listener, listener, now));
        }
        if !listener.may_take(&admission.listener_rates, now) {
            return Err(admission.group_refused(Overload::ListenerRate, listener, now));
        }
        Ok(())
    }

    /// Counts the connection for its route, until it ends. Called at most once.
    pub fn takes(&self, route: Group<'_>, now: Instant) -> Result<(), Overload> {
        let admission = &*self.admission;
        if !self.join(|memberships, key| memberships.join_route(key, route.name, route.most())) {
            return Err(admission.group_refused(Overload::Route, route, now));
        }
        if !route.may_take(&admission.route_rates, now) {
            return Err(admission.group_refused(Overload::RouteRate, route, now));
        }
        Ok(())
    }

    /// The backends that are unreachable.
    #[must_use]
    pub fn reachability(&self) -> &Reachability {
        &self.admission.reachability
    }

    fn leave_source(&self) {
        let source = self.source.replace(NO_SOURCE);
        if source != NO_SOURCE {
            lock(&self.admission.sources).leave(source as usize);
        }
    }

    /// Counts the connection as one with an incomplete hello, until the result is dropped. Another connection may be
    /// evicted for it, of the same source if `peer` is known and its source is at its limit. `begun` is whether the
    /// client has sent any byte.
    #[must_use]
    pub fn hello(&self, peer: Option<IpAddr>, begun: bool, now: Instant) -> UnfinishedHello<'_> {
        let admission = &*self.admission;
        let call = Arc::new(Notify::new());
        let rules = admission.rules.load();
        let source = peer.map(|peer| rules.source.source(peer));
        let (ticket, evicted) = lock(&admission.hellos).enter(rules.hellos, source, begun, now, call.clone());
        if let Some(Evicted { call, source }) = evicted {
            admission.hello_ended(source, now);
            call.notify_one();
        }
        UnfinishedHello { admission, ticket, call }
    }

    /// Counts a TLS handshake, until the result is dropped.
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

    /// Counts a connection to a backend, and until the result is dropped as one that waits for an endpoint. Called at
    /// most once.
    pub fn connect(
        &self,
        backend: &Arc<str>,
        max_connections: Option<usize>,
        max_pending: Option<usize>,
        now: Instant,
    ) -> Result<Pending<'_>, Overload> {
        let admission = &*self.admission;
        let key = admission.enter(backend, max_connections, max_pending, now)?;
        let backend = u32::try_from(key).unwrap_or(memberships::NONE);
        self.join(|memberships, key| Some(memberships.join_backend(key, backend)));
        Ok(Pending { admission, key })
    }

    /// The limits, for shares that outlive this connection.
    #[must_use]
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leave_source();
        let backend = lock(&self.admission.memberships).leave(self.membership.get() & !HAS_PLACE);
        if backend != memberships::NONE {
            lock(&self.admission.backends).leave(backend as usize);
        }
        if self.membership.get() & HAS_PLACE != 0 {
            self.admission.places.add_permits(1);
        }
    }
}

/// A connection with an incomplete hello.
#[derive(Debug)]
pub struct UnfinishedHello<'a> {
    admission: &'a Admission,
    ticket: Ticket,
    call: Arc<Notify>,
}

impl UnfinishedHello<'_> {
    /// The client has sent something.
    pub fn heard(&self) {
        lock(&self.admission.hellos).heard(self.ticket);
    }

    /// Waits until the connection has to make room.
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
    /// Waits for an endpoint of the backend with this key.
    pub(super) fn pending(admission: Arc<Admission>, key: usize) -> Self {
        Self { admission, key, is_pending: true }
    }

    /// The connection no longer waits for an endpoint.
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
