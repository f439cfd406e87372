//! One worker: a thread with its own event loop, listening sockets and connections.
//!
//! Workers share nothing per connection. The kernel distributes new connections over their sockets (`SO_REUSEPORT`).
//! A connection stays on its worker, so its two directions never need a lock.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::pending,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{self, LocalOptions},
    sync::mpsc,
    task::spawn_local,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    acceptor::{Acceptor, Entrance, Followed, accept_always},
    service::{Keepalives, Service},
};
use crate::{
    account::{
        ListenerAccount,
        access_log::AccessLog,
        registry::{self, Registry, RegistryRequest},
    },
    datapath::{
        factory::Factory,
        seam::{InKernel, Patience},
    },
    http,
    limits::admission::Admission,
    metrics::Metrics,
    net::sockopt::watch_readable,
    snapshot::SharedSnapshot,
};

/// A command of the main thread to a worker.
#[derive(Debug)]
pub enum Order {
    /// Accept on this socket from now on.
    Listen {
        /// The name of the socket's listener.
        listener: Arc<str>,
        /// Its configured address, which [`Order::Unlisten`] names.
        wanted: SocketAddr,
        /// A bound, listening, non-blocking socket.
        socket: StdListener,
    },
    /// Stop accepting on this address. Open connections continue.
    Unlisten(SocketAddr),
    /// List connections, or end some of them.
    Ask(RegistryRequest),
    /// Use this kernel support from now on.
    Gain(InKernel),
    /// Move no further connection into the kernel.
    Withdraw,
    /// Stop accepting everywhere, let connections finish, then end.
    Drain {
        /// The time limit of the drain.
        patience: Duration,
        /// Whether another process accepts from the same queues.
        succeeded: bool,
    },
}

/// The input of every worker from the process.
#[derive(Clone)]
pub struct Shared {
    /// The configuration in service.
    pub current: Arc<SharedSnapshot>,
    /// The counters of the process.
    pub metrics: Arc<Metrics>,
    /// Builds the datapath, once per worker.
    pub datapath: Factory,
    /// The number of workers.
    pub workers: usize,
    /// Admits clients.
    pub admission: Arc<Admission>,
    /// The access log, if any.
    pub access_log: Arc<AccessLog>,
    /// Receives the number of a worker whose thread has ended for any reason.
    pub ended: mpsc::UnboundedSender<usize>,
}

/// Reports the end of a worker's thread on drop, also after a panic.
struct Ending {
    worker: usize,
    tell: mpsc::UnboundedSender<usize>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        // There is no receiver once the process has begun to end.
        let _ = self.tell.send(self.worker);
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    /// The channel for orders.
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

    /// Returns a function that sends a request about connections to the worker.
    #[must_use]
    pub fn asks(&self) -> Box<dyn Fn(RegistryRequest) + Send + Sync> {
        let orders = self.orders.clone();
        // A worker that has ended does not reply.
        Box::new(move |request| drop(orders.send(Order::Ask(request))))
    }

    /// Whether the thread has ended. Only [`Order::Drain`] ends it in order.
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
    // Not a `LocalSet` in a runtime: there, the event loop would wake each task through an eventfd as well.
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(LocalOptions::default())?;
    // A drop of the runtime drops every session that outlived the drain, including its sockets.
    runtime.block_on(work(index, shared, orders))
}

async fn work(index: usize, shared: Shared, mut orders: mpsc::UnboundedReceiver<Order>) -> io::Result<()> {
    let service = Rc::new(Service {
        keepalives: Keepalives::new(&shared.current.load().model.startup.timeouts),
        patience: Patience::of(&shared.current.load().model.startup.timeouts),
        current: shared.current,
        datapath: shared.datapath.build()?,
        metrics: shared.metrics.clone(),
        registry: Rc::new(Registry::new(index, shared.workers).logging_to(shared.access_log)),
        races: Cell::default(),
        listening: RefCell::default(),
        http: Rc::new(http::connection::Worker::new(&shared.metrics)),
    });
    spawn_local(tick(service.clone()));
    let sessions = TaskTracker::new();
    let acceptors = TaskTracker::new();
    let mut listening: HashMap<SocketAddr, Listening> = HashMap::new();
    let patience = loop {
        match orders.recv().await {
            Some(Order::Listen { listener, wanted, socket }) => {
                service.keepalives.of_listener(service.current.load().listener_at(wanted)).apply(&socket)?;
                service.listening.borrow_mut().push((wanted, socket.local_addr()?));
                let socket = watch_readable(socket.into())?;
                // One address may have several sockets after a takeover from a process with more workers.
                let Listening { stop, succeeded } = listening.entry(wanted).or_default().clone();
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
                    succeeded,
                    stop,
                });
                let acceptor = Rc::new(Acceptor { socket, entrance });
                acceptors.spawn_local(accept_always(acceptor, |one| spawn_local(one.run())));
            }
            Some(Order::Unlisten(address)) => {
                service.listening.borrow_mut().retain(|(wanted, _)| *wanted != address);
                if let Some(address) = listening.remove(&address) {
                    address.stop.cancel();
                }
            }
            Some(Order::Ask(request)) => answer(&service, request),
            Some(Order::Gain(found)) => {
                if let Err(error) = service.datapath.gain(&found) {
                    tracing::error!(%error, "this worker cannot use the eBPF programs: it relays");
                }
            }
            Some(Order::Withdraw) => service.datapath.withdraw(),
            Some(Order::Drain { patience, succeeded }) => {
                for address in listening.values() {
                    address.succeeded.set(succeeded);
                }
                service.http.drain.cancel();
                break patience;
            }
            None => break Duration::ZERO,
        }
    };
    for address in listening.into_values() {
        address.stop.cancel();
    }
    // Finally, each acceptor accepts the connections that the kernel has completed for it.
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

/// The acceptors of one address.
#[derive(Clone, Default)]
struct Listening {
    stop: CancellationToken,
    /// Whether another process accepts from the same queue.
    succeeded: Rc<Cell<bool>>,
}

/// Executes a request of the main thread about connections.
fn answer(service: &Rc<Service>, request: RegistryRequest) {
    let datapath = service.datapath.clone();
    registry::answer(&service.registry, Rc::new(move |account| datapath.moved(account)), request);
}

/// Ends connections at their maximum duration, and limits the sleep of the event loop.
///
/// A timer that is earlier than the loop's next wake-up wakes the loop at once, by a write to an eventfd and an
/// event. Without this task, each connect(2) with its deadline would do so while few connections are open.
async fn tick(service: Rc<Service>) {
    const PERIOD: Duration = Duration::from_secs(1);
    /// The tick while new connections may try a second endpoint: shorter than the head start of the first attempt.
    const SHORT: Duration = Duration::from_millis(200);
    let mut ticked = Instant::now();
    loop {
        sleep(if service.races.take() { SHORT } else { PERIOD }).await;
        if ticked.elapsed() < PERIOD {
            continue;
        }
        ticked = Instant::now();
        service.registry.end_older(&service.current.load().model.runtime.timeouts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
