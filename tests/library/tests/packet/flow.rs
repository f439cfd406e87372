//! Packets of a flow: translated ones, ones left to the stack, and the flow's record.

use std::{
    sync::Arc,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use snisplice_common::packet::{
    flow::{CARRY, OFF, OVER, RESET, Rules, Standing, State},
    segment::flag,
};
use snisplice_wakeup::{Peer, Ready, Token, Wakeups, What};

use crate::lab::{
    DROP, FLOW, Lab, NEXT, REDIRECT, Segment, blocks, expected, is_valid, leg, packet, rules, timestamps,
    to_the_end,
};

pub(crate) fn translated(v6: bool) {
    let lab = Lab::new(v6);
    let segments = [
        vec![],
        timestamps(),
        [timestamps(), blocks(3)].concat(),
        blocks(4),
        blocks(1),
        // At odd offsets, padded with an unused option, and cut off.
        [vec![1], timestamps()[2..].to_vec(), vec![5, 10, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
        vec![254, 6, 1, 2, 3, 4, 8, 10, 0, 0],
        vec![1; 40],
    ];
    for options in segments {
        for way in [0, 1] {
            for payload in [0, 1, 101, 1_400] {
                let segment =
                    Segment { options: options.clone(), payload: vec![3; payload], ..Segment::default() };
                let original = packet(v6, way, &segment);
                assert!(is_valid(v6, &original), "the test's own packet");
                let (verdict, out) = lab.run(&original);
                assert_eq!(verdict, REDIRECT, "{options:?}");
                assert_eq!(out, expected(v6, &rules(v6, CARRY).ways[way as usize], &original), "{options:?}");
                assert!(is_valid(v6, &out), "checksums after {options:?} with {payload} bytes");
            }
        }
    }
}

pub(crate) fn left_alone() {
    let mut lab = Lab::new(false);
    lab.tuples.remove(&leg(false, 1)).expect("it is there");
    let original = packet(false, 1, &Segment::default());
    assert_eq!(lab.run(&original), (NEXT, original));
    // Neither IPv4 nor IPv6.
    let mut other = packet(false, 0, &Segment::default());
    other[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(lab.run(&other), (NEXT, other));
}

/// The programs look a packet up only if a tuple with its counter in the Bloom filter is counted.
pub(crate) fn uncounted(v6: bool) {
    let lab = Lab::new(v6);
    for way in [0, 1] {
        let data = packet(v6, way, &Segment::default());
        lab.programs.bloom().remove(&leg(v6, way));
        assert_eq!(lab.run(&data), (NEXT, data.clone()));
        lab.programs.bloom().add(&leg(v6, way));
        assert_eq!(lab.run(&data).0, REDIRECT);
    }
}

pub(crate) fn not_understood() {
    let lab = Lab::new(false);
    let changed = |at: usize, byte: u8| {
        let mut packet = packet(false, 0, &Segment::default());
        packet[at] = byte;
        packet
    };
    // More fragments, a fragment's offset, options, another protocol, another version.
    for packet in [changed(20, 0x20), changed(21, 1), changed(14, 0x46), changed(23, 17), changed(14, 0x65)] {
        assert_eq!(lab.run(&packet), (NEXT, packet));
    }
    let v6 = Lab::new(true);
    let mut packet = packet(true, 0, &Segment::default());
    // An extension header.
    packet[20] = 0;
    assert_eq!(v6.run(&packet), (NEXT, packet));
}

pub(crate) fn modes_decide() {
    let mut lab = Lab::new(false);
    let data = packet(false, 0, &Segment::default());
    let begin = packet(false, 0, &Segment { flags: flag::SYN, payload: Vec::new(), ..Segment::default() });
    for (mode, of_data, of_begin) in
        [(OFF, NEXT, NEXT), (RESET, NEXT, NEXT), (CARRY, REDIRECT, REDIRECT), (OVER, REDIRECT, NEXT)]
    {
        lab.set(rules(false, mode));
        assert_eq!((lab.run(&data).0, lab.run(&begin).0), (of_data, of_begin), "mode {mode}");
    }
    // A new connection from the old address.
    assert_eq!(lab.run(&data).0, NEXT);
    assert_eq!(lab.run(&packet(false, 1, &Segment::default())).0, REDIRECT);
}

pub(crate) fn followed_to_its_end() {
    let lab = Lab::new(false);
    to_the_end(&lab, false, || assert_eq!(lab.state().standing(), Standing::Open));
    let state = lab.state();
    assert_eq!(state.standing(), Standing::Finished);
    assert_eq!((state.delivered(0), state.delivered(1)), (100, 50));
    assert_eq!((state.ways[0].packets, state.ways[1].packets), (3, 2));
    assert!(state.ways[0].last_seen > 0);
    let totals = lab.programs.totals().expect("totals");
    assert_eq!((totals.packets, totals.bytes, totals.failed), (5, 150, 0));
}

/// The SYN of a connection, on the addresses of an earlier flow.
fn beginning() -> Segment {
    Segment {
        seq: 77_777,
        ack: 0,
        flags: flag::SYN,
        options: [vec![2, 4, 5, 0xb4], timestamps()[2..].to_vec()].concat(),
        payload: Vec::new(),
    }
}

/// A peer that has lost the state of its flow must not begin another one without a route.
pub(crate) fn begins(v6: bool) {
    let lab = Lab::new(v6);
    assert_eq!(lab.run(&packet(v6, 1, &Segment { payload: vec![3; 40], ..Segment::default() })).0, REDIRECT);
    assert_eq!(lab.run(&packet(v6, 0, &Segment { ack: 2_040, ..Segment::default() })).0, REDIRECT);
    let state = lab.state();
    let begin = beginning();
    let question = Segment { seq: 1_100, ack: 2_040, flags: flag::ACK, ..begin.clone() };
    let (verdict, out) = lab.run(&packet(v6, 0, &begin));
    assert_eq!(verdict, REDIRECT);
    assert_eq!(out, expected(v6, &rules(v6, CARRY).ways[0], &packet(v6, 0, &question)));
    assert!(is_valid(v6, &out));
    assert_eq!(lab.state(), state, "it is no packet of the flow");
    // With data (RFC 7413) it is dropped. The retransmission has none.
    assert_eq!(lab.run(&packet(v6, 0, &Segment { payload: vec![1; 9], ..begin })).0, DROP);
}

/// A port is reused before userspace has closed its former socket. The socket is reset, and the addresses belong to
/// no flow any more. The SYN is repeated as a copy.
pub(crate) fn let_in(v6: bool) {
    let mut lab = Lab::new(v6);
    let begin = beginning();
    for reset in [false, true] {
        for way in [0, 1] {
            lab.add_tuple(v6, way);
        }
        lab.states.set(FLOW, State::new([0, 0], [60_000, 60_000]), 0).expect("a place in the array");
        if reset {
            let reset = Segment { flags: flag::RST | flag::ACK, payload: Vec::new(), ..Segment::default() };
            assert_eq!(lab.run(&packet(v6, 0, &reset)).0, REDIRECT);
        } else {
            to_the_end(&lab, v6, || ());
        }
        let (verdict, out) = lab.run(&packet(v6, 0, &begin));
        assert_eq!(verdict, NEXT);
        assert!(is_valid(v6, &out));
        let tcp = &out[if v6 { 54 } else { 34 }..];
        let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().expect("four bytes"));
        let expected = rules(v6, CARRY).ways[0].expected;
        assert_eq!((number(4), number(8), tcp[13]), (expected, 0, flag::RST));
        let data = packet(v6, 0, &Segment::default());
        assert_eq!(lab.run(&data), (NEXT, data));
    }
}

/// Two processors may handle packets of one direction concurrently, and no later packet repeats the numbers of the
/// last ones.
pub(crate) fn noted_at_once() {
    const ROUNDS: u32 = 20_000;
    const STEP: u32 = 2;
    let mut lab = Lab::new(false);
    let mut state = State::new([0, 0], [60_000, 60_000]);
    state.ways[1].sent = u64::from(STEP * ROUNDS);
    lab.states.set(FLOW, state, 0).expect("a place in the array");
    thread::scope(|scope| {
        for first in 1..=STEP {
            let lab = &lab;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let at = STEP * round + first;
                    let segment =
                        Segment { seq: 999 + at, ack: 2_000 + at, payload: vec![1], ..Segment::default() };
                    assert_eq!(lab.run(&packet(false, 0, &segment)).0, REDIRECT);
                }
            });
        }
    });
    let track = lab.state().ways[0];
    let all = u64::from(STEP * ROUNDS);
    assert_eq!((track.sent, track.acked), (all, all));
    assert_eq!((track.packets, track.bytes), (all, all));
}

/// With any mark: the record identifies it.
pub(crate) fn a_copy_comes_by_again() {
    let mut lab = Lab::new(false);
    let mut rules = rules(false, CARRY);
    rules.ways[0].own = 500;
    lab.set(rules);
    lab.states.set(FLOW, State::new([0, 500], [60_000, 60_000]), 0).expect("a place in the array");
    let ack = packet(false, 0, &Segment { ack: 2_300, ..Segment::default() });
    assert_eq!(lab.run(&ack).0, REDIRECT);
    let (verdict, out) = lab.run(&ack);
    assert_eq!((verdict, out.len(), is_valid(false, &out)), (NEXT, 54, true));
    assert_eq!(lab.state().ways[0].packets, 1);
}

/// With any number of late packets.
pub(crate) fn the_end_wakes_once() {
    const LOOK: Ready = Ready::both(What::Passed);
    let mut lab = Lab::new(false);
    let woken = Arc::new(Wakeups::default());
    let slot = woken.insert();
    let worker = lab.programs.register(woken.clone());
    let token = Token { worker, slot, peer: Peer::Client }.pack();
    lab.set(Rules { token, ..rules(false, CARRY) });
    to_the_end(&lab, false, || ());
    let look = || {
        let context = std::task::Context::from_waker(std::task::Waker::noop());
        woken.poll(slot, LOOK, &context).is_ready()
    };
    let started = Instant::now();
    while !look() {
        assert!(started.elapsed() < Duration::from_secs(60), "nobody hears of the end");
        sleep(Duration::from_millis(1));
    }
    for _ in 0..1_000 {
        let late = Segment { seq: 1_101, ack: 2_051, payload: Vec::new(), ..Segment::default() };
        assert_eq!(lab.run(&packet(false, 0, &late)).0, REDIRECT);
        let fin = Segment { seq: 1_050, ack: 2_101, flags: flag::FIN | flag::ACK, ..late };
        assert_eq!(lab.run(&packet(false, 1, &fin)).0, REDIRECT);
    }
    // The next event is another flow's: once it is received, all earlier ones were.
    lab.states.set(FLOW, State::new([0, 0], [60_000, 60_000]), 0).expect("a place in the array");
    let other = woken.insert();
    let token = Token { worker, slot: other, peer: Peer::Client }.pack();
    lab.set(Rules { token, ..rules(false, CARRY) });
    to_the_end(&lab, false, || ());
    let started = Instant::now();
    let context = std::task::Context::from_waker(std::task::Waker::noop());
    while woken.poll(other, LOOK, &context).is_pending() {
        assert!(started.elapsed() < Duration::from_secs(60), "nobody hears of the other end");
        sleep(Duration::from_millis(1));
    }
    assert!(!look(), "late packets wake somebody");
}
