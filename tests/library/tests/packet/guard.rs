//! Packets that are damaged, forged or denied.

use snisplice_common::packet::{
    flow::{CARRY, Standing, State},
    segment::flag,
};
use snisplice_config::networks::Network;

use crate::lab::{DROP, FLOW, Lab, REDIRECT, Segment, checksum, is_valid, packet, rules, to_the_end};

/// The same packet with a changed bit in its TCP checksum or payload.
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

/// A test run accepts packets of up to a page. Larger ones need a device.
pub(crate) fn damaged_ends_nothing(v6: bool) {
    let lab = Lab::new(v6);
    let before = lab.state();
    for flags in [flag::RST, flag::RST | flag::ACK, flag::FIN | flag::ACK] {
        for payload in [0, 1, 3, 101, 511, 512, 513, 1_400, 3_600] {
            for way in [0, 1] {
                let segment = Segment { flags, payload: vec![7; payload], ..Segment::default() };
                let bad = damaged(v6, packet(v6, way, &segment), payload > 0);
                // The receiver drops the packet.
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

/// The socket could not detect the damage: its copy has a checksum of its own.
pub(crate) fn damaged_is_not_told() {
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

pub(crate) fn lengths_are_not_believed() {
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

pub(crate) fn forgeries_change_nothing() {
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

pub(crate) fn denied_clients() {
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

/// Forged packets arrive through the loopback device.
pub(crate) fn another_side() {
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
