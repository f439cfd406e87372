//! An endpoint's accounting for one connection, from the attempt to the end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::{attempt::AttemptError, endpoint::Endpoint};
use crate::metrics::labels::CloseReason;

/// The share of an endpoint that an attempt, and then its connection, takes: it counts as active until dropped.
///
/// A lease is for an endpoint the same as an account for a connection. The lease and its endpoint outlive a reload.
#[derive(Debug)]
pub struct Lease(Arc<Endpoint>);

impl Lease {
    /// Adds a lease of this endpoint.
    #[must_use]
    pub fn of(endpoint: Arc<Endpoint>) -> Self {
        endpoint.begin();
        Self(endpoint)
    }

    /// The address of the endpoint.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// See [`Endpoint::head_start`].
    #[must_use]
    pub fn head_start(&self) -> Duration {
        self.0.head_start()
    }

    /// Records a successful attempt, and its duration if it was not immediate.
    pub fn connected(&self, took: Option<Duration>) {
        match took {
            Some(took) => self.0.answered(took),
            None => self.0.answered_at_once(),
        }
    }

    /// Records a failed attempt. Later connections avoid the endpoint if they would probably fail in the same way.
    pub fn failed(self, error: &AttemptError) {
        if error.is_remembered() {
            self.0.failed();
        }
        if error.is_of_the_endpoint() {
            self.0.failed_to_connect();
        }
    }

    /// Records that another endpoint answered after this one had exceeded its head start.
    pub fn overtaken(&self) {
        self.0.overtaken();
        self.0.failed_to_connect();
    }

    /// Records the end of the connection, and whether the endpoint has sent any byte. The close reason also shows who
    /// has reset a connection in the kernel.
    pub fn ended(&self, reason: CloseReason, has_answered: bool) {
        self.0.ended(matches!(reason, CloseReason::BackendReset | CloseReason::BackendLost), has_answered);
    }

    /// Records that TLS with the endpoint has failed.
    pub fn handshake_failed(&self) {
        self.0.responded(None);
    }

    /// The endpoint, for further records.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use std::{io, net::Ipv4Addr};

    use super::*;
    use crate::upstream::endpoint::Endpoints;

    fn endpoint() -> Arc<Endpoint> {
        Endpoints::default().at((Ipv4Addr::LOCALHOST, 443).into())
    }

    #[test]
    fn whatever_ends_a_lease_ends_its_part_of_the_active_ones() {
        let endpoint = endpoint();
        let leases: [Lease; 3] = std::array::from_fn(|_| Lease::of(endpoint.clone()));
        assert_eq!(endpoint.active(), 3);
        let [dropped, failed, ended] = leases;
        drop(dropped);
        assert_eq!(endpoint.active(), 2);
        failed.failed(&AttemptError::timed_out());
        assert_eq!(endpoint.active(), 1);
        ended.connected(Some(Duration::from_millis(3)));
        ended.ended(CloseReason::Finished, true);
        drop(ended);
        assert_eq!((endpoint.active(), endpoint.broken()), (0, 0));
    }

    #[test]
    fn only_what_the_backend_has_broken_is_its_fault() {
        let endpoint = endpoint();
        for reason in [CloseReason::ClientReset, CloseReason::BackendReset, CloseReason::IdleTimeout] {
            Lease::of(endpoint.clone()).ended(reason, true);
        }
        assert_eq!(endpoint.broken(), 1);
    }

    #[test]
    fn a_failure_is_remembered_if_the_next_attempt_would_wait_for_it_too() {
        let endpoint = endpoint();
        Lease::of(endpoint.clone()).failed(&io::Error::from(io::ErrorKind::ConnectionRefused).into());
        assert!(endpoint.is_preferred());
        Lease::of(endpoint.clone()).failed(&AttemptError::timed_out());
        assert!(!endpoint.is_preferred());
        Lease::of(endpoint.clone()).connected(None);
        assert!(endpoint.is_preferred());
    }
}
