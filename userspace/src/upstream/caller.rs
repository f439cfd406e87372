//! The client of a connection to a backend.

use std::net::IpAddr;

/// The input of a choice. It is read only if the backend's algorithm or affinity needs it.
pub trait Caller {
    /// The client's address, if it is known.
    fn source(&self) -> Option<IpAddr>;

    /// [`hash::server_name`](super::balance::hash::server_name) of the requested name, if any.
    fn server_name(&self) -> Option<u64>;
}

/// No client in particular.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub struct Anyone;

#[cfg(test)]
impl Caller for Anyone {
    fn source(&self) -> Option<IpAddr> {
        None
    }

    fn server_name(&self) -> Option<u64> {
        None
    }
}

/// A client with a known address and name.
impl Caller for (IpAddr, u64) {
    fn source(&self) -> Option<IpAddr> {
        Some(self.0)
    }

    fn server_name(&self) -> Option<u64> {
        Some(self.1)
    }
}
