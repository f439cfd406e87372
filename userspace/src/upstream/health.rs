//! The decision on the endpoints of a backend that are used: functions of values.
//!
//! Pure: time and randomness are arguments. `app/checker.rs` makes the checks, and `monitor.rs` counts the failures
//! of connections. See docs/internals/health.md.

pub mod active;
pub mod certificate;
pub mod outlier;
pub mod watchlist;

/// Whether the share of eligible endpoints of one priority is below the panic threshold, in percent. With a threshold
/// of 0 the result is always false.
#[must_use]
pub fn is_below((eligible, total): (usize, usize), threshold: u8) -> bool {
    eligible.saturating_mul(100) < total.saturating_mul(threshold.into())
}

/// Whether a backend is in panic, so that all its endpoints are used: each of its priorities is below the threshold
/// (Envoy's `healthy_panic_threshold`). A priority is the number of its eligible endpoints and the number of all.
///
/// This is the only definition of panic. The choice of an endpoint, the metric, `/backends` and the log use it.
#[must_use]
pub fn panics(priorities: impl IntoIterator<Item = (usize, usize)>, threshold: u8) -> bool {
    let mut priorities = priorities.into_iter().peekable();
    priorities.peek().is_some() && priorities.all(|priority| is_below(priority, threshold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_threshold_all_are_used() {
        for (eligible, total, threshold, expected) in [
            (0, 0, 50, false),
            (0, 1, 50, true),
            (0, 1, 1, true),
            (0, 3, 0, false),
            (1, 2, 50, false),
            (1, 3, 50, true),
            (2, 3, 50, false),
            (2, 3, 100, true),
            (3, 3, 100, false),
        ] {
            let found = panics([(eligible, total)], threshold);
            assert_eq!(found, expected, "{eligible} of {total} at {threshold} %");
        }
    }

    #[test]
    fn one_priority_that_serves_is_no_panic() {
        assert!(!panics([(1, 4), (1, 1)], 50));
        assert!(!panics([(4, 4), (0, 1)], 50));
        assert!(panics([(1, 4), (0, 1)], 50));
        assert!(!panics([(0, 4), (0, 1)], 0));
        assert!(!panics([], 50));
    }
}
