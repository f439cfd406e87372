//! Sockets that hold the ports of a flow and do nothing else.

use std::{io, net::TcpStream};

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
    let quiet = match socket::unacknowledged(&stream) {
        Ok(0) => Ok(stream),
        _ => replacement(stream),
    };
    quiet.inspect_err(|error| tracing::debug!(%error, "a port is not held")).ok()
}

fn replacement(old: TcpStream) -> io::Result<TcpStream> {
    let (local, remote) = (old.local_addr()?, old.peer_addr()?);
    let new = Socket::new(Domain::for_address(local), Type::STREAM, None)?;
    // Lets it share the port with the old one, and with a listener.
    socket::keep_silent(&new)?;
    new.bind(&local.into())?;
    socket::keep_silent(&old)?;
    drop(old);
    new.connect(&remote.into())?;
    socket::end_silence(&new)?;
    socket::reset_on_close(&new)?;
    Ok(new.into())
}
