//! The rate of the kind `paced`: equal for everybody, and such that everybody can keep it.
//!
//! Latency at saturation says little: whoever is faster has more under way at a time. So all are asked for the same
//! rate, well below what the best of the peers can do; one that has fallen behind has no figure.

use serde::{Deserialize, Serialize};

/// Which part of what the best peer has reached is asked for.
pub(crate) const PART: f64 = 0.6;

/// By which part of the rate a contestant may miss it. At the end of the window a few requests are under way.
const MISS: f64 = 0.02;

/// The rate of one cell, and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pace {
    /// Cell within the kind `paced`.
    pub cell: String,
    /// Requests in a second that every contestant is asked for.
    pub rate: u32,
    /// Requests in a second that the best one answered when each followed the answer to the one before.
    pub best: f64,
    /// Who that was.
    pub by: String,
}

impl Pace {
    /// What follows from the best of `reached`, which are contestants with their requests in a second; `None` if there
    /// is nobody.
    pub(crate) fn of(cell: &str, reached: &[(String, f64)]) -> Option<Self> {
        let (by, best) = reached.iter().max_by(|one, two| one.1.total_cmp(&two.1))?.clone();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, below 2^32")]
        let rate = ((best * PART).round() as u32).max(1);
        Some(Self { cell: cell.to_owned(), rate, best, by })
    }
}

/// Whether who has `achieved` so many requests in a second has kept the rate. More than were due is no fault: they were
/// left over from before the window.
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
