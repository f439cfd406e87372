//! The rate of the kind `paced`: equal for all contestants, and low enough for all to keep it.
//!
//! Latency at saturation is not comparable: a faster contestant has more requests in flight. So all get the same
//! rate, well below that of the best peer. A contestant that falls behind has no figure.

use serde::{Deserialize, Serialize};

/// The rate, as a part of the best peer's.
pub(crate) const PART: f64 = 0.6;

/// The permitted shortfall, as a part of the rate. At the end of the window a few requests are in flight.
const MISS: f64 = 0.02;

/// The rate of one cell, and its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pace {
    /// Cell within the kind `paced`.
    pub cell: String,
    /// Requests per second for every contestant.
    pub rate: u32,
    /// Requests per second of the best contestant, with each request after the previous answer.
    pub best: f64,
    /// The best contestant.
    pub by: String,
}

impl Pace {
    /// The rate that follows from `reached`, a list of contestants with their requests per second. `None` for an
    /// empty list.
    pub(crate) fn of(cell: &str, reached: &[(String, f64)]) -> Option<Self> {
        let (by, best) = reached.iter().max_by(|one, two| one.1.total_cmp(&two.1))?.clone();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, below 2^32")]
        let rate = ((best * PART).round() as u32).max(1);
        Some(Self { cell: cell.to_owned(), rate, best, by })
    }
}

/// Whether a contestant with `achieved` requests per second has kept the rate. A higher value is no fault: it
/// includes requests from before the window.
pub(crate) fn kept_up(achieved: f64, rate: u32) -> bool {
    achieved >= f64::from(rate) * (1.0 - MISS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_a_part_of_the_best() {
        let reached = [("nginx".to_owned(), 40_000.0), ("envoy".to_owned(), 50_001.0)];
        let pace = Pace::of("1 KB x 32", &reached).unwrap();
        assert_eq!((pace.rate, pace.by.as_str()), (30_001, "envoy"));
        assert_eq!(Pace::of("1 KB x 32", &[]), None);
    }

    #[test]
    fn two_percent_behind_is_too_slow() {
        assert!(kept_up(30_000.0, 30_000) && kept_up(29_401.0, 30_000) && kept_up(31_000.0, 30_000));
        assert!(!kept_up(29_399.0, 30_000) && !kept_up(0.0, 30_000));
    }
}
