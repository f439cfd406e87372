//! The admin endpoint: HTTP for probes, scrapers and operators, on the main thread, away from the workers.
//!
//! It asks nobody who they are: it is for an address that only operators reach.

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use snisplice_config::{model::Admin as Settings, name::HostName};
use tokio::sync::mpsc;

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
mod guard;
mod pages;
pub mod server;

/// What the endpoint shows.
#[derive(Debug)]
pub struct Admin {
    /// Everything counted.
    pub metrics: Arc<Metrics>,
    /// Whether new connections are welcome: true from the last bind to the first SIGTERM.
    pub ready: AtomicBool,
    /// Whether connections are relayed because it is not known yet what the kernel can do.
    pub probing: AtomicBool,
    /// Tells whether every place is taken.
    admission: Arc<Admission>,
    allow_close: bool,
    /// Names that a `Host` header may have.
    hosts: Vec<HostName>,
    asked: OnceLock<Askable>,
    shown: OnceLock<(Arc<SharedSnapshot>, SharedWatchlist)>,
    /// Held while the workers count what open connections have moved.
    counting: tokio::sync::Mutex<()>,
}

/// Asks a worker. One that has ended does not answer.
pub type Ask = Box<dyn Fn(RegistryRequest) + Send + Sync>;

/// Who is asked for connections.
pub struct Askable {
    /// Each has those that it accepted.
    pub workers: Vec<Ask>,
    /// Those that were taken over from another process.
    pub adopted: mpsc::UnboundedSender<RegistryRequest>,
}

impl fmt::Debug for Askable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Askable").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

/// What is served at an address, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything, to whoever may open the file: no browser opens unix sockets.
    Local,
    /// Everything, but nothing that may come from a web page.
    Network,
    /// What load balancers and orchestrators probe, and nothing else, to everybody.
    Probes,
}

impl Admin {
    /// Not ready yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, admission: Arc<Admission>, settings: &Settings) -> Self {
        let Settings { hosts, allow_close, .. } = settings;
        Self {
            metrics,
            ready: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            admission,
            allow_close: *allow_close,
            hosts: hosts.clone(),
            asked: OnceLock::new(),
            shown: OnceLock::new(),
            counting: tokio::sync::Mutex::default(),
        }
    }

    /// From now on these are asked for their connections.
    pub fn asks(&self, asked: Askable) {
        // Only the first time counts; there is no second.
        let _ = self.asked.set(asked);
    }

    /// From now on these backends are shown, with their health.
    pub fn shows(&self, current: Arc<SharedSnapshot>, health: SharedWatchlist) {
        // Only the first time counts; there is no second.
        let _ = self.shown.set((current, health));
    }

    /// Serves until dropped. Ends only with an error, before the first connection.
    pub async fn serve(self: Arc<Self>, socket: Socket, scope: Scope) {
        if let Err(error) = server::serve(self, socket, scope).await {
            tracing::error!(%error, "the admin endpoint does not serve");
        }
    }

    /// Ends connections for this reason; how many.
    pub async fn close_all(&self, filter: &Filter, reason: CloseReason) -> usize {
        let closed = self.ask(|reply| RegistryRequest::Close { filter: filter.clone(), reason, reply }).await;
        closed.into_iter().sum()
    }

    /// Asks all, and waits for their answers. One that has ended has none.
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
