//! Ethernet frames with a TCP segment over IPv4.

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, TcpHeader, TcpOptionElement,
    TcpOptionElement::SelectiveAcknowledgement,
};

/// An address and a port.
type Peer = ([u8; 4], u16);

/// The connection of a segment: the peer at the outer end of the link, and the peer at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    outer: Peer,
    inner: Peer,
}

/// A frame with a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    ethernet: Ethernet2Header,
    ip: Ipv4Header,
    tcp: TcpHeader,
    payload: Vec<u8>,
}

impl Segment {
    /// `None` for any other frame, including a fragment. Padding after the segment is removed.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, rest) = Ethernet2Header::from_slice(frame).ok()?;
        if ethernet.ether_type != EtherType::IPV4 {
            return None;
        }
        let (ip, rest) = Ipv4Header::from_slice(rest).ok()?;
        if ip.protocol != IpNumber::TCP || ip.is_fragmenting_payload() {
            return None;
        }
        let segment = rest.get(..usize::from(ip.payload_len().ok()?))?;
        let (tcp, payload) = TcpHeader::from_slice(segment).ok()?;
        Some(Self { ethernet, ip, tcp, payload: payload.to_vec() })
    }

    /// The complete frame.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let headers: [&[u8]; 3] = [&self.ethernet.to_bytes(), &self.ip.to_bytes(), &self.tcp.to_bytes()];
        [&headers.concat()[..], &self.payload].concat()
    }

    /// The connection. `inwards` means that the segment comes from the outer end.
    pub(super) fn flow(&self, inwards: bool) -> Flow {
        let source = (self.ip.source, self.tcp.source_port);
        let destination = (self.ip.destination, self.tcp.destination_port);
        if inwards {
            Flow { outer: source, inner: destination }
        } else {
            Flow { outer: destination, inner: source }
        }
    }

    /// The sequence number of the first byte.
    pub(super) fn seq(&self) -> u32 {
        self.tcp.sequence_number
    }

    /// The payload.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Whether the segment has SYN.
    pub(super) fn is_syn(&self) -> bool {
        self.tcp.syn
    }

    /// Whether the segment has a payload, and neither SYN, FIN nor RST.
    pub(super) fn is_data(&self) -> bool {
        !self.payload.is_empty() && !self.tcp.syn && !self.tcp.fin && !self.tcp.rst
    }

    /// Whether both checksums are correct.
    pub(super) fn is_sound(&self) -> bool {
        // In one's complement, 0 and 0xffff both are zero (RFC 1071 section 1), and senders use either.
        let same = |one: u16, other: u16| one % 0xffff == other % 0xffff;
        same(self.ip.header_checksum, self.ip.calc_header_checksum())
            && same(self.tcp.checksum, self.tcp_checksum())
    }

    /// Shifts the segment's own sequence numbers by `own`, and its acknowledgement numbers by `other`.
    pub(super) fn shift(&mut self, own: u32, other: u32) {
        let number = &mut self.tcp.sequence_number;
        *number = number.wrapping_add(own);
        if self.tcp.ack {
            let number = &mut self.tcp.acknowledgment_number;
            *number = number.wrapping_add(other);
            self.shift_blocks(other);
        }
        self.seal();
    }

    /// Shifts the edges of selective acknowledgements. Unknown options do not change.
    fn shift_blocks(&mut self, by: u32) {
        let shifted = |(left, right): (u32, u32)| (left.wrapping_add(by), right.wrapping_add(by));
        let Ok(options) = self.tcp.options_iterator().collect::<Result<Vec<_>, _>>() else { return };
        let options: Vec<TcpOptionElement> = options
            .into_iter()
            .map(|option| match option {
                SelectiveAcknowledgement(first, more) => {
                    SelectiveAcknowledgement(shifted(first), more.map(|block| block.map(shifted)))
                }
                other => other,
            })
            .collect();
        self.tcp.set_options(&options).expect("as long as they were");
    }

    /// `tail`, the bytes right before this segment, followed by the first `head` bytes of this one.
    pub(super) fn joined(&self, tail: &[u8], head: usize) -> Self {
        let mut joined = Self { payload: [tail, &self.payload[..head]].concat(), ..self.clone() };
        let length = joined.tcp.header_len() + joined.payload.len();
        joined.ip.set_payload_len(length).expect("no longer than a frame");
        joined.tcp.psh = false;
        let back = u32::try_from(tail.len()).expect("no longer than a frame");
        joined.tcp.sequence_number = joined.tcp.sequence_number.wrapping_sub(back);
        joined.seal();
        joined
    }

    /// Updates both checksums.
    fn seal(&mut self) {
        self.ip.header_checksum = self.ip.calc_header_checksum();
        self.tcp.checksum = self.tcp_checksum();
    }

    fn tcp_checksum(&self) -> u16 {
        self.tcp.calc_checksum_ipv4(&self.ip, &self.payload).expect("no longer than a frame")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bits of byte 13 of a TCP header (RFC 9293 section 3.1).
    mod flag {
        pub(super) const PSH: u8 = 8;
        pub(super) const ACK: u8 = 16;
    }

    /// Bytes of an Ethernet header.
    const ETHERNET: usize = 14;

    /// A valid segment with `payload` at `seq`. It acknowledges 5000 and has SACK blocks from 6000 to 7000 and from
    /// 8000 to 9000.
    pub(in super::super) fn segment(seq: u32, flags: u8, payload: &[u8]) -> Segment {
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        let length = u16::try_from(20 + 44 + payload.len()).unwrap().to_be_bytes();
        frame.extend([0x45, 0, length[0], length[1], 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x1f, 0x90, 0x20, 0xfb]);
        frame.extend(seq.to_be_bytes());
        frame.extend(5_000_u32.to_be_bytes());
        frame.extend([0xb0, flags, 1, 0, 0, 0, 0, 0, 1, 1, 5, 18]);
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
    fn a_changed_byte_is_noticed() {
        let sound = segment(1, flag::ACK, b"bytes");
        assert!(sound.is_sound());
        for at in ETHERNET..sound.bytes().len() {
            let mut bytes = sound.bytes();
            bytes[at] ^= 1;
            assert!(!Segment::parse(&bytes).is_some_and(|segment| segment.is_sound()), "byte {at}");
        }
    }

    #[test]
    fn a_checksum_of_zero_may_have_either_form() {
        let mut all = (0..=u16::MAX).map(|tail| segment(1, flag::ACK, &tail.to_be_bytes()));
        let mut zero = all.find(|segment| segment.tcp.checksum == 0).expect("one of all sums");
        zero.tcp.checksum = 0xffff;
        assert!(zero.is_sound());
        zero.tcp.checksum = 0xfffe;
        assert!(!zero.is_sound());
    }

    #[test]
    fn all_numbers_are_shifted() {
        let mut shifted = segment(1_000, flag::ACK, b"bytes");
        shifted.shift(100, 1_u32.wrapping_neg());
        assert!(shifted.is_sound());
        assert_eq!(shifted.seq(), 1_100);
        let bytes = shifted.bytes();
        let word = |at| u32::from_be_bytes(bytes[ETHERNET + 20 + at..][..4].try_into().unwrap());
        assert_eq!([8, 24, 28, 32, 36].map(word), [4_999, 5_999, 6_999, 7_999, 8_999]);
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
        (other.ip.source, other.ip.destination) = (one.ip.destination, one.ip.source);
        (other.tcp.source_port, other.tcp.destination_port) = (one.tcp.destination_port, one.tcp.source_port);
        assert_eq!(one.flow(true), other.flow(false));
        assert_ne!(one.flow(true), other.flow(true));
    }

    #[test]
    fn what_is_no_segment_is_left_alone() {
        let bytes = segment(1, flag::ACK, b"bytes").bytes();
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
