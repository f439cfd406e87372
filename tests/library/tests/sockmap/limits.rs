//! The cost limits of a connection, for any behaviour of its ends.

use std::{fs, io::Write as _, net::Shutdown, os::fd::AsFd as _, process::Command, thread, time::Duration};

use libtest_mimic::Trial;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use snisplice::testing::{Carrier, sockmap::Ineligible};
use snisplice_common::sockmap::budget::SMALL_BYTES;

use crate::{
    data::{Random, Stream, expect_eof},
    rig::{Link, Options, Rig, wait_until},
    trial, verifier,
};

const MIB: u64 = 1024 * 1024;

/// The limit of the bytes between the two ends of one direction.
const HELD: u64 = 16 * MIB;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_backend_that_does_not_read_stops_the_client", a_backend_that_does_not_read),
        trial("a_client_that_does_not_read_stops_an_echoing_backend", echo),
        trial("both_ways_full_then_read", both_ways_full),
        trial("a_full_way_up_does_not_stop_the_way_down", full_one_way),
        trial("the_sum_of_what_waits_is_bounded", bounded_sum),
        trial("shares_of_the_silent_are_given_back", shares_of_the_silent),
        trial("a_full_map_means_the_relay", a_full_map),
        trial("an_idle_connection_costs_little", small_future),
        trial("2000_connections_leave_nothing_behind", nothing_left_behind),
        trial("the_verifier_is_soon_done", || {
            let _rig = Rig::new();
            verifier::is_soon_done(50_000);
        }),
    ]
}

fn a_backend_that_does_not_read() {
    let rig = Rig::new();
    let link = rig.tight_link();
    let mut stream = Stream::new(1);
    let mut expected = Stream::new(1);
    // Repeated after a read, from which the kernel might increase the limit.
    for _ in 0..3 {
        let sent = stream.send_until_blocked(&link.client, Duration::from_secs(1));
        assert!(sent < HELD, "{sent} bytes held");
        expected.expect(&link.backend, sent);
    }
    stream.send(&link.client, MIB, 10_000, &mut Random::new(1)).expect("sent");
    expected.expect(&link.backend, MIB);
    let counters = rig.kernel.counters().expect("counters");
    assert!(counters.no_room + counters.over_high_water > 0 && counters.returns > 0, "{counters:?}");
}

/// The client sends and does not read. The backend echoes, and stops reading while it cannot send.
fn echo() {
    let rig = Rig::new();
    let link = rig.tight_link();
    let mut stream = Stream::new(1);
    thread::scope(|scope| {
        let backend = &link.backend;
        scope.spawn(move || {
            std::io::copy(&mut &*backend, &mut &*backend).expect("echoed");
            backend.shutdown(Shutdown::Write).expect("FIN");
        });
        let held = stream.send_until_blocked(&link.client, Duration::from_secs(1));
        assert!(held < 2 * HELD, "{held} bytes held");
        let more = 50 * MIB;
        let client = &link.client;
        scope.spawn(move || {
            stream.send(client, more, 100_000, &mut Random::new(1)).expect("sent");
            client.shutdown(Shutdown::Write).expect("FIN");
        });
        Stream::new(1).expect(&link.client, held + more);
        expect_eof(&link.client);
    });
    assert_eq!(link.outcome().reason, "finished");
}

fn both_ways_full() {
    let rig = Rig::new();
    let link = rig.tight_link();
    let (mut up, mut down) = (Stream::new(1), Stream::new(2));
    let (sent_up, sent_down) = thread::scope(|scope| {
        let up = scope.spawn(|| up.send_until_blocked(&link.client, Duration::from_secs(2)));
        let down = scope.spawn(|| down.send_until_blocked(&link.backend, Duration::from_secs(2)));
        (up.join().expect("blocked"), down.join().expect("blocked"))
    });
    assert!(sent_up < HELD && sent_down < HELD, "{sent_up} and {sent_down} bytes held");
    // One direction after the other: neither waits for the other.
    Stream::new(2).expect(&link.client, sent_down);
    Stream::new(1).expect(&link.backend, sent_up);
    up.send(&link.client, MIB, 10_000, &mut Random::new(1)).expect("sent");
    let mut expected = Stream::new(1);
    expected.skip(sent_up);
    expected.expect(&link.backend, MIB);
}

/// A backend that has read enough of a request, and answers without reading on.
fn full_one_way() {
    let rig = Rig::new();
    let link = rig.tight_link();
    // Traffic down while the up direction fills.
    let mut down = Stream::new(2);
    let mut down_expected = Stream::new(2);
    let mut up = Stream::new(1);
    let sent = thread::scope(|scope| {
        let up = scope.spawn(|| up.send_until_blocked(&link.client, Duration::from_secs(1)));
        scope.spawn(|| down_expected.expect(&link.client, 100 * MIB));
        down.send(&link.backend, 100 * MIB, 100_000, &mut Random::new(1)).expect("sent");
        up.join().expect("blocked")
    });
    assert!(sent < HELD, "{sent} bytes held");
    down.send(&link.backend, MIB, 1_000, &mut Random::new(1)).expect("sent");
    down_expected.expect(&link.client, MIB);
    Stream::new(1).expect(&link.backend, sent);
}

/// Many concurrent flows that are faster than the kernel's worker.
fn bounded_sum() {
    const FLOWS: u64 = 16;
    const TOTAL: u64 = 512 * 1024;
    // Programs on other processors may each admit a packet at the same time.
    let most = TOTAL + 64 * 1024 * thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let rig = Rig::with(&Options { total_in_flight_bytes: TOTAL, ..Options::default() });
    let in_flight = || rig.kernel.budget().in_flight().expect("the sum");
    let links: Vec<_> = (0..FLOWS).map(|_| rig.link()).collect();
    let largest = thread::scope(|scope| {
        let tasks: Vec<_> = links
            .iter()
            .zip(0..)
            .flat_map(|(link, seed)| {
                let (client, backend) = (&link.client, &link.backend);
                let sending = scope.spawn(move || {
                    let sent = Stream::new(seed).send(client, 8 * MIB, 500_000, &mut Random::new(seed));
                    sent.expect("the connection holds");
                });
                [sending, scope.spawn(move || Stream::new(seed).expect(backend, 8 * MIB))]
            })
            .collect();
        let mut largest = 0;
        while !tasks.iter().all(thread::ScopedJoinHandle::is_finished) {
            largest = largest.max(in_flight());
            thread::sleep(Duration::from_micros(100));
        }
        largest
    });
    assert!(largest <= most, "{largest} bytes waited, at most {most} should");
    drop(links);
    wait_until("every share is given back", || rig.entries() == [0; 4] && in_flight() == 0);
}

/// A direction that becomes silent after a burst has an outdated share. A refusal for that reason updates the share.
fn shares_of_the_silent() {
    // One packet has a share, and two exceed the budget, at any time of the kernel's worker.
    const TOTAL: u64 = 2 * SMALL_BYTES as u64;
    const PACKET: usize = 100_000;
    with_large_packets(|| {
        let rig = Rig::with(&Options { total_in_flight_bytes: TOTAL, v6: true, ..Options::default() });
        let in_flight = || rig.kernel.budget().in_flight().expect("the sum");
        let refused = || rig.kernel.counters().expect("counters").over_budget;
        let [silent, other] = [rig.link(), rig.link()];
        let send = |link: &Link, stream: &mut Stream| {
            let mut expected = stream.clone();
            let mut packet = vec![0; PACKET];
            stream.fill(&mut packet);
            (&link.client).write_all(&packet).expect("sent");
            expected.expect(&link.backend, PACKET as u64);
        };
        // The first ones are segmented, until the window has grown.
        let mut stream = Stream::new(1);
        wait_until("a silent direction keeps a share", || {
            send(&silent, &mut stream);
            in_flight() > 0
        });
        let mut stream = Stream::new(2);
        wait_until("someone is refused", || {
            send(&other, &mut stream);
            refused() > 0
        });
        wait_until("the silent one is looked at", || in_flight() == 0);
        drop((silent, other));
        wait_until("nothing is left", || rig.entries() == [0; 4] && in_flight() == 0);
    });
}

/// Runs `work` in a network namespace whose loopback device accepts IPv6 packets of more than 64 KiB (Linux 5.19).
fn with_large_packets(work: impl FnOnce() + Send) {
    /// Two segments.
    const LARGEST: &str = "140000";
    let name = format!("snisplice-large-{}", std::process::id());
    let ip = |args: &[&str]| {
        let done = Command::new("ip").args(args).status().expect("`ip` (package iproute2) starts");
        assert!(done.success(), "ip {args:?}");
    };
    ip(&["netns", "add", &name]);
    let namespace = fs::File::open(format!("/run/netns/{name}"));
    ip(&["-n", &name, "link", "set", "lo", "up", "gso_max_size", LARGEST, "gro_max_size", LARGEST]);
    // The namespace exists as long as a thread is inside.
    ip(&["netns", "del", &name]);
    let namespace = namespace.expect("it is there");
    thread::scope(|scope| {
        scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("entered");
            work();
        });
    });
}

fn a_full_map() {
    let rig = Rig::with(&Options { connections: 1, ..Options::default() });
    let first = rig.link();
    let carries = |link: &Link, seed| {
        let (client, backend) = (&link.client, &link.backend);
        thread::scope(|scope| {
            scope.spawn(|| {
                let sent = Stream::new(seed).send(client, 8 * MIB, 100_000, &mut Random::new(seed));
                sent.expect("the connection holds");
            });
            Stream::new(seed).expect(backend, 8 * MIB);
        });
    };
    carries(&first, 1);
    let second = rig.link();
    carries(&second, 2);
    second.client.shutdown(Shutdown::Write).expect("FIN");
    second.backend.shutdown(Shutdown::Write).expect("FIN");
    assert_eq!(second.outcome().carrier, Some(Carrier::Relay));
    assert_eq!(rig.kernel.stats().fallbacks(Ineligible::MapFull), 1);
    // There is room again after the first end.
    drop(first);
    wait_until("the first is forgotten", || rig.entries() == [0; 4]);
    let third = rig.link();
    carries(&third, 3);
    assert_eq!(rig.kernel.stats().enrolled(), 2);
}

fn small_future() {
    let rig = Rig::new();
    let link = rig.link();
    drop((link.client.shutdown(Shutdown::Write), link.backend.shutdown(Shutdown::Write)));
    let bytes = link.outcome().future_bytes;
    // A separate box of some 230 bytes has the two sockets.
    assert!(bytes <= 912, "the future of a connection has {bytes} bytes");
}

fn nothing_left_behind() {
    let rig = Rig::new();
    let descriptors = || fs::read_dir("/proc/self/fd").expect("procfs").count();
    let before = descriptors();
    for round in 0..2_000_u64 {
        let link = rig.link();
        Stream::new(round).send(&link.client, 1 + round % 5_000, 10_000, &mut Random::new(1)).expect("sent");
        Stream::new(round).expect(&link.backend, 1 + round % 5_000);
        let Link { client, backend, .. } = &link;
        client.shutdown(Shutdown::Write).expect("FIN");
        expect_eof(backend);
        backend.shutdown(Shutdown::Write).expect("FIN");
        expect_eof(client);
        let outcome = link.outcome();
        assert_eq!((outcome.reason, outcome.carrier), ("finished", Some(Carrier::Sockmap)));
    }
    assert_eq!(rig.entries(), [0; 4]);
    // Other tests of this process open some at the same time.
    let after = descriptors();
    assert!(after < before + 200, "{before} descriptors became {after}");
}
