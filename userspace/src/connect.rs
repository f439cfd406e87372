//! Connects to the first endpoint of a backend that answers.

use std::{
    io,
    net::{SocketAddr, TcpStream as StdStream},
    os::fd::AsFd as _,
    time::Duration,
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with},
};
use socket2::SockRef;
use thiserror::Error;
use tokio::{io::Interest, net::TcpStream, time::timeout};

use crate::{datapath::Datapath, session::Service, socket, state::Backend};

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Upstream {
    /// The connection.
    pub stream: TcpStream,
    /// Its other end.
    pub address: SocketAddr,
    /// What [`Datapath::announce`] said of it.
    pub announced: bool,
}

/// Why no endpoint could be had.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Every endpoint was tried; the last one failed like this.
    #[error("no endpoint of {backend} answered, the last one ({address}): {error}")]
    Failed {
        /// The backend's name.
        backend: String,
        /// Which address failed last.
        address: SocketAddr,
        /// How.
        error: io::Error,
    },
    /// The backend has no endpoint with an address and a weight.
    #[error("{backend} has no endpoint that could be tried")]
    NoEndpoint {
        /// The backend's name.
        backend: String,
    },
    /// The client reset while we were connecting for it.
    #[error("the client went away")]
    ClientGone,
}

impl ConnectError {
    /// Metric and log label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Failed { error, .. } => match error.kind() {
                io::ErrorKind::TimedOut => "connect_timeout",
                io::ErrorKind::ConnectionRefused => "connect_refused",
                _ => "connect_failed",
            },
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::ClientGone => "client_gone",
        }
    }
}

/// Tries the backend's endpoints in turn, each for at most `limit`. No byte has been sent yet, so trying the next one
/// after a failure is safe. A client that resets meanwhile ends the attempt.
pub async fn connect(
    backend: &Backend,
    client: &TcpStream,
    limit: Duration,
    service: &Service,
) -> Result<Upstream, ConnectError> {
    let mut last = None;
    for address in backend.candidates() {
        let attempt = async {
            match timeout(limit, connect_to(backend, address, client, &*service.datapath)).await {
                Ok(result) => result,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        };
        let result = tokio::select! {
            biased;
            result = attempt => result,
            () = reset(client) => return Err(ConnectError::ClientGone),
        };
        match result {
            Ok(upstream) => return Ok(upstream),
            Err(error) => {
                let error = ConnectError::Failed { backend: backend.name.to_string(), address, error };
                service.metrics.connect_failed(&backend.name, error.reason());
                tracing::debug!(%error, "trying the next endpoint");
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::NoEndpoint { backend: backend.name.to_string() }))
}

async fn connect_to(
    backend: &Backend,
    address: SocketAddr,
    client: &TcpStream,
    datapath: &dyn Datapath,
) -> io::Result<Upstream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = StdStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
    socket.set_nodelay(true)?;
    if let Some(source) = backend.source_for(address) {
        socket::set_bind_address_no_port(&socket)?;
        bind(&socket, &SocketAddr::new(source, 0))?;
    }
    // The hello is at hand, so its packet may complete the handshake, and the bare acknowledgement before it is spared.
    let _ = socket::expect_to_answer(&socket);
    let announced = backend.same_host && datapath.announce(socket.as_fd());
    // What is announced or goes over loopback will not be sent on in packets.
    if !announced
        && !address.ip().is_loopback()
        && let Some(bytes) = datapath.largest_segment(client.as_fd())
    {
        // More than any device takes is no bound, and refused.
        let _ = SockRef::from(&socket).set_tcp_mss(bytes);
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    // A backend on the same host answers within connect(2). The hello then goes out before the event loop has had its turn.
    let is_connected = socket::poll_writable(&socket)? == PollFlags::OUT;
    let stream = TcpStream::from_std(socket)?;
    if !is_connected {
        // The runtime's own connect asks the socket for an error in any case.
        let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
        if (ready.is_error() || ready.is_write_closed())
            && let Some(error) = stream.take_error()?
        {
            return Err(error);
        }
    }
    Ok(Upstream { stream, address, announced })
}

/// Waits until the client's socket has failed. A FIN is not that: the client may still be reading.
async fn reset(client: &TcpStream) {
    // An error to wait with is as good as an error on the socket.
    let _ = client.ready(Interest::ERROR).await;
}
