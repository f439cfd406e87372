//! The one copy step: all copies in userspace use it.
//!
//! It works on raw non-blocking descriptors and never waits. So it serves the relay (sockets registered in tokio) and
//! the copying part of the sockmap datapath (sockets in a private epoll).

use std::{cell::RefCell, io, os::fd::AsFd};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{RecvFlags, SendFlags, recv, send},
};

/// The greatest number of bytes that one step reads. Large reads make a copy fast. One buffer serves a whole worker,
/// so it costs nothing per connection and stays in the core's cache.
pub const STEP_BYTES: usize = 256 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; STEP_BYTES].into_boxed_slice());
}

/// Lends the worker's shared buffer. Calls must not be nested.
pub fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|buffer| work(buffer))
}

/// The copy of one direction. It holds bytes only while the receiver does not take them.
#[derive(Debug, Default)]
pub struct Pump(Option<Box<Pending>>);

/// Read but not yet taken by the receiver. In a box, since there is hardly ever any.
#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    /// The bytes that the receiver has taken.
    taken: usize,
}

/// The result of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The receiver's socket took this many bytes (at least one).
    Moved {
        /// The number of bytes.
        bytes: usize,
        /// The sender's queue was empty at that moment: the next read would block, or find EOF.
        drained: bool,
    },
    /// The sender has nothing to read; nothing is pending.
    WantRead,
    /// The receiver takes no more for now. The rest is pending.
    WantWrite,
    /// The sender sent FIN and everything before it was taken.
    Eof,
}

/// The call that failed.
#[derive(Debug)]
pub enum StepError {
    /// recv(2) on the sender's socket.
    Read(io::Error),
    /// send(2) on the receiver's socket.
    Write(io::Error),
}

/// Whether to repeat a failed send(2).
///
/// While a control group's sockets have used up its memory, the kernel may return `EFAULT` for a valid buffer, and
/// takes nothing. Packets that a sockmap's program passes are charged to a socket without a reservation, so the
/// socket's remainder becomes negative (`sk_psock_skb_ingress_self`, `tcp_wmem_schedule`).
fn is_no_room(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::FAULT)
}

impl Pump {
    /// A pump that first delivers `bytes`.
    #[must_use]
    pub fn starting_with(bytes: Vec<u8>) -> Self {
        Self((!bytes.is_empty()).then(|| Box::new(Pending { bytes, taken: 0 })))
    }

    /// Whether bytes that were read still wait for the receiver.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.0.is_some()
    }

    /// The number of pending bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.as_ref().map_or(0, |pending| pending.bytes.len() - pending.taken)
    }

    /// Delivers pending bytes, or else reads once and delivers the bytes.
    pub fn step(&mut self, from: impl AsFd, to: impl AsFd) -> Result<Step, StepError> {
        if let Some(pending) = &mut self.0 {
            let step = pending.flush(to)?;
            if pending.taken == pending.bytes.len() {
                // Frees the memory: a receiver that was slow once need not hold a buffer forever.
                self.0 = None;
            }
            return Ok(step);
        }
        with_scratch(|scratch| {
            let read = match retry_on_intr(|| recv(&from, &mut scratch[..], RecvFlags::empty())) {
                Ok((0, _)) => return Ok(Step::Eof),
                Ok((read, _)) => read,
                Err(Errno::AGAIN) => return Ok(Step::WantRead),
                Err(error) => return Err(StepError::Read(error.into())),
            };
            let drained = read < scratch.len();
            match retry_on_intr(|| send(&to, &scratch[..read], SendFlags::NOSIGNAL)) {
                Ok(sent) => {
                    *self = Self::starting_with(scratch[sent..read].to_vec());
                    Ok(Step::Moved { bytes: sent, drained })
                }
                Err(error) if is_no_room(error) => {
                    *self = Self::starting_with(scratch[..read].to_vec());
                    Ok(Step::WantWrite)
                }
                Err(error) => Err(StepError::Write(error.into())),
            }
        })
    }
}

impl Pending {
    fn flush(&mut self, to: impl AsFd) -> Result<Step, StepError> {
        let sent = match retry_on_intr(|| send(&to, &self.bytes[self.taken..], SendFlags::NOSIGNAL)) {
            Ok(sent) => sent,
            Err(error) if is_no_room(error) => return Ok(Step::WantWrite),
            Err(error) => return Err(StepError::Write(error.into())),
        };
        self.taken += sent;
        Ok(Step::Moved { bytes: sent, drained: false })
    }
}
