//! Whom a connection to a backend is for.

use std::net::IpAddr;

/// What a choice of an endpoint may depend on. It is only asked for where the backend's algorithm or affinity wants it.
pub trait Caller {
    /// The client's address, if it is known.
    fn source(&self) -> Option<IpAddr>;

    /// [`hash::server_name`](super::balance::hash::server_name) of the name that the client asks for, if there is one.
    fn server_name(&self) -> Option<u64>;
}

/// Nobody in particular.
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

/// A client of which both are known.
impl Caller for (IpAddr, u64) {
    fn source(&self) -> Option<IpAddr> {
        Some(self.0)
    }

    fn server_name(&self) -> Option<u64> {
        Some(self.1)
    }
}
