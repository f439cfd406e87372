//! A worker's own epoll for the sockets that the kernel redirects between.
//!
//! The runtime would watch for every readiness. The kernel wakes a watcher of readability or writability with every
//! packet that it redirects. This epoll watches for the end of a connection, and for the rest only while userspace
//! copies. The epoll itself is registered in the runtime.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, Event, EventData, EventFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::bpf::wakeup::{Peer, Ready, Wakeups, What};

/// Always watched. Errors are reported in any case.
const END: EventFlags = EventFlags::RDHUP.union(EventFlags::ET);

/// Events per call.
const BATCH: usize = 128;

/// The epoll.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: Arc<OwnedFd>,
}

/// The readiness that a socket is watched for, besides its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Also {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?) })
    }

    /// Passes events to `wakeups`, in an endless loop.
    pub(super) fn events(
        &self,
        wakeups: Arc<Wakeups>,
    ) -> io::Result<impl Future<Output = ()> + Send + use<>> {
        // SAFETY: the `Arc` keeps the one descriptor open for as long as the registration has it.
        let epoll = unsafe { AsyncFd::register_with_interest(self.epoll.clone(), Interest::READABLE)? };
        Ok(async move {
            // Fails only when the runtime shuts down.
            while let Ok(mut guard) = epoll.readable().await {
                while take(guard.get_inner(), &wakeups) {}
                guard.clear_ready();
            }
        })
    }

    /// Watches for the end of a socket. A closed socket is removed by the kernel.
    pub(super) fn add(&self, socket: impl AsFd, slot: usize, peer: Peer) -> io::Result<()> {
        Ok(epoll::add(&*self.epoll, socket, data(slot, peer), END)?)
    }

    /// Changes the watched readiness. Existing readiness is reported at once.
    pub(super) fn modify(&self, socket: impl AsFd, slot: usize, peer: Peer, also: Also) -> io::Result<()> {
        let mut flags = END;
        flags.set(EventFlags::IN, also.readable);
        flags.set(EventFlags::OUT, also.writable);
        Ok(epoll::modify(&*self.epoll, socket, data(slot, peer), flags)?)
    }
}

/// Passes the pending events. Returns false after the last one.
fn take(epoll: &Arc<OwnedFd>, wakeups: &Wakeups) -> bool {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut events = [MaybeUninit::uninit(); BATCH];
    // The call cannot be interrupted, since it does not wait.
    let Ok((events, _)) = epoll::wait(&**epoll, &mut events, Some(&AT_ONCE)) else { return false };
    for event in &*events {
        let (slot, happened) = read(event);
        wakeups.raise(slot, happened);
    }
    events.len() == BATCH
}

fn data(slot: usize, peer: Peer) -> EventData {
    EventData::new_u64(((slot as u64) << 1) | u64::from(peer == Peer::Backend))
}

fn read(event: &Event) -> (usize, Ready) {
    let data = event.data.u64();
    let peer = if data & 1 == 0 { Peer::Client } else { Peer::Backend };
    let flags = event.flags;
    let mut happened = Ready::default();
    for (flag, what) in [
        (EventFlags::IN, What::Readable),
        (EventFlags::OUT, What::Writable),
        (EventFlags::RDHUP.union(EventFlags::HUP), What::HangUp),
        (EventFlags::ERR, What::Failed),
    ] {
        if flags.intersects(flag) {
            happened |= Ready::of(peer, what);
        }
    }
    let slot = (data >> 1) as usize;
    (slot, happened)
}
