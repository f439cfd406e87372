//! One line a minute of each kind that others can cause.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How long nothing more is said of a kind.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// Lines of all kinds that were left out.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Lines of all kinds that were left out since the start.
pub(super) fn left_out() -> u64 {
    LEFT_OUT.load(Relaxed)
}

/// Lets one line of its kind through in a minute. [`log_limit`] makes one for each place that logs; a kind of its own for
/// each listener or backend keeps one beside what it is about.
#[derive(Debug, Default)]
pub struct Limit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    silent_until: Option<Instant>,
    left_out: u64,
}

impl Limit {
    /// Lets the first line through.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(State { silent_until: None, left_out: 0 }))
    }

    /// Whether a line may be logged at this moment. `Some` if so, with how many were left out since the last one, if any:
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

/// Logs as `tracing`'s macro of that level does, but at most once a minute from this place; the next line tells how many were
/// left out (`suppressed`). For whatever a client, another process or a broken neighbour can cause again and again.
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
