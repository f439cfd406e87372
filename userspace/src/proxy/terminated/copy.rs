//! Copies decrypted bytes in both directions until both have ended.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep_until},
};
use tokio_rustls::client;

use crate::{
    account::Account,
    datapath::{
        relay::pump::with_scratch,
        seam::{End, Patience},
    },
    metrics::labels::{CloseReason, Direction},
    net::sockopt,
    proxy::refuse::farewell,
    terminate::handshake::ServerStream,
};

/// The size of one read, in bytes: four records (RFC 8446 section 5.1). More would only wait for the receiver.
const STEP: usize = 64 * 1024;

/// One of the two connections.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Whether a client is at the other end.
    const IS_CLIENT: bool = false;

    /// The underlying TCP socket.
    fn socket(&self) -> &TcpStream;
}

impl Socket for ServerStream {
    const IS_CLIENT: bool = true;

    fn socket(&self) -> &TcpStream {
        self.get_ref().0.socket()
    }
}

impl Socket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Socket for client::TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Copies between a client and a backend until both directions have ended, and closes both.
pub(super) async fn copy(
    client: impl Socket,
    backend: impl Socket,
    account: &Account,
    patience: Patience,
) -> CloseReason {
    let mut copying = Copying {
        client,
        backend,
        up: OneWay::default(),
        down: OneWay::default(),
        account,
        active: Instant::now(),
    };
    loop {
        let half_closed = copying.up.is_over() || copying.down.is_over();
        let limit = if half_closed { patience.half_closed.min(patience.idle) } else { patience.idle };
        let deadline = copying.active + limit;
        let event = tokio::select! {
            biased;
            event = poll_fn(|context| copying.poll(context, half_closed)) => event,
            () = sleep_until(deadline) => {
                if copying.active + limit > deadline {
                    continue;
                }
                Event::End(if half_closed { End::HalfClosed.reason() } else { End::Idle.reason() })
            }
        };
        match event {
            Event::HalfClosed => copying.active = Instant::now(),
            Event::End(CloseReason::Finished) => return CloseReason::Finished,
            Event::End(reason) => {
                copying.break_off(reason).await;
                return reason;
            }
        }
    }
}

/// The event that ends the wait.
enum Event {
    /// One direction has ended.
    HalfClosed,
    /// The connection has ended.
    End(CloseReason),
}

struct Copying<'a, C, B> {
    client: C,
    backend: B,
    up: OneWay,
    down: OneWay,
    account: &'a Account,
    /// The time of the last moved byte that counts as activity.
    active: Instant,
}

impl<C: Socket, B: Socket> Copying<'_, C, B> {
    fn poll(&mut self, context: &mut Context<'_>, half_closed: bool) -> Poll<Event> {
        let before = self.account.bytes();
        let Self { client, backend, up, down, account, .. } = self;
        let up_polled = up.poll(client, backend, context, |count| account.moved(Direction::Up, count));
        let down_polled = down.poll(backend, client, context, |count| account.moved(Direction::Down, count));
        let (up_bytes, down_bytes) = self.account.bytes();
        if Patience::progress(up_bytes, down_bytes) != Patience::progress(before.0, before.1) {
            self.active = Instant::now();
        }
        if let Poll::Ready(Err(failure)) = up_polled {
            return Poll::Ready(Event::End(failure.reason(Peer::Client, Peer::Backend)));
        }
        if let Poll::Ready(Err(failure)) = down_polled {
            return Poll::Ready(Event::End(failure.reason(Peer::Backend, Peer::Client)));
        }
        match (self.up.is_over(), self.down.is_over()) {
            (true, true) => Poll::Ready(Event::End(CloseReason::Finished)),
            (false, false) => Poll::Pending,
            _ if half_closed => Poll::Pending,
            _ => Poll::Ready(Event::HalfClosed),
        }
    }

    /// Aborts both connections. The peers must not mistake the last byte for the end of the data.
    async fn break_off(&mut self, reason: CloseReason) {
        let (client, backend) = (self.client.socket(), self.backend.socket());
        let _ = sockopt::reset_on_close(backend);
        match reason {
            // Lets the alert of the TLS library arrive, and the bytes of a backend that sent no `close_notify`.
            CloseReason::TlsFailed | CloseReason::BackendTruncated => farewell(client, &[]).await,
            _ => drop(sockopt::reset_on_close(client)),
        }
    }
}

/// The owner of a socket.
#[derive(Clone, Copy)]
enum Peer {
    Client,
    Backend,
}

/// The failure of one direction.
enum Failure {
    Read(io::Error),
    Write(io::Error),
    /// The sender's TLS ended without a `close_notify`, and all received bytes are delivered.
    Truncated,
}

impl Failure {
    fn reason(self, from: Peer, to: Peer) -> CloseReason {
        let (peer, error) = match self {
            Self::Truncated => return CloseReason::BackendTruncated,
            Self::Read(error) => (from, error),
            Self::Write(error) => (to, error),
        };
        let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some();
        match peer {
            Peer::Client if of_tls => CloseReason::TlsFailed,
            Peer::Backend if of_tls => CloseReason::BackendTlsFailed,
            Peer::Client => End::broken_by_client(error).reason(),
            Peer::Backend => End::broken_by_backend(error).reason(),
        }
    }
}

/// The state of one direction.
#[derive(Debug, Default)]
struct OneWay {
    /// Bytes read that the receiver has not accepted completely.
    kept: Vec<u8>,
    /// The number of bytes of `kept` that the receiver has accepted.
    taken: usize,
    stage: Stage,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The sender has ended. The receiver does not know it yet.
    Ending,
    /// Like `Ending`, but without a `close_notify` of the sender.
    Truncated,
    /// The receiver has got the end of the data.
    Over,
}

impl OneWay {
    fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Copies until no byte can be read or written. Resolves once the receiver has got the end of the data.
    fn poll<R: Socket, W: Socket>(
        &mut self,
        from: &mut R,
        to: &mut W,
        context: &mut Context<'_>,
        moved: impl Fn(u64),
    ) -> Poll<Result<(), Failure>> {
        loop {
            while self.taken < self.kept.len() {
                let left = &self.kept[self.taken..];
                let count = ready!(Pin::new(&mut *to).poll_write(context, left))
                    .and_then(some)
                    .map_err(Failure::Write)?;
                self.taken += count;
                moved(count as u64);
            }
            if !self.kept.is_empty() {
                // Frees the buffer, since a connection may be idle for hours.
                (self.kept, self.taken) = (Vec::new(), 0);
            }
            match self.stage {
                Stage::Open => {}
                Stage::Ending => {
                    // A receiver that has closed by now has missed nothing.
                    let told = ready!(Pin::new(&mut *to).poll_shutdown(context));
                    if let Err(error) = told
                        && error.kind() != io::ErrorKind::NotConnected
                    {
                        return Poll::Ready(Err(Failure::Write(error)));
                    }
                    self.stage = Stage::Over;
                    return Poll::Ready(Ok(()));
                }
                Stage::Truncated => {
                    ready!(Pin::new(&mut *to).poll_flush(context)).map_err(Failure::Write)?;
                    return Poll::Ready(Err(Failure::Truncated));
                }
                Stage::Over => return Poll::Ready(Ok(())),
            }
            let step = with_scratch(|scratch| self.step(&mut scratch[..STEP], from, to, context, &moved));
            match step {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    // Sends the bytes that the TLS library still holds.
                    if let Poll::Ready(Err(error)) = Pin::new(&mut *to).poll_flush(context) {
                        return Poll::Ready(Err(Failure::Write(error)));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads once, and writes as much as the receiver accepts.
    fn step<R: Socket, W: Socket>(
        &mut self,
        scratch: &mut [u8],
        from: &mut R,
        to: &mut W,
        context: &mut Context<'_>,
        moved: &impl Fn(u64),
    ) -> Poll<Result<(), Failure>> {
        let mut buffer = ReadBuf::new(scratch);
        match ready!(Pin::new(from).poll_read(context, &mut buffer)) {
            Ok(()) => {}
            // TLS without a `close_notify` (RFC 8446 section 6.1). A client that ends in this way is accepted. A
            // backend's response may be incomplete.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.stage = if R::IS_CLIENT { Stage::Ending } else { Stage::Truncated };
                return Poll::Ready(Ok(()));
            }
            Err(error) => return Poll::Ready(Err(Failure::Read(error))),
        }
        let mut read = buffer.filled();
        if read.is_empty() {
            self.stage = Stage::Ending;
            return Poll::Ready(Ok(()));
        }
        while !read.is_empty() {
            match Pin::new(&mut *to).poll_write(context, read) {
                Poll::Ready(written) => {
                    let count = written.and_then(some).map_err(Failure::Write)?;
                    moved(count as u64);
                    read = &read[count..];
                }
                Poll::Pending => {
                    self.kept = read.to_vec();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A write of zero bytes means that the socket is unusable.
fn some(count: usize) -> io::Result<usize> {
    if count > 0 { Ok(count) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, sync::Arc, time::Duration};

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring::default_provider,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// Two connected sockets.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Two connected TLS streams: the client's and the server's.
    async fn tls_pair() -> (client::TlsStream<TcpStream>, tokio_rustls::server::TlsStream<TcpStream>) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["backend.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = pair().await;
        let connect = TlsConnector::from(Arc::new(config)).connect("backend.test".try_into().unwrap(), near);
        let (near, far) = tokio::join!(connect, TlsAcceptor::from(Arc::new(server)).accept(far));
        (near.unwrap(), far.unwrap())
    }

    const PATIENCE: Patience =
        Patience { idle: Duration::from_secs(60), half_closed: Duration::from_secs(60) };

    /// Returns the bytes that the client receives and the close reason, for a backend that sends `inside`. `orderly`
    /// adds a `close_notify`.
    async fn ended(orderly: bool) -> (Vec<u8>, CloseReason) {
        let account = Rc::new(Account::default());
        let (mut outer, client) = pair().await;
        let (backend, mut server) = tls_pair().await;
        let talk = async {
            server.write_all(b"inside").await.unwrap();
            if orderly {
                server.shutdown().await.unwrap();
                outer.shutdown().await.unwrap();
            } else {
                server.get_mut().0.shutdown().await.unwrap();
            }
            let mut said = Vec::new();
            outer.read_to_end(&mut said).await.unwrap();
            // Waits until the balancer has closed both.
            drop(outer);
            said
        };
        let (said, reason) = tokio::join!(talk, copy(client, backend, &account, PATIENCE));
        assert_eq!(account.bytes(), (0, 6));
        (said, reason)
    }

    #[tokio::test]
    async fn a_backend_that_is_cut_short_is_told_from_one_that_has_ended() {
        assert_eq!(ended(true).await, (b"inside".to_vec(), CloseReason::Finished));
        assert_eq!(ended(false).await, (b"inside".to_vec(), CloseReason::BackendTruncated));
    }

    #[tokio::test]
    async fn silence_ends_a_connection_and_a_half_closed_one_sooner() {
        let account = Account::default();
        let patience = Patience { idle: Duration::from_millis(100), half_closed: Duration::from_secs(60) };
        let (_outer, client) = pair().await;
        let (backend, _inner) = pair().await;
        assert_eq!(copy(client, backend, &account, patience).await, CloseReason::IdleTimeout);
        let (mut outer, client) = pair().await;
        let (backend, _inner) = pair().await;
        outer.shutdown().await.unwrap();
        let patience = Patience { half_closed: Duration::from_millis(100), ..PATIENCE };
        assert_eq!(copy(client, backend, &account, patience).await, CloseReason::HalfClosedTimeout);
    }
}
