//! The thread that drains the ring of an object's events and wakes the workers' tasks.
//!
//! A ring buffer has one reader. Its events are few, but each must reach its worker soon, even if all workers are busy.
//! So a separate thread sleeps on the ring.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
    thread::{self, JoinHandle},
};

use aya::maps::{MapData, RingBuf};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, retry_on_intr, write},
};
use slab::Slab;

use super::wakeup::{Ready, Token, Wakeups};

type Workers = RwLock<Slab<Arc<Wakeups>>>;

/// The meaning of an object's events.
pub(super) trait Events: Send + 'static {
    /// The readiness that all connections check after a lost event.
    const EVERYTHING: Ready;

    /// Reads one event. Returns the connection to wake, and its readiness.
    fn read(&mut self, event: &[u8]) -> Option<(Token, Ready)>;

    /// Whether every connection has to check after these events. The programs count events that find the ring full,
    /// which can only happen while the ring has events. So this moment is early enough.
    fn must_all_look(&mut self) -> bool;
}

/// A source that a thread sleeps on and drains.
pub(super) trait Drain: AsFd + Send + 'static {
    /// Reads all available records.
    fn drain(&mut self);
}

/// A thread that drains a ring. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct DrainThread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// The thread that drains the events of one object. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct EventThread {
    workers: Arc<Workers>,
    _thread: DrainThread,
}

impl DrainThread {
    /// Starts a thread of this name.
    pub(super) fn start(name: &str, mut source: impl Drain) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = {
            let stop = stop.clone();
            thread::Builder::new().name(name.to_owned()).spawn(move || run(&mut source, &stop))?
        };
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Drains the source whenever it is readable, until it is stopped.
fn run(source: &mut impl Drain, stop: &OwnedFd) {
    loop {
        source.drain();
        let mut fds =
            [PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut fds, None)) {
            Ok(_) if fds[1].revents().is_empty() => {}
            Ok(_) | Err(Errno::INVAL | Errno::FAULT) => return,
            // The call had no memory. The events stay in the ring.
            Err(_) => thread::yield_now(),
        }
    }
}

impl EventThread {
    /// Starts a thread of this name.
    pub(super) fn start(name: &str, ring: RingBuf<MapData>, events: impl Events) -> io::Result<Self> {
        let workers = Arc::<Workers>::default();
        let thread = DrainThread::start(name, Reader { ring, events, workers: workers.clone() })?;
        Ok(Self { workers, _thread: thread })
    }

    /// Registers a worker. Events whose token has the returned number go to `wakeups`.
    pub(super) fn register(&self, wakeups: Arc<Wakeups>) -> u16 {
        let number = self.workers.write().unwrap_or_else(PoisonError::into_inner).insert(wakeups);
        // A process has as many workers as cores.
        u16::try_from(number).unwrap_or(u16::MAX)
    }

    /// Wakes one connection, from another thread.
    pub(super) fn raise(&self, token: Token, ready: Ready) {
        let workers = self.workers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(wakeups) = workers.get(token.worker.into()) {
            wakeups.raise(token.slot, ready);
        }
    }

    /// Wakes every connection, from another thread.
    pub(super) fn raise_all(&self, ready: Ready) {
        for (_, wakeups) in self.workers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            wakeups.raise_all(ready);
        }
    }

    /// Reverts [`EventThread::register`].
    pub(super) fn unregister(&self, worker: u16) {
        self.workers.write().unwrap_or_else(PoisonError::into_inner).try_remove(worker.into());
    }
}

impl Drop for DrainThread {
    fn drop(&mut self) {
        if write(&*self.stop, &1_u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // The thread has ended normally, or has panicked, which the panic hook has logged.
            let _ = thread.join();
        }
    }
}

struct Reader<E> {
    ring: RingBuf<MapData>,
    events: E,
    workers: Arc<Workers>,
}

impl<E> AsFd for Reader<E> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl<E: Events> Drain for Reader<E> {
    fn drain(&mut self) {
        let workers = self.workers.read().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        while let Some(event) = self.ring.next() {
            any = true;
            if let Some((token, ready)) = self.events.read(&event)
                && let Some(wakeups) = workers.get(token.worker.into())
            {
                wakeups.raise(token.slot, ready);
            }
        }
        if any && self.events.must_all_look() {
            for (_, wakeups) in workers.iter() {
                wakeups.raise_all(E::EVERYTHING);
            }
        }
    }
}
