//! What this process has in the kernel for the packet datapath: three programs, their maps, the devices that they are
//! attached to, and the thread that hears of flows that end.
//!
//! Unless flows are to outlive the process ([`Pins`]), nothing is pinned: the maps can be looked at while the process
//! runs (`bpftool map dump name SNI_STATES`), and everything goes with it, however it ends.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf},
    pin::PinError,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLinkId, TcAttachOptions},
    },
    util::KernelVersion,
};
use rustix::{
    net::{AddressFamily, SocketType, netdevice::index_to_name_inlined, socket},
    thread::{MembarrierCommand, membarrier},
};
use snisplice_common::packet::{
    flow::{RESET, Rules, is_carried},
    maps::{Totals, Tuple, name},
    socket_info::{LEGS, OFFSET, SocketInfo},
};
use snisplice_config::networks::Networks;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use self::{
    events::FlowEvents,
    filters::Filters,
    layout::Layout,
    pins::Hook,
    routes::{Routes, Watcher},
    stats::Stats,
};
use super::{
    events::{DrainThread, EventThread},
    load::{LoadError, descriptor, taken, total, verified},
    log,
    wakeup::Wakeups,
};
use crate::{
    net::{low_descriptors, sockopt::hardware_type},
    takeover::Channel,
};

pub mod collector;
mod events;
mod filters;
mod handoff;
mod layout;
mod pins;
mod routes;
mod stall;
pub mod stats;
pub mod tuple;

pub use events::EventCounters;
pub(crate) use events::LOOK;
pub use pins::Pins;
pub use routes::Lead;

/// The object that `cargo xtask ebpf` makes of the `ebpf` crate.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../ebpf/prebuilt/snisplice-packet.bpf.o");

/// Why the programs are not on a device.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Its packets have no Ethernet headers; the loopback device counts among these.
    #[error("not an Ethernet device")]
    NotEthernet,
    /// There is no such device any more.
    #[error("the device does not exist: {0}")]
    NoDevice(#[source] io::Error),
    /// The kernel refuses.
    #[error("cannot attach the programs to the device: {0}")]
    Program(#[from] ProgramError),
    /// What keeps the program there cannot be pinned.
    #[error("cannot pin the programs on the device: {0}")]
    Pin(#[from] PinError),
    /// The kernel does not show it.
    #[error("cannot pin the programs on the device: {0}")]
    Link(#[from] LinkError),
}

/// The loaded programs and their maps; one for the process, shared by its workers.
pub struct Programs {
    // Both stop before the maps go.
    watcher: OnceLock<Watcher>,
    events: EventThread,
    event_counters: Arc<EventCounters>,
    _log: Option<DrainThread>,
    routes: Arc<Routes>,
    fds: Fds,
    totals: Arc<PerCpuArray<MapData, Totals>>,
    stats: Stats,
    /// Places in the arrays.
    flows: u32,
    /// Those that no flow has.
    free: Mutex<Vec<u32>>,
    /// None beyond has ever had a flow.
    highest: AtomicU32,
    /// Whether none is given away any more, because another process shares the maps.
    frozen: AtomicBool,
    /// The process that takes over, once it serves.
    successor: OnceLock<Arc<Channel>>,
    succeeded: CancellationToken,
    /// By the index of the device: whether the programs are on it.
    devices: RwLock<HashMap<u32, bool>>,
    /// Who is not to be carried.
    filters: Mutex<Filters>,
    /// What makes flows outlive the process.
    pins: Option<Pins>,
    /// What keeps the programs on devices and is not pinned, by the index of the device.
    attached: Mutex<HashMap<u32, Attached>>,
    /// Links that are pinned, likewise.
    links: Mutex<HashMap<u32, Vec<FdLink>>>,
    // Detaches the programs when it is dropped.
    ebpf: RwLock<Ebpf>,
}

/// What keeps the programs on a device, each with its program's name.
type Attached = Vec<(&'static str, SchedClassifierLinkId)>;

/// One descriptor of each map that workers use.
#[derive(Debug)]
struct Fds {
    tuples: OwnedFd,
    rules: OwnedFd,
    states: OwnedFd,
    begun: OwnedFd,
}

impl Programs {
    /// Loads the programs, with room for so many flows. Needs `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON`, and a
    /// kernel with BTF, 5.11 or later.
    pub fn load(flows: u32) -> Result<Arc<Self>, LoadError> {
        Self::load_with(flows, None)
    }

    /// The same with maps that are pinned, those of an earlier process if they fit. Flows of its are the caller's to
    /// take over ([`Programs::take_devices`]), or to forget.
    pub fn load_with(flows: u32, pins: Option<Pins>) -> Result<Arc<Self>, LoadError> {
        low_descriptors::reserve();
        low_descriptors::free_for_object();
        let layout = Layout::of_running_kernel()?;
        let mut loader = EbpfLoader::new();
        let btf = Btf::from_sys_fs()?;
        loader.btf(Some(&btf));
        for (name, offset) in layout.globals() {
            loader.override_global(name, offset, true);
        }
        log::apply(&mut loader);
        if let Some(pins) = &pins {
            pins.fit(flows);
            for name in [name::TUPLES, name::RULES, name::STATES] {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let mut ebpf = loader
            .map_max_entries(name::TUPLES, flows.saturating_mul(2))
            .map_max_entries(name::RULES, flows)
            .map_max_entries(name::STATES, flows)
            .map_max_entries(name::BEGUN, flows.clamp(BEGUN_LEAST, BEGUN_MOST))
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
            totals,
            stats: Stats::default(),
            flows,
            // The lowest first, which keeps what is in use together.
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

    /// What the programs have counted since they were loaded, over all CPUs.
    pub fn totals(&self) -> Result<Totals, MapError> {
        total(&self.totals)
    }

    /// Has the programs drop the packets of clients in these networks from now on, and of no others.
    pub fn deny(&self, networks: &Networks) -> Result<(), MapError> {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner).deny(networks)
    }

    /// Looks again on which devices the host takes packets only from whom it would answer over them. To be called when that may
    /// have changed; a device is looked at when the programs are put on it.
    pub fn heed_reverse_paths(&self) -> Result<(), MapError> {
        let devices: Vec<_> = {
            let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
            devices.iter().filter_map(|(device, attached)| attached.then_some(*device)).collect()
        };
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        devices.into_iter().try_for_each(|device| filters.heed_reverse_path(device))
    }

    /// Has another program run before ours on a device, which writes the packets' mark. For the probe.
    pub fn precede(&self, device: u32) -> Result<(), AttachError> {
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        let program = ebpf.program_mut(name::MARK).ok_or(ProgramError::NotLoaded)?;
        let program: &mut SchedClassifier = program.try_into()?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(error.into()),
        }
        let interface = ethernet(device)?;
        let order = if has_links() {
            TcAttachOptions::TcxOrder(LinkOrder::first())
        } else {
            // It may be there already, and it stays: others may use it meanwhile.
            let _ = tc::qdisc_add_clsact(&interface);
            TcAttachOptions::Netlink(NlOptions { priority: 1, ..NlOptions::default() })
        };
        program.attach_with_options(&interface, TcAttachType::Ingress, order)?;
        Ok(())
    }

    /// What the programs have reported.
    #[must_use]
    pub fn event_counters(&self) -> &EventCounters {
        &self.event_counters
    }

    /// What userspace has counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Lets a worker hear of its flows: those whose token has the returned number are marked in `wakeups`.
    pub fn register(&self, wakeups: Arc<Wakeups>) -> u16 {
        self.events.register(wakeups)
    }

    /// Ends what [`Programs::register`] began.
    pub fn unregister(&self, worker: u16) {
        self.events.unregister(worker);
    }

    /// A place for a flow; `None` if all are taken.
    #[must_use]
    pub fn reserve(&self) -> Option<u32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let place = if self.frozen.load(Relaxed) { None } else { free.pop() };
        if let Some(place) = place {
            self.highest.fetch_max(place + 1, Relaxed);
            self.forget_found(place);
            if free.len() + 1 == self.flows as usize {
                // The first: who looks whether flows stand still has slept.
                self.routes.ring();
            }
        }
        place
    }

    /// No place from this one on has ever had a flow.
    fn highest(&self) -> u32 {
        self.highest.load(Relaxed)
    }

    /// Whether any place is taken.
    fn in_use(&self) -> bool {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len() < self.flows as usize
    }

    /// Whether no place is given away any more.
    fn is_frozen(&self) -> bool {
        self.frozen.load(Relaxed)
    }

    /// Gives a place back.
    pub fn release(&self, flow: u32) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(flow);
    }

    /// Keeps these places from being given away, until each is given back.
    pub fn occupy(&self, flows: &BTreeSet<u32>) {
        self.highest.fetch_max(flows.last().map_or(0, |last| last + 1), Relaxed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).retain(|flow| !flows.contains(flow));
    }

    /// Whether flows may outlive the process.
    #[must_use]
    pub fn persists(&self) -> bool {
        self.pins.is_some()
    }

    /// Puts the programs in the place of those of an earlier process, on every device that still has them. No packet
    /// finds none.
    pub fn take_devices(&self) {
        let Some(pins) = &self.pins else { return };
        for device in pins.devices() {
            match self.take_device(pins, device) {
                Ok(()) => {
                    self.devices.write().unwrap_or_else(PoisonError::into_inner).insert(device, true);
                    self.heed(device);
                }
                Err(error) => {
                    // The device is gone, perhaps with its network namespace, whose number is ours now.
                    tracing::info!(device, %error, "no programs of a former process were taken over");
                    pins.forget(device);
                }
            }
        }
    }

    fn take_device(&self, pins: &Pins, device: u32) -> Result<(), AttachError> {
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        let mut links = Vec::new();
        for (name, hook) in [(name::EGRESS, Hook::Egress), (name::INGRESS, Hook::Ingress)] {
            let link = PinnedLink::from_pin(pins.link(device, hook))?;
            let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
            let program: &mut SchedClassifier = program.try_into()?;
            let id = program.attach_to_link(FdLink::from(link).try_into()?)?;
            links.push(FdLink::try_from(program.take_link(id)?)?);
        }
        self.links.lock().unwrap_or_else(PoisonError::into_inner).insert(device, links);
        Ok(())
    }

    /// Forgets all devices but those that are there: an index that is free may be given to another one.
    fn forget_devices(&self, present: &BTreeSet<u32>) {
        // Before the devices, as where the programs are put on one.
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<u32> = devices.keys().copied().filter(|device| !present.contains(device)).collect();
        for device in gone {
            devices.remove(&device);
            let kept = self.attached.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
            for (name, link) in kept.unwrap_or_default() {
                if let Ok(program) = program(&mut ebpf, name) {
                    // With the device, the kernel has dropped it already.
                    let _ = program.detach(link);
                }
            }
            let pinned = self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(&device);
            if let (Some(_), Some(pins)) = (pinned, &self.pins) {
                pins.forget(device);
            }
            tracing::debug!(device, "a device was removed");
        }
    }

    /// Has nothing outlive the process any more: for an end that was asked for.
    pub fn unpin(&self) {
        if let Some(pins) = &self.pins {
            pins.remove();
        }
    }

    /// Has all flows end with the process, which is about to exit without closing its sockets in good order.
    pub fn abandon(&self) {
        // Those of another process go on; our own end with our sockets.
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

    /// Whether the programs are on the device; `None` if nobody has asked for it yet.
    #[must_use]
    pub fn is_attached(&self, device: u32) -> Option<bool> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).get(&device).copied()
    }

    /// Puts the programs on the device with this index, behind those of others. Where that cannot be, it is not tried
    /// again.
    pub fn attach(&self, device: u32) -> Result<(), AttachError> {
        let mut ebpf = self.ebpf.write().unwrap_or_else(PoisonError::into_inner);
        // Someone else may have been faster.
        if self.is_attached(device) == Some(true) {
            return Ok(());
        }
        self.heed(device);
        let result = attach(&mut ebpf, device).and_then(|attached| {
            if let Some(pins) = &self.pins {
                return self.pin(pins, &mut ebpf, device, attached);
            }
            self.attached.lock().unwrap_or_else(PoisonError::into_inner).insert(device, attached);
            Ok(())
        });
        self.devices.write().unwrap_or_else(PoisonError::into_inner).insert(device, result.is_ok());
        result
    }

    fn heed(&self, device: u32) {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = filters.heed_reverse_path(device) {
            tracing::warn!(device, %error, "cannot read the reverse-path filter of this device: the filter is not applied to flows");
        }
    }

    fn pin(&self, pins: &Pins, ebpf: &mut Ebpf, device: u32, attached: Attached) -> Result<(), AttachError> {
        // What has no place on the device any more would be in the way.
        pins.forget(device);
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let links = links.entry(device).or_default();
        for (hook, (name, id)) in [Hook::Egress, Hook::Ingress].into_iter().zip(attached) {
            let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
            let program: &mut SchedClassifier = program.try_into()?;
            let link = FdLink::try_from(program.take_link(id)?)?;
            links.push(link.pin(pins.link(device, hook))?.into());
        }
        Ok(())
    }

    /// Looks at the sockets of both legs. Fails with `NotFound` if one of them is not there.
    pub fn socket_info(&self, tuples: [Tuple; LEGS]) -> io::Result<[SocketInfo; LEGS]> {
        let mut packet = [0; OFFSET + LEGS * size_of::<SocketInfo>()];
        for (at, tuple) in tuples.into_iter().enumerate() {
            write(&mut packet, at, &SocketInfo::at(tuple));
        }
        let mut answered = packet;
        let ebpf = self.ebpf.read().unwrap_or_else(PoisonError::into_inner);
        let program = ebpf.program(name::SOCKET_INFO).ok_or(io::ErrorKind::NotFound)?;
        let program: &SchedClassifier = program.try_into().map_err(io::Error::other)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        options.data_out = Some(&mut answered);
        let result = program.test_run(options).map_err(io::Error::other)?;
        if result.return_value != 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok([read(&answered, 0), read(&answered, 1)])
    }

    /// Runs the ingress program on `packet`. Returns its verdict and the packet afterwards.
    #[cfg(feature = "testing")]
    pub fn try_packet(&self, packet: &[u8]) -> io::Result<(u32, Vec<u8>)> {
        let mut out = vec![0; packet.len() + 64];
        let ebpf = self.ebpf.read().unwrap_or_else(PoisonError::into_inner);
        let program = ebpf.program(name::INGRESS).ok_or(io::ErrorKind::NotFound)?;
        let program: &SchedClassifier = program.try_into().map_err(io::Error::other)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).map_err(io::Error::other)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// A descriptor of `SNI_TUPLES` for another user of the map.
    pub fn tuples(&self) -> io::Result<OwnedFd> {
        self.fds.tuples.try_clone()
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
        // A start that failed leaves the flows to the next one, if there are any.
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

/// Beginnings of connections that are remembered until they are asked for: fewer would be forgotten early, since each processor
/// sets some aside, and more are never under way.
const BEGUN_LEAST: u32 = 1_024;
const BEGUN_MOST: u32 = 65_536;

/// Resolves when no packet is being handled any more by what was in the maps before.
///
/// A program that had begun then may have read the old rules. It runs within a section that the kernel waits for here
/// (`MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu`, Linux 4.3).
pub(crate) async fn grace() {
    /// Far longer than a packet takes, for kernels that isolate processors from such calls.
    const LONG: Duration = Duration::from_millis(100);
    let waited = tokio::task::spawn_blocking(|| membarrier(MembarrierCommand::Global)).await;
    if !matches!(waited, Ok(Ok(()))) {
        tokio::time::sleep(LONG).await;
    }
}

/// Puts the programs on a device: first the one on the way out, then the one on the way in.
fn attach(ebpf: &mut Ebpf, device: u32) -> Result<Attached, AttachError> {
    let interface = &*ethernet(device)?;
    if !has_links() {
        // It may be there already, and it stays: others may use it meanwhile.
        let _ = tc::qdisc_add_clsact(interface);
    }
    // When a process dies, the kernel closes what was opened last first. The sockets' resets shall still find the
    // programs, so what keeps those on the device takes the descriptors that are freed here.
    low_descriptors::free_for_device();
    // The way out first: from then on our own sockets are quiet in the flows that the way in carries.
    let mut attached = Vec::new();
    for (name, side) in [(name::EGRESS, TcAttachType::Egress), (name::INGRESS, TcAttachType::Ingress)] {
        let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
        let program: &mut SchedClassifier = program.try_into()?;
        attached.push((name, program.attach(interface, side)?));
    }
    tracing::debug!(interface, "packets are carried on this device");
    Ok(attached)
}

/// The name of a device with Ethernet headers: packets with other headers, or none, are not understood.
fn ethernet(device: u32) -> Result<String, AttachError> {
    // Any socket will do to ask for devices.
    let asker = socket(AddressFamily::INET, SocketType::DGRAM, None);
    let asker = asker.map_err(|error| AttachError::NoDevice(error.into()))?;
    let interface = index_to_name_inlined(&asker, device);
    let interface = interface.map_err(|error| AttachError::NoDevice(error.into()))?;
    let interface = interface.as_str();
    if hardware_type(&asker, interface).map_err(AttachError::NoDevice)? != libc::ARPHRD_ETHER {
        return Err(AttachError::NotEthernet);
    }
    Ok(interface.to_owned())
}

/// Whether the kernel has links for devices (tcx, Linux 6.6).
fn has_links() -> bool {
    !KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, LoadError> {
    Ok(ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into()?)
}

/// Where a question or answer is in the made-up packet.
fn slot(at: usize) -> std::ops::Range<usize> {
    let start = OFFSET + at * size_of::<SocketInfo>();
    start..start + size_of::<SocketInfo>()
}

fn write(packet: &mut [u8], at: usize, info: &SocketInfo) {
    // SAFETY: a `SocketInfo` consists of integers without padding, so each of its bytes is initialised.
    let bytes =
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(info).cast::<u8>(), size_of::<SocketInfo>()) };
    packet[slot(at)].copy_from_slice(bytes);
}

fn read(packet: &[u8], at: usize) -> SocketInfo {
    // SAFETY: the slice is as long as a `SocketInfo`, which consists of integers: every bit pattern is valid.
    unsafe { packet[slot(at)].as_ptr().cast::<SocketInfo>().read_unaligned() }
}
