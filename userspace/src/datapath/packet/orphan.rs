//! Flows of an earlier process, which was killed: the kernel carries them on, and this process brings them to their end.
//!
//! Sockets that never sent a packet take the place of those that died. They hold the ports, ask now and then whether the
//! peers are there, and their resets end what must be ended.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use snisplice_common::packet::{
    Slot, Tuple,
    flow::{KEPT, OVER, RESET, Rules, Standing, State, Way},
};
use socket2::Socket;
use tokio_util::sync::CancellationToken;

use super::{Shared, leg, linger::LINGER, maps::Maps};
use crate::{
    datapath::End,
    kernel::packet::Programs,
    liveness::Liveness,
    metrics::{Metrics, NONE},
    socket,
};

/// How often it is looked for ends: nobody waits for them but the account.
const SWEEP: Duration = Duration::from_secs(1);

/// How long sockets of a process that was killed may stay.
const PATIENCE: Duration = Duration::from_secs(1);

/// No worker's token: events of these flows wake nobody.
const NOBODY: u64 = u64::MAX;

/// All flows that were taken over.
pub struct Orphans {
    programs: Arc<Programs>,
    maps: Maps,
    metrics: Arc<Metrics>,
    idle: Duration,
    flows: Vec<Orphan>,
}

impl fmt::Debug for Orphans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphans").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}

struct Orphan {
    flow: u32,
    /// One may have been taken by a new connection.
    tuples: [Option<Tuple>; 2],
    rules: Rules,
    /// What holds the ports, and was to be had.
    sockets: Vec<Holder>,
    progress: (u64, u64),
    /// Since when nothing has moved, or since when it is over.
    since: Instant,
}

/// What holds a port.
struct Holder {
    peer: Peer,
    socket: Socket,
    since: Instant,
    /// Whether the peer has ever answered the question whether it is there. Ours have no timestamps, and some systems
    /// do not answer such packets where timestamps were negotiated (RFC 7323 section 3.2): one that never did is not
    /// taken for lost.
    answers: bool,
}

/// Whose socket it is.
#[derive(Debug, Clone, Copy)]
enum Peer {
    Client,
    Backend,
}

impl Orphans {
    /// Takes over what an earlier process has left, and forgets what cannot go on. To be called before anything is
    /// bound or connected: the ports of these flows are in use.
    pub fn take(
        programs: &Arc<Programs>,
        idle: Duration,
        liveness: &Liveness,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Self> {
        programs.take_devices();
        let mut orphans = Self {
            maps: Maps::of(programs)?,
            programs: programs.clone(),
            metrics: metrics.clone(),
            idle,
            flows: Vec::new(),
        };
        let mut found = BTreeMap::<u32, [Option<Tuple>; 2]>::new();
        for (tuple, Slot { flow, way }) in orphans.maps.tuples()? {
            found.entry(flow).or_default()[(way & 1) as usize] = Some(tuple);
        }
        programs.occupy(&found.keys().copied().collect());
        for (flow, tuples) in found {
            orphans.adopt(flow, tuples, liveness)?;
        }
        if !orphans.flows.is_empty() {
            tracing::info!(flows = orphans.flows.len(), "flows of an earlier process go on");
        }
        Ok(orphans)
    }

    fn adopt(&mut self, flow: u32, tuples: [Option<Tuple>; 2], liveness: &Liveness) -> io::Result<()> {
        let rules = Rules { token: NOBODY, ..self.maps.rules(flow)? };
        let mut orphan =
            Orphan { flow, tuples, rules, sockets: Vec::new(), progress: (0, 0), since: Instant::now() };
        let is_attached = |way: &Way| self.programs.is_attached(way.device) == Some(true);
        let goes_on = match rules.mode {
            KEPT => tuples.iter().all(Option::is_some),
            OVER => true,
            // Its own sockets' resets have ended it, or it had not begun.
            _ => false,
        };
        if !goes_on || !rules.ways.iter().all(is_attached) {
            self.forget(&orphan);
            return Ok(());
        }
        self.maps.set_rules(flow, rules)?;
        if rules.mode == KEPT {
            for ((tuple, way), peer) in
                tuples.iter().flatten().zip(&rules.ways).zip([Peer::Client, Peer::Backend])
            {
                match Holder::new(peer, tuple, way, Some(liveness)) {
                    Ok(holder) => orphan.sockets.push(holder),
                    Err(error) => tracing::warn!(%error, "a port of an earlier process' flow is not held"),
                }
            }
            self.programs.stats().take_over();
            self.metrics.listener(&NONE.into()).active.inc();
        }
        self.flows.push(orphan);
        Ok(())
    }

    /// Brings each of them to its end, until there are none. When `stop` says so, all end at once.
    pub async fn watch(mut self, stop: CancellationToken) {
        while !self.flows.is_empty() {
            tokio::select! {
                () = stop.cancelled() => {
                    for mut orphan in std::mem::take(&mut self.flows) {
                        if orphan.is_open() {
                            self.reset(&mut orphan, "aborted");
                        }
                        self.forget(&orphan);
                    }
                    return;
                }
                () = tokio::time::sleep(SWEEP) => {}
            }
            for mut orphan in std::mem::take(&mut self.flows) {
                if self.goes_on(&mut orphan) {
                    self.flows.push(orphan);
                } else {
                    self.forget(&orphan);
                }
            }
        }
    }

    /// Looks after a flow. False when its entries are of no more use.
    fn goes_on(&mut self, orphan: &mut Orphan) -> bool {
        if !orphan.is_open() {
            return orphan.since.elapsed() < LINGER;
        }
        let Ok(state) = self.maps.state(orphan.flow) else { return true };
        let end = match state.standing() {
            Standing::Finished => End::Finished,
            Standing::Reset(0) => End::ClientReset,
            Standing::Reset(_) => End::BackendReset,
            Standing::Open => {
                let Some(end) = orphan.failure().or_else(|| orphan.idle(&state, self.idle)) else {
                    return true;
                };
                self.reset(orphan, end.reason());
                return false;
            }
        };
        // The peers have told each other all; late packets may still come.
        self.account(orphan, end.reason());
        self.set_mode(orphan, OVER);
        orphan.sockets.clear();
        orphan.since = Instant::now();
        true
    }

    /// Ends a flow of which the peers have not told each other.
    fn reset(&mut self, orphan: &mut Orphan, reason: &'static str) {
        self.account(orphan, reason);
        self.set_mode(orphan, RESET);
        // Their resets get the right numbers on their way out.
        orphan.sockets.clear();
    }

    fn set_mode(&mut self, orphan: &mut Orphan, mode: u32) {
        orphan.rules.mode = mode;
        // An array takes every update.
        let _ = self.maps.set_rules(orphan.flow, orphan.rules);
    }

    /// Counts all that was delivered since the flow began: the earlier process has not lived to count it.
    fn account(&self, orphan: &Orphan, reason: &'static str) {
        const PACKET: &str = crate::account::Carrier::Packet.label();
        let none: Arc<str> = NONE.into();
        self.metrics.listener(&none).active.dec();
        self.metrics.closed(&none, &none, PACKET, reason);
        let Ok(state) = self.maps.state(orphan.flow) else { return };
        for (direction, way) in [("up", 0), ("down", 1)] {
            let bytes = state.delivered(way);
            if bytes > 0 {
                self.metrics.moved(&none, PACKET, direction, bytes);
            }
        }
    }

    fn forget(&mut self, orphan: &Orphan) {
        for (tuple, slot) in orphan.tuples.iter().zip(Shared::slots(orphan.flow)) {
            if let Some(tuple) = tuple {
                self.maps.remove_tuple(tuple, slot);
            }
        }
        self.programs.release(orphan.flow);
    }
}

impl Orphan {
    fn is_open(&self) -> bool {
        self.rules.mode == KEPT
    }

    /// How a socket has failed: its peer does not answer any more.
    fn failure(&mut self) -> Option<End> {
        for at in 0..self.sockets.len() {
            let holder = &mut self.sockets[at];
            let Ok(Some(error)) = holder.socket.take_error() else {
                holder.listen();
                continue;
            };
            let peer = holder.peer;
            if holder.answers {
                return Some(match peer {
                    Peer::Client => End::broken_by_client(error),
                    Peer::Backend => End::broken_by_backend(error),
                });
            }
            tracing::debug!(%error, ?peer, "a peer never answers, and is not asked any more");
            self.sockets.swap_remove(at);
            let (Some(tuple), way) = (&self.tuples[peer as usize], &self.rules.ways[peer as usize]) else {
                return None;
            };
            self.sockets.extend(Holder::new(peer, tuple, way, None));
            return None;
        }
        None
    }

    fn idle(&mut self, state: &State, limit: Duration) -> Option<End> {
        let progress = state.progress();
        if progress != self.progress {
            self.progress = progress;
            self.since = Instant::now();
        }
        (self.since.elapsed() >= limit).then_some(End::Idle)
    }
}

impl Holder {
    /// A socket in the place of one that died, with its numbers: it has nothing left to deliver or to receive.
    fn new(peer: Peer, tuple: &Tuple, way: &Way, liveness: Option<&Liveness>) -> io::Result<Self> {
        let (local, remote) = leg::ends(tuple);
        let sends = way.ack_start.wrapping_add(way.own);
        let since = Instant::now();
        let socket = loop {
            match socket::connected_silently(local, remote, sends, way.expected) {
                // The one that died is not quite gone.
                Err(error)
                    if error.kind() == io::ErrorKind::AddrNotAvailable && since.elapsed() < PATIENCE =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                other => break other?,
            }
        };
        socket::reset_on_close(&socket)?;
        if let Some(liveness) = liveness {
            liveness.apply(&socket)?;
        }
        Ok(Self { peer, socket, since: Instant::now(), answers: false })
    }

    /// Notes whether the peer has answered.
    fn listen(&mut self) {
        /// More than the kernel's clock is coarse.
        const TICKS: Duration = Duration::from_millis(200);
        if self.answers {
            return;
        }
        let Ok(info) = socket::tcp_info(&self.socket) else { return };
        // The kernel counts the beginning as an answer.
        let silent = Duration::from_millis(info.tcpi_last_ack_recv.into());
        self.answers = silent + TICKS < self.since.elapsed();
    }
}
