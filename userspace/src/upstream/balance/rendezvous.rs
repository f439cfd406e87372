//! Weighted rendezvous hashing: each member has a score for a key, and the best score wins (Thaler and Ravishankar,
//! 1998; the weights as in Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005). If a member
//! leaves, only its own keys move, each to its second best member, by weight.

use super::hash::pair;

/// The score of a member with this hash and weight for a key.
#[must_use]
pub fn score(member: u64, key: u64, weight: f64) -> f64 {
    weight / -ln_of_part(pair(member, key))
}

/// The natural logarithm of `(bits + 1/2) / 2^64`, in operations that IEEE 754 defines to the bit. The rounding of
/// mathematical libraries differs between nodes.
fn ln_of_part(bits: u64) -> f64 {
    const HALF: f64 = 0.5;
    // 2^52 parts: each part, and a half of one, is exact.
    #[expect(clippy::cast_precision_loss, reason = "52 bits are exact")]
    let part = (bits >> 12) as f64 + HALF;
    // Between 1 and 2, times a power of two.
    let raw = part.to_bits();
    let exponent = i32::try_from((raw >> 52) & 0x7ff).unwrap_or(0) - 1_023 - 52;
    let mantissa = f64::from_bits((raw & ((1 << 52) - 1)) | (1_023 << 52));
    // ln(m) = 2 artanh((m - 1) / (m + 1)). The fraction is at most a third, so the sum of the omitted terms is below
    // 10^-10. They only make the result smaller, so the logarithm is never 0.
    let fraction = (mantissa - 1.0) / (mantissa + 1.0);
    let square = fraction * fraction;
    let mut sum = 0.0;
    for odd in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * fraction * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::balance::hash::mix;

    #[test]
    fn the_logarithm_is_that_of_the_library() {
        for number in (0..10_000).map(mix).chain([0, 1, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1]) {
            #[expect(clippy::cast_precision_loss, reason = "as the function does")]
            let expected = (((number >> 12) as f64 + 0.5) / (1_u64 << 52) as f64).ln();
            let found = ln_of_part(number);
            assert!((found - expected).abs() <= 1e-10, "{number}: {found} {expected}");
            assert!(found < 0.0, "{number}");
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let weights = [1_u32, 2, 5];
        let mut counts = [0_u32; 3];
        for key in 0..80_000 {
            let score = |at: &usize| score(mix(*at as u64), mix(key), weights[*at].into());
            let best = (0..3).max_by(|one, other| score(one).total_cmp(&score(other))).unwrap();
            counts[best] += 1;
        }
        for (count, weight) in counts.iter().zip(weights) {
            let fair = weight * 10_000;
            assert!(count.abs_diff(fair) < fair / 20, "{counts:?}");
        }
    }
}
