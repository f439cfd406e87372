//! The sockets of the admin endpoint, and what bounds each connection to it.

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

/// Connections to the admin address at once.
pub const CONNECTIONS: usize = 64;

/// Connections to an address that serves probes alone at once.
pub const PROBES: usize = 16;

/// How long a request line and its header fields may take.
const HEAD: Duration = Duration::from_secs(5);

/// How long an answer may take, from the head of the request to the last byte that the asker's socket takes.
const ANSWER: Duration = Duration::from_secs(30);

/// The longest head, in bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// How long accepting rests where a connection has to make room for the next one. Whoever asks at once after connecting is
/// answered within [`CONNECTIONS`] times this, so a crowd of silent ones does not keep it from that.
const REST: Duration = Duration::from_millis(2);

/// How long accepting rests after an error, such as that there are no descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// A connection that is served.
struct Open {
    task: AbortHandle,
    /// Whether it has not asked yet.
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
    /// In the order of their arrival.
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

    /// Whether there is a place for one more. If need be, the oldest connection that has not asked anything ends for it.
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
            // One request for each: nobody keeps a place that he does not use.
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
