//! Counters that one thread updates and the measuring thread reads during the load.

use std::{
    ops::{AddAssign, Sub},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// One thread's counters, on separate cache lines so that threads do not slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Tally {
    connections: AtomicU64,
    hellos: AtomicU64,
    messages: AtomicU64,
    handshakes: AtomicU64,
    rejections: AtomicU64,
    bytes: AtomicU64,
}

/// Counters at one time, or between two times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections accepted, or opened.
    pub connections: u64,
    /// Hellos answered by the backend, or answers received by the client.
    pub hellos: u64,
    /// Messages answered, or answers received.
    pub messages: u64,
    /// Complete TLS handshakes.
    pub handshakes: u64,
    /// Connections that ended without an answer, as expected.
    pub rejections: u64,
    /// Bytes received in blocks.
    pub bytes: u64,
}

impl Tally {
    /// Counts a connection that was accepted or opened.
    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// Counts an answered hello, or a received answer.
    pub(crate) fn hello(&self) {
        self.hellos.fetch_add(1, Relaxed);
    }

    /// Counts an answered message, or a received answer.
    pub(crate) fn message(&self) {
        self.messages.fetch_add(1, Relaxed);
    }

    /// Counts a complete TLS handshake.
    pub(crate) fn handshake(&self) {
        self.handshakes.fetch_add(1, Relaxed);
    }

    /// Counts a refused connection.
    pub(crate) fn rejection(&self) {
        self.rejections.fetch_add(1, Relaxed);
    }

    /// Counts received bytes of blocks.
    pub(crate) fn bytes(&self, count: usize) {
        self.bytes.fetch_add(count as u64, Relaxed);
    }

    /// The counts so far.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            connections: self.connections.load(Relaxed),
            hellos: self.hellos.load(Relaxed),
            messages: self.messages.load(Relaxed),
            handshakes: self.handshakes.load(Relaxed),
            rejections: self.rejections.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

/// The sum of several threads' counts.
pub(crate) fn sum<'a>(tallies: impl IntoIterator<Item = &'a Tally>) -> Counts {
    let mut total = Counts::default();
    for tally in tallies {
        total += tally.counts();
    }
    total
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.hellos += other.hellos;
        self.messages += other.messages;
        self.handshakes += other.handshakes;
        self.rejections += other.rejections;
        self.bytes += other.bytes;
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            connections: self.connections - before.connections,
            hellos: self.hellos - before.hellos,
            messages: self.messages - before.messages,
            handshakes: self.handshakes - before.handshakes,
            rejections: self.rejections - before.rejections,
            bytes: self.bytes - before.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up_and_moments_subtract() {
        let (one, two) = (Tally::default(), Tally::default());
        one.hello();
        one.bytes(10);
        let before = sum([&one, &two]);
        two.hello();
        two.message();
        two.bytes(5);
        let delta = sum([&one, &two]) - before;
        assert_eq!(delta, Counts { hellos: 1, messages: 1, bytes: 5, ..Counts::default() });
    }
}
