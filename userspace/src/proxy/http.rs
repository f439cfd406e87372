//! HTTP requests on a listener: connects a session to [`crate::http`], and requests to backends.

use std::{
    cell::{Cell, OnceCell},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_config::{
    model::{
        BackendId, Listener,
        http::{BackendHttp, HttpTable},
        termination::Inside,
    },
    name::ServerName,
};
use tokio::net::TcpStream;

use super::{connect::connect_among, service::Service};
use crate::{
    account::registry::Registration,
    datapath::seam::End,
    http::{
        activity::Activity,
        connect::{Connect, Connected, Io, Local, NotConnected},
        connection::{self, Connection, Protocol},
    },
    limits::admission::{Admission, Permit},
    log::log_limit,
    metrics::labels::{Carrier, CloseReason},
    net::proxy_sender,
    snapshot::Snapshot,
    terminate::{handshake::ServerStream, upstream},
    upstream::{candidates::Candidates, cluster::Cluster},
};

/// The length of the longest registered method and the following space (RFC 9110 section 16.1).
pub(super) const LONGEST_METHOD: usize = 18;

/// Whether a client's first bytes are those of an HTTP request. A TLS record begins with a control character. `None`
/// needs more bytes.
pub(super) fn is_request(first: &[u8]) -> Option<bool> {
    for (at, byte) in first.iter().enumerate() {
        match byte {
            b'A'..=b'Z' | b'-' if at < LONGEST_METHOD => {}
            b' ' if at > 1 => return Some(true),
            // Empty lines may precede a request (RFC 9112 section 2.2).
            b'\r' | b'\n' if at < 2 => {}
            _ => return Some(false),
        }
    }
    None
}

/// A client that sends HTTP requests without TLS.
pub(super) struct Plain {
    pub(super) client: TcpStream,
    /// The bytes read from the client. The rest is in the receive queue.
    pub(super) read: Vec<u8>,
}

/// The future that serves a client to its end.
pub(super) type Served<'a> = Local<'a, CloseReason>;

/// Serves the requests of a client without TLS. The future is separate, so that passed-through connections do not
/// hold its memory.
#[expect(clippy::boxed_local, reason = "it comes in a box, so that a session has no room for it")]
pub(super) fn serve_plain<'a>(
    begun: Box<Plain>,
    account: &'a Registration,
    service: &'a Rc<Service>,
    permit: &'a Permit,
) -> Served<'a> {
    let Plain { client, read } = *begun;
    account.set_carrier(Carrier::Relay);
    Box::pin(async move {
        let plain = |listener: &Listener| listener.plain_http.as_ref().map(|plain| plain.table.clone());
        let Some(connection) = connection(&client, ("http", None, None), plain, account, service, permit)
        else {
            return CloseReason::ClientGone;
        };
        connection::serve(client, connection, None, read).await
    })
}

/// Serves the requests of a client whose TLS is terminated here.
pub(super) async fn serve_encrypted(
    client: ServerStream,
    account: &Registration,
    service: &Rc<Service>,
    permit: &Permit,
) -> CloseReason {
    let session = client.get_ref().1;
    let protocol = match session.alpn_protocol() {
        Some(b"h2") => Some(Protocol::Http2),
        Some(_) => Some(Protocol::Http1),
        None => None,
    };
    let sent = session.server_name().map(Into::into);
    let name = session.server_name().and_then(|name| ServerName::parse(name).ok());
    // Looks the listener up by name again, since the configuration may have changed.
    let inside = move |listener: &Listener| {
        let rule = match &name {
            Some(name) => listener.routes.lookup(name),
            None => listener.routes.no_sni(),
        };
        match &rule?.termination.as_ref()?.inside {
            Inside::Http(table) => Some(table.clone()),
            Inside::Bytes => None,
        }
    };
    let socket = client.get_ref().0.socket();
    let alpn = protocol.map(|protocol| match protocol {
        Protocol::Http2 => &b"h2"[..],
        Protocol::Http1 => b"http/1.1",
    });
    match connection(socket, ("https", sent, alpn), inside, account, service, permit) {
        Some(connection) => connection::serve(client, connection, protocol, Vec::new()).await,
        None => CloseReason::ClientGone,
    }
}

/// The common part of a client's requests; `table` finds their rules. `None` if the client has disconnected.
fn connection(
    client: &TcpStream,
    (scheme, server_name, alpn): (&'static str, Option<Box<str>>, Option<&'static [u8]>),
    table: impl Fn(&Listener) -> Option<Arc<HttpTable>> + 'static,
    account: &Registration,
    service: &Rc<Service>,
    permit: &Permit,
) -> Option<Rc<Connection>> {
    let (peer, own) = (client.peer_addr().ok()?, client.local_addr().ok()?);
    let peer = account.origin().map_or(peer, |origin| origin.source);
    let (current, address) = (service.current.clone(), account.listener_account().address);
    let served = move || {
        let snapshot = current.load_full();
        let table = table(snapshot.listener_of(address, || Some(own))?)?;
        Some(connection::Served { snapshot, table })
    };
    // If this fails, some responses are delayed.
    let _ = client.set_nodelay(true);
    Some(Rc::new(Connection {
        client: canonical(peer),
        own,
        scheme,
        server_name,
        alpn,
        own_pools: OnceCell::new(),
        account: account.account(),
        admission: permit.admission().clone(),
        worker: service.http.clone(),
        connector: service.clone(),
        served: Box::new(served),
        activity: Arc::new(Activity::new(Instant::now())),
        tunnel: Cell::default(),
    }))
}

/// An IPv4-mapped address on an IPv6 socket becomes an IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Connect for Service {
    fn connect<'a>(
        &'a self,
        cluster: &'a Cluster,
        candidates: Candidates,
        client: Option<IpAddr>,
        header: Option<&'a [u8]>,
        limit: Duration,
        admission: &'a Arc<Admission>,
    ) -> Local<'a, Result<Connected<TcpStream>, NotConnected>> {
        Box::pin(async move {
            let Cluster { max_connections, max_pending, .. } = *cluster;
            let mut place = admission
                .connect(&cluster.name, max_connections, max_pending, Instant::now())
                .map_err(NotConnected::Limited)?;
            match connect_among(cluster, candidates, (None, client), limit, self).await {
                Ok(connected) => {
                    place.is_settled();
                    admission.reachability.found(&cluster.name);
                    let _ = self.keepalives.within(cluster.timeouts.as_ref()).apply(&connected.stream);
                    if let Some(header) = header
                        && let Err(error) = proxy_sender::write(&connected.stream, header, true)
                    {
                        let reason = CloseReason::from(&End::broken_by_backend(error));
                        connected.lease.ended(reason, false);
                        return Err(NotConnected::Failed(reason));
                    }
                    let endpoint = connected.lease.endpoint().clone();
                    let guard = Box::new((connected.lease, place));
                    Ok(Connected { io: connected.stream, endpoint, guard })
                }
                Err(error) => {
                    if error.is_of_the_backend() {
                        admission.reachability.lost(&cluster.name, &error);
                    }
                    let reason = CloseReason::from(&error);
                    tracing::debug!(%error, %reason, backend = %cluster.name, "not connected");
                    Err(NotConnected::Failed(reason))
                }
            }
        })
    }

    fn encrypt<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        backend: BackendId,
        http: BackendHttp,
        stream: TcpStream,
    ) -> Local<'a, Result<Box<dyn Io>, NotConnected>> {
        Box::pin(async move {
            let terminations = snapshot.terminations();
            let Ok(Some(tls)) = terminations.upstream(backend) else { return Err(NotConnected::Tls) };
            let protocol = match http {
                BackendHttp::Http1 => upstream::Protocol::Http1,
                BackendHttp::Http2 => upstream::Protocol::Http2,
            };
            match tls.connect(stream, protocol, None).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Io>),
                Err(error) => {
                    log_limit!(
                        warn,
                        backend = %snapshot.cluster(backend).name, %error,
                        "the TLS handshake with the backend failed; check its certificate, and the authorities and \
                         names that its tls settings allow"
                    );
                    Err(NotConnected::Tls)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
