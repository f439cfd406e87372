//! When requests are due: at a fixed rate, whatever has become of those before.
//!
//! A timer that rings for every single request would cost more than the request. So they are due in batches, a few at
//! a time, one batch every [`TICK`] or so; and those that are due are sent whenever the thread is awake anyway. Nobody
//! spins. Connections take turns, so that each has the same rate.

use std::time::{Duration, Instant};

use rustix::{
    event::Timespec,
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

/// About how often a batch of requests is due.
const TICK: Duration = Duration::from_micros(250);

/// One thread's schedule, with the timer that says when to look at it.
pub(crate) struct Schedule {
    timer: OwnedFd,
    turns: Turns,
}

/// Which connections are due when.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turns {
    start: Instant,
    /// From one batch to the next.
    gap: Duration,
    /// Requests that are due at a time.
    batch: usize,
    /// Batches that were due so far.
    past: u32,
    /// Whose turn is next.
    next: usize,
    connections: usize,
}

/// Requests of one batch, and how far they are apart from the next.
fn batches(rate: f64) -> (usize, Duration) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few, and not negative")]
    let batch = ((rate * TICK.as_secs_f64()).round() as usize).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let gap = Duration::from_secs_f64(batch as f64 / rate);
    (batch, gap)
}

impl Turns {
    fn new(start: Instant, rate: f64, connections: usize) -> Self {
        let (batch, gap) = batches(rate);
        Self { start, gap, batch, past: 0, next: 0, connections }
    }

    /// Calls `owe` with a connection and a moment for each request that has come due by `now`.
    fn due(&mut self, now: Instant, mut owe: impl FnMut(usize, Instant)) {
        loop {
            // Computed from the start each time, as the timer does it: no error adds up.
            let due = self.start + self.gap * (self.past + 1);
            if due > now {
                return;
            }
            self.past += 1;
            for _ in 0..self.batch {
                owe(self.next, due);
                self.next = (self.next + 1) % self.connections;
            }
        }
    }
}

impl Schedule {
    /// Requests on `connections` at `rate` in a second, all together, from now on. Thread `index` of `threads` begins a
    /// part of a batch later than the one before it, so that not all send at once.
    pub(crate) fn start(
        rate: f64,
        connections: usize,
        (index, threads): (usize, usize),
    ) -> Result<Self, Errno> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let (_, gap) = batches(rate);
        let share = u32::try_from(threads.max(1)).unwrap_or(1);
        let later = gap / share * u32::try_from(index).unwrap_or(0);
        // The same clock for both. The timer is set a moment later, so it never rings before something is due.
        let start = Instant::now() + later;
        let ring = Itimerspec { it_interval: timespec(gap), it_value: timespec(later + gap) };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &ring)?;
        Ok(Self { timer, turns: Turns::new(start, rate, connections) })
    }

    /// Becomes readable when a batch is due, once for each call of [`Schedule::heard`].
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// The timer has rung. The kernel starts a periodic timer again only when it is read (`timerfd_read`).
    pub(crate) fn heard(&self) {
        // It says how often it has rung, which the clock says as well.
        let _: Result<usize, Errno> = rustix::io::read(&self.timer, &mut [0; 8]);
    }

    /// Calls `owe` with a connection and a moment for each request that has come due.
    pub(crate) fn due(&mut self, owe: impl FnMut(usize, Instant)) {
        self.turns.due(Instant::now(), owe);
    }
}

#[expect(clippy::cast_possible_wrap, reason = "gaps are below a minute")]
fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::reactor::{BELL, Reactor};

    #[test]
    fn a_second_has_as_many_requests_as_the_rate_says() {
        for rate in [1.0, 333.0, 4_000.0, 41_234.0, 250_000.0] {
            let start = Instant::now();
            let mut turns = Turns::new(start, rate, 32);
            let mut count = 0_u32;
            turns.due(start + Duration::from_secs(10), |_, _| count += 1);
            let (batch, _) = batches(rate);
            let missing = rate * 10.0 - f64::from(count);
            assert!((-1.0..=f64::from(u32::try_from(batch).unwrap())).contains(&missing), "{rate}: {count}");
        }
    }

    #[test]
    fn connections_take_turns_and_what_is_late_keeps_its_moment() {
        let start = Instant::now();
        let mut turns = Turns::new(start, 8_000.0, 3);
        assert_eq!(batches(8_000.0), (2, Duration::from_micros(250)));
        let mut owed = Vec::new();
        turns.due(start + Duration::from_micros(249), |index, due| owed.push((index, due - start)));
        assert_eq!(owed, []);
        // The thread comes a batch too late: both are due, each at its own time.
        turns.due(start + Duration::from_micros(600), |index, due| owed.push((index, due - start)));
        let [first, second] = [250, 500].map(Duration::from_micros);
        assert_eq!(owed, [(0, first), (1, first), (2, second), (0, second)]);
    }

    #[test]
    fn the_timer_rings_when_something_is_due() {
        let mut schedule = Schedule::start(1_000.0, 1, (1, 2)).unwrap();
        let mut reactor = Reactor::<()>::new().unwrap();
        reactor.watch(schedule.timer()).unwrap();
        let mut batch = Vec::new();
        for _ in 0..3 {
            // Longer than any machine is busy; a timer that is silent makes this fail, and not wait.
            reactor.next_batch(Duration::from_secs(30), &mut batch).unwrap();
            assert_eq!(batch, [BELL]);
            schedule.heard();
            let mut count = 0;
            schedule.due(|_, _| count += 1);
            assert!(count > 0);
        }
    }
}
