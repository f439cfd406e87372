//! The thread that drains the ring of an object's events and wakes the workers' tasks.
//!
//! A ring buffer has one reader. Its events are few, and each must reach its worker soon even if all workers are busy, so a
//! thread of its own sleeps on it.

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

/// What the events of one object mean.
pub(super) trait Events: Send + 'static {
    /// What all connections look after when an event was lost.
    const EVERYTHING: Ready;

    /// Reads one event; which connection is to be woken for what, if any.
    fn read(&mut self, event: &[u8]) -> Option<(Token, Ready)>;

    /// After some were read, whether every connection has to look. The programs count the events that find the ring full,
    /// which happens only while there is something in it: so this moment is soon enough.
    fn must_all_look(&mut self) -> bool;
}

/// What a thread sleeps on, and empties whenever there is something in it.
pub(super) trait Drain: AsFd + Send + 'static {
    /// Takes what there is.
    fn drain(&mut self);
}

/// Runs a thread that drains a ring, for as long as it lives.
#[derive(Debug)]
pub(super) struct DrainThread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Runs the thread that drains the events of one object, for as long as it lives.
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

/// Drains whenever there is something, until it is stopped.
fn run(source: &mut impl Drain, stop: &OwnedFd) {
    loop {
        source.drain();
        let mut fds =
            [PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut fds, None)) {
            Ok(_) if fds[1].revents().is_empty() => {}
            Ok(_) | Err(Errno::INVAL | Errno::FAULT) => return,
            // Out of memory for the call: the events stay in the ring.
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

    /// Lets a worker hear of its connections: those whose token has the returned number.
    pub(super) fn register(&self, wakeups: Arc<Wakeups>) -> u16 {
        let number = self.workers.write().unwrap_or_else(PoisonError::into_inner).insert(wakeups);
        // A process has as many workers as cores.
        u16::try_from(number).unwrap_or(u16::MAX)
    }

    /// Wakes one connection, for another thread.
    pub(super) fn raise(&self, token: Token, ready: Ready) {
        let workers = self.workers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(wakeups) = workers.get(token.worker.into()) {
            wakeups.raise(token.slot, ready);
        }
    }

    /// Wakes every connection, for another thread.
    pub(super) fn raise_all(&self, ready: Ready) {
        for (_, wakeups) in self.workers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            wakeups.raise_all(ready);
        }
    }

    /// Ends what [`EventThread::register`] began.
    pub(super) fn unregister(&self, worker: u16) {
        self.workers.write().unwrap_or_else(PoisonError::into_inner).try_remove(worker.into());
    }
}

impl Drop for DrainThread {
    fn drop(&mut self) {
        if write(&*self.stop, &1_u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It ends in the ordinary way or has panicked, which was reported then.
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
