//! Idle connections to backends that later requests reuse.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use snisplice_config::model::{http::BackendHttp, termination::UpstreamTls};
use tokio::{
    sync::Mutex,
    task::spawn_local,
    time::{Instant, sleep, timeout},
};

use super::{body::Upload, connect::Connected};

/// The time limit of an idle connection.
const IDLE: Duration = Duration::from_secs(60);

/// Idle HTTP/1.1 connections per endpoint and worker.
const PER_ENDPOINT: usize = 128;

/// The time for a connection to become ready for another request after a response.
const SETTLE: Duration = Duration::from_secs(1);

/// The interval of PINGs on a silent connection with open streams (RFC 9113 section 6.7).
const PROBE: Duration = Duration::from_secs(30);

/// The common properties of interchangeable connections: each can serve requests for all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The endpoint.
    pub address: SocketAddr,
    /// The HTTP version.
    pub http: BackendHttp,
    /// The TLS configuration, if any.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// The sender of a connection, and the connection's local address.
#[derive(Debug, Clone)]
pub struct Through<S> {
    /// The library's sender.
    pub sender: S,
    /// The local address.
    pub local: Option<SocketAddr>,
}

/// The sender of an HTTP/1.1 connection: one request at a time.
pub type Http1 = Through<http1::SendRequest<Upload>>;

/// The sender of an HTTP/2 connection: many requests at a time.
pub type Http2 = Through<http2::SendRequest<Upload>>;

/// The shared connection for all requests to an endpoint, once there is one.
pub type Multiplexed = Mutex<Option<Http2>>;

/// The connections of one worker.
#[derive(Default)]
pub struct Pools {
    idle: RefCell<HashMap<Key, Vec<Idle>>>,
    multiplexed: RefCell<HashMap<Key, Rc<Multiplexed>>>,
    sweeps: Cell<bool>,
}

struct Idle {
    through: Http1,
    since: Instant,
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pools").field("endpoints", &self.idle.borrow().len()).finish_non_exhaustive()
    }
}

/// The sender of requests to an endpoint.
#[derive(Debug)]
pub enum Sender {
    /// One request at a time.
    Http1(Http1),
    /// Many requests at a time.
    Http2(Http2),
}

impl Sender {
    /// Sends a request. An error returns the request if it was not sent.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match self {
            Self::Http1(through) => through.sender.try_send_request(request).await,
            Self::Http2(through) => through.sender.try_send_request(request).await,
        }
    }

    /// The local address of the connection.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Http1(through) => through.local,
            Self::Http2(through) => through.local,
        }
    }
}

impl Pools {
    /// Takes an idle connection that the backend has not closed, as far as is known.
    #[must_use]
    pub fn take(&self, key: &Key) -> Option<Http1> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(key)?;
        while let Some(Idle { through, since }) = kept.pop() {
            if through.sender.is_ready() && since.elapsed() < IDLE {
                return Some(through);
            }
        }
        None
    }

    /// Closes the idle connections of a cluster, to free slots. Returns whether there were any.
    pub fn make_room(&self, cluster: &str) -> bool {
        let mut any = false;
        self.idle.borrow_mut().retain(|key, kept| {
            let goes = &*key.cluster == cluster;
            any |= goes && !kept.is_empty();
            !goes
        });
        any
    }

    /// The slot of the shared connection with these properties. The task that connects makes other tasks wait.
    #[must_use]
    pub fn multiplexed(&self, key: &Key) -> Rc<Multiplexed> {
        let mut multiplexed = self.multiplexed.borrow_mut();
        if let Some(place) = multiplexed.get(key) {
            return place.clone();
        }
        // Removes slots of endpoints that are not used any more.
        multiplexed.retain(|_, place| {
            Rc::strong_count(place) > 1
                || place
                    .try_lock()
                    .is_ok_and(|sender| sender.as_ref().is_some_and(|through| !through.sender.is_closed()))
        });
        multiplexed.entry(key.clone()).or_default().clone()
    }

    fn keep(self: &Rc<Self>, key: Key, through: Http1) {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry(key).or_default();
        if kept.len() >= PER_ENDPOINT {
            return;
        }
        kept.push(Idle { through, since: Instant::now() });
        if !self.sweeps.replace(true) {
            spawn_local(sweep(Rc::downgrade(self)));
        }
    }
}

/// Closes connections that were idle for too long.
async fn sweep(pools: Weak<Pools>) {
    loop {
        sleep(IDLE / 6).await;
        let Some(pools) = pools.upgrade() else { return };
        let mut idle = pools.idle.borrow_mut();
        idle.retain(|_, kept| {
            kept.retain(|one| one.since.elapsed() < IDLE && !one.through.sender.is_closed());
            !kept.is_empty()
        });
        if idle.is_empty() {
            pools.sweeps.set(false);
            return;
        }
    }
}

/// A connection that becomes reusable when its response has ended.
#[derive(Debug)]
pub struct Return {
    pub(super) pools: Rc<Pools>,
    pub(super) key: Key,
    pub(super) through: Http1,
}

impl Return {
    /// Returns the connection to the pool as soon as it is ready for a request.
    pub fn give_back(self) {
        let Self { pools, key, mut through } = self;
        if through.sender.is_closed() {
            return;
        }
        if through.sender.is_ready() {
            return pools.keep(key, through);
        }
        spawn_local(async move {
            if let Ok(Ok(())) = timeout(SETTLE, through.sender.ready()).await {
                pools.keep(key, through);
            }
        });
    }
}

/// Runs the tasks of a connection on its worker.
#[derive(Debug, Clone, Copy)]
pub struct OnWorker;

impl<F: Future<Output: 'static> + 'static> Executor<F> for OnWorker {
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

/// Begins HTTP/1.1 on a connection to a backend.
pub async fn begin_http1(connected: Connected) -> hyper::Result<http1::SendRequest<Upload>> {
    let io = TokioIo::new(connected.into_counted());
    let (sender, connection) = http1::Builder::new().handshake(io).await?;
    spawn_local(async move {
        // The waiting request receives the error.
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// Begins HTTP/2 on a connection to a backend.
pub async fn begin_http2(connected: Connected) -> hyper::Result<http2::SendRequest<Upload>> {
    let io = TokioIo::new(connected.into_counted());
    let (sender, connection) = http2::Builder::new(OnWorker)
        .timer(TokioTimer::new())
        .keep_alive_interval(PROBE)
        .initial_stream_window_size(1 << 18)
        .initial_connection_window_size(1 << 20)
        .handshake(io)
        .await?;
    spawn_local(async move {
        let _ = connection.await;
    });
    Ok(sender)
}
