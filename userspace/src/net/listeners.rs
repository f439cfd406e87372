//! Binds the addresses of a configuration, and compares two configurations.

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use rustix::{fs::fstat, net::listen};
use snisplice_config::model::Model;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use thiserror::Error;

use super::{
    listening::{self, Listening},
    sockopt,
};

/// Connections that may wait in one socket's accept queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The time for which the kernel holds back a connection without a byte.
const DEFER_ACCEPT: Duration = Duration::from_secs(1);

/// The error for an address that cannot be bound.
#[derive(Debug, Error)]
#[error("listener {listener}: cannot listen on {address}: {source}{}", remedy(.source, .address))]
pub struct BindError {
    /// The listener's name.
    pub listener: String,
    /// Its address.
    pub address: SocketAddr,
    /// The kernel's error.
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
        io::ErrorKind::AddrNotAvailable => {
            "; the address is not on this host; `freebind: true` on the listener \
                                            binds it before it is, as on a standby of VRRP"
                .into()
        }
        _ => String::new(),
    }
}

/// One socket for each worker, bound to the same address.
#[derive(Debug)]
pub struct Bound {
    /// The properties of the listener.
    pub front: Front,
    /// The address in the configuration.
    pub wanted: SocketAddr,
    /// The bound address, which has another port if port 0 was configured.
    pub address: SocketAddr,
    /// At least one for each worker.
    pub sockets: Vec<TcpListener>,
    /// Whether another process listens on the address, or on one that overlaps. [`Bound::listen`] takes connections
    /// away from it.
    pub late: bool,
    /// Whether the sockets close as soon as the clients that are connecting to them have been accepted.
    pub leaves: bool,
}

impl Bound {
    /// Sockets of another process at an address that the configuration lacks.
    pub fn leaving(front: &Front, address: SocketAddr, sockets: Vec<TcpListener>) -> Result<Self, BindError> {
        Ok(Self { leaves: true, ..complete(front, address, sockets, 0)? })
    }

    /// Makes all sockets listen, and sets the announced segment size. Sockets of another process listen already, for
    /// that process. So this is called only when this process serves.
    pub fn listen(&self) -> Result<(), BindError> {
        self.sockets.iter().try_for_each(|socket| self.listen_on(socket))
    }

    /// As [`Bound::listen`], for a process that must serve. Returns the errors, and drops a socket that does not
    /// listen.
    pub fn listen_if_possible(&mut self) -> Vec<BindError> {
        let (mut listening, mut errors) = (Vec::new(), Vec::new());
        for socket in std::mem::take(&mut self.sockets) {
            errors.extend(self.listen_on(&socket).err());
            if SockRef::from(&socket).is_listener().unwrap_or(false) {
                listening.push(socket);
            }
        }
        self.sockets = listening;
        errors
    }

    fn listen_on(&self, socket: &TcpListener) -> Result<(), BindError> {
        let fail =
            |source| BindError { listener: self.front.listener.to_string(), address: self.wanted, source };
        announce(socket, &self.front).map_err(fail)?;
        listen(socket, BACKLOG).map_err(|error| fail(error.into()))
    }
}

/// The properties of the listener at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Largest segment to announce to clients.
    pub mss: Option<u16>,
    /// Whether to bind the address even if this host does not have it.
    pub freebind: bool,
    /// Whether to skip the address if the kernel lacks its family.
    pub optional: bool,
}

/// The addresses that a configuration listens on.
#[must_use]
pub fn wanted(model: &Model) -> BTreeMap<SocketAddr, Front> {
    model
        .listeners
        .iter()
        .flat_map(|listener| {
            let name: Arc<str> = listener.name.as_str().into();
            listener.bind.iter().map(move |&address| {
                let front = Front {
                    listener: name.clone(),
                    mss: listener.mss,
                    freebind: listener.freebind,
                    optional: listener.any_address && address.ip().is_unspecified(),
                };
                (address, front)
            })
        })
        .collect()
}

/// As [`bind`]. `None`, with a warning, if the kernel lacks the address's family (`ipv6.disable=1`) and the
/// configuration does not name the address itself.
pub fn bind_if_possible(
    front: &Front,
    address: SocketAddr,
    workers: usize,
    own: &[Own],
) -> Result<Option<Bound>, BindError> {
    match bind(front, address, workers, own) {
        Err(error) if is_left_out(front, &error.source) => {
            let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
            tracing::warn!(
                listener = %front.listener, %address,
                "the kernel has no {family}: the listener serves its other addresses; write `bind` to have this an error"
            );
            Ok(None)
        }
        bound => bound.map(Some),
    }
}

/// Whether socket(2) does not support a family that the configuration does not name itself.
fn is_left_out(front: &Front, error: &io::Error) -> bool {
    front.optional && error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Binds `address` once for each of `workers`, beside this process's sockets in `own`. The sockets do not listen yet.
pub fn bind(front: &Front, address: SocketAddr, workers: usize, own: &[Own]) -> Result<Bound, BindError> {
    let fail = |source| BindError { listener: front.listener.to_string(), address, source };
    let rivals: Vec<_> = own.iter().filter(|own| overlap(own.address, address)).collect();
    // Another process of the same user could join a group of `SO_REUSEPORT` sockets unnoticed, and would take a share
    // of the connections.
    if rivals.is_empty() {
        // Without that option, a conflict is an error.
        drop(open(address, front, false).map_err(fail)?);
    } else {
        // The balancer's sockets cause this error, too. The kernel's table shows whether there are others.
        let foreign = |there: &Listening| {
            overlap(there.address, address) && !rivals.iter().any(|own| own.inode == there.inode)
        };
        if listening::sockets(address).map_err(fail)?.iter().any(foreign) {
            return Err(fail(io::ErrorKind::AddrInUse.into()));
        }
    }
    let bound = complete(front, address, Vec::with_capacity(workers), workers)?;
    Ok(Bound { late: !rivals.is_empty(), ..bound })
}

/// A listening socket of this process, or of one that hands it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    address: SocketAddr,
    inode: u64,
}

impl Own {
    /// The properties of this socket.
    pub fn of(socket: &TcpListener) -> io::Result<Self> {
        Ok(Self { address: socket.local_addr()?, inode: fstat(socket)?.st_ino })
    }
}

/// Whether `wide` is a wildcard address, and `narrow` one of its addresses with the same port.
#[must_use]
pub fn covers(wide: SocketAddr, narrow: SocketAddr) -> bool {
    wide.port() == narrow.port()
        && wide.port() != 0
        && wide.is_ipv4() == narrow.is_ipv4()
        && wide.ip().is_unspecified()
        && !narrow.ip().is_unspecified()
}

/// Whether both addresses could accept the same connection. IPv6 sockets accept no IPv4 connections here.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let same = one.port() != 0 && (one.ip(), one.port()) == (other.ip(), other.port());
    same || covers(one, other) || covers(other, one)
}

/// As [`bind`], with sockets of another process that are bound to `address`. They stay, even if there are more than
/// workers: closing one of a group would reset the connections in its queue.
pub fn complete(
    front: &Front,
    address: SocketAddr,
    mut sockets: Vec<TcpListener>,
    workers: usize,
) -> Result<Bound, BindError> {
    let fail = |source| BindError { listener: front.listener.to_string(), address, source };
    let late = !sockets.is_empty();
    let mut real = match sockets.first() {
        Some(socket) => socket.local_addr().map_err(fail)?,
        None => address,
    };
    while sockets.len() < workers {
        let socket = TcpListener::from(open(real, front, true).map_err(fail)?);
        real = socket.local_addr().map_err(fail)?;
        sockets.push(socket);
    }
    Ok(Bound { front: front.clone(), wanted: address, address: real, sockets, late, leaves: false })
}

/// Sets the largest announced segment of connections that are accepted from now on, also on a socket that listens
/// already.
pub fn announce(socket: &impl AsFd, front: &Front) -> io::Result<()> {
    // 0 is the default: the largest segment that the device takes (`do_tcp_setsockopt`).
    SockRef::from(socket).set_tcp_mss(front.mss.unwrap_or(0).into())
}

fn open(address: SocketAddr, front: &Front, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for the TIME_WAIT of former connections.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `0.0.0.0` and `[::]` are two addresses of one listener, each bound separately.
        socket.set_only_v6(true)?;
    }
    if front.freebind {
        if address.is_ipv6() { socket.set_freebind_v6(true)? } else { socket.set_freebind_v4(true)? }
    }
    // Accepted sockets inherit the option, which saves a call for each connection.
    socket.set_tcp_nodelay(true)?;
    // In TLS the client sends first, so a connection needs no work before its hello. The kernel completes a silent
    // connection after this time, and then its deadline begins.
    sockopt::set_defer_accept(&socket, DEFER_ACCEPT)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The changes of listening addresses in a reload.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ListenerChanges {
    /// Addresses to bind.
    pub added: Vec<(SocketAddr, Front)>,
    /// Addresses to close.
    pub removed: Vec<SocketAddr>,
    /// Addresses to close once the clients that are connecting to one of the added addresses have been accepted.
    pub outlived: Vec<SocketAddr>,
    /// Addresses that stay, with other properties.
    pub changed: Vec<(SocketAddr, Front)>,
}

/// The addresses to listen on: all of `wanted`, and those of `now` that a wanted one contains. Closing the latter would
/// reset clients that are connecting, with no benefit.
#[must_use]
pub fn with_kept(
    now: &BTreeMap<SocketAddr, Front>,
    mut wanted: BTreeMap<SocketAddr, Front>,
) -> BTreeMap<SocketAddr, Front> {
    let kept: Vec<_> = now
        .keys()
        .filter_map(|address| {
            let (_, front) = wanted.iter().find(|(wide, _)| covers(**wide, *address))?;
            Some((*address, front.clone()))
        })
        .collect();
    for (address, front) in kept {
        wanted.entry(address).or_insert(front);
    }
    wanted
}

/// Compares the addresses in use with those of a new configuration. A socket is identified by its address. With any
/// other change it continues to listen, with the connections in its queue.
#[must_use]
pub fn changes(now: &BTreeMap<SocketAddr, Front>, wanted: &BTreeMap<SocketAddr, Front>) -> ListenerChanges {
    let wanted = &with_kept(now, wanted.clone());
    let with = |pick: fn(Option<&Front>, &Front) -> bool| {
        let picked = wanted.iter().filter(move |(address, front)| pick(now.get(address), front));
        picked.map(|(address, front)| (*address, front.clone())).collect()
    };
    let added: Vec<(SocketAddr, Front)> = with(|now, _| now.is_none());
    let gone = now.keys().filter(|address| !wanted.contains_key(address)).copied();
    let (outlived, removed) = gone.partition(|gone| added.iter().any(|(address, _)| covers(*gone, *address)));
    ListenerChanges {
        added,
        changed: with(|now, then| now.is_some_and(|now| now != then)),
        removed,
        outlived,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front(name: &str) -> Front {
        Front { listener: name.into(), mss: None, freebind: false, optional: false }
    }

    fn addresses(pairs: &[(&str, &str)]) -> BTreeMap<SocketAddr, Front> {
        pairs.iter().map(|(address, name)| (address.parse().unwrap(), front(name))).collect()
    }

    fn names(fronts: &[(SocketAddr, Front)]) -> Vec<(u16, &str)> {
        fronts.iter().map(|(address, front)| (address.port(), &*front.listener)).collect()
    }

    #[test]
    fn a_socket_stays_as_long_as_its_address_does() {
        let now = addresses(&[("127.0.0.1:1", "a"), ("127.0.0.1:2", "a"), ("127.0.0.1:3", "b")]);
        let mut then = addresses(&[("127.0.0.1:1", "a"), ("127.0.0.1:3", "c"), ("127.0.0.1:4", "c")]);
        let ListenerChanges { added, removed, changed, .. } = changes(&now, &then);
        assert_eq!(removed, ["127.0.0.1:2".parse().unwrap()]);
        assert_eq!((names(&added), names(&changed)), (vec![(4, "c")], vec![(3, "c")]));

        then.insert("127.0.0.1:1".parse().unwrap(), Front { mss: Some(1_360), ..front("a") });
        let ListenerChanges { added, removed, changed, .. } = changes(&now, &then);
        assert_eq!((added.len(), removed.len()), (1, 1));
        assert_eq!(names(&changed), [(1, "a"), (3, "c")]);
    }

    #[test]
    fn an_address_among_all_stays_and_all_addresses_outlive_one() {
        for (all, one, other) in
            [("0.0.0.0:1", "127.0.0.1:1", "127.0.0.1:2"), ("[::]:1", "[::1]:1", "[::1]:2")]
        {
            let [all_at, one_at] = [all, one].map(|address| address.parse::<SocketAddr>().unwrap());
            let (wide, narrow) = (addresses(&[(all, "a")]), addresses(&[(one, "b"), (other, "b")]));
            // Only an address that overlaps none of the others closes at once.
            let ListenerChanges { added, removed, outlived, changed } = changes(&narrow, &wide);
            assert_eq!((names(&added), names(&changed)), (vec![(1, "a")], vec![(1, "a")]));
            assert_eq!((removed, outlived), (vec![other.parse().unwrap()], vec![]));
            assert_eq!(changed[0].0, one_at);
            let ListenerChanges { added, removed, outlived, changed } = changes(&wide, &narrow);
            assert_eq!((added.len(), removed, outlived, changed.len()), (2, vec![], vec![all_at], 0));
            // Once both listen, no client is between them.
            let both = addresses(&[(all, "a"), (one, "a"), (other, "b")]);
            assert_eq!(changes(&both, &narrow).removed, [all_at]);
        }
        assert!(!covers("[::]:1".parse().unwrap(), "127.0.0.1:1".parse().unwrap()));
        assert!(!covers("0.0.0.0:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()));
    }

    #[test]
    fn own_sockets_are_no_conflict_and_all_others_are() {
        let all: SocketAddr = "0.0.0.0:0".parse().unwrap();
        let wide = bind(&front("a"), all, 2, &[]).unwrap();
        wide.listen().unwrap();
        let port = wide.address.port();
        let [one, other] = ["127.0.0.1", "127.0.0.2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        assert!(bind(&front("a"), one, 1, &[]).is_err(), "what is not said to be ours is not");
        let mut own: Vec<_> = wide.sockets.iter().map(|socket| Own::of(socket).unwrap()).collect();
        let narrow = bind(&front("a"), one, 2, &own).unwrap();
        assert!(narrow.late);
        narrow.listen().unwrap();
        // A socket beside which every process of this user could bind another.
        let joined = open(other, &front("a"), true).unwrap();
        joined.listen(1).unwrap();
        drop(wide);
        own = narrow.sockets.iter().map(|socket| Own::of(socket).unwrap()).collect();
        let error = bind(&front("a"), SocketAddr::new(all.ip(), port), 1, &own).unwrap_err();
        assert!(error.to_string().contains("ss -ltnp"), "{error}");
        drop(joined);
        bind(&front("a"), SocketAddr::new(all.ip(), port), 1, &own).unwrap();
    }

    #[test]
    fn segments_are_set_on_a_socket_that_listens() {
        let bound = bind(&front("a"), "127.0.0.1:0".parse().unwrap(), 1, &[]).unwrap();
        let socket = SockRef::from(&bound.sockets[0]);
        let usual = socket.tcp_mss().unwrap();
        announce(&bound.sockets[0], &Front { mss: Some(600), ..front("a") }).unwrap();
        assert_eq!(socket.tcp_mss().unwrap(), 600);
        announce(&bound.sockets[0], &front("a")).unwrap();
        assert_eq!(socket.tcp_mss().unwrap(), usual);
    }

    #[test]
    fn an_address_that_is_not_here_yet_is_bound_if_that_is_wanted() {
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let address = address.parse().unwrap();
            let error = bind(&front("https"), address, 1, &[]).unwrap_err().to_string();
            assert!(error.contains("freebind: true"), "{error}");
            let bound = bind(&Front { freebind: true, ..front("https") }, address, 2, &[]).unwrap();
            assert_eq!(bound.address.ip(), address.ip());
        }
    }

    #[test]
    fn only_a_family_that_nobody_asked_for_is_left_out() {
        let optional = Front { optional: true, ..front("https") };
        for (front, error, left_out) in [
            (&optional, libc::EAFNOSUPPORT, true),
            (&optional, libc::EADDRNOTAVAIL, false),
            (&front("https"), libc::EAFNOSUPPORT, false),
        ] {
            assert_eq!(is_left_out(front, &io::Error::from_raw_os_error(error)), left_out, "{error}");
        }
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(bind_if_possible(&optional, taken.local_addr().unwrap(), 1, &[]).is_err());
    }

    #[test]
    fn an_address_in_use_is_named_with_a_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(&front("https"), address, 2, &[]).unwrap_err().to_string();
        assert!(error.contains("listener https") && error.contains(&address.to_string()), "{error}");
        assert!(error.contains("ss -ltnp"), "{error}");
    }

    #[test]
    fn both_families_of_one_port_bind_side_by_side() {
        let v4 = bind(&front("a"), "0.0.0.0:0".parse().unwrap(), 2, &[]).unwrap();
        let v6 = bind(&front("a"), SocketAddr::new("::".parse().unwrap(), v4.address.port()), 2, &[]);
        assert!(v6.is_ok(), "{v6:?}");
    }
}
