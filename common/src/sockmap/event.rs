//! What the kernel tells userspace.

use crate::Cookie;

/// A direction went from redirecting to passing: from now on userspace must read from the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// [`super::direction::Flow::token`] of the direction.
    pub token: u64,
    /// The socket that has bytes to read.
    pub cookie: Cookie,
}

const _: () = assert!(size_of::<Event>() == 16, "Event has padding");

/// What an event takes in the ring, with what the kernel puts before each (`BPF_RINGBUF_HDR_SZ`).
const RING_ENTRY: u32 = 16 + 8;

/// The ring size, a power of two no smaller than a page, in which one unread event of each direction fits.
///
/// A direction makes its next event only after userspace has acted on it, so a ring of this size is hardly ever
/// full; what is lost all the same is counted and made up for by looking at every connection.
#[must_use]
pub const fn ring_bytes(directions: u32) -> u32 {
    let bytes = directions.saturating_mul(RING_ENTRY);
    // Large enough for a page of any architecture, and far below where the next power of two would overflow.
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
