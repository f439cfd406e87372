//! A client that no rule serves: the listener's policy for that is applied to it.

use std::{io, sync::Arc, time::Duration};

use rustix::{
    io::retry_on_intr,
    net::{RecvFlags, SendFlags, recv, send},
};
use snisplice_config::model::{BackendId, Listener, Policies, Policy};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::service::Service;
use crate::{
    datapath::relay::pump::with_scratch,
    metrics::labels::CloseReason,
    net::sockopt,
    tls::{
        alert::{Description, alert},
        client_hello::Rejection,
    },
    upstream::cluster::Cluster,
};

/// How long a client may take to read our last word before its connection is closed for good.
const LINGER: Duration = Duration::from_secs(1);

/// Why a hello led to no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteVerdict {
    NoSni,
    UnknownName,
    Rejected(Rejection),
    Timeout,
}

impl RouteVerdict {
    pub(super) fn policy(self, policies: &Policies) -> Policy {
        match self {
            Self::NoSni => policies.no_sni,
            Self::UnknownName => policies.unknown_name,
            Self::Rejected(Rejection::NotTls) => policies.not_tls,
            Self::Rejected(Rejection::Malformed(_)) => policies.malformed,
            Self::Rejected(Rejection::TooLarge) => policies.too_large,
            Self::Timeout => policies.timeout,
        }
    }

    pub(super) fn alert(self) -> Description {
        match self {
            Self::NoSni => Description::NO_SERVER_NAME,
            Self::UnknownName => Description::UNKNOWN_NAME,
            Self::Rejected(rejection) => Description::of(rejection),
            Self::Timeout => Description::TIMEOUT,
        }
    }
}

impl From<RouteVerdict> for CloseReason {
    fn from(verdict: RouteVerdict) -> Self {
        match verdict {
            RouteVerdict::NoSni => Self::NoSni,
            RouteVerdict::UnknownName => Self::UnknownName,
            RouteVerdict::Rejected(Rejection::NotTls) => Self::NotTls,
            RouteVerdict::Rejected(Rejection::Malformed(_)) => Self::Malformed,
            RouteVerdict::Rejected(Rejection::TooLarge) => Self::TooLarge,
            RouteVerdict::Timeout => Self::HelloTimeout,
        }
    }
}

/// Applies the policy for a verdict: either it names a backend all the same, or the connection is over.
pub(super) async fn turn_away<'a>(
    client: &TcpStream,
    listener: &Listener,
    name: &Arc<str>,
    verdict: RouteVerdict,
    service: &Service,
    backend: impl FnOnce(BackendId) -> &'a Cluster,
) -> Result<&'a Cluster, CloseReason> {
    let policy = verdict.policy(&listener.policies);
    service.metrics.unrouted(name, verdict.into(), policy.into());
    match policy {
        Policy::Backend(id) => return Ok(backend(id)),
        Policy::Reset => {
            let _ = sockopt::reset_on_close(client);
        }
        Policy::Close => farewell(client, &[]).await,
        Policy::Alert => farewell(client, &alert(verdict.alert())).await,
    }
    Err(verdict.into())
}

/// Sends `last`, then FIN, and gives the client a moment to read them: closing with bytes of the client unread, or
/// still arriving, would send RST instead, which may overtake what was sent.
async fn farewell(client: &TcpStream, last: &[u8]) {
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
