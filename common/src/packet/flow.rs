//! A flow: what userspace decides about it, what the kernel has seen of it, and what follows from both.
//!
//! Positions are counted from where the flow began, in 64 bits, the same for both legs: position 0 of a way is the
//! first byte that the receiver had not acknowledged to our own socket then. Sequence numbers are those of one leg.
//!
//! What comes first on a way is still for our own sockets to deliver: what the one had received, and what the other had
//! sent and not yet heard of. All later bytes go from end to end. It does not matter who sends a byte, since it has one
//! number; so a flow can begin at any moment, and our own sockets come to rest by themselves.
//!
//! The functions are pure; the programs call them with what they read from the packet and the maps. Nothing that is
//! noted here changes how a packet is translated. What a receiver would throw away is not noted: a packet with no part in the
//! window (RFC 9293 section 3.10.7.4) changes nothing. A forged packet in the window leaves a hole in the stream, and what lies
//! behind a hole is never taken for what the receiver expects.

use super::{
    maps::{END, FIN, FIRST},
    segment::{Segment, TCP_BYTES, flag},
};

/// [`Rules::mode`]: nothing is carried; packets of both legs belong to our own sockets, and are counted. A new entry
/// starts so.
pub const OFF: u32 = 0;
/// [`Rules::mode`]: packets are sent on, and our own sockets are kept quiet.
pub const CARRY: u32 = 1;
/// [`Rules::mode`]: the flow is being torn down: our own sockets' resets pass with numbers that the peers accept.
pub const RESET: u32 = 2;
/// [`Rules::mode`]: both ends are done. Late packets are still sent on; a new connection of the same addresses ends
/// that.
pub const OVER: u32 = 3;
/// [`Rules::mode`]: as [`CARRY`], for a flow that outlives the process: our own sockets have nothing left to deliver, and
/// what they say when they die is dropped.
pub const KEPT: u32 = 4;

/// [`Rules::mode`]: packets are noted and not sent on, for the moment in which other sockets take the places of our own. These
/// may ask where the peers stand.
pub const HOLD: u32 = 5;

/// Whether packets are sent on and the flow goes on.
#[inline(always)]
#[must_use]
pub const fn is_carried(mode: u32) -> bool {
    matches!(mode, CARRY | KEPT)
}

/// [`Translation::flags`]: both legs have negotiated ECN (RFC 3168), so its marks mean the same on both.
pub const ECN: u32 = 1;
/// [`Translation::flags`]: the sender of these packets may not have heard of the receiver yet, and echoes older times than the
/// receiver has told: see [`Translation::least_echo`].
pub const BEGINS: u32 = 2;

/// How packets of one way are translated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// Destination of what is sent on, as in [`super::maps::Tuple`].
    pub remote: [u32; 4],
    /// Source of what is sent on.
    pub local: [u32; 4],
    /// Source and destination port of what is sent on, as they lie in the header.
    pub ports: u32,
    /// Index of the device that it is sent on.
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
    /// Bytes of the other way that our own socket on the leg that the packets arrive on has to deliver.
    pub own: u32,
    /// The sequence number that this socket expects next: it has received what comes before.
    pub expected: u32,
    /// With [`BEGINS`], what a timestamp's echo is at least: what the receiver had told when the flow began.
    ///
    /// The sender echoes what our own socket had told it, maybe long before the receiver's connection was there. A kernel may
    /// compare that with its own answer to the SYN (Linux 6.18 does), for as long as it has not heard that this has arrived:
    /// the last packet of the handshake may be lost, and one of the flow be what it hears of first.
    pub least_echo: u32,
    /// [`ECN`], [`BEGINS`], both or nothing.
    pub flags: u32,
    /// Position of this way up to which our own socket had ever allowed the sender to send. The sender may do so, whatever
    /// the receiver has allowed since.
    pub granted: u32,
    /// Index of the device that the packets come in by, as far as our own socket knew when the flow began; 0 if it did not.
    pub from: u32,
}

/// What userspace decides about a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rules {
    /// Userspace's name of the flow, echoed in each event.
    pub token: u64,
    /// [`OFF`], [`CARRY`], [`RESET`], [`OVER`], [`KEPT`] or [`HOLD`].
    pub mode: u32,
    /// Zero.
    pub reserved: u32,
    /// Up and down.
    pub ways: [Translation; 2],
}

const _: () = assert!(size_of::<Rules>() == 208, "Rules has padding");

/// [`Track::marks`]: the sender has reset the connection.
pub const WAS_RESET: u32 = 1;
/// [`Track::marks`]: a reset of the sender's had a number that the receiver may have expected.
pub const MAY_BE_RESET: u32 = 2;
/// [`Track::marks`]: a copy of a packet of this way is on its way to our own socket, and will come by the program once more.
pub const COPYING: u32 = 4;

/// [`Track::marks`]: our own socket on the leg that these packets arrive on has answered something that came to it past the
/// programs.
pub const BYPASSED: u32 = 8;

/// What was seen of the packets of one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Track {
    /// Packets (after GRO) so far.
    pub packets: u64,
    /// Bytes of payload in them, retransmissions included.
    pub bytes: u64,
    /// When the last one came: nanoseconds of the kernel's monotonic clock, give or take a tick.
    pub last_seen: u64,
    /// Position after the last byte sent on this way.
    pub sent: u64,
    /// Position on the *other* way that the sender of these packets has acknowledged.
    pub acked: u64,
    /// Position on the *other* way up to which the sender of these packets has ever allowed to send.
    pub allowed: u64,
    /// Position after the FIN of this way; 0 while there is none.
    pub fin: u64,
    /// [`WAS_RESET`], [`MAY_BE_RESET`], [`COPYING`], [`BYPASSED`], several or nothing.
    pub marks: u32,
    /// Not 0 while our own socket waits to hear whether the sender of these packets is still there.
    pub asked: u32,
    /// Bytes before `sent` behind the first that is missing: they were lost or overtook others on their way here, or were never
    /// sent by the sender.
    pub behind_hole: u32,
    /// With [`COPYING`], the sequence number of the packet that was copied.
    pub copied_seq: u32,
    /// With [`COPYING`], its acknowledgement number.
    pub copied_ack: u32,
    /// With [`COPYING`], what it takes of the sequence space.
    pub copied_len: u32,
}

/// What a program holds while it changes a [`State`]. The kernel knows it by this very name, and keeps its value to
/// itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct bpf_spin_lock {
    val: u32,
}

/// What the kernel has seen of a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// Up and down.
    pub ways: [Track; 2],
    /// Packets may come on several CPUs at once, and what was lost of a connection's last ones nobody says again.
    pub lock: bpf_spin_lock,
    /// Packets of either way that could not be sent on, give or take some that came at once.
    pub failed: u32,
    /// The last timestamps of either way as their receivers saw them, give or take some that came at once; 0 while none was
    /// seen where nearly all put it ([`stamp`]).
    pub stamps: [u32; 2],
}

const _: () = assert!(size_of::<State>() == 176, "State has padding");

/// How a flow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// At least one end has more to say, or to acknowledge.
    Open,
    /// Both have sent FIN and acknowledged all.
    Finished,
    /// The sender of this way has reset it.
    Reset(usize),
}

/// What becomes of a packet that one of our own sockets sends on a leg of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressAction {
    /// It goes out as it is.
    Pass,
    /// It goes out, and the flow is forgotten: a new connection begins.
    Forget,
    /// It goes out with these numbers.
    Rewrite {
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
    },
    /// It would confuse the peer.
    Drop,
    /// As [`EgressAction::Drop`]; and it answers something that the socket should never have got, for the first time.
    Bypassed,
}

impl Translation {
    /// Whether one of our own sockets asks with this packet whether the peer is there, or has room: its number is one that the
    /// peer has acknowledged, and any socket answers such a packet. `own` is what the peer has sent.
    #[inline(always)]
    #[must_use]
    pub const fn is_question(&self, own: &Track, segment: &Segment) -> bool {
        segment.is_empty() && beyond(segment.seq.wrapping_sub(self.ack_start), own.acked) < 0
    }

    /// Whether the marks of ECN mean the same on both legs.
    #[inline(always)]
    #[must_use]
    pub const fn has_ecn(&self) -> bool {
        self.flags & ECN != 0
    }

    /// The echo of a timestamp as the other leg has it.
    #[inline(always)]
    #[must_use]
    pub const fn echoed(&self, echo: u32) -> u32 {
        let echo = echo.wrapping_add(self.echo);
        let is_too_old = self.flags & BEGINS != 0 && echo.wrapping_sub(self.least_echo).cast_signed() < 0;
        if is_too_old { self.least_echo } else { echo }
    }

    /// A window in the units of the other leg. Rounded down: nobody may send more than the receiver has room for.
    #[inline(always)]
    #[must_use]
    pub const fn window(&self, window: u16) -> u16 {
        // Shifts are at most 14 (RFC 7323 section 2.3), so nothing is lost at the top.
        let scaled = ((window as u32) << (self.scale_from & 15)) >> (self.scale_to & 15);
        #[expect(clippy::cast_possible_truncation, reason = "clamped to what 16 bits hold")]
        let clamped = if scaled > 0xffff { 0xffff } else { scaled as u16 };
        clamped
    }

    /// The byte with the class of service: the marks of ECN where they mean something, else nothing, as the
    /// balancer's own sockets would send it.
    #[inline(always)]
    #[must_use]
    pub const fn traffic_class(&self, class: u8) -> u8 {
        if self.has_ecn() { class & 3 } else { 0 }
    }

    /// The way that undoes this one. For tests, and for who wants to know how a translated packet looked before.
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

    /// Whether packets of this way may come in by a device: by the one that the sender's packets came by when the flow began, or
    /// that packets to the sender go out on at present, which is that of `back`, the other way. Where the host does not look
    /// at that itself, any other will do but the one on the receiver's side: whoever sends there is not the sender.
    #[inline(always)]
    #[must_use]
    pub const fn comes_by(&self, back: &Self, device: u32, is_strict: bool) -> bool {
        device == self.from || device == back.device || !is_strict && device != self.device
    }

    /// Whether a receiver would look at a packet of this way, because a part of it lies in the window (RFC 9293
    /// section 3.10.7.4). `other` is what was seen of the other way before it.
    ///
    /// The window begins where the receiver has acknowledged to, and ends where it allows to send, or where our own socket
    /// did. A packet that begins right at the end counts, since receivers take a FIN there (Linux, `tcp_data_queue`) and the
    /// byte that asks whether there is room.
    #[inline(always)]
    #[must_use]
    pub const fn is_in_window(&self, other: &Track, segment: &Segment) -> bool {
        let start = segment.seq.wrapping_sub(self.seq_start);
        let end = start.wrapping_add(segment.len());
        beyond(end, other.acked) >= 0 && beyond(start, most(other.allowed, self.granted as u64)) <= 0
    }

    /// Whether our own socket on the leg that the packets arrive on has to hear what this one acknowledges. `own` is
    /// what was seen of the way before it.
    ///
    /// It comes by the program again then ([`Track::copies`]). Which one is the copy is known by what is noted here, and not by
    /// anything that another program could change on the way; should it not be known again, nothing goes round for ever: while
    /// a copy is under way, only what acknowledges more than any packet before is copied.
    #[inline(always)]
    #[must_use]
    pub const fn is_for_us_too(&self, own: &Track, segment: &Segment) -> bool {
        let acknowledges = segment.flags & (flag::ACK | flag::SYN | flag::RST) == flag::ACK;
        let is_waited_for = own.acked < self.own as u64
            && (own.marks & COPYING == 0 || beyond(segment.ack.wrapping_sub(self.ack_start), own.acked) > 0);
        acknowledges && (is_waited_for || own.asked != 0)
    }

    /// Sequence and acknowledgement number of a question to the other end, in those of the leg that the packets arrive on: one
    /// behind what it expects, as a keepalive has it (RFC 9293 section 3.8.4), so it must answer; and if it knows the
    /// connection no more, with a reset that counts. `own` is what was seen of the way, `other` what was seen of the other one.
    #[inline(always)]
    #[must_use]
    pub const fn question(&self, own: &Track, other: &Track) -> (u32, u32) {
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
        let (sent, acked) = (own.without_hole(other.acked) as u32, own.acked as u32);
        (self.seq_start.wrapping_add(sent).wrapping_sub(1), self.ack_start.wrapping_add(acked))
    }

    /// Sequence and acknowledgement number of what is told to our own socket: nothing new, and no more than it has sent.
    #[inline(always)]
    #[must_use]
    pub const fn for_us(&self, ack: u32) -> (u32, u32) {
        let end = self.ack_start.wrapping_add(self.own);
        let is_more = ack.wrapping_sub(end).cast_signed() > 0;
        (self.expected, if is_more { end } else { ack })
    }
}

/// How far the 32-bit `position` lies beyond the 64-bit one; negative if it lies before.
#[inline(always)]
pub(super) const fn beyond(position: u32, than: u64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
    let than = than as u32;
    position.wrapping_sub(than).cast_signed()
}

/// The 64-bit position that lies `by` further, if that is further at all.
#[inline(always)]
const fn advanced(position: u64, by: i32) -> u64 {
    if by > 0 { position + by.cast_unsigned() as u64 } else { position }
}

#[inline(always)]
const fn least(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}

#[inline(always)]
const fn most(one: u64, other: u64) -> u64 {
    if one > other { one } else { other }
}

impl Track {
    /// Whether a packet is the copy that is on its way to our own socket: it is not to be sent on once more, and none is under
    /// way then.
    ///
    /// A packet that was sent twice may be taken for the copy, and the copy for that packet: it makes no difference.
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

    /// Notes that a packet of this way is copied for our own socket.
    #[inline(always)]
    pub const fn copies(&mut self, segment: &Segment) {
        self.marks |= COPYING;
        self.copied_seq = segment.seq;
        self.copied_ack = segment.ack;
        self.copied_len = segment.len();
        self.asked = 0;
    }

    /// Notes a packet of this way. What userspace is to hear of it: [`FIRST`], [`FIN`] and [`END`], each
    /// when it becomes so and not again. Nothing if it is not in the window.
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
            // The receiver of a reset judges it by the same rule (RFC 5961 section 3): what it expects next, which
            // is what it has acknowledged, or all that was sent if it has not said so yet.
            let at = segment.seq.wrapping_sub(way.seq_start);
            if other.marks & WAS_RESET != 0 {
                // What was on its way to an end that has reset is answered by a reset, which is no news.
            } else if beyond(at, other.acked) == 0 || beyond(at, self.without_hole(other.acked)) == 0 {
                self.marks |= WAS_RESET;
            } else if beyond(at, other.acked) > 0 {
                // Packets before it took another way or were lost behind us, or so was what the receiver acknowledged. Its
                // own reset will tell.
                self.marks |= MAY_BE_RESET;
            }
            if reset_before || self.marks & WAS_RESET == 0 {
                return first;
            }
        }
        // A reset says for the last time what its sender has received.
        if segment.has(flag::ACK) {
            self.note_ack(other, way, segment);
        }
        if !segment.has(flag::RST) && !segment.is_empty() {
            self.note_data(other, way, segment);
        }
        let fin = if fin_before == 0 && self.fin != 0 { FIN } else { 0 };
        // Once: late packets find it so, and must not wake anybody. Whoever hears of a lost event looks at all flows.
        let end = if !ended_before && self.has_ended(other) { END } else { 0 };
        first | fin | end
    }

    #[inline(always)]
    const fn note_ack(&mut self, other: &Self, way: &Translation, segment: &Segment) {
        let ahead = beyond(segment.ack.wrapping_sub(way.ack_start), self.acked);
        let acked = advanced(self.acked, ahead);
        // What was never sent cannot be acknowledged; the other end ignores that, too.
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
            // In the window, so it is a 64-bit position not before what is acknowledged.
            self.note_fin(other.acked, advanced(other.acked, beyond(end, other.acked)));
        }
    }

    /// Of two FINs the earlier one counts: behind the real one the sender sends nothing. One that the receiver has acknowledged
    /// more than was none. A FIN whose end the receiver has acknowledged changes nothing there, so it counts only if it shows
    /// what the one before it was not.
    #[inline(always)]
    const fn note_fin(&mut self, acked: u64, end: u64) {
        let is_first = end > acked && (self.fin == 0 || end < self.fin);
        let was_none = self.fin != 0 && self.fin < acked;
        if is_first || was_none {
            self.fin = end;
        }
    }

    /// Notes bytes between two positions of this way, of which the receiver has acknowledged `acked`.
    #[inline(always)]
    const fn extend(&mut self, acked: u64, start: u32, end: u32) {
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

    /// Position on this way before which nothing is missing: what the receiver expects next if all of that has arrived. `acked`
    /// is what it has acknowledged.
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

    /// Whether the flow is at its end: finished, or reset by one of them.
    #[inline(always)]
    #[must_use]
    pub const fn has_ended(&self, other: &Self) -> bool {
        (self.marks | other.marks) & WAS_RESET != 0 || matches!(standing(self, other), Standing::Finished)
    }

    /// Whether the other end has acknowledged this way's FIN and all before. Behind a FIN comes nothing that could be
    /// acknowledged.
    #[inline(always)]
    #[must_use]
    const fn is_done(&self, other: &Self) -> bool {
        self.fin != 0 && other.acked == self.fin
    }
}

#[inline(always)]
const fn standing(one: &Track, other: &Track) -> Standing {
    if one.is_done(other) && other.is_done(one) { Standing::Finished } else { Standing::Open }
}

impl State {
    /// A flow of which our own sockets have still to send `pending` bytes on each way, and on which the receivers have
    /// allowed to send `allowed` bytes.
    #[must_use]
    pub fn new(pending: [u64; 2], allowed: [u64; 2]) -> Self {
        let track = |own: usize, other: usize| Track {
            sent: pending[own],
            allowed: allowed[other],
            ..Track::default()
        };
        Self { ways: [track(0, 1), track(1, 0)], ..Self::default() }
    }

    /// How the flow stands.
    #[must_use]
    pub const fn standing(&self) -> Standing {
        let [up, down] = &self.ways;
        if let Standing::Finished = standing(up, down) {
            return Standing::Finished;
        }
        // Of two resets the first is the cause, and one that may have counted came before the one that did.
        let resets = [up.marks & WAS_RESET != 0, down.marks & WAS_RESET != 0];
        match resets {
            [true, _] => Standing::Reset((down.marks & MAY_BE_RESET != 0) as usize),
            [_, true] => Standing::Reset((up.marks & MAY_BE_RESET == 0) as usize),
            _ => Standing::Open,
        }
    }

    /// Bytes of a way that its receiver has acknowledged, since the flow began. A FIN is none.
    #[must_use]
    pub const fn delivered(&self, way: usize) -> u64 {
        let (own, other) =
            if way == 0 { (&self.ways[0], &self.ways[1]) } else { (&self.ways[1], &self.ways[0]) };
        other.acked - own.is_done(other) as u64
    }

    /// Changes whenever a byte was sent for the first time or acknowledged.
    #[must_use]
    pub const fn progress(&self) -> (u64, u64) {
        let [up, down] = &self.ways;
        (up.sent + up.acked, down.sent + down.acked)
    }
}

/// Judges a packet that one of our own sockets sends on the leg on which packets of `way` arrive.
///
/// `own` is what was seen of that way, `other` of the other one, whose stream the packet is part of.
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
            // The process has died, and the flow lives on.
            if mode == KEPT && segment.flags & (flag::RST | flag::FIN) != 0 {
                return EgressAction::Drop;
            }
            // The process has died, and with it the flow: both ends shall know.
            if segment.has(flag::RST) {
                return renumbered(way, own, other);
            }
            if segment.has(flag::SYN) {
                return EgressAction::Drop;
            }
            if segment.is_empty() {
                // Of all that it has sent: once our own sockets are at rest they say this only when they are sent something
                // themselves.
                let position = segment.seq.wrapping_sub(way.ack_start);
                if way.flags & BEGINS == 0 && position.wrapping_sub(way.own).cast_signed() >= 0 {
                    if own.marks & BYPASSED != 0 {
                        return EgressAction::Drop;
                    }
                    own.marks |= BYPASSED;
                    return EgressAction::Bypassed;
                }
                // What the peer answers is for the socket.
                if way.is_question(own, segment) {
                    own.asked = 1;
                    return EgressAction::Pass;
                }
                return EgressAction::Drop;
            }
            // What userspace wrote must arrive, however often it takes. If it has, the socket has not heard of that: what
            // the peer answers to the repetition is for the socket.
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
                // Userspace wants to know where the peer stands. Its answer is noted as any other packet.
                EgressAction::Pass
            } else {
                EgressAction::Drop
            }
        }
        RESET => {
            match segment.flags & (flag::RST | flag::ACK) {
                // The stack's answer to a packet of the peer, whose own acknowledgement is its number (RFC 9293
                // section 3.10.7.1): nobody knows better.
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

/// What userspace wrote, with an acknowledgement that the peer takes: one that is older by more than the largest window ever
/// announced to it would have the packet thrown away (RFC 5961 section 5.2), and our own socket hears of nothing that
/// comes from end to end. One byte less than the other end has acknowledged says nothing new, of the window neither, which
/// is the other end's to announce.
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

/// The timestamp of a segment's header that is `length` bytes long, if it comes where nearly all put it: first, behind two
/// bytes that say nothing (RFC 7323 appendix A).
#[inline(always)]
#[must_use]
pub const fn stamp(tcp: &[u8; TCP_BYTES], length: usize) -> Option<u32> {
    let is_there = length >= 32 && tcp[20] == 1 && tcp[21] == 1 && tcp[22] == 8 && tcp[23] == 10;
    if is_there { Some(u32::from_be_bytes([tcp[24], tcp[25], tcp[26], tcp[27]])) } else { None }
}

/// A reset to the sender of `way`, with the numbers that it expects: behind all that was sent to it without a hole, which is
/// before the reset on the same path. It is never behind the peer's window, where it would not be looked at: where some was lost
/// the peer asks, and the kernel, which knows the connection no more, answers with the right number (RFC 5961 section 3.2).
#[inline(always)]
const fn renumbered(way: &Translation, own: &Track, other: &Track) -> EgressAction {
    let to = least(other.without_hole(own.acked), most(own.allowed, own.acked));
    let from = own.without_hole(other.acked);
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
    let (to, from) = (to as u32, from as u32);
    EgressAction::Rewrite { seq: way.ack_start.wrapping_add(to), ack: way.seq_start.wrapping_add(from) }
}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Rules {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for State {}

#[cfg(test)]
mod tests;
