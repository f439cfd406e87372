//! The events that the kernel sends to userspace.

use crate::Cookie;

/// A direction changed from redirecting to passing. Userspace must now read from the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// [`super::direction::Flow::token`] of the direction.
    pub token: u64,
    /// The socket that has bytes to read.
    pub cookie: Cookie,
}

const _: () = assert!(size_of::<Event>() == 16, "Event has padding");

/// The size of an event in the ring, with the header that the kernel puts before each (`BPF_RINGBUF_HDR_SZ`).
const RING_ENTRY: u32 = 16 + 8;

/// The ring size: a power of two of at least a page, with room for one unread event of each direction.
///
/// A direction sends its next event only after userspace has handled the former one, so such a ring is hardly ever
/// full. A lost event is counted, and userspace then checks every connection.
#[must_use]
pub const fn ring_bytes(directions: u32) -> u32 {
    let bytes = directions.saturating_mul(RING_ENTRY);
    // Large enough for a page of any architecture. The next power of two is far from an overflow.
    if bytes < 65_536 {
        65_536
    } else if bytes > 1 << 30 {
        1 << 30
    } else {
        bytes.next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_holds_one_event_of_each_direction() {
        assert_eq!(ring_bytes(16_384), 512 * 1024);
        assert_eq!(ring_bytes(0), 65_536);
        assert_eq!(ring_bytes(u32::MAX), 1 << 30);
    }
}
