//! What a connection holds of the limits, and gives back when it is dropped.

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
/// Of a permit that has no place yet, instead of its backend.
const WITHOUT_PLACE: u32 = u32::MAX - 1;

/// A connection that was let in and has no place yet.
#[derive(Debug)]
pub struct Admitted(Permit);

impl Admitted {
    /// Of this source among the limit's sources, or of [`NONE`].
    pub(super) fn new(admission: Arc<Admission>, source: u32) -> Self {
        Self(Permit { admission, source, backend: Cell::new(WITHOUT_PLACE) })
    }

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
    /// The key of its source in [`Sources`](crate::limits::source::Sources), or [`NONE`].
    source: u32,
    /// The key of its backend in [`Backends`](crate::limits::backends::Backends), [`NONE`] or [`WITHOUT_PLACE`].
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
    /// Waits for an endpoint of the backend with this key.
    pub(super) fn pending(admission: Arc<Admission>, key: usize) -> Self {
        Self { admission, key, is_pending: true }
    }

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
