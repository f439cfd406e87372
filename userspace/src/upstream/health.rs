//! Which endpoints of a backend are used: functions of values.
//!
//! Pure: time and randomness are arguments. `app/checker.rs` makes the checks, and `monitor.rs` counts the failures of
//! connections. See docs/internals/health.md.

pub mod active;
pub mod certificate;
pub mod outlier;
pub mod watchlist;

/// Whether so few endpoints are available that all are used (Envoy's `healthy_panic_threshold`, in percent). With a
/// threshold of 0 that is never so.
#[must_use]
pub fn is_panic(available: usize, total: usize, threshold: u8) -> bool {
    available.saturating_mul(100) < total.saturating_mul(threshold.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_the_threshold_all_are_used() {
        for (available, total, threshold, expected) in [
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
            assert_eq!(
                is_panic(available, total, threshold),
                expected,
                "{available} of {total} at {threshold} %"
            );
        }
    }
}
