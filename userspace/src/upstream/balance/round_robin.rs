//! Smooth weighted round robin as a function of a counter.
//!
//! Pure: the counter is an argument, so a distribution is exact and testable. Workers share only one atomic
//! increment.

use std::ops::Range;

/// The weights of a group, prepared for picks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wheel {
    /// Sums of the weights up to and including each member.
    sums: Vec<u64>,
    /// The turn of the wheel for each pick. It is coprime to the total, so that one whole turn visits every slot
    /// once. It is near the golden section of the total, so that the picks of one member are spread out.
    stride: u64,
}

impl Wheel {
    /// Prepares a group. Members of weight 0 are never picked.
    #[must_use]
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let mut sums: Vec<u64> = weights
            .into_iter()
            .scan(0_u64, |sum, weight| {
                *sum += u64::from(weight);
                Some(*sum)
            })
            .collect();
        // 100:100 and 1:1 mean the same, and the smaller wheel has a shorter cycle.
        let common = sums.iter().fold(0, |divisor, &sum| gcd(divisor, sum));
        if common > 1 {
            for sum in &mut sums {
                *sum /= common;
            }
        }
        let total = sums.last().copied().unwrap_or(0);
        Self { stride: stride(total), sums }
    }

    /// The member for the `turn`th pick. `None` if all weights are 0. A cycle is as long as the sum of the weights,
    /// divided by their common factor. Any cycle gives each member exactly its weight.
    #[must_use]
    pub fn pick(&self, turn: u64) -> Option<usize> {
        (self.total() > 0).then(|| self.at(slot(turn, self.stride, self.total())))
    }

    /// The sum of the weights, after division by their common factor.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// The member at a slot below the total.
    #[must_use]
    pub fn at(&self, slot: u64) -> usize {
        self.sums.partition_point(|&sum| sum <= slot)
    }

    /// The slots of a member.
    #[must_use]
    pub fn slots(&self, member: usize) -> Range<u64> {
        let start = member.checked_sub(1).map_or(0, |before| self.sums[before]);
        start..self.sums[member]
    }

    /// The member of this turn among the admitted ones, and the turn for [`Self::pick_among`] without it.
    ///
    /// The second turn counts only the turns that led to this member. So the share of an unavailable member is
    /// distributed over the others exactly by weight.
    #[must_use]
    pub fn pick_among(
        &self,
        turn: u64,
        members: Range<usize>,
        admits: impl Fn(usize) -> bool,
    ) -> Option<(usize, u64)> {
        let weight = |member| self.slots(member).end - self.slots(member).start;
        let admitted = || members.clone().filter(|member| admits(*member));
        let total: u64 = admitted().map(weight).sum();
        if total == 0 {
            return None;
        }
        let slot = slot(turn, stride(total), total);
        let mut start = 0;
        for member in admitted() {
            let weight = weight(member);
            if slot < start + weight {
                return Some((member, (turn / total) * weight + (slot - start)));
            }
            start += weight;
        }
        None
    }

    /// The turn for [`Self::pick_among`] without the member that [`Self::pick`] has chosen for this one.
    #[must_use]
    pub fn rest_of(&self, turn: u64) -> u64 {
        let total = self.total().max(1);
        let slot = slot(turn, self.stride, total);
        let slots = self.slots(self.at(slot).min(self.sums.len().saturating_sub(1)));
        (turn / total) * (slots.end - slots.start) + (slot - slots.start)
    }
}

/// The slot of a turn.
fn slot(turn: u64, stride: u64, total: u64) -> u64 {
    // Both factors are below 2^32 times the number of members. The remainder comes first and keeps the product small.
    let slot = u128::from(turn % total) * u128::from(stride) % u128::from(total);
    #[expect(clippy::cast_possible_truncation, reason = "less than the total")]
    let slot = slot as u64;
    slot
}

/// The turn of a wheel of this size for each pick.
fn stride(total: u64) -> u64 {
    coprime_near(total, total * 618 / 1000)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The smallest number from `wanted` on that shares no factor with `total`.
fn coprime_near(total: u64, wanted: u64) -> u64 {
    // A run of consecutive numbers as long as the total always contains one, such as the number before a multiple of
    // it.
    (wanted.max(1)..=wanted + total + 1).find(|&candidate| gcd(candidate, total.max(1)) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(weights: &[u32], turns: Range<u64>) -> Vec<u64> {
        let wheel = Wheel::new(weights.iter().copied());
        let mut counts = vec![0; weights.len()];
        for turn in turns {
            counts[wheel.pick(turn).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn one_whole_turn_is_exact_from_wherever_it_starts() {
        for start in [0, 1, 7, u64::from(u32::MAX)] {
            assert_eq!(counts(&[5, 3, 2, 0, 1], start..start + 11), [5, 3, 2, 0, 1]);
        }
    }

    #[test]
    fn a_common_factor_does_not_make_the_turn_longer() {
        assert_eq!(counts(&[300, 100], 0..4), [3, 1]);
    }

    #[test]
    fn equal_members_take_turns() {
        let wheel = Wheel::new([1, 1]);
        let picks: Vec<_> = (0..6).map(|turn| wheel.pick(turn).unwrap()).collect();
        assert!(picks.windows(2).all(|pair| pair[0] != pair[1]), "{picks:?}");
    }

    #[test]
    fn a_light_member_is_not_served_in_one_burst() {
        let wheel = Wheel::new([90, 10]);
        let light: Vec<u64> = (0..100).filter(|&turn| wheel.pick(turn) == Some(1)).collect();
        assert_eq!(light.len(), 10);
        assert!(light.windows(2).all(|pair| pair[1] - pair[0] >= 5), "{light:?}");
    }

    #[test]
    fn what_a_member_cannot_take_is_spread_by_weight() {
        let weights = [4, 3, 2, 1];
        let wheel = Wheel::new(weights);
        for dead in 0..4 {
            let mut counts = [0_u32; 4];
            for turn in 0..10_000 {
                let first = wheel.pick(turn).unwrap();
                let member = if first == dead {
                    wheel.pick_among(wheel.rest_of(turn), 0..4, |member| member != dead).unwrap().0
                } else {
                    first
                };
                counts[member] += 1;
            }
            let alive = 10 - weights[dead];
            for (member, count) in counts.iter().enumerate() {
                let fair = if member == dead { 0 } else { 10_000 * weights[member] / alive };
                assert!(count.abs_diff(fair) <= 4, "{dead} is dead: {counts:?}");
            }
        }
    }

    #[test]
    fn what_two_members_cannot_take_is_spread_by_weight() {
        let wheel = Wheel::new([1; 5]);
        let mut counts = [0_u32; 5];
        for turn in 0..15_000 {
            let mut left = turn;
            let mut passed = Vec::new();
            let mut member = wheel.pick(turn).unwrap();
            if member < 2 {
                passed.push(member);
                (member, left) =
                    wheel.pick_among(wheel.rest_of(left), 0..5, |member| !passed.contains(&member)).unwrap();
            }
            if member < 2 {
                passed.push(member);
                (member, _) = wheel.pick_among(left, 0..5, |member| !passed.contains(&member)).unwrap();
            }
            counts[member] += 1;
        }
        assert_eq!(counts[..2], [0, 0]);
        assert!(counts[2..].iter().all(|count| count.abs_diff(5_000) <= 4), "{counts:?}");
    }

    #[test]
    fn without_weight_nobody_is_picked() {
        assert_eq!(Wheel::new([]).pick(3), None);
        assert_eq!(Wheel::new([0, 0]).pick(3), None);
    }

    #[test]
    fn the_largest_weights_of_the_gateway_api_do_not_overflow() {
        let wheel = Wheel::new([1_000_000; 16]);
        assert!((0..1000).all(|turn| wheel.pick(u64::MAX - turn).is_some_and(|member| member < 16)));
    }
}
