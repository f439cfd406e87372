//! One worker's handles on the maps.

use std::{
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
};

use aya::maps::{HashMap, Map, MapData, SockHash};
use snisplice_common::{
    Cookie,
    sockmap::{
        direction::{Control, Flow},
        shortcut::{BackendEnd, Shortcut},
    },
};

use crate::bpf::{load::cause, sockmap::Programs};

/// Only if the key does not exist yet: `BPF_NOEXIST`.
const NEW: u64 = 1;
/// With or without such a key: `BPF_ANY`.
const ANY: u64 = 0;

/// Each worker has its own handles, so that no worker waits for another.
pub(super) struct Maps {
    targets: SockHash<MapData, Cookie>,
    verdict: SockHash<MapData, Cookie>,
    flows: HashMap<MapData, Cookie, Flow>,
    control: HashMap<MapData, Cookie, Control>,
    same_host: Option<SameHost>,
}

/// The maps of the short cut.
struct SameHost {
    upstream: HashMap<MapData, Cookie, Cookie>,
    backend: HashMap<MapData, Cookie, BackendEnd>,
    shortcuts: HashMap<MapData, Cookie, Shortcut>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maps")
    }
}

impl Maps {
    pub(super) fn of(kernel: &Programs) -> io::Result<Self> {
        let data = |fd: OwnedFd| MapData::from_fd(fd).map_err(cause);
        let same_host = kernel.same_host().map(|same_host| {
            io::Result::Ok(SameHost {
                upstream: HashMap::try_from(Map::LruHashMap(data(same_host.upstream()?)?)).map_err(cause)?,
                backend: HashMap::try_from(Map::LruHashMap(data(same_host.backend()?)?)).map_err(cause)?,
                shortcuts: HashMap::try_from(Map::HashMap(data(same_host.shortcuts()?)?)).map_err(cause)?,
            })
        });
        Ok(Self {
            same_host: same_host.transpose()?,
            targets: SockHash::try_from(Map::SockHash(data(kernel.targets()?)?)).map_err(cause)?,
            verdict: SockHash::try_from(Map::SockHash(data(kernel.verdict()?)?)).map_err(cause)?,
            flows: HashMap::try_from(Map::HashMap(data(kernel.flows()?)?)).map_err(cause)?,
            control: HashMap::try_from(Map::HashMap(data(kernel.control()?)?)).map_err(cause)?,
        })
    }

    /// Makes the socket a target of redirection.
    pub(super) fn add_target(&mut self, cookie: Cookie, socket: &impl AsRawFd) -> io::Result<()> {
        self.targets.insert(cookie, socket.as_raw_fd(), NEW).map_err(cause)
    }

    /// Makes the program process the packets that the socket receives.
    pub(super) fn arm(&mut self, cookie: Cookie, socket: &impl AsRawFd) -> io::Result<()> {
        self.verdict.insert(cookie, socket.as_raw_fd(), NEW).map_err(cause)
    }

    /// Creates the state of a direction, which the kernel then owns.
    pub(super) fn add_flow(&mut self, cookie: Cookie, flow: Flow) -> io::Result<()> {
        self.flows.insert(cookie, flow, NEW).map_err(cause)
    }

    /// The current state of a direction.
    pub(super) fn flow(&self, cookie: Cookie) -> io::Result<Flow> {
        self.flows.get(&cookie, 0).map_err(cause)
    }

    /// Publishes the number of bytes that userspace has written.
    pub(super) fn publish(&mut self, cookie: Cookie, control: Control) -> io::Result<()> {
        self.control.insert(cookie, control, ANY).map_err(cause)
    }

    /// Enrols the other end of a socket that is about to be connected, if it is on this host. Returns false if the
    /// short cut is off.
    pub(super) fn announce(&mut self, upstream: Cookie) -> io::Result<bool> {
        let Some(same_host) = &mut self.same_host else { return Ok(false) };
        same_host.upstream.insert(upstream, 0, ANY).map_err(cause)?;
        Ok(true)
    }

    /// Opens the short cut around the balancer's socket `upstream`.
    pub(super) fn add_shortcut(&mut self, upstream: Cookie, shortcut: Shortcut) -> io::Result<()> {
        let Some(SameHost { shortcuts, .. }) = &mut self.same_host else { return Ok(()) };
        shortcuts.insert(upstream, shortcut, NEW).map_err(cause)
    }

    /// Bytes that have taken the short cut so far.
    pub(super) fn by_shortcut(&self, upstream: Cookie) -> io::Result<u64> {
        let Some(SameHost { shortcuts, .. }) = &self.same_host else { return Ok(0) };
        Ok(shortcuts.get(&upstream, 0).map_err(cause)?.moved)
    }

    /// Closes the short cut around a socket that is closed.
    pub(super) fn remove_shortcut(&mut self, socket: Cookie) {
        let Some(SameHost { upstream, backend, shortcuts }) = &mut self.same_host else { return };
        // A failed removal has no remedy.
        let _ = shortcuts.remove(&socket);
        if let Ok(found) = upstream.get(&socket, 0) {
            let _ = backend.remove(&found);
        }
        let _ = upstream.remove(&socket);
    }

    /// Forgets a direction whose socket is closed.
    pub(super) fn remove(&mut self, cookie: Cookie, has_control: bool) {
        // A failed removal has no remedy.
        let _ = self.flows.remove(&cookie);
        if has_control {
            let _ = self.control.remove(&cookie);
        }
    }
}
