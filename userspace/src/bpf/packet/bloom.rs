//! The counting Bloom filter over the tuples of flows. Userspace updates the counters, and the programs read them.
//!
//! Every packet of the host reaches the programs. The filter costs two reads for most packets of other connections.
//! Without it, each packet costs a copy of its headers and a lookup in a hash map. A counter that is too high costs
//! time only. A counter that is too low would exclude a flow's packets. So userspace counts a tuple before it enters
//! the map, and until it has left the map. A killed process may leave counts that no process removes.

use std::{
    fmt, io,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use snisplice_common::packet::maps::{BLOOM, Tuple};

const BYTES: usize = BLOOM * size_of::<AtomicU64>();

/// The filter's counters, in memory that this process shares with the kernel and with the next process (takeover).
pub struct Bloom(NonNull<AtomicU64>);

// SAFETY: the mapping belongs to no thread, and it is accessed by atomic operations only.
unsafe impl Send for Bloom {}
// SAFETY: as above.
unsafe impl Sync for Bloom {}

impl Bloom {
    /// Maps the counters of `SNI_BLOOM` (`BPF_F_MMAPABLE`, Linux 5.5).
    pub(super) fn of(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: the kernel chooses an address where nothing is.
        let memory = unsafe {
            mmap(std::ptr::null_mut(), BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0)
        }?;
        NonNull::new(memory.cast()).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn counter(&self, tuple: &Tuple) -> &AtomicU64 {
        // SAFETY: the index of a place is below the number of counters in the mapping, which lives as long as this
        // value.
        unsafe { self.0.add(tuple.bloom_place()).as_ref() }
    }

    /// Counts a tuple for a flow. Call it before the tuple is in `SNI_TUPLES`.
    pub fn add(&self, tuple: &Tuple) {
        self.counter(tuple).fetch_add(1, SeqCst);
    }

    /// Removes a tuple of a flow from the counters. Call it once the tuple is removed from `SNI_TUPLES`.
    pub fn remove(&self, tuple: &Tuple) {
        // An unbalanced call must not wrap around: the next tuple would bring the counter to zero.
        let _ = self.counter(tuple).fetch_update(SeqCst, SeqCst, |count| count.checked_sub(1));
    }
}

impl Drop for Bloom {
    fn drop(&mut self) {
        // SAFETY: no reference into the mapping exists any more. An error would mean that there is no such mapping.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), BYTES) };
    }
}

impl fmt::Debug for Bloom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bloom")
    }
}
