//! The record of the packets of one way.

use super::{
    position::{advanced, beyond, most},
    translation::Translation,
};
use crate::packet::{
    maps::{END, FIN, FIRST},
    segment::{Segment, flag},
};

/// [`Track::marks`]: the sender has reset the connection.
pub const WAS_RESET: u32 = 1;

/// [`Track::marks`]: the sender sent a reset with a number that the receiver may have expected.
pub const MAY_BE_RESET: u32 = 2;

/// [`Track::marks`]: a copy of a packet of this way is on its way to the balancer's socket. The program will see the
/// copy again.
pub const COPYING: u32 = 4;

/// [`Track::marks`]: the balancer's socket on the leg that these packets arrive on has answered a packet that bypassed
/// the programs.
pub const BYPASSED: u32 = 8;

/// The record of the packets of one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Track {
    /// Packets (after GRO) so far.
    pub packets: u64,
    /// Bytes of payload in them, retransmissions included.
    pub bytes: u64,
    /// The time of the last packet, in nanoseconds of the kernel's monotonic clock, with the resolution of a tick.
    pub last_seen: u64,
    /// Position after the last byte sent on this way.
    pub sent: u64,
    /// Position on the *other* way that the sender of these packets has acknowledged.
    pub acked: u64,
    /// Highest position on the *other* way that the sender of these packets has ever allowed.
    pub allowed: u64,
    /// Position after the FIN of this way; 0 while there is none.
    pub fin: u64,
    /// [`WAS_RESET`], [`MAY_BE_RESET`], [`COPYING`], [`BYPASSED`], several or nothing.
    pub marks: u32,
    /// Not 0 while the balancer's socket waits for a reply of the sender of these packets to a probe.
    pub asked: u32,
    /// Bytes before `sent` and behind the first missing byte. The missing bytes were lost, were overtaken on their way
    /// here, or were never sent by the sender.
    pub behind_hole: u32,
    /// With [`COPYING`], the sequence number of the packet that was copied.
    pub copied_seq: u32,
    /// With [`COPYING`], its acknowledgement number.
    pub copied_ack: u32,
    /// With [`COPYING`], its length in the sequence space.
    pub copied_len: u32,
}

impl Track {
    /// Whether a packet is the expected copy for the balancer's socket. The copy is not forwarded again, and no copy is
    /// expected afterwards.
    ///
    /// A retransmission may be mistaken for the copy, and the copy for the retransmission. Both have the same effect.
    #[inline(always)]
    pub const fn is_copy(&mut self, segment: &Segment) -> bool {
        let is_copy = self.marks & COPYING != 0
            && segment.flags & (flag::ACK | flag::SYN | flag::RST) == flag::ACK
            && segment.seq == self.copied_seq
            && segment.ack == self.copied_ack
            && segment.len() == self.copied_len;
        if is_copy {
            self.marks &= !COPYING;
        }
        is_copy
    }

    /// Records that a packet of this way is copied for the balancer's socket.
    #[inline(always)]
    pub const fn copies(&mut self, segment: &Segment) {
        self.marks |= COPYING;
        self.copied_seq = segment.seq;
        self.copied_ack = segment.ack;
        self.copied_len = segment.len();
        self.asked = 0;
    }

    /// Records a packet of this way. Returns the events for userspace: [`FIRST`], [`FIN`] and [`END`], each of them
    /// once. Returns 0 if the packet is not in the window.
    #[inline(always)]
    pub const fn note(&mut self, other: &Self, way: &Translation, segment: &Segment, now: u64) -> u32 {
        if !way.is_in_window(other, segment) {
            return 0;
        }
        let ended_before = self.has_ended(other);
        let reset_before = self.marks & WAS_RESET != 0;
        let fin_before = self.fin;
        let first = if self.packets == 0 { FIRST } else { 0 };
        self.packets += 1;
        self.bytes += segment.payload as u64;
        self.last_seen = now;
        if segment.has(flag::RST) {
            // The receiver judges a reset by the same rule (RFC 5961 section 3). It expects the number that it has
            // acknowledged, or everything that was sent if it has not acknowledged that yet.
            let at = segment.seq.wrapping_sub(way.seq_start);
            if other.marks & WAS_RESET != 0 {
                // An end that has reset answers late packets with resets. These are no new event.
            } else if beyond(at, other.acked) == 0 || beyond(at, self.without_hole(other.acked)) == 0 {
                self.marks |= WAS_RESET;
            } else if beyond(at, other.acked) > 0 {
                // Packets before the reset, or the receiver's acknowledgement, took another path or were lost. The
                // receiver's own reset will decide.
                self.marks |= MAY_BE_RESET;
            }
            if reset_before || self.marks & WAS_RESET == 0 {
                return first;
            }
        }
        // A reset carries its sender's last acknowledgement.
        if segment.has(flag::ACK) {
            self.note_ack(other, way, segment);
        }
        if !segment.has(flag::RST) && !segment.is_empty() {
            self.note_data(other, way, segment);
        }
        let fin = if fin_before == 0 && self.fin != 0 { FIN } else { 0 };
        // Late packets find the flow ended, and must not wake userspace again. After a lost event, userspace checks all
        // flows.
        let end = if !ended_before && self.has_ended(other) { END } else { 0 };
        first | fin | end
    }

    #[inline(always)]
    const fn note_ack(&mut self, other: &Self, way: &Translation, segment: &Segment) {
        let ahead = beyond(segment.ack.wrapping_sub(way.ack_start), self.acked);
        let acked = advanced(self.acked, ahead);
        // An acknowledgement of bytes that were never sent is invalid. The other end ignores it, too.
        if acked > other.sent {
            return;
        }
        self.acked = acked;
        let window = (segment.window as u64) << (way.scale_from & 15);
        if ahead >= 0 && acked + window > self.allowed {
            self.allowed = acked + window;
        }
    }

    #[inline(always)]
    const fn note_data(&mut self, other: &Self, way: &Translation, segment: &Segment) {
        let start = segment.seq.wrapping_sub(way.seq_start);
        let end = start.wrapping_add(segment.len());
        self.extend(other.acked, start, end);
        if segment.has(flag::FIN) {
            // The segment is in the window, so its position is not before the acknowledged one.
            self.note_fin(other.acked, advanced(other.acked, beyond(end, other.acked)));
        }
    }

    /// Records a FIN. The earlier one of two FINs counts, because the sender sends nothing behind the real one. A FIN
    /// is refuted if the receiver acknowledges more. A FIN whose end the receiver has already acknowledged counts only
    /// if it refutes the former one.
    #[inline(always)]
    const fn note_fin(&mut self, acked: u64, end: u64) {
        let is_first = end > acked && (self.fin == 0 || end < self.fin);
        let was_none = self.fin != 0 && self.fin < acked;
        if is_first || was_none {
            self.fin = end;
        }
    }

    /// Records bytes between two positions of this way. `acked` is the position that the receiver has acknowledged.
    #[inline(always)]
    pub(super) const fn extend(&mut self, acked: u64, start: u32, end: u32) {
        let mut whole = self.without_hole(acked);
        if beyond(start, whole) <= 0 {
            whole = advanced(whole, beyond(end, whole));
        }
        self.sent = advanced(self.sent, beyond(end, self.sent));
        let behind = self.sent.saturating_sub(whole);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "less than that is under way (RFC 7323 section 2.3)"
        )]
        let behind = behind as u32;
        self.behind_hole = behind;
    }

    /// The position on this way before which no byte is missing. The receiver expects this position if all packets have
    /// arrived. `acked` is the position that it has acknowledged.
    #[inline(always)]
    #[must_use]
    pub const fn without_hole(&self, acked: u64) -> u64 {
        most(self.sent.saturating_sub(self.behind_hole as u64), acked)
    }

    /// Whether the sender of these packets has acknowledged the other way up to `position`, modulo 2^32.
    #[must_use]
    pub const fn has_acked(&self, position: u32) -> bool {
        beyond(position, self.acked) <= 0
    }

    /// Whether the flow has ended: it is finished, or one end has reset it.
    #[inline(always)]
    #[must_use]
    pub const fn has_ended(&self, other: &Self) -> bool {
        (self.marks | other.marks) & WAS_RESET != 0 || self.is_finished(other)
    }

    /// Whether the other end has acknowledged this way's FIN and everything before. No acknowledged byte lies behind a
    /// FIN.
    #[inline(always)]
    #[must_use]
    pub(super) const fn is_done(&self, other: &Self) -> bool {
        self.fin != 0 && other.acked == self.fin
    }

    /// Whether both ways are done.
    #[inline(always)]
    #[must_use]
    pub(super) const fn is_finished(&self, other: &Self) -> bool {
        self.is_done(other) && other.is_done(self)
    }
}
