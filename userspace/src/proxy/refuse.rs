//! A client that no rule serves: the listener's policy for that is applied to it.

use std::{io, net::TcpStream as StdStream, time::Duration};

use rustix::{
    io::retry_on_intr,
    net::{RecvFlags, SendFlags, recv, send},
};
use snisplice_config::model::{BackendId, Listener, Policies, Policy};
use snisplice_tls::{
    alert::{Description, alert},
    error::HelloError,
};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{hello::HelloReader, service::Service};
use crate::{
    account::Account, datapath::relay::pump::with_scratch, metrics::labels::CloseReason, net::sockopt,
};

/// How long a client may take to read our last word before its connection is closed for good.
const LINGER: Duration = Duration::from_secs(1);

/// Why a hello led to no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteVerdict {
    NoSni,
    UnknownName,
    Rejected(HelloError),
    TimedOut,
}

impl RouteVerdict {
    pub(super) fn policy(self, policies: &Policies) -> Policy {
        match self {
            Self::NoSni => policies.no_sni,
            Self::UnknownName => policies.unknown_name,
            Self::Rejected(HelloError::NotTls) => policies.not_tls,
            Self::Rejected(HelloError::Malformed(_)) => policies.malformed,
            Self::Rejected(HelloError::TooLarge) => policies.too_large,
            Self::TimedOut => policies.timeout,
        }
    }

    pub(super) fn alert(self) -> Description {
        match self {
            Self::NoSni => Description::NO_SERVER_NAME,
            Self::UnknownName => Description::UNKNOWN_NAME,
            Self::Rejected(rejection) => Description::of(rejection),
            Self::TimedOut => Description::TIMEOUT,
        }
    }
}

impl From<RouteVerdict> for CloseReason {
    fn from(verdict: RouteVerdict) -> Self {
        match verdict {
            RouteVerdict::NoSni => Self::NoSni,
            RouteVerdict::UnknownName => Self::UnknownName,
            RouteVerdict::Rejected(HelloError::NotTls) => Self::NotTls,
            RouteVerdict::Rejected(HelloError::Malformed(_)) => Self::Malformed,
            RouteVerdict::Rejected(HelloError::TooLarge) => Self::TooLarge,
            RouteVerdict::TimedOut => Self::HelloTimeout,
        }
    }
}

/// A client that no rule serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) verdict: RouteVerdict,
    /// Whether its hello is whole, and it sends nothing more before it has heard something.
    pub(super) listens: bool,
}

impl From<RouteVerdict> for Refusal {
    /// Of a client without a whole hello.
    fn from(verdict: RouteVerdict) -> Self {
        Self { verdict, listens: false }
    }
}

impl Refusal {
    /// Ends the connection if dropping the socket is all that its policy has left to do. The error is the close reason.
    pub(super) fn end_at_once(
        self,
        client: &StdStream,
        reader: &HelloReader,
        listener: &Listener,
        account: &Account,
        service: &Service,
    ) -> Result<(), CloseReason> {
        let policy = self.verdict.policy(&listener.policies);
        let ends = match policy {
            Policy::Reset => sockopt::reset_on_close(client).is_ok(),
            // Nothing comes then that would make the close a reset.
            Policy::Close => self.listens && reader.is_drained(client),
            Policy::Alert | Policy::Backend(_) => false,
        };
        if !ends {
            return Ok(());
        }
        Err(self.count(policy, account, service))
    }

    /// Applies the policy: either it names a backend all the same, or the connection is over.
    pub(super) async fn apply(
        self,
        client: &TcpStream,
        listener: &Listener,
        account: &Account,
        service: &Service,
    ) -> Result<BackendId, CloseReason> {
        let policy = self.verdict.policy(&listener.policies);
        let reason = self.count(policy, account, service);
        match policy {
            Policy::Backend(id) => return Ok(id),
            Policy::Reset => {
                let _ = sockopt::reset_on_close(client);
            }
            Policy::Close => farewell(client, &[]).await,
            Policy::Alert => farewell(client, &alert(self.verdict.alert())).await,
        }
        Err(reason)
    }

    fn count(self, policy: Policy, account: &Account, service: &Service) -> CloseReason {
        let reason = self.verdict.into();
        service.metrics.unrouted(account.listener(), reason, policy.into());
        reason
    }
}

/// Sends `last`, then FIN, and gives the client a moment to read them: closing with bytes of the client unread, or
/// still arriving, would send RST instead, which may overtake what was sent.
pub(super) async fn farewell(client: &TcpStream, last: &[u8]) {
    if !last.is_empty() {
        let _ = retry_on_intr(|| send(client, last, SendFlags::NOSIGNAL));
    }
    let _ = SockRef::from(client).shutdown(std::net::Shutdown::Write);
    let deadline = Instant::now() + LINGER;
    while let Ok(Ok(())) = timeout_at(deadline, client.readable()).await {
        let discarded = client.try_io(tokio::io::Interest::READABLE, || {
            with_scratch(|scratch| {
                let (length, _) = retry_on_intr(|| recv(client, &mut scratch[..], RecvFlags::empty()))?;
                Ok(length)
            })
        });
        match discarded {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
