//! Medians, spreads and ratios. Figures of one cell come from few rounds, so the statistics use ranks and assume no
//! normal distribution.

/// A set of figures of one quantity, one per round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// The number of figures.
    pub count: usize,
    /// The median.
    pub median: f64,
    /// A quarter of the figures is below.
    pub lower_quartile: f64,
    /// A quarter of the figures is above.
    pub upper_quartile: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

/// The ratio of interquartile range to median above which a figure is marked as unreliable.
pub(crate) const WIDE: f64 = 0.15;

impl Summary {
    /// The summary of at least one figure. All must be finite.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            count: sorted.len(),
            median: quantile(&sorted, 0.5),
            lower_quartile: quantile(&sorted, 0.25),
            upper_quartile: quantile(&sorted, 0.75),
            min,
            max,
        })
    }

    /// The ratio of interquartile range to median. 0 for a single figure or a median of 0.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.upper_quartile - self.lower_quartile) / self.median.abs() }
    }

    /// Whether the spread makes the figure unreliable.
    pub(crate) fn is_wide(&self) -> bool {
        self.spread() > WIDE
    }

    /// Whether the ranges of the two do not overlap.
    pub(crate) fn is_apart(&self, other: &Self) -> bool {
        self.min > other.max || self.max < other.min
    }

    /// Whether `value` lies between minimum and maximum.
    pub(crate) fn contains(&self, value: f64) -> bool {
        (self.min..=self.max).contains(&value)
    }
}

/// Linear between the two closest ranks (definition 7 of Hyndman and Fan, 1996). `sorted` is not empty.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a position among a few figures is small and not negative"
)]
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let position = (sorted.len() - 1) as f64 * part;
    let below = position.floor() as usize;
    let above = position.ceil() as usize;
    let weight = position - position.floor();
    sorted[below] * (1.0 - weight) + sorted[above] * weight
}

/// Divides figures of the same round. Rounds without both values, or with a divisor that is not positive, are
/// skipped.
pub(crate) fn ratios(figures: &[Option<f64>], divisors: &[Option<f64>]) -> Vec<f64> {
    figures
        .iter()
        .zip(divisors)
        .filter_map(|(figure, divisor)| Some((*figure)? / divisor.filter(|divisor| *divisor > 0.0)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(one: f64, two: f64) -> bool {
        (one - two).abs() < 1e-9
    }

    #[test]
    fn quartiles_are_linear_between_ranks() {
        let summary = Summary::of(&[5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert!(close(summary.median, 3.0));
        assert!(close(summary.lower_quartile, 2.0) && close(summary.upper_quartile, 4.0));
        let summary = Summary::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!(close(summary.median, 2.5));
        assert!(close(summary.lower_quartile, 1.75) && close(summary.upper_quartile, 3.25));
        assert!(close(summary.spread(), 0.6) && summary.is_wide());
    }

    #[test]
    fn one_figure_has_no_spread_and_none_has_no_summary() {
        let summary = Summary::of(&[7.0]).unwrap();
        assert!(close(summary.median, 7.0) && close(summary.spread(), 0.0) && !summary.is_wide());
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN]), None);
    }

    #[test]
    fn one_outlier_moves_neither_median_nor_spread_much() {
        let calm = Summary::of(&[100.0, 101.0, 99.0, 100.0, 102.0]).unwrap();
        let outlier = Summary::of(&[100.0, 101.0, 99.0, 100.0, 10.0]).unwrap();
        assert!(close(calm.median, outlier.median));
        assert!(!outlier.is_wide());
    }

    #[test]
    fn ranges_that_touch_are_not_apart() {
        let low = Summary::of(&[1.0, 2.0]).unwrap();
        let high = Summary::of(&[3.0, 4.0]).unwrap();
        let both = Summary::of(&[2.0, 3.0]).unwrap();
        assert!(low.is_apart(&high) && high.is_apart(&low));
        assert!(!low.is_apart(&both) && !both.is_apart(&high));
        assert!(both.contains(2.5) && !both.contains(3.5));
    }

    #[test]
    fn ratios_pair_rounds_and_skip_what_is_missing() {
        let figures = [Some(10.0), None, Some(30.0), Some(5.0)];
        let divisors = [Some(5.0), Some(1.0), Some(10.0), Some(0.0)];
        assert_eq!(ratios(&figures, &divisors), [2.0, 3.0]);
    }
}
