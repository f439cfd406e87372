//! Translation of ICMP errors: a router's error about a forwarded packet becomes an error about the packet as it
//! arrived.
//!
//! An ICMP error quotes the begin of the packet: the IP header, and at least eight bytes after it (RFC 792; RFC 4443
//! section 2.4 c has as much as fits). The original sender receives the error with its own numbers, so it sends smaller
//! segments where a link has a smaller MTU. The MTU stays the same, since both legs have IP headers of the same size.
//!
//! Everyone who knows the addresses can forge an error. So an error is forwarded only if it quotes a byte under way, as
//! a receiver on the same host would require (RFC 5927 section 4.1).

use super::{
    checksum::Change,
    flow::{Track, Translation, beyond},
    segment::{IPV4_BYTES, IPV6_BYTES, TCP_BYTES, TCP_CHECKSUM, TCP_MIN},
    translate::{HOPS, put_word, sum_between, sum_v4, translate, word},
};

/// The protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// The protocol number of ICMP for IPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Bytes of an ICMP header, before the quoted packet.
pub const ICMP_BYTES: usize = 8;
/// Offset of the checksum in this header.
pub const ICMP_CHECKSUM: usize = 2;
/// The required bytes of a TCP header: ports and sequence number.
pub const TCP_LEAST: usize = 8;

/// Whether an error of this type is forwarded: unreachable (which includes "fragmentation needed"), packet too big,
/// time exceeded, parameter problem.
#[inline(always)]
#[must_use]
pub const fn is_error(v6: bool, kind: u8) -> bool {
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) }
}

/// Whether the byte with this number, as forwarded, is under way from end to end: neither acknowledged nor the
/// balancer's socket's to deliver. `of` is the way of the packet and `own` its record. `back` and `other` are those of
/// the other way.
#[inline(always)]
#[must_use]
pub const fn is_under_way(
    seq: u32,
    of: &Translation,
    own: &Track,
    back: &Translation,
    other: &Track,
) -> bool {
    let at = seq.wrapping_sub(of.seq).wrapping_sub(of.seq_start);
    let ours = back.own as u64;
    let from = if other.acked > ours { other.acked } else { ours };
    beyond(at, from) >= 0 && beyond(at, own.sent) < 0
}

/// Turns the IPv4 and TCP headers of a forwarded packet into those of the packet as it arrived. `tcp` has zeros from
/// `known` on, which is [`TCP_LEAST`] or [`TCP_MIN`]. Returns the change of a sum over both.
///
/// The hop limit and the class of service are not restored, and TCP options stay as forwarded. The checksums match the
/// result.
#[inline(always)]
#[must_use]
pub fn restore_v4(
    ip: &mut [u8; IPV4_BYTES],
    tcp: &mut [u8; TCP_BYTES],
    known: usize,
    of: &Translation,
    back: &Translation,
) -> Change {
    let mut addresses = Change::NONE;
    let (source, destination) = (u32::from_be(back.remote[3]), u32::from_be(back.local[3]));
    addresses.words(word(ip, 12), source);
    addresses.words(word(ip, 16), destination);
    put_word(ip, 12, source);
    put_word(ip, 16, destination);
    let mut change = addresses;
    let old = u16::from_be_bytes([ip[10], ip[11]]);
    let new = addresses.apply(old);
    change.word(old, new);
    [ip[10], ip[11]] = new.to_be_bytes();
    change.and(restore_tcp(tcp, known, addresses, of, back))
}

/// As [`restore_v4`], for IPv6.
#[inline(always)]
#[must_use]
pub fn restore_v6(
    ip: &mut [u8; IPV6_BYTES],
    tcp: &mut [u8; TCP_BYTES],
    known: usize,
    of: &Translation,
    back: &Translation,
) -> Change {
    let mut addresses = Change::NONE;
    let mut i = 0;
    while i < 4 {
        let (source, destination) = (u32::from_be(back.remote[i]), u32::from_be(back.local[i]));
        addresses.words(word(ip, 8 + 4 * i), source);
        addresses.words(word(ip, 24 + 4 * i), destination);
        put_word(ip, 8 + 4 * i, source);
        put_word(ip, 24 + 4 * i, destination);
        i += 1;
    }
    addresses.and(restore_tcp(tcp, known, addresses, of, back))
}

#[inline(always)]
fn restore_tcp(
    tcp: &mut [u8; TCP_BYTES],
    known: usize,
    addresses: Change,
    of: &Translation,
    back: &Translation,
) -> Change {
    // The packet's sender is the destination of the error.
    let before = of.inverse(back.local, back.remote, back.ports.rotate_left(16));
    // Zeros stand for no acknowledgement, and for no window on either leg.
    let mut change = translate(tcp, TCP_MIN, &before);
    if known >= TCP_MIN {
        let old = u16::from_be_bytes([tcp[TCP_CHECKSUM], tcp[TCP_CHECKSUM + 1]]);
        let new = addresses.and(change).apply(old);
        change.word(old, new);
        [tcp[TCP_CHECKSUM], tcp[TCP_CHECKSUM + 1]] = new.to_be_bytes();
    }
    change
}

/// Quoted bytes of a TCP header in an error about a packet that is too large: a header without options.
pub const QUOTED: usize = TCP_MIN;

/// Turns an IPv4 header into that of an error to its sender: the packet is too large for a link with an MTU of `mtu`
/// bytes ("fragmentation needed", RFC 792 and RFC 1191 section 4). The error quotes [`QUOTED`] bytes behind the IP
/// header. Returns the ICMP header, whose checksum is right if the quoted TCP header is [`weightless`].
#[inline(always)]
#[must_use]
pub fn too_large_v4(ip: &mut [u8; IPV4_BYTES], mtu: u32) -> [u8; ICMP_BYTES] {
    const LENGTH: usize = 2 * IPV4_BYTES + ICMP_BYTES + QUOTED;
    let [.., high, low] = mtu.to_be_bytes();
    let mut message = [3, 4, 0, 0, 0, 0, high, low];
    sum_up(&mut message, sum_between(ip, 0, IPV4_BYTES));
    // The compiler would keep the values read above on the stack, which has no room.
    core::hint::black_box(&mut *ip);
    let (source, destination) = (word(ip, 12), word(ip, 16));
    #[expect(clippy::cast_possible_truncation, reason = "a few headers")]
    put_word(ip, 0, 0x4500_0000 | LENGTH as u32);
    put_word(ip, 4, 0);
    put_word(ip, 8, u32::from(HOPS) << 24 | u32::from(PROTOCOL_ICMP) << 16);
    put_word(ip, 12, destination);
    put_word(ip, 16, source);
    sum_v4(ip);
    message
}

/// As the function for IPv4 ("packet too big", RFC 4443 section 3.2).
#[inline(always)]
#[must_use]
pub fn too_large_v6(ip: &mut [u8; IPV6_BYTES], mtu: u32) -> [u8; ICMP_BYTES] {
    const LENGTH: usize = ICMP_BYTES + IPV6_BYTES + QUOTED;
    let [a, b, c, d] = mtu.to_be_bytes();
    let mut message = [2, 0, 0, 0, a, b, c, d];
    // The pseudo-header contains the addresses, too.
    let mut sum = sum_between(ip, 0, IPV6_BYTES).and(sum_between(ip, 8, IPV6_BYTES));
    #[expect(clippy::cast_possible_truncation, reason = "a few headers")]
    sum.words(u32::MAX, (LENGTH as u32) << 16 | u32::from(PROTOCOL_ICMPV6));
    sum_up(&mut message, sum);
    core::hint::black_box(&mut *ip);
    #[expect(clippy::cast_possible_truncation, reason = "a few headers")]
    put_word(ip, 4, (LENGTH as u32) << 16 | u32::from(PROTOCOL_ICMPV6) << 8 | u32::from(HOPS));
    put_word(ip, 0, 0x6000_0000);
    let mut at = 8;
    while at < 24 {
        let (source, destination) = (word(ip, at), word(ip, at + 16));
        put_word(ip, at, destination);
        put_word(ip, at + 16, source);
        at += 4;
    }
    message
}

/// Writes the checksum of a message whose other parts have the sum `rest`.
#[inline(always)]
const fn sum_up(message: &mut [u8; ICMP_BYTES], rest: Change) {
    let mut sum = rest;
    sum.words(u32::MAX, word(message, 0));
    sum.words(u32::MAX, word(message, 4));
    let [high, low] = sum.apply(u16::MAX).to_be_bytes();
    message[ICMP_CHECKSUM] = high;
    message[ICMP_CHECKSUM + 1] = low;
}

/// Makes the begin of a TCP header count as zero in a sum over it: the checksum becomes zero, and the urgent pointer
/// compensates for the rest. The receiver of an ICMP error ignores both fields.
///
/// With `CHECKSUM_PARTIAL` the device writes the checksum into the middle of the quotation, and the program cannot
/// detect that case. For a weightless header the device writes the other representation of zero, which counts as zero,
/// too.
#[inline(always)]
pub const fn weightless(tcp: &mut [u8; TCP_BYTES]) {
    put_word(tcp, TCP_CHECKSUM, 0);
    let [high, low] = sum_between(tcp, 0, TCP_CHECKSUM).apply(u16::MAX).to_be_bytes();
    tcp[TCP_CHECKSUM + 2] = high;
    tcp[TCP_CHECKSUM + 3] = low;
}

#[cfg(test)]
mod tests;
