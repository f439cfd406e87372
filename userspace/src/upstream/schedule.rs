//! The time at which the next endpoint is tried while others have not answered yet, as functions of values.
//!
//! RFC 8305, section 5, applied to the endpoints of a backend: attempts begin one after another, each with a head
//! start over the next. A second connect is safe, since no byte has been sent yet.

use std::time::Duration;

/// Concurrent attempts of one connection. Each needs a descriptor.
pub const MOST_AT_ONCE: usize = 3;

/// The bounds of an attempt's duration while others wait for its slot.
const SHARE: (Duration, Duration) = (Duration::from_millis(750), Duration::from_secs(3));

/// The age at which the oldest of [`MOST_AT_ONCE`] attempts gives way to another: an equal part of `limit`, the time
/// for all attempts, for each of `count` endpoints. The age suffices for a second SYN if there is time for it.
#[must_use]
pub fn share(limit: Duration, count: usize) -> Duration {
    let places = u32::try_from(MOST_AT_ONCE).unwrap_or(1);
    let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
    (limit.saturating_mul(places) / count).clamp(SHARE.0, SHARE.1)
}

/// The start of the next attempt, and whether the oldest attempt ends for it. All times count from the start of the
/// first attempt. `running` has the starts of the attempts in progress, the oldest first.
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

    /// The times at which `count` silent endpoints are tried.
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
