//! A TCP segment: the size of its headers, and the fields that matter to a flow.

/// Room for the longest TCP header. It is a power of two, so that the verifier can bound a masked index.
pub const TCP_BYTES: usize = 64;
/// A TCP header without options.
pub const TCP_MIN: usize = 20;
/// The longest TCP header: the data offset has four bits.
pub const TCP_MAX: usize = 60;
/// An IPv4 header without options, the only one that is translated.
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
    /// [`RST`] and [`ACK`]: the flags of a socket's reset.
    pub const RESETS: u8 = RST | ACK;
    /// Echo of a congestion mark (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// The congestion window was reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// The fields of a segment that matter to a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The window, unscaled.
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

    /// Length in the sequence space: the payload, and one for a FIN.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.payload + self.has(flag::FIN) as u32
    }

    /// Whether the segment begins a connection.
    #[inline(always)]
    #[must_use]
    pub const fn begins(&self) -> bool {
        self.flags & (flag::SYN | flag::ACK) == flag::SYN
    }

    /// Whether the segment takes no sequence space.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Length of the TCP header in bytes, from its data offset; `None` if it is invalid.
#[inline(always)]
#[must_use]
pub const fn tcp_length(offset_byte: u8) -> Option<usize> {
    let length = (offset_byte >> 4) as usize * 4;
    if length >= TCP_MIN { Some(length) } else { None }
}

/// Four bytes of a header at any offset. The walk over options needs them.
#[inline(always)]
pub(super) const fn get(header: &[u8; TCP_BYTES], at: usize) -> u32 {
    u32::from_be_bytes([
        header[at % TCP_BYTES],
        header[(at + 1) % TCP_BYTES],
        header[(at + 2) % TCP_BYTES],
        header[(at + 3) % TCP_BYTES],
    ])
}
