//! The rare phases of a relayed connection, which take more state: a slow receiver, a side that has sent FIN, a side
//! that has failed.

use std::{cell::Cell, future::poll_fn, io, net::Shutdown};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::{
    Carried, CopyDirection, STEPS_PER_TURN, forget, moved,
    pump::{Pump, Step},
};
use crate::{
    bpf::wakeup::Peer,
    datapath::{
        broken::{Broken, flush_then_reset},
        idle::idle,
        seam::End,
    },
    metrics::labels::Direction,
};

/// The reason for which a direction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Eof,
    Due,
    /// Both receivers keep up again, and no side has sent FIN.
    AtEase,
    /// The other side has sent FIN, and this one sent nothing for too long.
    Silent,
}

/// The state that both directions share.
#[derive(Default)]
struct Shared {
    /// One of the two directions has forwarded its FIN.
    half_closed: Cell<bool>,
    /// For each direction: whether its receiver is slow.
    blocked: [Cell<bool>; 2],
}

/// Continues until no reason to wait is left, which is `None`, or to the end. `ended` is a direction whose sender has
/// sent FIN.
pub(super) async fn carry(
    ways: [CopyDirection<'_>; 2],
    pumps: [&mut Pump; 2],
    ended: Option<Direction>,
) -> Option<Carried> {
    let shared = Shared::default();
    let [up, down] = ways.map(|way| Waiting { way, shared: &shared });
    let [upward, downward] = pumps;
    up.note(upward);
    down.note(downward);
    let stopped = tokio::select! {
        stopped = up.one_way(upward, ended == Some(Direction::Up)) => stopped,
        stopped = down.one_way(downward, ended == Some(Direction::Down)) => stopped,
    };
    match stopped {
        Ok(Stop::AtEase) => None,
        Ok(Stop::Due) => Some(Carried::ToHandover),
        Ok(Stop::Eof) => Some(Carried::ToEnd(End::Finished)),
        Ok(Stop::Silent) => Some(Carried::ToEnd(End::HalfClosed)),
        Err(error) => Some(Carried::ToEnd(Box::pin(broken(ways, [upward, downward], error)).await)),
    }
}

/// Ends a connection of which one side has failed.
pub(super) async fn broken(ways: [CopyDirection<'_>; 2], pumps: [&mut Pump; 2], broken: Broken) -> End {
    let shared = Shared::default();
    let [up, down] = ways.map(|way| Waiting { way, shared: &shared });
    let [upward, downward] = pumps;
    match broken.peer {
        Peer::Client => up.last_words(upward).await,
        Peer::Backend => down.last_words(downward).await,
    }
    broken.into()
}

/// One direction.
struct Waiting<'a> {
    way: CopyDirection<'a>,
    shared: &'a Shared,
}

impl Waiting<'_> {
    /// Copies until the sender has sent FIN and the FIN is forwarded, or until both receivers keep up again.
    ///
    /// The direction that finishes second ends the pair. The first one continues to watch its sender: no other code
    /// would notice that this peer, which has sent FIN, now resets.
    async fn one_way(&self, pump: &mut Pump, is_ended: bool) -> Result<Stop, Broken> {
        if !is_ended {
            match self.copy(pump).await? {
                Stop::Eof => {}
                other => return Ok(other),
            }
        }
        if self.shared.half_closed.replace(true) {
            // Neither peer has anything left to send. The caller closes both sockets next, which reports the end.
            return Ok(Stop::Eof);
        }
        match SockRef::from(self.way.to).shutdown(Shutdown::Write) {
            // The receiver has failed already. Its own direction reports the reason.
            Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                return Err(self.way.by_receiver(error));
            }
            _ => {}
        }
        let CopyDirection { from, copy, .. } = self.way;
        let silence = idle(copy.patience().half_closed, || moved(copy.account));
        Box::pin(async {
            tokio::select! {
                error = failure(from) => Err(self.way.by_sender(error)),
                () = silence => Ok(Stop::Silent),
            }
        })
        .await
    }

    /// Copies until the sender has sent FIN and the receiver has taken all earlier bytes. Also ends when the
    /// direction is due: the receiver has then taken all bytes that were read.
    async fn copy(&self, pump: &mut Pump) -> Result<Stop, Broken> {
        let CopyDirection { from, to, .. } = self.way;
        let mut steps = 0;
        loop {
            if !pump.is_blocked() {
                readable(from).await.map_err(|error| self.way.by_sender(error))?;
            }
            let step = pump.step(from, to).map_err(|error| self.way.broken_by(error))?;
            self.note(pump);
            match step {
                Step::Moved { bytes, drained } => {
                    let is_due = self.way.moved(bytes, drained && !pump.is_blocked());
                    // The kernel takes only connections without a FIN.
                    if is_due && !self.shared.half_closed.get() {
                        return Ok(Stop::Due);
                    }
                    if drained {
                        forget(from, Interest::READABLE);
                        steps = 0;
                    }
                    if self.shared.is_at_ease() {
                        return Ok(Stop::AtEase);
                    }
                    steps += 1;
                    if steps >= STEPS_PER_TURN {
                        tokio::task::yield_now().await;
                        steps = 0;
                    }
                }
                Step::WantRead => forget(from, Interest::READABLE),
                Step::WantWrite => {
                    Box::pin(self.until_taken()).await?;
                    steps = 0;
                }
                Step::Eof => return Ok(Stop::Eof),
            }
        }
    }

    /// Records whether the receiver keeps up.
    fn note(&self, pump: &Pump) {
        self.shared.blocked[self.way.direction as usize].set(pump.is_blocked());
    }

    /// Waits until the receiver takes bytes again. No code reads from the sender meanwhile, so its reset must be
    /// detected here.
    async fn until_taken(&self) -> Result<(), Broken> {
        tokio::select! {
            writable = until_writable(self.way.to) => writable.map_err(|error| self.way.by_receiver(error)),
            error = failure(self.way.from) => Err(self.way.by_sender(error)),
        }
    }

    /// Delivers the bytes that the sender of a direction sent before it failed, then resets the receiver.
    async fn last_words(&self, pump: &mut Pump) {
        let rest = async { while let Ok(Stop::Due | Stop::AtEase) = self.copy(pump).await {} };
        flush_then_reset(rest, self.way.to).await;
    }
}

impl Shared {
    fn is_at_ease(&self) -> bool {
        !self.half_closed.get() && self.blocked.iter().all(|blocked| !blocked.get())
    }
}

/// Waits until the runtime reports the socket readable.
async fn readable(stream: &TcpStream) -> io::Result<()> {
    poll_fn(|context| stream.poll_read_ready(context)).await
}

/// Forgets the readiness that the last call disproved, then waits for the next.
async fn until_writable(stream: &TcpStream) -> io::Result<()> {
    forget(stream, Interest::WRITABLE);
    poll_fn(|context| stream.poll_write_ready(context)).await
}

/// Waits until the socket has failed, with any bytes still queued on it.
pub(in crate::datapath) async fn failure(stream: &TcpStream) -> io::Error {
    loop {
        match stream.ready(Interest::ERROR).await {
            Err(error) => return error,
            Ok(_) => match stream.take_error() {
                Err(error) | Ok(Some(error)) => return error,
                Ok(None) => forget(stream, Interest::ERROR),
            },
        }
    }
}
