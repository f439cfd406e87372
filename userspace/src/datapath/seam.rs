//! The seam between a session and the datapath: the complete interface of a datapath for a session.

use std::{future::Future, io, os::fd::BorrowedFd, pin::Pin, rc::Rc, sync::Arc, time::Duration};

use snisplice_config::model::{PeerTimeouts, scope::ScopedTimeouts};
use tokio::net::TcpStream;

use crate::{
    account::Account,
    bpf::{packet, sockmap},
    metrics::labels::CloseReason,
    net::keepalive::Keepalive,
};

/// Moves bytes between an accepted client and a connected backend until both directions have ended.
///
/// There is one instance for each worker thread, so an implementation may keep buffers of its worker and is not `Send`.
/// It hands a connection that it cannot serve to the next simpler implementation inside, and counts that. The caller
/// never knows.
pub trait Datapath {
    /// The way in which the session obtains the hello, so that this datapath can start.
    fn hello(&self) -> HelloMode;

    /// Prepares for a backend that may be on this host and has the short cut configured; `upstream` is about to be
    /// connected to it. The result goes into [`Pair::same_host`].
    fn announce(&self, _upstream: BorrowedFd<'_>) -> bool {
        false
    }

    /// The largest segment (without options) that a connection for `client` should announce to its backend, so that the
    /// backend's segments can be forwarded unchanged.
    fn largest_segment(&self, _client: BorrowedFd<'_>) -> Option<u32> {
        None
    }

    /// Forwards the pair to its end. Both sockets are closed (or reset) when the future resolves. Dropping the future
    /// closes both at once.
    fn forward<'a>(&'a self, pair: Pair, account: &'a Account) -> Forward<'a>;

    /// Bytes up and down of a connection so far: the account's, and those that the kernel has moved since the last
    /// update.
    fn moved(&self, account: &Account) -> (u64, u64) {
        account.bytes()
    }

    /// Uses this kernel support from now on, also for open connections. Without effect if the capabilities of the
    /// kernel were known when the datapath was built. Call it on the worker's thread, inside its runtime.
    fn gain(&self, _found: &InKernel) -> io::Result<()> {
        Ok(())
    }

    /// Moves no further connection into the kernel.
    fn withdraw(&self) {}
}

/// The loaded programs of this process's datapaths.
#[derive(Debug, Clone, Default)]
pub struct InKernel {
    /// The programs of the packet datapath.
    pub packet: Option<Arc<packet::Programs>>,
    /// The programs of the sockmap datapath.
    pub sockmap: Option<Arc<sockmap::Programs>>,
}

impl InKernel {
    /// Whether no program is loaded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packet.is_none() && self.sockmap.is_none()
    }
}

/// The future of [`Datapath::forward`]. Boxed once per connection, next to a connect(2).
pub type Forward<'a> = Pin<Box<dyn Future<Output = End> + 'a>>;

/// The treatment of the hello's bytes while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HelloMode {
    /// The hello is read with `MSG_PEEK`. The bytes stay in the client's receive queue, and [`Pair::hello`] is empty.
    Peek,
    /// The bytes are read, and passed on in [`Pair::hello`].
    Read,
}

/// Two established connections to connect with each other.
#[derive(Debug)]
pub struct Pair {
    /// The accepted connection.
    pub client: TcpStream,
    /// The connection to the chosen endpoint.
    pub backend: TcpStream,
    /// Bytes already read from the client that the backend must receive first, verbatim.
    pub hello: Vec<u8>,
    /// Whether the backend's side was announced ([`Datapath::announce`]).
    pub same_host: bool,
    /// Options that the backend's socket gets later, which saves short connections the system calls. The client's
    /// socket inherits them from the listening one.
    pub keepalive: Option<Rc<Keepalive>>,
}

impl Pair {
    /// Sets the keepalive options of the backend's socket.
    pub fn watch(&mut self) {
        if let Some(keepalive) = self.keepalive.take() {
            // On failure, an unreachable peer is detected later.
            let _ = keepalive.apply(&self.backend);
        }
    }
}

/// The limits of a connection's silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// While no side has sent FIN.
    pub idle: Duration,
    /// After one of them has sent FIN.
    pub half_closed: Duration,
}

impl Patience {
    /// As configured.
    #[must_use]
    pub fn of(timeouts: &PeerTimeouts) -> Self {
        Self { idle: timeouts.idle, half_closed: timeouts.half_closed }
    }

    /// The limits of one connection: its own, or else these.
    #[must_use]
    pub fn of_connection(self, account: &Account) -> Self {
        account.limits().map_or(self, |own| self.or_own(own))
    }

    /// The limits of a connection with its own, or else these.
    #[must_use]
    pub fn or_own(self, own: &ScopedTimeouts) -> Self {
        Self { idle: own.idle.unwrap_or(self.idle), half_closed: own.half_closed.unwrap_or(self.half_closed) }
    }

    /// The value that must change for a connection not to be idle: it changes with `up` and `down`, the bytes so far.
    /// Until the backend has sent a byte, the client's bytes do not count.
    #[must_use]
    pub fn progress(up: u64, down: u64) -> (u64, u64) {
        if down == 0 { (0, 0) } else { (up, down) }
    }
}

impl From<Duration> for Patience {
    /// The same limit in both cases.
    fn from(idle: Duration) -> Self {
        Self { idle, half_closed: idle }
    }
}

/// The way in which a connection ended.
#[derive(Debug)]
pub enum End {
    /// Both sides sent FIN and every byte was delivered.
    Finished,
    /// The client sent RST (passed on to the backend).
    ClientReset,
    /// The backend sent RST (passed on to the client).
    BackendReset,
    /// The client answered neither probes nor bytes any more (the backend was reset).
    ClientLost,
    /// The backend answered neither probes nor bytes any more (the client was reset).
    BackendLost,
    /// No byte in either direction for the idle timeout.
    Idle,
    /// Its packets no longer arrived, and it could not move back to sockets. Both peers were reset.
    Stalled,
    /// One side has sent FIN, and the other one sent nothing for the timeout of half-closed connections.
    HalfClosed,
    /// Another process continues it.
    HandedOver,
    /// The socket of one side failed in another way.
    Failed(io::Error),
}

impl End {
    /// The client's socket failed with `error`.
    #[must_use]
    pub fn broken_by_client(error: io::Error) -> Self {
        match failure(&error) {
            Failure::Reset => Self::ClientReset,
            Failure::Lost => Self::ClientLost,
            Failure::Other => Self::Failed(error),
        }
    }

    /// The backend's socket failed with `error`.
    #[must_use]
    pub fn broken_by_backend(error: io::Error) -> Self {
        match failure(&error) {
            Failure::Reset => Self::BackendReset,
            Failure::Lost => Self::BackendLost,
            Failure::Other => Self::Failed(error),
        }
    }
}

impl End {
    /// The reason for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        self.into()
    }
}

impl From<&End> for CloseReason {
    fn from(end: &End) -> Self {
        match end {
            End::Finished => Self::Finished,
            End::ClientReset => Self::ClientReset,
            End::BackendReset => Self::BackendReset,
            End::ClientLost => Self::ClientLost,
            End::BackendLost => Self::BackendLost,
            End::Idle => Self::IdleTimeout,
            End::Stalled => Self::Stalled,
            End::HalfClosed => Self::HalfClosedTimeout,
            End::HandedOver => Self::HandedOver,
            End::Failed(_) => Self::IoError,
        }
    }
}

/// The failure of a socket's peer.
enum Failure {
    Reset,
    Lost,
    Other,
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        // RST answers a read with `ECONNRESET` and a write after it with `EPIPE`.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
        // A socket whose peer is unreachable fails with the last ICMP error, if it received any.
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Failure::Lost
        }
        _ => Failure::Other,
    }
}
