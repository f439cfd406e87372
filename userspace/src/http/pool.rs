//! Connections to backends that are kept for the next request.

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

/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(60);

/// Connections of HTTP/1.1 that are kept for one endpoint, by each worker.
const PER_ENDPOINT: usize = 128;

/// How long a connection may take to be ready for another request after a response.
const SETTLE: Duration = Duration::from_secs(1);

/// A backend's connection that is silent while streams are open is probed so often (RFC 9113 section 6.7).
const PROBE: Duration = Duration::from_secs(30);

/// What the connections of one kind have in common: each carries requests for any of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The endpoint.
    pub address: SocketAddr,
    /// The version.
    pub http: BackendHttp,
    /// How it is encrypted.
    pub tls: Option<Arc<UpstreamTls>>,
}

/// What sends over a connection, and our address of it.
#[derive(Debug, Clone)]
pub struct Through<S> {
    /// For the library.
    pub sender: S,
    /// Of our end.
    pub local: Option<SocketAddr>,
}

/// The same for HTTP/1.1, one request at a time.
pub type Http1 = Through<http1::SendRequest<Upload>>;

/// The same for HTTP/2, many requests at a time.
pub type Http2 = Through<http2::SendRequest<Upload>>;

/// Where a connection is that carries all requests to an endpoint, once there is one.
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

/// A way to send requests to an endpoint.
#[derive(Debug)]
pub enum Sender {
    /// One at a time.
    Http1(Http1),
    /// Many at a time.
    Http2(Http2),
}

impl Sender {
    /// Sends a request; what has not gone out comes back with the error.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match self {
            Self::Http1(through) => through.sender.try_send_request(request).await,
            Self::Http2(through) => through.sender.try_send_request(request).await,
        }
    }

    /// Our address of the connection.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Http1(through) => through.local,
            Self::Http2(through) => through.local,
        }
    }
}

impl Pools {
    /// A connection that waits for a request; not one that the backend has closed, as far as is known.
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

    /// Closes the connections of a cluster that wait for a request, to make room for another one, and says whether there were any.
    pub fn make_room(&self, cluster: &str) -> bool {
        let mut any = false;
        self.idle.borrow_mut().retain(|key, kept| {
            let goes = &*key.cluster == cluster;
            any |= goes && !kept.is_empty();
            !goes
        });
        any
    }

    /// Where the connection of this kind is that carries all requests; whoever makes it keeps the others waiting.
    #[must_use]
    pub fn multiplexed(&self, key: &Key) -> Rc<Multiplexed> {
        let mut multiplexed = self.multiplexed.borrow_mut();
        if let Some(place) = multiplexed.get(key) {
            return place.clone();
        }
        // Endpoints come and go.
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

/// Closes what has waited for too long.
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

/// A connection that another request can have once its response has ended.
#[derive(Debug)]
pub struct Return {
    pub(super) pools: Rc<Pools>,
    pub(super) key: Key,
    pub(super) through: Http1,
}

impl Return {
    /// Keeps it for the next request, as soon as it can take one.
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
    let Connected { io, guard, .. } = connected;
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await?;
    spawn_local(async move {
        // Who waits for a response learns of an error.
        let _ = connection.with_upgrades().await;
        drop(guard);
    });
    Ok(sender)
}

/// Begins HTTP/2 on a connection to a backend.
pub async fn begin_http2(connected: Connected) -> hyper::Result<http2::SendRequest<Upload>> {
    let Connected { io, guard, .. } = connected;
    let (sender, connection) = http2::Builder::new(OnWorker)
        .timer(TokioTimer::new())
        .keep_alive_interval(PROBE)
        .initial_stream_window_size(1 << 18)
        .initial_connection_window_size(1 << 20)
        .handshake(TokioIo::new(io))
        .await?;
    spawn_local(async move {
        let _ = connection.await;
        drop(guard);
    });
    Ok(sender)
}
