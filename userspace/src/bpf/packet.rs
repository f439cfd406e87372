//! The packet datapath's part in the kernel: three programs, their maps, the devices that they are attached to, and the
//! thread for events of flows that end.
//!
//! Unless flows are to outlive the process ([`Pins`]), nothing is pinned. The maps can be inspected while the process
//! runs (`bpftool map dump name SNI_STATES`). Everything ends with the process, for any reason of its end.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{SchedClassifier, links::FdLink, tc::SchedClassifierLinkId},
};
use rustix::thread::{MembarrierCommand, membarrier};
use snisplice_common::packet::{
    flow::{RESET, Rules, is_carried},
    maps::{Totals, name},
};
use snisplice_config::networks::Networks;
use tokio_util::sync::CancellationToken;

use self::{
    events::FlowEvents,
    filters::Filters,
    layout::Layout,
    routes::{Routes, Watcher},
    stats::Stats,
};
use super::{
    events::{DrainThread, EventThread},
    load::{LoadError, descriptor, taken, total, verified},
    log,
    wakeup::Wakeups,
};
use crate::{net::low_descriptors, takeover::Channel};

mod bloom;
pub mod collector;
mod devices;
mod events;
mod filters;
mod handoff;
mod layout;
mod pins;
mod routes;
mod stall;
pub mod stats;
mod test_run;
pub mod tuple;

pub use bloom::Bloom;
pub use devices::AttachError;
pub use events::EventCounters;
pub(crate) use events::LOOK;
pub use pins::Pins;
pub use routes::Lead;

/// The object that `cargo xtask ebpf` makes of the `ebpf` crate.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../ebpf/prebuilt/snisplice-packet.bpf.o");

/// The loaded programs and their maps. The workers of the process share them.
pub struct Programs {
    // Both stop before the maps are dropped.
    watcher: OnceLock<Watcher>,
    events: EventThread,
    event_counters: Arc<EventCounters>,
    _log: Option<DrainThread>,
    routes: Arc<Routes>,
    fds: Fds,
    bloom: Arc<Bloom>,
    totals: Arc<PerCpuArray<MapData, Totals>>,
    stats: Stats,
    /// Slots in the arrays.
    flows: u32,
    /// The free slots.
    free: Mutex<Vec<u32>>,
    /// No slot from this one on has ever had a flow.
    highest: AtomicU32,
    /// Whether no more slots are given out, because another process shares the maps.
    frozen: AtomicBool,
    /// The channel to the new process, once it serves.
    successor: OnceLock<Arc<Channel>>,
    succeeded: CancellationToken,
    /// By index of the device: whether the programs are on it.
    devices: RwLock<HashMap<u32, bool>>,
    /// Clients and devices whose packets are dropped.
    filters: Mutex<Filters>,
    /// The pins that make flows outlive the process.
    pins: Option<Pins>,
    /// Links and filters that are not pinned, by index of the device.
    attached: Mutex<HashMap<u32, Attached>>,
    /// Pinned links, by index of the device.
    links: Mutex<HashMap<u32, Vec<FdLink>>>,
    // Detaches the programs when it is dropped.
    ebpf: RwLock<Ebpf>,
}

/// The links or filters of a device, each with its program's name.
type Attached = Vec<(&'static str, SchedClassifierLinkId)>;

/// A descriptor of each map that the workers use.
#[derive(Debug)]
struct Fds {
    tuples: OwnedFd,
    rules: OwnedFd,
    states: OwnedFd,
    begun: OwnedFd,
}

impl Programs {
    /// Loads the programs, with room for `flows` flows. Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`, and a
    /// kernel with BTF, 5.11 or later.
    pub fn load(flows: u32) -> Result<Arc<Self>, LoadError> {
        Self::load_with(flows, true, None)
    }

    /// As [`Self::load`], with pinned maps: those of an earlier process if their layout matches. The caller then adopts
    /// that process's flows ([`Programs::take_devices`]), or forgets them.
    /// `note_begun` makes the programs record the beginning of each connection of the host. `packet` needs that, since it
    /// forwards without counting packets first.
    pub fn load_with(flows: u32, note_begun: bool, pins: Option<Pins>) -> Result<Arc<Self>, LoadError> {
        low_descriptors::reserve();
        low_descriptors::free_for_object();
        let layout = Layout::of_running_kernel()?;
        let mut loader = EbpfLoader::new();
        let btf = Btf::from_sys_fs()?;
        loader.btf(Some(&btf));
        for (name, offset) in layout.globals() {
            loader.override_global(name, offset, true);
        }
        let note = u32::from(note_begun);
        loader.override_global(name::NOTE_BEGUN, &note, true);
        log::apply(&mut loader);
        if let Some(pins) = &pins {
            pins.fit(flows);
            for name in [name::TUPLES, name::BLOOM, name::RULES, name::STATES] {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader
            .map_max_entries(name::TUPLES, flows.saturating_mul(2))
            .map_max_entries(name::RULES, flows)
            .map_max_entries(name::STATES, flows)
            .map_max_entries(name::BEGUN, if note_begun { flows.clamp(BEGUN_LEAST, BEGUN_MOST) } else { 1 })
            .load(OBJECT)?;
        for name in [name::INGRESS, name::EGRESS, name::SOCKET_INFO] {
            let program = program(&mut ebpf, name)?;
            verified(|| program.load())?;
        }
        let log = log::reader(&mut ebpf)?;
        let fds = Fds {
            tuples: descriptor(&ebpf, name::TUPLES)?,
            rules: descriptor(&ebpf, name::RULES)?,
            states: descriptor(&ebpf, name::STATES)?,
            begun: descriptor(&ebpf, name::BEGUN)?,
        };
        let bloom = Bloom::of(descriptor(&ebpf, name::BLOOM)?.as_fd());
        let bloom = bloom.map_err(|error| LoadError::Memory(name::BLOOM, error))?;
        let ring = RingBuf::try_from(taken(&mut ebpf, name::EVENTS)?)?;
        let totals = Arc::new(PerCpuArray::try_from(taken(&mut ebpf, name::TOTALS)?)?);
        let filters = Filters::new(taken(&mut ebpf, name::DENIED)?, taken(&mut ebpf, name::STRICT)?)?;
        let event_counters = Arc::<EventCounters>::default();
        let events = FlowEvents::new(totals.clone(), event_counters.clone());
        let events = EventThread::start(events::THREAD, ring, events).map_err(LoadError::Listen)?;
        Ok(Arc::new(Self {
            watcher: OnceLock::new(),
            events,
            event_counters,
            _log: log,
            routes: Arc::new(Routes::new(flows).map_err(LoadError::Listen)?),
            fds,
            bloom: Arc::new(bloom),
            totals,
            stats: Stats::default(),
            flows,
            // The lowest slot is given out first, which keeps the used ones together.
            free: Mutex::new((0..flows).rev().collect()),
            highest: AtomicU32::new(0),
            frozen: AtomicBool::new(false),
            successor: OnceLock::new(),
            succeeded: CancellationToken::new(),
            devices: RwLock::default(),
            filters: Mutex::new(filters),
            pins,
            attached: Mutex::default(),
            links: Mutex::default(),
            ebpf: RwLock::new(ebpf),
        }))
    }

    /// The programs' totals since they were loaded, over all CPUs.
    pub fn totals(&self) -> Result<Totals, MapError> {
        total(&self.totals)
    }

    /// Drops the packets of clients in these networks from now on, and of no others.
    pub fn deny(&self, networks: &Networks) -> Result<(), MapError> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner).deny(networks)
    }

    /// The counters of the programs' events.
    #[must_use]
    pub fn event_counters(&self) -> &EventCounters {
        &self.event_counters
    }

    /// The counters of userspace.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Registers a worker: events of flows whose token has the returned number go to `wakeups`.
    pub fn register(&self, wakeups: Arc<Wakeups>) -> u16 {
        self.events.register(wakeups)
    }

    /// Reverts [`Programs::register`].
    pub fn unregister(&self, worker: u16) {
        self.events.unregister(worker);
    }

    /// A slot for a flow; `None` if all are taken.
    #[must_use]
    pub fn reserve(&self) -> Option<u32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let place = if self.frozen.load(Relaxed) { None } else { free.pop() };
        if let Some(place) = place {
            self.highest.fetch_max(place + 1, Relaxed);
            self.forget_found(place);
            if free.len() + 1 == self.flows as usize {
                // The first flow: the thread that detects stalled flows sleeps while there is none.
                self.routes.ring();
            }
        }
        place
    }

    /// The lowest slot that has never had a flow, nor any above it.
    fn highest(&self) -> u32 {
        self.highest.load(Relaxed)
    }

    /// Whether any slot is taken.
    fn in_use(&self) -> bool {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len() < self.flows as usize
    }

    /// Whether no more slots are given out.
    fn is_frozen(&self) -> bool {
        self.frozen.load(Relaxed)
    }

    /// Returns a slot.
    pub fn release(&self, flow: u32) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(flow);
    }

    /// Takes these slots, until each is returned.
    pub fn occupy(&self, flows: &BTreeSet<u32>) {
        self.highest.fetch_max(flows.last().map_or(0, |last| last + 1), Relaxed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).retain(|flow| !flows.contains(flow));
    }

    /// Whether flows may outlive the process.
    #[must_use]
    pub fn persists(&self) -> bool {
        self.pins.is_some()
    }

    /// Removes all pins, for a requested end: nothing then outlives the process.
    pub fn unpin(&self) {
        if let Some(pins) = &self.pins {
            pins.remove();
        }
    }

    /// Resets all flows, when the process is about to exit without closing its sockets in good order.
    pub fn abandon(&self) {
        // Flows of another process continue. This process's flows end with its sockets.
        let Some(pins) = self.pins.as_ref().filter(|pins| !pins.are_foreign()) else { return };
        if let Err(error) = self.reset_all() {
            tracing::warn!(%error, "cannot reset the peers of open flows");
        }
        pins.remove();
    }

    fn reset_all(&self) -> Result<(), MapError> {
        let data = MapData::from_fd(self.rules()?)?;
        let mut all = Array::<_, Rules>::try_from(Map::Array(data))?;
        for flow in 0..all.len() {
            let rules = all.get(&flow, 0)?;
            if is_carried(rules.mode) {
                all.set(flow, Rules { mode: RESET, ..rules }, 0)?;
            }
        }
        Ok(())
    }

    /// A descriptor of `SNI_TUPLES` for another user of the map.
    pub fn tuples(&self) -> io::Result<OwnedFd> {
        self.fds.tuples.try_clone()
    }

    /// The counters by which the programs pass over packets of no flow.
    #[must_use]
    pub fn bloom(&self) -> &Arc<Bloom> {
        &self.bloom
    }

    /// A descriptor of `SNI_RULES` for another user of the map.
    pub fn rules(&self) -> io::Result<OwnedFd> {
        self.fds.rules.try_clone()
    }

    /// A descriptor of `SNI_BEGUN` for another user of the map.
    pub fn begun(&self) -> io::Result<OwnedFd> {
        self.fds.begun.try_clone()
    }

    /// A descriptor of `SNI_STATES` for another user of the map.
    pub fn states(&self) -> io::Result<OwnedFd> {
        self.fds.states.try_clone()
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner).len();
        // After a failed start, the flows remain for the next process.
        if free == self.flows as usize {
            self.unpin();
        }
    }
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").field("fds", &self.fds).field("stats", &self.stats).finish_non_exhaustive()
    }
}

/// Entries for connections that begin. A smaller map would evict them early, since each processor reserves some. More
/// connections never begin at once.
const BEGUN_LEAST: u32 = 1_024;
const BEGUN_MOST: u32 = 65_536;

/// Resolves when no packet is being handled with the former contents of the maps.
///
/// A program that had begun may have read the old rules. It runs within an RCU section, for whose end the kernel waits
/// here (`MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu`, Linux 4.3).
pub(crate) async fn grace() {
    /// Far longer than a packet takes. For kernels that isolate processors from such calls.
    const LONG: Duration = Duration::from_millis(100);
    let waited = tokio::task::spawn_blocking(|| membarrier(MembarrierCommand::Global)).await;
    if !matches!(waited, Ok(Ok(()))) {
        tokio::time::sleep(LONG).await;
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    Ok(ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into()?)
}
