//! The sockets of the admin endpoint, and what bounds each connection to it.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fs, io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _},
            net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
        },
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use snisplice_config::admin::AdminAddress;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::AbortHandle,
    time::{sleep, timeout},
};

use super::{Admin, Scope};
use crate::log::log_limit;

/// Connections to the admin address at once.
pub const CONNECTIONS: usize = 64;

/// Connections to the address that serves `/ready` alone at once.
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

/// A listening socket, not yet in an event loop.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(StdTcpListener),
    /// A unix socket.
    Unix(StdUnixListener),
}

impl Socket {
    /// Binds `address`. A unix socket is its owner's alone (mode 0600), and replaces the file of one that nobody listens on.
    pub fn bind(address: &AdminAddress) -> io::Result<Self> {
        match address {
            AdminAddress::Tcp(address) => StdTcpListener::bind(address).map(Self::Tcp),
            AdminAddress::Unix(path) => bind_unix(path).map(Self::Unix),
        }
    }

    /// The socket that another process has bound to `address`.
    #[must_use]
    pub fn inherited(address: &AdminAddress, socket: OwnedFd) -> Self {
        match address {
            AdminAddress::Tcp(_) => Self::Tcp(socket.into()),
            AdminAddress::Unix(_) => Self::Unix(socket.into()),
        }
    }

    /// The same socket once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
        }
    }

    /// The TCP address, which tells the port where 0 was asked for.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(Some),
            Self::Unix(_) => Ok(None),
        }
    }

    /// For an event loop.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    if let Some(parent) = path.parent()
        && !parent.exists()
    {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => match StdUnixStream::connect(path) {
            // Nobody has it open any more: its process is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves there")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file gets the socket's own mode when it is bound (unix_bind in the kernel): it is never open to others.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, 128)?;
    Ok(socket.into())
}

/// A connection that is served.
struct Open {
    task: AbortHandle,
    /// Whether it has not asked yet.
    silent: Arc<AtomicBool>,
}

/// Serves until dropped.
pub(super) async fn serve(admin: Arc<Admin>, socket: Socket, scope: Scope) -> io::Result<()> {
    let places = match scope {
        Scope::Ready => PROBES,
        Scope::Local | Scope::Network => CONNECTIONS,
    };
    let mut server = Server { admin, scope, places, open: VecDeque::new() };
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
    admin: Arc<Admin>,
    scope: Scope,
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
        let (admin, scope) = (self.admin.clone(), self.scope);
        let silent = Arc::new(AtomicBool::new(true));
        let asks = silent.clone();
        let service = service_fn(move |request| {
            asks.store(false, Relaxed);
            let admin = admin.clone();
            async move { Ok::<_, Infallible>(admin.answer(scope, &request).await) }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_file_of_a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/admin.sock");
        let address = AdminAddress::Unix(path.clone());
        let first = Socket::bind(&address).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(Socket::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = Socket::bind(&address).unwrap();
        assert!(StdUnixStream::connect(&path).is_ok());
        drop(second);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::bind(&address).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
