//! The admin endpoint: HTTP for probes, scrapers and operators, on the main thread, away from the workers.
//!
//! The endpoint has no authentication. Bind it to an address that only operators reach.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
};

use snisplice_config::{model::Admin as Settings, name::HostName};
use tokio::sync::{mpsc, oneshot};

use crate::{
    account::{registry::RegistryRequest, view::Filter},
    limits::admission::Admission,
    metrics::{Metrics, labels::CloseReason},
    net::admin_socket::Socket,
    snapshot::SharedSnapshot,
    upstream::health_collector::SharedWatchlist,
};

mod api;
mod backends;
mod body;
pub mod config;
mod explain;
mod guard;
mod pages;
mod routes;
pub mod server;

/// The state behind the endpoint.
#[derive(Debug)]
pub struct Admin {
    /// The counters of the process.
    pub metrics: Arc<Metrics>,
    /// Whether new connections are welcome: true from the last bind to the first SIGTERM.
    pub ready: AtomicBool,
    /// Whether the relay serves because the probes of the kernel are still running.
    pub probing: AtomicBool,
    /// Knows whether every slot is taken.
    admission: Arc<Admission>,
    allow_close: bool,
    allow_changes: bool,
    /// Names that a `Host` header may contain.
    hosts: Vec<HostName>,
    asked: OnceLock<Askable>,
    reloads: OnceLock<mpsc::UnboundedSender<Reload>>,
    shown: OnceLock<(Arc<SharedSnapshot>, SharedWatchlist)>,
    /// The findings of the configuration in service. `None` before the first load.
    loaded: Mutex<Option<config::LoadedConfig>>,
    /// Held while the workers count the bytes of open connections.
    counting: tokio::sync::Mutex<()>,
}

/// Sends a request to a worker. A worker that has ended does not reply.
pub type Ask = Box<dyn Fn(RegistryRequest) + Send + Sync>;

/// A request to read the configuration again. Receives the number of the new configuration, or the errors.
pub type Reload = oneshot::Sender<Result<u64, String>>;

/// The owners of connections.
pub struct Askable {
    /// Each worker has the connections that it accepted.
    pub workers: Vec<Ask>,
    /// Receives requests about connections of an earlier process.
    pub adopted: mpsc::UnboundedSender<RegistryRequest>,
}

impl fmt::Debug for Askable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Askable").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

/// The requests that an address serves, and their clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every request, of every user that may open the file: no browser opens unix sockets.
    Local,
    /// Every request, except those that may come from a web page.
    Network,
    /// Only the probes of load balancers and orchestrators, for every client.
    Probes,
}

impl Admin {
    /// Creates an endpoint that is not ready yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, admission: Arc<Admission>, settings: &Settings) -> Self {
        let Settings { hosts, allow_close, allow_changes, .. } = settings;
        Self {
            metrics,
            ready: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            admission,
            allow_close: *allow_close,
            allow_changes: *allow_changes,
            hosts: hosts.clone(),
            asked: OnceLock::new(),
            reloads: OnceLock::new(),
            shown: OnceLock::new(),
            loaded: Mutex::default(),
            counting: tokio::sync::Mutex::default(),
        }
    }

    /// Sets the owners of connections, which receive requests from now on.
    pub fn asks(&self, asked: Askable) {
        // A second call has no effect, and none is made.
        let _ = self.asked.set(asked);
    }

    /// Sets the receiver of requests to read the configuration again.
    pub fn reloads_by(&self, reloads: mpsc::UnboundedSender<Reload>) {
        // A second call has no effect, and none is made.
        let _ = self.reloads.set(reloads);
    }

    /// Sets the backends and their health, which are served from now on.
    pub fn shows(&self, current: Arc<SharedSnapshot>, health: SharedWatchlist) {
        // A second call has no effect, and none is made.
        let _ = self.shown.set((current, health));
    }

    /// Replaces the findings by those of the configuration that serves from now on.
    pub fn is_loaded(&self, loaded: config::LoadedConfig) {
        *self.loaded() = Some(loaded);
    }

    /// Notes the errors of a newer configuration that does not serve.
    pub fn has_refused(&self, error: String) {
        if let Some(loaded) = &mut *self.loaded() {
            loaded.refuse(error);
        }
    }

    fn loaded(&self) -> MutexGuard<'_, Option<config::LoadedConfig>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves until dropped. Returns only on an error, before the first connection.
    pub async fn serve(self: Arc<Self>, socket: Socket, scope: Scope) {
        if let Err(error) = server::serve(self, socket, scope).await {
            tracing::error!(%error, "the admin endpoint does not serve");
        }
    }

    /// Ends the selected connections with this close reason. Returns their number.
    pub async fn close_all(&self, filter: &Filter, reason: CloseReason) -> usize {
        let closed = self.ask(|reply| RegistryRequest::Close { filter: filter.clone(), reason, reply }).await;
        closed.into_iter().sum()
    }

    /// Sends a request to all owners, and waits for their replies. An owner that has ended does not reply.
    async fn ask<T>(&self, request: impl Fn(mpsc::UnboundedSender<T>) -> RegistryRequest) -> Vec<T> {
        let (reply, mut replies) = mpsc::unbounded_channel();
        if let Some(Askable { workers, adopted }) = self.asked.get() {
            for ask in workers {
                ask(request(reply.clone()));
            }
            let _ = adopted.send(request(reply.clone()));
        }
        drop(reply);
        let mut answers = Vec::new();
        while let Some(answer) = replies.recv().await {
            answers.push(answer);
        }
        answers
    }
}
