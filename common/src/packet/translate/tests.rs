use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::{
    super::{
        checksum::{fold, tests::sum_of},
        flow::{BEGINS, ECN},
        maps::mapped,
        segment::{Segment, TCP_CHECKSUM, tcp_length},
    },
    *,
};

/// A TCP header with these options, and its length.
fn header(fixed: [u8; TCP_MIN], options: &[u8]) -> ([u8; TCP_BYTES], usize) {
    let mut bytes = [0; TCP_BYTES];
    let length = TCP_MIN + options.len().div_ceil(4) * 4;
    bytes[..TCP_MIN].copy_from_slice(&fixed);
    bytes[12] = u8::try_from(length / 4).unwrap() << 4;
    bytes[TCP_MIN..TCP_MIN + options.len()].copy_from_slice(options);
    (bytes, length)
}

fn way() -> impl Strategy<Value = Translation> {
    let numbers = any::<[u32; 5]>();
    (any::<[u32; 2]>(), numbers, 0_u32..=14, 0_u32..=14, 0_u32..=ECN).prop_map(
        |([remote, local], [ports, seq, ack, stamp, echo], scale_from, scale_to, flags)| Translation {
            remote: mapped(remote),
            local: mapped(local),
            ports,
            seq,
            ack,
            stamp,
            echo,
            scale_from,
            scale_to,
            flags,
            ..Translation::default()
        },
    )
}

/// Options as stacks send them, at even and odd offsets, and invalid ones.
fn options() -> impl Strategy<Value = Vec<u8>> {
    let timestamps = any::<[u8; 8]>().prop_map(|body| [&[8, 10], &body[..]].concat());
    let sack = (1_usize..=4).prop_flat_map(|blocks| {
        proptest::collection::vec(any::<u8>(), blocks * 8)
            .prop_map(|edges| [&[5, u8::try_from(edges.len() + 2).unwrap()], &edges[..]].concat())
    });
    let other = (9_u8.., 0_usize..6)
        .prop_map(|(kind, size)| [vec![kind, u8::try_from(size + 2).unwrap()], vec![7; size]].concat());
    let one = prop_oneof![
        3 => Just(vec![1]),
        3 => timestamps,
        3 => sack,
        1 => other,
        1 => proptest::collection::vec(any::<u8>(), 1..5),
    ];
    proptest::collection::vec(one, 0..6).prop_map(|all| {
        let mut options = all.concat();
        options.truncate(TCP_MAX - TCP_MIN);
        options
    })
}

proptest! {
    #[test]
    fn the_checksum_is_that_of_the_new_header(fixed: [u8; TCP_MIN], options in options(), way in way()) {
        let (mut bytes, length) = header(fixed, &options);
        let payload = [1, 2, 3];
        let sum = |bytes: &[u8; TCP_BYTES]| sum_of(&bytes[..length]) + sum_of(&payload);
        bytes[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
        let before = !fold(sum(&bytes));
        let change = translate(&mut bytes, length, &way);
        let full = !fold(sum(&bytes));
        let one_zero = |checksum: u16| if checksum == 0xffff { 0 } else { checksum };
        prop_assert_eq!(one_zero(change.apply(before)), one_zero(full));
    }

    #[test]
    fn there_and_back_is_the_identity(fixed: [u8; TCP_MIN], options in options(), way in way()) {
        // A window loses what the other scale cannot say, and marks are cleared permanently.
        let way = Translation { scale_to: way.scale_from, flags: ECN, ..way };
        let (original, length) = header(fixed, &options);
        let mut bytes = original;
        let there = translate(&mut bytes, length, &way);
        let ports = u32::from_ne_bytes(original[..4].try_into().unwrap());
        let back = way.inverse(way.remote, way.local, ports);
        let again = translate(&mut bytes, length, &back);
        prop_assert_eq!(bytes, original);
        prop_assert_eq!(again.apply(there.apply(0x1234)), 0x1234);
    }

    #[test]
    fn only_what_must_change_does(fixed: [u8; TCP_MIN], options in options(), way in way()) {
        let (original, length) = header(fixed, &options);
        let mut bytes = original;
        let _ = translate(&mut bytes, length, &way);
        // Data offset, checksum, urgent pointer, and the bytes behind the header.
        prop_assert_eq!(bytes[12], original[12]);
        prop_assert_eq!(&bytes[16..20], &original[16..20]);
        prop_assert_eq!(&bytes[length..], &original[length..]);
        prop_assert_eq!(bytes[13] & 0x3f, original[13] & 0x3f);
        let (old, new) = (Segment::of(&original, 9), Segment::of(&bytes, 9));
        prop_assert_eq!(new.seq, old.seq.wrapping_add(way.seq));
        prop_assert_eq!(new.len(), old.len());
    }

    #[test]
    fn a_window_is_never_larger_than_the_receivers(window: u16, way in way()) {
        let real = u64::from(window) << way.scale_from;
        let told = u64::from(way.window(window)) << way.scale_to;
        prop_assert!(told <= real);
        // The window is not smaller than the other scale requires.
        let best = (real >> way.scale_to).min(0xffff) << way.scale_to;
        prop_assert_eq!(told, best);
    }

    #[test]
    fn an_ipv4_header_is_valid_again(mut bytes: [u8; IPV4_BYTES], way in way()) {
        let pseudo = |bytes: &[u8]| sum_of(&bytes[12..20]);
        let before = fold(pseudo(&bytes));
        let change = readdress_v4(&mut bytes, &way);
        prop_assert_eq!(fold(sum_of(&bytes)), 0xffff);
        prop_assert_eq!(bytes[8], HOPS);
        prop_assert_eq!(&bytes[12..16], &way.local[3].to_ne_bytes());
        prop_assert_eq!(&bytes[16..20], &way.remote[3].to_ne_bytes());
        let one_zero = |sum: u16| if sum == 0xffff { 0 } else { sum };
        prop_assert_eq!(one_zero(!change.apply(!before)), one_zero(fold(pseudo(&bytes))));
    }

    #[test]
    fn an_acknowledgement_is_valid(
        fixed: [u8; TCP_MIN], options in options(), mut v4: [u8; IPV4_BYTES], mut v6: [u8; IPV6_BYTES], numbers: (u32, u32),
    ) {
        let (original, length) = header(fixed, &options);
        let sum = |tcp: &[u8; TCP_BYTES]| sum_of(&tcp[..length]) + 6 + u32::try_from(length).unwrap();
        let mut bytes = original;
        // As the kernel's helper: words in memory byte order.
        let in_memory = |parts: [&[u8]; 2]| {
            let pairs = parts.into_iter().flat_map(|part| part.chunks_exact(2));
            pairs.map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum::<u32>()
        };
        empty(&mut bytes, flag::ACK, numbers);
        shorten_v4(&mut v4, length);
        let sums = in_memory([&v4[12..], &bytes[..length]]);
        seal(&mut bytes, length, sums);
        prop_assert_eq!(fold(sum(&bytes) + sum_of(&v4[12..])), 0xffff);
        prop_assert_eq!(fold(sum_of(&v4)), 0xffff);
        prop_assert_eq!(usize::from(u16::from_be_bytes([v4[2], v4[3]])), IPV4_BYTES + length);
        let segment = Segment::of(&bytes, 0);
        prop_assert_eq!((segment.seq, segment.ack, segment.flags), (numbers.0, numbers.1, flag::ACK));
        prop_assert_eq!(segment.window, Segment::of(&original, 0).window);
        prop_assert_eq!(&bytes[TCP_MIN..], &original[TCP_MIN..]);
        empty(&mut bytes, flag::ACK, numbers);
        shorten_v6(&mut v6, length);
        let sums = in_memory([&v6[8..], &bytes[..length]]);
        seal(&mut bytes, length, sums);
        prop_assert_eq!(fold(sum(&bytes) + sum_of(&v6[8..])), 0xffff);
        prop_assert_eq!(usize::from(u16::from_be_bytes([v6[4], v6[5]])), length);
    }

    #[test]
    fn an_ipv6_header_has_the_new_addresses(
        low: [u8; 32], high: [u8; 8], way in way(), remote: [u32; 4], local: [u32; 4],
    ) {
        let way = Translation { remote, local, ..way };
        let original: [u8; IPV6_BYTES] = [&high[..], &low[..]].concat().try_into().unwrap();
        let mut bytes = original;
        let before = fold(sum_of(&bytes[8..40]));
        let change = readdress_v6(&mut bytes, &way);
        let class = |bytes: &[u8]| bytes[0] << 4 | bytes[1] >> 4;
        prop_assert_eq!(class(&bytes), way.traffic_class(class(&original)));
        prop_assert_eq!((bytes[0] & 0xf0, bytes[1] & 0x0f), (original[0] & 0xf0, original[1] & 0x0f));
        prop_assert_eq!(&bytes[2..7], &original[2..7]);
        let one_zero = |sum: u16| if sum == 0xffff { 0 } else { sum };
        prop_assert_eq!(one_zero(!change.apply(!before)), one_zero(fold(sum_of(&bytes[8..40]))));
    }
}

const WAY: Translation = Translation {
    remote: [0; 4],
    local: [0; 4],
    ports: 0,
    device: 0,
    seq: 1_000,
    ack: 0u32.wrapping_sub(5),
    stamp: 7,
    echo: 0u32.wrapping_sub(9),
    scale_from: 7,
    scale_to: 2,
    seq_start: 0,
    ack_start: 0,
    own: 0,
    expected: 0,
    least_echo: 0,
    flags: 0,
    granted: 0,
    from: 0,
};

#[test]
fn numbers_wrap() {
    let (mut bytes, length) = header([0; TCP_MIN], &[]);
    bytes[4..8].copy_from_slice(&(u32::MAX - 10).to_be_bytes());
    bytes[8..12].copy_from_slice(&2_u32.to_be_bytes());
    bytes[13] = flag::ACK;
    let _ = translate(&mut bytes, length, &WAY);
    let segment = Segment::of(&bytes, 0);
    assert_eq!((segment.seq, segment.ack), (989, u32::MAX - 2));
}

#[test]
fn timestamps_and_blocks_are_found_behind_padding() {
    let mut options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 10, 1, 1, 5, 18];
    for edge in [100_u32, 3, 200, 300] {
        options.extend(edge.to_be_bytes());
    }
    let (mut bytes, length) = header([0; TCP_MIN], &options);
    bytes[13] = flag::ACK;
    let _ = translate(&mut bytes, length, &WAY);
    assert_eq!((get(&bytes, 24), get(&bytes, 28)), (8, 1));
    let edges: Vec<_> = (0..4).map(|edge| get(&bytes, 36 + 4 * edge)).collect();
    assert_eq!(edges, [95, u32::MAX - 1, 195, 295]);
}

#[test]
fn at_first_no_echo_is_older_than_the_flow() {
    // Also around the wrap.
    let way = Translation { least_echo: 3, flags: BEGINS, ..WAY };
    for (echo, of, when_begun) in [(12, 3, 3), (13, 4, 4), (11, 2, 3), (0, 0_u32.wrapping_sub(9), 3)] {
        for (way, expected) in [(WAY, of), (way, when_begun)] {
            let options = [&[1, 1, 8, 10, 0, 0, 0, 1][..], &u32::to_be_bytes(echo)].concat();
            let (mut bytes, length) = header([0; TCP_MIN], &options);
            bytes[13] = flag::ACK;
            let _ = translate(&mut bytes, length, &way);
            assert_eq!((get(&bytes, 24), get(&bytes, 28)), (8, expected), "{echo} with {way:?}");
        }
    }
}

#[test]
fn without_an_acknowledgement_none_is_invented() {
    let (mut bytes, length) = header([0; TCP_MIN], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0]);
    bytes[13] = flag::RST;
    let _ = translate(&mut bytes, length, &WAY);
    assert_eq!((get(&bytes, 8), get(&bytes, 22), get(&bytes, 26)), (0, 8, 0));
}

#[test]
fn marks_pass_only_where_both_legs_know_them() {
    for (flags, expected, class) in [(0, flag::ACK, 0), (ECN, flag::ACK | flag::ECE | flag::CWR, 1)] {
        let (mut bytes, length) = header([0; TCP_MIN], &[]);
        bytes[13] = flag::ACK | flag::ECE | flag::CWR;
        let way = Translation { flags, ..WAY };
        let _ = translate(&mut bytes, length, &way);
        assert_eq!(bytes[13], expected);
        assert_eq!(way.traffic_class(0b1011_1001), class);
    }
}

#[test]
fn an_impossible_length_is_refused() {
    assert_eq!(tcp_length(0x40), None);
    assert_eq!(tcp_length(0x50), Some(20));
    assert_eq!(tcp_length(0xff), Some(60));
}

#[test]
fn a_damaged_ipv4_header_is_noticed() {
    let mut header = [0; IPV6_BYTES];
    header[..IPV4_BYTES]
        .copy_from_slice(&[0x45, 0, 0, 60, 1, 2, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    sum_v4(header.first_chunk_mut().unwrap());
    header[IPV4_BYTES..].fill(7);
    assert!(is_whole_v4(&header));
    for at in 0..IPV4_BYTES {
        let mut damaged = header;
        damaged[at] ^= 0x10;
        assert!(!is_whole_v4(&damaged), "{at}");
    }
}
