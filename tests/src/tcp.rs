//! Plain TCP inside namespaces, with deadlines on every call, and exact results of a connection's end.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use socket2::SockRef;

use crate::{
    netns::Netns,
    wait::{self, DEADLINE},
};

/// The end of a peer's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// FIN.
    Eof,
    /// RST.
    Reset,
}

/// Connects from inside `netns`.
pub fn connect(netns: &Netns, address: &str) -> Result<TcpStream> {
    let to: SocketAddr = address.parse().with_context(|| format!("not an address: {address}"))?;
    let stream = netns
        .enter(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)?))
        .with_context(|| format!("cannot connect to {to}"))?;
    limit(&stream)?;
    Ok(stream)
}

/// Listens inside `netns`.
///
/// Retries an address in use: a process that another test starts at that moment holds a former listener of this
/// address from fork(2) to exec(2).
pub fn listen(netns: &Netns, address: &str) -> Result<TcpListener> {
    let what = format!("cannot listen on {address}");
    let listener = wait::until(&what, || {
        netns.enter(|| match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            bound => Ok(Some(bound.with_context(|| what.clone())?)),
        })
    })?;
    // The timeout also bounds accept(2).
    SockRef::from(&listener).set_read_timeout(Some(DEADLINE))?;
    Ok(listener)
}

/// The next connection to `listener`.
pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept().context("no connection came")?;
    limit(&stream)?;
    Ok(stream)
}

fn limit(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(())
}

/// Closes with RST instead of FIN.
pub fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Reads to the end. Returns the bytes and the kind of the end.
pub fn read_to_end(stream: &mut TcpStream) -> Result<(Vec<u8>, Ending)> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => Ok((bytes, Ending::Eof)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok((bytes, Ending::Reset)),
        Err(error) => bail!("neither FIN nor RST after {} bytes: {error}", bytes.len()),
    }
}

/// Sends `bytes`, and reads to the end. If a reset comes first, the write reports the reset, and a read would only see
/// the end of the stream.
pub fn send_and_read_to_end(stream: &mut TcpStream, bytes: &[u8]) -> Result<(Vec<u8>, Ending)> {
    match stream.write_all(bytes) {
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            Ok((Vec::new(), Ending::Reset))
        }
        written => {
            written?;
            read_to_end(stream)
        }
    }
}

/// Reads exactly `count` bytes.
pub fn read_exact(stream: &mut TcpStream, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).with_context(|| format!("expected {count} bytes"))?;
    Ok(bytes)
}

/// Sends `bytes` one byte at a time, each in a segment of its own.
pub fn write_bytewise(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    for byte in bytes {
        stream.write_all(std::slice::from_ref(byte))?;
    }
    Ok(())
}
