//! What can go wrong under load, and how often it did.

use std::{collections::BTreeMap, fmt};

use rustix::io::Errno;

/// Why one connection failed. Any of them voids the cell it happened in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// connect(2) or what it led to.
    #[error("connect: {0}")]
    Connect(Errno),
    /// Any other system call.
    #[error("{0}")]
    Io(Errno),
    /// The stream ended where more was due.
    #[error("closed while {0}")]
    Closed(&'static str),
    /// Something else than the two ends agreed on.
    #[error("{0}")]
    Protocol(&'static str),
    /// A TLS handshake that failed.
    #[error("TLS handshake: {0}")]
    Tls(&'static str),
    /// A connection that was to be refused got an answer from the backend.
    #[error("an unknown server name was served")]
    Served,
    /// Not done by the time the cell had to be over.
    #[error("timed out while {0}")]
    Timeout(&'static str),
}

/// Faults by message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Faults(BTreeMap<String, u64>);

impl Faults {
    /// Counts one.
    pub(crate) fn add(&mut self, fault: Fault) {
        *self.0.entry(fault.to_string()).or_default() += 1;
    }

    /// Counts something that is not about one connection.
    pub(crate) fn note(&mut self, message: String) {
        *self.0.entry(message).or_default() += 1;
    }

    /// Takes over another thread's.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (message, count) in &other.0 {
            *self.0.entry(message.clone()).or_default() += count;
        }
    }

    /// All together.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Whether nothing went wrong.
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
