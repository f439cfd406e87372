//! The thread that hears of flows that may have ended, and wakes their tasks.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
    thread::{self, JoinHandle},
};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, retry_on_intr, write},
};
use slab::Slab;
use snisplice_common::packet::Totals;

use super::total;
use crate::kernel::signals::{Ready, Signals, Token, What};

type Workers = RwLock<Slab<Arc<Signals>>>;

/// What a flow's task waits for: that it should look.
pub(crate) const LOOK: Ready = Ready::both(What::Passed);

/// Runs the thread for as long as it lives.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) workers: Arc<Workers>,
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
        let ears = Ears { ring, totals, workers: workers.clone(), lost: 0 };
        let thread = {
            let stop = stop.clone();
            thread::Builder::new().name("flow-endings".to_owned()).spawn(move || ears.run(&stop))?
        };
        Ok(Self { workers, stop, thread: Some(thread) })
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
            let Some((token, _)) = item.split_first_chunk() else { continue };
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
