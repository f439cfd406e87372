//! The share of its weight that a new or recovered endpoint has.
//!
//! Pure: the time since the start is an argument.

use std::time::Duration;

use snisplice_config::model::balancing::SlowStart;

/// The full weight.
pub const FULL: u32 = 1 << 16;

/// The share of the weight, as a part of [`FULL`], and never 0: `(age / window) ^ (1 / aggression)`, as in Envoy.
#[must_use]
pub fn part(age: Duration, rule: &SlowStart) -> u32 {
    if age >= rule.window {
        return FULL;
    }
    let time = age.as_secs_f64() / rule.window.as_secs_f64();
    let part = time.powf(1.0 / rule.aggression.value()).max(f64::from(rule.min_weight_percent) / 100.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 65,536")]
    let part = (part * f64::from(FULL)).round() as u32;
    part.clamp(1, FULL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(aggression: &str, percent: u8) -> Vec<u32> {
        let rule = SlowStart {
            window: Duration::from_secs(10),
            aggression: aggression.parse().unwrap(),
            min_weight_percent: percent,
        };
        (0..=11).map(|second| (part(Duration::from_secs(second), &rule) * 100 + FULL / 2) / FULL).collect()
    }

    #[test]
    fn the_part_grows_evenly_from_its_least_to_the_whole() {
        assert_eq!(parts("1", 10), [10, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 100]);
        assert_eq!(parts("1", 35), [35, 35, 35, 35, 40, 50, 60, 70, 80, 90, 100, 100]);
    }

    #[test]
    fn more_aggression_grows_faster_at_first_and_less_later() {
        assert_eq!(parts("2", 10), [10, 32, 45, 55, 63, 71, 77, 84, 89, 95, 100, 100]);
        assert_eq!(parts("0.5", 1), [1, 1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 100]);
    }

    #[test]
    fn the_part_is_never_nothing() {
        let rule = SlowStart {
            window: Duration::from_secs(86_400),
            aggression: "0.01".parse().unwrap(),
            min_weight_percent: 0,
        };
        assert_eq!(part(Duration::ZERO, &rule), 1);
    }
}
