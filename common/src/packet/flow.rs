//! A flow: the rules that userspace sets, the state that the kernel records, and the decisions that follow from both.
//!
//! Positions count bytes from the begin of the flow, in 64 bits, and are the same on both legs. Position 0 of a way is
//! the first byte that the receiver had not acknowledged to the balancer's socket at that moment. Sequence numbers
//! belong to one leg.
//!
//! The first bytes of a way are still the balancer's sockets' to deliver: bytes that one socket had received, and bytes
//! that the other had sent without an acknowledgement. All later bytes go from end to end. Each byte has one number, so
//! either sender may send it. A flow can therefore begin at any moment, and the balancer's sockets become idle without
//! further steps.
//!
//! The functions are pure. The programs call them with values from the packet and the maps. The recorded state never
//! changes the translation of a packet. A packet without a part in the window changes no state (RFC 9293 section
//! 3.10.7.4), because its receiver discards it. A forged packet in the window leaves a hole in the stream. Bytes behind
//! a hole never count as the next ones that the receiver expects.

use super::segment::TCP_BYTES;

mod egress;
mod position;
mod track;
mod translation;

pub(super) use self::position::beyond;
pub use self::{
    egress::{EgressAction, decide_egress},
    track::{BYPASSED, COPYING, MAY_BE_RESET, Track, WAS_RESET},
    translation::{BEGINS, ECN, Translation},
};

/// [`Rules::mode`]: nothing is forwarded. Packets of both legs belong to the balancer's sockets, and are counted. A new
/// entry starts in this mode.
pub const OFF: u32 = 0;
/// [`Rules::mode`]: packets are forwarded, and the balancer's sockets send nothing.
pub const CARRY: u32 = 1;
/// [`Rules::mode`]: the flow ends with resets. The resets of the balancer's sockets pass with numbers that the peers
/// accept.
pub const RESET: u32 = 2;
/// [`Rules::mode`]: both ends are done. Late packets are still forwarded. A new connection with the same addresses ends
/// this mode.
pub const OVER: u32 = 3;
/// [`Rules::mode`]: as [`CARRY`], for a flow that outlives the process. The balancer's sockets have nothing left to
/// deliver, and the packets that they send at their end are dropped.
pub const KEPT: u32 = 4;

/// [`Rules::mode`]: packets are recorded and not forwarded, while other sockets replace the balancer's sockets. These
/// sockets may probe the peers.
pub const HOLD: u32 = 5;

/// Whether packets are forwarded and the flow continues.
#[inline(always)]
#[must_use]
pub const fn is_carried(mode: u32) -> bool {
    matches!(mode, CARRY | KEPT)
}

/// The rules that userspace sets for a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rules {
    /// Userspace's identifier of the flow, repeated in each event.
    pub token: u64,
    /// [`OFF`], [`CARRY`], [`RESET`], [`OVER`], [`KEPT`] or [`HOLD`].
    pub mode: u32,
    /// Zero.
    pub reserved: u32,
    /// Up and down.
    pub ways: [Translation; 2],
}

const _: () = assert!(size_of::<Rules>() == 208, "Rules has padding");

/// The lock that a program holds while it changes a [`State`]. The kernel requires this name, and keeps the value to
/// itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct bpf_spin_lock {
    val: u32,
}

/// The state of a flow that the kernel records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// Up and down.
    pub ways: [Track; 2],
    /// Several CPUs may record packets of one flow at once. The peers do not repeat the last packets of a connection,
    /// so no update may be lost.
    pub lock: bpf_spin_lock,
    /// Packets of both ways that could not be forwarded. Updates by several CPUs at once may be lost.
    pub failed: u32,
    /// The last timestamp of each way as its receiver saw it. Updates by several CPUs at once may be lost. 0 if no
    /// timestamp was seen at the usual place ([`stamp`]).
    pub stamps: [u32; 2],
}

const _: () = assert!(size_of::<State>() == 176, "State has padding");

/// The stage of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// At least one end has more to send or to acknowledge.
    Open,
    /// Both ends have sent FIN and acknowledged everything.
    Finished,
    /// The sender of this way has reset the flow.
    Reset(usize),
}

impl State {
    /// A flow whose balancer's sockets still have to send `pending` bytes on each way. The receivers have allowed
    /// `allowed` bytes.
    #[must_use]
    pub fn new(pending: [u64; 2], allowed: [u64; 2]) -> Self {
        let track = |own: usize, other: usize| Track {
            sent: pending[own],
            allowed: allowed[other],
            ..Track::default()
        };
        Self { ways: [track(0, 1), track(1, 0)], ..Self::default() }
    }

    /// The stage of the flow.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        let [up, down] = &self.ways;
        if up.is_finished(down) {
            return Standing::Finished;
        }
        // The first of two resets is the cause. A reset that may have counted came before the one that did.
        let resets = [up.marks & WAS_RESET != 0, down.marks & WAS_RESET != 0];
        match resets {
            [true, _] => Standing::Reset((down.marks & MAY_BE_RESET != 0) as usize),
            [_, true] => Standing::Reset((up.marks & MAY_BE_RESET == 0) as usize),
            _ => Standing::Open,
        }
    }

    /// Bytes of a way that its receiver has acknowledged since the flow began. A FIN does not count.
    #[must_use]
    pub const fn delivered(&self, way: usize) -> u64 {
        let (own, other) =
            if way == 0 { (&self.ways[0], &self.ways[1]) } else { (&self.ways[1], &self.ways[0]) };
        other.acked - own.is_done(other) as u64
    }

    /// A value that changes whenever a byte is sent for the first time or acknowledged.
    #[must_use]
    pub const fn progress(&self) -> (u64, u64) {
        let [up, down] = &self.ways;
        (up.sent + up.acked, down.sent + down.acked)
    }
}

/// The timestamp of a TCP header of `length` bytes, if it is at the usual place: first, behind two bytes of padding
/// (RFC 7323 appendix A).
#[inline(always)]
#[must_use]
pub const fn stamp(tcp: &[u8; TCP_BYTES], length: usize) -> Option<u32> {
    let is_there = length >= 32 && tcp[20] == 1 && tcp[21] == 1 && tcp[22] == 8 && tcp[23] == 10;
    if is_there { Some(u32::from_be_bytes([tcp[24], tcp[25], tcp[26], tcp[27]])) } else { None }
}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Rules {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for State {}

#[cfg(test)]
mod tests;
