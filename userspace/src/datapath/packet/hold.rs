//! Sockets that hold the ports of a flow and do nothing else.

use std::{
    io,
    net::{SocketAddr, TcpStream},
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::socket;

/// Makes a socket of a flow quiet for good. `None` if its port could not be held, which is logged.
///
/// One that still waits for an acknowledgement will never have it, since that went to the other end: it would send
/// again and again. It gives way to one that the kernel takes for connected without a packet (`TCP_REPAIR`).
pub(super) fn quiet(stream: tokio::net::TcpStream) -> Option<TcpStream> {
    let stream = stream.into_std().ok()?;
    // Nobody would answer its probes, and it would give its port up.
    let _ = SockRef::from(&stream).set_keepalive(false);
    match socket::unacknowledged(&stream) {
        Ok(0) => Some(stream),
        _ => replace(stream),
    }
}

/// The old one, where there is no descriptor for a new one: what it sends again is dropped on its way out.
fn replace(old: TcpStream) -> Option<TcpStream> {
    let (new, remote) = match prepare(&old) {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::debug!(%error, "a socket goes on sending");
            return Some(old);
        }
    };
    // From here on the port is the new one's.
    drop(old);
    let connected = new
        .connect(&remote.into())
        .and_then(|()| socket::end_silence(&new))
        .and_then(|()| socket::reset_on_close(&new));
    connected.inspect_err(|error| tracing::debug!(%error, "a port is not held")).ok()?;
    Some(new.into())
}

/// A socket that shares the old one's address, and its peer's address. The old one can be closed silently after this.
fn prepare(old: &TcpStream) -> io::Result<(Socket, SocketAddr)> {
    let (local, remote) = (old.local_addr()?, old.peer_addr()?);
    let new = Socket::new(Domain::for_address(local), Type::STREAM, None)?;
    // Lets it share the port with the old one, and with a listener.
    socket::keep_silent(&new)?;
    new.bind(&local.into())?;
    socket::keep_silent(old)?;
    Ok((new, remote))
}
