//! Accepts on one listening socket. Each client gets a session, waits for a slot, or is reset.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as StdStream},
    os::fd::{AsRawFd as _, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{SocketFlags, acceptfrom_with},
};
use tokio::{io::unix::AsyncFd, task::JoinHandle, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{proxied, refuse::is_denied, service::Service, session};
use crate::{
    account::{Account, ListenerAccount, registry::Registry},
    limits::{
        Overload,
        admission::{Admission, Admitted, Group, Permit},
    },
    log::log_limit,
    metrics::labels::CloseReason,
    net::sockopt,
};

/// The pause of accepting after an error that an immediate retry would repeat.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections accepted in a row before open connections get their turn.
const ACCEPTS_PER_TURN: u32 = 32;

/// Accepts on a socket, and starts anew after a panic. A panic ends only its own task, and would leave the socket's
/// clients waiting without a report.
pub(super) async fn accept_always<A>(acceptor: Rc<A>, start: impl Fn(Rc<A>) -> JoinHandle<()>) {
    while start(acceptor.clone()).await.is_err_and(|error| error.is_panic()) {
        log_limit!(error, "accepting has failed; going on");
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Accepts on one socket until it is stopped.
pub(super) struct Acceptor {
    pub(super) socket: AsyncFd<OwnedFd>,
    pub(super) entrance: Rc<Entrance>,
}

/// Serves accepted clients. May outlive the socket.
pub(super) struct Entrance {
    pub(super) listener_account: RefCell<Followed>,
    pub(super) service: Rc<Service>,
    pub(super) admission: Arc<Admission>,
    pub(super) sessions: TaskTracker,
    /// Clients that wait for a slot.
    pub(super) waiters: TaskTracker,
    /// Whether another process accepts from the same queue.
    pub(super) succeeded: Rc<Cell<bool>>,
    pub(super) stop: CancellationToken,
}

/// The account of accepted connections, under a configuration of this generation.
pub(super) struct Followed {
    pub(super) generation: u64,
    pub(super) listener_account: Rc<ListenerAccount>,
}

impl Acceptor {
    pub(super) async fn run(self: Rc<Self>) {
        tokio::select! {
            () = self.accept_for_ever() => {}
            () = self.entrance.stop.cancelled() => {}
        }
        self.empty_the_backlog();
    }

    async fn accept_for_ever(&self) {
        let mut turn = 0;
        loop {
            match self.accept() {
                Ok((client, peer)) => {
                    match self.entrance.admit(&client, peer).map(Admitted::try_place) {
                        Ok(Ok(permit)) => self.entrance.start(client, permit),
                        // At the limit the client waits, and later clients wait in the kernel's queue. A request for
                        // a slot after accept(2) holds no slot back from another worker.
                        Ok(Err(admitted)) => {
                            let _ = self.entrance.wait(client, admitted).await;
                        }
                        Err(reason) => self.entrance.reset(&client, reason),
                    }
                    turn += 1;
                    if turn < ACCEPTS_PER_TURN {
                        continue;
                    }
                    tokio::task::yield_now().await;
                }
                // Clears readiness only here: an event from before the queue was empty is outdated. Fails only when
                // the runtime shuts down.
                Err(Errno::AGAIN) => {
                    if let Ok(mut guard) = self.socket.readable().await {
                        guard.clear_ready();
                    }
                }
                // This client gave up before accept(2). The next one may not have.
                Err(Errno::CONNABORTED) => {}
                Err(error) => {
                    self.entrance.cannot_accept(error);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            turn = 0;
        }
    }

    fn accept(&self) -> Result<(StdStream, IpAddr), Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (client, peer) = retry_on_intr(|| acceptfrom_with(self.socket.get_ref(), flags))?;
        // A TCP socket always has a peer address that parses.
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        Ok((StdStream::from(client), peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip())))
    }

    /// Accepts the connections that the kernel has completed for this socket, since its close would reset them. At
    /// the limit, a process that accepts from the same queue serves them.
    fn empty_the_backlog(&self) {
        while !(self.entrance.succeeded.get() && self.entrance.admission.is_full()) {
            let (client, peer) = match self.accept() {
                Ok(accepted) => accepted,
                Err(Errno::AGAIN) => return,
                Err(Errno::CONNABORTED) => continue,
                Err(error) => return self.entrance.cannot_accept(error),
            };
            match self.entrance.admit(&client, peer).map(Admitted::try_place) {
                Ok(Ok(permit)) => self.entrance.start(client, permit),
                Ok(Err(admitted)) if self.entrance.serves(&client) && self.entrance.admission.may_wait() => {
                    self.entrance.wait(client, admitted);
                }
                Ok(Err(_)) => self.entrance.turn_away(&client),
                Err(reason) => self.entrance.reset(&client, reason),
            }
        }
    }
}

impl Entrance {
    /// The account of the listener of this socket. A reload may have renamed the listener.
    fn listener_account(&self) -> Rc<ListenerAccount> {
        let snapshot = self.service.current.load();
        let mut followed = self.listener_account.borrow_mut();
        let Followed { generation, listener_account } = &mut *followed;
        if *generation != snapshot.generation {
            *generation = snapshot.generation;
            if let Some(listener) = snapshot.listener_of(listener_account.address, || None)
                && *listener.name != *listener_account.counters.listener
            {
                *listener_account = Rc::new(listener_account.renamed(&listener.name.as_str().into()));
            }
        }
        listener_account.clone()
    }

    fn cannot_accept(&self, error: Errno) {
        let listener_account = self.listener_account();
        let counters = &listener_account.counters;
        counters.accept_errors.inc();
        log_limit!(warn, %error, listener = %counters.listener, "cannot accept; trying again shortly");
    }

    /// Applies the rules for the source of an accepted client, then the limits. The error is the close reason. A trusted
    /// proxy is no source: its header names the client, and the session applies them to that client.
    fn admit(&self, client: &StdStream, peer: IpAddr) -> Result<Admitted, CloseReason> {
        let account = self.listener_account();
        let snapshot = self.service.current.load();
        // The session ends a client whose listener is removed.
        let listener = snapshot.listener_of(account.address, || client.local_addr().ok());
        let proxies = listener.and_then(|listener| listener.proxy_protocol.as_ref());
        let source = (!proxied::is_trusted(proxies, peer)).then_some(peer);
        let denies = |source| listener.is_some_and(|listener| is_denied(source, listener, &snapshot.model));
        if source.is_some_and(denies) {
            return Err(CloseReason::Denied);
        }
        let group = Group {
            name: listener.map_or(&account.counters.listener, |listener| &listener.name),
            access: listener.and_then(|listener| listener.access.as_ref()),
        };
        self.admission.admit(source, group, Instant::now()).map_err(Overload::into)
    }

    /// Resets a connection, which is the cheapest refusal, and counts it.
    fn reset(&self, client: &StdStream, reason: CloseReason) {
        let _ = sockopt::reset_on_close(client);
        let account = Account::open(&self.listener_account());
        account.has_sockets([client.as_raw_fd(), -1]);
        account.ended(reason);
    }

    /// Makes a client wait for a slot in a task of its own, which outlives the acceptor.
    fn wait(self: &Rc<Self>, client: StdStream, admitted: Admitted) -> JoinHandle<()> {
        let waiter = Waiter { client: Some(client), entrance: self.clone() };
        let place = admitted.place();
        self.waiters.spawn_local(async move {
            tokio::select! {
                permit = place => waiter.start(permit),
                () = waiter.waited_for_too_long() => {}
            }
        })
    }

    /// Whether the configuration still serves this client.
    fn serves(&self, client: &StdStream) -> bool {
        let own = || client.local_addr().ok();
        self.service
            .current
            .load()
            .listener_of(self.listener_account.borrow().listener_account.address, own)
            .is_some()
    }

    /// Refuses a client that waited for a slot in vain.
    fn turn_away(&self, client: &StdStream) {
        if self.serves(client) {
            self.reset(client, self.admission.has_no_place(Instant::now()).into());
        } else {
            log_limit!(info, listener = %self.listener_account().counters.listener, "a listener is removed: refusing clients that wait");
            self.reset(client, CloseReason::ListenerRemoved);
        }
    }

    fn start(&self, client: StdStream, permit: Permit) {
        let registration = Registry::register(Account::open(&self.listener_account()));
        let place = registration.place();
        let session = session::serve(client, registration, self.service.clone(), permit);
        self.service.registry.is_served_by(place, self.sessions.spawn_local(session).abort_handle());
    }
}

/// A client that waits for a slot. In every case the client is served or counted.
struct Waiter {
    client: Option<StdStream>,
    entrance: Rc<Entrance>,
}

impl Waiter {
    /// Resolves when no acceptor runs and the drain's time is over.
    async fn waited_for_too_long(&self) {
        let Self { client, entrance } = self;
        entrance.stop.cancelled().await;
        if client.as_ref().is_some_and(|client| entrance.serves(client)) {
            sleep(entrance.service.current.load().model.runtime.timeouts.drain).await;
        }
    }

    fn start(mut self, permit: Permit) {
        if let Some(client) = self.client.take() {
            self.entrance.start(client, permit);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            self.entrance.turn_away(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        runtime::{self, LocalOptions},
        task::spawn_local,
    };

    use super::*;

    #[test]
    fn accepting_goes_on_after_a_panic() {
        let runtime = runtime::Builder::new_current_thread()
            .enable_time()
            .build_local(LocalOptions::default())
            .unwrap();
        let starts = Rc::new(Cell::new(0));
        runtime.block_on(accept_always(starts.clone(), |starts| {
            spawn_local(async move {
                starts.set(starts.get() + 1);
                assert!(starts.get() > 2, "a fault");
            })
        }));
        assert_eq!(starts.get(), 3);
    }
}
