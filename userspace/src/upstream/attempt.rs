//! The failures of an attempt to connect to an endpoint, and their meaning for the endpoint.

use std::{io, net::IpAddr};

use rustix::io::Errno;
use snisplice_config::model::dynamic::Refused;
use thiserror::Error;

use crate::metrics::labels::ConnectFailure;

/// The reason for the failure of one attempt.
#[derive(Debug, Error)]
pub enum AttemptError {
    /// The kernel's error, or a timeout.
    #[error(transparent)]
    Io(io::Error),
    /// All local ports towards this address are in use (`EADDRNOTAVAIL` of connect(2)), for each source address.
    #[error("no free local port for a connection to this address")]
    NoLocalPort,
    /// None of the backend's source addresses is an address of this host (`EADDRNOTAVAIL` of bind(2)).
    #[error("the source address {0} is not an address of this host")]
    NoSource(IpAddr),
    /// The client's address is of another family than the endpoint's, and the backend is transparent.
    #[error("the client's address {0} is of another family")]
    OtherFamily(IpAddr),
    /// The process may not use the client's address as a source address (`IP_TRANSPARENT`).
    #[error("cannot use the client's address: {0}")]
    NotTransparent(io::Error),
    /// This host has no descriptor or no memory left for another socket ([`is_exhaustion`]).
    #[error("this host cannot open another socket: {0}")]
    Exhausted(io::Error),
    /// The address is one on which this process listens.
    #[error("the endpoint is a listener of this process")]
    SelfLoop,
    /// The requested name leads to an address that a dynamic backend must not reach.
    #[error("{0} is {1}")]
    Refused(IpAddr, Refused),
}

impl From<&AttemptError> for ConnectFailure {
    fn from(error: &AttemptError) -> Self {
        match error {
            AttemptError::NoLocalPort => Self::NoLocalPort,
            AttemptError::NoSource(_) | AttemptError::OtherFamily(_) | AttemptError::NotTransparent(_) => {
                Self::NoSourceAddress
            }
            AttemptError::Exhausted(_) => Self::ResourceExhausted,
            AttemptError::SelfLoop => Self::SelfLoop,
            AttemptError::Refused(..) => Self::AddressRefused,
            AttemptError::Io(error) => match error.kind() {
                io::ErrorKind::TimedOut => Self::ConnectTimeout,
                io::ErrorKind::ConnectionRefused => Self::ConnectRefused,
                _ => Self::ConnectFailed,
            },
        }
    }
}

impl From<io::Error> for AttemptError {
    fn from(error: io::Error) -> Self {
        if is_exhaustion(&error) { Self::Exhausted(error) } else { Self::Io(error) }
    }
}

impl From<Errno> for AttemptError {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Whether a call failed because this process or host lacks a resource, independent of the endpoint: socket(2),
/// connect(2) and `epoll_ctl(2)`. No packet from the network causes such an error.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC | Errno::AGAIN)
    )
}

impl AttemptError {
    /// Whether the next attempt would probably fail in the same way, and wait for it. A refusal costs one round trip
    /// and ends when the server returns. A fault of this host is no evidence against the endpoint.
    pub(super) fn is_remembered(&self) -> bool {
        let Self::Io(error) = self else { return false };
        matches!(
            error.kind(),
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
        )
    }

    /// Whether the cause is the endpoint or the network towards it, and not this host.
    pub(super) fn is_of_the_endpoint(&self) -> bool {
        matches!(self, Self::Io(_))
    }

    /// The error of an attempt without an answer in time.
    #[must_use]
    pub fn timed_out() -> Self {
        Self::Io(io::ErrorKind::TimedOut.into())
    }
}
