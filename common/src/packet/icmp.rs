//! What a router says of a packet that was sent on, turned into what it would have said of the packet as it came in.
//!
//! An ICMP error carries the beginning of the packet that it is about: the IP header, and at least eight bytes of what
//! follows (RFC 792; RFC 4443 section 2.4 c has as much as fits). Whoever sent the packet first is told with the
//! numbers that it knows, so that it cuts smaller segments where a link takes less than it did. MTUs stay: both legs
//! have IP headers of the same size.
//!
//! Errors can be forged by who knows the addresses. So only those are passed on that name a byte under way, as a
//! receiver on the same host would have it (RFC 5927 section 4.1).

use super::{
    checksum::Change,
    flow::{Track, Way, beyond},
    header::{IPV4_BYTES, IPV6_BYTES, TCP_BYTES, TCP_CHECKSUM, TCP_MIN, put_word, translate, word},
};

/// The protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// The protocol number of ICMP for IPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// What comes before the packet that the error is about.
pub const ICMP_BYTES: usize = 8;
/// Offset of the checksum in it.
pub const ICMP_CHECKSUM: usize = 2;
/// What is needed of a TCP header: ports and sequence number.
pub const TCP_LEAST: usize = 8;

/// Whether a message of this type is an error that is passed on: unreachable (which "fragmentation needed" is a kind
/// of), packet too big, time exceeded, parameter problem.
#[inline(always)]
#[must_use]
pub const fn is_error(v6: bool, kind: u8) -> bool {
    if v6 { matches!(kind, 1..=4) } else { matches!(kind, 3 | 11 | 12) }
}

/// Whether the byte with this number, as it was sent on, is under way from end to end: neither acknowledged nor our own
/// socket's to deliver. `of` is the way that the packet went and `own` what was seen of it; `back` and `other` are
/// those of the other one.
#[inline(always)]
#[must_use]
pub const fn is_under_way(seq: u32, of: &Way, own: &Track, back: &Way, other: &Track) -> bool {
    let at = seq.wrapping_sub(of.seq).wrapping_sub(of.seq_start);
    let ours = back.own as u64;
    let from = if other.acked > ours { other.acked } else { ours };
    beyond(at, from) >= 0 && beyond(at, own.sent) < 0
}

/// Makes of the headers of a packet that was sent on those of the packet as it came in, for IPv4. `tcp` has zeros from
/// `known` on, which is [`TCP_LEAST`] or [`TCP_MIN`]. Tells how a sum over both changes.
///
/// What the program has taken away for good stays away (hop limit, class of service), and options stay as they were sent
/// on. The checksums are right for what is there.
#[inline(always)]
#[must_use]
pub fn restore_v4(
    ip: &mut [u8; IPV4_BYTES],
    tcp: &mut [u8; TCP_BYTES],
    known: usize,
    of: &Way,
    back: &Way,
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

/// The same for IPv6.
#[inline(always)]
#[must_use]
pub fn restore_v6(
    ip: &mut [u8; IPV6_BYTES],
    tcp: &mut [u8; TCP_BYTES],
    known: usize,
    of: &Way,
    back: &Way,
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
fn restore_tcp(tcp: &mut [u8; TCP_BYTES], known: usize, addresses: Change, of: &Way, back: &Way) -> Change {
    // Who sent the packet is the destination of what goes back.
    let before = of.inverse(back.local, back.remote, back.ports.rotate_left(16));
    // Zeros say that there is no acknowledgement, and are no window on either leg.
    let mut change = translate(tcp, TCP_MIN, &before);
    if known >= TCP_MIN {
        let old = u16::from_be_bytes([tcp[TCP_CHECKSUM], tcp[TCP_CHECKSUM + 1]]);
        let new = addresses.and(change).apply(old);
        change.word(old, new);
        [tcp[TCP_CHECKSUM], tcp[TCP_CHECKSUM + 1]] = new.to_be_bytes();
    }
    change
}

#[cfg(test)]
mod tests;
