//! The bytes of all directions that wait in the kernel between their two sockets, which nobody else counts.
//!
//! The kernel charges a redirected packet to no socket and no limit. Each direction's wait is bounded by
//! [`super::direction::Limits::high_water`]; the sum over all of them is kept here and bounded by
//! [`super::direction::Limits::total`].
//!
//! A direction has a *share* in the sum: what waits, when that is more than [`SMALL_BYTES`], else nothing, so that
//! ordinary traffic leaves the shared counter alone. Whenever the program looks at the target it corrects the share.
//! Between two packets nobody does, and the share of a direction that fell silent is out of date: userspace gives it
//! back once the target has taken everything ([`super::direction::Control::returned`]).
//!
//! The sum has two halves, since a map's element cannot be added to from userspace: what the program counted, and what
//! userspace gave back.

/// A direction that keeps no more than this waiting has no share. No packet is longer, unless the link makes larger ones
/// (`gso_ipv4_max_size`).
pub const SMALL_BYTES: u32 = 64 * 1024;

/// Index of what the program counted, in bytes, modulo 2^64.
pub const COUNTED: u32 = 0;
/// Index of what userspace gave back, in bytes, modulo 2^64.
pub const RETURNED: u32 = 1;
/// Elements of the map.
pub const HALVES: u32 = 2;

/// A direction's share for a backlog of so many bytes.
#[inline]
#[must_use]
pub const fn share(backlog: u32) -> u32 {
    if backlog > SMALL_BYTES { backlog } else { 0 }
}

/// The sum of all shares. Below zero for a moment when a share is given back while the program corrects it.
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
