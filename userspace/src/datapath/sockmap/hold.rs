//! Keeps a direction in userspace for a while, although the kernel could redirect it.
//!
//! Tests use this to move a direction between the kernel and userspace at any moment of its stream.

use std::time::Duration;

use tokio::time::timeout;

use super::connection::Connection;
use crate::{
    bpf::wakeup::{Ready, What},
    datapath::{broken::Broken, relay::pump::Pump},
    metrics::labels::Direction,
};

impl Connection<'_> {
    /// The time after which a direction changes sides, if the setting is on.
    pub(super) fn spell(&self) -> Option<Duration> {
        self.entries.slot.sockmap.settings.hold
    }

    /// Waits like [`Connection::wait`], and holds the direction whenever nothing has happened for a spell.
    pub(super) async fn wait_or_hold(
        &self,
        wanted: Ready,
        direction: Direction,
        pump: &mut Pump,
        spell: Duration,
    ) -> Result<Ready, Broken> {
        loop {
            if let Ok(happened) = timeout(spell, self.wait(wanted)).await {
                return happened;
            }
            self.hold(direction, pump, spell).await?;
        }
    }

    /// Takes a direction from the kernel, copies its bytes for a while or until its end, and returns it. The return is
    /// the same as after an event.
    async fn hold(&self, direction: Direction, pump: &mut Pump, spell: Duration) -> Result<(), Broken> {
        let (from, to) = self.ends(direction);
        self.tell_to_hold(direction, true)?;
        let flow = self.flow(direction)?;
        self.until_flow_taken(direction, &flow).await?;
        self.give_back(direction, &flow);
        self.listen(from, |also| also.readable = true)?;
        let copying = async {
            let over = Ready::of(from.peer, What::HangUp);
            while !self.copy(direction, pump).await? {
                if self.wait(Ready::of(from.peer, What::Readable) | over).await?.any(over) {
                    break;
                }
            }
            Ok(())
        };
        // A cancelled copy leaves the bytes that it has read in the pump.
        if let Ok(result) = timeout(spell, copying).await {
            result?;
        }
        self.listen(from, |also| also.readable = false)?;
        self.listen(to, |also| also.writable = false)?;
        self.tell_to_hold(direction, false)?;
        self.catch_up(direction, pump).await
    }

    fn tell_to_hold(&self, direction: Direction, hold: bool) -> Result<(), Broken> {
        self.way(direction).held.set(hold);
        self.publish(direction)?;
        let (from, _) = self.ends(direction);
        // A verdict that began before the report is over after this, and its effect is in the flow.
        from.lock()
    }
}
