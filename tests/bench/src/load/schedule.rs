//! The due times of requests: at a fixed rate, independent of earlier requests.
//!
//! A timer event for every request would cost more than the request. So a few requests are due at a time, one batch
//! every [`TICK`] or so. Due requests are also sent whenever the thread is awake. No thread spins. Connections take
//! turns, so that each has the same rate.

use std::time::{Duration, Instant};

use rustix::{
    event::Timespec,
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

/// The approximate interval of batches.
const TICK: Duration = Duration::from_micros(250);

/// One thread's schedule, with the timer for its batches.
pub(crate) struct Schedule {
    timer: OwnedFd,
    turns: Turns,
}

/// The due times of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Turns {
    start: Instant,
    /// The interval between batches.
    gap: Duration,
    /// The number of requests in a batch.
    batch: usize,
    /// The number of batches so far.
    past: u32,
    /// The next connection.
    next: usize,
    connections: usize,
}

/// The number of requests in a batch, and the interval to the next one.
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

    /// Calls `owe` with a connection and a time for each request that is due by `now`.
    fn due(&mut self, now: Instant, mut owe: impl FnMut(usize, Instant)) {
        loop {
            // Computed from the start each time, like the timer: errors do not accumulate.
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
    /// Starts requests on `connections` at a total of `rate` per second. Thread `index` of `threads` begins a part of
    /// a batch later than the previous one. So the threads do not send at the same time.
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
        // Both use the same clock. The timer is set a moment later, so it never expires before a request is due.
        let start = Instant::now() + later;
        let ring = Itimerspec { it_interval: timespec(gap), it_value: timespec(later + gap) };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &ring)?;
        Ok(Self { timer, turns: Turns::new(start, rate, connections) })
    }

    /// Readable when a batch is due, once for each call of [`Schedule::heard`].
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Acknowledges the timer. The kernel restarts a periodic timer only when it is read (`timerfd_read`).
    pub(crate) fn heard(&self) {
        // The value is the number of expirations, which the clock shows as well.
        let _: Result<usize, Errno> = rustix::io::read(&self.timer, &mut [0; 8]);
    }

    /// Calls `owe` with a connection and a time for each due request.
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
        // The thread is one batch late: both are due, each at its own time.
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
            // Longer than any machine is busy. Without an event the test fails instead of waiting.
            reactor.next_batch(Duration::from_secs(30), &mut batch).unwrap();
            assert_eq!(batch, [BELL]);
            schedule.heard();
            let mut count = 0;
            schedule.due(|_, _| count += 1);
            assert!(count > 0);
        }
    }
}
