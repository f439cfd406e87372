//! The translation of packets of one way.

use super::{
    position::{beyond, most},
    track::{COPYING, Track},
};
use crate::packet::segment::{Segment, flag};

/// [`Translation::flags`]: both legs have negotiated ECN (RFC 3168), so its marks have the same meaning on both.
pub const ECN: u32 = 1;

/// [`Translation::flags`]: the sender of these packets may not have received a packet of the receiver yet. It then
/// echoes older timestamps than the receiver has sent: see [`Translation::least_echo`].
pub const BEGINS: u32 = 2;

/// The translation of packets of one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// Destination of the forwarded packet, as in [`Tuple`](crate::packet::maps::Tuple).
    pub remote: [u32; 4],
    /// Source of the forwarded packet.
    pub local: [u32; 4],
    /// Source and destination port of the forwarded packet, in the order of the header.
    pub ports: u32,
    /// Index of the device that the packet leaves by.
    pub device: u32,
    /// Added to the sequence number.
    pub seq: u32,
    /// Added to the acknowledgement number and to the edges of selective acknowledgements.
    pub ack: u32,
    /// Added to the timestamp.
    pub stamp: u32,
    /// Added to the timestamp's echo.
    pub echo: u32,
    /// The window scale that the sender of these packets announced on its leg: 0 to 14.
    pub scale_from: u32,
    /// The window scale that was announced to their receiver on the other leg: 0 to 14.
    pub scale_to: u32,
    /// Sequence number, on the leg that the packets arrive on, of position 0 of this way.
    pub seq_start: u32,
    /// Acknowledgement number, on that leg, of position 0 of the other way.
    pub ack_start: u32,
    /// Bytes of the other way that the balancer's socket on the arrival leg still has to deliver.
    pub own: u32,
    /// The sequence number that this socket expects next. It has received all bytes before.
    pub expected: u32,
    /// With [`BEGINS`], the lower bound of a timestamp's echo: the receiver's timestamp when the flow began.
    ///
    /// The sender echoes a timestamp of the balancer's socket, which may be older than the receiver's connection. A
    /// kernel may compare the echo with its own SYN-ACK (Linux 6.18 does) until it has seen an acknowledgement of it.
    /// That comparison meets a packet of the flow if the last packet of the handshake is lost.
    pub least_echo: u32,
    /// [`ECN`], [`BEGINS`], both or nothing.
    pub flags: u32,
    /// Highest position of this way that the balancer's socket had ever allowed to the sender. The sender may send up
    /// to it, whatever the receiver allows later.
    pub granted: u32,
    /// Index of the arrival device that the balancer's socket knew when the flow began; 0 if it knew none.
    pub from: u32,
}

impl Translation {
    /// Whether a packet of one of the balancer's sockets is a probe: of whether the peer is there, or has room. Its
    /// number is one that the peer has acknowledged, and every TCP answers such a packet. `own` is the record of the
    /// peer's packets.
    #[inline(always)]
    #[must_use]
    pub const fn is_question(&self, own: &Track, segment: &Segment) -> bool {
        segment.is_empty() && beyond(segment.seq.wrapping_sub(self.ack_start), own.acked) < 0
    }

    /// Whether ECN marks have the same meaning on both legs.
    #[inline(always)]
    #[must_use]
    pub const fn has_ecn(&self) -> bool {
        self.flags & ECN != 0
    }

    /// The echo of a timestamp in the numbers of the other leg.
    #[inline(always)]
    #[must_use]
    pub const fn echoed(&self, echo: u32) -> u32 {
        let echo = echo.wrapping_add(self.echo);
        let is_too_old = self.flags & BEGINS != 0 && echo.wrapping_sub(self.least_echo).cast_signed() < 0;
        if is_too_old { self.least_echo } else { echo }
    }

    /// A window in the units of the other leg, rounded down: the receiver must have room for every byte that the window
    /// allows.
    #[inline(always)]
    #[must_use]
    pub const fn window(&self, window: u16) -> u16 {
        // Shifts are at most 14 (RFC 7323 section 2.3), so no high bit is lost.
        let scaled = ((window as u32) << (self.scale_from & 15)) >> (self.scale_to & 15);
        #[expect(clippy::cast_possible_truncation, reason = "clamped to what 16 bits hold")]
        let clamped = if scaled > 0xffff { 0xffff } else { scaled as u16 };
        clamped
    }

    /// The byte of the traffic class: ECN marks if both legs have negotiated ECN, else 0, as in the balancer's own
    /// packets.
    #[inline(always)]
    #[must_use]
    pub const fn traffic_class(&self, class: u8) -> u8 {
        if self.has_ecn() { class & 3 } else { 0 }
    }

    /// The inverse translation. Tests and ICMP errors need the packet as it arrived.
    #[inline(always)]
    #[must_use]
    pub const fn inverse(&self, remote: [u32; 4], local: [u32; 4], ports: u32) -> Self {
        Self {
            remote,
            local,
            ports,
            device: self.device,
            seq: self.seq.wrapping_neg(),
            ack: self.ack.wrapping_neg(),
            stamp: self.stamp.wrapping_neg(),
            echo: self.echo.wrapping_neg(),
            scale_from: self.scale_to,
            scale_to: self.scale_from,
            seq_start: self.seq_start.wrapping_add(self.seq),
            ack_start: self.ack_start.wrapping_add(self.ack),
            own: 0,
            expected: 0,
            least_echo: 0,
            flags: self.flags & ECN,
            granted: 0,
            from: 0,
        }
    }

    /// Whether packets of this way may arrive by `device`. Two devices are allowed in any case: the one by which the
    /// sender's packets arrived when the flow began, and the one by which packets to the sender leave now (that of
    /// `back`, the other way). If the host does not filter by reverse path (`is_strict`), any device is allowed but the
    /// one on the receiver's side: a packet from there is not the sender's.
    #[inline(always)]
    #[must_use]
    pub const fn comes_by(&self, back: &Self, device: u32, is_strict: bool) -> bool {
        device == self.from || device == back.device || !is_strict && device != self.device
    }

    /// Whether a part of the packet lies in the window, so that a receiver would accept it (RFC 9293 section 3.10.7.4).
    /// `other` is the record of the other way before the packet.
    ///
    /// The window begins at the receiver's acknowledgement. It ends at the position that the receiver or the balancer's
    /// socket has allowed. A packet that begins exactly at the end counts: receivers accept a FIN there (Linux,
    /// `tcp_data_queue`), and a window probe.
    #[inline(always)]
    #[must_use]
    pub const fn is_in_window(&self, other: &Track, segment: &Segment) -> bool {
        let start = segment.seq.wrapping_sub(self.seq_start);
        let end = start.wrapping_add(segment.len());
        beyond(end, other.acked) >= 0 && beyond(start, most(other.allowed, self.granted as u64)) <= 0
    }

    /// Whether the balancer's socket on the arrival leg needs this packet's acknowledgement. `own` is the record of the
    /// way before the packet.
    ///
    /// The program then sees a copy of the packet again ([`Track::copies`]). It identifies the copy by this record, not
    /// by anything that another program could change. An unidentified copy causes no endless loop: while a copy is
    /// expected, only a packet that acknowledges more than all before is copied.
    #[inline(always)]
    #[must_use]
    pub const fn is_for_us_too(&self, own: &Track, segment: &Segment) -> bool {
        let acknowledges = segment.flags & (flag::ACK | flag::SYN | flag::RST) == flag::ACK;
        let is_waited_for = own.acked < self.own as u64
            && (own.marks & COPYING == 0 || beyond(segment.ack.wrapping_sub(self.ack_start), own.acked) > 0);
        acknowledges && (is_waited_for || own.asked != 0)
    }

    /// Sequence and acknowledgement number of a probe to the other end, in the numbers of the arrival leg. The sequence
    /// number is one less than expected, as in a keepalive (RFC 9293 section 3.8.4), so the other end must answer. An
    /// end that no longer knows the connection answers with a valid reset. `own` and `other` are the records of the way
    /// and of the other way.
    #[inline(always)]
    #[must_use]
    pub const fn question(&self, own: &Track, other: &Track) -> (u32, u32) {
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
        let (sent, acked) = (own.without_hole(other.acked) as u32, own.acked as u32);
        (self.seq_start.wrapping_add(sent).wrapping_sub(1), self.ack_start.wrapping_add(acked))
    }

    /// Sequence and acknowledgement number of a packet for the balancer's socket. It carries no new data, and
    /// acknowledges no more than the socket has sent.
    #[inline(always)]
    #[must_use]
    pub const fn for_us(&self, ack: u32) -> (u32, u32) {
        let end = self.ack_start.wrapping_add(self.own);
        let is_more = ack.wrapping_sub(end).cast_signed() > 0;
        (self.expected, if is_more { end } else { ack })
    }
}
