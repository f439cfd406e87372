//! Limits of log lines that clients, other processes or broken neighbours can cause.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The period of every limit.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Omitted lines of all kinds.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Omitted lines of all kinds since the start of the process.
pub(super) fn left_out() -> u64 {
    LEFT_OUT.load(Relaxed)
}

/// Admits one line of its kind each minute. [`log_limit`] makes one for each call site. A kind for each listener or backend
/// keeps its limit beside the object.
#[derive(Debug, Default)]
pub struct Limit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    silent_until: Option<Instant>,
    left_out: u64,
}

impl Limit {
    /// A limit that admits the first line.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(State { silent_until: None, left_out: 0 }))
    }

    /// `Some` if a line may be logged at `now`, with the number of lines omitted since the last one, if any. That number is
    /// the line's field `suppressed`.
    #[expect(clippy::option_option, reason = "whether to log, and the optional field of the line")]
    pub fn admit(&self, now: Instant) -> Option<Option<u64>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.silent_until.is_some_and(|until| now < until) {
            state.left_out += 1;
            LEFT_OUT.fetch_add(1, Relaxed);
            return None;
        }
        state.silent_until = Some(now + PERIOD);
        let left_out = std::mem::take(&mut state.left_out);
        Some((left_out > 0).then_some(left_out))
    }
}

/// Admits a number of lines of its kind each minute, where each line names another object.
#[derive(Debug)]
pub struct Budget {
    /// Lines in one minute.
    lines: u32,
    since: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl Budget {
    /// A budget of `lines` in one minute.
    #[must_use]
    pub const fn new(lines: u32) -> Self {
        Self { lines, since: None, logged: 0, suppressed: 0 }
    }

    /// `Some` if a line may be logged at `now`, with the number of lines omitted since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            (self.since, self.logged) = (Some(now), 0);
        }
        if self.logged >= self.lines {
            self.suppressed += 1;
            LEFT_OUT.fetch_add(1, Relaxed);
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Logs as `tracing`'s macro of that level does, but at most once a minute from this call site. The next line has the number
/// of omitted lines in the field `suppressed`. For everything that a client, another process or a broken neighbour can repeat.
///
/// ```ignore
/// log_limit!(warn, %error, listener, "cannot accept; trying again shortly");
/// ```
macro_rules! log_limit {
    ($level:ident, $($line:tt)+) => {{
        static LIMIT: $crate::log::Limit = $crate::log::Limit::new();
        if let Some(suppressed) = LIMIT.admit(::std::time::Instant::now()) {
            ::tracing::$level!(suppressed, $($line)+);
        }
    }};
}

pub(crate) use log_limit;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_admits_its_lines_each_minute_and_counts_the_others() {
        let (mut budget, start) = (Budget::new(30), Instant::now());
        let omitted = left_out();
        let lines = (0..600).filter(|_| budget.admit(start).is_some()).count();
        assert_eq!(lines, 30);
        // Other tests of this process omit lines meanwhile.
        assert!(left_out() >= omitted + 570);
        assert_eq!(budget.admit(start + PERIOD), Some(570));
        assert_eq!(budget.admit(start + PERIOD), Some(0));
    }

    #[test]
    fn one_line_a_minute_tells_how_many_were_left_out() {
        let limit = Limit::new();
        let start = Instant::now();
        assert_eq!(limit.admit(start), Some(None));
        for second in 1..60 {
            assert_eq!(limit.admit(start + Duration::from_secs(second)), None);
        }
        assert_eq!(limit.admit(start + PERIOD), Some(Some(59)));
        assert_eq!(limit.admit(start + PERIOD * 2), Some(None));
    }
}
