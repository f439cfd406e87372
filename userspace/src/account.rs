//! Accounting by ownership: an [`Account`] is opened at accept and records exactly once, on close or drop.

use std::cell::Cell;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// What carried a connection; the `datapath` metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Copied in userspace.
    Relay,
    /// Redirected in the kernel between sockets.
    Sockmap,
}

/// One connection's account. The datapath adds bytes as they move, so an error loses no count.
#[derive(Debug, Default)]
pub struct Account {
    up: Cell<u64>,
    down: Cell<u64>,
    carrier: Cell<Option<Carrier>>,
}

impl Account {
    /// Adds `bytes` that were delivered to the receiving side's socket.
    pub fn moved(&self, direction: Direction, bytes: u64) {
        let cell = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        cell.set(cell.get() + bytes);
    }

    /// Notes what carries the connection from now on.
    pub fn carried_by(&self, carrier: Carrier) {
        self.carrier.set(Some(carrier));
    }

    /// Bytes moved so far, up and down.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.get(), self.down.get())
    }
}
