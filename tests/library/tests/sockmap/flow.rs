//! All bytes arrive, in order, on any path.

use std::{thread, time::Duration};

use libtest_mimic::Trial;
use snisplice::testing::Carrier;

use crate::{
    data::{Random, Stream, expect_eof},
    rig::{Link, Options, Rig, wait_until},
    trial,
};

const MIB: u64 = 1024 * 1024;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("200_mib_both_ways_at_once", both_ways_at_once),
        trial("what_came_before_goes_first", what_came_before_goes_first),
        trial("passes_and_returns_keep_the_order", passes_and_returns),
        trial("a_spent_budget_keeps_the_order", spent_budget),
        trial("small_send_buffers_keep_the_order", small_send_buffers),
        trial("one_byte_at_a_time", one_byte_at_a_time),
        trial("request_and_response", request_and_response),
        trial("urgent_data_goes_inline", urgent),
    ]
}

/// Sends in both directions concurrently, checks every byte, half-closes both directions and checks the account.
pub(crate) fn exchange(link: &Link, bytes: u64, piece: usize) {
    let ends = [(&link.client, &link.backend, 1), (&link.backend, &link.client, 2)];
    thread::scope(|scope| {
        for (from, to, seed) in ends {
            scope.spawn(move || {
                let sent = Stream::new(seed).send(from, bytes, piece, &mut Random::new(seed));
                sent.expect("the connection holds");
                from.shutdown(std::net::Shutdown::Write).expect("FIN");
            });
            scope.spawn(move || {
                Stream::new(seed).expect(to, bytes);
                expect_eof(to);
            });
        }
    });
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("finished", bytes, bytes));
    assert_eq!(outcome.carrier, Some(Carrier::Sockmap));
}

fn both_ways_at_once() {
    let rig = Rig::new();
    exchange(&rig.link(), 100 * MIB, 300_000);
    let counters = rig.kernel.counters().expect("counters");
    // The program passed the bytes that it did not redirect, while one side was slower than the other. Their number
    // depends on the machine.
    assert_eq!(counters.redirected_bytes + counters.passed_bytes, 200 * MIB, "{counters:?}");
    assert!(counters.redirected_bytes > 0, "{counters:?}");
}

fn what_came_before_goes_first() {
    let rig = Rig::new();
    let (mut up, mut down) = (Stream::new(1), Stream::new(2));
    let link = rig.link_after(|client, backend| {
        up.send(client, 10_000, 1_000, &mut Random::new(1)).expect("queued");
        down.send(backend, 10_000, 1_000, &mut Random::new(2)).expect("queued");
    });
    Stream::new(1).expect(&link.backend, 10_000);
    Stream::new(2).expect(&link.client, 10_000);
    up.send(&link.client, 10_000, 1_000, &mut Random::new(1)).expect("queued");
    let mut expected = Stream::new(1);
    expected.skip(10_000);
    expected.expect(&link.backend, 10_000);
    assert_eq!(rig.kernel.counters().expect("counters").passed_bytes, 0);
}

fn passes_and_returns() {
    let rig = Rig::with(&Options { in_flight_bytes: 1, ..Options::default() });
    stop_and_go(&rig);
    exchange(&rig.link(), 20 * MIB, 60_000);
}

/// Bytes that exceed the budget go through userspace.
fn spent_budget() {
    let rig = Rig::with(&Options { total_in_flight_bytes: 0, ..Options::default() });
    wait_until("a packet finds others waiting", || {
        exchange(&rig.link(), 20 * MIB, 300_000);
        let counters = rig.kernel.counters().expect("counters");
        counters.over_budget > 0 && counters.returns > 0
    });
    let in_flight = || rig.kernel.budget().in_flight().expect("the sum");
    wait_until("every share is given back", || in_flight() == 0);
}

fn small_send_buffers() {
    let rig = Rig::with(&Options { send_buffer: 300 * 1024, ..Options::default() });
    stop_and_go(&rig);
    assert!(rig.kernel.counters().expect("counters").no_room > 0);
    exchange(&rig.link(), 20 * MIB, 60_000);
}

/// Makes each direction leave the kernel and return several times. The receiver reads nothing until its sender is
/// blocked, then everything, and then keeps up.
fn stop_and_go(rig: &Rig) {
    const ROUNDS: u64 = 2;
    let link = rig.tight_link();
    for (from, to, seed) in [(&link.client, &link.backend, 1), (&link.backend, &link.client, 2)] {
        let (mut stream, mut expected) = (Stream::new(seed), Stream::new(seed));
        for _ in 0..ROUNDS {
            let sent = stream.send_until_blocked(from, Duration::from_millis(300));
            expected.expect(to, sent);
            for _ in 0..10 {
                stream.send(from, 1_000, 1_000, &mut Random::new(seed)).expect("the connection holds");
                expected.expect(to, 1_000);
            }
        }
    }
    let counters = rig.kernel.counters().expect("counters");
    let falls = counters.over_high_water + counters.over_budget + counters.no_room;
    assert!(falls >= 2 * ROUNDS && counters.returns >= 2 * ROUNDS, "{counters:?}");
}

fn one_byte_at_a_time() {
    const BYTES: u64 = 2_000;
    // The number of passed bytes depends on the speeds of both sides.
    let rig = Rig::new();
    exchange(&rig.link(), 20_000, 1);
    // If each byte is awaited, there is always room.
    let rig = Rig::new();
    let link = rig.link();
    for (from, to, seed) in [(&link.client, &link.backend, 1), (&link.backend, &link.client, 2)] {
        let (mut stream, mut expected) = (Stream::new(seed), Stream::new(seed));
        for _ in 0..BYTES {
            stream.send(from, 1, 1, &mut Random::new(seed)).expect("the connection holds");
            expected.expect(to, 1);
        }
    }
    let counters = rig.kernel.counters().expect("counters");
    assert_eq!((counters.redirected_bytes, counters.passed_bytes), (2 * BYTES, 0), "{counters:?}");
}

fn request_and_response() {
    let rig = Rig::new();
    let link = rig.link();
    let (mut up, mut up_expected) = (Stream::new(1), Stream::new(1));
    let (mut down, mut down_expected) = (Stream::new(2), Stream::new(2));
    let mut random = Random::new(3);
    for round in 0..2_000 {
        let size = 1 + round % 512;
        up.send(&link.client, size, 512, &mut random).expect("sent");
        up_expected.expect(&link.backend, size);
        down.send(&link.backend, size * 3, 2_048, &mut random).expect("sent");
        down_expected.expect(&link.client, size * 3);
    }
    assert_eq!(rig.kernel.counters().expect("counters").passed_bytes, 0);
}

fn urgent() {
    let rig = Rig::new();
    let link = rig.link();
    let send = |bytes: &[u8], flags| {
        rustix::net::send(&link.client, bytes, flags).expect("sent");
        // In a packet of its own.
        thread::sleep(Duration::from_millis(5));
    };
    send(b"a", rustix::net::SendFlags::empty());
    send(b"b", rustix::net::SendFlags::OOB);
    send(b"c", rustix::net::SendFlags::empty());
    let mut read = [0; 3];
    std::io::Read::read_exact(&mut &link.backend, &mut read).expect("three bytes");
    assert_eq!(&read, b"abc");
}
