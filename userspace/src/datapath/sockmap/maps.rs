//! One worker's handles on the maps.

use std::{
    fmt, io,
    os::fd::{AsRawFd, OwnedFd},
};

use aya::maps::{HashMap, Map, MapData, MapError, SockHash};
use snisplice_common::{
    Cookie,
    flow::{Control, Flow},
};

use crate::kernel::Kernel;

/// Only where there is no such key yet: `BPF_NOEXIST`.
const NEW: u64 = 1;
/// Whether or not there is such a key: `BPF_ANY`.
const ANY: u64 = 0;

/// Of its own for each worker, so that none waits for another.
pub(super) struct Maps {
    targets: SockHash<MapData, Cookie>,
    verdict: SockHash<MapData, Cookie>,
    flows: HashMap<MapData, Cookie, Flow>,
    control: HashMap<MapData, Cookie, Control>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maps")
    }
}

impl Maps {
    pub(super) fn of(kernel: &Kernel) -> io::Result<Self> {
        let data = |fd: OwnedFd| MapData::from_fd(fd).map_err(cause);
        Ok(Self {
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

    /// Forgets a direction whose socket is closed.
    pub(super) fn remove(&mut self, cookie: Cookie, has_control: bool) {
        // There is nothing to be done about what cannot be removed.
        let _ = self.flows.remove(&cookie);
        if has_control {
            let _ = self.control.remove(&cookie);
        }
    }
}

/// What the kernel said.
fn cause(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(error) => error.io_error,
        MapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
