//! The decision on packets that the balancer's sockets send on a leg of a flow.

use super::{
    CARRY, HOLD, KEPT, OVER, RESET,
    position::{beyond, least, most},
    track::{BYPASSED, Track},
    translation::{BEGINS, Translation},
};
use crate::packet::segment::{Segment, flag};

/// The decision on a packet that one of the balancer's sockets sends on a leg of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressAction {
    /// The packet passes unchanged.
    Pass,
    /// The packet passes, and the flow is forgotten: a new connection begins.
    Forget,
    /// The packet passes with these numbers.
    Rewrite {
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
    },
    /// The packet is dropped: it would confuse the peer.
    Drop,
    /// The packet is dropped. For the first time, it answers a packet that bypassed the programs.
    Bypassed,
}

/// Decides on a packet that one of the balancer's sockets sends on the leg on which packets of `way` arrive.
///
/// `own` is the record of that way. `other` is the record of the other way, whose stream the packet belongs to.
#[inline(always)]
#[must_use]
pub const fn decide_egress(
    mode: u32,
    way: &Translation,
    own: &mut Track,
    other: &mut Track,
    segment: &Segment,
) -> EgressAction {
    match mode {
        CARRY | KEPT => {
            // The process has died, and the flow continues.
            if mode == KEPT && segment.flags & (flag::RST | flag::FIN) != 0 {
                return EgressAction::Drop;
            }
            // The process has died, and the flow with it. Both ends must learn that.
            if segment.has(flag::RST) {
                return renumbered(way, own, other);
            }
            if segment.has(flag::SYN) {
                return EgressAction::Drop;
            }
            if segment.is_empty() {
                // The acknowledgement covers everything that the socket has sent. An idle socket sends it only in
                // response to a packet.
                let position = segment.seq.wrapping_sub(way.ack_start);
                if way.flags & BEGINS == 0 && position.wrapping_sub(way.own).cast_signed() >= 0 {
                    if own.marks & BYPASSED != 0 {
                        return EgressAction::Drop;
                    }
                    own.marks |= BYPASSED;
                    return EgressAction::Bypassed;
                }
                // The socket needs the peer's reply.
                if way.is_question(own, segment) {
                    own.asked = 1;
                    return EgressAction::Pass;
                }
                return EgressAction::Drop;
            }
            // The bytes that userspace wrote must arrive, however many retransmissions that takes. If they have
            // arrived, the socket missed the acknowledgement, and needs the peer's reply to this retransmission.
            let start = segment.seq.wrapping_sub(way.ack_start);
            let end = start.wrapping_add(segment.len());
            if beyond(end, own.acked) <= 0 {
                own.asked = 1;
            }
            other.extend(own.acked, start, end);
            not_too_old(way, other, segment)
        }
        HOLD => {
            if segment.has(flag::RST) {
                renumbered(way, own, other)
            } else if way.is_question(own, segment) {
                // Userspace probes the peer's position. The reply is recorded like any other packet.
                EgressAction::Pass
            } else {
                EgressAction::Drop
            }
        }
        RESET => {
            match segment.flags & (flag::RST | flag::ACK) {
                // The stack answers a packet of the peer with the peer's own acknowledgement number (RFC 9293 section
                // 3.10.7.1), which is the best number there is.
                flag::RST => EgressAction::Pass,
                flag::RESETS => renumbered(way, own, other),
                _ => EgressAction::Drop,
            }
        }
        OVER => {
            if segment.has(flag::SYN) && !segment.has(flag::ACK) {
                EgressAction::Forget
            } else {
                EgressAction::Drop
            }
        }
        _ => EgressAction::Pass,
    }
}

/// Passes a packet with bytes that userspace wrote, with an acknowledgement number that the peer accepts. A peer
/// discards a packet whose acknowledgement is older than the largest window ever announced to it (RFC 5961 section
/// 5.2). The balancer's socket does not see acknowledgements that go from end to end, so its number may be too old. The
/// new number is the other end's acknowledgement minus 1. It conveys no new data and no new window.
#[inline(always)]
const fn not_too_old(way: &Translation, other: &Track, segment: &Segment) -> EgressAction {
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
    let ack = way.seq_start.wrapping_add(other.acked as u32).wrapping_sub(1);
    if ack.wrapping_sub(segment.ack).cast_signed() > 0 {
        EgressAction::Rewrite { seq: segment.seq, ack }
    } else {
        EgressAction::Pass
    }
}

/// A reset to the sender of `way`, with the number that it expects: behind everything that was sent to it without a
/// hole, and before the reset on the same path. The number is never behind the peer's window, where the peer would
/// ignore it. If bytes were lost, the peer sends a challenge ACK. The kernel, which no longer knows the connection,
/// answers with the right number (RFC 5961 section 3.2).
#[inline(always)]
const fn renumbered(way: &Translation, own: &Track, other: &Track) -> EgressAction {
    let to = least(other.without_hole(own.acked), most(own.allowed, own.acked));
    let from = own.without_hole(other.acked);
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
    let (to, from) = (to as u32, from as u32);
    EgressAction::Rewrite { seq: way.ack_start.wrapping_add(to), ack: way.seq_start.wrapping_add(from) }
}
