//! The thread that hears the kernel's events and tells the workers.
//!
//! A ring buffer has one reader. Its events are few (a direction falls back to userspace), and each must reach its
//! worker soon even if all workers are busy, so a thread of its own sleeps on it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, retry_on_intr, write},
};
use slab::Slab;
use snisplice_common::sockmap::{counters::Counters, event::Event};

use crate::bpf::{
    load::total,
    wakeup::{Ready, Signals, Token, What},
};

/// Between two looks at every direction for the sake of the sum of waiting bytes.
const TIDY_EVERY: Duration = Duration::from_secs(1);

type Workers = RwLock<Slab<Arc<Signals>>>;

/// Runs the thread for as long as it lives.
#[derive(Debug)]
pub(super) struct Listener {
    workers: Arc<Workers>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(
        ring: RingBuf<MapData>,
        counters: Arc<PerCpuArray<MapData, Counters>>,
    ) -> io::Result<Self> {
        let workers = Arc::<Workers>::default();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let ears = Ears { ring, counters, workers: workers.clone(), lost: 0, tidy: Tidy::default() };
        let thread = {
            let stop = stop.clone();
            thread::Builder::new().name("kernel-events".to_owned()).spawn(move || ears.run(&stop))?
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
    counters: Arc<PerCpuArray<MapData, Counters>>,
    workers: Arc<Workers>,
    /// Lost events that were made up for.
    lost: u64,
    tidy: Tidy,
}

/// When every direction is looked at because the sum of waiting bytes has kept packets out: it may be full of shares
/// that are out of date.
#[derive(Debug, Default)]
struct Tidy {
    /// Packets kept out when it was done last.
    refused: u64,
    last: Option<Instant>,
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
            let Some(event) = parse(&item) else { continue };
            let token = Token::unpack(event.token);
            if let Some(signals) = workers.get(token.worker.into()) {
                signals.raise(token.slot, Ready::of(token.side, What::Passed));
            }
        }
        if !heard {
            return;
        }
        // An event finds the ring full only while there is something in it, so looking here is soon enough.
        let Ok(now) = total(&self.counters) else { return };
        let lost = now.lost_events != std::mem::replace(&mut self.lost, now.lost_events);
        if lost || self.tidy.is_due(&now, Instant::now()) {
            for (_, signals) in workers.iter() {
                signals.raise_all(Ready::both(What::Passed));
            }
        }
    }
}

impl Tidy {
    /// Looking costs a moment, so it is done now and then only.
    fn is_due(&mut self, counted: &Counters, now: Instant) -> bool {
        let is_soon = self.last.is_some_and(|last| now.duration_since(last) < TIDY_EVERY);
        if counted.over_budget == self.refused || is_soon {
            return false;
        }
        self.refused = counted.over_budget;
        self.last = Some(now);
        true
    }
}

fn parse(item: &[u8]) -> Option<Event> {
    let (token, rest) = item.split_first_chunk()?;
    let (cookie, _) = rest.split_first_chunk()?;
    Some(Event { token: u64::from_ne_bytes(*token), cookie: u64::from_ne_bytes(*cookie) })
}
