//! The activity of a client's connection, and the time limits that follow from it.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The state that the socket and the requests of one connection share. Both run on one thread, but the future of an
/// upgraded connection must be `Send`.
#[derive(Debug)]
pub struct Activity {
    begun: Instant,
    /// Milliseconds since `begun`.
    moved_at: AtomicU64,
    /// Since when a head is awaited, either one that has begun or the first one: milliseconds plus 1, or 0.
    head_since: AtomicU64,
    requests: AtomicU32,
    served: AtomicBool,
    /// Whether the received bytes end within a head.
    in_head: AtomicBool,
    /// Since when an HTTP/2 frame that blocks every stream is incomplete: milliseconds plus 1, or 0.
    block_since: AtomicU64,
    /// The time limit of a head is over, and the connection completes the head artificially.
    is_late: AtomicBool,
    up: AtomicU64,
    down: AtomicU64,
    is_opaque: AtomicBool,
}

/// The time limits of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the head of a request, from its first byte, and for the first byte of a connection.
    pub head: Duration,
    /// The longest time without a byte in either direction.
    pub idle: Duration,
}

/// The result of a check of the time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Check again after this time.
    Wait(Duration),
    /// The head of a request exceeds its time limit.
    SlowHead,
    /// The idle timeout is over.
    Idle,
}

impl Activity {
    /// The state of a connection that begins now.
    #[must_use]
    pub fn new(begun: Instant) -> Self {
        Self {
            begun,
            moved_at: AtomicU64::new(0),
            head_since: AtomicU64::new(1),
            requests: AtomicU32::new(0),
            served: AtomicBool::new(false),
            in_head: AtomicBool::new(false),
            block_since: AtomicU64::new(0),
            is_late: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            is_opaque: AtomicBool::new(false),
        }
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX - 1)
    }

    /// Records bytes from the client. `moved` is false for bytes that only keep the connection alive.
    pub fn received(&self, bytes: usize, moved: bool, now: Instant) {
        self.up.fetch_add(bytes as u64, Relaxed);
        if moved {
            self.moved_at.store(self.at(now), Relaxed);
        }
    }

    /// Records bytes to the client. `moved` is false for bytes that only keep the connection alive.
    pub fn sent(&self, bytes: usize, moved: bool, now: Instant) {
        self.down.fetch_add(bytes as u64, Relaxed);
        if moved {
            self.moved_at.store(self.at(now), Relaxed);
        }
    }

    /// The time since the connection began.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.begun)
    }

    /// Records whether an HTTP/2 frame that blocks every stream is incomplete.
    pub fn is_in_block(&self, is_in_block: bool, now: Instant) {
        let since = self.block_since.load(Relaxed);
        if is_in_block != (since > 0) {
            self.block_since.store(if is_in_block { self.at(now) + 1 } else { 0 }, Relaxed);
        }
    }

    /// Ends the wait for a head whose time limit is over. Returns whether the client can get a response: a head has
    /// begun, and no other request is in progress.
    pub fn give_up_head(&self) -> bool {
        let can_be_told = self.in_head.load(Relaxed) && self.requests() == 0;
        self.is_late.store(can_be_told, Relaxed);
        // The response has a time limit of its own.
        self.head_since.store(0, Relaxed);
        can_be_told
    }

    /// Whether the time limit of a head is over.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.is_late.load(Relaxed)
    }

    /// Records whether the received bytes end within a head.
    pub fn is_in_head(&self, is_in_head: bool, now: Instant) {
        self.in_head.store(is_in_head, Relaxed);
        if !is_in_head && self.served.load(Relaxed) {
            self.head_since.store(0, Relaxed);
        } else if is_in_head && self.head_since.load(Relaxed) == 0 && self.requests() == 0 {
            self.head_since.store(self.at(now) + 1, Relaxed);
        }
    }

    /// Records a new request. [`Activity::request_ended`] ends it.
    pub fn request_began(&self) {
        self.served.store(true, Relaxed);
        self.head_since.store(0, Relaxed);
        self.requests.fetch_add(1, Relaxed);
    }

    /// Records that the response of a request is sent.
    pub fn request_ended(&self, now: Instant) {
        // The next request may have begun meanwhile. Its time limit starts now.
        if self.requests.fetch_sub(1, Relaxed) == 1 && self.in_head.load(Relaxed) {
            self.head_since.store(self.at(now) + 1, Relaxed);
        }
    }

    /// Requests in progress.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.requests.load(Relaxed)
    }

    /// Records the switch to another protocol.
    pub fn switch(&self) {
        self.is_opaque.store(true, Relaxed);
    }

    /// Whether the connection has switched to another protocol.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.is_opaque.load(Relaxed)
    }

    /// Bytes from the client and to the client so far.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.load(Relaxed), self.down.load(Relaxed))
    }

    /// Checks the time limits.
    #[must_use]
    pub fn check(&self, patience: Patience, now: Instant) -> Check {
        let left = |since: u64, patience: Duration| {
            (Duration::from_millis(since) + patience).checked_sub(Duration::from_millis(self.at(now)))
        };
        let head_since = self.head_since.load(Relaxed);
        let mut wait = Duration::MAX;
        if head_since > 0 && !self.is_opaque() {
            match left(head_since - 1, patience.head) {
                Some(left) => wait = left,
                None => return Check::SlowHead,
            }
        }
        let block_since = self.block_since.load(Relaxed);
        if block_since > 0 {
            match left(block_since - 1, patience.head) {
                Some(left) => wait = wait.min(left),
                None => return Check::SlowHead,
            }
        }
        match left(self.moved_at.load(Relaxed), patience.idle) {
            Some(left) => Check::Wait(wait.min(left)),
            None => Check::Idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { head: Duration::from_secs(10), idle: Duration::from_secs(60) };

    #[test]
    fn a_request_that_begins_within_another_has_its_time_after_it() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let activity = Activity::new(begun);
        activity.received(1, true, after(1));
        activity.is_in_head(true, after(1));
        activity.request_began();
        assert_eq!(activity.check(PATIENCE, after(31)), Check::Wait(Duration::from_secs(30)));
        activity.request_ended(after(31));
        assert_eq!(activity.check(PATIENCE, after(42)), Check::SlowHead);
    }

    #[test]
    fn a_head_has_its_time_and_an_idle_connection_its_own() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let activity = Activity::new(begun);
        assert_eq!(activity.check(PATIENCE, after(4)), Check::Wait(Duration::from_secs(6)));
        activity.received(1, true, after(5));
        activity.is_in_head(true, after(5));
        // A few bytes now and then do not extend the limit.
        assert_eq!(activity.check(PATIENCE, after(11)), Check::SlowHead);
        activity.is_in_head(false, after(9));
        activity.request_began();
        assert_eq!(activity.check(PATIENCE, after(15)), Check::Wait(Duration::from_secs(50)));
        activity.sent(1, true, after(30));
        activity.request_ended(after(35));
        assert_eq!(activity.check(PATIENCE, after(40)), Check::Wait(Duration::from_secs(50)));
        activity.is_in_head(true, after(50));
        assert_eq!(activity.check(PATIENCE, after(55)), Check::Wait(Duration::from_secs(5)));
        activity.is_in_head(true, after(55));
        assert_eq!(activity.check(PATIENCE, after(61)), Check::SlowHead);
        activity.is_in_head(false, after(56));
        assert_eq!(activity.check(PATIENCE, after(91)), Check::Idle);
        assert_eq!(activity.bytes(), (1, 1));
    }

    #[test]
    fn a_frame_that_blocks_the_others_has_the_time_of_a_head() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let activity = Activity::new(begun);
        activity.request_began();
        activity.received(1, true, after(1));
        activity.is_in_block(true, after(1));
        activity.received(1, true, after(9));
        activity.is_in_block(true, after(9));
        assert_eq!(activity.check(PATIENCE, after(10)), Check::Wait(Duration::from_secs(1)));
        assert_eq!(activity.check(PATIENCE, after(12)), Check::SlowHead);
        activity.is_in_block(false, after(12));
        // Keepalive probes do not extend the limit.
        activity.received(1, false, after(60));
        activity.sent(1, false, after(60));
        assert_eq!(activity.check(PATIENCE, after(12)), Check::Wait(Duration::from_secs(57)));
        assert_eq!(activity.check(PATIENCE, after(70)), Check::Idle);
    }

    #[test]
    fn only_a_head_that_has_begun_can_be_answered() {
        let begun = Instant::now();
        let activity = Activity::new(begun);
        assert!(!activity.give_up_head() && !activity.is_late());
        activity.is_in_head(true, begun);
        assert!(activity.give_up_head() && activity.is_late());
    }
}
