//! Permits: a connection's shares of the limits, which it returns when it is dropped.

use std::{
    cell::Cell,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use tokio::{sync::Notify, time::timeout};

use super::{Admission, PATIENCE, lock};
use crate::limits::{
    Overload,
    handshakes::{Full, HandshakePermit},
    hellos::Ticket,
    reachability::Reachability,
};

/// No source, or no backend.
pub(super) const NONE: u32 = u32::MAX;
/// The value of `backend` in a permit without a slot.
const WITHOUT_PLACE: u32 = u32::MAX - 1;

/// An admitted connection without a slot.
#[derive(Debug)]
pub struct Admitted(Permit);

impl Admitted {
    /// A connection of the source with this key, or [`NONE`].
    pub(super) fn new(admission: Arc<Admission>, source: u32) -> Self {
        Self(Permit { admission, source: Cell::new(source), backend: Cell::new(WITHOUT_PLACE) })
    }

    /// Takes a slot if one is free.
    pub fn try_place(self) -> Result<Permit, Self> {
        let taken = self.0.admission.places.try_acquire().map(tokio::sync::SemaphorePermit::forget);
        if taken.is_err() {
            return Err(self);
        }
        self.0.backend.set(NONE);
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
                permit.backend.set(NONE);
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
    /// The key of its source in [`Sources`](crate::limits::source::Sources), or [`NONE`].
    source: Cell<u32>,
    /// The key of its backend in [`Backends`](crate::limits::backends::Backends), [`NONE`] or [`WITHOUT_PLACE`].
    backend: Cell<u32>,
}

impl Permit {
    /// The backends that are unreachable.
    #[must_use]
    pub fn reachability(&self) -> &Reachability {
        &self.admission.reachability
    }

    /// Counts the connection for the client that a trusted proxy names, and no longer for any other source.
    pub fn comes_from(&self, client: IpAddr, now: Instant) -> Result<(), Overload> {
        self.leave_source();
        self.source.set(self.admission.count_source(client, now)?);
        Ok(())
    }

    fn leave_source(&self) {
        let source = self.source.replace(NONE);
        if source != NONE {
            lock(&self.admission.sources).leave(source as usize);
        }
    }

    /// Counts the connection as one with an incomplete hello, until the result is dropped. Another connection may be
    /// evicted for it. `begun` is whether the client has sent any byte.
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
        self.backend.set(u32::try_from(key).unwrap_or(NONE));
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
        match self.backend.get() {
            WITHOUT_PLACE => return,
            NONE => {}
            key => lock(&self.admission.backends).leave(key as usize),
        }
        self.admission.places.add_permits(1);
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
