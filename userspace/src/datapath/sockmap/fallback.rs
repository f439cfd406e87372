//! Userspace's copy of the bytes that the kernel passes.
//!
//! The kernel may redirect again once all passed bytes are written to the receiver, and the kernel knows that
//! ([`Control::forwarded`]). While a sender is faster than its receiver, there is no such moment, and userspace
//! copies. The receiver then sets the pace, not the path of the bytes.

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

/// The pause between two attempts at a state that no event reports.
const PAUSE: Duration = Duration::from_millis(1);

impl Connection<'_> {
    /// Copies passed bytes until the kernel may redirect again, or until the end of the stream, which the caller
    /// detects.
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
            // The kernel has passed more bytes than userspace has published. So it redirects nothing until the next
            // publication, and the number of redirected bytes is final. These bytes must reach the receiver first.
            self.until_flow_taken(direction, &flow).await?;
            self.give_back(direction, &flow);
            self.copy(direction, pump).await?;
            if way.forwarded.get() > before {
                self.publish(direction)?;
                // A verdict that began before the report is over after this, and its passed bytes are in the flow.
                // Every later one sends an event.
                from.lock()?;
                continue;
            }
            // The bytes are passed, but not readable yet.
            self.listen(from, |also| also.readable = true)?;
            if self.wait(Ready::of(from.peer, What::Readable) | over).await?.any(over) {
                break;
            }
        }
        self.listen(from, |also| also.readable = false)
    }

    /// Copies bytes that were passed before the sender's FIN. Some may become readable only after the FIN.
    pub(super) async fn copy_rest(&self, direction: Direction, pump: &mut Pump) -> Result<(), Broken> {
        let (from, _) = self.ends(direction);
        loop {
            // Takes the socket's lock: every packet before the FIN then has its verdict.
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

    /// Copies in userspace until the kernel has the direction, which returns true, or to its end.
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
            // All received bytes are written, or are whole packets in the queue, and this stays so until the next
            // await.
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

    /// Copies until no more can be read, and writes all bytes. Returns true at the end of the stream.
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

    /// Publishes the number of bytes that userspace has written, and of those that it has returned.
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

    /// Watches the receiver until it takes more. The caller that copies ends the watch.
    async fn until_writable(&self, to: &Leg) -> Result<(), Broken> {
        // While the host has no memory, a socket with room may refuse bytes. No event reports the end of that.
        if to.also.get().writable && has_room(to)? {
            sleep(PAUSE).await;
            return Ok(());
        }
        self.listen(to, |also| also.writable = true)?;
        self.wait(Ready::of(to.peer, What::Writable)).await?;
        Ok(())
    }
}

/// Whether a socket has room. If it has none, an event follows as soon as it has.
fn has_room(leg: &Leg) -> Result<bool, Broken> {
    let polled = sockopt::poll_writable(&leg.socket).map_err(|error| Broken { peer: leg.peer, error })?;
    Ok(polled.contains(PollFlags::OUT))
}
