//! One thread's sockets, and the epoll instance that reports their readiness.

use std::{collections::VecDeque, time::Duration};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
};

/// The request of a session after it was driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Drive the session when its socket is ready.
    Wait,
    /// Drive the session again soon: it stopped only to give others a turn.
    Again,
    /// Like `Wait`. Returned once, when the session is set up and waits for the start signal.
    Ready,
    /// Close the session.
    Done,
}

/// No session has this slot.
pub(crate) const BELL: usize = usize::MAX;

const EVENTS_AT_ONCE: usize = 256;

struct Slot<S> {
    socket: OwnedFd,
    session: S,
    queued: bool,
}

/// Sockets with their sessions. Registration is edge-triggered for both directions, so a session must continue until
/// its socket would block, or request another turn.
pub(crate) struct Reactor<S> {
    epoll: OwnedFd,
    slots: Vec<Option<Slot<S>>>,
    free: Vec<usize>,
    again: VecDeque<usize>,
    events: Vec<Event>,
}

impl<S> Reactor<S> {
    /// Creates a reactor without sockets.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            slots: Vec::new(),
            free: Vec::new(),
            again: VecDeque::new(),
            events: Vec::with_capacity(EVENTS_AT_ONCE),
        })
    }

    /// The number of sockets.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a socket.
    pub(crate) fn insert(&mut self, socket: OwnedFd, session: S) -> Result<usize, Errno> {
        let index = self.free.last().copied().unwrap_or(self.slots.len());
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), flags)?;
        let slot = Some(Slot { socket, session, queued: false });
        if self.free.pop().is_some() {
            self.slots[index] = slot;
        } else {
            self.slots.push(slot);
        }
        Ok(index)
    }

    /// Wakes up for each edge of `bell`, which has no session and belongs to the caller. The batch then contains
    /// [`BELL`].
    pub(crate) fn watch(&self, bell: BorrowedFd<'_>) -> Result<(), Errno> {
        epoll::add(&self.epoll, bell, EventData::new_u64(BELL as u64), EventFlags::IN | EventFlags::ET)
    }

    /// Closes a socket.
    pub(crate) fn remove(&mut self, index: usize) {
        if self.slots[index].take().is_some() {
            self.free.push(index);
        }
    }

    /// The socket and session at `index`. An event may be older than the slot's current owner. The owner's socket
    /// would then block.
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<(BorrowedFd<'_>, &mut S)> {
        let slot = self.slots.get_mut(index)?.as_mut()?;
        Some((slot.socket.as_fd(), &mut slot.session))
    }

    /// Adds the session at `index` to the next batch.
    pub(crate) fn queue(&mut self, index: usize) {
        if let Some(Some(slot)) = self.slots.get_mut(index)
            && !slot.queued
        {
            slot.queued = true;
            self.again.push_back(index);
        }
    }

    /// Adds all sessions to the next batch.
    pub(crate) fn queue_all(&mut self) {
        for index in 0..self.slots.len() {
            self.queue(index);
        }
    }

    /// Replaces `batch` by the sessions to drive now. Waits for at least one, for at most `timeout`.
    pub(crate) fn next_batch(&mut self, timeout: Duration, batch: &mut Vec<usize>) -> Result<(), Errno> {
        batch.clear();
        let timeout = if self.again.is_empty() { timeout } else { Duration::ZERO };
        #[expect(clippy::cast_possible_wrap, reason = "timeouts are below a minute")]
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        #[expect(clippy::cast_possible_truncation, reason = "the value was an index")]
        batch.extend(self.events.iter().map(|event| event.data.u64() as usize));
        while let Some(index) = self.again.pop_front() {
            if let Some(Some(slot)) = self.slots.get_mut(index) {
                slot.queued = false;
                batch.push(index);
            }
        }
        Ok(())
    }
}
