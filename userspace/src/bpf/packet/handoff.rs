//! Maps that two processes share while one takes over from the other: places are given away by one of them only.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use super::{LOOK, Programs};
use crate::takeover::Channel;

impl Programs {
    /// What another process needs to share the maps, if they are pinned: the directory's name, how many places there are,
    /// and the lock.
    pub fn share(&self) -> io::Result<Option<(String, u32, OwnedFd)>> {
        let Some(pins) = &self.pins else { return Ok(None) };
        Ok(pins.share()?.map(|(directory, lock)| (directory, self.flows, lock)))
    }

    /// Gives no place away any more, and tells which are in use.
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

    /// Goes on as before [`Programs::freeze`]: nobody takes over. Devices may have the other process' programs.
    pub fn thaw(&self) {
        // What is pinned stays.
        self.links.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.take_devices();
        self.frozen.store(false, Relaxed);
        // What ended meanwhile was told to others.
        self.events.raise_all(LOOK);
    }

    /// Has all flows go over to a process that shares the maps, as soon as each can.
    pub fn pass_on(&self, to: Arc<Channel>) {
        if let Some(pins) = &self.pins {
            pins.disown();
        }
        let _ = self.successor.set(to);
        self.succeeded.cancel();
        self.events.raise_all(LOOK);
    }

    /// By which flows go over to another process, if they shall.
    #[must_use]
    pub fn successor(&self) -> Option<&Arc<Channel>> {
        self.successor.get()
    }

    /// Resolves when there is a [`Programs::successor`].
    pub async fn succeeded(&self) {
        self.succeeded.cancelled().await;
    }

    /// Makes what is pinned ours: the process that shared it has given it up.
    pub fn own_pins(&self) {
        if let Some(pins) = &self.pins {
            pins.own();
        }
    }
}
