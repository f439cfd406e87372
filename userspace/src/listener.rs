//! Binds what a configuration says to listen on, and compares two configurations.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use snisplice_config::model::Model;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;

use crate::socket;

/// Connections that may wait in one socket's accept queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long the kernel keeps a connection without a byte to itself.
const DEFER_ACCEPT: Duration = Duration::from_secs(1);

/// An address that cannot be listened on.
#[derive(Debug, Error)]
#[error("listener {listener}: cannot listen on {address}: {source}{}", remedy(.source, .address))]
pub struct BindError {
    /// The listener's name.
    pub listener: String,
    /// Its address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
}

fn remedy(error: &io::Error, address: &SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "; run as root, with CAP_NET_BIND_SERVICE, or serve it elsewhere with --listen {}=ADDRESS:PORT",
            address.port()
        ),
        io::ErrorKind::AddrInUse => {
            format!("; find the other process with `ss -ltnp sport = :{}`", address.port())
        }
        io::ErrorKind::AddrNotAvailable => "; the address is not on this host".into(),
        _ => String::new(),
    }
}

/// One socket for each worker, bound to the same address.
#[derive(Debug)]
pub struct Bound {
    /// What for.
    pub front: Front,
    /// As the configuration has it.
    pub wanted: SocketAddr,
    /// The real address, which differs where port 0 was asked for.
    pub address: SocketAddr,
    /// One for each worker, or more.
    pub sockets: Vec<TcpListener>,
}

/// What an address is listened on for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Largest segment to announce to clients.
    pub mss: Option<u16>,
}

/// Which addresses a configuration listens on, by address.
#[must_use]
pub fn wanted(model: &Model) -> BTreeMap<SocketAddr, Front> {
    model
        .listeners
        .iter()
        .flat_map(|listener| {
            let front = Front { listener: listener.name.as_str().into(), mss: listener.mss };
            listener.bind.iter().map(move |&address| (address, front.clone()))
        })
        .collect()
}

/// Binds `address` once for each of `workers`.
pub fn bind(front: &Front, address: SocketAddr, workers: usize) -> Result<Bound, BindError> {
    let fail = |source| BindError { listener: front.listener.to_string(), address, source };
    // Another process of the same user could join a group of SO_REUSEPORT sockets unnoticed, and would take a share
    // of the connections: the first socket is bound without it, so that a conflict shows.
    drop(open(address, false).map_err(fail)?);
    complete(front, address, Vec::with_capacity(workers), workers)
}

/// The same, with sockets of another process that are bound to `address`. There may be more than workers: closing one of a
/// group would reset the connections in its queue.
pub fn complete(
    front: &Front,
    address: SocketAddr,
    mut sockets: Vec<TcpListener>,
    workers: usize,
) -> Result<Bound, BindError> {
    let fail = |source| BindError { listener: front.listener.to_string(), address, source };
    for socket in &sockets {
        announce(socket, front).map_err(fail)?;
    }
    let mut real = match sockets.first() {
        Some(socket) => socket.local_addr().map_err(fail)?,
        None => address,
    };
    while sockets.len() < workers {
        let socket = open(real, true).and_then(|socket| {
            announce(&socket, front)?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from(socket))
        });
        let socket = socket.map_err(fail)?;
        real = socket.local_addr().map_err(fail)?;
        sockets.push(socket);
    }
    Ok(Bound { front: front.clone(), wanted: address, address: real, sockets })
}

/// Has what is accepted announce no larger segments than it shall.
fn announce(socket: &impl AsFd, front: &Front) -> io::Result<()> {
    front.mss.map_or(Ok(()), |bytes| SockRef::from(socket).set_tcp_mss(bytes.into()))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Restarting must not wait for the TIME_WAIT of former connections.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `0.0.0.0` and `[::]` are two addresses of one listener, each bound for itself.
        socket.set_only_v6(true)?;
    }
    // Inherited by what is accepted, which spares a call for each connection.
    socket.set_tcp_nodelay(true)?;
    // In TLS the client speaks first: there is nothing to do for a connection before its hello. The kernel completes
    // one that stays silent after this time, and then its deadline begins.
    socket::set_defer_accept(&socket, DEFER_ACCEPT)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// What a reload changes about listening.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// To be bound.
    pub added: Vec<(SocketAddr, Front)>,
    /// To be closed.
    pub removed: Vec<SocketAddr>,
}

/// Compares what is listened on with what a new configuration wants. An address that moves to another listener, or whose
/// segments change, is closed and bound again.
#[must_use]
pub fn changes(now: &BTreeMap<SocketAddr, Front>, wanted: &BTreeMap<SocketAddr, Front>) -> Changes {
    let kept: BTreeSet<_> = now
        .iter()
        .filter(|(address, front)| wanted.get(address) == Some(front))
        .map(|(address, _)| address)
        .collect();
    Changes {
        added: wanted
            .iter()
            .filter(|(address, _)| !kept.contains(address))
            .map(|(address, front)| (*address, front.clone()))
            .collect(),
        removed: now.keys().filter(|address| !kept.contains(address)).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(name: &str) -> Front {
        Front { listener: name.into(), mss: None }
    }

    fn addresses(pairs: &[(&str, &str)]) -> BTreeMap<SocketAddr, Front> {
        pairs.iter().map(|(address, name)| (address.parse().unwrap(), front(name))).collect()
    }

    #[test]
    fn a_reload_touches_only_what_differs() {
        let now = addresses(&[("127.0.0.1:1", "a"), ("127.0.0.1:2", "a"), ("127.0.0.1:3", "b")]);
        let then = addresses(&[("127.0.0.1:1", "a"), ("127.0.0.1:3", "c"), ("127.0.0.1:4", "c")]);
        let changes = changes(&now, &then);
        assert_eq!(changes.removed, ["127.0.0.1:2".parse().unwrap(), "127.0.0.1:3".parse().unwrap()]);
        let added: Vec<_> =
            changes.added.iter().map(|(address, front)| (address.port(), &*front.listener)).collect();
        assert_eq!(added, [(3, "c"), (4, "c")]);
    }

    #[test]
    fn other_segments_want_another_socket() {
        let now = addresses(&[("127.0.0.1:1", "a"), ("127.0.0.1:2", "a")]);
        let mut then = now.clone();
        then.insert("127.0.0.1:2".parse().unwrap(), Front { mss: Some(1_360), ..front("a") });
        let changes = changes(&now, &then);
        assert_eq!(changes.removed, ["127.0.0.1:2".parse().unwrap()]);
        assert_eq!(changes.added.len(), 1);
    }

    #[test]
    fn an_address_in_use_is_named_with_a_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(&front("https"), address, 2).unwrap_err().to_string();
        assert!(error.contains("listener https") && error.contains(&address.to_string()), "{error}");
        assert!(error.contains("ss -ltnp"), "{error}");
    }

    #[test]
    fn both_families_of_one_port_bind_side_by_side() {
        let v4 = bind(&front("a"), "0.0.0.0:0".parse().unwrap(), 2).unwrap();
        let v6 = bind(&front("a"), SocketAddr::new("::".parse().unwrap(), v4.address.port()), 2);
        assert!(v6.is_ok(), "{v6:?}");
    }
}
