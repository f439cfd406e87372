//! Low descriptor numbers, set aside for what keeps the programs on the devices.
//!
//! When a process dies, the kernel closes the descriptors from the highest number to the lowest. The resets of our own
//! sockets need the programs, so the programs' links must have lower numbers than any connection. The numbers are set
//! aside when the process starts, because connections are accepted before the programs are loaded.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::fcntl_dupfd_cloexec,
    process::{Resource, getrlimit},
};

/// Descriptors of a device: one for each program on it.
const OF_DEVICE: usize = 2;

/// Devices for which numbers are set aside. The links of further devices get higher numbers. After a kill, the oldest
/// flows over these may end only with the next packet of a peer.
const DEVICES: usize = 256;

/// The part of all descriptors that is not set aside, whatever the limit of open files is.
const FREE_PART: u64 = 4;

static RESERVED: Mutex<Reserved> = Mutex::new(Reserved { begun: false, descriptors: Vec::new() });

struct Reserved {
    begun: bool,
    descriptors: Vec<OwnedFd>,
}

/// Sets the numbers aside, once for the process. To be called before any connection is accepted. All descriptors are of
/// one empty file, so that a number costs its place in the kernel's table only.
pub fn reserve() {
    let mut reserved = lock();
    if std::mem::replace(&mut reserved.begun, true) {
        return;
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / FREE_PART;
    let count = usize::try_from(limit).unwrap_or(usize::MAX).min(DEVICES * OF_DEVICE);
    let Ok(first) = eventfd(0, EventfdFlags::CLOEXEC) else { return };
    for _ in 1..count {
        // Where none is left, fewer devices have low numbers.
        let Ok(next) = fcntl_dupfd_cloexec(&first, 0) else { break };
        reserved.descriptors.push(next);
    }
    reserved.descriptors.insert(0, first);
}

/// Frees the numbers for the links of one device. The next descriptors that the process opens get them.
pub(super) fn free_for_device() {
    let mut reserved = lock();
    let rest = reserved.descriptors.len().saturating_sub(OF_DEVICE);
    reserved.descriptors.truncate(rest);
}

fn lock() -> MutexGuard<'static, Reserved> {
    // Nothing that can panic runs with the lock held.
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner)
}
