//! One direction of a connection, and the decision on each packet that arrives on it.
//!
//! A direction receives on its *own* socket and sends on its *target*. The kernel either redirects a packet to the
//! target, or passes it to userspace, which reads it and writes it to the target. Two rules keep the order of bytes:
//!
//! - The kernel redirects only while userspace has written to the target everything that was ever passed
//!   ([`Control::forwarded`] `==` [`Flow::passed`]).
//! - Userspace writes passed bytes only after the target has taken everything that was redirected before them.
//!
//! A redirected packet is charged to no socket: it waits in an unbounded queue of the target. So the kernel redirects
//! only while the target has *room*: its queue is short, and a write of the packet would not fail. A passed packet is
//! charged to the receive buffer of its own socket, whose window closes. The sender slows down as it would without the
//! balancer.
//!
//! The functions are pure. The verdict program calls them with values that it read from the target, and the tests with
//! chosen values.

use super::budget;
use crate::Cookie;

/// [`Flow::mode`]: the last packet was redirected. A new flow has this mode.
pub const REDIRECT: u32 = 0;
/// [`Flow::mode`]: the last packet was passed.
pub const PASS: u32 = 1;

/// [`Flow::receiving`]: no packet was evaluated yet.
pub const UNKNOWN: u32 = 0;
/// [`Flow::receiving`]: [`Flow::received`] is the position of the next packet.
pub const KNOWN: u32 = 1;
/// [`Flow::receiving`]: the repeated part of a packet could not be removed. Its bytes are lost, and the connection with
/// them.
pub const TORN: u32 = 2;

/// A shorter packet is a crumb. It costs a multiple of its length in the target's write queue.
pub const CRUMB_BYTES: u32 = 512;
/// The greatest number of crumbs in a row while the backlog is never empty.
pub const CRUMBS: u32 = 1_024;

/// The state of one direction. The program holds the lock of the socket that it runs for, so no one else writes this
/// state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Flow {
    /// The target's cookie.
    pub peer: Cookie,
    /// Userspace's identifier of the direction, repeated in each event.
    pub token: u64,
    /// Bytes redirected so far.
    pub redirected: u64,
    /// Bytes passed so far.
    pub passed: u64,
    /// Packets redirected so far.
    pub redirected_packets: u64,
    /// Packets passed so far.
    pub passed_packets: u64,
    /// This direction's contribution to the sum of all shares ([`super::budget`]), modulo 2^64.
    pub counted: u64,
    /// The target's `write_seq` before the first byte of this direction, once [`Flow::base_known`] is 1.
    pub base: u32,
    /// Whether [`Flow::base`] is valid.
    pub base_known: u32,
    /// [`REDIRECT`] or [`PASS`].
    pub mode: u32,
    /// Crumbs redirected since the backlog was last seen empty.
    pub crumbs: u32,
    /// Changes from redirecting to passing.
    pub falls: u32,
    /// Changes from passing to redirecting.
    pub returns: u32,
    /// The sequence number after the last evaluated byte, if [`Flow::receiving`] is [`KNOWN`].
    pub received: u32,
    /// [`UNKNOWN`], [`KNOWN`] or [`TORN`].
    pub receiving: u32,
}

const _: () = assert!(size_of::<Flow>() == 88, "Flow has padding");

/// Userspace's input about one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Control {
    /// Bytes that userspace has written to the target. Raised only after send(2) has returned.
    pub forwarded: u64,
    /// The part of [`Flow::counted`] that userspace has returned, modulo 2^64.
    pub returned: u64,
    /// 1 keeps the direction in userspace.
    pub hold: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Control>() == 24, "Control has padding");

/// The fields of the target socket that the program reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// `tcp_sock.write_seq`: its position in its own stream, modulo 2^32.
    pub write_seq: u32,
    /// `sk_wmem_queued`: memory in its write queue.
    pub wmem_queued: u32,
    /// `sk_sndbuf`: the limit of `sk_wmem_queued`.
    pub sndbuf: u32,
    /// `sk_rmem_alloc`: memory of received bytes that userspace has not read.
    pub rmem_alloc: u32,
    /// `sk_rcvbuf`: the limit of `sk_rmem_alloc`.
    pub rcvbuf: u32,
}

/// The limits of redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one direction that may wait between the two sockets.
    pub high_water: u32,
    /// Bytes of all directions that may wait ([`super::budget`]).
    pub total: u64,
    /// Memory that must stay free in the target's send buffer.
    pub margin: u32,
}

/// The decision on one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The packet may go to the target.
    Redirect,
    /// The packet goes to userspace: too many bytes wait between the sockets.
    OverHighWater,
    /// The packet goes to userspace: too many bytes of all directions wait between their sockets.
    OverBudget,
    /// The packet goes to userspace: the target's buffers are too full.
    NoRoom,
}

impl Flow {
    /// A new direction that sends to `peer`.
    #[must_use]
    pub const fn new(peer: Cookie, token: u64) -> Self {
        Self {
            peer,
            token,
            redirected: 0,
            passed: 0,
            redirected_packets: 0,
            passed_packets: 0,
            counted: 0,
            base: 0,
            base_known: 0,
            mode: REDIRECT,
            crumbs: 0,
            falls: 0,
            returns: 0,
            received: 0,
            receiving: UNKNOWN,
        }
    }

    /// Records a packet of `len` bytes whose first byte has the sequence number `first`. Returns how many of its first
    /// bytes have been received before.
    ///
    /// A retransmission may be cut differently than the first transmission (RFC 9293 section 3.10.7.4: a segment may be
    /// trimmed to its new part). The kernel queues such a packet whole, and skips the repeated part for readers. Its
    /// `tcp_read_skb`, which hands packets to the program, does not.
    ///
    /// `read` is the sequence number up to which the socket has been read. It is evaluated for the first packet only,
    /// before which nothing was passed.
    #[inline]
    pub fn arrive(&mut self, first: u32, len: u32, read: impl FnOnce() -> u32) -> u32 {
        if self.receiving == UNKNOWN {
            self.received = read();
            self.receiving = KNOWN;
        }
        let old = self.received.wrapping_sub(first);
        // Bytes ahead of the stream cannot be in the queue. A distance of more than half of the number space looks like
        // that.
        let old = if old > i32::MAX as u32 { 0 } else { old };
        if old >= len {
            return len;
        }
        self.received = first.wrapping_add(len);
        old
    }

    /// Whether userspace still has passed bytes, or keeps the direction. Then nothing may be redirected, and the
    /// program need not read the target.
    #[inline]
    #[must_use]
    pub const fn is_held(&self, control: &Control) -> bool {
        control.hold != 0 || control.forwarded != self.passed
    }

    /// Bytes of this direction that the target has not taken yet. Valid only while the direction is not held.
    #[inline]
    #[must_use]
    pub const fn backlog(&self, control: &Control, write_seq: u32) -> u32 {
        // All of it modulo 2^32, as `write_seq` is. The backlog itself is far smaller.
        #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
        let sent = self.redirected.wrapping_add(control.forwarded) as u32;
        let backlog = sent.wrapping_sub(write_seq.wrapping_sub(self.base));
        // If the target has taken more than this direction's bytes, another writer exists, and nothing waits.
        if backlog > i32::MAX as u32 { 0 } else { backlog }
    }

    /// The direction's share in the sum, as the sum contains it.
    #[inline]
    #[must_use]
    pub const fn share(&self, control: &Control) -> i64 {
        budget::sum(self.counted, control.returned)
    }

    /// Corrects the share, and returns the amount to add to the sum. Called after [`Flow::decide`], when its decision
    /// is carried out.
    #[inline]
    #[must_use]
    pub const fn count(&mut self, control: &Control, write_seq: u32) -> i64 {
        let now = budget::share(self.backlog(control, write_seq)) as i64;
        let more = now - self.share(control);
        self.counted = self.counted.wrapping_add_signed(more);
        more
    }

    /// Decides on a packet of `len` bytes, while the shares of all directions have the sum `sum`. Valid only while the
    /// direction is not held.
    #[inline]
    #[must_use]
    pub const fn decide(
        &mut self,
        len: u32,
        control: &Control,
        target: &Target,
        sum: i64,
        limits: Limits,
    ) -> Decision {
        if self.base_known == 0 {
            // Nothing was redirected yet and everything passed has been written. The other bytes of the target are from
            // before this flow.
            #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
            let forwarded = control.forwarded as u32;
            self.base = target.write_seq.wrapping_sub(forwarded);
            self.base_known = 1;
        }
        let backlog = self.backlog(control, target.write_seq);
        if backlog == 0 {
            self.crumbs = 0;
        }
        if backlog > limits.high_water {
            return Decision::OverHighWater;
        }
        let share = budget::share(backlog.saturating_add(len)) as i64;
        // A direction without a backlog needs no part of the sum, even if others have exhausted it.
        if share > 0 && sum - self.share(control) + share > limits.total.cast_signed() {
            return Decision::OverBudget;
        }
        if !self.has_room(backlog, len, target, limits) {
            return Decision::NoRoom;
        }
        Decision::Redirect
    }

    /// Whether the target would take the backlog and the packet at once. The worker that writes them must never wait.
    ///
    /// A socket has one queue for the packets redirected to it, and for its own passed packets while that queue is not
    /// empty. Behind bytes that wait for a full send buffer, a passed packet would be out of userspace's reach and
    /// charged to no socket. Likewise redirected bytes would wait for userspace to read.
    #[inline]
    const fn has_room(&self, backlog: u32, len: u32, target: &Target, limits: Limits) -> bool {
        // Half as much again covers the overhead of the bytes.
        let bytes = backlog as u64 + len as u64;
        let needed = target.wmem_queued as u64 + bytes + bytes / 2 + limits.margin as u64;
        needed <= target.sndbuf as u64
            && self.crumbs < CRUMBS
            && target.rmem_alloc as u64 * 2 <= target.rcvbuf as u64
    }

    /// Accounts for a redirected packet. True if it ended a period of passing.
    #[inline]
    pub const fn redirect(&mut self, len: u32) -> bool {
        self.redirected += len as u64;
        self.redirected_packets += 1;
        if len < CRUMB_BYTES {
            self.crumbs += 1;
        }
        let returned = self.mode == PASS;
        if returned {
            self.mode = REDIRECT;
            self.returns += 1;
        }
        returned
    }

    /// Accounts for a passed packet. True if userspace must receive an event.
    ///
    /// An event is necessary if no hold was in effect: userspace may have caught up and be idle. Userspace finds the
    /// following packets without an event. After each increase of [`Control::forwarded`] it checks for them under the
    /// lock of the socket.
    #[inline]
    pub const fn pass(&mut self, len: u32) {
        self.passed += len as u64;
        self.passed_packets += 1;
        if self.mode == REDIRECT {
            self.mode = PASS;
            self.falls += 1;
        }
    }
}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Flow {}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Control {}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { high_water: 1_000_000, total: 2_000_000, margin: 1_000 };

    fn target(write_seq: u32) -> Target {
        Target { write_seq, wmem_queued: 0, sndbuf: 8_000_000, rmem_alloc: 0, rcvbuf: 6_000_000 }
    }

    fn forwarded(forwarded: u64) -> Control {
        Control { forwarded, ..Control::default() }
    }

    #[test]
    fn the_backlog_is_exact_across_the_end_of_the_sequence_space() {
        let mut flow = Flow::new(1, 2);
        let start = u32::MAX - 500;
        assert_eq!(flow.decide(1_000, &forwarded(0), &target(start), 0, LIMITS), Decision::Redirect);
        flow.redirect(1_000);
        assert_eq!(flow.backlog(&forwarded(0), start), 1_000);
        assert_eq!(flow.backlog(&forwarded(0), start.wrapping_add(600)), 400);
        assert_eq!(flow.backlog(&forwarded(0), start.wrapping_add(1_000)), 0);
    }

    #[test]
    fn the_base_leaves_out_what_userspace_wrote() {
        let mut flow = Flow::new(1, 2);
        flow.pass(300);
        assert!(flow.is_held(&forwarded(299)));
        assert!(!flow.is_held(&forwarded(300)));
        // 5,000 bytes before this flow, 300 of it.
        assert_eq!(flow.decide(10, &forwarded(300), &target(5_300), 0, LIMITS), Decision::Redirect);
        assert_eq!(flow.base, 5_000);
        assert!(flow.redirect(10), "it returns");
        assert_eq!(flow.backlog(&forwarded(300), 5_300), 10);
    }

    #[test]
    fn four_gigabytes_do_not_matter() {
        let mut flow = Flow::new(1, 2);
        assert_eq!(flow.decide(1, &forwarded(0), &target(7), 0, LIMITS), Decision::Redirect);
        flow.redirected = (5 << 32) + 100;
        assert_eq!(flow.backlog(&forwarded(0), 7 + 60), 40);
    }

    #[test]
    fn a_long_backlog_and_full_buffers_stop_redirecting() {
        let mut flow = Flow::new(1, 2);
        let decide = |flow: &mut Flow, target: Target| flow.decide(1_000, &forwarded(0), &target, 0, LIMITS);
        assert_eq!(decide(&mut flow, target(0)), Decision::Redirect);
        flow.redirect(1_000_001);
        assert_eq!(decide(&mut flow, target(0)), Decision::OverHighWater);
        assert_eq!(decide(&mut flow, target(1)), Decision::Redirect);
        let taken = target(1_000_001);
        assert_eq!(decide(&mut flow, Target { wmem_queued: 7_997_500, ..taken }), Decision::Redirect);
        assert_eq!(decide(&mut flow, Target { wmem_queued: 7_997_501, ..taken }), Decision::NoRoom);
        assert_eq!(decide(&mut flow, Target { rmem_alloc: 3_000_001, ..taken }), Decision::NoRoom);
    }

    #[test]
    fn crumbs_are_counted_until_the_backlog_is_empty() {
        let mut flow = Flow::new(1, 2);
        for _ in 0..CRUMBS {
            assert_eq!(flow.decide(1, &forwarded(0), &target(0), 0, LIMITS), Decision::Redirect);
            flow.redirect(1);
        }
        assert_eq!(flow.decide(1, &forwarded(0), &target(0), 0, LIMITS), Decision::NoRoom);
        assert_eq!(flow.decide(1, &forwarded(0), &target(CRUMBS), 0, LIMITS), Decision::Redirect);
    }

    #[test]
    fn the_sum_of_all_stops_whoever_does_not_keep_up() {
        let mut flow = Flow::new(1, 2);
        let decide = |flow: &mut Flow, len, sum| flow.decide(len, &forwarded(0), &target(0), sum, LIMITS);
        assert_eq!(decide(&mut flow, 1_000, 2_000_000), Decision::Redirect, "little is free");
        assert_eq!(decide(&mut flow, 100_000, 1_900_000), Decision::Redirect);
        assert_eq!(decide(&mut flow, 100_000, 1_900_001), Decision::OverBudget);
        let _ = flow.redirect(100_000);
        assert_eq!(flow.count(&forwarded(0), 0), 100_000);
        // 100,000 of the sum are this direction's own.
        assert_eq!(decide(&mut flow, 50_000, 1_950_000), Decision::Redirect);
        assert_eq!(decide(&mut flow, 50_001, 1_950_000), Decision::OverBudget);
    }

    #[test]
    fn shares_add_up_to_what_waits() {
        let mut flow = Flow::new(1, 2);
        let mut control = forwarded(0);
        assert_eq!(flow.decide(1, &control, &target(0), 0, LIMITS), Decision::Redirect);
        let _ = flow.redirect(300_000);
        assert_eq!(flow.count(&control, 0), 300_000);
        assert_eq!(flow.count(&control, 100_000), -100_000);
        assert_eq!(flow.count(&control, 290_000), -200_000, "little is not counted");
        assert_eq!((flow.share(&control), flow.counted), (0, 0));
        let _ = flow.redirect(100_000);
        assert_eq!(flow.count(&control, 290_000), 110_000);
        // Userspace sees that the target took all bytes, and returns the share. The program counts on from there.
        control.returned = 110_000;
        assert_eq!((flow.share(&control), flow.count(&control, 400_000)), (0, 0));
        let _ = flow.redirect(70_000);
        assert_eq!((flow.count(&control, 400_000), flow.counted), (70_000, 180_000));
    }

    #[test]
    fn what_arrived_before_is_told_apart() {
        let mut flow = Flow::new(1, 2);
        let not_asked = || unreachable!("only the first packet needs it");
        let start = u32::MAX - 150;
        assert_eq!(flow.arrive(start, 100, || start.wrapping_add(30)), 30, "read in part");
        assert_eq!(flow.arrive(start.wrapping_add(100), 100, not_asked), 0);
        assert_eq!(flow.arrive(start.wrapping_add(199), 2, not_asked), 1);
        assert_eq!(flow.arrive(start, 500, not_asked), 201);
        assert_eq!(flow.arrive(start, 500, not_asked), 500);
        assert_eq!(flow.arrive(start.wrapping_add(499), 1, not_asked), 1);
        assert_eq!(flow.received, start.wrapping_add(500));
    }

    #[test]
    fn userspace_can_hold_a_direction() {
        let flow = Flow::new(1, 2);
        assert!(flow.is_held(&Control { hold: 1, ..Control::default() }));
    }
}
