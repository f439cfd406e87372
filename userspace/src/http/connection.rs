//! A client's connection: its requests, its limits, and its end.

use std::{
    cell::{Cell, OnceCell, RefCell},
    convert::Infallible,
    error::Error as _,
    fmt,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Request,
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use snisplice_config::model::{Model, http::HttpTable};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, copy_bidirectional},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    activity::{Activity, Check, Patience},
    connect::Connect,
    exchange::exchange,
    frames::{Frames, PREFACE},
    framing::Framing,
    guarded::{Follow, Guarded},
    pool::Pools,
    request_log::Note,
    route::MOST_HEADERS,
};
use crate::{
    account::Account,
    limits::admission::Admission,
    metrics::{
        Metrics,
        labels::{CloseReason, Direction},
    },
    snapshot::Snapshot,
};

/// The greatest size of a request's head, as in Envoy (60 KiB).
const HEAD: usize = 60 * 1024;

/// Concurrent streams of one connection, as in Envoy's edge configuration.
const STREAMS: u32 = 100;

/// The greatest number of streams that a client may reset before they are served. The same limit applies to streams
/// that it makes the server reset (CVE-2023-44487).
const RESETS: usize = 20;

/// The silence after which an HTTP/2 client gets a PING (RFC 9113 section 6.7), and the time limit of its reply.
const PROBE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// The greatest number of buffered response bytes for a client that does not read.
const SEND_BUFFER: usize = 256 * 1024;

/// The state that all connections of one worker share.
#[derive(Debug)]
pub struct Worker {
    /// The counters of the process.
    pub metrics: Arc<Metrics>,
    /// Connections to backends.
    pub pools: Rc<Pools>,
    /// Cancelled when connections are to end.
    pub drain: CancellationToken,
}

impl Worker {
    /// The state of a new worker.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: metrics.clone(), pools: Rc::default(), drain: CancellationToken::new() }
    }
}

/// The configuration that serves a request.
#[derive(Debug)]
pub struct Served {
    /// The whole configuration.
    pub snapshot: Arc<Snapshot>,
    /// The listener's rules.
    pub table: Arc<HttpTable>,
}

/// The version that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// The common part of a connection's requests.
pub struct Connection {
    /// The address of the client.
    pub client: SocketAddr,
    /// The address to which the client has connected.
    pub own: SocketAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The server name in the client's hello.
    pub server_name: Option<Box<str>>,
    /// The account of the connection.
    pub account: Rc<Account>,
    /// Admits requests.
    pub admission: Arc<Admission>,
    /// The state that all connections of the worker share.
    pub worker: Rc<Worker>,
    /// The protocol that TLS has negotiated.
    pub alpn: Option<&'static [u8]>,
    /// The connections to backends that serve this client alone.
    pub own_pools: OnceCell<Rc<Pools>>,
    /// Connects to backends.
    pub connector: Rc<dyn Connect>,
    /// Returns the configuration for the next request. `None` once no listener serves it.
    pub served: Box<dyn Fn() -> Option<Served>>,
    /// The activity of the client's socket.
    pub activity: Arc<Activity>,
    /// Set once the connection switches to another protocol (RFC 9110 section 7.8).
    pub tunnel: Cell<Option<Tunnel>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("client", &self.client).finish_non_exhaustive()
    }
}

/// Two connections that have switched to another protocol.
#[derive(Debug)]
pub struct Tunnel {
    /// The client's connection.
    pub client: OnUpgrade,
    /// The backend's connection.
    pub backend: OnUpgrade,
}

/// Counts a request as in progress until dropped.
#[derive(Debug)]
pub struct InFlight {
    connection: Rc<Connection>,
    /// For the access log, while it is enabled.
    note: Option<Rc<Note>>,
}

impl InFlight {
    /// Counts a new request.
    #[must_use]
    pub fn new<B>(connection: &Rc<Connection>, request: &Request<B>) -> Self {
        connection.activity.request_began();
        connection.count();
        let note = connection.account.logs_requests().then(|| Rc::new(Note::new(request)));
        Self { connection: connection.clone(), note }
    }

    /// The entry for the access log, while the log is enabled.
    pub(super) fn note(&self) -> Option<&Rc<Note>> {
        self.note.as_ref()
    }

    /// Updates the account's byte counters.
    pub fn count(&self) {
        self.connection.count();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.activity.request_ended(Instant::now());
        if let Some(note) = &self.note {
            note.log(&self.connection.account);
        }
    }
}

impl Connection {
    /// Updates the account's byte counters.
    pub fn count(&self) {
        let (up, down) = self.activity.bytes();
        let (known_up, known_down) = self.account.bytes();
        self.account.moved(Direction::Up, up.saturating_sub(known_up));
        self.account.moved(Direction::Down, down.saturating_sub(known_down));
    }
}

/// The time limits of a connection, from a configuration.
#[derive(Debug, Clone, Copy)]
struct Limits {
    patience: Patience,
    /// The age at which the connection is to end.
    leave_after: Option<Duration>,
}

impl Limits {
    fn of(model: &Model, account: &Account) -> Self {
        let timeouts = &model.runtime.timeouts;
        let own = account.limits();
        let patience = Patience {
            head: own.and_then(|own| own.hello).unwrap_or(timeouts.hello),
            idle: own.and_then(|own| own.idle).unwrap_or(model.startup.timeouts.idle),
        };
        // The last requests get the time of a drain, and at most a tenth of the maximum duration. After that the
        // connection is closed like any other.
        let longest = account.listener_account().registry.longest(account, timeouts);
        let leave_after =
            (!longest.is_zero()).then(|| longest.saturating_sub(timeouts.drain.min(longest / 10)));
        Self { patience, leave_after }
    }
}

/// Serves a client's requests until its connection ends. Returns the close reason. `protocol` is the negotiated
/// version. Without one, the first bytes decide. `first` contains the bytes already read.
pub async fn serve<I>(
    mut io: I,
    connection: Rc<Connection>,
    protocol: Option<Protocol>,
    mut first: Vec<u8>,
) -> CloseReason
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = |served: Served| Limits::of(&served.snapshot.model, &connection.account);
    let Some(limits) = (connection.served)().map(limits) else {
        return CloseReason::ListenerRemoved;
    };
    let protocol = match protocol {
        Some(protocol) => protocol,
        None => match timeout(limits.patience.head, sniff(&mut io, &mut first)).await {
            Ok(Some(protocol)) => protocol,
            Ok(None) => return CloseReason::ClientGone,
            Err(_) => return CloseReason::RequestTimeout,
        },
    };
    let activity = connection.activity.clone();
    let reason = match protocol {
        Protocol::Http1 => {
            activity.received(first.len(), true, Instant::now());
            let follow = Follow::Http1(Framing::default());
            let io = TokioIo::new(Guarded::new(io, activity, follow, first));
            Box::pin(serve_http1(io, &connection, limits)).await
        }
        Protocol::Http2 => {
            let follow = Follow::Http2(Box::<Frames>::default());
            let io = TokioIo::new(Guarded::new(io, activity, follow, first));
            Box::pin(serve_http2(io, &connection, limits)).await
        }
    };
    connection.count();
    reason
}

/// Reads until the version is known. `None` if the client disconnects before.
async fn sniff(io: &mut (impl AsyncRead + Unpin), first: &mut Vec<u8>) -> Option<Protocol> {
    loop {
        if first.len() >= PREFACE.len() && first.starts_with(PREFACE) {
            return Some(Protocol::Http2);
        }
        if !first.is_empty() && !PREFACE.starts_with(&first[..first.len().min(PREFACE.len())]) {
            return Some(Protocol::Http1);
        }
        if io.read_buf(first).await.ok()? == 0 {
            return None;
        }
    }
}

async fn serve_http1<I>(io: TokioIo<Guarded<I>>, connection: &Rc<Connection>, limits: Limits) -> CloseReason
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let served = connection.clone();
    let service = service_fn(move |request: Request<Incoming>| answer(request, served.clone()));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        // `Activity` limits the time of a head. This limit would also end a connection between requests.
        .header_read_timeout(None)
        .max_headers(MOST_HEADERS)
        .max_buf_size(HEAD)
        .serve_connection(io, service)
        .with_upgrades();
    let reason = drive(serving, http1::UpgradeableConnection::graceful_shutdown, connection, limits).await;
    match connection.tunnel.take() {
        Some(tunnel) => carry(tunnel, connection, limits).await,
        None => reason,
    }
}

async fn serve_http2<I>(io: TokioIo<Guarded<I>>, connection: &Rc<Connection>, limits: Limits) -> CloseReason
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let served = connection.clone();
    let service = service_fn(move |request: Request<Incoming>| answer(request, served.clone()));
    let streams = Streams::default();
    let serving = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX))
        .initial_stream_window_size(1 << 18)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PROBE.0)
        .keep_alive_timeout(PROBE.1)
        .serve_connection(io, service);
    drive(serving, http2::Connection::graceful_shutdown, connection, limits).await
}

async fn answer(
    request: Request<Incoming>,
    connection: Rc<Connection>,
) -> Result<hyper::Response<super::body::Download>, Infallible> {
    Ok(Box::pin(exchange(request, connection)).await)
}

/// The streams of one connection, which end with it.
#[derive(Clone, Default)]
struct Streams(Rc<RefCell<JoinSet<()>>>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let mut streams = self.0.borrow_mut();
        // Removes ended tasks, which the set would keep.
        while streams.try_join_next().is_some() {}
        streams.spawn_local(stream);
    }
}

/// Serves a connection within its time limits.
async fn drive<C>(
    serving: C,
    shut_down: impl Fn(Pin<&mut C>),
    connection: &Rc<Connection>,
    limits: Limits,
) -> CloseReason
where
    C: Future<Output = hyper::Result<()>>,
{
    /// The time for a client to disconnect once it has nothing to wait for.
    const LINGER: Duration = Duration::from_secs(1);
    let Limits { patience, leave_after } = limits;
    let activity = &connection.activity;
    let begun = Instant::now();
    let mut serving = pin!(serving);
    // The close reason, and the latest time of the end.
    let mut leaving: Option<(CloseReason, Option<Instant>)> = None;
    loop {
        let now = Instant::now();
        let mut wait = match activity.check(patience, now) {
            Check::Wait(wait) => wait,
            Check::SlowHead if leaving.is_none() => {
                // HTTP/1 responds with 408 if a request has begun. HTTP/2 sends GOAWAY.
                if !activity.give_up_head() {
                    shut_down(serving.as_mut());
                }
                leaving = Some((CloseReason::RequestTimeout, Some(now + LINGER)));
                LINGER
            }
            Check::Idle if leaving.is_none() => {
                shut_down(serving.as_mut());
                leaving = Some((CloseReason::IdleTimeout, Some(now + LINGER)));
                LINGER
            }
            Check::SlowHead | Check::Idle => {
                if let Some((_, end @ None)) = &mut leaving {
                    *end = Some(now + LINGER);
                }
                LINGER
            }
        };
        if let Some(after) = leave_after
            && leaving.is_none()
        {
            if let Some(left) = after.checked_sub(begun.elapsed()) {
                wait = wait.min(left);
            } else {
                shut_down(serving.as_mut());
                leaving = Some((CloseReason::MaxDuration, None));
            }
        }
        if let Some((reason, Some(end))) = leaving {
            match end.checked_duration_since(now) {
                Some(left) if !left.is_zero() => wait = wait.min(left),
                _ => return reason,
            }
        }
        tokio::select! {
            biased;
            result = serving.as_mut() => {
                return match (result, leaving) {
                    (Ok(()), Some((reason, _))) => reason,
                    (Ok(()), None) => CloseReason::Finished,
                    (Err(_), Some((CloseReason::RequestTimeout, _))) => CloseReason::RequestTimeout,
                    (Err(error), _) => ended_by(&error),
                };
            }
            () = connection.worker.drain.cancelled(), if leaving.is_none() => {
                shut_down(serving.as_mut());
                leaving = Some((CloseReason::Finished, None));
            }
            // The timer rounds to milliseconds, so the margin avoids an early wake-up.
            () = sleep(wait + Duration::from_millis(2)) => {}
        }
    }
}

fn ended_by(error: &hyper::Error) -> CloseReason {
    tracing::debug!(%error, "a connection of HTTP has ended");
    let http2 = error.source().and_then(|error| error.downcast_ref::<h2::Error>());
    if let Some(error) = http2.filter(|error| error.is_go_away() && error.is_library()) {
        return match error.reason() {
            Some(h2::Reason::ENHANCE_YOUR_CALM) => CloseReason::Flood,
            _ => CloseReason::BadRequest,
        };
    }
    if error.is_parse() || error.is_user() { CloseReason::BadRequest } else { CloseReason::ClientGone }
}

/// Copies between an HTTP/2 stream and a connection that have switched to another protocol. The connection's time
/// limits apply.
pub async fn carry_stream(tunnel: Tunnel) {
    let Ok((client, backend)) = futures_util::future::try_join(tunnel.client, tunnel.backend).await else {
        return;
    };
    // An error of one side ends both.
    let _ = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
}

/// Copies between two connections that have switched to another protocol.
async fn carry(tunnel: Tunnel, connection: &Rc<Connection>, limits: Limits) -> CloseReason {
    let Ok((client, backend)) = futures_util::future::try_join(tunnel.client, tunnel.backend).await else {
        return CloseReason::ClientGone;
    };
    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
    let mut copying = pin!(copy_bidirectional(&mut client, &mut backend));
    let begun = Instant::now();
    loop {
        let wait = match connection.activity.check(limits.patience, Instant::now()) {
            Check::Wait(wait) => wait,
            Check::SlowHead | Check::Idle => return CloseReason::IdleTimeout,
        };
        tokio::select! {
            biased;
            result = copying.as_mut() => {
                return match result {
                    Ok(_) => CloseReason::Finished,
                    Err(_) => CloseReason::IoError,
                };
            }
            () = sleep(wait.min(Duration::from_secs(1)) + Duration::from_millis(2)) => connection.count(),
        }
        if limits.leave_after.is_some_and(|after| begun.elapsed() > after) {
            return CloseReason::MaxDuration;
        }
    }
}
