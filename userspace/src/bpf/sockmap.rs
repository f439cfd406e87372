//! The sockmap datapath's part in the kernel: the programs, their maps, and the thread for their events.
//!
//! Nothing is pinned. The maps have names (`bpftool map dump name SNI_FLOWS`), and everything ends with the process,
//! for any reason of its end.

use std::{
    fmt,
    hash::{DefaultHasher, Hasher as _},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, MapData, MapError, PerCpuArray, RingBuf, SockHash},
    programs::SkSkb,
};
use snisplice_common::{
    Cookie,
    sockmap::{counters::Counters, event::ring_bytes, maps},
};

use self::{
    budget::Budget,
    events::Fallbacks,
    same_host::{Plan, SameHost},
    stats::Stats,
};
use super::{
    events::{DrainThread, EventThread},
    layout::Layout,
    load::{LoadError, descriptor, taken, total, verified},
    log,
    wakeup::Wakeups,
};
use crate::net::low_descriptors;

pub mod budget;
pub mod collector;
pub mod events;
pub mod same_host;
pub mod same_host_collector;
pub mod stats;

/// The object that `cargo xtask ebpf` makes of the `ebpf` crate.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/prebuilt/snisplice-sockmap.bpf.o");

/// A number that changes with the programs that this process would load.
#[must_use]
pub fn objects() -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(OBJECT);
    hasher.write(super::packet::OBJECT);
    hasher.finish()
}

/// The program's name in the object, and in `bpftool prog`.
const PROGRAM: &str = "snisplice";

/// Memory that stays free in a target's send buffer while the kernel redirects to it: the overhead of the greatest
/// number of waiting crumbs.
const MARGIN: u32 = 256 * 1024;

/// Entries of the smallest LRU map: each CPU reserves 128.
const SMALLEST_LRU: u32 = 8_192;

/// Sizes of the maps, and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Greatest number of enrolled connections. A further one is relayed.
    pub connections: usize,
    /// Limit of bytes of one direction that wait in the kernel between its two sockets.
    pub in_flight_bytes: u32,
    /// Limit of the waiting bytes of all directions.
    pub total_in_flight_bytes: u64,
}

/// The loaded programs and their maps. The workers of the process share them.
pub struct Programs {
    // Stops before the maps are dropped.
    events: EventThread,
    _log: Option<DrainThread>,
    fds: Fds,
    counters: Arc<PerCpuArray<MapData, Counters>>,
    budget: Budget,
    stats: Arc<Stats>,
    same_host: Option<SameHost>,
    // Detaches the programs when it is dropped.
    _program: Ebpf,
}

/// A descriptor of each map that the workers use.
#[derive(Debug)]
struct Fds {
    targets: OwnedFd,
    verdict: OwnedFd,
    flows: OwnedFd,
    control: OwnedFd,
}

impl Programs {
    /// Loads the programs and attaches them. Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`, and a kernel with BTF.
    pub fn load(settings: &Settings) -> Result<Arc<Self>, LoadError> {
        Self::load_with(settings, None)
    }

    /// As [`Self::load`], with the short cut of backends on this host. Its programs are attached to a control group
    /// (version 2) that contains the backends: [`same_host::cgroup`].
    pub fn load_same_host(settings: &Settings, cgroup: &impl AsFd) -> Result<Arc<Self>, LoadError> {
        Self::load_with(settings, Some(&Plan::new(cgroup.as_fd())?))
    }

    fn load_with(settings: &Settings, plan: Option<&Plan<'_>>) -> Result<Arc<Self>, LoadError> {
        low_descriptors::free_for_object();
        let layout = Layout::of_running_kernel()?;
        let directions = directions(settings.connections);
        let mut loader = EbpfLoader::new();
        let btf = Btf::from_sys_fs()?;
        loader.btf(Some(&btf));
        for (name, offset) in layout.globals() {
            loader.override_global(name, offset, true);
        }
        log::apply(&mut loader);
        if let Some(plan) = plan {
            plan.apply(&mut loader);
        }
        // Without the short cut, its maps have the least size. A small LRU map evicts entries too early.
        let local = if plan.is_some() { directions.max(SMALLEST_LRU) } else { 1 };
        let mut ebpf = loader
            .override_global(maps::global::HIGH_WATER, &settings.in_flight_bytes, true)
            .override_global(maps::global::TOTAL, &settings.total_in_flight_bytes, true)
            .override_global(maps::global::MARGIN, &MARGIN, true)
            .map_max_entries(maps::TARGETS, directions)
            .map_max_entries(maps::VERDICT, directions)
            .map_max_entries(maps::FLOWS, directions)
            .map_max_entries(maps::CONTROL, directions)
            .map_max_entries(maps::EVENTS, ring_bytes(directions))
            .map_max_entries(maps::UPSTREAM, local)
            .map_max_entries(maps::EXPECTED, local)
            .map_max_entries(maps::BACKEND, local)
            .map_max_entries(maps::LOCAL, local)
            .map_max_entries(maps::SHORTCUTS, local)
            .load(OBJECT)?;

        let log = log::reader(&mut ebpf)?;
        let fds = Fds {
            targets: descriptor(&ebpf, maps::TARGETS)?,
            verdict: descriptor(&ebpf, maps::VERDICT)?,
            flows: descriptor(&ebpf, maps::FLOWS)?,
            control: descriptor(&ebpf, maps::CONTROL)?,
        };
        // Attached before the first socket is inserted: a program that is attached later does not affect members.
        let verdict: SockHash<_, Cookie> = SockHash::try_from(taken(&mut ebpf, maps::VERDICT)?)?;
        let program = ebpf.program_mut(PROGRAM).ok_or(LoadError::Missing(PROGRAM))?;
        let program: &mut SkSkb = program.try_into()?;
        verified(|| program.load())?;
        program.attach(verdict.fd())?;

        let same_host = plan.map(|plan| plan.attach(&mut ebpf)).transpose()?;
        let ring = RingBuf::try_from(taken(&mut ebpf, maps::EVENTS)?)?;
        let counters = Arc::new(PerCpuArray::try_from(taken(&mut ebpf, maps::COUNTERS)?)?);
        let budget = Budget::new(Array::try_from(taken(&mut ebpf, maps::IN_FLIGHT)?)?);
        let events = Fallbacks::new(counters.clone());
        let events = EventThread::start(events::THREAD, ring, events).map_err(LoadError::Listen)?;
        Ok(Arc::new(Self {
            events,
            _log: log,
            fds,
            counters,
            budget,
            stats: Arc::default(),
            same_host,
            _program: ebpf,
        }))
    }

    /// The program's totals since it was loaded, over all CPUs.
    pub fn counters(&self) -> Result<Counters, MapError> {
        total(&self.counters)
    }

    /// The sum of the bytes of all directions that wait between their sockets.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The counters of userspace.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The short cut of backends on this host, if it is loaded.
    #[must_use]
    pub fn same_host(&self) -> Option<&SameHost> {
        self.same_host.as_ref()
    }

    /// Registers a worker: events whose token has the returned number go to `wakeups`.
    pub fn register(&self, wakeups: Arc<Wakeups>) -> u16 {
        self.events.register(wakeups)
    }

    /// Reverts [`Programs::register`].
    pub fn unregister(&self, worker: u16) {
        self.events.unregister(worker);
    }

    /// A descriptor of `SNI_TARGETS` for another user of the map.
    pub fn targets(&self) -> io::Result<OwnedFd> {
        self.fds.targets.try_clone()
    }

    /// A descriptor of `SNI_VERDICT` for another user of the map.
    pub fn verdict(&self) -> io::Result<OwnedFd> {
        self.fds.verdict.try_clone()
    }

    /// A descriptor of `SNI_FLOWS` for another user of the map.
    pub fn flows(&self) -> io::Result<OwnedFd> {
        self.fds.flows.try_clone()
    }

    /// A descriptor of `SNI_CONTROL` for another user of the map.
    pub fn control(&self) -> io::Result<OwnedFd> {
        self.fds.control.try_clone()
    }
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").field("fds", &self.fds).field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// Map entries for `connections` connections: one for each socket, and one for each direction.
fn directions(connections: usize) -> u32 {
    // The kernel rounds the number of buckets up to a power of two, which must not overflow.
    u32::try_from(connections.saturating_mul(2)).unwrap_or(u32::MAX).clamp(2, 1 << 24)
}
