//! The packet datapath: the kernel translates each packet of one connection into one of the other and forwards it.
//!
//! Every byte has a number on each leg, and the two numbers differ by a constant. So a flow can begin with the hello,
//! or in the middle of a stream, while bytes are in flight. Userspace stops for a moment and reads both sockets'
//! numbers, and the kernel takes over. The balancer's sockets deliver the bytes that they have received or sent
//! before, with the relay's help, and receive the acknowledgements. Afterwards they only hold the ports.
//!
//! Client and backend handle loss, congestion, flow control and the end of the connection between themselves. Other
//! connections are relayed, and the reason is counted ([`PacketIneligible`]).

use std::{
    cell::RefCell,
    io,
    os::fd::BorrowedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_common::packet::{
    flow::{CARRY, OFF, Rules, State},
    maps::Slot,
    socket_info::SocketInfo,
};
use tokio::task::AbortHandle;

pub(super) use self::flow::PacketFlow;
use self::{
    flow::Entry,
    maps::Maps,
    plan::{Leg, Plan},
    time_wait::TimeWait,
};
use super::{
    relay::{self, CopyOptions},
    seam::{Datapath, Forward, HelloMode, Pair, Patience},
};
use crate::{
    account::{Account, InPackets},
    bpf::{
        packet::{AttachError, Programs},
        wakeup::{Peer, Token, Wakeups},
    },
    metrics::labels::{Carrier, PacketIneligible},
};

pub mod adopted;
mod flow;
pub mod leg;
mod maps;
mod path_check;
mod plan;
mod retake;
mod time_wait;

/// One worker's instance.
#[derive(Debug)]
pub struct Packet {
    shared: Rc<Shared>,
    /// The number of this worker for the kernel's events.
    worker: u16,
    sweeping: AbortHandle,
    options: CopyOptions,
}

/// A connection whose packets are counted, to see whether they pass the programs. Packets do not if addresses are
/// translated or another device is used.
pub(super) struct Watched {
    entry: Entry,
    legs: [Leg; 2],
    looks: u32,
    since: Instant,
}

/// The number of checks for packets, each after something was copied.
const LOOKS: u32 = 64;

/// The shortest wait for packets: copied bytes may have arrived long ago, and their sender may not have sent since.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether packets of both peers pass the programs.
pub(super) enum Seen {
    Yes(Watched),
    NotYet(Watched),
    /// Further checks are useless.
    Never,
}

/// The shared state of a worker's flows.
#[derive(Debug)]
struct Shared {
    programs: Arc<Programs>,
    wakeups: Arc<Wakeups>,
    maps: RefCell<Maps>,
    time_wait: RefCell<TimeWait>,
}

impl Packet {
    /// Call it on the worker's thread, inside its runtime and a `LocalSet`.
    pub fn new(programs: Arc<Programs>, patience: impl Into<Patience>) -> io::Result<Self> {
        let wakeups = Arc::new(Wakeups::default());
        let shared = Rc::new(Shared {
            maps: RefCell::new(Maps::of(&programs)?),
            wakeups: wakeups.clone(),
            time_wait: RefCell::default(),
            programs,
        });
        let worker = shared.programs.register(wakeups);
        let sweeping = tokio::task::spawn_local(time_wait::sweep(shared.clone())).abort_handle();
        Ok(Self { shared, worker, sweeping, options: CopyOptions::to_end(patience.into()) })
    }

    /// Checks whether a copied connection is eligible, and watches whether its packets pass the programs from now on.
    pub(super) fn watch(&self, connection: &relay::Connection, account: &Account) -> Option<Watched> {
        let watched = self.admit(connection).and_then(|(entry, mut legs)| {
            self.look(&mut legs)?;
            Ok(Watched { entry, legs, looks: 0, since: Instant::now() })
        });
        watched.inspect_err(|why| self.refuse(*why, account)).ok()
    }

    /// Whether both peers' packets were seen.
    pub(super) fn is_seen(&self, mut watched: Watched, account: &Account) -> Seen {
        watched.looks = watched.looks.saturating_add(1);
        let is_last = watched.looks > LOOKS;
        if is_last && watched.since.elapsed() < PATIENCE {
            // A check costs a system call, so there is only one more.
            Seen::NotYet(watched)
        } else if watched.entry.is_seen() {
            Seen::Yes(watched)
        } else if !is_last {
            Seen::NotYet(watched)
        } else {
            self.refuse(PacketIneligible::Bypassed, account);
            Seen::Never
        }
    }

    /// Offloads a watched connection. Returns the connection if that is impossible.
    pub(super) fn adopt<'a>(
        &self,
        watched: Watched,
        connection: Box<relay::Connection>,
        account: &'a Account,
    ) -> Result<PacketFlow<'a>, Box<relay::Connection>> {
        let Watched { entry, legs, .. } = watched;
        self.flow(self.begin(entry, legs, &connection, true), connection, account)
    }

    fn refuse(&self, why: PacketIneligible, account: &Account) {
        account.refused_in_packets(why);
        tracing::debug!(reason = why.label(), "a connection is not carried in packets");
        self.shared.programs.stats().refuse(why);
    }

    fn flow<'a>(
        &self,
        begun: Result<Entry, PacketIneligible>,
        connection: Box<relay::Connection>,
        account: &'a Account,
    ) -> Result<PacketFlow<'a>, Box<relay::Connection>> {
        match begun {
            Ok(entry) => {
                let programs = &self.shared.programs;
                programs.stats().begin();
                // To a tenth of a second.
                let age = Duration::from_millis(
                    100 * (u64::from(account.listener_account().registry.age(account)) + 1),
                );
                programs.look_where_it_leads(entry.place(), age);
                account.set_carrier(Carrier::Packet);
                Ok(PacketFlow::new(entry, connection, account))
            }
            Err(why) => {
                self.refuse(why, account);
                Err(connection)
            }
        }
    }

    /// Gives an eligible connection a slot in the maps. Its packets still go to its own sockets.
    fn admit(&self, connection: &relay::Connection) -> Result<(Entry, [Leg; 2]), PacketIneligible> {
        let legs = [leg::of(&connection.client)?, leg::of(&connection.backend)?];
        plan::admit(&legs[0], &legs[1])?;
        leg::admit(&connection.client)?;
        let slot = self.shared.wakeups.insert();
        let token = Token { worker: self.worker, slot, peer: Peer::Client }.pack();
        let mut entry = Entry::new(&self.shared, slot, [legs[0].tuple, legs[1].tuple])?;
        entry.set_state(State::default(), [0, 0])?;
        entry.set_rules(Rules { token, mode: OFF, ..Rules::default() })?;
        entry.add_tuples()?;
        Ok((entry, legs))
    }

    /// Offloads a connection to the kernel. After a refusal everything is as before. Unless its packets were `watched`,
    /// its SYN must have passed the programs. If addresses are translated, it has not, and a forwarded packet would be
    /// answered by a reset.
    fn begin(
        &self,
        mut entry: Entry,
        mut legs: [Leg; 2],
        connection: &relay::Connection,
        watched: bool,
    ) -> Result<Entry, PacketIneligible> {
        let relay::Connection { client, backend, upward, downward, .. } = connection;
        let fresh = self.look(&mut legs)?;
        if !watched {
            let mut maps = self.shared.maps.borrow_mut();
            // Both are read, since a read removes the entry.
            let begun = legs.each_ref().map(|leg| maps.take_begun(&leg.tuple));
            // Programs that were attached a moment ago have not seen the begin of any connection.
            if begun != [true; 2] && !fresh {
                return Err(PacketIneligible::Bypassed);
            }
        }
        for (leg, stream) in legs.iter_mut().zip([client, backend]) {
            *leg = Leg { info: leg.info, ..leg::of(stream)? };
        }
        // Neither peer had finished at the snapshot, so no FIN is among the received bytes.
        plan::admit(&legs[0], &legs[1])?;
        let Plan { ways, state, written } = plan::plan(&legs[0], &legs[1], [upward.held(), downward.held()])?;
        entry.set_state(state, written)?;
        let rules = Rules { mode: CARRY, ways, ..entry.rules() };
        entry.set_rules(rules)?;
        // From now on arriving packets are forwarded. Bytes that the balancer's sockets have received since the
        // snapshot are theirs to deliver. A FIN or a reset would be lost for the other end.
        let late = self.late(&mut legs, connection)?;
        entry.set_late(Rules { ways: plan::with_late(ways, late), ..rules }, late)?;
        Ok(entry)
    }

    /// Takes a second snapshot, after the kernel has begun to forward.
    fn late<'l>(
        &self,
        legs: &'l mut [Leg; 2],
        connection: &relay::Connection,
    ) -> Result<[&'l SocketInfo; 2], PacketIneligible> {
        let before = legs.each_ref().map(|leg| leg.info.rcv_nxt);
        self.look_at(legs)?;
        let is_open = |stream| leg::of(stream).map(|leg| leg.established);
        for (leg, (before, stream)) in
            legs.iter().zip(before.iter().zip([&connection.client, &connection.backend]))
        {
            if leg.info.rcv_nxt != *before && !is_open(stream)? {
                return Err(PacketIneligible::PeerClosed);
            }
        }
        Ok(legs.each_ref().map(|leg| &leg.info))
    }

    /// Completes both legs with a snapshot, and attaches the programs to their devices. Returns true if the programs
    /// were not attached before.
    fn look(&self, legs: &mut [Leg; 2]) -> Result<bool, PacketIneligible> {
        self.look_at(legs)?;
        let attached = self.attach(legs.each_ref().map(|leg| &leg.info))?;
        if attached {
            // Takes a while.
            self.look_at(legs)?;
        }
        Ok(attached)
    }

    fn look_at(&self, legs: &mut [Leg; 2]) -> Result<(), PacketIneligible> {
        let tuples = [legs[0].tuple, legs[1].tuple];
        let infos = self.shared.programs.socket_info(tuples).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PacketIneligible::PeerClosed,
            _ => PacketIneligible::Other,
        })?;
        for (leg, info) in legs.iter_mut().zip(infos) {
            leg.info = info;
        }
        Ok(())
    }

    /// Attaches the programs to the devices of both legs. Returns true if they were not attached before.
    fn attach(&self, infos: [&SocketInfo; 2]) -> Result<bool, PacketIneligible> {
        let mut attached = false;
        for info in infos {
            if info.tx_device == 0 {
                return Err(PacketIneligible::Device);
            }
            for device in [info.rx_device, info.tx_device] {
                match self.shared.programs.is_attached(device) {
                    _ if device == 0 => {}
                    Some(true) => {}
                    Some(false) => return Err(PacketIneligible::Device),
                    None => {
                        self.shared.programs.attach(device).map_err(|error| unattached(device, &error))?;
                        attached = true;
                    }
                }
            }
        }
        Ok(attached)
    }
}

fn unattached(device: u32, error: &AttachError) -> PacketIneligible {
    if matches!(error, AttachError::NotEthernet) {
        tracing::debug!(device, %error, "connections over this device are not carried in packets");
    } else {
        tracing::warn!(device, %error, "connections over this device are not carried in packets");
    }
    PacketIneligible::Device
}

impl Datapath for Packet {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn largest_segment(&self, client: BorrowedFd<'_>) -> Option<u32> {
        leg::largest_segment(client)
    }

    /// Offloads the connection at once: the future reserves no memory for that.
    fn forward<'a>(&'a self, mut pair: Pair, account: &'a Account) -> Forward<'a> {
        pair.watch();
        let connection = Box::new(relay::Connection::new(pair));
        let begun =
            self.admit(&connection).and_then(|(entry, legs)| self.begin(entry, legs, &connection, false));
        match self.flow(begun, connection, account) {
            Ok(flow) => Box::pin(Box::new(flow).run(&self.options)),
            Err(mut connection) => {
                account.set_carrier(Carrier::Relay);
                Box::pin(async move { connection.carry_to_end(&self.options, account).await })
            }
        }
    }

    fn moved(&self, account: &Account) -> (u64, u64) {
        let (up, down) = account.bytes();
        if account.carrier() != Some(Carrier::Packet) {
            return (up, down);
        }
        let delivered = account.in_packets().and_then(|InPackets { flow, before }| {
            let state = self.shared.maps.borrow().state(flow).ok()?;
            let total = |before, way| InPackets::total(before, state.delivered(way));
            Some((total(before.0, 0), total(before.1, 1)))
        });
        // The bytes that the relay delivers while a flow begins are in the account already.
        delivered.map_or((up, down), |delivered| (up.max(delivered.0), down.max(delivered.1)))
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        self.sweeping.abort();
        self.shared.forget_time_wait();
        self.shared.programs.unregister(self.worker);
    }
}

impl Shared {
    /// The slots of a flow's two tuples.
    fn slots(flow: u32) -> [Slot; 2] {
        [Slot { flow, way: 0 }, Slot { flow, way: 1 }]
    }
}
