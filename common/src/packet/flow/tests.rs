use proptest::prelude::*;

use super::*;
use crate::packet::{
    maps::{END, FIN, FIRST},
    segment::{Segment, flag},
};

/// Way up begins 1,000 below the wrap on leg A, and way down at 5. Leg B has other numbers.
const UP: Translation = way(u32::MAX - 999, 5);
const DOWN: Translation = way(70_000, 90);

/// The same while the balancer's sockets still have bytes to deliver.
const BEGINNING: Translation = Translation { flags: BEGINS, ..DOWN };

const fn way(seq_start: u32, ack_start: u32) -> Translation {
    Translation {
        remote: [0; 4],
        local: [0; 4],
        ports: 0,
        device: 0,
        seq: 0,
        ack: 0,
        stamp: 0,
        echo: 0,
        scale_from: 0,
        scale_to: 0,
        seq_start,
        ack_start,
        own: 0,
        expected: 0,
        least_echo: 0,
        flags: 0,
        granted: 0,
        from: 0,
    }
}

fn segment(way: &Translation, at: u64, acked: u64, payload: u32, flags: u8) -> Segment {
    let low = |position: u64| u32::try_from(position & 0xffff_ffff).unwrap();
    Segment {
        seq: way.seq_start.wrapping_add(low(at)),
        ack: way.ack_start.wrapping_add(low(acked)),
        window: 60_000,
        flags: flags | flag::ACK,
        payload,
    }
}

/// A flow, and packets into it by position.
struct Flow(State);

impl Flow {
    fn new() -> Self {
        Self(State::new([0, 0], [50_000, 50_000]))
    }

    /// Whether userspace should look at the flow.
    fn see(&mut self, up: bool, at: u64, acked: u64, payload: u32, flags: u8) -> bool {
        self.told(up, at, acked, payload, flags) & END != 0
    }

    fn told(&mut self, up: bool, at: u64, acked: u64, payload: u32, flags: u8) -> u32 {
        let [one, other] = &mut self.0.ways;
        if up {
            one.note(other, &UP, &segment(&UP, at, acked, payload, flags), 1)
        } else {
            other.note(one, &DOWN, &segment(&DOWN, at, acked, payload, flags), 2)
        }
    }
}

#[test]
fn the_first_packet_and_the_fin_of_each_way_are_told_of_once() {
    let mut flow = Flow::new();
    assert_eq!(flow.told(true, 0, 0, 1_500, 0), FIRST);
    assert_eq!(flow.told(true, 1_500, 0, 1_500, 0), 0);
    assert_eq!(flow.told(false, 0, 3_000, 0, flag::FIN), FIRST | FIN);
    assert_eq!(flow.told(false, 0, 3_000, 0, flag::FIN), 0);
    assert_eq!(flow.told(true, 3_000, 1, 0, flag::FIN), FIN);
    assert_eq!(flow.told(false, 1, 3_001, 0, 0), END);
    let mut reset = Flow::new();
    assert_eq!(reset.told(true, 0, 0, 0, flag::RST), FIRST | END);
    assert_eq!(reset.told(true, 0, 0, 0, flag::RST), 0);
}

#[test]
fn both_fins_and_their_acknowledgements_finish_a_flow() {
    let mut flow = Flow::new();
    assert!(!flow.see(true, 0, 0, 1_500, 0));
    assert!(!flow.see(false, 0, 1_500, 300, 0));
    assert!(!flow.see(true, 1_500, 300, 100, flag::FIN));
    assert!(!flow.see(false, 300, 1_601, 0, 0));
    assert_eq!((flow.0.standing(), flow.0.delivered(0), flow.0.delivered(1)), (Standing::Open, 1_600, 300));
    // Half-closed: the other way continues.
    assert!(!flow.see(false, 300, 1_601, 700, flag::FIN));
    assert!(flow.see(true, 1_601, 1_001, 0, 0));
    assert_eq!(flow.0.standing(), Standing::Finished);
    assert_eq!((flow.0.delivered(0), flow.0.delivered(1)), (1_600, 1_000));
    assert_eq!((flow.0.ways[0].packets, flow.0.ways[0].bytes), (3, 1_600));
}

#[test]
fn fins_that_cross_finish_a_flow() {
    let mut flow = Flow::new();
    assert!(!flow.see(true, 0, 0, 0, flag::FIN));
    assert!(!flow.see(false, 0, 0, 0, flag::FIN));
    assert!(!flow.see(true, 1, 1, 0, 0));
    assert!(flow.see(false, 1, 1, 0, 0));
    assert_eq!((flow.0.delivered(0), flow.0.delivered(1)), (0, 0));
}

#[test]
fn positions_go_on_where_numbers_wrap() {
    let mut flow = Flow::new();
    let step = 30_000_u64;
    let mut at = 0;
    while at < 9 << 32 {
        flow.see(true, at, 0, 30_000, 0);
        at += step;
        flow.see(false, 0, at, 0, 0);
    }
    assert_eq!((flow.0.delivered(0), flow.0.ways[0].sent), (at, at));
    assert!(!flow.see(true, at, 0, 0, flag::FIN));
    assert!(!flow.see(false, 0, at + 1, 0, flag::FIN));
    assert!(flow.see(true, at + 1, 1, 0, 0));
}

#[test]
fn a_reset_counts_only_with_the_number_that_is_expected() {
    let mut flow = Flow::new();
    flow.see(true, 0, 0, 1_000, 0);
    flow.see(false, 0, 600, 0, 0);
    for (at, counts) in [(599, false), (601, false), (999, false), (1_001, false), (600, true), (1_000, true)]
    {
        let mut again = Flow(flow.0);
        assert_eq!(again.see(true, at, 0, 0, flag::RST), counts, "at {at}");
        let expected = if counts { Standing::Reset(0) } else { Standing::Open };
        assert_eq!(again.0.standing(), expected);
        assert!(!again.see(true, at, 0, 0, flag::RST), "told once");
    }
    assert!(flow.see(false, 0, 600, 0, flag::RST));
    assert_eq!(flow.0.standing(), Standing::Reset(1));
}

#[test]
fn a_reset_acknowledges() {
    let mut flow = Flow::new();
    flow.see(true, 0, 0, 1_000, 0);
    // Not with a number from nowhere.
    assert!(!flow.see(false, 77, 900, 0, flag::RST));
    assert_eq!(flow.0.delivered(0), 0);
    assert!(flow.see(false, 0, 600, 0, flag::RST));
    assert_eq!((flow.0.delivered(0), flow.0.standing()), (600, Standing::Reset(1)));
}

#[test]
fn an_answer_to_a_reset_is_not_its_cause() {
    let mut flow = Flow::new();
    flow.see(true, 0, 0, 1_000, 0);
    flow.see(false, 0, 600, 0, 0);
    assert!(flow.see(false, 0, 600, 0, flag::RST));
    assert!(!flow.see(true, 1_000, 0, 0, flag::RST));
    assert_eq!(flow.0.standing(), Standing::Reset(1));
}

#[test]
fn a_reset_that_overtook_is_known_by_the_answer() {
    let mut flow = Flow::new();
    flow.see(false, 0, 0, 1_000, 0);
    flow.see(true, 0, 1_000, 0, 0);
    // 500 bytes before the reset arrive later or never.
    assert!(!flow.see(false, 1_500, 0, 0, flag::RST));
    assert_eq!(flow.0.standing(), Standing::Open, "the receiver may not have been there yet");
    assert!(flow.see(true, 0, 0, 0, flag::RST));
    assert_eq!(flow.0.standing(), Standing::Reset(1));
}

/// A flow at rest: 1,000 bytes up, 300 down, all acknowledged, and each may send up to 60,000 more.
fn at_rest() -> Flow {
    let mut flow = Flow::new();
    flow.see(true, 0, 0, 1_000, 0);
    flow.see(false, 0, 1_000, 300, 0);
    flow.see(true, 1_000, 300, 0, 0);
    flow
}

/// Both ends finish in good order.
fn finish(flow: &mut Flow) {
    assert!(!flow.see(true, 1_000, 300, 0, flag::FIN));
    assert!(!flow.see(false, 300, 1_001, 0, flag::FIN));
    assert!(flow.see(true, 1_001, 301, 0, 0));
    assert_eq!(flow.0.standing(), Standing::Finished);
    assert_eq!((flow.0.delivered(0), flow.0.delivered(1)), (1_000, 300));
}

#[test]
fn what_lies_outside_the_window_changes_nothing() {
    const EDGE: u64 = 1_000 + 60_000;
    let rest = at_rest();
    for at in [EDGE + 1, EDGE + (1 << 16), 16 << 20, 1 << 30, (1 << 31) - 1, u64::MAX, 0, 997] {
        for flags in [0, flag::FIN, flag::RST, flag::SYN, 0xff] {
            for payload in [0, 1] {
                let mut flow = Flow(rest.0);
                let payload = u32::try_from(payload).unwrap();
                assert_eq!(flow.told(true, at, 300, payload, flags), 0, "{at} {flags:#x} {payload}");
                assert_eq!(flow.0, rest.0, "{at} {flags:#x} {payload}");
                finish(&mut flow);
            }
        }
    }
    // Bytes that were never sent.
    let mut flow = Flow(rest.0);
    flow.see(true, 1_000, 1 << 20, 100, 0);
    assert_eq!((flow.0.ways[0].acked, flow.0.ways[0].sent), (300, 1_100));
}

/// The receiver has all bytes, a FIN included. It evaluates the acknowledgement only.
#[test]
fn what_ends_where_the_receiver_has_acknowledged_to_ends_nothing() {
    for payload in [0, 1, 400] {
        for flags in [flag::FIN, flag::RST, flag::FIN | flag::RST] {
            let len = payload + u32::from(flags & flag::FIN != 0);
            if len == 0 {
                // A reset with the expected number.
                continue;
            }
            let mut flow = at_rest();
            assert_eq!(
                flow.told(true, 1_000 - u64::from(len), 300, payload, flags),
                0,
                "{flags:#x} {payload}"
            );
            let up = flow.0.ways[0];
            assert_eq!((up.fin, up.marks, up.sent), (0, 0, 1_000), "{flags:#x} {payload}");
            finish(&mut flow);
        }
    }
}

#[test]
fn what_our_own_socket_has_granted_may_be_sent() {
    let way = Translation { granted: 90_000, ..UP };
    let mut state = State::new([0, 0], [50_000, 50_000]);
    let [up, down] = &mut state.ways;
    up.note(down, &way, &segment(&UP, 90_001, 0, 1_000, 0), 1);
    assert_eq!(up.sent, 0);
    up.note(down, &way, &segment(&UP, 89_999, 0, 1_000, 0), 1);
    assert_eq!(up.sent, 90_999);
}

#[test]
fn a_forgery_in_the_window_leaves_a_hole_and_the_end_is_known() {
    let expected = EgressAction::Rewrite { seq: DOWN.ack_start + 1_000, ack: DOWN.seq_start + 300 };
    let reset = Segment { flags: flag::RST | flag::ACK, ..Segment::default() };
    for (at, payload, flags) in [
        (1_001, 4, 0),
        (5_000, 4, flag::FIN),
        (1_077, 0, flag::RST),
        (60_999, 1_400, 0),
        (61_000, 0, flag::FIN),
    ] {
        let mut flow = at_rest();
        assert!(!flow.see(true, at, 300, payload, flags), "{at}");
        // An end that is asked for arrives: the backend has received 1,000 bytes.
        let [up, down] = &mut flow.0.ways;
        assert_eq!(decide_egress(RESET, &DOWN, down, up, &reset), expected, "{at}");
        let question = DOWN.ack_start + 999;
        assert_eq!(UP.question(up, down).0.wrapping_sub(UP.seq_start), question - DOWN.ack_start, "{at}");
        finish(&mut flow);
    }
    // Again and again, until the very end.
    let mut flow = at_rest();
    for at in 1_001..1_100 {
        flow.see(true, at, 300, 1, flag::FIN);
        flow.see(false, at, 1_000, 1, flag::FIN);
    }
    finish(&mut flow);
}

#[test]
fn packets_come_by_the_side_of_their_sender() {
    let up = Translation { device: 8, from: 6, ..UP };
    let down = Translation { device: 7, from: 8, ..DOWN };
    for (device, strict, loose) in [(6, true, true), (7, true, true), (8, false, false), (9, false, true)] {
        assert_eq!(up.comes_by(&down, device, true), strict, "{device}");
        assert_eq!(up.comes_by(&down, device, false), loose, "{device}");
    }
    // Both peers are on the same side.
    let back = Translation { device: 8, ..down };
    assert!(up.comes_by(&back, 8, true));
}

#[test]
fn a_fin_that_was_none_is_forgotten() {
    let mut flow = at_rest();
    flow.see(true, 1_010, 300, 0, flag::FIN);
    flow.see(true, 1_000, 300, 500, 0);
    flow.see(false, 300, 1_500, 0, flag::FIN);
    flow.see(true, 1_500, 301, 0, 0);
    assert_eq!((flow.0.standing(), flow.0.delivered(0)), (Standing::Open, 500 + 1_000));
    flow.see(true, 1_500, 301, 0, flag::FIN);
    assert!(flow.see(false, 301, 1_501, 0, 0));
    assert_eq!((flow.0.standing(), flow.0.delivered(0)), (Standing::Finished, 1_500));
}

#[test]
fn a_hole_is_filled_by_what_was_missing_or_acknowledged() {
    let to = |state: &State| {
        let [mut up, mut down] = state.ways;
        let reset = Segment { flags: flag::RST | flag::ACK, ..Segment::default() };
        match decide_egress(RESET, &DOWN, &mut down, &mut up, &reset) {
            EgressAction::Rewrite { seq, .. } => seq - DOWN.ack_start,
            other => panic!("{other:?}"),
        }
    };
    let mut flow = at_rest();
    flow.see(true, 2_000, 300, 500, 0);
    assert_eq!(to(&flow.0), 1_000);
    flow.see(true, 1_000, 300, 400, 0);
    assert_eq!(to(&flow.0), 1_400);
    flow.see(true, 1_400, 300, 600, 0);
    assert_eq!(to(&flow.0), 2_000, "what came before is not known any more");
    flow.see(false, 300, 2_500, 0, 0);
    assert_eq!(to(&flow.0), 2_500);
    flow.see(true, 2_500, 300, 10, 0);
    assert_eq!(to(&flow.0), 2_510);
}

#[test]
fn the_end_is_told_once() {
    let mut flow = at_rest();
    finish(&mut flow);
    for _ in 0..3 {
        assert_eq!(flow.told(true, 1_001, 301, 0, 0), 0);
        assert_eq!(flow.told(false, 300, 1_001, 0, flag::FIN), 0);
        assert_eq!(flow.told(false, 301, 1_001, 0, flag::RST), 0);
    }
    let mut flow = at_rest();
    assert!(flow.see(true, 1_000, 300, 0, flag::RST));
    assert_eq!(flow.told(true, 1_000, 300, 0, flag::RST), 0);
    assert_eq!(flow.told(true, 1_000, 300, 10, 0), 0);
    assert_eq!(flow.told(false, 300, 1_000, 10, 0), 0);
}

/// A copy is identified whatever other programs write into it, and an unidentified copy ends.
#[test]
fn a_copy_is_known_by_what_was_noted() {
    let way = Translation { own: 5_000, ..UP };
    let mut state = State::new([0, 5_000], [60_000, 60_000]);
    let ack = |acked: u64, payload: u32| segment(&UP, 0, acked, payload, 0);
    let [up, down] = &mut state.ways;
    // As the program does: true if the packet goes to the balancer's socket, too.
    let mut sees = |segment: &Segment| {
        if up.is_copy(segment) {
            return None;
        }
        let copies = way.is_for_us_too(up, segment);
        if copies {
            up.copies(segment);
        }
        up.note(down, &way, segment, 1);
        Some(copies)
    };
    assert_eq!(sees(&ack(1_000, 0)), Some(true));
    // Other packets overtake the copy: a packet without news is copied later.
    assert_eq!(sees(&ack(1_000, 100)), Some(false));
    assert_eq!(sees(&ack(900, 0)), Some(false));
    assert_eq!(sees(&ack(1_000, 0)), None);
    assert_eq!(sees(&ack(1_000, 0)), Some(true), "the same again is worth a copy");
    assert_eq!(sees(&ack(1_000, 0)), None);
    // Two copies are under way: the first one is not identified, and not copied again.
    assert_eq!(sees(&ack(2_000, 0)), Some(true));
    assert_eq!(sees(&ack(3_000, 0)), Some(true));
    assert_eq!(sees(&ack(2_000, 0)), Some(false));
    assert_eq!(sees(&ack(3_000, 0)), None);
    // A packet that ends something is none.
    assert_eq!(sees(&ack(4_000, 0)), Some(true));
    assert_eq!(sees(&segment(&UP, 0, 4_000, 0, flag::FIN)), Some(false));
    assert_eq!(sees(&ack(4_000, 0)), None);
    assert_eq!(sees(&ack(5_000, 0)), Some(true));
    assert_eq!(sees(&ack(5_000, 0)), None);
    assert_eq!(sees(&ack(5_000, 0)), Some(false), "our own socket knows all");
}

/// A preceding program hides the copy from this one: there is still no endless loop.
#[test]
fn copies_that_are_never_known_again_end() {
    let way = Translation { own: 5_000, ..UP };
    let mut state = State::new([0, 5_000], [60_000, 60_000]);
    let [up, down] = &mut state.ways;
    let mut queue: std::collections::VecDeque<Segment> =
        (1..=50).map(|at| segment(&UP, 0, at * 90, 0, 0)).collect();
    let mut turns = 0;
    while let Some(one) = queue.pop_front() {
        turns += 1;
        assert!(turns < 200, "for ever");
        if way.is_for_us_too(up, &one) {
            up.copies(&one);
            queue.push_back(Segment { seq: one.seq.wrapping_sub(1), ..one });
        }
        up.note(down, &way, &one, 1);
    }
}

#[test]
fn our_own_sockets_say_only_what_is_still_to_be_said() {
    let mut state = State::new([500, 0], [0, 0]);
    let [up, down] = &mut state.ways;
    // The 500 bytes of the hello, on leg B, whose incoming packets are those of the way down.
    let own = |from: u64, length: u32, flags: u8| Segment {
        seq: DOWN.ack_start.wrapping_add(u32::try_from(from).unwrap()),
        ack: DOWN.seq_start,
        window: 1,
        flags: flags | flag::ACK,
        payload: length,
    };
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &own(0, 500, 0)), EgressAction::Pass);
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &own(500, 0, 0)), EgressAction::Drop);
    down.acked = 400;
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &own(0, 500, 0)), EgressAction::Pass);
    assert_eq!(down.asked, 0);
    down.acked = 500;
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &own(0, 500, 0)), EgressAction::Pass);
    assert_eq!(down.asked, 1, "the socket has not heard that it arrived");
    // The acknowledgement covers one byte more than before.
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &own(0, 501, 0)), EgressAction::Pass);
    assert_eq!(up.sent, 501);
    assert_eq!(decide_egress(OFF, &BEGINNING, down, up, &own(0, 0, 0)), EgressAction::Pass);
}

#[test]
fn our_own_sockets_acknowledge_nothing_too_old() {
    let mut state = State::new([500, 0], [0, 0]);
    let [up, down] = &mut state.ways;
    // The balancer's socket has received 40 bytes from the backend, and the client 100,000 in total.
    let own = Segment {
        seq: DOWN.ack_start,
        ack: DOWN.seq_start.wrapping_add(40),
        flags: flag::ACK,
        payload: 500,
        ..Segment::default()
    };
    for (acked, verdict) in [
        (0, EgressAction::Pass),
        (41, EgressAction::Pass),
        (42, EgressAction::Rewrite { seq: own.seq, ack: DOWN.seq_start.wrapping_add(41) }),
        (100_000, EgressAction::Rewrite { seq: own.seq, ack: DOWN.seq_start.wrapping_add(99_999) }),
    ] {
        up.acked = acked;
        assert_eq!(decide_egress(CARRY, &DOWN, down, up, &own), verdict, "{acked}");
    }
}

#[test]
fn our_own_sockets_hear_what_they_wait_for() {
    // On leg B the balancer's socket has 500 bytes to deliver, and expects the byte behind 40 received ones.
    let way = Translation { own: 500, expected: DOWN.seq_start.wrapping_add(40), ..DOWN };
    let ack = |position: u32| DOWN.ack_start.wrapping_add(position);
    let mut track = Track::default();
    let some = Segment { ack: ack(300), flags: flag::ACK, payload: 1_000, ..Segment::default() };
    assert!(way.is_for_us_too(&track, &some));
    assert_eq!(way.for_us(some.ack), (way.expected, some.ack));
    assert_eq!(way.for_us(ack(9_000)), (way.expected, ack(500)), "the rest is none of its business");
    assert!(!way.is_for_us_too(&track, &Segment { flags: flag::RST | flag::ACK, ..some }));
    track.acked = 499;
    assert!(way.is_for_us_too(&track, &some));
    track.acked = 500;
    assert!(!way.is_for_us_too(&track, &some));
    track.asked = 1;
    assert!(way.is_for_us_too(&track, &some));
}

#[test]
fn our_own_sockets_may_ask_whether_a_peer_is_there() {
    let mut state = State::new([500, 0], [0, 0]);
    let [up, down] = &mut state.ways;
    let empty =
        |at: u32| Segment { seq: DOWN.ack_start.wrapping_add(at), flags: flag::ACK, ..Segment::default() };
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &empty(0)), EgressAction::Drop);
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &empty(0_u32.wrapping_sub(1))), EgressAction::Pass);
    assert_eq!(down.asked, 1);
    down.acked = 500;
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &empty(500)), EgressAction::Drop);
    assert_eq!(decide_egress(CARRY, &BEGINNING, down, up, &empty(499)), EgressAction::Pass);
}

#[test]
fn a_reset_of_ours_has_the_numbers_that_the_peer_expects() {
    let mut flow = Flow::new();
    flow.see(true, 0, 0, 1_500, 0);
    flow.see(false, 0, 1_500, 300, 0);
    // 50 of the 350 bytes are not acknowledged yet.
    flow.see(true, 1_500, 300, 0, 0);
    flow.see(false, 300, 1_500, 50, 0);
    let [up, down] = &mut flow.0.ways;
    let reset = Segment { flags: flag::RST | flag::ACK, ..Segment::default() };
    // To the client, which was sent 350 bytes, and has sent 1,500 from 1,000 below the wrap.
    assert_eq!(decide_egress(RESET, &UP, up, down, &reset), EgressAction::Rewrite { seq: 355, ack: 500 });
    for mode in [RESET, CARRY] {
        assert_eq!(
            decide_egress(mode, &DOWN, down, up, &reset),
            EgressAction::Rewrite { seq: 1_590, ack: 70_350 }
        );
    }
    // The stack's answer to a packet of the peer.
    let answer = Segment { flags: flag::RST, seq: 77, ..reset };
    assert_eq!(decide_egress(RESET, &UP, up, down, &answer), EgressAction::Pass);
    assert_eq!(
        decide_egress(RESET, &UP, up, down, &Segment { flags: flag::ACK, ..reset }),
        EgressAction::Drop
    );
    assert_eq!(
        decide_egress(OVER, &UP, up, down, &Segment { flags: flag::SYN, ..reset }),
        EgressAction::Forget
    );
    assert_eq!(decide_egress(OVER, &UP, up, down, &reset), EgressAction::Drop);
}

#[test]
fn what_dying_sockets_say_of_a_flow_that_is_kept_is_dropped() {
    let mut state = State::new([500, 0], [0, 0]);
    let [up, down] = &mut state.ways;
    let empty =
        |at: u32, flags: u8| Segment { seq: DOWN.ack_start.wrapping_add(at), flags, ..Segment::default() };
    for flags in [flag::RST, flag::RST | flag::ACK, flag::FIN | flag::ACK, flag::SYN] {
        assert_eq!(
            decide_egress(KEPT, &Translation { own: 500, ..DOWN }, down, up, &empty(500, flags)),
            EgressAction::Drop
        );
    }
    assert_eq!(up.sent, 500);
    // An idle socket may still probe.
    down.acked = 500;
    assert_eq!(
        decide_egress(KEPT, &Translation { own: 500, ..DOWN }, down, up, &empty(499, flag::ACK)),
        EgressAction::Pass
    );
    assert_eq!(down.asked, 1);
}

#[test]
fn what_comes_past_the_programs_is_noticed_once() {
    let mut state = State::new([500, 0], [0, 0]);
    let [up, down] = &mut state.ways;
    down.acked = 9_000;
    let way = Translation { own: 500, ..DOWN };
    let empty =
        |at: u32| Segment { seq: DOWN.ack_start.wrapping_add(at), flags: flag::ACK, ..Segment::default() };
    // The socket acknowledges everything that it has sent, in response to an unexpected packet.
    assert_eq!(
        decide_egress(CARRY, &Translation { flags: BEGINS, ..way }, down, up, &empty(500)),
        EgressAction::Pass
    );
    assert_eq!(decide_egress(KEPT, &way, down, up, &empty(499)), EgressAction::Pass);
    assert_eq!(down.marks & BYPASSED, 0);
    assert_eq!(decide_egress(KEPT, &way, down, up, &empty(500)), EgressAction::Bypassed);
    assert_eq!(down.marks & BYPASSED, BYPASSED);
    assert_eq!(decide_egress(KEPT, &way, down, up, &empty(500)), EgressAction::Drop);
    assert_eq!(decide_egress(HOLD, &way, down, up, &empty(9_000)), EgressAction::Drop);
    // A probe of the peer's position.
    assert_eq!(decide_egress(HOLD, &way, down, up, &empty(499)), EgressAction::Pass);
}

#[test]
fn a_timestamp_is_found_where_nearly_all_put_it() {
    let mut tcp = [0; TCP_BYTES];
    tcp[20..28].copy_from_slice(&[1, 1, 8, 10, 0, 0, 1, 2]);
    assert_eq!(stamp(&tcp, 32), Some(258));
    assert_eq!(stamp(&tcp, 28), None);
    tcp[22] = 5;
    assert_eq!(stamp(&tcp, 32), None);
}

proptest! {
    /// For any sequence of packets, positions only grow, and no unsent byte is acknowledged.
    #[test]
    fn nothing_goes_backwards(packets in proptest::collection::vec(
        (any::<bool>(), any::<[u32; 2]>(), any::<u16>(), any::<u8>(), 0_u32..70_000), 0..40,
    )) {
        let mut state = State::new([10, 20], [1_000, 1_000]);
        for (up, [seq, ack], window, flags, payload) in packets {
            let before = state;
            let [one, other] = &mut state.ways;
            let segment = Segment { seq, ack, window, flags, payload };
            if up {
                one.note(other, &UP, &segment, 1);
            } else {
                other.note(one, &DOWN, &segment, 1);
            }
            for (now, then) in state.ways.iter().zip(&before.ways) {
                prop_assert!(now.sent >= then.sent && now.acked >= then.acked && now.allowed >= then.allowed);
            }
            let [up, down] = &state.ways;
            prop_assert!(up.acked <= down.sent && down.acked <= up.sent);
            let (up, down) = (state.delivered(0), state.delivered(1));
            prop_assert!(up <= state.ways[0].sent && down <= state.ways[1].sent);
        }
    }
}
