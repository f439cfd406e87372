//! The packet datapath: the kernel turns each packet of one connection into one of the other and sends it on.
//!
//! A flow begins before its first byte was written to the backend. Userspace has read the hello, and every byte that
//! either side will send has its number on the other leg already: the numbers differ by a constant. So nothing needs
//! to come to rest; the kernel takes over, our own socket sends the hello as it would anyway, and the relay, which
//! goes on for a moment, delivers what may have arrived in between. From then on the sockets only hold the ports.
//!
//! Loss, congestion, flow control and the end of the connection are between client and backend. What cannot be
//! carried so is relayed, for a reason that is counted ([`stats::Refusal`]).

use std::{cell::RefCell, io, rc::Rc, sync::Arc, time::Duration};

use snisplice_common::packet::{
    Slot,
    flow::{CARRY, HOLD, Rules},
    look::Look,
};
use tokio::task::AbortHandle;

use self::{
    flow::{Entry, Flow},
    linger::Lingering,
    maps::Maps,
    plan::{Leg, Plan},
    stats::Refusal,
};
use super::{Carry, Datapath, End, HelloMode, Pair, relay::Relay};
use crate::{
    account::{Account, Carrier},
    kernel::{
        packet::{AttachError, Programs},
        signals::{Side, Signals, Token},
    },
};

mod flow;
mod hold;
pub mod leg;
mod linger;
mod maps;
mod plan;
pub mod stats;

/// One worker's instance.
#[derive(Debug)]
pub struct Packet {
    shared: Rc<Shared>,
    /// Our number among the workers that the kernel's events go to.
    worker: u16,
    sweeping: AbortHandle,
    relay: Relay,
    idle: Duration,
}

/// What a worker's flows have in common.
#[derive(Debug)]
struct Shared {
    programs: Arc<Programs>,
    signals: Arc<Signals>,
    maps: RefCell<Maps>,
    lingering: RefCell<Lingering>,
}

impl Packet {
    /// To be called on the worker's thread, inside its runtime and a `LocalSet`.
    pub fn new(programs: Arc<Programs>, relay: Relay, idle: Duration) -> io::Result<Self> {
        let signals = Arc::new(Signals::default());
        let shared = Rc::new(Shared {
            maps: RefCell::new(Maps::of(&programs)?),
            signals: signals.clone(),
            lingering: RefCell::default(),
            programs,
        });
        let worker = shared.programs.register(signals);
        let sweeping = tokio::task::spawn_local(linger::sweep(shared.clone())).abort_handle();
        Ok(Self { shared, worker, sweeping, relay, idle })
    }

    async fn carry(&self, pair: Pair, account: &Account) -> End {
        match self.begin(&pair) {
            Ok(entry) => {
                self.shared.programs.stats().begin();
                account.carried_by(Carrier::Packet);
                Flow::new(entry, pair, account).run(self.idle).await
            }
            Err(why) => {
                tracing::debug!(why = why.label(), "not carried in packets, relaying");
                self.shared.programs.stats().refuse(why);
                self.relay.relay(pair, account).await
            }
        }
    }

    /// Puts the pair into the kernel's hands. After a refusal everything is as it was, but for packets that were
    /// dropped meanwhile, which their senders repeat.
    fn begin(&self, pair: &Pair) -> Result<Entry, Refusal> {
        let mut legs = [leg::of(&pair.client)?, leg::of(&pair.backend)?];
        plan::admit(&legs[0], &legs[1])?;
        leg::admit(&pair.client)?;
        let slot = self.shared.signals.insert();
        let token = Token { worker: self.worker, slot, side: Side::Client }.pack();
        let mut entry = Entry::new(&self.shared, slot, [legs[0].tuple, legs[1].tuple])?;
        // Until the flow begins, what arrives is dropped, so that what the sockets say stays true.
        let rules = Rules { token, mode: HOLD, ..Rules::default() };
        entry.set_rules(rules)?;
        entry.add_tuples()?;
        self.look(&mut legs)?;
        let Plan { ways, state } = plan::plan(&legs[0], &legs[1], pair.hello.len())?;
        entry.set_state(state)?;
        entry.set_rules(Rules { mode: CARRY, ways, ..rules })?;
        Ok(entry)
    }

    /// Completes what is known of both legs, and has the programs on the devices that they use.
    fn look(&self, legs: &mut [Leg; 2]) -> Result<(), Refusal> {
        let look = |legs: &mut [Leg; 2]| {
            let tuples = [legs[0].tuple, legs[1].tuple];
            let looks = self.shared.programs.look(tuples).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Refusal::PeerClosed,
                _ => Refusal::Other,
            })?;
            for (leg, look) in legs.iter_mut().zip(looks) {
                leg.look = look;
            }
            Ok(())
        };
        look(legs)?;
        if self.attach(legs.each_ref().map(|leg| &leg.look))? {
            // Only now is it certain that nothing arrives unnoticed.
            look(legs)?;
        }
        Ok(())
    }

    /// Has the programs on the devices of both legs. True if they were not there before.
    fn attach(&self, looks: [&Look; 2]) -> Result<bool, Refusal> {
        let mut attached = false;
        for look in looks {
            if look.tx_device == 0 {
                return Err(Refusal::Device);
            }
            for device in [look.rx_device, look.tx_device] {
                match self.shared.programs.is_attached(device) {
                    _ if device == 0 => {}
                    Some(true) => {}
                    Some(false) => return Err(Refusal::Device),
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

fn unattached(device: u32, error: &AttachError) -> Refusal {
    if matches!(error, AttachError::NotEthernet) {
        tracing::debug!(device, %error, "connections over this device are relayed");
    } else {
        tracing::warn!(device, %error, "connections over this device are relayed");
    }
    Refusal::Device
}

impl Datapath for Packet {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn relay<'a>(&'a self, pair: Pair, account: &'a Account) -> Carry<'a> {
        Box::pin(self.carry(pair, account))
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        self.sweeping.abort();
        self.shared.forget_lingering();
        self.shared.programs.unregister(self.worker);
    }
}

impl Shared {
    /// The slots of a flow's two tuples.
    fn slots(flow: u32) -> [Slot; 2] {
        [Slot { flow, way: 0 }, Slot { flow, way: 1 }]
    }
}
