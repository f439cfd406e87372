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

/// Only where there is no such key yet: `BPF_NOEXIST`.
const NEW: u64 = 1;
/// Whether or not there is such a key: `BPF_ANY`.
const ANY: u64 = 0;

/// Each worker has its own, so that none waits for another.
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

    /// Lets bytes be redirected to the socket.
    pub(super) fn add_target(&mut self, cookie: Cookie, socket: &impl AsRawFd) -> io::Result<()> {
        self.targets.insert(cookie, socket.as_raw_fd(), NEW).map_err(cause)
    }

    /// From now on the program sees what the socket receives.
    pub(super) fn arm(&mut self, cookie: Cookie, socket: &impl AsRawFd) -> io::Result<()> {
        self.verdict.insert(cookie, socket.as_raw_fd(), NEW).map_err(cause)
    }

    /// Creates the state of a direction, which then is the kernel's.
    pub(super) fn add_flow(&mut self, cookie: Cookie, flow: Flow) -> io::Result<()> {
        self.flows.insert(cookie, flow, NEW).map_err(cause)
    }

    /// The state of a direction as it is now.
    pub(super) fn flow(&self, cookie: Cookie) -> io::Result<Flow> {
        self.flows.get(&cookie, 0).map_err(cause)
    }

    /// Tells the kernel how much userspace has written.
    pub(super) fn publish(&mut self, cookie: Cookie, control: Control) -> io::Result<()> {
        self.control.insert(cookie, control, ANY).map_err(cause)
    }

    /// Has the other end of a socket that is about to be connected enrolled, if it is on this host. False where that is
    /// not served.
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
        // There is nothing to be done about what cannot be removed.
        let _ = shortcuts.remove(&socket);
        if let Ok(found) = upstream.get(&socket, 0) {
            let _ = backend.remove(&found);
        }
        let _ = upstream.remove(&socket);
    }

    /// Forgets a direction whose socket is closed.
    pub(super) fn remove(&mut self, cookie: Cookie, has_control: bool) {
        // There is nothing to be done about what cannot be removed.
        let _ = self.flows.remove(&cookie);
        if has_control {
            let _ = self.control.remove(&cookie);
        }
    }
}
