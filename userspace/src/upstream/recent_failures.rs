//! The record of addresses with recent failures, as functions of values.
//!
//! Pure: the time is an argument, as the duration since a fixed moment. One address costs eight bytes, so the number
//! of endpoints bounds the memory.

use std::time::Duration;

/// The time for which an address is avoided after its first failure. Each consecutive failure doubles the time.
pub const FIRST: Duration = Duration::from_secs(5);

/// The longest time for which an address is avoided.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Consecutive silent attempts after which an address counts as failed. A single one may be a lost SYN.
const STRIKES: u8 = 2;

/// The record of one address. [`Record::default`] has no failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// Milliseconds since the fixed moment until which the address is avoided. 0 if it is not avoided.
    until: u64,
    /// Consecutive failures.
    failures: u8,
    /// Consecutive silent attempts that were too short to count as a failure.
    strikes: u8,
}

/// The standing of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The address has no failure.
    Good,
    /// The address failed recently: it is tried only after its siblings.
    Failed,
    /// The address failed, and the time to avoid it is over: one connection should try it again.
    Due,
}

impl Record {
    /// The number of bits for the time.
    const TIME: u32 = 48;

    /// The record as a number, 0 for [`Record::default`].
    #[must_use]
    pub fn to_bits(self) -> u64 {
        let time = self.until.min((1 << Self::TIME) - 1);
        time | u64::from(self.failures) << Self::TIME | u64::from(self.strikes) << (Self::TIME + 8)
    }

    /// The record of a number that [`Self::to_bits`] returned.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let [.., strikes, failures] = (bits >> Self::TIME).to_be_bytes();
        Self { until: bits & ((1 << Self::TIME) - 1), failures, strikes }
    }

    /// Whether the address has failed, and has not answered since.
    #[must_use]
    pub fn has_failed(self) -> bool {
        self.until > 0
    }

    /// Whether the address should be tried at `now`.
    #[must_use]
    pub fn standing(self, now: Duration) -> Standing {
        match self.until {
            0 => Standing::Good,
            until if millis(now) < until => Standing::Failed,
            _ => Standing::Due,
        }
    }

    /// The record after a failed attempt.
    #[must_use]
    pub fn failed(self, now: Duration) -> Self {
        let doubled = FIRST * (1_u32 << self.failures.min(8));
        Self {
            until: millis(now + doubled.min(LONGEST)),
            failures: self.failures.saturating_add(1),
            strikes: 0,
        }
    }

    /// The record after an attempt that exceeded its head start before another one succeeded.
    #[must_use]
    pub fn overtaken(self, now: Duration) -> Self {
        let strikes = self.strikes.saturating_add(1);
        // The address had failed before and was on trial.
        if self.until > 0 || strikes >= STRIKES { self.failed(now) } else { Self { strikes, ..self } }
    }

    /// The record while one connection tries an address that is due: the others avoid it meanwhile.
    #[must_use]
    pub fn on_trial(self, now: Duration) -> Self {
        Self { until: millis(now + FIRST), ..self }
    }
}

/// Milliseconds, at least 1. 0 means that the address is not avoided.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_failure_is_remembered_for_a_while() {
        let record = Record::default().failed(at(100));
        assert_eq!(Record::default().standing(at(100)), Standing::Good);
        assert_eq!(record.standing(at(104)), Standing::Failed);
        assert_eq!(record.standing(at(105)), Standing::Due);
    }

    #[test]
    fn each_failure_in_a_row_doubles_the_time_up_to_a_minute() {
        let mut record = Record::default();
        let mut times = Vec::new();
        for _ in 0..300 {
            record = record.failed(at(0));
            times.push((0..100).find(|&second| record.standing(at(second)) == Standing::Due).unwrap());
        }
        assert_eq!(times[..6], [5, 10, 20, 40, 60, 60]);
        assert_eq!(times[299], 60);
    }

    #[test]
    fn one_lost_packet_is_no_failure() {
        let once = Record::default().overtaken(at(1));
        assert_eq!(once.standing(at(1)), Standing::Good);
        assert_eq!(once.overtaken(at(2)).standing(at(2)), Standing::Failed);
    }

    #[test]
    fn an_address_on_trial_that_stays_silent_has_failed_again() {
        let record = Record::default().failed(at(0));
        let trial = record.on_trial(at(6));
        assert_eq!(trial.standing(at(6)), Standing::Failed, "one connection is enough");
        let again = trial.overtaken(at(6));
        assert_eq!(again.standing(at(15)), Standing::Failed);
        assert_eq!(again.standing(at(16)), Standing::Due);
    }

    #[test]
    fn a_record_survives_as_a_number() {
        assert_eq!(Record::default().to_bits(), 0);
        let mut record = Record::default().overtaken(at(3));
        for _ in 0..20 {
            assert_eq!(Record::from_bits(record.to_bits()), record);
            record = record.failed(at(1_000_000));
        }
    }
}
