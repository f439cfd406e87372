//! What the requests need of whoever connects to backends.

use std::{any::Any, fmt, pin::Pin, sync::Arc, time::Duration};

use snisplice_config::model::{BackendId, http::BackendHttp};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    limits::{Overload, admission::Admission},
    metrics::labels::CloseReason,
    snapshot::Snapshot,
    upstream::{candidates::Candidates, cluster::Cluster, endpoint::Endpoint},
};

/// A connection's bytes, encrypted or not.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<I: AsyncRead + AsyncWrite + Unpin + Send> Io for I {}

/// A future of a worker.
pub type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What is held for as long as a connection to a backend is open, such as its lease and its place within the limits.
pub type Guard = Box<dyn Any>;

/// A connection to a backend.
pub struct Connected<I = Box<dyn Io>> {
    /// Its bytes.
    pub io: I,
    /// Where it leads.
    pub endpoint: Arc<Endpoint>,
    /// What counts it.
    pub guard: Guard,
}

impl<I> fmt::Debug for Connected<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}

/// Why there is no connection to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotConnected {
    /// As many are open, or are waited for, as may be.
    Limited(Overload),
    /// None could be had.
    Failed(CloseReason),
    /// Encryption failed.
    Tls,
}

/// Connects to backends.
pub trait Connect {
    /// Connects to one of the endpoints, in their order, for at most `limit`.
    fn connect<'a>(
        &'a self,
        cluster: &'a Cluster,
        candidates: Candidates,
        limit: Duration,
        admission: &'a Arc<Admission>,
    ) -> Local<'a, Result<Connected<TcpStream>, NotConnected>>;

    /// Encrypts a connection to a backend that wants that, for this version.
    fn encrypt<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        backend: BackendId,
        http: BackendHttp,
        stream: TcpStream,
    ) -> Local<'a, Result<Box<dyn Io>, NotConnected>>;
}
