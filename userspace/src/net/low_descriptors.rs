//! Low descriptor numbers, reserved for the links that keep the programs on devices.
//!
//! When a process dies, the kernel closes the descriptors from the highest number to the lowest. The resets of the
//! balancer's sockets need the programs, so the programs' links must have lower numbers than any connection. The
//! numbers are reserved when the process starts, because connections are accepted before the programs are loaded.

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

/// Devices for which numbers are reserved. The links of further devices get higher numbers. After a kill, the oldest
/// flows over these may end only with the next packet of a peer.
const DEVICES: usize = 256;

/// Descriptors of one object: its programs and maps, and the workers' copies. They are reserved because objects are
/// loaded while the process serves. Connections cannot take them, and the number of open descriptors does not grow
/// then.
const OF_OBJECT: usize = 64;

/// The objects of sockmap and packet.
const OBJECTS: usize = 2;

/// At most one descriptor of this number is reserved, for any limit of open files.
const FREE_PART: u64 = 4;

static RESERVED: Mutex<Reserved> = Mutex::new(Reserved { begun: false, descriptors: Vec::new() });

struct Reserved {
    begun: bool,
    descriptors: Vec<OwnedFd>,
}

/// The number of reserved descriptors for a limit of `open_files` (`None`: no limit).
#[must_use]
pub fn set_aside(open_files: Option<u64>) -> usize {
    let part = open_files.unwrap_or(u64::MAX) / FREE_PART;
    usize::try_from(part).unwrap_or(usize::MAX).min(DEVICES * OF_DEVICE + OBJECTS * OF_OBJECT)
}

/// Reserves the numbers, once for the process. Called before any connection is accepted. All descriptors refer to one
/// empty file, so that a number costs only its entry in the kernel's table.
pub fn reserve() {
    let mut reserved = lock();
    if std::mem::replace(&mut reserved.begun, true) {
        return;
    }
    let count = set_aside(getrlimit(Resource::Nofile).current);
    let Ok(first) = eventfd(0, EventfdFlags::CLOEXEC) else { return };
    for _ in 1..count {
        // If no descriptor is left, fewer devices have low numbers.
        let Ok(next) = fcntl_dupfd_cloexec(&first, 0) else { break };
        reserved.descriptors.push(next);
    }
    reserved.descriptors.insert(0, first);
}

/// Frees the numbers for the links of one device. The next descriptors that the process opens get them.
pub(crate) fn free_for_device() {
    free(OF_DEVICE);
}

/// Frees the numbers for one object that is about to be loaded.
pub(crate) fn free_for_object() {
    free(OF_OBJECT);
}

fn free(count: usize) {
    let mut reserved = lock();
    let rest = reserved.descriptors.len().saturating_sub(count);
    reserved.descriptors.truncate(rest);
}

fn lock() -> MutexGuard<'static, Reserved> {
    // Nothing that can panic runs with the lock held.
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner)
}
