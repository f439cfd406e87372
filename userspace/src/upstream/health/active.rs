//! The result of active checks: rise and fall, and the time of the next check.

use std::time::Duration;

use snisplice_config::model::health::HealthCheck;

/// The state of an endpoint by its checks. A new endpoint is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    healthy: bool,
    /// Consecutive checks with the opposite result.
    streak: u32,
}

impl Default for Checked {
    fn default() -> Self {
        Self { healthy: true, streak: 0 }
    }
}

impl Checked {
    /// Whether the endpoint counts as healthy.
    #[must_use]
    pub fn is_healthy(self) -> bool {
        self.healthy
    }

    /// The state after a check that succeeded or failed.
    #[must_use]
    pub fn after(self, succeeded: bool, rules: &HealthCheck) -> Self {
        if succeeded == self.healthy {
            return Self { streak: 0, ..self };
        }
        let streak = self.streak.saturating_add(1);
        let enough = if self.healthy { rules.fall } else { rules.rise };
        if streak >= enough { Self { healthy: succeeded, streak: 0 } } else { Self { streak, ..self } }
    }

    /// The pause before the next check. `dice` is any number, and adds between none and all of the jitter. An
    /// endpoint that is unhealthy, or whose last check has failed, is checked more often.
    #[must_use]
    pub fn pause(self, rules: &HealthCheck, dice: u32) -> Duration {
        let steady = self.healthy && self.streak == 0;
        let base = if steady { rules.interval } else { rules.unhealthy_interval };
        let share = f64::from(rules.interval_jitter_percent) / 100.0 * f64::from(dice) / f64::from(u32::MAX);
        base + base.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(rise: u32, fall: u32) -> HealthCheck {
        HealthCheck { rise, fall, ..HealthCheck::default() }
    }

    #[test]
    fn it_takes_so_many_in_a_row() {
        let rules = rules(2, 3);
        let states = |checks: &[bool]| {
            let mut state = Checked::default();
            checks
                .iter()
                .map(|succeeded| {
                    state = state.after(*succeeded, &rules);
                    state.is_healthy()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(states(&[false, false, true, false, false]), [true; 5], "one success in between");
        assert_eq!(
            states(&[false, false, false, true, false, true, true]),
            [true, true, false, false, false, false, true]
        );
    }

    #[test]
    fn a_failure_makes_checks_more_frequent() {
        let rules = HealthCheck { interval_jitter_percent: 0, ..rules(2, 3) };
        let failed_once = Checked::default().after(false, &rules);
        assert_eq!(Checked::default().pause(&rules, 7), rules.interval);
        assert_eq!(failed_once.pause(&rules, 7), rules.unhealthy_interval);
        assert_eq!(failed_once.after(true, &rules).pause(&rules, 7), rules.interval);
    }

    proptest! {
        /// The state changes exactly after a run of the configured length.
        #[test]
        fn a_change_needs_a_run(rise in 1_u32..6, fall in 1_u32..6, checks in prop::collection::vec(any::<bool>(), 0..200)) {
            let rules = rules(rise, fall);
            let mut state = Checked::default();
            let mut run = (true, 0);
            for succeeded in checks {
                run = if run.0 == succeeded { (succeeded, run.1 + 1) } else { (succeeded, 1) };
                let before = state.is_healthy();
                state = state.after(succeeded, &rules);
                let enough = run.1 >= if before { fall } else { rise };
                let expected = if succeeded != before && enough { succeeded } else { before };
                prop_assert_eq!(state.is_healthy(), expected);
            }
        }

        #[test]
        fn the_jitter_is_bounded(dice: u32, percent in 0_u8..=100, healthy: bool) {
            let rules = HealthCheck { interval_jitter_percent: percent, ..rules(1, 1) };
            let state = Checked::default().after(healthy, &rules);
            let base = if healthy { rules.interval } else { rules.unhealthy_interval };
            let pause = state.pause(&rules, dice);
            prop_assert!(pause >= base && pause <= base + base.mul_f64(f64::from(percent) / 100.0 + 1e-9));
        }
    }
}
