//! What userspace does for a connection that the kernel carries: wait for its end.

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

/// How long the relay goes on, for what arrived while the flow began.
const SETTLE: Duration = Duration::from_secs(1);

/// When it is first looked whether the kernel really carries the flow.
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// Longer than any connection lives.
const NEVER: Duration = Duration::from_secs(1 << 32);

/// How our own sockets deliver what they have, while the flow itself is looked after.
const TO_END: CopyOptions = CopyOptions::to_end(Patience { idle: NEVER, half_closed: NEVER });

/// A flow's entries in the maps. Dropped without more, it was never begun, and leaves nothing behind.
pub(super) struct Entry {
    shared: Rc<Shared>,
    /// Its number among the worker's wakeups.
    slot: usize,
    /// Its place in the arrays.
    flow: u32,
    tuples: [Tuple; 2],
    rules: Cell<Rules>,
    /// Bytes on each way that the flow begins with and that userspace had written before.
    written: [u64; 2],
    /// What our own sockets had heard acknowledged at the last look.
    heard: [u32; 2],
    /// Whether the peers' packets may come by another way.
    doubt: Doubt,
    /// Which peers may not be there, as of the last look.
    doubted: Cell<[bool; 2]>,
    /// Whether late packets may still come.
    lingers: bool,
    /// Whether another process goes on with it.
    given: bool,
}

impl Entry {
    /// Reserves a place. `slot` is the flow's from now on, also if that fails.
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

    /// Its place in the arrays.
    pub(super) fn place(&self) -> u32 {
        self.flow
    }

    /// Has the kernel send on over the devices that the routes lead to by now. False where one leads beyond the programs.
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
            // They may have changed once more.
            self.shared.programs.look_where_it_leads(self.flow, NEVER);
        }
        !leads.contains(&Lead::Beyond)
    }

    /// The rules once more, after a look at what had come before they were there.
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

    /// The peers have heard of each other.
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

    /// The end that the kernel has seen, if it has.
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

    /// Looks whether our own sockets hear from the peers what the program has not told them: bytes, or acknowledgements
    /// that it has not seen. What one look finds, the next one knows.
    fn is_bypassed(&mut self) -> bool {
        // In this order: what the one has been told, the other has noted.
        let Ok(infos) = self.shared.programs.socket_info(self.tuples) else { return false };
        let Ok(state) = self.state() else { return false };
        let found = path_check::look(&self.rules().ways, &state, infos.each_ref(), self.heard, self.written);
        self.doubt = self.doubt.after(found);
        self.heard = infos.map(|info| info.snd_una);
        self.doubt == Doubt::Bypassed
    }

    /// Has the program tell our own sockets of as much as they have sent, and with the numbers that they expect.
    ///
    /// A packet that came by the program before the flow began may reach its socket only after the second look: it waited in
    /// another processor's queue, or in the socket's own while userspace held it. What it brought, the other socket sends, and
    /// would never hear that it has arrived.
    fn follow_own_sockets(&self) {
        let Ok(infos) = self.shared.programs.socket_info(self.tuples) else { return };
        let rules = self.rules();
        let ways = plan::with_stragglers(rules.ways, infos.each_ref());
        if ways != rules.ways {
            // An array takes every update.
            let _ = self.set_rules(Rules { ways, ..rules });
        }
    }

    /// Whether our own sockets have nothing left to deliver: all was read, written and acknowledged.
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
            // Its place, too, is the other's to give away.
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
    /// What had arrived when the flow began; everything since is in the kernel's state.
    before: (u64, u64),
    ended: bool,
}

/// What holds the ports.
enum Sockets {
    /// The relay, which still delivers what arrived while the flow began.
    Settling(Box<Connection>),
    /// Sockets that are left alone: the client's and the backend's.
    Holding([TcpStream; 2]),
    Closed,
}

/// How a flow came to its end.
enum Held {
    Ended(End),
    /// A peer is gone.
    Lost(End),
    /// It has not, but cannot stay in packets.
    TakenBack(TakenBack),
}

impl Held {
    /// The end of one of our own sockets, which also comes where the kernel has seen that of the flow, and the client uses its
    /// port again before we have.
    fn of(seen: Option<End>, socket: End) -> Self {
        seen.map_or(Self::Lost(socket), Self::Ended)
    }
}

/// What became of a flow's beginning.
enum Settled {
    /// It is over already.
    Ended(End),
    /// One of our own sockets has failed.
    Failed(End),
    /// The kernel carries it, and our own sockets are at rest.
    Carried,
    /// Packets of the peers reach our own sockets: they come in by a way on which the program does not see them, or
    /// with other addresses than the connection has.
    Bypassed,
}

impl<'a> PacketFlow<'a> {
    pub(super) fn new(entry: Entry, connection: Box<Connection>, account: &'a Account) -> Self {
        // However they are closed, also by the end of the process, they send a reset, which the program on the devices
        // drops or gives the right numbers.
        for socket in [&connection.client, &connection.backend] {
            let _ = sockopt::reset_on_close(socket);
        }
        let (up, down) = account.bytes();
        let before = (up.saturating_sub(entry.written[0]), down.saturating_sub(entry.written[1]));
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

    /// Lets the relay deliver what arrived while the flow began, and looks whether the kernel really carries it.
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
                () = sleep(pause.min(options.patience.idle)) => {}
            }
            if let Some(end) = silence.look(entry, self.account, options.patience) {
                return Settled::Ended(end);
            }
            if entry.is_bypassed() {
                return Settled::Bypassed;
            }
            entry.ask_peers([&connection.client, &connection.backend]);
            if entry.shared.programs.is_stalled(entry.flow) {
                // Our own sockets have still to deliver something, so others cannot take their places.
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
        // Only now: what our own sockets have still to deliver would be missing in the stream.
        self.entry.has_begun();
        self.entry.shared.programs.stats().settle();
        Settled::Carried
    }

    /// Goes on in userspace, as if there had never been a flow: the numbers of our own sockets are still those of
    /// the stream, and what was sent on and lost is sent again to them.
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

    /// Waits for the end while nothing is left to do. Our own sockets ask now and then whether their peers are there
    /// ([`crate::net::keepalive`]), and fail where no answer comes.
    async fn hold(&self, options: &CopyOptions) -> Held {
        let entry = &self.entry;
        let Sockets::Holding([client, backend]) = &self.sockets else { return Held::Ended(End::Idle) };
        tokio::select! {
            held = back::held(entry, [client, backend]) => held,
            error = failure(client) => Held::of(entry.seen_end(), End::broken_by_client(error)),
            error = failure(backend) => Held::of(entry.seen_end(), End::broken_by_backend(error)),
            end = silence(entry, self.account, options.patience) => Held::Ended(end),
        }
    }

    /// Ends a flow of which the peers have not told each other.
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
            // The peers have told each other all.
            End::Finished | End::ClientReset | End::BackendReset => {
                self.entry.set_mode(OVER);
                self.entry.lingers = true;
            }
            // They have not, and must be told by us.
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

    /// Gives the flow to the process that has taken over, which accounts for all that the kernel carried. False if that
    /// process is gone.
    fn pass_on(&mut self) -> bool {
        let (Some(successor), Sockets::Holding([client, backend])) =
            (self.entry.shared.programs.successor(), &self.sockets)
        else {
            return false;
        };
        // Scrapes may have counted what the kernel carried. The successor must not count it again.
        let (bytes, counted) = (self.account.bytes(), self.account.counted());
        let (up, down) = (bytes.0.max(counted.0), bytes.1.max(counted.1));
        let counted = [up.saturating_sub(self.before.0), down.saturating_sub(self.before.1)];
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
        let total = [self.before.0 + state.delivered(0), self.before.1 + state.delivered(1)];
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

/// Waits until the kernel has seen the flow end, or another process is to go on with it.
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

/// Since when nothing has moved.
struct Silence {
    seen: (u64, u64),
    since: Instant,
}

impl Silence {
    fn begin(entry: &Entry, account: &Account) -> Self {
        Self { seen: progress(entry, account), since: Instant::now() }
    }

    /// The end that it comes to, if it has lasted too long.
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

/// Waits until nothing has moved for too long.
async fn silence(entry: &Entry, account: &Account, patience: Patience) -> End {
    let mut silence = Silence::begin(entry, account);
    loop {
        sleep(patience.idle.min(patience.half_closed)).await;
        if let Some(end) = silence.look(entry, account, patience) {
            return end;
        }
    }
}

/// Changes whenever a byte has moved that counts.
fn progress(entry: &Entry, account: &Account) -> (u64, u64) {
    let Ok(state) = entry.state() else { return (0, 0) };
    // As in [`Patience::progress`]; what the relay copied before counts too.
    if account.bytes().1 == 0 && state.ways[1].bytes == 0 { (0, 0) } else { state.progress() }
}
