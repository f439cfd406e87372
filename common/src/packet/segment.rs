//! A TCP segment: where its headers are, and what of it matters to a flow.

/// Room for the longest TCP header, and a power of two so that the verifier sees an index masked by one less.
pub const TCP_BYTES: usize = 64;
/// A TCP header without options.
pub const TCP_MIN: usize = 20;
/// The longest TCP header: the data offset has four bits.
pub const TCP_MAX: usize = 60;
/// The only IPv4 header that is translated: one without options.
pub const IPV4_BYTES: usize = 20;
/// The fixed header of IPv6.
pub const IPV6_BYTES: usize = 40;
/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;

/// The protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;

/// Bits of a TCP header's flags (RFC 9293 section 3.1).
pub mod flag {
    /// The sender has finished.
    pub const FIN: u8 = 0x01;
    /// A connection begins.
    pub const SYN: u8 = 0x02;
    /// The connection is torn down.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// [`RST`] and [`ACK`]: what a socket sends that is torn down.
    pub const RESETS: u8 = RST | ACK;
    /// Echo of a congestion mark (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// What of a segment matters to the flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The window as it is in the header.
    pub window: u16,
    /// Flags, see [`flag`].
    pub flags: u8,
    /// Bytes of payload.
    pub payload: u32,
}

impl Segment {
    /// Reads a header.
    #[inline(always)]
    #[must_use]
    pub const fn of(header: &[u8; TCP_BYTES], payload: u32) -> Self {
        Self {
            seq: get(header, 4),
            ack: get(header, 8),
            window: u16::from_be_bytes([header[14], header[15]]),
            flags: header[13],
            payload,
        }
    }

    /// Whether one of these flags is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// What it takes of the sequence space: the payload, and one for a FIN.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.payload + self.has(flag::FIN) as u32
    }

    /// Whether it would begin a connection.
    #[inline(always)]
    #[must_use]
    pub const fn begins(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK) == flag::SYN
    }

    /// Whether it takes nothing of the sequence space.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes of the TCP header, from its data offset; `None` if that is impossible.
#[inline(always)]
#[must_use]
pub const fn tcp_length(offset_byte: u8) -> Option<usize> {
    let length = (offset_byte >> 4) as usize * 4;
    if length >= TCP_MIN { Some(length) } else { None }
}

/// Four bytes of a header, which the walk over options may ask for anywhere.
#[inline(always)]
pub(super) const fn get(header: &[u8; TCP_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([
        header[at % TCP_BYTES],
        header[(at + 1) % TCP_BYTES],
        header[(at + 2) % TCP_BYTES],
        header[(at + 3) % TCP_BYTES],
    ])
}
