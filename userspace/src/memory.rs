//! Memory that was needed once.

/// Gives the system back what the allocator keeps for the next time.
///
/// At the start, the kernel's types are read several times, tens of megabytes each. Without this, the process would keep
/// them for as long as nothing else asks for memory: 60 MB, of which it uses 4.
pub fn give_back() {
    // SAFETY: it may be called at any time, by any thread. Where mimalloc is not the allocator, it has nothing to give.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
