//! The faults under load, and their counts.

use std::{collections::BTreeMap, fmt};

use rustix::io::Errno;

/// The reason for a failed connection. Any fault voids its cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// A failure of connect(2), directly or later.
    #[error("connect: {0}")]
    Connect(Errno),
    /// Any other system call.
    #[error("{0}")]
    Io(Errno),
    /// The stream ended too early.
    #[error("closed while {0}")]
    Closed(&'static str),
    /// An unexpected message.
    #[error("{0}")]
    Protocol(&'static str),
    /// A TLS handshake that failed.
    #[error("TLS handshake: {0}")]
    Tls(&'static str),
    /// A connection that must be refused got an answer from the backend.
    #[error("an unknown server name was served")]
    Served,
    /// Incomplete at the end of the cell.
    #[error("timed out while {0}")]
    Timeout(&'static str),
}

/// Faults by message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Faults(BTreeMap<String, u64>);

impl Faults {
    /// Counts a fault.
    pub(crate) fn add(&mut self, fault: Fault) {
        *self.0.entry(fault.to_string()).or_default() += 1;
    }

    /// Counts a fault that does not concern one connection.
    pub(crate) fn note(&mut self, message: String) {
        *self.0.entry(message).or_default() += 1;
    }

    /// Adds another thread's faults.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (message, count) in &other.0 {
            *self.0.entry(message.clone()).or_default() += count;
        }
    }

    /// The total.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Whether there is no fault.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (message, count)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{message} ({count}x)")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_counted_by_message_and_merged() {
        let mut one = Faults::default();
        assert!(one.is_empty());
        one.add(Fault::Served);
        one.add(Fault::Served);
        let mut two = Faults::default();
        two.add(Fault::Timeout("sending"));
        two.merge(&one);
        assert_eq!(two.total(), 3);
        assert_eq!(two.to_string(), "an unknown server name was served (2x), timed out while sending (1x)");
    }
}
