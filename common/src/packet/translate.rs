//! Translates the headers of a packet into those of the other leg.
//!
//! The functions change headers in place and return the change of the TCP checksum. The change by the pseudo-header is
//! separate from the rest: a packet whose checksum the device computes (`CHECKSUM_PARTIAL`) has only the pseudo-header
//! in its field.

use super::{
    checksum::{Change, fold},
    flow::Translation,
    segment::{IPV4_BYTES, IPV6_BYTES, PROTOCOL_TCP, TCP_BYTES, TCP_MAX, TCP_MIN, flag, get},
};

/// Offset of the first option, which is the length of a header without options.
const FIRST_OPTION: u8 = 20;
/// Hop limit of forwarded packets. The balancer ends one connection and begins another, so the limit does not depend on
/// the sender's distance. The balancer's own packets have the same limit.
pub const HOPS: u8 = 64;

/// Options of a TCP header, by kind.
mod option {
    /// The list ends here.
    pub(super) const END: u8 = 0;
    /// One byte of padding.
    pub(super) const NOP: u8 = 1;
    /// Selective acknowledgement (RFC 2018).
    pub(super) const SACK: u8 = 5;
    /// Timestamps (RFC 7323).
    pub(super) const TIMESTAMPS: u8 = 8;
}

/// Most blocks of selective acknowledgement that fit.
const SACK_BLOCKS: usize = 4;

/// Translates a TCP header. `length` is the result of [`tcp_length`](crate::packet::segment::tcp_length).
#[inline(always)]
#[must_use]
pub fn translate(header: &mut [u8; TCP_BYTES], length: usize, way: &Translation) -> Change {
    let mut change = Change::NONE;
    let flags = header[13];
    replace(header, 0, u32::from_be(way.ports), &mut change);
    let seq = get(header, 4).wrapping_add(way.seq);
    replace(header, 4, seq, &mut change);
    // A reset without ACK has a zero there.
    if flags & flag::ACK != 0 {
        let ack = get(header, 8).wrapping_add(way.ack);
        replace(header, 8, ack, &mut change);
    }
    if !way.has_ecn() && flags & (flag::ECE | flag::CWR) != 0 {
        let cleared = flags & !(flag::ECE | flag::CWR);
        change.word(u16::from_be_bytes([header[12], flags]), u16::from_be_bytes([header[12], cleared]));
        header[13] = cleared;
    }
    let old = u16::from_be_bytes([header[14], header[15]]);
    let window = way.window(old);
    change.word(old, window);
    let [high, low] = window.to_be_bytes();
    header[14] = high;
    header[15] = low;
    if length > TCP_MIN {
        options(header, length, way, flags, &mut change);
    }
    change
}

/// Turns a header into a probe of the receiver, with these numbers.
#[inline(always)]
#[must_use]
pub fn ask(header: &mut [u8; TCP_BYTES], seq: u32, ack: u32) -> Change {
    let mut change = Change::NONE;
    replace(header, 4, seq, &mut change);
    replace(header, 8, ack, &mut change);
    change.word(u16::from_be_bytes([header[12], header[13]]), u16::from_be_bytes([header[12], flag::ACK]));
    header[13] = flag::ACK;
    change
}

/// Offsets of options; 0 for an absent one.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    timestamps: usize,
    sack: usize,
    /// Bytes of the selective acknowledgement.
    sack_size: usize,
}

/// Translates timestamps and selective acknowledgements; other options stay as they are.
#[inline(always)]
fn options(header: &mut [u8; TCP_BYTES], length: usize, way: &Translation, flags: u8, change: &mut Change) {
    let Found { timestamps: stamps, sack, sack_size } = find(header, length);
    if stamps != 0 {
        timestamps(header, stamps, way, flags, change);
    }
    if sack != 0 {
        blocks(header, sack, sack_size, way, change);
    }
}

/// Finds the first option of each kind. The walk ends at an option that does not fit, as a receiver's does.
///
/// The loop steps from byte to byte, not from option to option, and keeps its state in single bytes of memory. The
/// verifier follows all paths through the loop, so the paths must not differ in what it knows.
#[inline(always)]
fn find(header: &[u8; TCP_BYTES], length: usize) -> Found {
    const NEXT: usize = 1;
    const STAMPS: usize = 3;
    const SACK: usize = 5;
    const SACK_SIZE: usize = 7;
    // These bytes are not the first of a word: the verifier tracks the value of a word's first byte.
    let mut known = [0, FIRST_OPTION, 0, 0, 0, 0, 0, 0];
    let mut at = TCP_MIN;
    // The verifier of Linux 6.1 needs a constant bound. The compiler would remove it if it knew that `length` is
    // smaller.
    let length = core::hint::black_box(length);
    while at < TCP_MAX && at < length {
        core::hint::black_box(&mut known);
        if at == known[NEXT] as usize {
            let kind = header[at % TCP_BYTES];
            if kind == option::END {
                break;
            }
            let mut size = 1;
            if kind != option::NOP {
                size = header[(at + 1) % TCP_BYTES];
                if at + 1 >= length || size < 2 || at + size as usize > length {
                    break;
                }
                #[expect(clippy::cast_possible_truncation, reason = "at most the length of the header")]
                let here = at as u8;
                if kind == option::TIMESTAMPS && size == 10 && known[STAMPS] == 0 {
                    known[STAMPS] = here;
                } else if kind == option::SACK && known[SACK] == 0 {
                    known[SACK] = here;
                    known[SACK_SIZE] = size;
                }
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most the length of the header")]
            let following = (at + size as usize) as u8;
            known[NEXT] = following;
        }
        at += 1;
    }
    core::hint::black_box(&mut known);
    Found {
        timestamps: known[STAMPS] as usize,
        sack: known[SACK] as usize,
        sack_size: known[SACK_SIZE] as usize,
    }
}

#[inline(always)]
const fn timestamps(
    header: &mut [u8; TCP_BYTES],
    at: usize,
    way: &Translation,
    flags: u8,
    change: &mut Change,
) {
    replace(header, at + 2, get(header, at + 2).wrapping_add(way.stamp), change);
    // A packet without ACK echoes no timestamp (RFC 7323 section 3.2).
    if flags & flag::ACK != 0 {
        replace(header, at + 6, way.echoed(get(header, at + 6)), change);
    }
}

#[inline(always)]
const fn blocks(
    header: &mut [u8; TCP_BYTES],
    at: usize,
    size: usize,
    way: &Translation,
    change: &mut Change,
) {
    let mut block = 0;
    while block < SACK_BLOCKS && 2 + 8 * (block + 1) <= size {
        let left = at + 2 + 8 * block;
        replace(header, left, get(header, left).wrapping_add(way.ack), change);
        replace(header, left + 4, get(header, left + 4).wrapping_add(way.ack), change);
        block += 1;
    }
}

/// Turns a TCP header into that of an empty segment with these flags and numbers. [`seal`] then writes the checksum.
#[inline(always)]
pub fn empty(header: &mut [u8; TCP_BYTES], flags: u8, numbers: (u32, u32)) {
    put_word(header, 4, numbers.0);
    put_word(header, 8, numbers.1);
    header[13] = flags;
    // The checksum and the urgent pointer.
    put_word(header, 16, 0);
}

/// Writes the checksum of an empty segment whose header has `length` bytes. `sum` is the sum over the header and the
/// addresses, in memory byte order.
#[inline(always)]
pub fn seal(header: &mut [u8; TCP_BYTES], length: usize, sum: u32) {
    let mut total = Change::NONE;
    #[expect(clippy::cast_possible_truncation, reason = "at most the length of the header")]
    total.words(u32::MAX, u32::from(PROTOCOL_TCP) << 16 | length as u32);
    total.word(u16::MAX, u16::from_be(fold(sum)));
    let [high, low] = total.apply(u16::MAX).to_be_bytes();
    header[16] = high;
    header[17] = low;
}

/// Sets the length in an IPv4 header to that of a packet with `length` bytes of TCP.
#[inline(always)]
pub const fn shorten_v4(header: &mut [u8; IPV4_BYTES], length: usize) {
    #[expect(clippy::cast_possible_truncation, reason = "two headers")]
    let total = (IPV4_BYTES + length) as u16;
    let [high, low] = total.to_be_bytes();
    header[2] = high;
    header[3] = low;
    sum_v4(header);
}

/// Sets the length in an IPv6 header likewise.
#[inline(always)]
pub const fn shorten_v6(header: &mut [u8; IPV6_BYTES], length: usize) {
    #[expect(clippy::cast_possible_truncation, reason = "at most the length of the header")]
    let [high, low] = (length as u16).to_be_bytes();
    header[4] = high;
    header[5] = low;
}

/// Writes the checksum of an IPv4 header.
#[inline(always)]
pub(super) const fn sum_v4(header: &mut [u8; IPV4_BYTES]) {
    header[10] = 0;
    header[11] = 0;
    let sum = sum_between(header, 0, IPV4_BYTES);
    let [high, low] = sum.apply(u16::MAX).to_be_bytes();
    header[10] = high;
    header[11] = low;
}

/// Whether the checksum of an IPv4 header is right. `header` has room for IPv6, too.
#[inline(always)]
#[must_use]
pub const fn is_whole_v4(header: &[u8; IPV6_BYTES]) -> bool {
    sum_between(header, 0, IPV4_BYTES).in_memory_order() == 0xffff
}

/// Gives an IPv4 header new addresses and a new checksum. Returns the change of the pseudo-header.
#[inline(always)]
#[must_use]
pub const fn readdress_v4(header: &mut [u8; IPV4_BYTES], way: &Translation) -> Change {
    header[1] = way.traffic_class(header[1]);
    header[8] = HOPS;
    let mut change = Change::NONE;
    let (source, destination) = (u32::from_be(way.local[3]), u32::from_be(way.remote[3]));
    change.words(word(header, 12), source);
    change.words(word(header, 16), destination);
    put_word(header, 12, source);
    put_word(header, 16, destination);
    sum_v4(header);
    change
}

/// Gives an IPv6 header new addresses. Returns the change of the pseudo-header.
#[inline(always)]
#[must_use]
pub const fn readdress_v6(header: &mut [u8; IPV6_BYTES], way: &Translation) -> Change {
    // The traffic class straddles the first two bytes, between the version and the flow label.
    let class = way.traffic_class(header[0] << 4 | header[1] >> 4);
    header[0] = header[0] & 0xf0 | class >> 4;
    header[1] = class << 4 | header[1] & 0x0f;
    header[7] = HOPS;
    let mut change = Change::NONE;
    let mut i = 0;
    while i < 4 {
        let (source, destination) = (u32::from_be(way.local[i]), u32::from_be(way.remote[i]));
        change.words(word(header, 8 + 4 * i), source);
        change.words(word(header, 24 + 4 * i), destination);
        put_word(header, 8 + 4 * i, source);
        put_word(header, 24 + 4 * i, destination);
        i += 1;
    }
    change
}

/// Replaces four bytes and adds the change to the account.
#[inline(always)]
const fn replace(header: &mut [u8; TCP_BYTES], at: usize, new: u32, change: &mut Change) {
    let old = get(header, at);
    let bytes = new.to_be_bytes();
    header[at % TCP_BYTES] = bytes[0];
    header[(at + 1) % TCP_BYTES] = bytes[1];
    header[(at + 2) % TCP_BYTES] = bytes[2];
    header[(at + 3) % TCP_BYTES] = bytes[3];
    change.words_at(at, old, new);
}

/// The sum over the words of a header from one multiple of four to another.
#[inline(always)]
pub(super) const fn sum_between<const N: usize>(header: &[u8; N], from: usize, to: usize) -> Change {
    let mut sum = Change::NONE;
    let mut at = from;
    while at < to {
        sum.words(u32::MAX, word(header, at));
        at += 4;
    }
    sum
}

/// Four bytes at a constant offset.
#[inline(always)]
pub(super) const fn word<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

#[inline(always)]
pub(super) const fn put_word<const N: usize>(header: &mut [u8; N], at: usize, value: u32) {
    let bytes = value.to_be_bytes();
    header[at] = bytes[0];
    header[at + 1] = bytes[1];
    header[at + 2] = bytes[2];
    header[at + 3] = bytes[3];
}

#[cfg(test)]
mod tests;
