//! Applies the listener's policy to a client that no rule serves.

use std::{
    io,
    net::{IpAddr, TcpStream as StdStream},
    time::Duration,
};

use rustix::{
    io::retry_on_intr,
    net::{RecvFlags, SendFlags, recv, send},
};
use snisplice_config::model::{BackendId, Listener, Model, Policies, Policy};
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

/// The time for a client to read the last bytes before its connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// Whether the deny list or the listener's source rules refuse a client.
pub(super) fn is_denied(client: IpAddr, listener: &Listener, model: &Model) -> bool {
    model.runtime.deny.contains(client)
        || listener.access.as_ref().is_some_and(|access| !access.sources.admits(client))
}

/// The verdict on a hello without a rule.
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
    /// Whether the client's hello is complete, and the client now waits for a reply.
    pub(super) listens: bool,
}

impl From<RouteVerdict> for Refusal {
    /// The refusal of a client without a complete hello.
    fn from(verdict: RouteVerdict) -> Self {
        Self { verdict, listens: false }
    }
}

impl Refusal {
    /// Ends the connection if its policy only needs to drop the socket. The error is the close reason.
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
            // The receive queue stays empty, so the close is not a reset.
            Policy::Close => self.listens && reader.is_drained(client),
            Policy::Alert | Policy::Backend(_) => false,
        };
        if !ends {
            return Ok(());
        }
        Err(self.count(policy, account, service))
    }

    /// Applies the policy. The result is a backend, or the end of the connection.
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

/// Sends `last` and FIN, and gives the client a moment to read them. A close with unread or arriving bytes would send
/// RST instead, which may overtake the last bytes.
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
