//! ICMP errors of routers about forwarded packets.

use snisplice_common::packet::{
    flow::{CARRY, OFF, OVER, RESET},
    icmp::{ICMP_BYTES, restore_v4, restore_v6},
    segment::{IPV4_BYTES, IPV6_BYTES, TCP_BYTES, TCP_MIN},
    translate::{readdress_v4, readdress_v6},
};

use crate::lab::{Lab, NEXT, REDIRECT, Segment, checksum, leg, packet, rules};

/// A packet of the client in its form on the backend's link, after the program has processed it.
fn sent_on(lab: &Lab, v6: bool) -> [Vec<u8>; 2] {
    let original = packet(v6, 0, &Segment { payload: vec![3; 600], ..Segment::default() });
    let (verdict, out) = lab.run(&original);
    assert_eq!(verdict, REDIRECT);
    [original, out]
}

/// Bytes of an IP header.
fn ip_bytes(v6: bool) -> usize {
    if v6 { IPV6_BYTES } else { IPV4_BYTES }
}

/// Fragmentation needed, or packet too big.
fn kind(v6: bool) -> [u8; 2] {
    if v6 { [2, 0] } else { [3, 4] }
}

/// An error of a router on the backend's link about a packet that was forwarded there.
fn error(v6: bool, kind: [u8; 2], about: &[u8]) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    let to = leg(v6, 1).local;
    let mut icmp = [&kind[..], &[0, 0, 0, 0, 5, 0x78]].concat();
    icmp.extend(about);
    let length = u16::try_from(icmp.len()).expect("a short packet");
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let addresses = if v6 {
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([58, 63]);
        [vec![0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe], words(&to)].concat()
    } else {
        packet.extend([0x08, 0x00, 0x45, 0xc0]);
        packet.extend((length + 20).to_be_bytes());
        packet.extend([0x12, 0x34, 0, 0, 63, 1, 0, 0]);
        [vec![10, 0, 2, 254], words(&to[3..])].concat()
    };
    packet.extend(&addresses);
    if !v6 {
        let sum = checksum(&packet[14..34], 0);
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let sum = checksum(&icmp, pseudo(v6, &addresses, length));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    packet.extend(icmp);
    packet
}

/// The sum of the pseudo-header.
fn pseudo(v6: bool, addresses: &[u8], length: u16) -> u32 {
    let covered = [addresses, &[0, 58], &length.to_be_bytes()].concat();
    if v6 { u32::from(!checksum(&covered, 0)) } else { 0 }
}

/// Whether all checksums are correct, computed anew.
fn is_sound(v6: bool, packet: &[u8]) -> bool {
    let (addresses, icmp) =
        if v6 { (&packet[22..54], &packet[54..]) } else { (&packet[26..34], &packet[34..]) };
    let length = u16::try_from(icmp.len()).expect("a short packet");
    let right = checksum(icmp, pseudo(v6, addresses, length)) == 0;
    right && (v6 || checksum(&packet[14..34], 0) == 0 && checksum(&icmp[8..28], 0) == 0)
}

/// The result of the functions for an error.
fn passed_on(v6: bool, packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let ways = rules(v6, CARRY).ways;
    let ip = ip_bytes(v6);
    let (inner, l4) = (14 + ip + ICMP_BYTES, 14 + 2 * ip + ICMP_BYTES);
    let known = if packet.len() - l4 < TCP_MIN { 8 } else { TCP_MIN };
    let mut tcp = [0; TCP_BYTES];
    tcp[..known].copy_from_slice(&packet[l4..l4 + known]);
    let change = if v6 {
        let header = (&mut packet[inner..l4]).try_into().expect("a header");
        let change = restore_v6(header, &mut tcp, known, &ways[0], &ways[1]);
        let outer = (&mut packet[14..14 + ip]).try_into().expect("a header");
        readdress_v6(outer, &ways[1]).and(change)
    } else {
        let header = (&mut packet[inner..l4]).try_into().expect("a header");
        let change = restore_v4(header, &mut tcp, known, &ways[0], &ways[1]);
        let outer = (&mut packet[14..14 + ip]).try_into().expect("a header");
        let _ = readdress_v4(outer, &ways[1]);
        change
    };
    packet[l4..l4 + known].copy_from_slice(&tcp[..known]);
    let sum = 14 + ip + 2;
    let old = u16::from_be_bytes([packet[sum], packet[sum + 1]]);
    packet[sum..sum + 2].copy_from_slice(&change.apply(old).to_be_bytes());
    packet
}

pub(super) fn translated(v6: bool) {
    let lab = Lab::new(v6);
    let [original, sent] = sent_on(&lab, v6);
    let ip = ip_bytes(v6);
    let kinds: &[[u8; 2]] =
        if v6 { &[[1, 0], [2, 0], [3, 0], [4, 1]] } else { &[[3, 1], [3, 4], [11, 0], [12, 0]] };
    let mut count = 0;
    for kind in kinds {
        // The header and the bytes that RFC 792 requires, an odd number more, the whole TCP header, and all.
        for tcp in [8, 13, 20, 500] {
            let said = error(v6, *kind, &sent[14..14 + ip + tcp]);
            assert!(is_sound(v6, &said), "the test's own packet");
            let (verdict, out) = lab.run(&said);
            assert_eq!(verdict, REDIRECT, "{kind:?} with {tcp} bytes");
            assert_eq!(out, passed_on(v6, &said), "{kind:?} with {tcp} bytes");
            assert!(is_sound(v6, &out), "checksums of {kind:?} with {tcp} bytes");
            // The type and the MTU stay, and the packet is the client's.
            let at = 14 + ip;
            assert_eq!((&out[at..at + 2], &out[at + 4..at + 8]), (&kind[..], &[0, 0, 5, 0x78][..]));
            let addresses = if v6 { 8..40 } else { 12..20 };
            let inner = at + ICMP_BYTES;
            assert_eq!(out[inner..][addresses.clone()], original[14..][addresses]);
            let numbers = if tcp < TCP_MIN { 8 } else { 12 };
            assert_eq!(out[inner + ip..][..numbers], original[14 + ip..][..numbers]);
            count += 1;
        }
    }
    let totals = lab.programs.totals().expect("totals");
    assert_eq!((totals.errors, totals.packets, totals.failed), (count, 1, 0));
}

pub(super) fn only_what_is_under_way() {
    for v6 in [false, true] {
        let mut lab = Lab::new(v6);
        let [_, sent] = sent_on(&lab, v6);
        let about = &sent[14..14 + ip_bytes(v6) + 20];
        let seq = ip_bytes(v6) + 4;
        let with = |by: u32| {
            let mut about = about.to_vec();
            let number = u32::from_be_bytes(about[seq..seq + 4].try_into().expect("four bytes"));
            about[seq..seq + 4].copy_from_slice(&number.wrapping_add(by).to_be_bytes());
            error(v6, kind(v6), &about)
        };
        for by in [0, 599] {
            assert_eq!(lab.run(&with(by)).0, REDIRECT, "{by}");
        }
        for by in [600, 601, 1 << 31, u32::MAX] {
            let forged = with(by);
            assert_eq!(lab.run(&forged), (NEXT, forged), "{by}");
        }
        for mode in [OFF, RESET, OVER] {
            lab.set(rules(v6, mode));
            assert_eq!(lab.run(&with(0)), (NEXT, with(0)), "mode {mode}");
        }
        lab.set(rules(v6, CARRY));
        // The first 100 bytes are acknowledged, so they are not retransmitted.
        let ack = Segment { ack: 2_100, payload: Vec::new(), ..Segment::default() };
        assert_eq!(lab.run(&packet(v6, 1, &ack)).0, REDIRECT);
        assert_eq!([with(99), with(100)].map(|said| lab.run(&said).0), [NEXT, REDIRECT]);
        // Bytes of the balancer's socket are that socket's task.
        let mut ours = rules(v6, CARRY);
        ours.ways[1].own = 300;
        lab.set(ours);
        assert_eq!([with(299), with(300)].map(|said| lab.run(&said).0), [NEXT, REDIRECT]);
    }
}

pub(super) fn not_understood() {
    for v6 in [false, true] {
        let lab = Lab::new(v6);
        let [_, sent] = sent_on(&lab, v6);
        let ip = ip_bytes(v6);
        let about = &sent[14..14 + ip + 20];
        let changed = |at: usize, byte: u8| {
            let mut about = about.to_vec();
            about[at] = byte;
            error(v6, kind(v6), &about)
        };
        let to_another = {
            let mut said = error(v6, kind(v6), about);
            said[14 + ip - 1] ^= 1;
            said
        };
        let strange = [
            // Seven bytes of TCP, which are no header.
            error(v6, kind(v6), &about[..ip + 7]),
            error(v6, kind(v6), &about[..ip - 1]),
            // No errors: an echo request, and its reply.
            error(v6, if v6 { [128, 0] } else { [8, 0] }, about),
            error(v6, if v6 { [129, 0] } else { [0, 0] }, about),
            // Another protocol or an extension, another version, options.
            changed(if v6 { 6 } else { 9 }, 17),
            changed(if v6 { 6 } else { 9 }, 0),
            changed(0, if v6 { 0x45 } else { 0x65 }),
            changed(0, 0x46),
            // Another port.
            changed(ip + 1, 1),
            to_another,
        ];
        for said in strange {
            assert_eq!(lab.run(&said), (NEXT, said));
        }
        // Shorter than its length field.
        let mut cut = error(v6, kind(v6), about);
        cut.truncate(cut.len() - 4);
        assert_eq!(lab.run(&cut), (NEXT, cut));
        assert_eq!(lab.programs.totals().expect("totals").errors, 0);
    }
}
