//! The bytes of all directions that wait in the kernel between their two sockets.
//!
//! The kernel charges a redirected packet to no socket and no limit. [`super::direction::Limits::high_water`] bounds
//! the waiting bytes of one direction. The sum over all directions is kept here, and
//! [`super::direction::Limits::total`] bounds it.
//!
//! A direction has a *share* in the sum: its waiting bytes if they exceed [`SMALL_BYTES`], else nothing. Ordinary
//! traffic therefore leaves the shared counter alone. The program corrects the share whenever it reads the target. The
//! share of a silent direction is out of date. Userspace returns it once the target has taken all bytes
//! ([`super::direction::Control::returned`]).
//!
//! The sum has two halves, since userspace cannot add to a map's element: the bytes that the program counted, and the
//! bytes that userspace returned.

/// A direction with no more waiting bytes has no share. No packet is longer, unless the link makes larger ones
/// (`gso_ipv4_max_size`).
pub const SMALL_BYTES: u32 = 64 * 1024;

/// Index of the bytes that the program counted, modulo 2^64.
pub const COUNTED: u32 = 0;
/// Index of the bytes that userspace returned, modulo 2^64.
pub const RETURNED: u32 = 1;
/// Elements of the map.
pub const HALVES: u32 = 2;

/// A direction's share for a backlog of `backlog` bytes.
#[inline]
#[must_use]
pub const fn share(backlog: u32) -> u32 {
    if backlog > SMALL_BYTES { backlog } else { 0 }
}

/// The sum of all shares. It is negative for a moment if a share is returned while the program corrects it.
#[inline]
#[must_use]
pub const fn sum(counted: u64, returned: u64) -> i64 {
    counted.wrapping_sub(returned).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_not_counted() {
        assert_eq!((share(SMALL_BYTES), share(SMALL_BYTES + 1)), (0, SMALL_BYTES + 1));
    }

    #[test]
    fn the_halves_may_pass_each_other() {
        assert_eq!(sum(7, 5), 2);
        assert_eq!(sum(5, 7), -2);
        assert_eq!(sum(1, u64::MAX), 2);
    }
}
