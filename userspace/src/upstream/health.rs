//! Which endpoints of a backend are used: functions of values.
//!
//! Pure: time and randomness are arguments. `app/checker.rs` makes the checks, and `monitor.rs` counts the failures of
//! connections. See docs/internals/health.md.

pub mod active;
pub mod certificate;
pub mod outlier;
pub mod watchlist;

/// Whether fewer endpoints of one priority are eligible than the panic threshold, in percent. With a threshold of 0 that is
/// never so.
#[must_use]
pub fn is_below((eligible, total): (usize, usize), threshold: u8) -> bool {
    eligible.saturating_mul(100) < total.saturating_mul(threshold.into())
}

/// Whether a backend is in panic, and all of its endpoints are used: each of its priorities is below the threshold (Envoy's
/// `healthy_panic_threshold`). A priority is how many of its endpoints are eligible, of how many.
///
/// This is the only definition of panic: the choice of an endpoint, the metric, `/backends` and the log have it from here.
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
