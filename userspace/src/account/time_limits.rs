//! Time limits of single connections that differ from those of the process.

use std::{cell::RefCell, collections::HashSet, rc::Rc, time::Duration};

use snisplice_config::model::scope::ScopedTimeouts;

/// Shared values: connections with the same limits hold one object.
#[derive(Debug, Default)]
pub(super) struct Shared(RefCell<HashSet<Rc<ScopedTimeouts>>>);

impl Shared {
    /// The object with this value.
    pub(super) fn of(&self, value: ScopedTimeouts) -> Rc<ScopedTimeouts> {
        let mut known = self.0.borrow_mut();
        if let Some(known) = known.get(&value) {
            return known.clone();
        }
        // There are few values at a time. Reloads bring new ones.
        if known.len() >= 64 {
            known.retain(|one| Rc::strong_count(one) > 1);
        }
        let value = Rc::new(value);
        known.insert(value.clone());
        value
    }
}

/// The maximum duration of a connection: `longest`, and at most `percent` of it more. `chance` decides, which is the
/// same for each check of one connection.
#[must_use]
pub fn with_jitter(longest: Duration, percent: u8, chance: u64) -> Duration {
    if percent == 0 || longest.is_zero() {
        return longest;
    }
    // SplitMix64: numbers in a row become values all over the range.
    let mut bits = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let part = (bits ^ (bits >> 31)) >> 32;
    let most = longest * u32::from(percent) / 100;
    let millis = u128::from(part) * most.as_millis() / (1 << 32);
    longest + Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_limits_are_one_object() {
        let shared = Shared::default();
        let value = |seconds| ScopedTimeouts {
            idle: Some(Duration::from_secs(seconds)),
            ..ScopedTimeouts::default()
        };
        let first = shared.of(value(1));
        assert!(Rc::ptr_eq(&first, &shared.of(value(1))));
        assert!(!Rc::ptr_eq(&first, &shared.of(value(2))));
        for seconds in 0..10_000 {
            drop(shared.of(value(seconds)));
        }
        assert!(shared.0.borrow().len() <= 64);
        assert!(Rc::ptr_eq(&first, &shared.of(value(1))), "one in use stays");
    }

    #[test]
    fn jitter_spreads_the_ends_over_its_range_and_never_shortens() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(with_jitter(hour, 0, 7), hour);
        assert_eq!(with_jitter(Duration::ZERO, 50, 7), Duration::ZERO, "no limit stays none");
        let mut tenths = [0_u32; 10];
        for chance in 0..10_000 {
            let more = with_jitter(hour, 10, chance).checked_sub(hour).unwrap();
            assert!(more <= hour / 10, "{more:?}");
            tenths[(more.as_millis() / 36_000).min(9) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (800..1_200).contains(count)), "{tenths:?}");
        assert_eq!(with_jitter(hour, 10, 7), with_jitter(hour, 10, 7));
    }
}
