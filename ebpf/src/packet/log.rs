//! Rare events of flows, for the daemon's log. The level is set by the loader and is a constant for the verifier, so an
//! event that is not logged costs no instruction.

use aya_log_ebpf::{
    info,
    macro_support::{Level, level_enabled},
    warn,
};
use snisplice_common::packet::maps::Tuple;

/// A helper refused the packet's translation, so the packet was dropped.
pub(crate) const REFUSED: u32 = 0;
/// A reset is made for a flow: its sender's reset, or that of a process that has died.
pub(crate) const RESET: u32 = 1;

/// Logs an event of the flow with these packet addresses.
#[inline(always)]
pub(crate) fn log(event: u32, tuple: &Tuple) {
    let level = if event == RESET { Level::Info } else { Level::Warn };
    if level_enabled(level) {
        sni_log(event, tuple);
    }
}

/// A global function: the verifier follows it once for all callers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sni_log(event: u32, tuple: *const Tuple) -> u32 {
    // SAFETY: the caller passes a reference. The verifier knows only that the pointer is either null or valid.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else { return 0 };
    let (remote, local) = (address(&tuple.remote), address(&tuple.local));
    let (remote_port, local_port) = (u16::from_be(tuple.remote_port), u16::from_be(tuple.local_port));
    match event {
        REFUSED => warn!(
            (),
            "translation refused, packet dropped: peer [{:i}]:{} balancer [{:i}]:{}",
            remote,
            remote_port,
            local,
            local_port
        ),
        _ => info!(
            (),
            "reset made for a flow: peer [{:i}]:{} balancer [{:i}]:{}",
            remote,
            remote_port,
            local,
            local_port
        ),
    }
    0
}

/// An address in the logger's form. An IPv4 address stays mapped into IPv6.
#[inline(always)]
fn address(words: &[u32; 4]) -> [u8; 16] {
    // SAFETY: both are 16 bytes, in network order.
    unsafe { core::mem::transmute_copy(words) }
}
