//! The packet programs on made-up packets, in the running kernel: they must do what the functions do that they are
//! made of.
//!
//! Without the privilege to load programs the tests are reported as ignored; with `SNISPLICE_REQUIRE_ALL=1` they
//! fail instead.

mod icmp;
#[path = "../sockmap/verifier.rs"]
mod verifier;

use std::{
    collections::BTreeSet,
    fs::read_dir,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData};
use libtest_mimic::{Arguments, Trial};
use snisplice::testing::{
    packet::{Programs, tuple},
    probe::{self, Experiments},
};
use snisplice_common::packet::{
    flow::{CARRY, OFF, OVER, RESET, Rules, Standing, State, Translation},
    maps::{Slot, Tuple},
    segment::{IPV4_BYTES, IPV6_BYTES, TCP_BYTES, flag},
    translate::{readdress_v4, readdress_v6, translate},
};
use snisplice_config::networks::Network;
use snisplice_wakeup::{Peer, Ready, Token, Wakeups, What};

/// The program leaves a packet to whoever comes next (`TCX_NEXT`, which is -1).
const NEXT: u32 = u32::MAX;
/// It drops the packet (`TCX_DROP`).
const DROP: u32 = 2;
/// It sends the packet to another device (`TCX_REDIRECT`).
const REDIRECT: u32 = 7;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let usable = Programs::load(16);
    let required = std::env::var_os("SNISPLICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    if let Err(error) = &usable {
        eprintln!("the kernel's part cannot be tested here: {error}");
    }
    let ignored = usable.is_err() && !required;
    let trials = [
        trial("the_probe_passes", || {
            probe::socket_info(&Programs::load(16).expect("loads")).expect("is understood");
        }),
        trial("packets_are_carried_between_namespaces", carried_between_namespaces),
        trial("a_connection_that_is_not_carried_is_told", not_carried),
        trial("a_flow_whose_packets_get_lost_is_told", packets_get_lost),
        trial("ipv4_packets_are_translated", || translated(false)),
        trial("ipv6_packets_are_translated", || translated(true)),
        trial("what_belongs_to_no_flow_is_left_alone", left_alone),
        trial("what_cannot_be_translated_is_left_to_the_stack", not_understood),
        trial("icmp_errors_are_translated", || icmp::translated(false)),
        trial("icmpv6_errors_are_translated", || icmp::translated(true)),
        trial("only_errors_about_what_is_under_way_are_passed_on", icmp::only_what_is_under_way),
        trial("errors_that_cannot_be_understood_are_left_to_the_stack", icmp::not_understood),
        trial("modes_decide", modes_decide),
        trial("a_flow_is_followed_to_its_end", followed_to_its_end),
        trial("what_was_damaged_ends_nothing", || damaged_ends_nothing(false)),
        trial("what_was_damaged_ends_nothing_over_ipv6", || damaged_ends_nothing(true)),
        trial("our_own_socket_is_not_told_of_what_was_damaged", damaged_is_not_told),
        trial("lengths_that_are_not_there_are_not_believed", lengths_are_not_believed),
        trial("forgeries_change_nothing_that_is_noted", forgeries_change_nothing),
        trial("packets_of_denied_clients_are_dropped", denied_clients),
        trial("packets_that_come_by_another_side_are_dropped", another_side),
        trial("a_copy_that_comes_by_again_is_told_and_not_carried", a_copy_comes_by_again),
        trial("the_end_wakes_once", the_end_wakes_once),
        trial("what_begins_a_connection_becomes_a_question", || begins(false)),
        trial("what_begins_a_connection_becomes_a_question_over_ipv6", || begins(true)),
        trial("what_begins_after_the_end_is_let_in", || let_in(false)),
        trial("what_begins_after_the_end_is_let_in_over_ipv6", || let_in(true)),
        trial("the_verifier_is_soon_done", || {
            let _lab = Lab::new(false);
            verifier::is_soon_done(200_000);
        }),
        trial("processors_do_not_forget_what_another_has_noted", noted_at_once),
    ];
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(ignored)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A trial that fails by panicking, as a test does.
fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

fn carried_between_namespaces() {
    let report = Experiments::begin().finish();
    assert!(report.passed() && report.untried().next().is_none(), "{}", report.describe_packet());
    assert!(report.describe_packet().contains("ok       packets over IPv4"), "{report:?}");
    // Other tests have namespaces of their own meanwhile.
    let own = BTreeSet::from([PathBuf::from("/proc/self/ns/net").read_link().expect("a link")]);
    let started = Instant::now();
    while namespaces() != own {
        assert!(started.elapsed() < Duration::from_secs(60), "left behind: {:?}", namespaces());
        sleep(Duration::from_millis(5));
    }
}

/// The network namespaces that threads of this process are in and that it has open.
fn namespaces() -> BTreeSet<PathBuf> {
    let entries = |path: &str| read_dir(path).expect("a directory").flatten().map(|entry| entry.path());
    let threads = entries("/proc/self/task").map(|task| task.join("ns/net"));
    let links = threads.chain(entries("/proc/self/fd")).filter_map(|path| path.read_link().ok());
    links.filter(|link| link.to_string_lossy().starts_with("net:")).collect()
}

fn not_carried() {
    let trial = Experiments::begin_with(|programs| while programs.reserve().is_some() {});
    let told = trial.finish().describe_packet();
    assert!(told.contains("failed   packets over IPv4: the connection was not carried (full)"), "{told}");
    assert!(told.contains("=> no packets are carried"), "{told}");
}

fn packets_get_lost() {
    // An experiment may be over before its flow is spoilt, and is made twice at most.
    const TRIES: u32 = 20;
    let is_told = (0..TRIES).map(|_| with_lost_packets()).any(|told| {
        println!("{told}");
        told.contains("failed   packets over IPv4: nothing moves any more")
    });
    assert!(is_told);
}

/// What is told of experiments whose packets get lost as soon as they are carried.
fn with_lost_packets() -> String {
    let over = Arc::new(AtomicBool::new(false));
    let spoil = {
        let over = over.clone();
        move |programs: &Arc<Programs>| {
            let data = MapData::from_fd(programs.rules().expect("a descriptor")).expect("a map");
            let mut all = Array::<_, Rules>::try_from(Map::Array(data)).expect("an array");
            // What the client sends goes to a device behind which there is nobody.
            let (ready, is_ready) = mpsc::channel();
            thread::spawn(move || {
                // Before all who have the same two processors: the flow is there for milliseconds.
                let _ = rustix::process::nice(-20);
                ready.send(()).expect("somebody waits");
                while !over.load(Relaxed) {
                    for flow in 0..all.len() {
                        let mut rules = all.get(&flow, 0).expect("a place in the array");
                        if rules.mode == CARRY && rules.ways[0].device != 1 {
                            rules.ways[0].device = 1;
                            all.set(flow, rules, 0).expect("a place in the array");
                        }
                    }
                }
            });
            is_ready.recv().expect("a thread");
        }
    };
    let told = Experiments::begin_with(spoil).finish().describe_packet();
    over.store(true, Relaxed);
    told
}

/// The programs with one flow in their maps.
struct Lab {
    programs: Arc<Programs>,
    tuples: HashMap<MapData, Tuple, Slot>,
    rules: Array<MapData, Rules>,
    states: Array<MapData, State>,
}

const FLOW: u32 = 3;

impl Lab {
    fn new(v6: bool) -> Self {
        let programs = Programs::load(16).expect("the kernel takes the programs");
        let data = |fd: std::io::Result<_>| MapData::from_fd(fd.expect("a descriptor")).expect("a map");
        let mut lab = Self {
            tuples: HashMap::try_from(Map::HashMap(data(programs.tuples()))).expect("a hash"),
            rules: Array::try_from(Map::Array(data(programs.rules()))).expect("an array"),
            states: Array::try_from(Map::Array(data(programs.states()))).expect("an array"),
            programs,
        };
        for way in [0, 1] {
            let slot = Slot { flow: FLOW, way };
            lab.tuples.insert(leg(v6, way), slot, 0).expect("room for a tuple");
        }
        lab.set(rules(v6, CARRY));
        lab.states.set(FLOW, State::new([0, 0], [60_000, 60_000]), 0).expect("a place in the array");
        lab
    }

    fn set(&mut self, rules: Rules) {
        self.rules.set(FLOW, rules, 0).expect("a place in the array");
    }

    fn run(&self, packet: &[u8]) -> (u32, Vec<u8>) {
        self.programs.try_packet(packet).expect("the program runs")
    }

    fn state(&self) -> State {
        self.states.get(&FLOW, 0).expect("a place in the array")
    }
}

/// The client's leg, or the backend's.
fn leg(v6: bool, way: u32) -> Tuple {
    let (local, remote) = match (v6, way) {
        (false, 0) => ("10.0.1.1:443", "10.0.1.2:40000"),
        (false, _) => ("10.0.2.1:50000", "10.0.2.2:8443"),
        (true, 0) => ("[fd00:1::1]:443", "[fd00:1::2]:40000"),
        (true, _) => ("[fd00:2::1]:50000", "[fd00:2::2]:8443"),
    };
    tuple(local.parse().expect("an address"), remote.parse().expect("an address"))
}

fn rules(v6: bool, mode: u32) -> Rules {
    let way = |to: Tuple, seq: u32, ack: u32| {
        let ports = [to.local_port.to_ne_bytes(), to.remote_port.to_ne_bytes()].concat();
        Translation {
            remote: to.remote,
            local: to.local,
            ports: u32::from_ne_bytes(ports.try_into().expect("four bytes")),
            // The loopback device, which is there in every namespace.
            device: 1,
            seq,
            ack,
            stamp: 77_777,
            echo: 0_u32.wrapping_sub(88_888),
            scale_from: 3,
            scale_to: 1,
            seq_start: 1_000,
            ack_start: 2_000,
            own: 0,
            expected: 1_000,
            least_echo: 0,
            flags: 0,
            granted: 0,
            from: 0,
        }
    };
    let ways =
        [way(leg(v6, 1), 0xffff_0000, 12_345), way(leg(v6, 0), 0x0001_0000, 0_u32.wrapping_sub(12_345))];
    Rules { token: 0, mode, reserved: 0, ways }
}

/// What differs between packets.
#[derive(Clone)]
struct Segment {
    seq: u32,
    ack: u32,
    flags: u8,
    options: Vec<u8>,
    payload: Vec<u8>,
}

impl Default for Segment {
    fn default() -> Self {
        Self { seq: 1_000, ack: 2_000, flags: flag::ACK, options: Vec::new(), payload: vec![9; 101] }
    }
}

/// A packet on the client's or the backend's leg, with right checksums.
fn packet(v6: bool, way: u32, segment: &Segment) -> Vec<u8> {
    let tuple = leg(v6, way);
    let options = segment.options.len().div_ceil(4) * 4;
    let mut tcp = Vec::new();
    tcp.extend(tuple.remote_port.to_ne_bytes());
    tcp.extend(tuple.local_port.to_ne_bytes());
    tcp.extend(segment.seq.to_be_bytes());
    tcp.extend(segment.ack.to_be_bytes());
    tcp.extend([u8::try_from((20 + options) / 4).expect("short options") << 4, segment.flags]);
    tcp.extend([0x10, 0x01, 0, 0, 0, 5]);
    tcp.extend(&segment.options);
    tcp.resize(20 + options, 0);
    tcp.extend(&segment.payload);
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    let length = u16::try_from(tcp.len()).expect("a short packet");
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let addresses = if v6 {
        packet.extend([0x86, 0xdd, 0x6a, 0xb1, 0x23, 0x45]);
        packet.extend(length.to_be_bytes());
        packet.extend([6, 17]);
        [words(&tuple.remote), words(&tuple.local)].concat()
    } else {
        packet.extend([0x08, 0x00, 0x45, 0xb9]);
        packet.extend((length + 20).to_be_bytes());
        packet.extend([0xab, 0xcd, 0x40, 0, 17, 6, 0, 0]);
        [words(&tuple.remote[3..]), words(&tuple.local[3..])].concat()
    };
    packet.extend(&addresses);
    if !v6 {
        let sum = checksum(&packet[14..34], 0);
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let pseudo = [addresses, vec![0, 6], length.to_be_bytes().to_vec()].concat();
    let sum = checksum(&tcp, u32::from(!checksum(&pseudo, 0)));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet.extend(tcp);
    packet
}

/// The whole checksum, added up anew.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let sum = bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + (u32::from(pair[0]) << 8) + pair.get(1).copied().map_or(0, u32::from));
    let once = (sum >> 16) + (sum & 0xffff);
    !u16::try_from((once >> 16) + (once & 0xffff)).expect("folded")
}

/// Whether all checksums of a packet are right.
fn is_valid(v6: bool, packet: &[u8]) -> bool {
    let (addresses, tcp) =
        if v6 { (&packet[22..54], &packet[54..]) } else { (&packet[26..34], &packet[34..]) };
    let length = u16::try_from(tcp.len()).expect("a short packet");
    let pseudo = [addresses, &[0, 6], &length.to_be_bytes()].concat();
    let right = checksum(tcp, u32::from(!checksum(&pseudo, 0))) == 0;
    right && (v6 || checksum(&packet[14..34], 0) == 0)
}

/// What the functions make of a packet.
fn expected(v6: bool, way: &Translation, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let l4 = if v6 { 14 + IPV6_BYTES } else { 14 + IPV4_BYTES };
    let length = usize::from(packet[l4 + 12] >> 4) * 4;
    let mut tcp = [0; TCP_BYTES];
    tcp[..length].copy_from_slice(&packet[l4..l4 + length]);
    let header = translate(&mut tcp, length, way);
    let pseudo = if v6 {
        let ip: &mut [u8; IPV6_BYTES] = (&mut packet[14..l4]).try_into().expect("a header");
        readdress_v6(ip, way)
    } else {
        let ip: &mut [u8; IPV4_BYTES] = (&mut packet[14..l4]).try_into().expect("a header");
        readdress_v4(ip, way)
    };
    let old = u16::from_be_bytes([tcp[16], tcp[17]]);
    tcp[16..18].copy_from_slice(&header.apply(pseudo.apply(old)).to_be_bytes());
    packet[l4..l4 + length].copy_from_slice(&tcp[..length]);
    packet
}

fn timestamps() -> Vec<u8> {
    vec![1, 1, 8, 10, 0, 0, 1, 0, 0, 2, 0, 0]
}

fn blocks(count: u8) -> Vec<u8> {
    let edges = (0..count * 2).flat_map(|edge| [0, 0, edge, 7]);
    [1, 1, 5, 2 + 8 * count].into_iter().chain(edges).collect()
}

fn translated(v6: bool) {
    let lab = Lab::new(v6);
    let segments = [
        vec![],
        timestamps(),
        [timestamps(), blocks(3)].concat(),
        blocks(4),
        blocks(1),
        // At odd offsets, padded with what nobody uses, and cut off.
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

fn left_alone() {
    let mut lab = Lab::new(false);
    lab.tuples.remove(&leg(false, 1)).expect("it is there");
    let original = packet(false, 1, &Segment::default());
    assert_eq!(lab.run(&original), (NEXT, original));
    // Neither IPv4 nor IPv6.
    let mut other = packet(false, 0, &Segment::default());
    other[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(lab.run(&other), (NEXT, other));
}

fn not_understood() {
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

fn modes_decide() {
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

/// The packets of a flow of 100 bytes up and 50 down. `halfway` is called before the second FIN.
fn to_the_end(lab: &Lab, v6: bool, halfway: impl FnOnce()) {
    let see = |way, seq, ack, flags, payload: usize| {
        let flags = flags | flag::ACK;
        let segment = Segment { seq, ack, flags, payload: vec![1; payload], ..Segment::default() };
        assert_eq!(lab.run(&packet(v6, way, &segment)).0, REDIRECT);
    };
    see(0, 1_000, 2_000, 0, 100);
    see(1, 1_000, 2_100, 0, 50);
    see(0, 1_100, 2_050, flag::FIN, 0);
    halfway();
    see(1, 1_050, 2_101, flag::FIN, 0);
    see(0, 1_101, 2_051, 0, 0);
}

fn followed_to_its_end() {
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

/// What begins a connection, on addresses that a flow had.
fn beginning() -> Segment {
    Segment {
        seq: 77_777,
        ack: 0,
        flags: flag::SYN,
        options: [vec![2, 4, 5, 0xb4], timestamps()[2..].to_vec()].concat(),
        payload: Vec::new(),
    }
}

/// A flow's peer that has forgotten it must not begin another one that nobody has routed.
fn begins(v6: bool) {
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
    // With data (RFC 7413) it is dropped; it comes again without.
    assert_eq!(lab.run(&packet(v6, 0, &Segment { payload: vec![1; 9], ..begin })).0, DROP);
}

/// A port that is used again before userspace has closed the socket that had it: the socket is reset, and the addresses
/// belong to no flow any more. What begins the connection comes once more, as a copy.
fn let_in(v6: bool) {
    let mut lab = Lab::new(v6);
    let begin = beginning();
    for reset in [false, true] {
        for way in [0, 1] {
            lab.tuples.insert(leg(v6, way), Slot { flow: FLOW, way }, 0).expect("room for a tuple");
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

/// Packets of one way may be on two processors at once, and what was lost of the last ones nobody says again.
fn noted_at_once() {
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

/// The same packet with a bit of its TCP checksum or payload that has changed on the way.
fn damaged(v6: bool, mut packet: Vec<u8>, at_end: bool) -> Vec<u8> {
    let at = if at_end {
        packet.len() - 1
    } else if v6 {
        54 + 16
    } else {
        34 + 16
    };
    packet[at] ^= 4;
    assert!(!is_valid(v6, &packet));
    packet
}

/// A trial run takes packets of up to a page. Larger ones need a device.
fn damaged_ends_nothing(v6: bool) {
    let lab = Lab::new(v6);
    let before = lab.state();
    for flags in [flag::RST, flag::RST | flag::ACK, flag::FIN | flag::ACK] {
        for payload in [0, 1, 3, 101, 511, 512, 513, 1_400, 3_600] {
            for way in [0, 1] {
                let segment = Segment { flags, payload: vec![7; payload], ..Segment::default() };
                let bad = damaged(v6, packet(v6, way, &segment), payload > 0);
                // Its receiver throws it away.
                let (verdict, out) = lab.run(&bad);
                assert_eq!((verdict, is_valid(v6, &out)), (REDIRECT, false));
                assert_eq!(lab.state(), before, "{flags:#x} with {payload} bytes");
            }
        }
    }
    for payload in [0, 1, 511, 512, 513, 3_600] {
        let lab = Lab::new(v6);
        let segment = Segment { flags: flag::RST, payload: vec![7; payload], ..Segment::default() };
        assert_eq!(lab.run(&packet(v6, 0, &segment)).0, REDIRECT);
        assert_eq!(lab.state().standing(), Standing::Reset(0), "a sound one with {payload} bytes");
    }
}

/// It could not know any more: what it is told has a checksum of its own.
fn damaged_is_not_told() {
    let mut lab = Lab::new(false);
    let mut rules = rules(false, CARRY);
    rules.ways[0].own = 500;
    lab.set(rules);
    lab.states.set(FLOW, State::new([0, 500], [60_000, 60_000]), 0).expect("a place in the array");
    let ack = packet(false, 0, &Segment { ack: 2_300, ..Segment::default() });
    assert_eq!(lab.run(&damaged(false, ack.clone(), true)).0, REDIRECT);
    assert_eq!(lab.programs.totals().expect("totals").acks_mirrored, 0);
    assert_eq!(lab.run(&ack).0, REDIRECT);
    assert_eq!(lab.programs.totals().expect("totals").acks_mirrored, 1);
}

fn lengths_are_not_believed() {
    let lab = Lab::new(false);
    let sound = packet(false, 0, &Segment::default());
    let told = |length: u16| {
        let mut packet = sound.clone();
        packet[16..18].copy_from_slice(&length.to_be_bytes());
        packet[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&packet[14..34], 0);
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    let whole = u16::try_from(sound.len() - 14).expect("a short packet");
    for length in [0, 19, 39, whole + 1, 1_500, u16::MAX] {
        assert_eq!(lab.run(&told(length)).0, DROP, "{length}");
    }
    let mut header = sound.clone();
    header[24] ^= 1;
    assert_eq!(lab.run(&header).0, DROP, "the header's checksum is wrong");
    let begins = Segment { flags: flag::SYN, ..Segment::default() };
    assert_eq!(lab.run(&packet(false, 0, &begins)).0, DROP, "it begins a connection, with data");
    let state = lab.state();
    assert_eq!((state.ways[0].packets, state.failed), (0, 0), "the flow itself fails");
    assert_eq!(lab.run(&told(whole)).0, REDIRECT);
    let v6 = Lab::new(true);
    let mut packet = packet(true, 0, &Segment::default());
    for length in [0, 121 + 1, u16::MAX] {
        packet[18..20].copy_from_slice(&length.to_be_bytes());
        assert_eq!(v6.run(&packet).0, DROP, "{length}");
    }
}

fn forgeries_change_nothing() {
    let lab = Lab::new(false);
    let before = lab.state();
    for seq in [1_000 + 60_001, 16 << 20, 1 << 30, 998 - 101, 0, u32::MAX] {
        for flags in [flag::ACK, flag::FIN | flag::ACK, flag::RST, flag::RST | flag::ACK, 0, 0xff] {
            let forged = Segment { seq, flags, ..Segment::default() };
            lab.run(&packet(false, 0, &forged));
            assert_eq!(lab.state(), before, "{seq} {flags:#x}");
        }
    }
    to_the_end(&lab, false, || ());
    assert_eq!(lab.state().standing(), Standing::Finished);
}

fn denied_clients() {
    for v6 in [false, true] {
        let lab = Lab::new(v6);
        let (own, others) = if v6 { ("fd00:1::/64", "fd00:2::/64") } else { ("10.0.1.0/24", "10.0.2.0/24") };
        let deny = |written: &[&str]| {
            let networks = written.iter().map(|net| net.parse::<Network>().expect("a network")).collect();
            lab.programs.deny(&networks).expect("there is room");
        };
        let verdict = || lab.run(&packet(v6, 0, &Segment::default())).0;
        assert_eq!(verdict(), REDIRECT);
        deny(&[others, "192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!(verdict(), REDIRECT);
        deny(&[own, "192.0.2.0/24"]);
        assert_eq!(verdict(), DROP);
        assert_eq!(lab.run(&packet(v6, 1, &Segment::default())).0, REDIRECT, "what is sent to it is not its");
        deny(&[]);
        assert_eq!(verdict(), REDIRECT);
        assert_eq!(lab.programs.totals().expect("totals").denied, 1);
    }
}

/// Made-up packets come in by the loopback device.
fn another_side() {
    const OWN: u32 = 1;
    let mut lab = Lab::new(false);
    let mut verdict = |devices: [u32; 2], from: u32| {
        let mut rules = rules(false, CARRY);
        rules.ways[0].device = devices[0];
        rules.ways[1].device = devices[1];
        rules.ways[0].from = from;
        lab.set(rules);
        lab.run(&packet(false, 0, &Segment::default())).0
    };
    assert_eq!(verdict([OWN, 7], 0), DROP, "it comes from the backend's side");
    assert_eq!(verdict([OWN, 7], 8), DROP);
    assert_eq!(verdict([OWN, OWN], 8), REDIRECT, "both peers are there");
    assert_eq!(verdict([OWN, 7], OWN), REDIRECT, "it came so when the flow began");
    assert_eq!(lab.programs.totals().expect("totals").strays, 2);
    assert_eq!(lab.state().ways[0].packets, 2);
}

/// Whatever mark it has by then: it is known by what was noted.
fn a_copy_comes_by_again() {
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

/// However many packets come late.
fn the_end_wakes_once() {
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
    // The next event of all is another flow's: when it is heard, all before it were.
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
