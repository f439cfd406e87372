//! Connects to an endpoint of a backend: the one whose turn it is, or one of its siblings.
//!
//! One attempt is the rule. Where it fails, or takes longer than its head start, others follow (`race.rs`).

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream as StdStream},
    os::fd::AsFd as _,
    pin::{Pin, pin},
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with},
};
use socket2::SockRef;
use thiserror::Error;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use self::race::{Attempt, Race};
use super::service::Service;
use crate::{
    datapath::seam::Datapath,
    log::log_limit,
    metrics::labels::{CloseReason, ConnectFailure},
    net::sockopt,
    upstream::{candidates::Candidates, cluster::Cluster, endpoint::Endpoint},
};

mod race;

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Upstream {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub endpoint: Arc<Endpoint>,
    /// What [`Datapath::announce`] said of it.
    pub announced: bool,
}

/// Why no endpoint could be had.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Every endpoint was tried; the last one failed like this.
    #[error("no endpoint of {backend} answered, the last one ({address}): {error}")]
    Failed {
        /// The backend's name.
        backend: String,
        /// Which address failed last.
        address: SocketAddr,
        /// How.
        error: AttemptError,
    },
    /// The backend has no endpoint with an address and a weight.
    #[error("{backend} has no endpoint that could be tried")]
    NoEndpoint {
        /// The backend's name.
        backend: String,
    },
    /// The client reset while we were connecting for it.
    #[error("the client went away")]
    ClientGone,
}

impl ConnectError {
    /// Whether the backend is the cause, and not the client or this host, which have reasons and lines of their own.
    #[must_use]
    pub fn is_of_the_backend(&self) -> bool {
        match self {
            Self::Failed { error, .. } => matches!(error, AttemptError::Io(_)),
            Self::NoEndpoint { .. } => true,
            Self::ClientGone => false,
        }
    }
}

impl From<&ConnectError> for CloseReason {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Failed { error, .. } => ConnectFailure::from(error).into(),
            ConnectError::NoEndpoint { .. } => Self::NoEndpoint,
            ConnectError::ClientGone => Self::ClientGone,
        }
    }
}

/// Why one attempt failed.
#[derive(Debug, Error)]
pub enum AttemptError {
    /// The kernel said so, or the time was over.
    #[error(transparent)]
    Io(io::Error),
    /// All local ports are in use towards this address (`EADDRNOTAVAIL` of connect(2)), from each source address.
    #[error("no local port is left for a connection to this address")]
    NoLocalPort,
    /// None of the backend's source addresses is an address of this host (`EADDRNOTAVAIL` of bind(2)).
    #[error("the source address {0} is not an address of this host")]
    NoSource(IpAddr),
    /// This host has no descriptor or no memory left for another socket ([`is_exhaustion`]).
    #[error("this host has no room for another socket: {0}")]
    Exhausted(io::Error),
    /// The address is one on which this process listens.
    #[error("the endpoint is a listener of this process")]
    SelfLoop,
}

impl From<&AttemptError> for ConnectFailure {
    fn from(error: &AttemptError) -> Self {
        match error {
            AttemptError::NoLocalPort => Self::NoLocalPort,
            AttemptError::NoSource(_) => Self::NoSourceAddress,
            AttemptError::Exhausted(_) => Self::ResourceExhausted,
            AttemptError::SelfLoop => Self::SelfLoop,
            AttemptError::Io(error) => match error.kind() {
                io::ErrorKind::TimedOut => Self::ConnectTimeout,
                io::ErrorKind::ConnectionRefused => Self::ConnectRefused,
                _ => Self::ConnectFailed,
            },
        }
    }
}

impl From<io::Error> for AttemptError {
    fn from(error: io::Error) -> Self {
        if is_exhaustion(&error) { Self::Exhausted(error) } else { Self::Io(error) }
    }
}

impl From<Errno> for AttemptError {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Whether a call failed because this process or host has used something up, and whatever the endpoint does: socket(2),
/// connect(2) and `epoll_ctl(2)`. No packet from the network leads to one of these.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC | Errno::AGAIN)
    )
}

impl AttemptError {
    /// Whether the next connection would most likely fail alike, and wait for it. A refusal costs one round trip, and ends
    /// when the server is there again; what is amiss on this host says nothing about the endpoint.
    fn is_remembered(&self) -> bool {
        let Self::Io(error) = self else { return false };
        matches!(
            error.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        )
    }

    fn timed_out() -> Self {
        Self::Io(io::ErrorKind::TimedOut.into())
    }
}

/// What an attempt needs beside its endpoint.
#[derive(Clone, Copy)]
struct Context<'a> {
    backend: &'a Cluster,
    client: &'a TcpStream,
    service: &'a Service,
}

impl Context<'_> {
    /// Counts and remembers an attempt that failed.
    fn failed(self, endpoint: &Endpoint, error: AttemptError) -> ConnectError {
        let Self { backend, service, .. } = self;
        let address = endpoint.address();
        service.metrics.connect_failed(&backend.name, ConnectFailure::from(&error));
        if error.is_remembered() {
            endpoint.failed();
        }
        match &error {
            AttemptError::NoLocalPort => log_limit!(
                warn,
                backend = %backend.name, %address,
                "no local port is left for connections to this address; give the backend more `source` addresses, or \
                 widen net.ipv4.ip_local_port_range"
            ),
            AttemptError::SelfLoop => log_limit!(
                warn,
                backend = %backend.name, %address,
                "refused: this endpoint is a listener of this process, so each connection would come back; correct the \
                 backend's endpoints, or what its name resolves to"
            ),
            AttemptError::NoSource(source) => log_limit!(
                warn,
                backend = %backend.name, %source,
                "no `source` address of this backend is an address of this host; add it to a device, or correct `source`"
            ),
            AttemptError::Exhausted(error) => log_limit!(
                warn,
                backend = %backend.name, %error,
                "this host has no room for another socket; raise the limit of open files (LimitNOFILE=, ulimit -n) or \
                 give it more memory, or lower limits.connections"
            ),
            AttemptError::Io(error) => {
                tracing::debug!(backend = %backend.name, %address, %error, "connect failed");
            }
        }
        ConnectError::Failed { backend: backend.name.to_string(), address, error }
    }
}

/// Tries the backend's endpoints until one answers, for at most `limit` in all. No byte has been sent yet, so a second
/// attempt is safe, after a failure and also beside one that takes long. A client that resets meanwhile ends the attempts.
pub async fn connect(
    backend: &Cluster,
    client: &TcpStream,
    limit: Duration,
    service: &Service,
) -> Result<Upstream, ConnectError> {
    let context = Context { backend, client, service };
    let mut candidates = backend.candidates();
    let Some(first) = candidates.next() else {
        return Box::pin(connect_once_looked_up(context, limit)).await;
    };
    let begun = Instant::now();
    let patience = if candidates.remaining() > 0 {
        service.races.set(true);
        first.head_start().min(limit)
    } else {
        limit
    };
    // Here and not on the heap, since one attempt is the rule.
    let mut attempt = First(pin!(Some(connect_to(context, first.clone()))));
    let result = tokio::select! {
        biased;
        result = &mut attempt => Some(result),
        () = reset(client) => return Err(ConnectError::ClientGone),
        () = sleep(patience) => None,
    };
    match result {
        Some(Ok(upstream)) => Ok(upstream),
        Some(Err(error)) => {
            let last = context.failed(&first, error);
            if candidates.remaining() == 0 {
                return Err(last);
            }
            Box::pin(Race::new(context, candidates, begun, limit).failed(last).run()).await
        }
        None => {
            let running = Attempt::new(first, begun, attempt);
            Box::pin(Race::new(context, candidates, begun, limit).with(running).run()).await
        }
    }
}

/// The first attempt, which is given up when this is dropped.
struct First<'p, F>(Pin<&'p mut Option<F>>);

impl<F: Future> Future for First<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        match self.0.as_mut().as_pin_mut() {
            Some(attempt) => attempt.poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for First<'_, F> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// The same for a backend without an endpoint: waits for the first look-up of its names.
async fn connect_once_looked_up(context: Context<'_>, limit: Duration) -> Result<Upstream, ConnectError> {
    let begun = Instant::now();
    tokio::select! {
        biased;
        _ = timeout(limit, context.backend.looked_up()) => {}
        () = reset(context.client) => return Err(ConnectError::ClientGone),
    }
    let candidates: Candidates = context.backend.candidates();
    if candidates.remaining() == 0 {
        return Err(ConnectError::NoEndpoint { backend: context.backend.name.to_string() });
    }
    Race::new(context, candidates, begun, limit).run().await
}

/// One attempt.
async fn connect_to(context: Context<'_>, endpoint: Arc<Endpoint>) -> Result<Upstream, AttemptError> {
    let address = endpoint.address();
    if context.service.listens_on(address) {
        return Err(AttemptError::SelfLoop);
    }
    let (socket, announced) = begin(context, address)?;
    // A backend on the same host answers within connect(2). The hello then goes out before the event loop has had its turn.
    let is_connected = sockopt::poll_writable(&socket)? == PollFlags::OUT;
    let stream = TcpStream::from_std(socket)?;
    if is_connected {
        endpoint.answered_at_once();
    } else {
        let begun = Instant::now();
        // The runtime's own connect asks the socket for an error in any case.
        let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
        if (ready.is_error() || ready.is_write_closed())
            && let Some(error) = stream.take_error()?
        {
            return Err(error.into());
        }
        endpoint.answered(begun.elapsed());
    }
    Ok(Upstream { stream, endpoint, announced })
}

/// A socket that connects, and what [`Datapath::announce`] said of it. A source address whose ports are all in use, or which
/// is not on this host, is passed over.
fn begin(context: Context<'_>, address: SocketAddr) -> Result<(StdStream, bool), AttemptError> {
    let mut sources = context.backend.sources_for(address);
    let mut source = sources.next();
    loop {
        let result = begin_from(context, address, source);
        let is_local = matches!(result, Err(AttemptError::NoLocalPort | AttemptError::NoSource(_)));
        match sources.next() {
            next @ Some(_) if is_local => source = next,
            _ => return result,
        }
    }
}

fn begin_from(
    context: Context<'_>,
    address: SocketAddr,
    source: Option<IpAddr>,
) -> Result<(StdStream, bool), AttemptError> {
    let Context { backend, client, service } = context;
    let datapath: &dyn Datapath = &*service.datapath;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = StdStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
    socket.set_nodelay(true)?;
    if let Some(source) = source {
        sockopt::set_bind_address_no_port(&socket)?;
        match bind(&socket, &SocketAddr::new(source, 0)) {
            Ok(()) => {}
            Err(Errno::ADDRNOTAVAIL) => return Err(AttemptError::NoSource(source)),
            Err(error) => return Err(error.into()),
        }
    }
    // The hello is at hand, so its packet may complete the handshake, and the bare acknowledgement before it is spared.
    let _ = sockopt::expect_to_answer(&socket);
    let announced = backend.same_host && datapath.announce(socket.as_fd());
    // What is announced or goes over loopback will not be sent on in packets.
    if !announced
        && !address.ip().is_loopback()
        && let Some(bytes) = datapath.largest_segment(client.as_fd())
    {
        // More than any device takes is no bound, and refused.
        let _ = SockRef::from(&socket).set_tcp_mss(bytes);
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok((socket, announced)),
        // The source address was accepted, so what is not available is a port of it.
        Err(Errno::ADDRNOTAVAIL) => Err(AttemptError::NoLocalPort),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the client's socket has failed. A FIN is not that: the client may still be reading.
async fn reset(client: &TcpStream) {
    // An error to wait with is as good as an error on the socket.
    let _ = client.ready(Interest::ERROR).await;
}
