//! When the next endpoint is tried while others have not answered yet, as functions of values.
//!
//! RFC 8305, section 5, for the endpoints of a backend: attempts begin one after another, each with a head start over the
//! next. No byte has been sent yet, so a second connect is safe.

use std::time::Duration;

/// Attempts of one connection that may be under way at once. Each is a descriptor.
pub const MOST_AT_ONCE: usize = 3;

/// The bounds of how long an attempt may take where others wait for its place.
const SHARE: (Duration, Duration) = (Duration::from_millis(750), Duration::from_secs(3));

/// How long after its start the oldest of [`MOST_AT_ONCE`] attempts makes room for another: the part of `limit`, the time
/// for all of them, that each of `count` endpoints can have. It is long enough for a second SYN where there is time for it.
#[must_use]
pub fn share(limit: Duration, count: usize) -> Duration {
    let places = u32::try_from(MOST_AT_ONCE).unwrap_or(1);
    let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
    (limit.saturating_mul(places) / count).clamp(SHARE.0, SHARE.1)
}

/// When the next attempt begins: the moment, and whether the oldest attempt ends for it. All times count from the start of
/// the first attempt; `running` has the starts of the attempts under way, the oldest first.
#[must_use]
pub fn next_start(running: &[Duration], head_start: Duration, share: Duration) -> (Duration, bool) {
    let (Some(oldest), Some(latest)) = (running.first(), running.last()) else {
        return (Duration::ZERO, false);
    };
    let after_head_start = *latest + head_start;
    if running.len() < MOST_AT_ONCE {
        (after_head_start, false)
    } else {
        (after_head_start.max(*oldest + share), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD_START: Duration = Duration::from_millis(250);

    /// When each of `count` silent endpoints is tried.
    fn starts(limit: Duration, count: usize) -> Vec<u128> {
        let share = share(limit, count);
        let (mut running, mut starts) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (start, ends_oldest) = next_start(&running, HEAD_START, share);
            if ends_oldest {
                running.remove(0);
            }
            assert!(running.len() < MOST_AT_ONCE);
            running.push(start);
            starts.push(start.as_millis());
        }
        starts
    }

    #[test]
    fn a_few_endpoints_are_tried_in_quick_succession() {
        assert_eq!(starts(Duration::from_secs(10), 3), [0, 250, 500]);
        assert_eq!(starts(Duration::from_secs(10), 5), [0, 250, 500, 3_000, 3_250]);
    }

    #[test]
    fn many_silent_endpoints_are_all_tried_within_the_limit() {
        let starts = starts(Duration::from_secs(10), 39);
        assert!(starts.iter().all(|&start| start < 10_000), "{starts:?}");
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 250), "{starts:?}");
    }
}
