//! Serves a connection with terminated TLS: handshake, endpoint, and the decrypted bytes.

use std::{
    io,
    net::IpAddr,
    os::fd::AsRawFd as _,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_config::{
    model::{
        Rule,
        scope::ScopedTimeouts,
        termination::{Inside, Termination},
    },
    name::ServerName,
};
use snisplice_tls::alert::{Description, alert};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client;

use self::copy::{Socket, copy};
use super::{
    connect::Client,
    http,
    proxied::{announce, client_of},
    refuse::farewell,
    service::Service,
    session::connect_within_limits,
};
use crate::{
    account::{Account, registry::Registration},
    limits::admission::Permit,
    log::log_limit,
    metrics::labels::{Carrier, CloseReason},
    net::{proxy_header::Fields, sockopt},
    snapshot::Snapshot,
    terminate::{
        handshake::{self, ServerStream},
        upstream::Protocol,
    },
};

mod copy;

/// A client whose rule terminates TLS.
pub(super) struct Terminated {
    /// Its hello is complete, in the receive queue or in `read`.
    pub(super) client: TcpStream,
    /// The bytes read from the client.
    pub(super) read: Vec<u8>,
    /// The configuration, kept until the connection is established.
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) rule: Arc<Rule>,
    pub(super) termination: Arc<Termination>,
    /// The time limits of the listener, if it has its own.
    pub(super) listener: Option<Arc<ScopedTimeouts>>,
}

/// The future that serves a client to its end.
pub(super) type Served<'a> = Pin<Box<dyn Future<Output = CloseReason> + 'a>>;

/// Serves a client to its end. The future is separate, so that passed-through connections do not hold its memory.
#[expect(clippy::boxed_local, reason = "it comes in a box, so that a session has no room for it")]
pub(super) fn serve<'a>(
    begun: Box<Terminated>,
    account: &'a Registration,
    service: &'a Rc<Service>,
    permit: &'a Permit,
) -> Served<'a> {
    account.set_carrier(Carrier::Terminate);
    let Terminated { client, read, snapshot, rule, termination, listener } = *begun;
    Box::pin(async move {
        // The handshake needs far more memory than later steps, and is short.
        let own = listener.as_ref().and_then(|own| own.handshake);
        let limit = own.unwrap_or(snapshot.model.runtime.timeouts.handshake);
        let shaken =
            Box::pin(shake_hands(client, read, &snapshot, &termination, limit, account, permit)).await;
        let client = match shaken {
            Ok(client) => client,
            Err(reason) => return reason,
        };
        match &termination.inside {
            Inside::Bytes => carry(client, snapshot, (rule, listener), account, service, permit).await,
            Inside::Http(_) => {
                account.limited_by([None, rule.timeouts.as_ref(), listener.as_ref()]);
                drop((snapshot, rule, listener));
                Box::pin(http::serve_encrypted(client, account, service, permit)).await
            }
        }
    })
}

/// Performs the handshake within its deadline and its limits.
async fn shake_hands(
    client: TcpStream,
    read: Vec<u8>,
    snapshot: &Snapshot,
    termination: &Termination,
    limit: Duration,
    account: &Account,
    permit: &Permit,
) -> Result<ServerStream, CloseReason> {
    let terminations = snapshot.terminations();
    let Some(server) = terminations.server(termination) else {
        farewell(&client, &alert(Description::InternalError)).await;
        return Err(CloseReason::NoCertificate);
    };
    if handshake::is_too_old(&client, &read).await {
        farewell(&client, &alert(Description::ProtocolVersion)).await;
        return Err(CloseReason::HandshakeFailed);
    }
    let peer = client_of(account, &client).unwrap_or(IpAddr::from([0; 4]));
    let under_way = permit.handshake(peer, Instant::now()).inspect_err(|_| {
        let _ = sockopt::reset_on_close(&client);
    })?;
    let shaken = timeout(limit, handshake::accept(client, read, server)).await;
    drop(under_way);
    match shaken {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(failed)) => {
            tracing::debug!(server = %termination.name, error = %failed.error, reason = %failed.reason, "handshake failed");
            if failed.reason != CloseReason::ClientGone {
                // Lets the alert arrive.
                farewell(&failed.stream, &[]).await;
            }
            Err(failed.reason)
        }
        Err(_) => Err(CloseReason::HandshakeTimeout),
    }
}

/// Forwards the decrypted bytes, unchanged, to one of the rule's targets.
async fn carry(
    client: ServerStream,
    snapshot: Arc<Snapshot>,
    (rule, listener): (Arc<Rule>, Option<Arc<ScopedTimeouts>>),
    account: &Account,
    service: &Service,
    permit: &Permit,
) -> CloseReason {
    let scopes = (&*rule, listener.as_ref());
    let connected = Box::pin(connect(&client, &snapshot, scopes, account, service, permit)).await;
    // The connection needs nothing of its configuration from here on.
    drop((snapshot, rule, listener));
    let patience = service.patience.of_connection(account);
    let (backend, lease) = match connected {
        Ok(connected) => connected,
        Err(reason) => return reason,
    };
    let reason = match backend {
        Backend::Plain(backend) => copy(client, backend, account, patience).await,
        Backend::Tls(backend) => copy(client, *backend, account, patience).await,
    };
    lease.ended(reason, account.bytes().1 > 0);
    reason
}

/// A connection to an endpoint.
enum Backend {
    /// Without TLS.
    Plain(TcpStream),
    /// Encrypted again.
    Tls(Box<client::TlsStream<TcpStream>>),
}

async fn connect(
    client: &ServerStream,
    snapshot: &Snapshot,
    (rule, listener): (&Rule, Option<&Arc<ScopedTimeouts>>),
    account: &Account,
    service: &Service,
    permit: &Permit,
) -> Result<(Backend, crate::upstream::lease::Lease), CloseReason> {
    let id = snapshot.next_backend(rule).ok_or(CloseReason::BackendRejected)?;
    let cluster = snapshot.cluster(id);
    account.goes_to(cluster.name.clone());
    account.limited_by([cluster.timeouts.as_ref(), rule.timeouts.as_ref(), listener]);
    let socket = client.socket();
    let name = client.get_ref().1.server_name().and_then(|name| ServerName::parse(name).ok());
    let from = Client { socket, source: client_of(account, socket), name: name.as_ref() };
    let upstream = connect_within_limits(cluster, from, account, snapshot, service, permit).await?;
    account.has_sockets([socket.as_raw_fd(), upstream.stream.as_raw_fd()]);
    // If this fails, an unreachable peer is detected later.
    let _ = service.keepalives.within(cluster.timeouts.as_ref()).apply(&upstream.stream);
    if let Some(rules) = &cluster.proxy_protocol {
        let session = client.get_ref().1;
        let fields =
            Fields { alpn: session.alpn_protocol(), authority: session.server_name(), unique_id: None };
        let has_tls = matches!(snapshot.terminations().upstream(id), Ok(Some(_)));
        if let Err(reason) = announce(&upstream.stream, rules, socket, account, &fields, has_tls) {
            upstream.lease.ended(reason, false);
            return Err(reason);
        }
    }
    let terminations = snapshot.terminations();
    let Some(tls) = terminations.upstream(id).map_err(|_| CloseReason::BackendTlsFailed)? else {
        return Ok((Backend::Plain(upstream.stream), upstream.lease));
    };
    let limit = snapshot.model.runtime.timeouts.handshake;
    let address = upstream.lease.address();
    // The endpoint of a dynamic backend is the server that the client means.
    let requested = name.as_ref().filter(|_| cluster.forward.is_some()).map(ServerName::as_str);
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let shaken = timeout(limit, tls.connect(upstream.stream, Protocol::Bytes, requested)).await;
    match shaken.unwrap_or_else(|_| Err(late())) {
        Ok(stream) => Ok((Backend::Tls(Box::new(stream)), upstream.lease)),
        Err(error) => {
            log_limit!(
                warn,
                backend = %cluster.name, %address, %error,
                "the TLS handshake with the backend failed; check its certificate, and the authorities and names that \
                 its tls settings allow"
            );
            upstream.lease.handshake_failed();
            Err(CloseReason::BackendTlsFailed)
        }
    }
}
