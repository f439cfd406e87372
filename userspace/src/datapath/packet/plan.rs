//! Whether two connections can become one flow, and with which numbers: a pure function of the snapshots of both.

use snisplice_common::packet::{
    flow::{BEGINS, ECN, State, Translation},
    maps::{Tuple, is_mapped},
    socket_info::SocketInfo,
};

use crate::metrics::labels::PacketIneligible;

/// Bytes that timestamps take of each segment (RFC 7323 appendix A).
const TIMESTAMP_BYTES: u32 = 12;

/// Greatest number of bytes that the balancer's sockets may still have to deliver when a flow begins: far less than
/// half of the number space, and more than any buffer holds.
pub(super) const PENDING_MOST: u64 = 1 << 28;

/// The parameters of one connection, from its socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Leg {
    /// The addresses.
    pub(super) tuple: Tuple,
    /// Whether neither side has sent FIN.
    pub(super) established: bool,
    /// Timestamps were negotiated.
    pub(super) timestamps: bool,
    /// Selective acknowledgements were negotiated.
    pub(super) sack: bool,
    /// ECN was negotiated.
    pub(super) ecn: bool,
    /// The peer's window scale.
    pub(super) peer_scale: u32,
    /// The balancer's window scale.
    pub(super) own_scale: u32,
    /// The greatest payload of a segment that the balancer may send, with the usual options.
    pub(super) send_mss: u32,
    /// The MSS that the balancer announced, including options.
    pub(super) announced_mss: u32,
    /// The balancer's current timestamp.
    pub(super) clock: u32,
    /// The kernel's snapshot of sequence numbers and devices.
    pub(super) info: SocketInfo,
}

/// The initial rules and state of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// The translations, up and down.
    pub(super) ways: [Translation; 2],
    /// The state that counts as recorded.
    pub(super) state: State,
    /// Bytes of each way that were written to the receiver's socket before, and that the flow begins with.
    pub(super) written: [u64; 2],
}

/// The reasons against a flow that are known without a snapshot.
pub(super) fn admit(client: &Leg, backend: &Leg) -> Result<(), PacketIneligible> {
    let refuse = |condition: bool, why| if condition { Err(why) } else { Ok(()) };
    refuse(!client.established || !backend.established, PacketIneligible::PeerClosed)?;
    refuse(is_mapped(&client.tuple.remote) != is_mapped(&backend.tuple.remote), PacketIneligible::Family)?;
    refuse(client.tuple.local == client.tuple.remote, PacketIneligible::Local)?;
    refuse(backend.tuple.local == backend.tuple.remote, PacketIneligible::Local)?;
    refuse(client.timestamps != backend.timestamps, PacketIneligible::Timestamps)?;
    refuse(client.sack != backend.sack, PacketIneligible::Sack)?;
    let fits = |from: &Leg, to: &Leg| from.largest_received() <= to.send_mss;
    refuse(!fits(client, backend) || !fits(backend, client), PacketIneligible::Mss)
}

/// The largest segment that a backend's connection should announce for the client's connection. The balancer may send
/// segments with `send_mss` bytes of payload on the latter, and has announced `announced`.
///
/// A bound of the client's connection also bounds the segments to the backend. So a client that may send more than it
/// accepts is never eligible, and a bound is useless. Its listener must announce less.
pub(super) fn largest_segment(send_mss: u32, announced_mss: u32, timestamps: bool) -> Option<u32> {
    let takes = send_mss + if timestamps { TIMESTAMP_BYTES } else { 0 };
    (announced_mss <= takes).then_some(takes)
}

/// The initial numbers of a flow. Userspace holds `read` bytes of each way that it has not written yet.
pub(super) fn plan(client: &Leg, backend: &Leg, read: [usize; 2]) -> Result<Plan, PacketIneligible> {
    let read = |way: usize| u32::try_from(read[way]).map_err(|_| PacketIneligible::Pending);
    let (a, b) = (&client.info, &backend.info);
    let up = Stretch { read: read(0)?, unread: a.unread(), written: b.unacknowledged() };
    let down = Stretch { read: read(1)?, unread: b.unread(), written: a.unacknowledged() };
    if up.bytes() > PENDING_MOST || down.bytes() > PENDING_MOST {
        return Err(PacketIneligible::Pending);
    }
    let up_way = translation(client, backend, &up);
    let down_way = translation(backend, client, &down);
    // The acknowledgements of one way refer to the other way.
    let complete =
        |way: Translation, other: &Translation, [from, to]: [&Leg; 2], next: &Stretch| Translation {
            ack: other.seq.wrapping_neg(),
            ack_start: from.info.snd_una,
            echo: other.stamp.wrapping_neg(),
            least_echo: to.info.ts_recent,
            own: u32::try_from(next.bytes()).unwrap_or(u32::MAX),
            expected: from.info.rcv_nxt,
            // At most the bytes of the second snapshot, whose window has grown by then.
            granted: granted(&from.info, &way).saturating_add(from.info.rcv_wnd),
            from: from.info.rx_device,
            ..way
        };
    let ways = [
        complete(up_way, &down_way, [client, backend], &down),
        complete(down_way, &up_way, [backend, client], &up),
    ];
    // The window that the balancer's sockets have allowed beyond that is in the ways.
    let state = State::new([up.bytes(), down.bytes()], [b.snd_wnd.into(), a.snd_wnd.into()]);
    Ok(Plan { ways, state, written: [up.written.into(), down.written.into()] })
}

/// The ways, corrected by the bytes that arrived on each leg before the kernel forwarded.
pub(super) fn with_late(ways: [Translation; 2], late: [&SocketInfo; 2]) -> [Translation; 2] {
    let [up, down] = ways;
    let came = |way: &Translation, info: &SocketInfo| info.rcv_nxt.wrapping_sub(way.expected);
    let complete = |way: Translation, info: &SocketInfo, own: u32| Translation {
        expected: info.rcv_nxt,
        own,
        granted: granted(info, &way),
        ..way
    };
    let own = [up.own.wrapping_add(came(&down, late[1])), down.own.wrapping_add(came(&up, late[0]))];
    [complete(up, late[0], own[0]), complete(down, late[1], own[1])]
}

/// Position of a way up to which the balancer's socket allows the sender to send. The socket announces no more once the
/// kernel forwards, so the position is final.
fn granted(info: &SocketInfo, way: &Translation) -> u32 {
    info.rcv_nxt.wrapping_sub(way.seq_start).saturating_add(info.rcv_wnd)
}

/// The ways once more, after the balancer's sockets have received and sent more than was known when the flow began.
pub(super) fn with_stragglers(ways: [Translation; 2], infos: [&SocketInfo; 2]) -> [Translation; 2] {
    let mut ways = ways;
    for (way, info) in ways.iter_mut().zip(infos) {
        way.expected = info.rcv_nxt;
        way.granted = way.granted.max(granted(info, way));
        // Less while userspace has not written all bytes to deliver.
        way.own = way.own.max(info.write_seq.wrapping_sub(way.ack_start));
    }
    ways
}

/// The first bytes of a way, which the balancer's sockets deliver.
struct Stretch {
    /// Written to the receiver's socket, and not acknowledged.
    written: u32,
    /// In userspace.
    read: u32,
    /// In the sender's socket.
    unread: u32,
}

impl Stretch {
    fn bytes(&self) -> u64 {
        u64::from(self.written) + u64::from(self.read) + u64::from(self.unread)
    }
}

/// The part of a way that does not depend on the other one.
fn translation(from: &Leg, to: &Leg, begin: &Stretch) -> Translation {
    // The numbers of its first byte on either leg.
    let first = from.info.copied_seq.wrapping_sub(begin.read).wrapping_sub(begin.written);
    Translation {
        remote: to.tuple.remote,
        local: to.tuple.local,
        ports: ports(to.tuple.local_port, to.tuple.remote_port),
        device: to.info.tx_device,
        seq: to.info.snd_una.wrapping_sub(first),
        // The peer's timestamps continue the balancer's. A new timestamp is no less than the last one sent, so the
        // receiver sees none that goes back (RFC 7323 section 5). The balancer's may be one more than it reads.
        stamp: to.clock.wrapping_add(1).wrapping_sub(from.info.ts_recent),
        scale_from: from.peer_scale,
        scale_to: to.own_scale,
        seq_start: first,
        flags: BEGINS | if from.ecn && to.ecn { ECN } else { 0 },
        ..Translation::default()
    }
}

/// Source and destination port as they lie in a header.
fn ports(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_ne_bytes(), destination.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

impl Leg {
    /// Largest payload of a segment that the peer may send.
    fn largest_received(&self) -> u32 {
        self.announced_mss - if self.timestamps { TIMESTAMP_BYTES.min(self.announced_mss) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(remote: u8) -> Leg {
        let address = |last| snisplice_common::packet::maps::mapped(u32::from_ne_bytes([10, 0, 0, last]));
        Leg {
            tuple: Tuple { remote: address(remote), local: address(1), remote_port: 5, local_port: 6 },
            established: true,
            timestamps: true,
            sack: true,
            ecn: false,
            peer_scale: 7,
            own_scale: 9,
            send_mss: 1_448,
            announced_mss: 1_460,
            clock: 1_000,
            info: SocketInfo { tx_device: 3, ..SocketInfo::default() },
        }
    }

    #[test]
    fn equal_legs_are_admitted() {
        assert_eq!(admit(&leg(2), &leg(3)), Ok(()));
    }

    #[test]
    fn each_difference_is_refused_for_its_own_reason() {
        let good = leg(2);
        let other = |change: fn(&mut Leg)| {
            let mut leg = leg(3);
            change(&mut leg);
            leg
        };
        for (bad, why) in [
            (other(|leg| leg.established = false), PacketIneligible::PeerClosed),
            (other(|leg| leg.tuple.remote = [1, 2, 3, 4]), PacketIneligible::Family),
            (other(|leg| leg.tuple.local = leg.tuple.remote), PacketIneligible::Local),
            (other(|leg| leg.timestamps = false), PacketIneligible::Timestamps),
            (other(|leg| leg.sack = false), PacketIneligible::Sack),
            (other(|leg| leg.send_mss = 1_447), PacketIneligible::Mss),
            (other(|leg| leg.announced_mss = 1_461), PacketIneligible::Mss),
        ] {
            assert_eq!(admit(&good, &bad), Err(why));
            assert_eq!(admit(&bad, &good), Err(why));
        }
    }

    #[test]
    fn the_backend_may_send_what_the_client_takes() {
        assert_eq!(largest_segment(1_348, 1_360, true), Some(1_360));
        assert_eq!(largest_segment(1_360, 1_360, false), Some(1_360));
        // The client's path has a smaller MTU than its segments may have, or its window is smaller.
        assert_eq!(largest_segment(1_348, 1_460, true), None);
        let client = Leg { send_mss: 1_348, announced_mss: 1_360, ..leg(2) };
        let takes = largest_segment(client.send_mss, client.announced_mss, true).expect("a bound");
        // A backend on a path with a larger MTU, with the effect of the bound.
        assert_eq!(admit(&client, &leg(3)), Err(PacketIneligible::Mss));
        let bounded = Leg { send_mss: takes - 12, announced_mss: takes, ..leg(3) };
        assert_eq!(admit(&client, &bounded), Ok(()));
    }

    #[test]
    fn each_byte_has_one_number_on_each_leg() {
        let mut client = leg(2);
        // 100 bytes were read and not written, 30 are unread.
        client.info = SocketInfo {
            copied_seq: 50,
            rcv_nxt: 80,
            write_seq: 7_000,
            snd_una: 7_000,
            ts_recent: 60,
            ..client.info
        };
        let mut backend = leg(3);
        backend.info = SocketInfo {
            copied_seq: 900,
            rcv_nxt: 900,
            write_seq: 4_000,
            snd_una: 4_000,
            ts_recent: 5_000,
            ..backend.info
        };
        let Plan { ways: [up, down], state, written } =
            plan(&client, &backend, [100, 0]).expect("nothing speaks against it");
        assert_eq!(up.seq_start, 0_u32.wrapping_sub(50));
        assert_eq!(up.seq_start.wrapping_add(up.seq), 4_000);
        assert_eq!(down.seq_start.wrapping_add(down.seq), 7_000);
        // The backend receives the client's acknowledgement in the numbers of its own leg.
        assert_eq!(7_000_u32.wrapping_add(up.ack), 900);
        assert_eq!(4_000_u32.wrapping_add(down.ack), up.seq_start);
        assert_eq!((up.ack_start, down.ack_start), (7_000, 4_000));
        // Timestamps continue the balancer's, and echoes return the original values.
        assert_eq!(60_u32.wrapping_add(up.stamp), 1_001);
        assert_eq!(1_001_u32.wrapping_add(down.echo), 60);
        assert_eq!(5_000_u32.wrapping_add(down.stamp).wrapping_add(up.echo), 5_000);
        // The client does not yet echo the backend's timestamp.
        assert_eq!((up.echoed(1_000), down.echoed(1_000)), (5_000, 60));
        assert_eq!((state.ways[0].sent, state.ways[1].sent, written), (130, 0, [0, 0]));
        assert_eq!((down.own, down.expected), (130, 900));
        assert_eq!((up.own, up.expected), (0, 80));
        assert_eq!((up.scale_from, up.scale_to), (7, 9));
    }

    #[test]
    fn a_flow_begins_with_what_is_under_way() {
        // Up: 5 bytes written and not acknowledged, 10 in userspace, 20 unread. Down: 300, 0 and 7.
        let mut client = leg(2);
        client.info = SocketInfo {
            copied_seq: 1_000,
            rcv_nxt: 1_020,
            rcv_wnd: 10_000,
            write_seq: 500,
            snd_una: 200,
            ..client.info
        };
        let mut backend = leg(3);
        backend.info = SocketInfo {
            copied_seq: 90,
            rcv_nxt: 97,
            write_seq: 3_005,
            snd_una: 3_000,
            snd_wnd: 50_000,
            ..backend.info
        };
        let Plan { ways: [up, down], state, written } =
            plan(&client, &backend, [10, 0]).expect("nothing speaks against it");
        assert_eq!((state.ways[0].sent, state.ways[1].sent, written), (35, 307, [5, 300]));
        // The first byte that the backend has not acknowledged has its number on either leg.
        assert_eq!((up.seq_start, up.seq_start.wrapping_add(up.seq)), (985, 3_000));
        assert_eq!((down.seq_start, down.seq_start.wrapping_add(down.seq)), (0_u32.wrapping_sub(210), 200));
        // The same holds for the first byte that the balancer has not received.
        assert_eq!(1_020_u32.wrapping_add(up.seq), 3_035);
        assert_eq!((up.ack_start, down.ack_start), (200, 3_000));
        assert_eq!((up.own, up.expected, down.own, down.expected), (307, 1_020, 35, 97));
        // The backend has allowed 50,000 bytes, and the balancer has allowed the client 10,000 after the received
        // bytes.
        assert_eq!((state.ways[1].allowed, up.granted), (50_000, 35 + 2 * 10_000));
        // 100 bytes more have come from the client, and 3 from the backend.
        let late =
            [SocketInfo { rcv_nxt: 1_120, ..client.info }, SocketInfo { rcv_nxt: 100, ..backend.info }];
        let [up, down] = with_late([up, down], late.each_ref());
        assert_eq!((up.granted, down.granted), (35 + 100 + 10_000, 307 + 3));
        assert_eq!((up.own, up.expected, down.own, down.expected), (310, 1_120, 135, 100));
    }

    #[test]
    fn own_sockets_hear_of_what_came_late() {
        let way = |ack_start, own, expected| Translation {
            ack_start,
            own,
            expected,
            granted: 600,
            ..Translation::default()
        };
        let ways = [way(u32::MAX - 9, 30, 500), way(70, 10, 900)];
        // 4 bytes more have come from the client, and the backend's socket has sent them; the client's still has to.
        let infos = [
            SocketInfo { rcv_nxt: 504, rcv_wnd: 100, write_seq: 5, ..SocketInfo::default() },
            SocketInfo { rcv_nxt: 900, rcv_wnd: 0, write_seq: 84, ..SocketInfo::default() },
        ];
        let [up, down] = with_stragglers(ways, infos.each_ref());
        assert_eq!((up.own, up.expected, up.granted), (30, 504, 604));
        assert_eq!((down.own, down.expected, down.granted), (14, 900, 900));
    }

    #[test]
    fn no_buffer_holds_so_much() {
        let clean = leg(2);
        let full = Leg { info: SocketInfo { rcv_nxt: 1 << 29, ..clean.info }, ..clean };
        assert_eq!(plan(&full, &clean, [0, 0]), Err(PacketIneligible::Pending));
        assert_eq!(plan(&clean, &full, [0, 0]), Err(PacketIneligible::Pending));
        assert_eq!(plan(&clean, &clean, [0, 1 << 29]), Err(PacketIneligible::Pending));
    }
}
