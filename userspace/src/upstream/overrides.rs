//! Changes of endpoints at run time. They last until the next start of the process.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

/// The change of one endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Whether the endpoint gets no new connection.
    pub drained: bool,
    /// The weight instead of the configured one.
    pub weight: Option<u32>,
}

impl Override {
    /// The weight of an endpoint with this configured weight.
    #[must_use]
    pub fn apply(self, configured: u32) -> u32 {
        if self.drained { 0 } else { self.weight.unwrap_or(configured) }
    }
}

/// A request for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// No new connection.
    Drain,
    /// New connections again.
    Undrain,
    /// This weight, or the configured one.
    Weight(Option<u32>),
}

/// The changed endpoints of a backend, which its clusters of successive configurations share.
#[derive(Debug, Default)]
pub struct Overrides(Mutex<HashMap<SocketAddr, Override>>);

impl Overrides {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Override>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The change of an endpoint, if there is one.
    #[must_use]
    pub fn of(&self, address: SocketAddr) -> Option<Override> {
        self.lock().get(&address).copied()
    }

    /// All changed endpoints, in the order of their addresses.
    #[must_use]
    pub fn all(&self) -> Vec<(SocketAddr, Override)> {
        let mut all: Vec<_> = self.lock().iter().map(|(address, change)| (*address, *change)).collect();
        all.sort_unstable_by_key(|(address, _)| *address);
        all
    }

    /// Applies a request. Returns the result.
    pub fn change(&self, address: SocketAddr, change: Change) -> Override {
        let mut all = self.lock();
        let one = all.entry(address).or_default();
        match change {
            Change::Drain => one.drained = true,
            Change::Undrain => one.drained = false,
            Change::Weight(weight) => one.weight = weight,
        }
        let result = *one;
        if result == Override::default() {
            all.remove(&address);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_and_a_weight_are_independent() {
        let overrides = Overrides::default();
        let address = SocketAddr::from(([10, 0, 0, 1], 443));
        let weight = |configured| overrides.of(address).unwrap_or_default().apply(configured);
        assert_eq!(weight(3), 3);
        overrides.change(address, Change::Weight(Some(5)));
        assert_eq!(weight(3), 5);
        overrides.change(address, Change::Drain);
        assert_eq!(weight(3), 0);
        overrides.change(address, Change::Undrain);
        assert_eq!(weight(3), 5);
        overrides.change(address, Change::Weight(None));
        assert_eq!((weight(3), overrides.of(address)), (3, None), "nothing is left");
    }
}
