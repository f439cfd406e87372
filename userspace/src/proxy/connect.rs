//! Connects to an endpoint of a backend: the one that balancing picks, or another one after a failure.
//!
//! Normally one attempt is made. If that attempt fails or exceeds its head start, others follow (`race.rs`).

use std::{
    net::{IpAddr, SocketAddr, TcpStream as StdStream},
    os::fd::AsFd as _,
    pin::{Pin, pin},
    task::{self, Poll},
    time::Duration,
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with},
};
use snisplice_config::name::ServerName;
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
    net::{local_address, sockopt},
    upstream::{
        attempt::AttemptError,
        balance::hash,
        caller::Caller,
        candidates::Candidates,
        cluster::Cluster,
        dynamic::{Forward, Unresolved},
        lease::Lease,
    },
};

mod race;

/// An established connection to an endpoint.
#[derive(Debug)]
pub struct Upstream {
    /// The socket.
    pub stream: TcpStream,
    /// The endpoint's accounting for this connection.
    pub lease: Lease,
    /// The result of [`Datapath::announce`].
    pub announced: bool,
}

/// A connection that an attempt has established.
#[derive(Debug)]
struct Connected {
    stream: TcpStream,
    announced: bool,
    /// The duration of the attempt, if it was not immediate.
    took: Option<Duration>,
}

impl Connected {
    /// Adds the lease of the endpoint.
    fn to(self, lease: Lease) -> Upstream {
        let Self { stream, announced, took } = self;
        lease.connected(took);
        Upstream { stream, lease, announced }
    }
}

/// The reason why no endpoint is connected.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Every endpoint was tried. The fields describe the last failure.
    #[error("no endpoint of {backend} could be connected, the last one was {address}: {error}")]
    Failed {
        /// The backend's name.
        backend: String,
        /// The address of the endpoint that failed last.
        address: SocketAddr,
        /// The error of the last attempt.
        error: AttemptError,
    },
    /// The backend has no eligible endpoint with an address and a weight.
    #[error("{backend} has no endpoint to try")]
    NoEndpoint {
        /// The backend's name.
        backend: String,
    },
    /// The backend forwards to the requested name, and the client requests none.
    #[error("{backend} forwards to the requested name, and the client requests none")]
    NoName {
        /// The backend's name.
        backend: String,
    },
    /// The requested name could not be resolved.
    #[error("the requested name {name} could not be resolved for {backend}: {error}")]
    Unresolved {
        /// The backend's name.
        backend: String,
        /// The requested name.
        name: ServerName,
        /// The reason.
        error: String,
    },
    /// Too many requested names are looked up.
    #[error("too many requested names are looked up for {backend}")]
    TooManyNames {
        /// The backend's name.
        backend: String,
    },
    /// The client reset the connection during the attempts.
    #[error("the client went away")]
    ClientGone,
}

impl ConnectError {
    /// Whether the backend is the cause. The client and this host have reasons and log lines of their own.
    #[must_use]
    pub fn is_of_the_backend(&self) -> bool {
        match self {
            Self::Failed { error, .. } => matches!(error, AttemptError::Io(_)),
            Self::NoEndpoint { .. } => true,
            // The client chooses the name.
            Self::NoName { .. } | Self::Unresolved { .. } | Self::TooManyNames { .. } | Self::ClientGone => {
                false
            }
        }
    }
}

impl From<&ConnectError> for CloseReason {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Failed { error, .. } => ConnectFailure::from(error).into(),
            ConnectError::NoEndpoint { .. } => Self::NoEndpoint,
            ConnectError::NoName { .. } => Self::NoRequestedName,
            ConnectError::Unresolved { .. } => Self::NameUnresolved,
            ConnectError::TooManyNames { .. } => Self::NameLimit,
            ConnectError::ClientGone => Self::ClientGone,
        }
    }
}

/// The input of an attempt besides its endpoint.
#[derive(Clone, Copy)]
struct Context<'a> {
    backend: &'a Cluster,
    /// The only client that the connection serves. `None` if requests of several clients share it.
    client: Option<&'a TcpStream>,
    /// The source address of connections to a transparent backend.
    source: Option<IpAddr>,
    service: &'a Service,
}

impl Context<'_> {
    /// Counts and records a failed attempt.
    fn failed(self, lease: Lease, error: AttemptError) -> ConnectError {
        let Self { backend, service, .. } = self;
        let address = lease.address();
        service.metrics.connect_failed(&backend.name, ConnectFailure::from(&error));
        lease.failed(&error);
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
            AttemptError::Refused(ip, why) => log_limit!(
                warn,
                backend = %backend.name, address = %ip, %why,
                "refused: a requested name leads to an address that dynamic forwarding must not reach; if clients may \
                 reach it, add it to `dynamic.allow` of the backend"
            ),
            AttemptError::NoSource(source) => log_limit!(
                warn,
                backend = %backend.name, %source,
                "no `source` address of this backend is an address of this host; add it to a device, or correct `source`"
            ),
            AttemptError::OtherFamily(client) => log_limit!(
                warn,
                backend = %backend.name, %address, %client,
                "refused: the backend is transparent, and the client's address is of another family than the endpoint's; \
                 add an endpoint of the client's family, or remove `transparent`"
            ),
            AttemptError::NotTransparent(error) => log_limit!(
                warn,
                backend = %backend.name, %error,
                "the process may not use the client's address for this transparent backend: grant CAP_NET_ADMIN, and \
                 restart the process"
            ),
            AttemptError::Exhausted(error) => log_limit!(
                warn,
                backend = %backend.name, %error,
                "this host cannot open another socket: raise the limit of open files (LimitNOFILE=, ulimit -n) or \
                 give it more memory, or lower limits.connections"
            ),
            AttemptError::Io(error) => {
                tracing::debug!(backend = %backend.name, %address, %error, "connect failed");
            }
        }
        ConnectError::Failed { backend: backend.name.to_string(), address, error }
    }
}

/// Tries the backend's endpoints until one accepts, for at most `limit` in total. A second attempt is safe after a
/// failure and beside a slow attempt, since no byte has been sent yet. A reset by the client ends the attempts.
pub async fn connect(
    backend: &Cluster,
    client: Client<'_>,
    limit: Duration,
    service: &Service,
) -> Result<Upstream, ConnectError> {
    if let Some(forward) = &backend.forward {
        return Box::pin(connect_to_requested(backend, forward, client, limit, service)).await;
    }
    connect_among(backend, backend.candidates(&client), (Some(client.socket), client.source), limit, service)
        .await
}

/// The client of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Client<'c> {
    /// Its socket.
    pub socket: &'c TcpStream,
    /// Its address.
    pub source: Option<IpAddr>,
    /// The requested server name.
    pub name: Option<&'c ServerName>,
}

impl Caller for Client<'_> {
    fn source(&self) -> Option<IpAddr> {
        self.source
    }

    fn server_name(&self) -> Option<u64> {
        self.name.map(|name| hash::server_name(name.as_str()))
    }
}

/// Like [`connect`], for a backend whose connections go to the requested name. The lookup counts for the limit.
async fn connect_to_requested(
    backend: &Cluster,
    forward: &Forward,
    client: Client<'_>,
    limit: Duration,
    service: &Service,
) -> Result<Upstream, ConnectError> {
    let begun = Instant::now();
    let own = || backend.name.to_string();
    let Some(name) = client.name else { return Err(ConnectError::NoName { backend: own() }) };
    let found = tokio::select! {
        biased;
        found = timeout(limit, forward.members(name)) => found,
        () = reset(Some(client.socket)) => return Err(ConnectError::ClientGone),
    };
    let unresolved =
        |error: &str| ConnectError::Unresolved { backend: own(), name: name.clone(), error: error.into() };
    let members = match found {
        Ok(Ok(members)) => members,
        Ok(Err(Unresolved::Failed(error))) => return Err(unresolved(&error)),
        Ok(Err(Unresolved::TooMany)) => return Err(ConnectError::TooManyNames { backend: own() }),
        Err(_) => return Err(unresolved("the time limit of the connect is over")),
    };
    let candidates = Candidates::new(members, fastrand::u64(..));
    let rest = limit.saturating_sub(begun.elapsed());
    connect_among(backend, candidates, (Some(client.socket), client.source), rest, service).await
}

/// Like [`connect`], with the endpoints in the given order. The client is given by its socket, which is `None` if its
/// end does not end the connection, and by its address, which transparent backends see.
pub async fn connect_among(
    backend: &Cluster,
    mut candidates: Candidates,
    (client, source): (Option<&TcpStream>, Option<IpAddr>),
    limit: Duration,
    service: &Service,
) -> Result<Upstream, ConnectError> {
    if backend.transparent && source.is_none() {
        // The kernel knows the peer of every socket that is connected still.
        return Err(ConnectError::ClientGone);
    }
    let source = source.filter(|_| backend.transparent).map(|ip| ip.to_canonical());
    let context = Context { backend, client, source, service };
    let Some(first) = candidates.next() else {
        return Box::pin(connect_once_looked_up(context, candidates, limit)).await;
    };
    let begun = Instant::now();
    let patience = if candidates.is_exhausted() {
        limit
    } else {
        service.races.set(true);
        first.head_start().min(limit)
    };
    // On the stack and not on the heap, since one attempt is the normal case.
    let mut attempt = First(pin!(Some(connect_to(context, first.address()))));
    let result = tokio::select! {
        biased;
        result = &mut attempt => Some(result),
        () = reset(client) => return Err(ConnectError::ClientGone),
        () = sleep(patience) => None,
    };
    match result {
        Some(Ok(connected)) => {
            candidates.connected(&first);
            Ok(connected.to(first))
        }
        Some(Err(error)) => {
            let last = context.failed(first, error);
            if candidates.is_exhausted() {
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

/// The first attempt. A drop of this value abandons it.
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

/// Like [`connect_among`] for a backend without an endpoint: waits for the first DNS lookup of its names.
async fn connect_once_looked_up(
    context: Context<'_>,
    candidates: Candidates,
    limit: Duration,
) -> Result<Upstream, ConnectError> {
    let begun = Instant::now();
    tokio::select! {
        biased;
        _ = timeout(limit, context.backend.looked_up()) => {}
        () = reset(context.client) => return Err(ConnectError::ClientGone),
    }
    let candidates = context.backend.renewed(candidates);
    if candidates.is_exhausted() {
        return Err(ConnectError::NoEndpoint { backend: context.backend.name.to_string() });
    }
    Race::new(context, candidates, begun, limit).run().await
}

/// Makes one attempt.
async fn connect_to(context: Context<'_>, address: SocketAddr) -> Result<Connected, AttemptError> {
    // The address of this attempt is judged, and not an earlier answer for the name (DNS rebinding).
    if let Some(forward) = &context.backend.forward {
        let judged = forward.rule.judge(address.ip(), local_address::is_local);
        judged.map_err(|why| AttemptError::Refused(address.ip(), why))?;
    }
    if context.service.listens_on(address) {
        return Err(AttemptError::SelfLoop);
    }
    let (socket, announced) = begin(context, address)?;
    // A backend on the same host answers within connect(2). The hello is then sent before the event loop runs again.
    let is_connected = sockopt::poll_writable(&socket)? == PollFlags::OUT;
    let stream = TcpStream::from_std(socket)?;
    if is_connected {
        return Ok(Connected { stream, announced, took: None });
    }
    let begun = Instant::now();
    // The runtime's own connect reads the socket's error in any case.
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    if (ready.is_error() || ready.is_write_closed())
        && let Some(error) = stream.take_error()?
    {
        return Err(error.into());
    }
    Ok(Connected { stream, announced, took: Some(begun.elapsed()) })
}

/// Begins to connect a socket. Returns the socket and the result of [`Datapath::announce`]. Skips a source address
/// that is not on this host, or whose ports are all in use.
fn begin(context: Context<'_>, address: SocketAddr) -> Result<(StdStream, bool), AttemptError> {
    if let Some(client) = context.source {
        if client.is_ipv4() != address.is_ipv4() {
            return Err(AttemptError::OtherFamily(client));
        }
        return begin_from(context, address, Some(client));
    }
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
    let Context { backend, client, source: transparent, service } = context;
    let datapath: &dyn Datapath = &*service.datapath;
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = StdStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
    socket.set_nodelay(true)?;
    if transparent.is_some() {
        sockopt::set_transparent(&socket, address.is_ipv6()).map_err(AttemptError::NotTransparent)?;
    }
    if let Some(source) = source {
        sockopt::set_bind_address_no_port(&socket)?;
        match bind(&socket, &SocketAddr::new(source, 0)) {
            Ok(()) => {}
            Err(Errno::ADDRNOTAVAIL) => return Err(AttemptError::NoSource(source)),
            Err(error) => return Err(error.into()),
        }
    }
    // The hello is available, so its packet may complete the handshake. This saves a bare acknowledgement.
    let _ = sockopt::expect_to_answer(&socket);
    let announced = backend.same_host && client.is_some() && datapath.announce(socket.as_fd());
    // The packet datapath does not forward announced connections and connections over loopback.
    if !announced
        && !address.ip().is_loopback()
        && let Some(bytes) = client.and_then(|client| datapath.largest_segment(client.as_fd()))
    {
        // The kernel refuses a value above the size that any device accepts. Such a value is no bound.
        let _ = SockRef::from(&socket).set_tcp_mss(bytes);
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok((socket, announced)),
        // The source address was accepted, so the unavailable part is a port.
        Err(Errno::ADDRNOTAVAIL) => Err(AttemptError::NoLocalPort),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the client's socket has failed. A FIN is not a failure: the client may still read.
async fn reset(client: Option<&TcpStream>) {
    match client {
        // An error of the wait counts as an error of the socket.
        Some(client) => {
            let _ = client.ready(Interest::ERROR).await;
        }
        None => std::future::pending().await,
    }
}
