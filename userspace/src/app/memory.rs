//! Memory that is needed once.

use std::{
    ffi::{c_int, c_long},
    sync::{Mutex, PoisonError},
};

/// Gives the system back what the allocator keeps for the next time.
///
/// At the start, the kernel's types are read several times, tens of megabytes each. Without this, the process would keep
/// them for as long as nothing else asks for memory: 60 MB, of which it uses 4.
pub fn give_back() {
    // SAFETY: it may be called at any time, by any thread. Where mimalloc is not the allocator, it has nothing to give.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// `mi_option_purge_delay`, for which the bindings have no name: milliseconds until a freed page goes back to the system.
const PURGE_DELAY: c_int = 15;

/// How many of [`Thrift`] there are, and what the option was before the first.
static THRIFT: Mutex<(usize, c_long)> = Mutex::new((0, 0));

/// While one exists, freed pages go back to the system at once. For phases that want much memory for a moment; in service,
/// the delay saves system calls.
#[derive(Debug)]
pub struct Thrift(());

impl Thrift {
    /// From now on.
    #[must_use]
    pub fn begin() -> Self {
        let mut thrift = THRIFT.lock().unwrap_or_else(PoisonError::into_inner);
        if thrift.0 == 0 {
            // SAFETY: options may be read and set at any time, by any thread; the number is that of an option.
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
