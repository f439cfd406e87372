//! Ethernet frames with a TCP segment over IPv4 in them.

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of a TCP header without options.
const TCP: usize = 20;
/// Where the addresses are in an IPv4 header.
const ADDRESSES: std::ops::Range<usize> = ETHERNET + 12..ETHERNET + 20;

/// Bits of byte 13 of a TCP header (RFC 9293 section 3.1).
mod flag {
    pub(super) const FIN: u8 = 1;
    pub(super) const SYN: u8 = 2;
    pub(super) const RST: u8 = 4;
    pub(super) const PSH: u8 = 8;
    pub(super) const ACK: u8 = 16;
}

/// Selective acknowledgements (RFC 2018 section 3).
const SACK: u8 = 5;

/// An address and a port as they lie in the headers.
type Peer = ([u8; 4], [u8; 2]);

/// The connection that a segment belongs to: who is at the outer end of the link, who at the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    outer: Peer,
    inner: Peer,
}

/// A frame that was found to hold a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    bytes: Vec<u8>,
    /// Where the TCP header begins.
    tcp: usize,
    /// Where the payload begins.
    payload: usize,
    /// Where it ends; some padding may follow.
    end: usize,
}

impl Segment {
    /// `None` for anything else, a fragment included.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        if frame[12..ETHERNET] != [8, 0] || ip.first()? >> 4 != 4 || *ip.get(9)? != 6 {
            return None;
        }
        // A further part, or more of them to come.
        if u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 {
            return None;
        }
        let tcp = ETHERNET + usize::from(ip[0] & 15) * 4;
        let end = ETHERNET + usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let payload = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
        let whole = tcp >= ETHERNET + 20 && payload >= tcp + TCP && end >= payload && end <= frame.len();
        whole.then(|| Self { bytes: frame.to_vec(), tcp, payload, end })
    }

    /// The whole frame.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The connection; `inwards` says that the segment comes from the outer end.
    pub(super) fn flow(&self, inwards: bool) -> Flow {
        let address = |at| self.bytes[ADDRESSES][at..at + 4].try_into().expect("four bytes");
        let port = |at| self.bytes[self.tcp + at..self.tcp + at + 2].try_into().expect("two bytes");
        let (source, destination) = ((address(0), port(0)), (address(4), port(2)));
        if inwards {
            Flow { outer: source, inner: destination }
        } else {
            Flow { outer: destination, inner: source }
        }
    }

    /// The number of its first byte.
    pub(super) fn seq(&self) -> u32 {
        self.word(4)
    }

    /// The bytes that it carries.
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[self.payload..self.end]
    }

    /// Whether it opens a direction.
    pub(super) fn is_syn(&self) -> bool {
        self.has(flag::SYN)
    }

    /// Whether it carries bytes and does nothing else.
    pub(super) fn is_data(&self) -> bool {
        !self.payload().is_empty() && !self.has(flag::SYN | flag::FIN | flag::RST)
    }

    fn has(&self, flags: u8) -> bool {
        self.bytes[self.tcp + 13] & flags != 0
    }

    /// Whether both checksums are right.
    pub(super) fn is_sound(&self) -> bool {
        self.ip_sum() == 0 && self.tcp_sum() == 0
    }

    /// Shifts its own numbers by `own`, and those of the other direction that it mentions by `other`.
    pub(super) fn shift(&mut self, own: u32, other: u32) {
        self.add(4, own);
        if self.has(flag::ACK) {
            self.add(8, other);
            self.shift_blocks(other);
        }
        self.seal();
    }

    /// Shifts the edges of selective acknowledgements.
    fn shift_blocks(&mut self, by: u32) {
        let mut at = self.tcp + TCP;
        while at < self.payload {
            let kind = self.bytes[at];
            if kind == 0 {
                return;
            }
            let size = if kind == 1 { 1 } else { usize::from(*self.bytes.get(at + 1).unwrap_or(&0)) };
            if size == 0 || at + size > self.payload {
                return;
            }
            if kind == SACK {
                for edge in (2..size - 3).step_by(4) {
                    self.add(at + edge - self.tcp, by);
                }
            }
            at += size;
        }
    }

    /// The segment that goes on with the first `head` bytes of this one where `tail` ends, which are the bytes right
    /// before it.
    pub(super) fn joined(&self, tail: &[u8], head: usize) -> Self {
        let mut bytes = self.bytes[..self.payload].to_vec();
        bytes.extend_from_slice(tail);
        bytes.extend_from_slice(&self.payload()[..head]);
        let end = bytes.len();
        let mut joined = Self { bytes, end, ..*self };
        let length = u16::try_from(end - ETHERNET).expect("no longer than a frame");
        joined.bytes[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
        joined.bytes[joined.tcp + 13] &= !flag::PSH;
        let back = u32::try_from(tail.len()).expect("no longer than a frame").wrapping_neg();
        joined.add(4, back);
        joined.seal();
        joined
    }

    /// Four bytes of the TCP header.
    fn word(&self, at: usize) -> u32 {
        let at = self.tcp + at;
        u32::from_be_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn add(&mut self, at: usize, by: u32) {
        let word = self.word(at).wrapping_add(by);
        self.bytes[self.tcp + at..self.tcp + at + 4].copy_from_slice(&word.to_be_bytes());
    }

    /// Makes both checksums right.
    fn seal(&mut self) {
        let (ip, tcp) = (ETHERNET + 10, self.tcp + 16);
        self.bytes[ip..ip + 2].fill(0);
        let sum = self.ip_sum();
        self.bytes[ip..ip + 2].copy_from_slice(&sum.to_be_bytes());
        self.bytes[tcp..tcp + 2].fill(0);
        let sum = self.tcp_sum();
        self.bytes[tcp..tcp + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn ip_sum(&self) -> u16 {
        checksum(0, &self.bytes[ETHERNET..self.tcp])
    }

    fn tcp_sum(&self) -> u16 {
        let segment = &self.bytes[self.tcp..self.end];
        // The pseudo-header: addresses, protocol, length.
        let pseudo = sum(&self.bytes[ADDRESSES]) + 6 + segment.len() as u64;
        checksum(pseudo, segment)
    }
}

/// The sum of all 32-bit words, which folds to that of the 16-bit ones.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let last = u32::from_be_bytes(last);
    words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum::<u64>() + u64::from(last)
}

/// The checksum of the internet (RFC 1071); 0 for bytes that contain their own.
fn checksum(mut more: u64, bytes: &[u8]) -> u16 {
    more += sum(bytes);
    while more > 0xffff {
        more = (more & 0xffff) + (more >> 16);
    }
    !u16::try_from(more).expect("folded to sixteen bits")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A sound segment with `payload` at `seq`, which acknowledges 5000 and has blocks from 6000 to 7000 and from 8000
    /// to 9000.
    pub(in super::super) fn segment(seq: u32, flags: u8, payload: &[u8]) -> Segment {
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        let length = u16::try_from(20 + 44 + payload.len()).unwrap().to_be_bytes();
        frame.extend([0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x1f, 0x90, 0x20, 0xfb]);
        frame.extend(seq.to_be_bytes());
        frame.extend(5_000_u32.to_be_bytes());
        frame.extend([0xb0, flags, 1, 0, 0, 0, 0, 0, 1, 1, SACK, 18]);
        for edge in [6_000_u32, 7_000, 8_000, 9_000] {
            frame.extend(edge.to_be_bytes());
        }
        frame.extend([1, 1, 1, 0]);
        frame.extend(payload);
        let mut segment = Segment::parse(&frame).expect("a segment");
        segment.seal();
        segment
    }

    #[test]
    fn a_checksum_is_that_of_the_rfc() {
        // RFC 1071 section 3.
        assert_eq!(checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(0, &[0x12]), !0x1200);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let sound = segment(1, flag::ACK, b"bytes");
        assert!(sound.is_sound());
        for at in ETHERNET..sound.bytes.len() {
            let mut bytes = sound.bytes.clone();
            bytes[at] ^= 1;
            assert!(!Segment::parse(&bytes).is_some_and(|segment| segment.is_sound()), "byte {at}");
        }
    }

    #[test]
    fn all_numbers_are_shifted() {
        let mut shifted = segment(1_000, flag::ACK, b"bytes");
        shifted.shift(100, 1_u32.wrapping_neg());
        assert!(shifted.is_sound());
        assert_eq!(shifted.seq(), 1_100);
        let words: Vec<_> = [8, 24, 28, 32, 36].map(|at| shifted.word(at)).into();
        assert_eq!(words, [4_999, 5_999, 6_999, 7_999, 8_999]);
        shifted.shift(100_u32.wrapping_neg(), 1);
        assert_eq!(shifted, segment(1_000, flag::ACK, b"bytes"));
    }

    #[test]
    fn a_joined_segment_is_sound() {
        let joined = segment(2, flag::ACK | flag::PSH, b"second").joined(b"rst", 3);
        assert!(joined.is_sound());
        assert_eq!(joined, segment(2_u32.wrapping_sub(3), flag::ACK, b"rstsec"));
    }

    #[test]
    fn both_ways_are_one_flow() {
        let one = segment(1, flag::ACK, b"");
        let mut other = one.clone();
        other.bytes[ADDRESSES].rotate_left(4);
        other.bytes[one.tcp..one.tcp + 4].rotate_left(2);
        assert_eq!(one.flow(true), other.flow(false));
        assert_ne!(one.flow(true), other.flow(true));
    }

    #[test]
    fn what_is_no_segment_is_left_alone() {
        let bytes = segment(1, flag::ACK, b"bytes").bytes;
        for length in 0..bytes.len() {
            assert_eq!(Segment::parse(&bytes[..length]), None);
        }
        for (at, value) in [(12, 0x86), (ETHERNET, 0x65), (ETHERNET + 6, 0x20), (ETHERNET + 9, 17)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert_eq!(Segment::parse(&other), None);
        }
    }
}
