//! Positions in 64 bits, and the sequence numbers that stand for them.

/// The distance of the 32-bit `position` from the 64-bit one; negative if it lies before.
#[inline(always)]
pub(in crate::packet) const fn beyond(position: u32, than: u64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers are modulo 2^32")]
    let than = than as u32;
    position.wrapping_sub(than).cast_signed()
}

/// The 64-bit position that lies `by` further, or `position` itself if `by` is not positive.
#[inline(always)]
pub(super) const fn advanced(position: u64, by: i32) -> u64 {
    if by > 0 { position + by.cast_unsigned() as u64 } else { position }
}

#[inline(always)]
pub(super) const fn least(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}

#[inline(always)]
pub(super) const fn most(one: u64, other: u64) -> u64 {
    if one > other { one } else { other }
}
