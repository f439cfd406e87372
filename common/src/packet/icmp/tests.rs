use std::vec::Vec;

use proptest::prelude::*;

use super::{
    super::{
        checksum::{fold, tests::sum_of},
        flow::ECN,
        maps::mapped,
        translate::{HOPS, readdress_v4, readdress_v6},
    },
    *,
};

/// The translation of the packet, and that of packets from its destination.
fn ways() -> impl Strategy<Value = [Translation; 2]> {
    (any::<[[u32; 4]; 4]>(), any::<[u32; 4]>(), 0_u32..=14, any::<bool>()).prop_map(
        |([sender, front, rear, receiver], [ports, seq, ack, ports_back], scale, v6)| {
            let address = |address: [u32; 4]| if v6 { address } else { mapped(address[3]) };
            let of = Translation {
                remote: address(receiver),
                local: address(rear),
                ports,
                seq,
                ack,
                // A window loses what the other scale cannot say.
                scale_from: scale,
                scale_to: scale,
                flags: ECN,
                ..Translation::default()
            };
            let back = Translation {
                remote: address(sender),
                local: address(front),
                ports: ports_back,
                ..Translation::default()
            };
            [of, back]
        },
    )
}

/// A sum may appear as either zero, which a receiver ignores.
fn one_zero(sum: u16) -> u16 {
    if sum == 0xffff { 0 } else { sum }
}

/// A TCP header from the sender, without options, and as it was sent on.
fn sent_on(fixed: [u8; TCP_MIN], ways: &[Translation; 2], pseudo: Change) -> [[u8; TCP_BYTES]; 2] {
    let mut first = [0; TCP_BYTES];
    first[..TCP_MIN].copy_from_slice(&fixed);
    let ports = ways[1].ports.rotate_left(16);
    first[..4].copy_from_slice(&ports.to_ne_bytes());
    let mut then = first;
    let change = translate(&mut then, TCP_MIN, &ways[0]);
    let sum = u16::from_be_bytes([first[16], first[17]]);
    then[16..18].copy_from_slice(&pseudo.and(change).apply(sum).to_be_bytes());
    [first, then]
}

/// The sum over a whole error: its header and the quotation.
fn sum_with(ip: &[u8], tcp: &[u8]) -> u16 {
    fold(sum_of(ip) + sum_of(tcp))
}

proptest! {
    #[test]
    fn who_sends_too_much_is_told(ip: [u8; IPV6_BYTES], tcp: [u8; TCP_MIN], mtu in 1_280_u32..=0xffff, v6: bool) {
        let mut quoted = [0; TCP_BYTES];
        quoted[..TCP_MIN].copy_from_slice(&tcp);
        weightless(&mut quoted);
        let mut header = ip;
        let (message, ip, header) = if v6 {
            (too_large_v6(&mut header, mtu), &ip[..], &header[..])
        } else {
            let message = too_large_v4(header.first_chunk_mut().unwrap(), mtu);
            (message, &ip[..IPV4_BYTES], &header[..IPV4_BYTES])
        };
        // From the packet's destination to its sender.
        let (at, size) = if v6 { (8, 16) } else { (12, 4) };
        prop_assert_eq!(&header[at..at + size], &ip[at + size..]);
        prop_assert_eq!(&header[at + size..], &ip[at..at + size]);
        let length = ICMP_BYTES + ip.len() + QUOTED;
        let told = if v6 { [header[4], header[5]] } else { [header[2], header[3]] };
        let whole = if v6 { length } else { length + ip.len() };
        prop_assert_eq!(usize::from(u16::from_be_bytes(told)), whole);
        let pseudo = if v6 {
            prop_assert_eq!((header[0], header[6], header[7]), (0x60, PROTOCOL_ICMPV6, HOPS));
            prop_assert_eq!((message[0], u32::from_be_bytes(*message.last_chunk().unwrap())), (2, mtu));
            sum_of(&header[8..]) + u32::try_from(length).unwrap() + u32::from(PROTOCOL_ICMPV6)
        } else {
            prop_assert_eq!((header[0], header[8], header[9]), (0x45, HOPS, PROTOCOL_ICMP));
            prop_assert_eq!(fold(sum_of(header)), 0xffff);
            let told = u16::from_be_bytes(*message.last_chunk().unwrap());
            prop_assert_eq!((&message[..2], u32::from(told)), (&[3, 4][..], mtu));
            0
        };
        // With the checksum, and as it is before the device computes it.
        let mut filled = quoted;
        filled[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0xff);
        for quoted in [quoted, filled] {
            let sum = pseudo + sum_of(&message) + sum_of(ip) + sum_of(&quoted[..TCP_MIN]);
            prop_assert_eq!(fold(sum), 0xffff);
            prop_assert_eq!(&quoted[..TCP_CHECKSUM], &tcp[..TCP_CHECKSUM]);
        }
    }

    #[test]
    fn an_ipv4_packet_becomes_what_it_was(
        fixed: [u8; TCP_MIN], low: [u8; 12], ways in ways(), cut: bool,
    ) {
        let ways = ways.map(|way| Translation { remote: mapped(way.remote[3]), local: mapped(way.local[3]), ..way });
        let mut first = [0; IPV4_BYTES];
        first[..12].copy_from_slice(&low);
        // Values that the program sets on every packet, so that they need no restoration.
        first[8] = HOPS;
        first[12..16].copy_from_slice(&ways[1].remote[3].to_ne_bytes());
        first[16..20].copy_from_slice(&ways[1].local[3].to_ne_bytes());
        first[1] &= 3;
        first[10..12].fill(0);
        let sum = !fold(sum_of(&first));
        first[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut ip = first;
        let pseudo = readdress_v4(&mut ip, &ways[0]);
        let [tcp_first, tcp_then] = sent_on(fixed, &ways, pseudo);
        let known = if cut { TCP_LEAST } else { TCP_MIN };
        let mut tcp = [0; TCP_BYTES];
        tcp[..known].copy_from_slice(&tcp_then[..known]);
        let before = sum_with(&ip, &tcp);
        let change = restore_v4(&mut ip, &mut tcp, known, &ways[0], &ways[1]);
        let told = |ip: &[u8; IPV4_BYTES]| one_zero(u16::from_be_bytes([ip[10], ip[11]]));
        prop_assert_eq!((told(&ip), &ip[..10], &ip[12..]), (told(&first), &first[..10], &first[12..]));
        prop_assert_eq!(fold(sum_of(&ip)), 0xffff);
        prop_assert_eq!(&tcp[..16.min(known)], &tcp_first[..16.min(known)]);
        prop_assert_eq!(&tcp[known..], &[0; TCP_BYTES][known..]);
        if known == TCP_MIN {
            let told = |tcp: &[u8; TCP_BYTES]| one_zero(u16::from_be_bytes([tcp[16], tcp[17]]));
            prop_assert_eq!(told(&tcp), told(&tcp_first));
            prop_assert_eq!(&tcp[18..20], &tcp_first[18..20]);
        }
        prop_assert_eq!(one_zero(!change.apply(!before)), one_zero(sum_with(&ip, &tcp)));
    }

    #[test]
    fn an_ipv6_packet_becomes_what_it_was(
        fixed: [u8; TCP_MIN], low: [u8; 8], ways in ways(), cut: bool,
    ) {
        let mut first = [0; IPV6_BYTES];
        first[..8].copy_from_slice(&low);
        first[7] = HOPS;
        // Only the ECN marks of the traffic class.
        first[0] &= 0xf0;
        first[1] &= 0x3f;
        let words = |address: [u32; 4]| address.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        first[8..24].copy_from_slice(&words(ways[1].remote));
        first[24..40].copy_from_slice(&words(ways[1].local));
        let mut ip = first;
        let pseudo = readdress_v6(&mut ip, &ways[0]);
        let [tcp_first, tcp_then] = sent_on(fixed, &ways, pseudo);
        let known = if cut { TCP_LEAST } else { TCP_MIN };
        let mut tcp = [0; TCP_BYTES];
        tcp[..known].copy_from_slice(&tcp_then[..known]);
        let before = sum_with(&ip, &tcp);
        let change = restore_v6(&mut ip, &mut tcp, known, &ways[0], &ways[1]);
        prop_assert_eq!(ip, first);
        prop_assert_eq!(&tcp[..16.min(known)], &tcp_first[..16.min(known)]);
        if known == TCP_MIN {
            let told = |tcp: &[u8; TCP_BYTES]| one_zero(u16::from_be_bytes([tcp[16], tcp[17]]));
            prop_assert_eq!(told(&tcp), told(&tcp_first));
        }
        prop_assert_eq!(one_zero(!change.apply(!before)), one_zero(sum_with(&ip, &tcp)));
    }

    #[test]
    fn only_what_is_under_way_counts(
        start: u32, offset: u32, acked in 0_u64..1 << 33, under_way in 0_u64..1 << 20, own in 0_u32..1 << 28,
        at in -2_000_000_i64..2_000_000,
    ) {
        let of = Translation { seq: offset, seq_start: start, ..Translation::default() };
        let back = Translation { own, ..Translation::default() };
        let sent = Track { sent: acked + under_way, ..Track::default() };
        let other = Track { acked, ..Track::default() };
        let position = i64::try_from(acked).unwrap() + at;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "numbers are modulo 2^32")]
        let seq = (position as u32).wrapping_add(start).wrapping_add(offset);
        let from = i64::try_from(acked.max(own.into())).unwrap();
        let expected = position >= from && at < i64::try_from(under_way).unwrap();
        prop_assert_eq!(is_under_way(seq, &of, &sent, &back, &other), expected);
    }
}

#[test]
fn errors_are_told_from_other_messages() {
    let kinds = |v6| (0..=u8::MAX).filter(|kind| is_error(v6, *kind)).collect::<Vec<_>>();
    assert_eq!(kinds(false), [3, 11, 12]);
    assert_eq!(kinds(true), [1, 2, 3, 4]);
}
