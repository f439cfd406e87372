//! Memory that is needed for a short time only.

use std::{
    ffi::{c_int, c_long},
    sync::{Mutex, PoisonError},
};

/// Returns the allocator's free memory to the system.
///
/// At the start, the kernel's types (BTF) are read several times, tens of megabytes each. Without this call, the
/// process would hold 60 MB until its next large allocation, and use 4 MB.
pub fn give_back() {
    // SAFETY: any thread may call it at any time. If mimalloc is not the allocator, it has nothing to free.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// `mi_option_purge_delay`, which the bindings do not name: milliseconds until a freed page returns to the system.
const PURGE_DELAY: c_int = 15;

/// The number of [`Thrift`] values, and the option's value before the first one.
static THRIFT: Mutex<(usize, c_long)> = Mutex::new((0, 0));

/// While a value exists, freed pages return to the system at once. For phases that need much memory for a short time.
/// In service, the delay saves system calls.
#[derive(Debug)]
pub struct Thrift(());

impl Thrift {
    /// Begins such a phase.
    #[must_use]
    pub fn begin() -> Self {
        let mut thrift = THRIFT.lock().unwrap_or_else(PoisonError::into_inner);
        if thrift.0 == 0 {
            // SAFETY: any thread may read and set options at any time. The number is that of an option.
            thrift.1 = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
            // SAFETY: as above.
            unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) };
        }
        thrift.0 += 1;
        Self(())
    }
}

impl Drop for Thrift {
    fn drop(&mut self) {
        give_back();
        let mut thrift = THRIFT.lock().unwrap_or_else(PoisonError::into_inner);
        thrift.0 = thrift.0.saturating_sub(1);
        if thrift.0 == 0 {
            // SAFETY: as in `begin`.
            unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, thrift.1) };
        }
    }
}
