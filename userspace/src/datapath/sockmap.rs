//! The sockmap datapath: the kernel redirects bytes, and userspace copies the bytes that it passes, and ends the
//! connection.
//!
//! Both sockets go into maps. From then on the verdict program (`ebpf/src/sockmap/verdict.rs`,
//! `snisplice_common::sockmap::direction`) sees each packet that either receives. It redirects the packet to the other
//! socket, or passes it if the other has no room. `sockmap/connection.rs` is userspace's part. The relay serves
//! connections that cannot be enrolled.
//!
//! The order of the enrolment matters. The sockets become targets before anything can be redirected to them. The state
//! exists before the program reads it. When the program is armed, the bytes that userspace has read are written. The
//! bytes that it has not read (the hello, for a connection that is enrolled from the first byte) are whole packets in
//! the queue, and take the same way as all that follow. The program sees packets, not the rest of one. A socket leaves
//! the maps only by being closed, since the kernel may lose bytes that arrive during a deletion.

use std::{
    cell::RefCell,
    future::ready,
    io,
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use snisplice_common::sockmap::{direction::Flow, shortcut::Shortcut};
use snisplice_config::model::Offload;
use tokio::{io::Interest, net::TcpStream, task::AbortHandle};

use self::{
    connection::{Connection, Leg},
    maps::Maps,
    watch::Watch,
};
use super::{
    relay::{self, Relay, pump::Pump},
    seam::{Datapath, End, Forward, HelloMode, Pair, Patience},
};
use crate::{
    account::Account,
    bpf::{
        sockmap::{Programs, stats::Ineligible},
        wakeup::{Peer, Token, Wakeups},
    },
    metrics::labels::{Carrier, Direction},
    net::sockopt,
};

mod budget;
mod connection;
mod fallback;
mod hold;
mod maps;
mod watch;

/// Size of both sockets' send buffers; the kernel doubles it. It is large, since redirection stops before the buffer is
/// full.
///
/// A direction whose receiver does not read holds twice this, [`Capacity::in_flight_bytes`] and twice
/// [`RECEIVE_BUFFER`]: 15 MiB, however fast the sender is.
///
/// [`Capacity::in_flight_bytes`]: snisplice_config::model::Capacity::in_flight_bytes
pub const SEND_BUFFER: u32 = 4 * 1024 * 1024;

/// Size of both sockets' receive buffers; the kernel doubles it.
///
/// The kernel's own tuning would let them grow to `net.ipv4.tcp_rmem[2]`, 32 MiB on recent kernels, since it takes each
/// redirected byte for a read one. A much smaller buffer fails: a sender on the same host can fill the window while
/// userspace holds the socket's lock. The kernel then closes the window, and nothing reopens it, since the bytes were
/// redirected and none are left to read. A sender cannot hold more than `net.ipv4.tcp_wmem[2]`, 4 MiB by default.
pub const RECEIVE_BUFFER: u32 = 3 * 1024 * 1024;

/// Settings of every connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The time without a byte in either direction after which a connection is closed.
    pub idle: Duration,
    /// The limit after one side has sent FIN.
    pub half_closed: Duration,
    /// `SO_SNDBUF` of both sockets, [`SEND_BUFFER`] except in tests.
    pub send_buffer: u32,
    /// Every direction changes between the kernel and userspace after this time, repeatedly. For tests only: `None`
    /// leaves the decision to the kernel.
    pub hold: Option<Duration>,
}

impl Settings {
    /// The settings of normal operation.
    #[must_use]
    pub fn new(patience: impl Into<Patience>) -> Self {
        let Patience { idle, half_closed } = patience.into();
        Self { idle, half_closed, send_buffer: SEND_BUFFER, hold: None }
    }
}

/// One worker's instance.
#[derive(Debug)]
pub struct Sockmap {
    kernel: Arc<Programs>,
    /// The number of this worker for the kernel's events.
    worker: u16,
    wakeups: Arc<Wakeups>,
    watch: Rc<Watch>,
    watching: AbortHandle,
    maps: RefCell<Maps>,
    relay: Relay,
    settings: Settings,
}

impl Sockmap {
    /// Call it on the worker's thread, inside its runtime.
    pub fn new(kernel: Arc<Programs>, relay: Relay, settings: Settings) -> io::Result<Self> {
        let maps = RefCell::new(Maps::of(&kernel)?);
        let wakeups = Arc::new(Wakeups::default());
        let watch = Watch::new()?;
        let watching = tokio::spawn(watch.events(wakeups.clone())?).abort_handle();
        let worker = kernel.register(wakeups.clone());
        Ok(Self { kernel, worker, wakeups, watch: Rc::new(watch), watching, maps, relay, settings })
    }

    /// The part of [`Datapath::announce`] for the short cut. False if the short cut is off.
    pub fn mark(&self, upstream: impl AsFd) -> io::Result<bool> {
        self.maps.borrow_mut().announce(rustix::net::sockopt::socket_cookie(upstream)?)
    }

    async fn carry(
        &self,
        enrolled: impl Future<Output = Result<Box<Connection<'_>>, Unenrolled>>,
        account: &Account,
    ) -> End {
        match enrolled.await {
            Ok(connection) => {
                account.set_carrier(Carrier::Sockmap);
                connection.run(&mut Default::default()).await
            }
            Err(Unenrolled::Refused(error, pair)) => {
                self.fall_back(&error);
                self.relay.forward(pair, account).await
            }
            Err(Unenrolled::Ended(end)) => end,
        }
    }

    /// Offloads the pair to the kernel, together with the received bytes that userspace has not read.
    async fn enrol<'a>(
        &'a self,
        mut pair: Pair,
        account: &'a Account,
    ) -> Result<Box<Connection<'a>>, Unenrolled> {
        pair.watch();
        let cookies = match self.admit(&pair.client, &pair.backend) {
            Ok(cookies) => cookies,
            Err(error) => return Err(Unenrolled::Refused(error, pair)),
        };
        if let Err(error) = deliver(&pair.backend, &pair.hello).await {
            return Err(Unenrolled::Ended(End::broken_by_backend(error)));
        }
        account.moved(Direction::Up, pair.hello.len() as u64);
        pair.hello = Vec::new();
        let connection = self
            .take_sockets(pair.client, pair.backend, cookies, None, pair.same_host, account)
            .map_err(Unenrolled::Ended)?;
        // A direction that cannot be armed is copied in userspace. The other one does not depend on it.
        for direction in [Direction::Up, Direction::Down] {
            self.arm(&connection, direction);
        }
        Ok(connection)
    }

    /// Continues a copied connection: each direction is copied until `rule` says that the kernel pays.
    pub(super) fn adopt<'a>(
        &'a self,
        mut copied: Box<relay::Connection>,
        rule: Offload,
        account: &'a Account,
    ) -> Forward<'a> {
        match self.admit(&copied.client, &copied.backend) {
            Ok(cookies) => match self.resume(*copied, cookies, rule, account) {
                Ok((connection, mut pumps)) => Box::pin(async move { connection.run(&mut pumps).await }),
                Err(end) => Box::pin(ready(end)),
            },
            Err(error) => {
                self.fall_back(&error);
                Box::pin(async move { copied.carry_to_end(self.relay.options(), account).await })
            }
        }
    }

    fn resume<'a>(
        &'a self,
        copied: relay::Connection,
        cookies: Cookies,
        rule: Offload,
        account: &'a Account,
    ) -> Result<(Box<Connection<'a>>, [Pump; 2]), End> {
        let relay::Connection { client, backend, upward, downward, progress, same_host, .. } = copied;
        let connection = self.take_sockets(client, backend, cookies, Some(rule), same_host, account)?;
        for (direction, progress) in [Direction::Up, Direction::Down].into_iter().zip(progress) {
            connection.way(direction).progress.set(progress.get());
        }
        account.set_carrier(Carrier::Sockmap);
        Ok((connection, [upward, downward]))
    }

    /// Prepares the sockets and makes them targets. The client comes first: after its failure nothing else is done.
    fn admit(&self, client: &TcpStream, backend: &TcpStream) -> io::Result<Cookies> {
        let cookies = Cookies {
            client: rustix::net::sockopt::socket_cookie(client)?,
            backend: rustix::net::sockopt::socket_cookie(backend)?,
        };
        for stream in [client, backend] {
            prepare(stream, self.settings.send_buffer)?;
        }
        let mut maps = self.maps.borrow_mut();
        maps.add_target(cookies.client, client)?;
        maps.add_target(cookies.backend, backend)?;
        Ok(cookies)
    }

    /// Removes two sockets that are targets from the runtime.
    ///
    /// In a box, because a future that moves from one phase to the next reserves memory for both.
    fn take_sockets<'a>(
        &'a self,
        client: TcpStream,
        backend: TcpStream,
        cookies: Cookies,
        rule: Option<Offload>,
        same_host: bool,
        account: &'a Account,
    ) -> Result<Box<Connection<'a>>, End> {
        self.kernel.stats().enrol();
        let slot = Slot { sockmap: self, number: self.wakeups.insert() };
        let client = Leg::new(Peer::Client, client, cookies.client).map_err(End::broken_by_client)?;
        let backend = Leg::new(Peer::Backend, backend, cookies.backend).map_err(End::broken_by_backend)?;
        let connection = Box::new(Connection::new(client, backend, slot, rule, same_host, account));
        connection.watch().map_err(End::Failed)?;
        Ok(connection)
    }

    /// Makes the kernel redirect a direction without bytes in flight in userspace. Returns false if the kernel does
    /// not.
    fn arm(&self, connection: &Connection<'_>, direction: Direction) -> bool {
        let (from, to) = connection.ends(direction);
        if sockopt::is_at_urgent_mark(&from.socket).unwrap_or(true) {
            // The read has stopped within a packet. The program would process the part that was already read.
            return false;
        }
        let way = connection.way(direction);
        let token = Token { worker: self.worker, slot: connection.slot(), peer: from.peer };
        let armed = to.settle().and_then(|()| {
            way.begin();
            let mut maps = self.maps.borrow_mut();
            maps.add_flow(from.cookie, Flow::new(to.cookie, token.pack()))?;
            way.state.set(true);
            if direction == Direction::Down && connection.same_host {
                // If this fails, the connection continues as usual. Every copied byte is in the account, and in the
                // client's socket.
                let (_, before) = connection.entries.account.bytes();
                match maps.add_shortcut(from.cookie, Shortcut::new(to.cookie, before)) {
                    Ok(()) => way.shortcut.set(true),
                    Err(error) => tracing::debug!(%error, "a connection does not use the short cut"),
                }
            }
            maps.arm(from.cookie, &from.socket)
        });
        match armed {
            Ok(()) => {
                way.armed.set(true);
                // The verdict on earlier packets: the kernel calls the program only when another packet arrives.
                let _ = sockopt::set_receive_low_water(&from.socket, 1);
                true
            }
            Err(error) => {
                tracing::debug!(%error, ?direction, "a direction is not redirected: it is copied");
                way.refused.set(true);
                self.kernel.stats().copy_direction();
                false
            }
        }
    }

    fn fall_back(&self, error: &io::Error) {
        let why = Ineligible::of(error);
        tracing::debug!(reason = why.label(), "a connection is not enrolled in the sockmap: it is relayed");
        self.kernel.stats().fall_back(why);
    }
}

impl Datapath for Sockmap {
    fn hello(&self) -> HelloMode {
        HelloMode::Peek
    }

    fn announce(&self, upstream: BorrowedFd<'_>) -> bool {
        self.mark(upstream).unwrap_or_else(|error| {
            tracing::debug!(%error, "a connection to this host was not announced");
            false
        })
    }

    fn forward<'a>(&'a self, pair: Pair, account: &'a Account) -> Forward<'a> {
        // The enrolment has a box of its own, which is freed at its end.
        Box::pin(self.carry(Box::pin(self.enrol(pair, account)), account))
    }

    fn moved(&self, account: &Account) -> (u64, u64) {
        let (up, down) = account.bytes();
        if account.carrier() != Some(Carrier::Sockmap) {
            return (up, down);
        }
        // Written by userspace, the program, or a backend on this host.
        let sent = |number| sockopt::by_number(number, |socket| sockopt::sent(socket).ok()).flatten();
        let [to_client, to_backend] = account.sockets().map(sent);
        let to_backend = to_backend.map(|sent| sent.saturating_sub(1));
        (to_backend.map_or(up, |sent| sent.max(up)), to_client.map_or(down, |sent| sent.max(down)))
    }
}

impl Drop for Sockmap {
    fn drop(&mut self) {
        self.kernel.unregister(self.worker);
        self.watching.abort();
    }
}

#[derive(Clone, Copy)]
struct Cookies {
    client: u64,
    backend: u64,
}

/// The reason for which a pair is not offloaded.
enum Unenrolled {
    /// The connection is unchanged, and the relay may serve it.
    Refused(io::Error, Pair),
    /// One of its sockets has failed.
    Ended(End),
}

/// A connection's slot among the worker's wakeups.
struct Slot<'a> {
    sockmap: &'a Sockmap,
    number: usize,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.sockmap.wakeups.remove(self.number);
    }
}

/// Options of both sockets. Without the privilege for large buffers the kernel's own tuning applies. The verdict
/// program reads the real sizes, and falls back to userspace sooner.
fn prepare(stream: &TcpStream, send_buffer: u32) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    // The host's default may be so low that the kernel could not write the redirected bytes.
    socket.set_tcp_notsent_lowat(i32::MAX.unsigned_abs())?;
    let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(stream.as_fd(), send_buffer as usize);
    if sockopt::force_receive_buffer(stream, RECEIVE_BUFFER).is_ok() {
        // The clamp was computed from the former buffer. It is half of the new one, since bytes have overhead.
        sockopt::set_window_clamp(stream, RECEIVE_BUFFER)?;
    }
    Ok(())
}

/// Writes the bytes that were read already.
async fn deliver(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_io(Interest::WRITABLE, || {
            Ok(rustix::net::send(to, bytes, rustix::net::SendFlags::NOSIGNAL)?)
        }) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
