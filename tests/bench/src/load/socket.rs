//! Non-blocking sockets of the generator and the backend.

use std::net::SocketAddr;

use rustix::{
    fd::{BorrowedFd, OwnedFd},
    io::Errno,
    net::{
        self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        sockopt::{set_socket_reuseaddr, set_socket_reuseport, set_tcp_nodelay},
    },
};

use super::fault::Fault;

/// The result of one receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// This number of bytes.
    Bytes(usize),
    /// No byte for now.
    Nothing,
    /// FIN.
    End,
}

fn family(address: &SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Starts a connection in the calling thread's network namespace.
pub(crate) fn connect(address: &SocketAddr) -> Result<OwnedFd, Fault> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket =
        net::socket_with(family(address), SocketType::STREAM, flags, None).map_err(Fault::Connect)?;
    // Messages are written whole, so a delay would only measure Nagle's algorithm.
    set_tcp_nodelay(&socket, true).map_err(Fault::Connect)?;
    match net::connect(&socket, address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(Fault::Connect(errno)),
    }
}

/// A listener in the calling thread's network namespace, one of several on the same port.
pub(crate) fn listen(address: &SocketAddr) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(family(address), SocketType::STREAM, flags, None)?;
    set_socket_reuseaddr(&socket, true)?;
    set_socket_reuseport(&socket, true)?;
    net::bind(&socket, address)?;
    net::listen(&socket, 4096)?;
    Ok(socket)
}

/// The next connection, if any.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Errno> {
    match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(socket) => {
            set_tcp_nodelay(&socket, true)?;
            Ok(Some(socket))
        }
        // The peer may have disconnected before accept(2).
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sends the part that the socket accepts now. Returns 0 if it accepts nothing.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Fault> {
    match net::send(socket, bytes, SendFlags::NOSIGNAL) {
        Ok(count) => Ok(count),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(errno @ (Errno::CONNREFUSED | Errno::TIMEDOUT | Errno::HOSTUNREACH)) => {
            Err(Fault::Connect(errno))
        }
        Err(errno) => Err(Fault::Io(errno)),
    }
}

/// Receives into `buffer`.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Fault> {
    receive_with(socket, buffer, RecvFlags::empty())
}

/// Receives up to `buffer.len()` bytes and discards them in the kernel. On TCP, `MSG_TRUNC` skips the copy to
/// userspace (tcp(7)), which leaves more processor time to the balancer.
pub(crate) fn discard(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Received, Fault> {
    receive_with(socket, buffer, RecvFlags::TRUNC)
}

fn receive_with(socket: BorrowedFd<'_>, buffer: &mut [u8], flags: RecvFlags) -> Result<Received, Fault> {
    match net::recv(socket, buffer, flags) {
        Ok((_, 0)) => Ok(Received::End),
        Ok((_, count)) => Ok(Received::Bytes(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
        Err(errno @ (Errno::CONNREFUSED | Errno::TIMEDOUT | Errno::HOSTUNREACH)) => {
            Err(Fault::Connect(errno))
        }
        Err(errno) => Err(Fault::Io(errno)),
    }
}
