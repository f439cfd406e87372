//! The Internet checksum (RFC 1071), and how it changes with what it covers (RFC 1624, equation 3).
//!
//! Sums are over 16-bit words in network byte order and not yet folded; no header has so many words that one would
//! overflow.

/// The amount to add to a one's complement sum after changes in the bytes that it covers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change(u32);

impl Change {
    /// Nothing has changed.
    pub const NONE: Self = Self(0);

    /// The change of a 16-bit word at an even offset.
    #[inline(always)]
    pub const fn word(&mut self, old: u16, new: u16) {
        self.0 += !old as u32 + new as u32;
    }

    /// The change of four consecutive bytes at an even offset.
    #[inline(always)]
    pub const fn words(&mut self, old: u32, new: u32) {
        self.0 += sum(!old) + sum(new);
    }

    /// The change of four consecutive bytes at any offset. At an odd offset, these bytes straddle the words of the sum,
    /// so the change counts with its bytes swapped (RFC 1071 section 2 B).
    #[inline(always)]
    pub const fn words_at(&mut self, at: usize, old: u32, new: u32) {
        let sum = fold(sum(!old) + sum(new)) as u32;
        // A rotation has no branch, so the verifier follows one path.
        let rotated = (sum | sum << 16) >> (at % 2 * 8);
        self.0 += rotated & 0xffff;
    }

    /// The sum of both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// As a number, for [`Self::from_bits`].
    #[inline(always)]
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// What [`Self::to_bits`] gave.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The change in memory byte order, as the kernel's helpers expect.
    #[inline(always)]
    #[must_use]
    pub const fn in_memory_order(self) -> u32 {
        fold(self.0).to_be() as u32
    }

    /// A checksum field after this change.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(!checksum as u32 + fold(self.0) as u32)
    }
}

/// The two words of four bytes.
#[inline(always)]
const fn sum(bytes: u32) -> u32 {
    (bytes >> 16) + (bytes & 0xffff)
}

/// Adds the carries of a sum to it.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    #[expect(clippy::cast_possible_truncation, reason = "the carry of the first fold was added")]
    let twice = ((once >> 16) + once) as u16;
    twice
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sum of `bytes`, which begin at an even offset.
    pub(crate) fn sum_of(bytes: &[u8]) -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
    }

    proptest! {
        #[test]
        fn a_changed_checksum_is_a_new_one(mut bytes: [u8; 20], new: [u8; 4], at in 0_usize..16) {
            let before = !fold(sum_of(&bytes));
            let old = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[at..at + 4].copy_from_slice(&new);
            let mut change = Change::default();
            change.words_at(at, old, u32::from_be_bytes(new));
            let full = !fold(sum_of(&bytes));
            // Zero has two representations. A receiver accepts either.
            let both = |checksum: u16| if checksum == 0xffff { 0 } else { checksum };
            prop_assert_eq!(both(change.apply(before)), both(full));
        }
    }
}
