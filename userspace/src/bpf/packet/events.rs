//! The thread that hears what packets were to their flows: it wakes the tasks of those that may have ended, and counts.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, retry_on_intr, write},
};
use slab::Slab;
use snisplice_common::packet::maps::{BYPASS, END, FIN, FIRST, Totals};

use crate::bpf::{
    load::total,
    wakeup::{Ready, Signals, Token, What},
};

type Workers = RwLock<Slab<Arc<Signals>>>;

/// What a flow's task waits for: that it should look.
pub(crate) const LOOK: Ready = Ready::both(What::Passed);

/// What was heard so far, by what it was.
#[derive(Debug, Default)]
pub struct Heard {
    first: AtomicU64,
    fin: AtomicU64,
}

impl Heard {
    /// Ways whose first packet was sent on.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first.load(Relaxed)
    }

    /// Ways that have ended with FIN.
    #[must_use]
    pub fn fin(&self) -> u64 {
        self.fin.load(Relaxed)
    }

    fn add(&self, what: u32) {
        for (kind, counter) in [(FIRST, &self.first), (FIN, &self.fin)] {
            if what & kind != 0 {
                counter.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Runs the thread for as long as it lives.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) workers: Arc<Workers>,
    heard: Arc<Heard>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(
        ring: RingBuf<MapData>,
        totals: Arc<PerCpuArray<MapData, Totals>>,
    ) -> io::Result<Self> {
        let workers = Arc::<Workers>::default();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let heard = Arc::<Heard>::default();
        let ears = Ears { ring, totals, workers: workers.clone(), heard: heard.clone(), lost: 0 };
        let thread = {
            let stop = stop.clone();
            thread::Builder::new().name("flow-endings".to_owned()).spawn(move || ears.run(&stop))?
        };
        Ok(Self { workers, heard, stop, thread: Some(thread) })
    }

    pub(super) fn heard(&self) -> &Heard {
        &self.heard
    }

    pub(super) fn register(&self, signals: Arc<Signals>) -> u16 {
        let number = self.workers.write().unwrap_or_else(PoisonError::into_inner).insert(signals);
        // A process has as many workers as cores.
        u16::try_from(number).unwrap_or(u16::MAX)
    }

    pub(super) fn unregister(&self, worker: u16) {
        self.workers.write().unwrap_or_else(PoisonError::into_inner).try_remove(worker.into());
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if write(&*self.stop, &1_u64.to_ne_bytes()).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // It ends in the ordinary way or has panicked, which was reported then.
            let _ = thread.join();
        }
    }
}

struct Ears {
    ring: RingBuf<MapData>,
    totals: Arc<PerCpuArray<MapData, Totals>>,
    workers: Arc<Workers>,
    heard: Arc<Heard>,
    /// Lost events that were made up for.
    lost: u64,
}

impl Ears {
    fn run(mut self, stop: &OwnedFd) {
        loop {
            self.hear();
            let mut fds = [
                PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            match retry_on_intr(|| poll(&mut fds, None)) {
                Ok(_) if fds[1].revents().is_empty() => {}
                Ok(_) | Err(Errno::INVAL | Errno::FAULT) => return,
                // Out of memory for the call: the events stay in the ring.
                Err(_) => thread::yield_now(),
            }
        }
    }

    fn hear(&mut self) {
        let workers = self.workers.read().unwrap_or_else(PoisonError::into_inner);
        let mut heard = false;
        while let Some(item) = self.ring.next() {
            heard = true;
            let Some((token, rest)) = item.split_first_chunk() else { continue };
            let Some((what, _)) = rest.split_first_chunk() else { continue };
            let what = u32::from_ne_bytes(*what);
            self.heard.add(what);
            if what & (END | BYPASS) == 0 {
                continue;
            }
            let token = Token::unpack(u64::from_ne_bytes(*token));
            if let Some(signals) = workers.get(token.worker.into()) {
                signals.raise(token.slot, LOOK);
            }
        }
        if !heard {
            return;
        }
        // An event finds the ring full only while there is something in it, so looking here is soon enough.
        let Ok(now) = total(&self.totals) else { return };
        if now.lost_events != self.lost {
            self.lost = now.lost_events;
            for (_, signals) in workers.iter() {
                signals.raise_all(LOOK);
            }
        }
    }
}
