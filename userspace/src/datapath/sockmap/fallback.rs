//! What userspace does with the bytes that the kernel passes.
//!
//! A direction is the kernel's again once everything that it passed has been written to the receiver, and it has been
//! told so ([`Control::forwarded`]). While a sender is faster than its receiver for long, there is no such moment, and
//! userspace copies: the receiver sets the pace then, not the way that the bytes take.

use std::time::Duration;

use rustix::{event::PollFlags, io::Errno};
use snisplice_common::sockmap::direction::Control;
use tokio::{task::yield_now, time::sleep};

use super::connection::{Connection, Leg};
use crate::{
    bpf::wakeup::{Ready, What},
    datapath::{
        broken::Broken,
        relay::pump::{Pump, Step, StepError},
    },
    metrics::labels::Direction,
    net::sockopt,
};

/// Steps of one copy before the worker's other connections get their turn.
const STEPS_PER_TURN: u32 = 8;

/// Between two tries at something of which no event tells.
const PAUSE: Duration = Duration::from_millis(1);

impl Connection<'_> {
    /// Copies what the kernel has passed until it may redirect again, or until the end of the stream, which is for
    /// the caller to see.
    pub(super) async fn catch_up(&self, direction: Direction, pump: &mut Pump) -> Result<(), Broken> {
        let (from, _) = self.ends(direction);
        let way = self.way(direction);
        let over = Ready::of(from.peer, What::HangUp);
        loop {
            let flow = self.flow(direction)?;
            let before = way.forwarded.get();
            if flow.passed == before && way.published.get() == before {
                self.give_back_if_taken(direction, &flow)?;
                break;
            }
            // The kernel has passed more than we have published, so it redirects nothing until we publish again: what
            // was redirected before is all there is, and must reach the receiver first.
            self.until_flow_taken(direction, &flow).await?;
            self.give_back(direction, &flow);
            self.copy(direction, pump).await?;
            if way.forwarded.get() > before {
                self.publish(direction)?;
                // A verdict that had not heard of it is over after this, and what it passed shows in the flow. Any later
                // one tells us by an event.
                from.lock()?;
                continue;
            }
            // Passed, but still on its way to where it can be read.
            self.listen(from, |also| also.readable = true)?;
            if self.wait(Ready::of(from.peer, What::Readable) | over).await?.any(over) {
                break;
            }
        }
        self.listen(from, |also| also.readable = false)
    }

    /// Copies what was passed before the sender's FIN. Some of it may come into reach only after the FIN.
    pub(super) async fn copy_rest(&self, direction: Direction, pump: &mut Pump) -> Result<(), Broken> {
        let (from, _) = self.ends(direction);
        loop {
            // Takes the socket's lock: whatever came before the FIN has its verdict now.
            let peeked = from.peek();
            let flow = self.flow(direction)?;
            let before = self.way(direction).forwarded.get();
            if flow.passed == before {
                match peeked {
                    Ok(0) => return Ok(()),
                    Err(error) if error != Errno::AGAIN => {
                        return Err(Broken { peer: from.peer, error: error.into() });
                    }
                    _ => {}
                }
            } else {
                self.until_flow_taken(direction, &flow).await?;
                self.copy(direction, pump).await?;
            }
            if self.way(direction).forwarded.get() == before {
                sleep(PAUSE).await;
            }
        }
    }

    /// Copies in userspace until the kernel has taken the direction over, true, or to its end.
    pub(super) async fn copy_until_armed(
        &self,
        direction: Direction,
        pump: &mut Pump,
    ) -> Result<bool, Broken> {
        let (from, to) = self.ends(direction);
        self.listen(from, |also| also.readable = true)?;
        let mut steps = 0;
        loop {
            let step = self.step(direction, pump)?;
            let at_rest = match step {
                Step::Moved { drained, .. } => drained && !pump.is_blocked(),
                Step::WantRead => true,
                Step::WantWrite => false,
                Step::Eof => return Ok(false),
            };
            // Everything that was received is written, or whole in the queue, and stays so while nothing is awaited.
            if at_rest && self.is_due(direction) && self.entries.slot.sockmap.arm(self, direction) {
                self.listen(from, |also| also.readable = false)?;
                return Ok(true);
            }
            match step {
                Step::WantRead => {
                    let over = Ready::of(from.peer, What::HangUp);
                    self.wait(Ready::of(from.peer, What::Readable) | over).await?;
                }
                Step::WantWrite => {
                    self.until_writable(to).await?;
                    self.listen(to, |also| also.writable = false)?;
                }
                _ => {
                    steps += 1;
                    if steps % STEPS_PER_TURN == 0 {
                        yield_now().await;
                    }
                }
            }
        }
    }

    /// Copies until nothing more can be read, and writes all of it. True at the end of the stream.
    pub(super) async fn copy(&self, direction: Direction, pump: &mut Pump) -> Result<bool, Broken> {
        let (_, to) = self.ends(direction);
        let mut steps = 0;
        let ended = loop {
            match self.step(direction, pump)? {
                Step::Moved { .. } => {
                    steps += 1;
                    if steps % STEPS_PER_TURN == 0 {
                        yield_now().await;
                    }
                }
                Step::WantWrite => self.until_writable(to).await?,
                Step::WantRead => break false,
                Step::Eof => break true,
            }
        };
        self.listen(to, |also| also.writable = false)?;
        Ok(ended)
    }

    fn step(&self, direction: Direction, pump: &mut Pump) -> Result<Step, Broken> {
        let (from, to) = self.ends(direction);
        match pump.step(&from.socket, &to.socket) {
            Ok(step) => {
                if let Step::Moved { bytes, .. } = step {
                    self.forwarded(direction, bytes);
                }
                Ok(step)
            }
            Err(StepError::Read(error)) => Err(Broken { peer: from.peer, error }),
            Err(StepError::Write(error)) => Err(Broken { peer: to.peer, error }),
        }
    }

    /// Accounts for bytes that userspace has written.
    fn forwarded(&self, direction: Direction, bytes: usize) {
        let way = self.way(direction);
        way.forwarded.set(way.forwarded.get() + bytes as u64);
        way.progress.set(way.progress.get().after(bytes));
        self.entries.account.moved(direction, bytes as u64);
    }

    /// Tells the kernel how much userspace has written, and given back.
    pub(super) fn publish(&self, direction: Direction) -> Result<(), Broken> {
        let (from, _) = self.ends(direction);
        let way = self.way(direction);
        let control = Control {
            forwarded: way.forwarded.get(),
            returned: way.returned.get(),
            hold: way.held.get().into(),
            ..Control::default()
        };
        let published = self.entries.slot.sockmap.maps.borrow_mut().publish(from.cookie, control);
        published.map_err(|error| Broken { peer: from.peer, error })?;
        way.published.set(control.forwarded);
        way.told.set(true);
        Ok(())
    }

    /// Watches the receiver until it takes more. The watch goes on: who copies ends it.
    async fn until_writable(&self, to: &Leg) -> Result<(), Broken> {
        // While the host has no memory, a socket may refuse what it has room for, and then no event tells when it will not.
        if to.also.get().writable && has_room(to)? {
            sleep(PAUSE).await;
            return Ok(());
        }
        self.listen(to, |also| also.writable = true)?;
        self.wait(Ready::of(to.peer, What::Writable)).await?;
        Ok(())
    }
}

/// Whether a socket has room. Where it has none, an event is sure to come when it has.
fn has_room(leg: &Leg) -> Result<bool, Broken> {
    let polled = sockopt::poll_writable(&leg.socket).map_err(|error| Broken { peer: leg.peer, error })?;
    Ok(polled.contains(PollFlags::OUT))
}
