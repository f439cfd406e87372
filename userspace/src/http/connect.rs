//! The interface between requests and the code that connects to backends.

use std::{
    any::Any,
    fmt,
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use snisplice_config::model::{BackendId, http::BackendHttp};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    limits::{Overload, admission::Admission},
    metrics::labels::CloseReason,
    snapshot::Snapshot,
    upstream::{candidates::Candidates, cluster::Cluster, endpoint::Endpoint},
};

/// The bytes of a connection, encrypted or not.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<I: AsyncRead + AsyncWrite + Unpin + Send> Io for I {}

/// A future of a worker.
pub type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A guard that is held while a connection to a backend is open, such as its lease and its permit.
pub type Guard = Box<dyn Any + Send>;

/// A connection to a backend.
pub struct Connected<I = Box<dyn Io>> {
    /// The bytes of the connection.
    pub io: I,
    /// The endpoint at the other end.
    pub endpoint: Arc<Endpoint>,
    /// The guard that counts the connection.
    pub guard: Guard,
}

impl<I> fmt::Debug for Connected<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}

impl Connected {
    /// The bytes of the connection with its guard. They also stay together if the connection switches to another
    /// protocol.
    #[must_use]
    pub fn into_counted(self) -> Counted {
        Counted { io: self.io, _guard: self.guard }
    }
}

/// The bytes of a connection that counts until this is dropped.
pub struct Counted {
    io: Box<dyn Io>,
    _guard: Guard,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The reason for which there is no connection to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotConnected {
    /// A limit of open or pending connections is reached.
    Limited(Overload),
    /// No endpoint accepted a connection.
    Failed(CloseReason),
    /// TLS with the backend failed.
    Tls,
}

/// Connects to backends.
pub trait Connect {
    /// Connects to one of the endpoints, in their order, for at most `limit`. A transparent backend sees `client`. The
    /// connection begins with `header`.
    fn connect<'a>(
        &'a self,
        cluster: &'a Cluster,
        candidates: Candidates,
        client: Option<IpAddr>,
        header: Option<&'a [u8]>,
        limit: Duration,
        admission: &'a Arc<Admission>,
    ) -> Local<'a, Result<Connected<TcpStream>, NotConnected>>;

    /// Encrypts a connection to a backend that requires TLS, for this HTTP version.
    fn encrypt<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        backend: BackendId,
        http: BackendHttp,
        stream: TcpStream,
    ) -> Local<'a, Result<Box<dyn Io>, NotConnected>>;
}
