//! The TLS handshake with a client whose hello was already read.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{CertificateError, Error, PeerIncompatible};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::server::Server;
use crate::metrics::labels::CloseReason;

/// A client's connection with TLS. Reads return decrypted bytes.
pub type ServerStream = TlsStream<Replayed>;

/// A failed handshake. The client has got an alert, if RFC 8446 section 6.2 defines one for the failure.
#[derive(Debug)]
pub struct Failed {
    /// The close reason to count.
    pub reason: CloseReason,
    /// The error of the library or the socket.
    pub error: io::Error,
    /// The connection. Its close must let the alert arrive.
    pub stream: TcpStream,
}

/// Performs the handshake on a client's connection. `read` contains the bytes already read. The deadline is the
/// caller's.
///
/// # Errors
/// Returns an error if the client disconnects, supports no common version or suite, or lacks a required certificate.
pub async fn accept(stream: TcpStream, read: Vec<u8>, server: &Server) -> Result<ServerStream, Failed> {
    // The library tries only once to write an alert. The runtime assumes that a newly registered socket is not
    // writable.
    if let Err(error) = stream.writable().await {
        return Err(Failed { reason: CloseReason::ClientGone, error, stream });
    }
    let acceptor = TlsAcceptor::from(server.config.clone());
    let accepted = acceptor.accept(Replayed { read, at: 0, stream }).into_fallible().await;
    accepted.map_err(|(error, replayed)| Failed { reason: reason(&error), error, stream: replayed.stream })
}

/// Whether a hello is of a version before TLS 1.2, which no server here supports (RFC 8996). The library detects
/// other faults in such a hello first, and sends their alerts.
pub async fn is_too_old(stream: &TcpStream, read: &[u8]) -> bool {
    // Up to the field `legacy_version` (RFC 8446 section 4.1.2).
    let mut first = [0; 11];
    if read.is_empty() {
        stream.peek(&mut first).await.is_ok_and(|count| is_old(&first[..count]))
    } else {
        is_old(read)
    }
}

fn is_old(hello: &[u8]) -> bool {
    matches!(hello, [22, _, _, _, _, 1, _, _, _, 3, 0..=2, ..])
}

/// The close reason of a failed handshake.
fn reason(error: &io::Error) -> CloseReason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::Revoked)) => CloseReason::ClientCertificateRevoked,
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => {
            CloseReason::ClientCertificateRefused
        }
        Some(Error::PeerIncompatible(
            PeerIncompatible::NoSignatureSchemesInCommon | PeerIncompatible::NoCipherSuitesInCommon,
        )) => CloseReason::NoCertificate,
        Some(_) => CloseReason::HandshakeFailed,
        // The client has disconnected, by FIN or RST.
        None => CloseReason::ClientGone,
    }
}

/// A client's socket, with bytes that were read before.
#[derive(Debug)]
pub struct Replayed {
    read: Vec<u8>,
    /// Number of those bytes that were read again.
    at: usize,
    stream: TcpStream,
}

impl Replayed {
    /// The underlying socket.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }
}

impl AsyncRead for Replayed {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let left = &this.read[this.at..];
        if left.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        this.at += count;
        if this.at == this.read.len() {
            // Frees the buffer, since a connection may be idle for hours.
            (this.read, this.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_tls_1_2_are_old() {
        let hello = |minor| [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, minor];
        assert!([0, 1, 2].into_iter().all(|minor| is_old(&hello(minor))));
        assert!(!is_old(&hello(3)) && !is_old(&hello(3)[..9]) && !is_old(b"GET / HTTP/1.1"));
    }
}
