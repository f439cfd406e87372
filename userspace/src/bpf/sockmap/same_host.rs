//! The short cut's part in the kernel, for backends on this host: two more programs and their maps
//! ([`snisplice_common::sockmap::shortcut`]).
//!
//! They are loaded only if a backend requires it (`same_host: true`), since the program that finds the backends'
//! sockets runs for each connection of the host.

use std::{
    fmt, io,
    os::fd::{BorrowedFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapError, PerCpuArray, SockHash},
    programs::{CgroupAttachMode, SkMsg, SockOps},
};
use snisplice_common::{
    Cookie,
    sockmap::{maps, shortcut::ShortcutCounters},
};

use crate::bpf::{
    cgroup::NoCgroup,
    layout::ShortcutLayout,
    load::{LoadError, descriptor, taken, verified},
};

/// The program that runs for each message of an enrolled socket.
const MESSAGES: &str = "snisplice_msg";
/// The program that enrols the sockets.
const CONNECTIONS: &str = "snisplice_ops";

/// The values that are needed before the object is loaded.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    cgroup: BorrowedFd<'a>,
    layout: ShortcutLayout,
}

/// The maps of the loaded programs. A drop of the process's [`Ebpf`] detaches the programs.
pub struct SameHost {
    upstream: OwnedFd,
    backend: OwnedFd,
    shortcuts: OwnedFd,
    /// Keeps the map that the message program is attached to.
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "only tests read the map"))]
    local: OwnedFd,
    counters: PerCpuArray<MapData, ShortcutCounters>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(cgroup: BorrowedFd<'a>) -> Result<Self, LoadError> {
        Ok(Self { cgroup, layout: ShortcutLayout::of_running_kernel()? })
    }

    /// Sets the values that the verifier needs.
    pub(super) fn apply<'l>(&'l self, loader: &mut EbpfLoader<'l>) {
        const ON: u32 = 1;
        loader.override_global(maps::global::SAME_HOST, &ON, true);
        for (name, offset) in self.layout.globals() {
            loader.override_global(name, offset, true);
        }
    }

    /// Attaches each program before the first socket that it could serve.
    pub(super) fn attach(&self, ebpf: &mut Ebpf) -> Result<SameHost, LoadError> {
        let same_host = SameHost {
            upstream: descriptor(ebpf, maps::UPSTREAM)?,
            backend: descriptor(ebpf, maps::BACKEND)?,
            shortcuts: descriptor(ebpf, maps::SHORTCUTS)?,
            local: descriptor(ebpf, maps::LOCAL)?,
            counters: PerCpuArray::try_from(taken(ebpf, maps::SHORTCUT_COUNTERS)?)?,
        };
        let local: SockHash<_, Cookie> = SockHash::try_from(taken(ebpf, maps::LOCAL)?)?;
        let messages = ebpf.program_mut(MESSAGES).ok_or(LoadError::Missing(MESSAGES))?;
        let messages: &mut SkMsg = messages.try_into()?;
        verified(|| messages.load())?;
        messages.attach(local.fd())?;

        let connections = ebpf.program_mut(CONNECTIONS).ok_or(LoadError::Missing(CONNECTIONS))?;
        let connections: &mut SockOps = connections.try_into()?;
        verified(|| connections.load())?;
        // A link to a control group leaves foreign links in place, in any mode.
        connections.attach(self.cgroup, CgroupAttachMode::Single)?;
        Ok(same_host)
    }
}

impl SameHost {
    /// The programs' totals since they were loaded, over all CPUs.
    pub fn counters(&self) -> Result<ShortcutCounters, MapError> {
        let mut total = ShortcutCounters::default();
        for cpu in self.counters.get(&0, 0)?.iter() {
            total += *cpu;
        }
        Ok(total)
    }

    /// A descriptor of `SNI_UPSTREAM` for another user of the map.
    pub fn upstream(&self) -> io::Result<OwnedFd> {
        self.upstream.try_clone()
    }

    /// A descriptor of `SNI_BACKEND` for another user of the map.
    pub fn backend(&self) -> io::Result<OwnedFd> {
        self.backend.try_clone()
    }

    /// A descriptor of `SNI_SHORTCUTS` for another user of the map.
    pub fn shortcuts(&self) -> io::Result<OwnedFd> {
        self.shortcuts.try_clone()
    }

    /// A descriptor of `SNI_LOCAL` for another user of the map.
    #[cfg(feature = "testing")]
    pub fn local(&self) -> io::Result<OwnedFd> {
        self.local.try_clone()
    }
}

impl fmt::Debug for SameHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SameHost")
    }
}

/// Opens the control group to which [`super::Programs::load_same_host`] attaches.
pub fn cgroup() -> Result<OwnedFd, NoCgroup> {
    Ok(crate::bpf::cgroup::open()?.into())
}
