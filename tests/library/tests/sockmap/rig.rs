//! A worker with the sockmap datapath, and peers on loopback on both sides of it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData, SockHash};
use snisplice::testing::{
    Account, Carrier, Datapath as _, Pair, Relay,
    sockmap::{ProgramSettings, Programs, SEND_BUFFER, Settings, Sockmap, cgroup},
};
use snisplice_common::{
    Cookie,
    sockmap::direction::{Control, Flow},
};
use tokio::{sync::mpsc as tokio_mpsc, task::LocalSet};

/// The time limit of a wait for an expected event, so that a test that hangs fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The greatest buffers of the sender and receiver of a test, so that the balancer's share is measurable.
pub(crate) const OWN_BUFFER: usize = 64 * 1024;

/// Waits for a condition that should hold soon.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "still waiting: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A worker that forwards pairs, with programs of its own.
pub(crate) struct Rig {
    pub(crate) kernel: Arc<Programs>,
    orders: tokio_mpsc::UnboundedSender<Order>,
    listener: TcpListener,
}

/// The end of a connection.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) reason: &'static str,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) carrier: Option<Carrier>,
    /// The size of the connection's future on the heap.
    pub(crate) future_bytes: usize,
}

/// The outer ends of a forwarded connection.
pub(crate) struct Link {
    pub(crate) client: TcpStream,
    pub(crate) backend: TcpStream,
    pub(crate) outcome: mpsc::Receiver<Outcome>,
    /// A drop of this value drops the connection's future.
    pub(crate) leash: tokio::sync::oneshot::Sender<()>,
}

struct Order {
    client: TcpStream,
    backend: TcpStream,
    same_host: bool,
    leash: tokio::sync::oneshot::Receiver<()>,
    outcome: mpsc::Sender<Outcome>,
}

/// The options of a rig.
pub(crate) struct Options {
    pub(crate) connections: usize,
    pub(crate) in_flight_bytes: u32,
    pub(crate) total_in_flight_bytes: u64,
    pub(crate) send_buffer: u32,
    pub(crate) idle: Duration,
    pub(crate) hold: Option<Duration>,
    pub(crate) same_host: bool,
    pub(crate) v6: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 4096,
            in_flight_bytes: 1024 * 1024,
            total_in_flight_bytes: 256 * 1024 * 1024,
            send_buffer: SEND_BUFFER,
            idle: Duration::from_secs(3600),
            hold: None,
            same_host: false,
            v6: false,
        }
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(&Options::default())
    }

    pub(crate) fn with(options: &Options) -> Self {
        let settings = ProgramSettings {
            connections: options.connections,
            in_flight_bytes: options.in_flight_bytes,
            total_in_flight_bytes: options.total_in_flight_bytes,
        };
        let kernel = if options.same_host {
            let cgroup = cgroup().expect("cgroup2 is mounted");
            Programs::load_same_host(&settings, &cgroup)
        } else {
            Programs::load(&settings)
        };
        let kernel = kernel.expect("the kernel takes the program");
        let settings =
            Settings { send_buffer: options.send_buffer, hold: options.hold, ..Settings::new(options.idle) };
        let (orders, received) = tokio_mpsc::unbounded_channel();
        let worker = kernel.clone();
        thread::spawn(move || work(worker, settings, received));
        let loopback: SocketAddr =
            if options.v6 { (Ipv6Addr::LOCALHOST, 0).into() } else { (Ipv4Addr::LOCALHOST, 0).into() };
        let listener = TcpListener::bind(loopback).expect("loopback has a free port");
        Self { kernel, orders, listener }
    }

    /// Two connected sockets: the outer end and the balancer's.
    fn pair(&self, sizes: Option<usize>) -> (TcpStream, TcpStream) {
        self.pair_after(sizes, |_| {})
    }

    /// Two connected sockets. `before` runs on the outer end before it is connected.
    pub(crate) fn pair_after(
        &self,
        sizes: Option<usize>,
        before: impl FnOnce(&socket2::Socket),
    ) -> (TcpStream, TcpStream) {
        let address = self.listener.local_addr().expect("a bound listener has an address");
        let domain = socket2::Domain::for_address(address);
        let outer = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
        if let Some(bytes) = sizes {
            outer.set_send_buffer_size(bytes).expect("SO_SNDBUF");
            outer.set_recv_buffer_size(bytes).expect("SO_RCVBUF");
        }
        before(&outer);
        outer.connect(&address.into()).expect("connects to loopback");
        let outer = TcpStream::from(outer);
        outer.set_nodelay(true).expect("TCP_NODELAY");
        outer.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
        outer.set_write_timeout(Some(PATIENCE)).expect("SO_SNDTIMEO");
        let local = outer.local_addr().expect("a connected socket has an address");
        loop {
            let (inner, peer) = self.listener.accept().expect("the connection is complete");
            if peer == local {
                return (outer, inner);
            }
        }
    }

    /// A forwarded connection.
    pub(crate) fn link(&self) -> Link {
        self.link_after(|_, _| {})
    }

    /// A forwarded connection whose peers have minimal buffers.
    pub(crate) fn tight_link(&self) -> Link {
        self.start(self.pair(Some(OWN_BUFFER)), self.pair(Some(OWN_BUFFER)), false)
    }

    /// A forwarded connection. `before` runs on the client and the backend before the enrolment.
    pub(crate) fn link_after(&self, before: impl FnOnce(&TcpStream, &TcpStream)) -> Link {
        let (client, backend) = (self.pair(None), self.pair(None));
        before(&client.0, &backend.0);
        self.start(client, backend, false)
    }

    /// Starts a connection from pairs of the client and of the backend: the outer end, and the balancer's.
    pub(crate) fn start(
        &self,
        client: (TcpStream, TcpStream),
        backend: (TcpStream, TcpStream),
        same_host: bool,
    ) -> Link {
        let (sender, outcome) = mpsc::channel();
        let (leash, held) = tokio::sync::oneshot::channel();
        let order = Order { client: client.1, backend: backend.1, same_host, leash: held, outcome: sender };
        assert!(self.orders.send(order).is_ok(), "the worker is gone");
        Link { client: client.0, backend: backend.0, outcome, leash }
    }

    /// The number of entries in each of the four maps.
    pub(crate) fn entries(&self) -> [usize; 4] {
        let data = |fd: io::Result<_>| MapData::from_fd(fd.expect("a descriptor")).expect("a map");
        let sockets = |fd| {
            let map = SockHash::<_, Cookie>::try_from(Map::SockHash(data(fd))).expect("a sockhash");
            map.keys().count()
        };
        let flows =
            HashMap::<_, Cookie, Flow>::try_from(Map::HashMap(data(self.kernel.flows()))).expect("a hash");
        let control = HashMap::<_, Cookie, Control>::try_from(Map::HashMap(data(self.kernel.control())))
            .expect("a hash");
        [
            sockets(self.kernel.targets()),
            sockets(self.kernel.verdict()),
            flows.keys().count(),
            control.keys().count(),
        ]
    }
}

impl Link {
    /// Waits for the end.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome.recv_timeout(PATIENCE).expect("the connection ends")
    }
}

fn work(kernel: Arc<Programs>, settings: Settings, mut orders: tokio_mpsc::UnboundedReceiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async move {
        let relay = Relay::new(settings.idle);
        let sockmap = Sockmap::new(kernel, relay, settings).expect("a worker's part");
        let sockmap = std::rc::Rc::new(sockmap);
        while let Some(order) = orders.recv().await {
            let sockmap = sockmap.clone();
            tokio::task::spawn_local(async move {
                let account = Account::default();
                let stream = |stream: TcpStream| {
                    stream.set_nonblocking(true).expect("O_NONBLOCK");
                    tokio::net::TcpStream::from_std(stream).expect("registers")
                };
                let pair = Pair {
                    client: stream(order.client),
                    backend: stream(order.backend),
                    hello: Vec::new(),
                    same_host: order.same_host,
                    keepalive: None,
                };
                let carry = sockmap.forward(pair, &account);
                let future_bytes = size_of_val(&*carry);
                let end = tokio::select! {
                    end = carry => end.reason().label(),
                    _ = order.leash => "dropped",
                };
                let (up, down) = account.bytes();
                let _ = order.outcome.send(Outcome {
                    reason: end,
                    up,
                    down,
                    carrier: account.carrier(),
                    future_bytes,
                });
            });
        }
    });
}
