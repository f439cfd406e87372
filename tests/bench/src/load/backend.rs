//! The backend: a few threads that answer hellos and execute their orders.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustls::ServerConfig;

use super::{
    echo::{Arrival, MessageReceiver, MessageSender},
    fault::{Fault, Faults},
    frame::{ACK_BYTES, Ack, Message, Order, Task},
    hello,
    reactor::{Reactor, Step},
    socket::{self, Received},
    stream::{Bulk, End, Scratch},
    tally::{self, Counts, Tally},
    tls::Acceptor,
    web::server::Web,
};
use crate::topology::Namespace;

/// The port of [`Backend`]'s own protocol.
pub(crate) const PLAIN_PORT: u16 = 7001;
/// The port on which [`Backend`] completes TLS handshakes.
pub(crate) const TLS_PORT: u16 = 7002;
/// The port on which [`Backend`] answers HTTP/1.1 requests without TLS, behind a terminating balancer.
pub(crate) const WEB_PORT: u16 = 7004;
/// The port on which [`Backend`] terminates TLS itself and answers the same requests.
pub(crate) const WEB_TLS_PORT: u16 = 7005;

const POLL: Duration = Duration::from_millis(100);

/// The TLS configurations of the backend.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    /// For bare handshakes.
    pub tls: Arc<ServerConfig>,
    /// For requests within TLS. `None` if no work has them.
    pub web: Option<Arc<ServerConfig>>,
}

struct Shared {
    stop: AtomicBool,
    tallies: Vec<Tally>,
    faults: Mutex<Faults>,
}

/// Running threads, stopped on drop.
pub(crate) struct Backend {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Starts `threads` threads in each namespace, which all listen on every port, and waits until they do.
    pub(crate) fn start(
        namespaces: &[(Namespace, Ipv4Addr)],
        threads: usize,
        servers: &Servers,
    ) -> anyhow::Result<Self> {
        let count = threads * namespaces.len();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            tallies: (0..count).map(|_| Tally::default()).collect(),
            faults: Mutex::new(Faults::default()),
        });
        let mut backend = Self { shared, threads: Vec::new() };
        let (report, reports) = mpsc::channel();
        for index in 0..count {
            let (namespace, address) = namespaces[index % namespaces.len()].clone();
            let (shared, servers, report) = (Arc::clone(&backend.shared), servers.clone(), report.clone());
            let body = move || {
                let listeners = namespace.enter().and_then(|()| Listeners::open(address));
                match listeners {
                    Ok(listeners) => {
                        let _: Result<(), _> = report.send(Ok(()));
                        drop(report);
                        Worker::new(&shared, index, servers).run(&listeners);
                    }
                    Err(error) => drop(report.send(Err(error))),
                }
            };
            let thread = std::thread::Builder::new().name(format!("backend-{index}")).spawn(body);
            backend.threads.push(thread.context("start a backend thread")?);
        }
        drop(report);
        for _ in 0..count {
            reports
                .recv()
                .map_err(|_| anyhow!("a backend thread ended early"))?
                .context("start the backend")?;
        }
        Ok(backend)
    }

    /// The counts of all threads.
    pub(crate) fn counts(&self) -> Counts {
        tally::sum(&self.shared.tallies)
    }

    /// The faults since the last call.
    pub(crate) fn take_faults(&self) -> Faults {
        std::mem::take(&mut *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has printed its message on stderr.
            let _: Result<(), _> = thread.join();
        }
    }
}

/// The service of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Plain,
    Tls,
    Web,
    WebTls,
}

struct Listeners(Vec<(Service, OwnedFd)>);

impl Listeners {
    fn open(address: Ipv4Addr) -> anyhow::Result<Self> {
        let open = |port| {
            let address = SocketAddr::from((address, port));
            socket::listen(&address).with_context(|| format!("listen on {address}"))
        };
        let services = [
            (Service::Plain, PLAIN_PORT),
            (Service::Tls, TLS_PORT),
            (Service::Web, WEB_PORT),
            (Service::WebTls, WEB_TLS_PORT),
        ];
        services
            .into_iter()
            .map(|(service, port)| Ok((service, open(port)?)))
            .collect::<anyhow::Result<_>>()
            .map(Self)
    }
}

enum State {
    Hello(Vec<u8>),
    Ack { bytes: [u8; ACK_BYTES], sent: usize, order: Order },
    Wait,
    Ask { order: Order, sequence: u64, receiver: MessageReceiver },
    Answer { order: Order, sequence: u64, sender: MessageSender },
    Bulk(Box<Bulk>),
    Tls(Box<Acceptor>),
    Web(Box<Web>),
    Listener(usize),
}

struct Worker<'a> {
    shared: &'a Shared,
    tally: &'a Tally,
    servers: Servers,
    scratch: Scratch,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, index: usize, servers: Servers) -> Self {
        Self { shared, tally: &shared.tallies[index], servers, scratch: Scratch::new() }
    }

    fn fault(&self, fault: Fault) {
        self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner).add(fault);
    }

    fn run(mut self, listeners: &Listeners) {
        if let Err(errno) = self.serve(listeners) {
            self.fault(Fault::Io(errno));
        }
    }

    fn serve(&mut self, listeners: &Listeners) -> Result<(), rustix::io::Errno> {
        let mut reactor = Reactor::new()?;
        for (index, (_, listener)) in listeners.0.iter().enumerate() {
            reactor.insert(rustix::io::dup(listener)?, State::Listener(index))?;
        }
        let mut batch = Vec::new();
        while !self.shared.stop.load(Relaxed) {
            reactor.next_batch(POLL, &mut batch)?;
            for index in batch.drain(..) {
                let Some((socket, state)) = reactor.get_mut(index) else { continue };
                if let State::Listener(index) = *state {
                    let (service, listener) = &listeners.0[index];
                    self.accept_all(&mut reactor, listener.as_fd(), *service)?;
                    continue;
                }
                match self.drive(socket, state) {
                    Ok(Step::Wait | Step::Ready) => {}
                    Ok(Step::Again) => reactor.queue(index),
                    Ok(Step::Done) => reactor.remove(index),
                    Err(fault) => {
                        self.fault(fault);
                        reactor.remove(index);
                    }
                }
            }
        }
        Ok(())
    }

    fn accept_all(
        &self,
        reactor: &mut Reactor<State>,
        listener: BorrowedFd<'_>,
        service: Service,
    ) -> Result<(), rustix::io::Errno> {
        while let Some(socket) = socket::accept(listener)? {
            self.tally.connection();
            match self.begin(service) {
                Ok(state) => drop(reactor.insert(socket, state)?),
                Err(fault) => self.fault(fault),
            }
        }
        Ok(())
    }

    fn begin(&self, service: Service) -> Result<State, Fault> {
        Ok(match service {
            Service::Plain => State::Hello(Vec::new()),
            Service::Tls => State::Tls(Box::new(Acceptor::new(&self.servers.tls)?)),
            Service::Web => State::Web(Box::new(Web::clear())),
            Service::WebTls => {
                let config = self.servers.web.as_ref().ok_or(Fault::Tls("no certificates"))?;
                State::Web(Box::new(Web::encrypted(config)?))
            }
        })
    }

    fn drive(&mut self, socket: BorrowedFd<'_>, state: &mut State) -> Result<Step, Fault> {
        loop {
            match state {
                State::Hello(bytes) => match read_hello(socket, bytes, &mut self.scratch.receive)? {
                    Hello::Partial => return Ok(Step::Wait),
                    Hello::Unused => return Ok(Step::Done),
                    Hello::Complete(order) => {
                        // Counted before the client can receive it, so that the client's count is never higher.
                        self.tally.hello();
                        *state = State::Ack { bytes: Ack { nonce: order.nonce }.encode(), sent: 0, order };
                    }
                },
                State::Ack { bytes, sent, order } => {
                    *sent += socket::send(socket, &bytes[*sent..])?;
                    if *sent < ACK_BYTES {
                        return Ok(Step::Wait);
                    }
                    *state = serve_order(*order);
                }
                State::Wait => {
                    return match socket::receive(socket, &mut self.scratch.receive[..1])? {
                        Received::Nothing => Ok(Step::Wait),
                        Received::End => Ok(Step::Done),
                        Received::Bytes(_) => Err(Fault::Protocol("bytes that nobody sent")),
                    };
                }
                State::Ask { order, sequence, receiver } => {
                    match receiver.receive(socket, &mut self.scratch)? {
                        Arrival::Partial => return Ok(Step::Wait),
                        Arrival::End => return Ok(Step::Done),
                        Arrival::Complete => {
                            self.tally.message();
                            let (order, sequence) = (*order, *sequence);
                            let sender = MessageSender::new(Message { size: order.size, sequence });
                            *state = State::Answer { order, sequence, sender };
                        }
                    }
                }
                State::Answer { order, sequence, sender } => {
                    if !sender.send(socket, &mut self.scratch)? {
                        return Ok(Step::Wait);
                    }
                    *state = ask(*order, *sequence + 1);
                    // The next message comes after the answer, with an edge of its own.
                    return Ok(Step::Wait);
                }
                State::Bulk(bulk) => match bulk.drive(socket, false, &mut self.scratch, self.tally)? {
                    Step::Done => *state = State::Wait,
                    step => return Ok(step),
                },
                State::Tls(acceptor) => return acceptor.drive(socket, self.tally),
                State::Web(web) => return web.drive(socket, &mut self.scratch, self.tally),
                State::Listener(_) => return Ok(Step::Wait),
            }
        }
    }
}

/// The state after the answer to the hello.
fn serve_order(order: Order) -> State {
    match order.task {
        Task::Wait => State::Wait,
        Task::Echo => ask(order, 0),
        Task::Upload | Task::Download | Task::Both => {
            State::Bulk(Box::new(Bulk::new(End::Backend, order.task, order.verify)))
        }
    }
}

fn ask(order: Order, sequence: u64) -> State {
    let receiver = MessageReceiver::new(Message { size: order.size, sequence }, order.verify);
    State::Ask { order, sequence, receiver }
}

enum Hello {
    Partial,
    Complete(Order),
    /// Closed before the first byte: a balancer may check whether the backend is available.
    Unused,
}

/// Reads a hello. Clients send no more before they have the answer.
fn read_hello(socket: BorrowedFd<'_>, bytes: &mut Vec<u8>, scratch: &mut [u8]) -> Result<Hello, Fault> {
    loop {
        match socket::receive(socket, &mut scratch[..hello::HELLO_BYTES_MAX])? {
            Received::Bytes(count) => bytes.extend_from_slice(&scratch[..count]),
            Received::Nothing => return Ok(Hello::Partial),
            Received::End if bytes.is_empty() => return Ok(Hello::Unused),
            Received::End => return Err(Fault::Closed("the rest of a hello was due")),
        }
        match hello::read_order(bytes)? {
            None => {}
            Some((order, length)) if length == bytes.len() => return Ok(Hello::Complete(order)),
            Some(_) => return Err(Fault::Protocol("bytes after a hello")),
        }
    }
}
