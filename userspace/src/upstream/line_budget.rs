//! How many lines are logged of one kind in a minute.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(60);

/// Lines that are left for now.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In one minute.
    lines: u32,
    since: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl Budget {
    /// So many lines in a minute.
    pub(crate) const fn new(lines: u32) -> Self {
        Self { lines, since: None, logged: 0, suppressed: 0 }
    }

    /// Whether a line may be logged; `Some` if so, with how many were left out before it.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            (self.since, self.logged) = (Some(now), 0);
        }
        if self.logged >= self.lines {
            self.suppressed += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundreds_of_names_that_are_lost_at_once_are_a_few_lines() {
        let (mut budget, start) = (Budget::new(30), Instant::now());
        let lines = (0..600).filter(|_| budget.admit(start).is_some()).count();
        assert_eq!(lines, 30);
        assert_eq!(budget.admit(start + PERIOD), Some(570));
        assert_eq!(budget.admit(start + PERIOD), Some(0));
    }
}
