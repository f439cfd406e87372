//! Userspace's part of a connection in the packet datapath: it waits for the end.

use std::{cell::Cell, future::poll_fn, io, os::fd::AsFd as _, rc::Rc, time::Duration};

use snisplice_common::packet::{
    flow::{BEGINS, KEPT, OFF, OVER, RESET, Rules, Standing, State, Translation},
    maps::Tuple,
    socket_info::SocketInfo,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    Shared,
    path_check::{self, Doubt},
    plan,
};
use crate::{
    account::{Account, InPackets},
    bpf::packet::{LOOK, Lead, stats::TakenBack},
    datapath::{
        relay::{Connection, CopyOptions, failure},
        seam::{End, Patience},
    },
    log::log_limit,
    metrics::labels::{Carrier, Direction, PacketIneligible},
    net::sockopt,
    takeover::message::Message,
};

mod back;

/// The time for which the relay continues, for bytes that arrived while the flow began.
const SETTLE: Duration = Duration::from_secs(1);

/// The time of the first check that the kernel forwards the flow.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// Longer than any connection lives.
const NEVER: Duration = Duration::from_secs(1 << 32);

/// The options by which the balancer's sockets deliver their bytes, while the flow itself is watched.
const TO_END: CopyOptions = CopyOptions::with_any_silence();

/// A flow's entries in the maps. A drop without a begin leaves nothing behind.
pub(super) struct Entry {
    shared: Rc<Shared>,
    /// The number among the worker's wakeups.
    slot: usize,
    /// The flow slot.
    flow: u32,
    tuples: [Tuple; 2],
    rules: Cell<Rules>,
    /// Bytes of each way that the flow begins with and that userspace had already written.
    written: [u64; 2],
    /// The acknowledgements of the balancer's sockets at the last check.
    heard: [u32; 2],
    /// Whether the peers' packets may bypass the programs.
    doubt: Doubt,
    /// The peers in doubt at the last check.
    doubted: Cell<[bool; 2]>,
    /// Whether late packets may still come.
    lingers: bool,
    /// Whether another process continues the flow.
    given: bool,
}

impl Entry {
    /// Reserves a slot. `slot` belongs to the flow from now on, also if this fails.
    pub(super) fn new(
        shared: &Rc<Shared>,
        slot: usize,
        tuples: [Tuple; 2],
    ) -> Result<Self, PacketIneligible> {
        let reserve = || shared.programs.reserve();
        let place = reserve().or_else(|| shared.forget_oldest().then(reserve).flatten());
        let Some(flow) = place else {
            shared.wakeups.remove(slot);
            return Err(PacketIneligible::Full);
        };
        {
            let maps = shared.maps.borrow();
            for tuple in &tuples {
                maps.count(tuple);
            }
        }
        Ok(Self {
            shared: shared.clone(),
            slot,
            flow,
            tuples,
            rules: Cell::default(),
            written: [0, 0],
            heard: [0, 0],
            doubt: Doubt::None,
            doubted: Cell::default(),
            lingers: false,
            given: false,
        })
    }

    pub(super) fn set_rules(&self, rules: Rules) -> Result<(), PacketIneligible> {
        self.rules.set(rules);
        self.shared.maps.borrow_mut().set_rules(self.flow, rules).map_err(|error| refusal(&error))
    }

    pub(super) fn set_state(&mut self, state: State, written: [u64; 2]) -> Result<(), PacketIneligible> {
        self.written = written;
        self.shared.maps.borrow_mut().set_state(self.flow, state).map_err(|error| refusal(&error))
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules.get()
    }

    /// The flow slot.
    pub(super) fn place(&self) -> u32 {
        self.flow
    }

    /// Makes the kernel forward over the devices of the current routes. Returns false if one leads to a device
    /// without the programs.
    fn follow_routes(&self) -> bool {
        let leads = self.shared.programs.leads(self.flow);
        let rules = self.rules();
        let mut ways = rules.ways;
        for (way, lead) in ways.iter_mut().zip(leads) {
            if let Lead::Device(device) = lead {
                way.device = device;
            }
        }
        if ways != rules.ways {
            // An array takes every update.
            let _ = self.set_rules(Rules { ways, ..rules });
            let moved = ways.iter().zip(&rules.ways).filter(|(now, before)| now != before).count();
            tracing::debug!(?leads, "a flow follows a route change");
            self.shared.programs.count_moved(moved as u64);
            // The rules may have changed again.
            self.shared.programs.look_where_it_leads(self.flow, NEVER);
        }
        !leads.contains(&Lead::Beyond)
    }

    /// The rules after a snapshot of the packets that arrived before the rules were set.
    pub(super) fn set_late(&mut self, rules: Rules, infos: [&SocketInfo; 2]) -> Result<(), PacketIneligible> {
        self.heard = infos.map(|info| info.snd_una);
        self.set_rules(rules)
    }

    /// Whether the programs have seen packets of both peers.
    pub(super) fn is_seen(&self) -> bool {
        self.state().is_ok_and(|state| state.ways.iter().all(|track| track.packets > 0))
    }

    pub(super) fn add_tuples(&self) -> Result<(), PacketIneligible> {
        let mut maps = self.shared.maps.borrow_mut();
        for (tuple, slot) in self.tuples.iter().zip(Shared::slots(self.flow)) {
            maps.add_tuple(tuple, slot).map_err(|error| refusal(&error))?;
        }
        Ok(())
    }

    fn set_mode(&self, mode: u32) {
        // An array takes every update.
        let _ = self.set_rules(Rules { mode, ..self.rules() });
    }

    /// The peers have received packets of each other.
    fn has_begun(&self) {
        let rules = self.rules();
        let mode = if self.shared.programs.persists() { KEPT } else { rules.mode };
        let ways = rules.ways.map(|way| Translation { flags: way.flags & !BEGINS, ..way });
        // An array takes every update.
        let _ = self.set_rules(Rules { mode, ways, ..rules });
    }

    fn is_to_go_over(&self) -> bool {
        self.rules().mode == KEPT && self.shared.programs.successor().is_some()
    }

    /// The end that the kernel has recorded, if any.
    fn seen_end(&self) -> Option<End> {
        match self.state().map(|state| state.standing()) {
            Ok(Standing::Open) => None,
            Ok(Standing::Finished) => Some(End::Finished),
            Ok(Standing::Reset(0)) => Some(End::ClientReset),
            Ok(Standing::Reset(_)) => Some(End::BackendReset),
            Err(error) => Some(End::Failed(error)),
        }
    }

    fn state(&self) -> io::Result<State> {
        self.shared.maps.borrow().state(self.flow)
    }

    /// Checks whether the balancer's sockets receive bytes or acknowledgements from the peers that the program has
    /// not recorded. Each check is based on the former one.
    fn is_bypassed(&mut self) -> bool {
        // In this order: an acknowledgement of one socket is recorded on the other way.
        let Ok(infos) = self.shared.programs.socket_info(self.tuples) else { return false };
        let Ok(state) = self.state() else { return false };
        let found = path_check::look(&self.rules().ways, &state, infos.each_ref(), self.heard, self.written);
        self.doubt = self.doubt.after(found);
        self.heard = infos.map(|info| info.snd_una);
        self.doubt == Doubt::Bypassed
    }

    /// Acknowledges to the balancer's sockets all bytes that they have sent, with the numbers that they expect.
    ///
    /// A packet that passed the program before the flow began may reach its socket only after the second snapshot: it
    /// waited in another processor's queue, or in the socket's backlog while userspace held the lock. The other socket
    /// sends its bytes, and would never receive their acknowledgement.
    fn follow_own_sockets(&self) {
        let Ok(infos) = self.shared.programs.socket_info(self.tuples) else { return };
        let rules = self.rules();
        let ways = plan::with_stragglers(rules.ways, infos.each_ref());
        if ways != rules.ways {
            // An array takes every update.
            let _ = self.set_rules(Rules { ways, ..rules });
        }
    }

    /// Whether the balancer's sockets have nothing left to deliver: all was read, written and acknowledged.
    fn is_settled(&self) -> bool {
        let (Ok(state), Ok(infos)) = (self.state(), self.shared.programs.socket_info(self.tuples)) else {
            return false;
        };
        self.doubt == Doubt::None
            && state.ways.iter().zip(&self.rules().ways).zip(&infos).all(|((track, way), info)| {
                info.unread() == 0 && track.has_acked(info.write_seq.wrapping_sub(way.ack_start))
            })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.wakeups.remove(self.slot);
        if self.given {
            // The other process also gives out the slot.
        } else if self.lingers {
            self.shared.time_wait.borrow_mut().add(self.flow, self.tuples);
        } else {
            self.shared.forget(self.flow, &self.tuples);
        }
    }
}

fn refusal(error: &io::Error) -> PacketIneligible {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::EXIST) => PacketIneligible::Busy,
        Some(Errno::TOOBIG | Errno::NOMEM) => PacketIneligible::Full,
        _ => PacketIneligible::Other,
    }
}

/// A connection in the kernel's hands.
pub(in crate::datapath) struct PacketFlow<'a> {
    // Fields are dropped in this order: sockets are closed before their addresses are forgotten.
    sockets: Sockets,
    entry: Entry,
    account: &'a Account,
    /// The bytes that had arrived when the flow began. The kernel's state has all later ones.
    before: (u64, u64),
    ended: bool,
}

/// The sockets that hold the ports.
enum Sockets {
    /// The relay, which still delivers what arrived while the flow began.
    Settling(Box<Connection>),
    /// Sockets that are left alone: the client's and the backend's.
    Holding([TcpStream; 2]),
    Closed,
}

/// The way in which a flow came to its end.
enum Held {
    Ended(End),
    /// A peer is unreachable.
    Lost(End),
    /// The flow has not ended, but cannot stay in packets.
    TakenBack(TakenBack),
}

impl Held {
    /// The end of one of the balancer's sockets. It also occurs if the kernel has seen the flow end, and the client
    /// uses its port again before the sockets are closed.
    fn of(seen: Option<End>, socket: End) -> Self {
        seen.map_or(Self::Lost(socket), Self::Ended)
    }
}

/// The result of a flow's begin.
enum Settled {
    /// The flow has ended already.
    Ended(End),
    /// One of the balancer's sockets has failed.
    Failed(End),
    /// The kernel carries it, and the balancer's sockets are at rest.
    Carried,
    /// Packets of the peers reach the balancer's sockets: they arrive by a path on which the program does not see them,
    /// or with other addresses than the connection has.
    Bypassed,
}

impl<'a> PacketFlow<'a> {
    pub(super) fn new(entry: Entry, connection: Box<Connection>, account: &'a Account) -> Self {
        // Every close of the sockets sends resets, also at the end of the process. The program on the devices drops
        // the resets, or gives them the right numbers.
        for socket in [&connection.client, &connection.backend] {
            let _ = sockopt::reset_on_close(socket);
        }
        let (up, down) = account.bytes();
        let before = (up.wrapping_sub(entry.written[0]), down.wrapping_sub(entry.written[1]));
        account.is_in_packets(InPackets { flow: entry.flow, before });
        Self { sockets: Sockets::Settling(connection), entry, account, before, ended: false }
    }

    /// Waits for the end.
    pub(in crate::datapath) async fn run(mut self: Box<Self>, options: &CopyOptions) -> End {
        let end = match Box::pin(self.settle(options)).await {
            Settled::Ended(end) => end,
            Settled::Failed(end) => {
                self.abort();
                return end;
            }
            // On the heap, where the beginning was, and not beside it.
            Settled::Carried => match Box::pin(self.hold(options)).await {
                Held::Ended(end) => end,
                Held::Lost(end) => {
                    self.abort();
                    return end;
                }
                Held::TakenBack(why) => return Box::pin(self.take_back(why, options)).await,
            },
            Settled::Bypassed => return Box::pin(self.relay(options)).await,
        };
        self.end(&end);
        end
    }

    /// Lets the relay deliver the bytes that arrived while the flow began, and checks whether the kernel really
    /// forwards.
    async fn settle(&mut self, options: &CopyOptions) -> Settled {
        let Sockets::Settling(connection) = &mut self.sockets else { return Settled::Carried };
        let entry = &mut self.entry;
        let mut pause = FIRST_LOOK;
        let mut silence = Silence::begin(entry, self.account);
        loop {
            tokio::select! {
                end = ended(&*entry) => return Settled::Ended(end),
                end = connection.carry_to_end(&TO_END, self.account) => {
                    return entry.seen_end().map_or(Settled::Failed(end), Settled::Ended);
                }
                () = sleep(pause.min(options.patience(self.account).idle)) => {}
            }
            if let Some(end) = silence.look(entry, self.account, options.patience(self.account)) {
                return Settled::Ended(end);
            }
            if entry.is_bypassed() {
                return Settled::Bypassed;
            }
            entry.ask_peers([&connection.client, &connection.backend]);
            if entry.shared.programs.is_stalled(entry.flow) {
                // The balancer's sockets still have bytes to deliver, so other sockets cannot replace them.
                return Settled::Ended(End::Stalled);
            }
            if pause == SETTLE && !connection.is_blocked() && entry.is_settled() {
                break;
            }
            entry.follow_own_sockets();
            pause = (pause * 4).min(SETTLE);
        }
        if let Sockets::Settling(connection) = std::mem::replace(&mut self.sockets, Sockets::Closed) {
            let Connection { client, backend, .. } = *connection;
            self.sockets = Sockets::Holding([client, backend]);
        }
        // Only now: what the balancer's sockets have still to deliver would be missing in the stream.
        self.entry.has_begun();
        self.entry.shared.programs.stats().settle();
        Settled::Carried
    }

    /// Continues in userspace, as if there had been no flow. The numbers of the balancer's sockets are still those of
    /// the stream, and the peers retransmit forwarded bytes that were lost.
    async fn relay(mut self: Box<Self>, options: &CopyOptions) -> End {
        tracing::debug!("packets of a flow take another path: it is relayed");
        self.entry.shared.programs.stats().refuse(PacketIneligible::Bypassed);
        self.entry.set_mode(OFF);
        self.ended = true;
        self.account.set_carrier(Carrier::Relay);
        self.account.refused_in_packets(PacketIneligible::Bypassed);
        let Sockets::Settling(connection) = &mut self.sockets else { return End::Finished };
        for socket in [&connection.client, &connection.backend] {
            let _ = sockopt::finish_on_close(socket);
        }
        connection.carry_to_end(options, self.account).await
    }

    /// Waits for the end while nothing is left to do. The balancer's sockets probe their peers at times
    /// ([`crate::net::keepalive`]), and fail if no reply arrives.
    async fn hold(&self, options: &CopyOptions) -> Held {
        let entry = &self.entry;
        let Sockets::Holding([client, backend]) = &self.sockets else { return Held::Ended(End::Idle) };
        tokio::select! {
            held = back::held(entry, [client, backend]) => held,
            error = failure(client) => Held::of(entry.seen_end(), End::broken_by_client(error)),
            error = failure(backend) => Held::of(entry.seen_end(), End::broken_by_backend(error)),
            end = silence(entry, self.account, options.patience(self.account)) => Held::Ended(end),
        }
    }

    /// Ends a flow whose peers have not reported its end to each other.
    fn abort(&mut self) {
        self.end(&End::Idle);
    }

    /// Closes the sockets as the flow has ended, and accounts for it.
    fn end(&mut self, end: &End) {
        if matches!(end, End::HandedOver) && self.pass_on() {
            return;
        }
        self.ended = true;
        self.bring_account_up_to_date();
        match end {
            // The peers have reported everything to each other.
            End::Finished | End::ClientReset | End::BackendReset => {
                self.entry.set_mode(OVER);
                self.entry.lingers = true;
            }
            // The peers have not, so the balancer's sockets must reset them.
            End::Idle
            | End::Stalled
            | End::HalfClosed
            | End::ClientLost
            | End::BackendLost
            | End::HandedOver
            | End::Failed(_) => {
                self.entry.set_mode(RESET);
            }
        }
        self.sockets = Sockets::Closed;
    }

    /// Hands the flow over to the new process, which then accounts for all bytes in the kernel. False if that process
    /// has ended.
    fn pass_on(&mut self) -> bool {
        let (Some(successor), Sockets::Holding([client, backend])) =
            (self.entry.shared.programs.successor(), &self.sockets)
        else {
            return false;
        };
        // Scrapes may have counted the kernel's bytes. The successor must not count them again.
        let (bytes, counted) = (self.account.bytes(), self.account.counted());
        let (up, down) = (bytes.0.max(counted.0), bytes.1.max(counted.1));
        let counted = [up.wrapping_sub(self.before.0), down.wrapping_sub(self.before.1)];
        let flow = Message::Flow {
            place: self.entry.flow,
            counted,
            age: self.account.listener_account().registry.age(self.account) / 10,
            answers: [Some(true); 2],
        };
        if let Err(error) = successor.send(&flow, &[client.as_fd(), backend.as_fd()]) {
            log_limit!(warn, %error, "a connection does not go over to the process that has taken over");
            return false;
        }
        self.ended = true;
        self.entry.given = true;
        self.sockets = Sockets::Closed;
        true
    }

    fn bring_account_up_to_date(&self) {
        let Ok(state) = self.entry.state() else { return };
        let (up, down) = self.account.bytes();
        let (up_before, down_before) = self.before;
        let total = [
            InPackets::total(up_before, state.delivered(0)),
            InPackets::total(down_before, state.delivered(1)),
        ];
        self.account.moved(Direction::Up, total[0].saturating_sub(up));
        self.account.moved(Direction::Down, total[1].saturating_sub(down));
    }
}

impl Drop for PacketFlow<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The connection's future was dropped: it is to end now.
            self.abort();
        }
    }
}

/// Waits until the kernel has seen the flow end, or until another process is to continue it.
async fn ended(entry: &Entry) -> End {
    loop {
        if let Some(end) = entry.seen_end() {
            return end;
        }
        if entry.is_to_go_over() {
            return End::HandedOver;
        }
        entry.follow_routes();
        poll_fn(|context| entry.shared.wakeups.poll(entry.slot, LOOK, context)).await;
    }
}

/// Whether one end has sent FIN.
pub(super) fn is_half_closed(state: &State) -> bool {
    state.ways.iter().any(|track| track.fin > 0)
}

/// The time since the last movement.
struct Silence {
    seen: (u64, u64),
    since: Instant,
}

impl Silence {
    fn begin(entry: &Entry, account: &Account) -> Self {
        Self { seen: progress(entry, account), since: Instant::now() }
    }

    /// The end of the flow if it has been silent for too long.
    fn look(&mut self, entry: &Entry, account: &Account, patience: Patience) -> Option<End> {
        let now = progress(entry, account);
        if now != self.seen {
            *self = Self { seen: now, since: Instant::now() };
            return None;
        }
        let silent = self.since.elapsed();
        if silent >= patience.idle {
            return Some(End::Idle);
        }
        let half_closed = || entry.state().is_ok_and(|state| is_half_closed(&state));
        (silent >= patience.half_closed && half_closed()).then_some(End::HalfClosed)
    }
}

/// Waits until nothing has moved for the limit.
async fn silence(entry: &Entry, account: &Account, patience: Patience) -> End {
    let mut silence = Silence::begin(entry, account);
    loop {
        sleep(patience.idle.min(patience.half_closed)).await;
        if let Some(end) = silence.look(entry, account, patience) {
            return end;
        }
    }
}

/// Changes whenever a byte has moved that counts as activity.
fn progress(entry: &Entry, account: &Account) -> (u64, u64) {
    let Ok(state) = entry.state() else { return (0, 0) };
    // As in [`Patience::progress`]. Bytes that the relay copied before count too.
    if account.bytes().1 == 0 && state.ways[1].bytes == 0 { (0, 0) } else { state.progress() }
}
