//! The events of a worker's connections, and the tasks that wait for them.
//!
//! A connection in the kernel is not registered in the runtime. The worker's own epoll and the process's event thread
//! detect its events. Both leave a mark here and wake the connection's task.

use std::{
    fmt,
    ops::{BitAnd, BitOr, BitOrAssign, Not},
    task::{Context, Poll, Waker},
};

use slab::Slab;
use std::sync::PoisonError;
#[cfg(not(test))]
use std::sync::{Mutex, MutexGuard};

// The crate's own tests run threads in all orders in which they can reach the lock.
#[cfg(test)]
use loom::sync::{Mutex, MutexGuard};

/// One of the two peers of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The accepted side.
    Client,
    /// The side that the balancer connected to.
    Backend,
}

/// A set of things that have happened to the two sockets of a connection.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready(u16);

/// The events of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum What {
    /// The kernel passed bytes instead of redirecting them.
    Passed = 1,
    /// The socket may have become readable.
    Readable = 2,
    /// The socket may have become writable.
    Writable = 4,
    /// Its peer has sent FIN, or it is closed altogether.
    HangUp = 8,
    /// The socket has failed.
    Failed = 16,
}

impl Ready {
    /// These events stay set. The others are cleared by the task that they wake.
    const STATES: Self = Self(0x1818);

    /// One event of one peer.
    #[must_use]
    pub const fn of(peer: Peer, what: What) -> Self {
        match peer {
            Peer::Client => Self(what as u16),
            Peer::Backend => Self((what as u16) << 8),
        }
    }

    /// One event of both peers.
    #[must_use]
    pub const fn both(what: What) -> Self {
        Self(what as u16 | ((what as u16) << 8))
    }

    /// Whether the sets have a common event.
    #[must_use]
    pub const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Ready {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Ready {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for Ready {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ready(client {:#04x}, backend {:#04x})", self.0 & 0xff, self.0 >> 8)
    }
}

/// The connections of one worker, by slot. The event thread shares it, behind a lock with hardly any contention: that
/// thread takes it only when a direction falls back to userspace.
#[derive(Debug, Default)]
pub struct Wakeups {
    slots: Mutex<Slab<Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    ready: Ready,
    waiting: Option<Waker>,
}

impl Wakeups {
    /// A slot for a new connection.
    pub fn insert(&self) -> usize {
        self.lock().insert(Slot::default())
    }

    /// Frees a slot. An event under way may reach the slot's next owner, so an event is a hint to check, never a fact.
    pub fn remove(&self, slot: usize) {
        self.lock().try_remove(slot);
    }

    /// Connections that have a slot.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no connection has a slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks events and wakes the waiting task.
    pub fn raise(&self, slot: usize, happened: Ready) {
        let waiting = self.lock().get_mut(slot).and_then(|slot| slot.raise(happened));
        // Outside the lock, which the woken task is about to take.
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Like [`Self::raise`], for every connection.
    pub fn raise_all(&self, happened: Ready) {
        let waiting: Vec<_> = self.lock().iter_mut().filter_map(|(_, slot)| slot.raise(happened)).collect();
        for waker in waiting {
            waker.wake();
        }
    }

    /// Removes a mark that proved wrong.
    pub fn clear(&self, slot: usize, what: Ready) {
        if let Some(slot) = self.lock().get_mut(slot) {
            slot.ready = slot.ready & !what;
        }
    }

    /// Waits for an event of `wanted`, and returns the events that have happened. All waits on one slot belong to one
    /// task.
    pub fn poll(&self, slot: usize, wanted: Ready, context: &Context<'_>) -> Poll<Ready> {
        let mut slots = self.lock();
        let Some(slot) = slots.get_mut(slot) else { return Poll::Pending };
        let happened = slot.ready & wanted;
        if !happened.is_empty() {
            slot.ready = slot.ready & !(happened & !Ready::STATES);
            return Poll::Ready(happened);
        }
        match &mut slot.waiting {
            Some(waiting) => waiting.clone_from(context.waker()),
            waiting @ None => *waiting = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Slot>> {
        // Nothing that can panic runs with the lock held.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn raise(&mut self, happened: Ready) -> Option<Waker> {
        self.ready |= happened;
        self.waiting.take()
    }
}

/// Names one direction in the whole process: the number that the kernel echoes in its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The worker's number.
    pub worker: u16,
    /// The connection's slot there.
    pub slot: usize,
    /// The peer whose bytes the direction carries.
    pub peer: Peer,
}

impl Token {
    /// The kernel's form: worker, slot and side from the highest bit to the lowest.
    #[must_use]
    pub fn pack(self) -> u64 {
        (u64::from(self.worker) << 48) | ((self.slot as u64) << 1) | u64::from(self.peer == Peer::Backend)
    }

    /// The inverse of [`Token::pack`].
    #[must_use]
    pub fn unpack(packed: u64) -> Self {
        let worker = (packed >> 48) as u16;
        let slot = ((packed & 0xffff_ffff_ffff) >> 1) as usize;
        Self { worker, slot, peer: if packed & 1 == 0 { Peer::Client } else { Peer::Backend } }
    }
}

#[cfg(test)]
mod tests;
