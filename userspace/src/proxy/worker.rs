//! One worker: a thread with its own event loop, its own listening sockets and its own connections.
//!
//! Workers share nothing per connection. The kernel spreads new connections over their sockets (`SO_REUSEPORT`), and
//! a connection stays on its worker, so its two directions never need a lock.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{SocketFlags, acceptfrom_with},
};
use tokio::{
    io::unix::AsyncFd,
    runtime::{self, LocalOptions},
    sync::mpsc,
    task::{JoinHandle, spawn_local},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::session::{self, LISTENER_REMOVED, Service};
use crate::{
    account::{
        Account, ListenerAccount,
        registry::{self, Registry, Request},
    },
    datapath::{factory::Factory, seam::InKernel},
    limits::{
        Overload,
        admission::{Admission, Admitted, Permit},
    },
    log::log_limit,
    metrics::Metrics,
    net::{
        keepalive::Keepalive,
        sockopt::{self, watch_readable},
    },
    snapshot::SharedSnapshot,
};

/// How long accepting pauses after an error that accepting more at once would only repeat.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections accepted in a row before those that are open already get their turn.
const ACCEPTS_PER_TURN: u32 = 32;

/// What the main thread tells a worker.
#[derive(Debug)]
pub enum Order {
    /// Accept on this socket from now on.
    Listen {
        /// The listener of the configuration that it belongs to.
        listener: Arc<str>,
        /// Its address in the configuration, by which it can be told to stop.
        wanted: SocketAddr,
        /// A bound, listening, non-blocking socket.
        socket: StdListener,
    },
    /// Stop accepting on this address; its connections live on.
    Unlisten(SocketAddr),
    /// Tell of the connections, or end some of them.
    Ask(Request),
    /// Use this of the kernel from now on.
    Gain(InKernel),
    /// Move no further connection into the kernel.
    Withdraw,
    /// Stop accepting everywhere, let connections finish, then end.
    Drain {
        /// For so long.
        patience: Duration,
        /// Whether another process accepts from the same queues.
        succeeded: bool,
    },
}

/// What every worker needs from the process.
#[derive(Clone)]
pub struct Shared {
    /// The configuration in service.
    pub current: Arc<SharedSnapshot>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// How bytes move: built once per worker.
    pub datapath: Factory,
    /// How many workers there are.
    pub workers: usize,
    /// Who is let in.
    pub admission: Arc<Admission>,
    /// Where the number of a worker goes whose thread has ended, however that came.
    pub ended: mpsc::UnboundedSender<usize>,
}

/// Tells that a worker's thread ends when it is dropped, as by a panic.
struct Ending {
    worker: usize,
    tell: mpsc::UnboundedSender<usize>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Nobody listens once the process has begun to end.
        let _ = self.tell.send(self.worker);
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    /// Where its orders go.
    pub orders: mpsc::UnboundedSender<Order>,
    thread: thread::JoinHandle<io::Result<()>>,
}

impl Handle {
    /// Starts a worker thread.
    pub fn start(index: usize, shared: Shared) -> io::Result<Self> {
        let (orders, received) = mpsc::unbounded_channel();
        let ending = Ending { worker: index, tell: shared.ended.clone() };
        let run = move || {
            let _ending = ending;
            run(index, shared, received)
        };
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(run)?;
        Ok(Self { orders, thread })
    }

    /// Asks it of its connections.
    #[must_use]
    pub fn asks(&self) -> Box<dyn Fn(Request) + Send + Sync> {
        let orders = self.orders.clone();
        // One that has ended has no answer.
        Box::new(move |request| drop(orders.send(Order::Ask(request))))
    }

    /// Whether the thread has ended, which only [`Order::Drain`] makes it do.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread.
    pub fn join(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker thread panicked")))
    }
}

fn run(index: usize, shared: Shared, orders: mpsc::UnboundedReceiver<Order>) -> io::Result<()> {
    // Not a `LocalSet` in a runtime: whoever is woken by the event loop would be woken through an eventfd as well.
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(LocalOptions::default())?;
    // Dropping the runtime drops every session that outlived the drain, and with it its sockets.
    runtime.block_on(work(index, shared, orders))
}

async fn work(index: usize, shared: Shared, mut orders: mpsc::UnboundedReceiver<Order>) -> io::Result<()> {
    let service = Rc::new(Service {
        keepalive: Rc::new(Keepalive::of(&shared.current.load().model.timeouts)),
        current: shared.current,
        datapath: shared.datapath.build()?,
        metrics: shared.metrics.clone(),
        registry: Rc::new(Registry::new(index, shared.workers)),
        races: Cell::default(),
        listening: RefCell::default(),
    });
    spawn_local(tick(service.clone()));
    let sessions = TaskTracker::new();
    let acceptors = TaskTracker::new();
    let mut listening: HashMap<SocketAddr, CancellationToken> = HashMap::new();
    let succeeded = Rc::new(Cell::new(false));
    let patience = loop {
        match orders.recv().await {
            Some(Order::Listen { listener, wanted, socket }) => {
                service.keepalive.apply(&socket)?;
                service.listening.borrow_mut().push((wanted, socket.local_addr()?));
                let socket = watch_readable(socket.into())?;
                let entrance = Rc::new(Entrance {
                    listener_account: RefCell::new(Followed {
                        generation: 0,
                        listener_account: Rc::new(
                            ListenerAccount::new(&shared.metrics, &listener, &service.registry).at(wanted),
                        ),
                    }),
                    service: service.clone(),
                    admission: shared.admission.clone(),
                    sessions: sessions.clone(),
                    waiters: acceptors.clone(),
                    succeeded: succeeded.clone(),
                    // Several sockets of one address have come from a process with more workers.
                    stop: listening.entry(wanted).or_default().clone(),
                });
                let acceptor = Rc::new(Acceptor { socket, entrance });
                acceptors.spawn_local(accept_always(acceptor, |one| spawn_local(one.run())));
            }
            Some(Order::Unlisten(address)) => {
                service.listening.borrow_mut().retain(|(wanted, _)| *wanted != address);
                if let Some(stop) = listening.remove(&address) {
                    stop.cancel();
                }
            }
            Some(Order::Ask(request)) => answer(&service, request),
            Some(Order::Gain(found)) => {
                if let Err(error) = service.datapath.gain(&found) {
                    tracing::error!(%error, "this worker cannot use the kernel's programs: it relays");
                }
            }
            Some(Order::Withdraw) => service.datapath.withdraw(),
            Some(Order::Drain { patience, succeeded: by_another }) => {
                succeeded.set(by_another);
                break patience;
            }
            None => break Duration::ZERO,
        }
    };
    for stop in listening.into_values() {
        stop.cancel();
    }
    // Their last act is to take what the kernel has already accepted for them.
    acceptors.close();
    let ended = async {
        acceptors.wait().await;
        sessions.close();
        sessions.wait().await;
    };
    let answering = async {
        while let Some(order) = orders.recv().await {
            if let Order::Ask(request) = order {
                answer(&service, request);
            }
        }
    };
    let ended = async {
        tokio::select! {
            () = ended => {}
            () = async { answering.await; pending().await } => {}
        }
    };
    if timeout(patience, ended).await.is_err() {
        tracing::warn!(connections = sessions.len(), "closing connections that outlived the drain");
    }
    Ok(())
}

/// Answers what the main thread asks of the connections.
fn answer(service: &Rc<Service>, request: Request) {
    let datapath = service.datapath.clone();
    registry::answer(&service.registry, Rc::new(move |account| datapath.moved(account)), request);
}

/// Ends connections that have lasted too long, and keeps the event loop from ever sleeping long.
///
/// A timer that is set to an earlier moment than the one at which the loop means to wake up wakes it at once (a write to an
/// eventfd, and an event). Without this, where few connections are open, each connect(2) with its deadline would.
async fn tick(service: Rc<Service>) {
    const PERIOD: Duration = Duration::from_secs(1);
    /// While connections begin that have a second endpoint to try: shorter than the head start of the first.
    const SHORT: Duration = Duration::from_millis(200);
    let mut ticked = Instant::now();
    loop {
        sleep(if service.races.take() { SHORT } else { PERIOD }).await;
        if ticked.elapsed() < PERIOD {
            continue;
        }
        ticked = Instant::now();
        let longest = service.current.load().model.timeouts.max_duration;
        if !longest.is_zero() {
            service.registry.end_older(longest);
        }
    }
}

/// Has the socket accepted from until that ends well: one that nobody accepts from keeps its clients waiting. A panic in a
/// task ends that task alone, so that whoever does not look never learns of it.
async fn accept_always<A>(acceptor: Rc<A>, start: impl Fn(Rc<A>) -> JoinHandle<()>) {
    while start(acceptor.clone()).await.is_err_and(|error| error.is_panic()) {
        log_limit!(error, "accepting has failed; going on");
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Accepts on one socket until told to stop.
struct Acceptor {
    socket: AsyncFd<OwnedFd>,
    entrance: Rc<Entrance>,
}

/// What becomes of those who are accepted. It may outlive the socket.
struct Entrance {
    listener_account: RefCell<Followed>,
    service: Rc<Service>,
    admission: Arc<Admission>,
    sessions: TaskTracker,
    /// Clients that wait for a place.
    waiters: TaskTracker,
    /// Whether another process accepts from the same queue.
    succeeded: Rc<Cell<bool>>,
    stop: CancellationToken,
}

/// What is accepted is accounted for here, under a configuration of this generation.
struct Followed {
    generation: u64,
    listener_account: Rc<ListenerAccount>,
}

impl Acceptor {
    async fn run(self: Rc<Self>) {
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
                    match self.entrance.admission.admit(peer, Instant::now()).map(Admitted::try_place) {
                        Ok(Ok(permit)) => self.entrance.start(client, permit),
                        // At the limit it waits, and those after it in the kernel's queue. Asking only now keeps no place
                        // from a worker that has a connection for it.
                        Ok(Err(admitted)) => {
                            let _ = self.entrance.wait(client, admitted).await;
                        }
                        Err(why) => self.entrance.refuse(&client, why),
                    }
                    turn += 1;
                    if turn < ACCEPTS_PER_TURN {
                        continue;
                    }
                    tokio::task::yield_now().await;
                }
                // Only now: an event that came before the queue was empty is of no more use. Fails only when the
                // runtime shuts down.
                Err(Errno::AGAIN) => {
                    if let Ok(mut guard) = self.socket.readable().await {
                        guard.clear_ready();
                    }
                }
                // The client gave up before we came; the next one may be fine.
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
        // A socket of TCP over IP has one that can be read.
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        Ok((StdStream::from(client), peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip())))
    }

    /// Connections that the kernel has completed for this socket would be reset when it closes: takes them first. At the limit,
    /// a process that accepts from the same queue takes them.
    fn empty_the_backlog(&self) {
        while !(self.entrance.succeeded.get() && self.entrance.admission.is_full()) {
            let (client, peer) = match self.accept() {
                Ok(accepted) => accepted,
                Err(Errno::AGAIN) => return,
                Err(Errno::CONNABORTED) => continue,
                Err(error) => return self.entrance.cannot_accept(error),
            };
            match self.entrance.admission.admit(peer, Instant::now()).map(Admitted::try_place) {
                Ok(Ok(permit)) => self.entrance.start(client, permit),
                Ok(Err(admitted)) if self.entrance.serves(&client) && self.entrance.admission.may_wait() => {
                    self.entrance.wait(client, admitted);
                }
                Ok(Err(_)) => self.entrance.turn_away(&client),
                Err(why) => self.entrance.refuse(&client, why),
            }
        }
    }
}

impl Entrance {
    /// Whose connection it is that is accepted now: the listener may have another name since the last one.
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

    /// Resets a connection, which costs less than anything else, and counts it.
    fn refuse(&self, client: &StdStream, why: Overload) {
        self.reset(client, why.label());
    }

    fn reset(&self, client: &StdStream, reason: &'static str) {
        let _ = sockopt::reset_on_close(client);
        Account::open(&self.listener_account()).ended(reason);
    }

    /// Has a client wait for a place, in a task of its own: it still waits when nothing more is accepted.
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

    /// Whether the configuration serves this client still.
    fn serves(&self, client: &StdStream) -> bool {
        let own = || client.local_addr().ok();
        self.service
            .current
            .load()
            .listener_of(self.listener_account.borrow().listener_account.address, own)
            .is_some()
    }

    /// A client that waited for a place has none, and will not have any.
    fn turn_away(&self, client: &StdStream) {
        if self.serves(client) {
            self.refuse(client, self.admission.has_no_place(Instant::now()));
        } else {
            log_limit!(info, listener = %self.listener_account().counters.listener, "a listener is removed: refusing clients that wait");
            self.reset(client, LISTENER_REMOVED);
        }
    }

    fn start(&self, client: StdStream, permit: Permit) {
        let registration = Registry::register(Account::open(&self.listener_account()));
        let place = registration.place();
        let session = session::serve(client, registration, self.service.clone(), permit);
        self.service.registry.is_served_by(place, self.sessions.spawn_local(session).abort_handle());
    }
}

/// A client that waits for a place. Whatever ends that, it is served or counted.
struct Waiter {
    client: Option<StdStream>,
    entrance: Rc<Entrance>,
}

impl Waiter {
    /// Resolves when nobody accepts any more, and a drain takes no longer.
    async fn waited_for_too_long(&self) {
        let Self { client, entrance } = self;
        entrance.stop.cancelled().await;
        if client.as_ref().is_some_and(|client| entrance.serves(client)) {
            sleep(entrance.service.current.load().model.timeouts.drain).await;
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
    use std::cell::Cell;

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

    #[test]
    fn a_worker_that_ends_is_told_of() {
        let (tell, mut ended) = mpsc::unbounded_channel();
        let ending = Ending { worker: 3, tell };
        let thread = thread::spawn(move || {
            let _ending = ending;
            panic!("a fault");
        });
        assert!(thread.join().is_err());
        assert_eq!(ended.try_recv(), Ok(3));
    }
}
