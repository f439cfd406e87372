//! Flows follow the routing. This thread receives changes of links, addresses, rules and routes. It attaches the
//! programs to every device that routes may lead to, and finds the outgoing device of each flow's packets again.
//!
//! It records the result ([`Lead`]) and wakes the flow's task, which alone writes the flow's rules. The kernel itself
//! keeps the next hop's hardware address up to date (`bpf_redirect_neigh`), so this thread ignores neighbours.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData, MapError};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, retry_on_intr, write},
};
use snisplice_common::packet::flow::{Rules, State, is_carried};
use tokio::sync::Notify;

use super::{
    AttachError, LOOK, Programs,
    stall::{Found, Stall},
    tuple,
};
use crate::{
    bpf::wakeup::Token,
    net::rtnetlink::{Asker, Changes, Hop},
};

/// Shortest time between two checks of all flows. A routing daemon that reconverges changes thousands of routes one
/// by one, and the first change may be the only relevant one.
const PAUSE: Duration = Duration::from_millis(20);

/// The pause is at least this multiple of a check's duration, so that a network without rest takes a fifth of a
/// processor at most.
const SHARE: u32 = 4;

/// The period of the checks for stalled flows, while there are any flows.
const SWEEP: Duration = Duration::from_secs(2);

/// The pause before a retry if the kernel does not reply.
const AGAIN: Duration = Duration::from_secs(1);

/// The outgoing device of a way's packets by the present routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// The same device as in the flow's rules from the beginning.
    Unchanged,
    /// The device with this index, which has the programs.
    Device(u32),
    /// No program can send the packets: to a device without Ethernet headers, or to this host.
    Beyond,
}

impl Lead {
    /// No device has that index.
    const BEYOND: u32 = u32::MAX;

    fn pack(self) -> u32 {
        match self {
            Self::Unchanged => 0,
            Self::Device(device) => device,
            Self::Beyond => Self::BEYOND,
        }
    }

    fn unpack(packed: u32) -> Self {
        match packed {
            0 => Self::Unchanged,
            Self::BEYOND => Self::Beyond,
            device => Self::Device(device),
        }
    }
}

/// [`Routes::stalls`]: the flow stands still.
const STALLED: u8 = 1;
/// [`Routes::stalls`]: the client, the backend may not be there.
const DOUBTED: [u8; 2] = [2, 4];

/// The state that the thread and the workers share.
#[derive(Debug)]
pub(super) struct Routes {
    /// By slot: up in the lower half, down in the upper one.
    leads: Box<[AtomicU64]>,
    /// By slot: [`STALLED`], [`DOUBTED`], several or nothing.
    stalls: Box<[AtomicU8]>,
    /// Slots to check although nothing has changed since.
    asked: Mutex<Vec<u32>>,
    /// The time of the last change: milliseconds since `began`, plus 1.
    changed: AtomicU64,
    began: Instant,
    /// Changes, bursts counted once.
    looks: AtomicU64,
    /// Ways of flows that were moved to another device.
    moved: AtomicU64,
    /// Whether the thread runs.
    watching: AtomicBool,
    /// Wakes the thread.
    bell: OwnedFd,
    /// For flows without a task of their own.
    found: Notify,
}

impl Routes {
    pub(super) fn new(flows: u32) -> io::Result<Self> {
        Ok(Self {
            leads: (0..flows).map(|_| AtomicU64::new(0)).collect(),
            stalls: (0..flows).map(|_| AtomicU8::new(0)).collect(),
            asked: Mutex::default(),
            changed: AtomicU64::new(0),
            began: Instant::now(),
            looks: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            watching: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            found: Notify::new(),
        })
    }

    fn note(&self, flow: u32, leads: [Lead; 2]) {
        let [up, down] = leads.map(|lead| u64::from(lead.pack()));
        if let Some(place) = self.leads.get(flow as usize) {
            place.store(up | (down << 32), Relaxed);
        }
    }

    fn note_stall(&self, flow: u32, found: Found) {
        let Some(place) = self.stalls.get(flow as usize) else { return };
        let doubts = DOUBTED.into_iter().zip(found.ask).filter(|(_, ask)| *ask);
        let bits = doubts.fold(u8::from(found.stalled) * STALLED, |bits, (doubted, _)| bits | doubted);
        place.store(bits, Relaxed);
    }

    pub(super) fn ring(&self) {
        // The pipe is full only if the thread does not read.
        let _ = write(&self.bell, &1_u64.to_ne_bytes());
    }
}

/// The thread, stopped on drop.
#[derive(Debug)]
pub(super) struct Watcher {
    routes: Arc<Routes>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.routes.ring();
        if let Some(thread) = self.thread.take()
            // The thread itself may drop the last reference.
            && thread.thread().id() != thread::current().id()
        {
            // The thread has ended normally, or has panicked, which the panic hook has logged.
            let _ = thread.join();
        }
    }
}

impl Programs {
    /// Makes flows follow the routing from now on. Call it once, when the devices of an earlier process are taken
    /// ([`Programs::take_devices`]), in the network namespace in service.
    pub fn follow_routes(self: &Arc<Self>) -> io::Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut thread = Thread {
            programs: Arc::downgrade(self),
            routes: self.routes.clone(),
            rules: Array::try_from(Map::Array(MapData::from_fd(self.rules()?).map_err(io::Error::other)?))
                .map_err(io::Error::other)?,
            states: Array::try_from(Map::Array(MapData::from_fd(self.states()?).map_err(io::Error::other)?))
                .map_err(io::Error::other)?,
            stalls: HashMap::new(),
            asker: Asker::new()?,
            changes: Changes::new()?,
            stop: stop.clone(),
        };
        // Existing devices get the programs before any flow begins.
        thread.attach(self)?;
        self.routes.watching.store(true, Relaxed);
        let routes = self.routes.clone();
        let thread = thread::Builder::new().name("routes".to_owned()).spawn(move || thread.run())?;
        let _ = self.watcher.set(Watcher { routes, thread: Some(thread), stop });
        Ok(())
    }

    /// The outgoing devices of a flow's ways.
    #[must_use]
    pub fn leads(&self, flow: u32) -> [Lead; 2] {
        let packed = self.routes.leads.get(flow as usize).map_or(0, |place| place.load(Relaxed));
        #[expect(clippy::cast_possible_truncation, reason = "each half is a lead")]
        let halves = [packed as u32, (packed >> 32) as u32];
        halves.map(Lead::unpack)
    }

    /// Whether a flow is stalled for an unknown reason.
    #[must_use]
    pub fn is_stalled(&self, flow: u32) -> bool {
        self.routes.stalls.get(flow as usize).is_some_and(|place| place.load(Relaxed) & STALLED != 0)
    }

    /// Whether the client and the backend of a flow may be unreachable: bytes are in flight to them, and none is
    /// acknowledged.
    #[must_use]
    pub fn doubted(&self, flow: u32) -> [bool; 2] {
        let noted = self.routes.stalls.get(flow as usize).map_or(0, |place| place.load(Relaxed));
        DOUBTED.map(|doubted| noted & doubted != 0)
    }

    /// Clears the results of the former flow in this slot.
    pub(super) fn forget_found(&self, flow: u32) {
        self.routes.note(flow, [Lead::Unchanged; 2]);
        self.routes.note_stall(flow, Found::default());
    }

    /// Makes the thread find the devices of a flow that has just begun, if the routing has changed within `age`: its
    /// sockets may have cached an older route.
    pub fn look_where_it_leads(&self, flow: u32, age: Duration) {
        let changed = Duration::from_millis(self.routes.changed.load(Relaxed));
        if changed.is_zero() || self.routes.began.elapsed() > changed + age {
            return;
        }
        self.routes.asked.lock().unwrap_or_else(PoisonError::into_inner).push(flow);
        self.routes.ring();
    }

    /// Counts ways that continue over another device.
    pub fn count_moved(&self, ways: u64) {
        self.routes.moved.fetch_add(ways, Relaxed);
    }

    /// Ways of flows that were led over another device.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.routes.moved.load(Relaxed)
    }

    /// The number of changes of the routing. A burst counts once.
    #[must_use]
    pub fn route_changes(&self) -> u64 {
        self.routes.looks.load(Relaxed)
    }

    /// Resolves when flows may lead elsewhere.
    pub async fn leads_changed(&self) {
        self.routes.found.notified().await;
    }
}

struct Thread {
    programs: Weak<Programs>,
    routes: Arc<Routes>,
    rules: Array<MapData, Rules>,
    states: Array<MapData, State>,
    /// By slot, of the checked flows.
    stalls: HashMap<u32, Stall>,
    asker: Asker,
    changes: Changes,
    stop: Arc<AtomicBool>,
}

impl Thread {
    fn run(&mut self) {
        // The time of the next check of all flows, if there is a reason for one.
        let mut quiet_until = Instant::now();
        // The first check of an earlier process's flows needs no reason.
        let mut due = Some(quiet_until);
        // The time of the next check for stalled flows, while there are any flows.
        let mut sweep: Option<Instant> = None;
        while !self.stop.load(Relaxed) {
            let next = due.into_iter().chain(sweep).min();
            self.wait(next.map(|next| next.saturating_duration_since(Instant::now())));
            if self.stop.load(Relaxed) {
                return;
            }
            match self.changes.take() {
                Ok(true) => {
                    let now = u64::try_from(self.routes.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.routes.changed.store(now.saturating_add(1), Relaxed);
                    if due.is_none() {
                        self.routes.looks.fetch_add(1, Relaxed);
                    }
                    due.get_or_insert(quiet_until);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "route changes are no longer noticed");
                    return;
                }
            }
            let asked =
                std::mem::take(&mut *self.routes.asked.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(programs) = self.programs.upgrade() else { return };
            if due.is_some_and(|due| due <= Instant::now()) {
                let started = Instant::now();
                let looked = self.look(&programs);
                let took = started.elapsed();
                quiet_until = Instant::now() + (took * SHARE).max(PAUSE);
                due = None;
                if let Err(error) = looked {
                    tracing::warn!(%error, "cannot look up the routes of flows: trying again");
                    due = Some(Instant::now() + AGAIN);
                }
            } else if let Err(error) = asked.into_iter().try_for_each(|flow| self.look_at(&programs, flow)) {
                tracing::debug!(%error, "cannot look up the route of a flow");
                due.get_or_insert(quiet_until);
            }
            if sweep.is_some_and(|sweep| sweep <= Instant::now()) {
                self.sweep(&programs);
                sweep = None;
            }
            if sweep.is_none() && programs.in_use() {
                sweep = Some(Instant::now() + SWEEP);
            }
        }
    }

    /// Checks for stalled flows, and wakes their tasks.
    fn sweep(&mut self, programs: &Programs) {
        /// A lookup waits while a program changes the entry: `BPF_F_LOCK`, kernel 5.1.
        const LOCKED: u64 = 4;
        for flow in 0..programs.highest() {
            let Ok(state) = self.states.get(&flow, LOCKED) else { continue };
            let found = self.stalls.entry(flow).or_default().look(&state);
            let is_news = found != Found::default() || programs.doubted(flow) != found.ask;
            if !is_news || programs.is_stalled(flow) {
                continue;
            }
            let Ok(rules) = self.rules.get(&flow, 0) else { continue };
            if is_carried(rules.mode) {
                self.routes.note_stall(flow, found);
                programs.events.raise(Token::unpack(rules.token), LOOK);
            }
        }
    }

    /// Waits for a change or for the bell, for at most `limit`.
    fn wait(&self, limit: Option<Duration>) {
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut fds = [
            PollFd::from_borrowed_fd(self.changes.as_fd(), PollFlags::IN),
            PollFd::new(&self.routes.bell, PollFlags::IN),
        ];
        if let Err(Errno::NOMEM) = retry_on_intr(|| poll(&mut fds, limit.as_ref())) {
            thread::yield_now();
        }
        let _ = rustix::io::read(&self.routes.bell, &mut [0_u8; 8]);
    }

    /// Checks all devices and flows.
    fn look(&mut self, programs: &Arc<Programs>) -> io::Result<()> {
        let saw_all = self.attach(programs)?;
        for flow in 0..programs.highest() {
            self.look_at(programs, flow)?;
        }
        self.routes.found.notify_one();
        if saw_all { Ok(()) } else { Err(io::Error::other("devices changed while the kernel listed them")) }
    }

    /// Attaches the programs to all devices that routes may lead to. Returns whether all devices were seen.
    fn attach(&mut self, programs: &Programs) -> io::Result<bool> {
        let devices = self.asker.devices()?;
        if devices.complete {
            let present: BTreeSet<u32> = devices.seen.iter().map(|device| device.index).collect();
            programs.forget_devices(&present);
        }
        for device in devices.seen.iter().filter(|device| device.is_candidate()) {
            has_programs(programs, device.index);
        }
        Ok(devices.complete)
    }

    /// Records the devices of a flow's ways if they have changed, and wakes the flow's task.
    fn look_at(&mut self, programs: &Programs, flow: u32) -> io::Result<()> {
        let rules = match self.rules.get(&flow, 0) {
            Ok(rules) if is_carried(rules.mode) => rules,
            Ok(_) => return Ok(()),
            Err(MapError::SyscallError(error)) => return Err(error.io_error),
            Err(error) => return Err(io::Error::other(error)),
        };
        // Records the device in any case: the task may be about to apply an earlier result.
        let noted = programs.leads(flow);
        let mut leads = noted;
        let mut differs = false;
        for (lead, way) in leads.iter_mut().zip(&rules.ways) {
            let (local, remote) = tuple::ends(&tuple::of_receiver(way));
            *lead = match self.asker.hop(local, remote, way.device)? {
                Hop::Device(device) if device == way.device || has_programs(programs, device) => {
                    Lead::Device(device)
                }
                Hop::Device(_) | Hop::Local => Lead::Beyond,
                // A route may exist again in a moment. Until then no packet could leave.
                Hop::None => continue,
            };
            differs |= *lead != Lead::Device(way.device);
        }
        if leads == noted || (noted == [Lead::Unchanged; 2] && !differs) {
            return Ok(());
        }
        self.routes.note(flow, leads);
        programs.events.raise(Token::unpack(rules.token), LOOK);
        Ok(())
    }
}

/// Whether the programs are on a device. Attaches them if that was not tried before.
fn has_programs(programs: &Programs, device: u32) -> bool {
    if let Some(attached) = programs.is_attached(device) {
        return attached;
    }
    // The new process attaches them during a takeover.
    if programs.is_frozen() {
        return true;
    }
    match programs.attach(device) {
        Ok(()) => true,
        Err(error @ AttachError::NotEthernet) => {
            tracing::debug!(device, %error, "connections over this device are not carried in packets");
            false
        }
        Err(error) => {
            tracing::warn!(device, %error, "connections over this device are not carried in packets");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_is_kept_as_it_is() {
        for lead in [Lead::Unchanged, Lead::Device(7), Lead::Device(i32::MAX.cast_unsigned()), Lead::Beyond] {
            assert_eq!(Lead::unpack(lead.pack()), lead);
        }
        let routes = Routes::new(2).unwrap();
        routes.note(1, [Lead::Device(3), Lead::Beyond]);
        assert_eq!(routes.leads[0].load(Relaxed), 0);
        assert_eq!(routes.leads[1].load(Relaxed), 3 | (u64::from(u32::MAX) << 32));
    }
}
