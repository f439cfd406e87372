//! Flows of an earlier process: the kernel continues them, and this process brings them to their end.
//!
//! If the earlier process was killed, new sockets replace its own without sending a packet. They hold the ports, probe
//! the peers at times, and send the resets. In a takeover, the earlier process hands over its own sockets
//! ([`crate::takeover`]), each flow as soon as its sockets have nothing left to deliver.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_common::packet::{
    flow::{KEPT, OVER, RESET, Rules, Standing, Translation},
    maps::{Slot, Tuple},
};
use snisplice_config::model::{Timeouts, scope::ScopedTimeouts};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use self::flow::{AdoptedFlow, Holder, Peer};
use super::{Shared, flow::is_half_closed, maps::Maps, time_wait::TIME_WAIT};
use crate::{
    account::{
        registry::{self, RegistryRequest},
        view::ConnectionView,
    },
    bpf::packet::{Lead, Programs, tuple},
    datapath::seam::{End, Patience},
    log::log_limit,
    metrics::{
        Metrics, NONE,
        labels::{Carrier, CloseReason, Direction},
    },
    net::keepalive::{Keepalive, bear_silence},
    takeover::{
        client::{Flows, ReceivedFlow},
        message::Message,
    },
};

mod flow;

/// The period of the checks for ended flows. Only the account waits for them.
const SWEEP: Duration = Duration::from_secs(1);

/// No worker's token: events of these flows wake no task.
const NOBODY: u64 = u64::MAX;

/// All adopted flows.
pub struct AdoptedFlows {
    programs: Arc<Programs>,
    maps: Maps,
    metrics: Arc<Metrics>,
    patience: Patience,
    keepalive: Keepalive,
    flows: Vec<AdoptedFlow>,
    /// Slots of flows that still belong to the old process of a takeover.
    alive: BTreeSet<u32>,
    /// The number of adopted flows so far.
    serial: u32,
    /// The number of workers with connections beside these.
    workers: usize,
}

/// The time limits of adopted flows.
pub struct Limits<P, O> {
    /// Returns the limits of the process.
    pub process: P,
    /// Returns the limits that differ for a flow: it was accepted at the first address and leads to the second.
    pub own: O,
}

impl fmt::Debug for AdoptedFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdoptedFlows").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}

impl AdoptedFlows {
    /// Adopts the flows of an earlier process, and forgets those that cannot continue. Called before any address is
    /// bound or connected, since the ports of these flows are in use. If that process lives, in the slots `alive`, its
    /// flows stay its own until they are handed over. Their numbers follow those of the connections of `workers`
    /// workers.
    pub fn take(
        programs: &Arc<Programs>,
        patience: Patience,
        keepalive: Keepalive,
        metrics: &Arc<Metrics>,
        alive: Option<BTreeSet<u32>>,
        workers: usize,
    ) -> io::Result<Self> {
        programs.take_devices();
        let mut adopted = Self {
            maps: Maps::of(programs)?,
            programs: programs.clone(),
            metrics: metrics.clone(),
            patience,
            keepalive,
            flows: Vec::new(),
            alive: BTreeSet::new(),
            serial: 0,
            workers,
        };
        if let Some(alive) = alive {
            programs.occupy(&alive);
            adopted.alive = alive;
        } else {
            let found = adopted.find()?;
            programs.occupy(&found.keys().copied().collect());
            adopted.adopt_all(found)?;
        }
        Ok(adopted)
    }

    /// All flows with addresses, by slot.
    fn find(&self) -> io::Result<BTreeMap<u32, [Option<Tuple>; 2]>> {
        let mut found = BTreeMap::<u32, [Option<Tuple>; 2]>::new();
        for (tuple, Slot { flow, way }) in self.maps.tuples()? {
            found.entry(flow).or_default()[(way & 1) as usize] = Some(tuple);
        }
        Ok(found)
    }

    fn adopt_all(&mut self, found: BTreeMap<u32, [Option<Tuple>; 2]>) -> io::Result<()> {
        let before = self.flows.len();
        for (flow, tuples) in found {
            self.adopt(flow, tuples)?;
        }
        if self.flows.len() > before {
            tracing::info!(flows = self.flows.len() - before, "flows of a former process continue");
        }
        Ok(())
    }

    /// Adopts the flows that a former process has left: it has ended, and its slots are free.
    fn adopt_rest(&mut self) -> io::Result<()> {
        let mut found = self.find()?;
        found.retain(|flow, _| self.alive.contains(flow));
        for flow in std::mem::take(&mut self.alive) {
            if !found.contains_key(&flow) {
                self.programs.release(flow);
            }
        }
        self.adopt_all(found)
    }

    /// Adopts a flow that a running process hands over.
    fn receive(&mut self, received: ReceivedFlow) -> io::Result<()> {
        let ReceivedFlow { place: flow, counted, age, sockets } = received;
        if !self.alive.remove(&flow) {
            return Ok(());
        }
        let rules = Rules { token: NOBODY, ..self.maps.rules(flow)? };
        self.maps.set_rules(flow, rules)?;
        // Bytes up go to the backend.
        let [up, down] = rules.ways.each_ref().map(tuple::of_receiver);
        let now = Instant::now();
        let mut adopted = AdoptedFlow {
            flow,
            id: self.number(),
            opened: now.checked_sub(age).unwrap_or(now),
            tuples: [Some(down), Some(up)],
            rules,
            sockets: Vec::new(),
            progress: (0, 0),
            counted,
            since: now,
            limits: OnceCell::new(),
        };
        for (peer, socket) in [Peer::Client, Peer::Backend].into_iter().zip(sockets) {
            let Some((socket, answers)) = socket else { continue };
            // The earlier process may have been in doubt about the peer.
            let _ = bear_silence(&socket, false);
            adopted.sockets.push(Holder {
                peer,
                socket: socket.into(),
                since: Instant::now(),
                answers,
                doubted: false,
            });
        }
        self.programs.stats().adopt();
        self.metrics.listener(&NONE.into()).active.inc();
        self.flows.push(adopted);
        Ok(())
    }

    /// Hands all flows over to the new process of a takeover, if there is one. Flows that it does not receive remain
    /// as after a kill.
    fn pass_on(&mut self) {
        let Some(successor) = self.programs.successor().cloned() else { return };
        for adopted in std::mem::take(&mut self.flows) {
            if !adopted.is_open() {
                self.forget(&adopted);
                continue;
            }
            let mut answers = [None; 2];
            let mut sockets = Vec::new();
            let mut holders: Vec<_> = adopted.sockets.iter().collect();
            holders.sort_unstable_by_key(|holder| holder.peer as usize);
            for holder in holders {
                answers[holder.peer as usize] = Some(holder.answers);
                sockets.push(holder.socket.as_fd());
            }
            let age = u32::try_from(adopted.opened.elapsed().as_secs()).unwrap_or(u32::MAX);
            let flow = Message::Flow { place: adopted.flow, counted: adopted.counted, age, answers };
            if let Err(error) = successor.send(&flow, &sockets) {
                log_limit!(warn, %error, "a connection is left to who comes next");
            }
            self.metrics.listener(&NONE.into()).active.dec();
            self.metrics.closed(&NONE.into(), &NONE.into(), Some(Carrier::Packet), CloseReason::HandedOver);
        }
    }

    /// The number of the next flow.
    fn number(&mut self) -> u64 {
        let serial = self.serial;
        self.serial = serial.wrapping_add(1);
        registry::number(serial, self.workers, self.workers)
    }

    fn adopt(&mut self, flow: u32, tuples: [Option<Tuple>; 2]) -> io::Result<()> {
        let keepalive = self.keepalive;
        let rules = Rules { token: NOBODY, ..self.maps.rules(flow)? };
        let mut adopted = AdoptedFlow {
            flow,
            id: self.number(),
            opened: Instant::now(),
            tuples,
            rules,
            sockets: Vec::new(),
            progress: (0, 0),
            counted: [0, 0],
            since: Instant::now(),
            limits: OnceCell::new(),
        };
        let is_attached = |way: &Translation| self.programs.is_attached(way.device) == Some(true);
        let goes_on = match rules.mode {
            KEPT => tuples.iter().all(Option::is_some),
            OVER => true,
            // Resets of its own sockets have ended the flow, or it had not begun.
            _ => false,
        };
        if !goes_on || !rules.ways.iter().all(is_attached) {
            self.forget(&adopted);
            return Ok(());
        }
        self.maps.set_rules(flow, rules)?;
        if rules.mode == KEPT {
            for ((tuple, way), peer) in
                tuples.iter().flatten().zip(&rules.ways).zip([Peer::Client, Peer::Backend])
            {
                match Holder::new(peer, tuple, way, Some(&keepalive)) {
                    Ok(holder) => adopted.sockets.push(holder),
                    Err(error) => log_limit!(warn, %error, "a port of an earlier process' flow is not held"),
                }
            }
            self.programs.stats().adopt();
            self.metrics.listener(&NONE.into()).active.inc();
        }
        self.flows.push(adopted);
        Ok(())
    }

    /// Brings each flow to its end, until there is none, and none can arrive by `flows` from a former process. All end
    /// at once when `stop` is cancelled. Requests are answered meanwhile.
    pub async fn watch<P, O>(
        mut self,
        stop: CancellationToken,
        mut flows: Option<Flows>,
        mut asked: UnboundedReceiver<RegistryRequest>,
        limits: Limits<P, O>,
    ) where
        P: Fn() -> Timeouts,
        O: Fn(Option<SocketAddr>, Option<SocketAddr>) -> ScopedTimeouts,
    {
        let programs = self.programs.clone();
        let mut sweep = tokio::time::interval(SWEEP);
        while !self.flows.is_empty() || flows.is_some() {
            tokio::select! {
                received = next(&mut flows) => {
                    let done = if let Some(received) = received {
                        self.receive(received)
                    } else {
                        flows = None;
                        self.adopt_rest()
                    };
                    if let Err(error) = done {
                        log_limit!(warn, %error, "a flow of the process before is lost");
                    }
                    continue;
                }
                () = programs.succeeded() => {
                    self.pass_on();
                    return;
                }
                Some(request) = asked.recv() => {
                    self.answer(request);
                    continue;
                }
                () = programs.leads_changed() => {
                    self.follow_routes();
                    continue;
                }
                () = stop.cancelled() => {
                    self.end(CloseReason::Aborted, |_| true);
                    for adopted in std::mem::take(&mut self.flows) {
                        self.forget(&adopted);
                    }
                    return;
                }
                _ = sweep.tick() => {}
            }
            for adopted in &self.flows {
                adopted.limits.get_or_init(|| {
                    let [client, backend] =
                        adopted.tuples.each_ref().map(|tuple| tuple.as_ref().map(tuple::ends));
                    (limits.own)(client.map(|(local, _)| local), backend.map(|(_, remote)| remote))
                });
            }
            let process = (limits.process)();
            self.end(CloseReason::MaxDuration, |adopted| {
                let longest = adopted.longest(&process);
                !longest.is_zero() && adopted.opened.elapsed() >= longest
            });
            for mut adopted in std::mem::take(&mut self.flows) {
                if self.goes_on(&mut adopted) {
                    self.flows.push(adopted);
                } else {
                    self.forget(&adopted);
                }
            }
        }
    }

    /// Makes the kernel forward over the devices of the current routes.
    fn follow_routes(&mut self) {
        for adopted in &mut self.flows {
            let mut moved = 0;
            for (way, lead) in adopted.rules.ways.iter_mut().zip(self.programs.leads(adopted.flow)) {
                if let Lead::Device(device) = lead
                    && device != way.device
                {
                    way.device = device;
                    moved += 1;
                }
            }
            if moved > 0 {
                // An array takes every update.
                let _ = self.maps.set_rules(adopted.flow, adopted.rules);
                self.programs.count_moved(moved);
            }
        }
    }

    /// Ends the selected open flows at once. Returns their number.
    fn end(&mut self, reason: CloseReason, which: impl Fn(&AdoptedFlow) -> bool) -> usize {
        let (ended, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.flows)
            .into_iter()
            .partition(|adopted| adopted.is_open() && which(adopted));
        self.flows = rest;
        let count = ended.len();
        for mut adopted in ended {
            self.reset(&mut adopted, reason);
            self.forget(&adopted);
        }
        count
    }

    /// Lists open flows, or ends them, like a worker.
    fn answer(&mut self, request: RegistryRequest) {
        // A caller that no longer waits has dropped the receiver.
        match request {
            RegistryRequest::List { filter, after, most, reply } => {
                let wanted = |adopted: &&AdoptedFlow| {
                    adopted.is_open()
                        && adopted.matches(&filter)
                        && after.is_none_or(|after| adopted.id > after)
                };
                let mut found: Vec<_> = self.flows.iter().filter(wanted).collect();
                found.sort_by_key(|adopted| adopted.id);
                let _ =
                    reply.send(found.into_iter().take(most).map(|adopted| self.describe(adopted)).collect());
            }
            RegistryRequest::Count { reply } => {
                for adopted in self.flows.iter_mut().filter(|adopted| adopted.is_open()) {
                    count(&self.metrics, &self.maps, adopted);
                }
                let _ = reply.send(());
            }
            RegistryRequest::Close { filter, reason, reply } => {
                let _ = reply.send(self.end(reason, |adopted| adopted.matches(&filter)));
            }
        }
    }

    fn describe(&self, adopted: &AdoptedFlow) -> ConnectionView {
        let [client, backend] = adopted.tuples.map(|tuple| tuple.map(|tuple| tuple::ends(&tuple)));
        let state = self.maps.state(adopted.flow).ok();
        let delivered = |way| state.as_ref().map_or(0, |state| state.delivered(way));
        ConnectionView {
            id: adopted.id,
            listener: NONE.to_owned(),
            route: None,
            backend: None,
            client: client.map(|(_, remote)| remote),
            proxy: None,
            accepted_at: client.map(|(local, _)| local),
            connected_from: backend.map(|(local, _)| local),
            backend_address: backend.map(|(_, remote)| remote),
            age_seconds: adopted.opened.elapsed().as_secs_f64(),
            carrier: Some(Carrier::Packet.label().to_owned()),
            former_carrier: Some(Carrier::Packet.label().to_owned()),
            packet_refused: None,
            bytes_up: delivered(0),
            bytes_down: delivered(1),
        }
    }

    /// Checks a flow. Returns false if its entries are no longer needed.
    fn goes_on(&mut self, adopted: &mut AdoptedFlow) -> bool {
        if !adopted.is_open() {
            return adopted.since.elapsed() < TIME_WAIT;
        }
        let Ok(state) = self.maps.state(adopted.flow) else { return true };
        let end = match state.standing() {
            Standing::Finished => End::Finished,
            Standing::Reset(0) => End::ClientReset,
            Standing::Reset(_) => End::BackendReset,
            Standing::Open => {
                adopted.ask_peers(self.programs.doubted(adopted.flow));
                // No relay is possible in this process.
                let stalled = || self.programs.is_stalled(adopted.flow).then_some(End::Stalled);
                let end = stalled().or_else(|| adopted.failure());
                let end = end.or_else(|| adopted.silence(&state, adopted.patience(self.patience)));
                let Some(end) = end else {
                    return true;
                };
                self.reset(adopted, end.reason());
                return false;
            }
        };
        // The peers have reported everything to each other. Late packets may still come.
        self.account(adopted, end.reason());
        self.set_mode(adopted, OVER);
        adopted.sockets.clear();
        adopted.since = Instant::now();
        true
    }

    /// Ends a flow whose peers have not reported its end to each other.
    fn reset(&mut self, adopted: &mut AdoptedFlow, reason: CloseReason) {
        self.account(adopted, reason);
        self.set_mode(adopted, RESET);
        // The resets get the right numbers when they pass the programs.
        adopted.sockets.clear();
    }

    fn set_mode(&mut self, adopted: &mut AdoptedFlow, mode: u32) {
        adopted.rules.mode = mode;
        // An array takes every update.
        let _ = self.maps.set_rules(adopted.flow, adopted.rules);
    }

    /// Counts all that was delivered since the flow began: the earlier process has not lived to count it.
    fn account(&self, adopted: &mut AdoptedFlow, reason: CloseReason) {
        // Updated before the end: a scrape that includes the flow's end also includes its bytes.
        count(&self.metrics, &self.maps, adopted);
        let none: Arc<str> = NONE.into();
        self.metrics.closed(&none, &none, Some(Carrier::Packet), reason);
        self.metrics.listener(&none).active.dec();
    }

    fn forget(&mut self, adopted: &AdoptedFlow) {
        for (tuple, slot) in adopted.tuples.iter().zip(Shared::slots(adopted.flow)) {
            if let Some(tuple) = tuple {
                self.maps.remove_tuple(tuple, slot);
            }
        }
        self.programs.release(adopted.flow);
    }
}

/// Counts the bytes that a flow has delivered and no process has counted yet.
fn count(metrics: &Metrics, maps: &Maps, adopted: &mut AdoptedFlow) {
    let Ok(state) = maps.state(adopted.flow) else { return };
    let none: Arc<str> = NONE.into();
    for (direction, way) in [(Direction::Up, 0), (Direction::Down, 1)] {
        let delivered = state.delivered(way);
        let bytes = delivered.saturating_sub(adopted.counted[way]);
        if bytes > 0 {
            adopted.counted[way] = delivered;
            metrics.moved(&none, Some(Carrier::Packet), direction, bytes);
        }
    }
}

/// The next flow of the former process; `None` if it has ended.
async fn next(flows: &mut Option<Flows>) -> Option<ReceivedFlow> {
    match flows {
        Some(flows) => flows.recv().await,
        None => std::future::pending().await,
    }
}

/// Removes the flows of a process that had begun a takeover and aborted.
pub fn remove_unowned(programs: &Programs) -> io::Result<()> {
    let mut maps = Maps::of(programs)?;
    for (tuple, slot) in maps.tuples()? {
        if programs.is_free(slot.flow) {
            maps.remove_tuple(&tuple, slot);
        }
    }
    Ok(())
}
