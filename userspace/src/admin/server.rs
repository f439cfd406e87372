//! The sockets of the admin endpoint, and the limits of each connection to it.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{Admin, Scope, api};
use crate::{log::log_limit, net::admin_socket::Socket};

/// Concurrent connections to the admin address.
pub const CONNECTIONS: usize = 64;

/// Concurrent connections to an address that serves probes only.
pub const PROBES: usize = 16;

/// The time limit of a request line and its header fields.
const HEAD: Duration = Duration::from_secs(5);

/// The time limit of a response, from the head of the request to the last byte that the client's socket accepts.
const ANSWER: Duration = Duration::from_secs(30);

/// The greatest size of a head, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// The pause of accepting when a connection is evicted for the next one. A client that sends its request at once is
/// served within [`CONNECTIONS`] times this pause. Many silent clients cannot prevent that.
const REST: Duration = Duration::from_millis(2);

/// The pause of accepting after an error, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// An open connection.
struct Open {
    task: AbortHandle,
    /// Whether the connection has not sent a request yet.
    silent: Arc<AtomicBool>,
}

/// Serves until dropped.
pub(super) async fn serve(admin: Arc<Admin>, socket: Socket, scope: Scope) -> io::Result<()> {
    let places = match scope {
        Scope::Probes => PROBES,
        Scope::Local | Scope::Network => CONNECTIONS,
    };
    let mut server = Server { router: api::router(admin, scope), places, open: VecDeque::new() };
    match socket {
        Socket::Tcp(socket) => {
            let socket = TcpListener::from_std(socket)?;
            loop {
                let accepted = socket.accept().await.map(|(stream, _)| stream);
                server.receive(accepted).await;
            }
        }
        Socket::Unix(socket) => {
            let socket = UnixListener::from_std(socket)?;
            loop {
                let accepted = socket.accept().await.map(|(stream, _)| stream);
                server.receive(accepted).await;
            }
        }
    }
}

struct Server {
    router: Router,
    places: usize,
    /// Sorted by arrival.
    open: VecDeque<Open>,
}

impl Server {
    async fn receive<S>(&mut self, accepted: io::Result<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match accepted {
            Ok(stream) => {
                if self.make_room().await {
                    self.spawn(stream);
                }
            }
            Err(error) => {
                log_limit!(warn, %error, "admin: cannot accept; trying again shortly");
                sleep(PAUSE).await;
            }
        }
    }

    /// Whether there is a slot for one more connection. If necessary, the oldest connection without a request is
    /// evicted.
    async fn make_room(&mut self) -> bool {
        self.open.retain(|one| !one.task.is_finished());
        if self.open.len() < self.places {
            return true;
        }
        let places = self.places;
        log_limit!(warn, places, "admin: all connections are in use; those that say nothing end");
        sleep(REST).await;
        self.open.retain(|one| !one.task.is_finished());
        if self.open.len() < self.places {
            return true;
        }
        let Some(oldest) = self.open.iter().position(|one| one.silent.load(Relaxed)) else { return false };
        if let Some(Open { task, .. }) = self.open.remove(oldest) {
            task.abort();
        }
        true
    }

    fn spawn<S>(&mut self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = TowerToHyperService::new(self.router.clone());
        let silent = Arc::new(AtomicBool::new(true));
        let asks = silent.clone();
        let service = service_fn(move |request| {
            asks.store(false, Relaxed);
            router.call(request)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_BYTES)
            // One request per connection, so that no idle client holds a slot.
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        let task = tokio::spawn(async move {
            match timeout(HEAD + ANSWER, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "admin: connection failed"),
                Err(_) => tracing::debug!("admin: the answer is not taken"),
            }
        });
        self.open.push_back(Open { task: task.abort_handle(), silent });
    }
}
