//! Maps that two processes share during a takeover. Only one of them gives out slots.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use super::{LOOK, Programs};
use crate::takeover::Channel;

impl Programs {
    /// The resources that another process needs to share pinned maps: the directory's name, the number of slots, and
    /// the lock.
    pub fn share(&self) -> io::Result<Option<(String, u32, OwnedFd)>> {
        let Some(pins) = &self.pins else { return Ok(None) };
        Ok(pins.share()?.map(|(directory, lock)| (directory, self.flows, lock)))
    }

    /// Stops giving out slots, and returns those in use.
    pub fn freeze(&self) -> Vec<u32> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        self.frozen.store(true, Relaxed);
        let mut used = vec![true; self.flows as usize];
        for flow in &*free {
            if let Some(used) = used.get_mut(*flow as usize) {
                *used = false;
            }
        }
        (0..).zip(used).filter_map(|(flow, used)| used.then_some(flow)).collect()
    }

    /// Whether no flow has this place.
    #[must_use]
    pub fn is_free(&self, flow: u32) -> bool {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).contains(&flow)
    }

    /// Reverts [`Programs::freeze`]: no process takes over. Devices may have the other process's programs.
    pub fn thaw(&self) {
        // The pins stay.
        self.links.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.take_devices();
        self.frozen.store(false, Relaxed);
        // Flows that ended meanwhile were reported to the other process.
        self.events.raise_all(LOOK);
    }

    /// Hands all flows over to a process that shares the maps, as soon as each flow is ready.
    pub fn pass_on(&self, to: Arc<Channel>) {
        if let Some(pins) = &self.pins {
            pins.disown();
        }
        let _ = self.successor.set(to);
        self.succeeded.cancel();
        self.events.raise_all(LOOK);
    }

    /// The channel by which flows are handed over, if there is one.
    #[must_use]
    pub fn successor(&self) -> Option<&Arc<Channel>> {
        self.successor.get()
    }

    /// Resolves when there is a [`Programs::successor`].
    pub async fn succeeded(&self) {
        self.succeeded.cancelled().await;
    }

    /// Takes ownership of the pins: the process that shared them has released them.
    pub fn own_pins(&self) {
        if let Some(pins) = &self.pins {
            pins.own();
        }
    }
}
