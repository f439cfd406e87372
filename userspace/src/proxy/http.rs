//! Requests of HTTP on a listener: the way from a session to [`crate::http`], and from there to backends.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_config::model::termination::UpstreamTls;
use tokio::net::TcpStream;

use super::{connect::connect_among, service::Service};
use crate::{
    account::registry::Registration,
    http::{
        activity::Activity,
        connect::{Connect, Connected, Io, Local, NotConnected},
        connection::{self, Connection},
    },
    limits::admission::{Admission, Permit},
    metrics::labels::{Carrier, CloseReason},
    upstream::{candidates::Candidates, cluster::Cluster},
};

/// The longest method that is registered, with the space behind it (RFC 9110 section 16.1, the registry of methods).
pub(super) const LONGEST_METHOD: usize = 18;

/// Whether the first bytes of a client are those of a request. A record of TLS begins with a control character, and `None` waits for
/// more.
pub(super) fn is_request(first: &[u8]) -> Option<bool> {
    for (at, byte) in first.iter().enumerate() {
        match byte {
            b'A'..=b'Z' | b'-' if at < LONGEST_METHOD => {}
            b' ' if at > 1 => return Some(true),
            // What an empty line is before a request (RFC 9112 section 2.2).
            b'\r' | b'\n' if at < 2 => {}
            _ => return Some(false),
        }
    }
    None
}

/// A client that sends requests without TLS.
pub(super) struct Plain {
    pub(super) client: TcpStream,
    /// What was read from it; the rest is in its receive queue.
    pub(super) read: Vec<u8>,
}

/// Serves a client to its end.
pub(super) type Served<'a> = Local<'a, CloseReason>;

/// Serves the requests of a client without TLS, in a future of its own: connections that are passed through do not carry the room
/// for it.
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
        let (Ok(peer), Ok(own)) = (client.peer_addr(), client.local_addr()) else {
            return CloseReason::ClientGone;
        };
        let (current, address) = (service.current.clone(), account.listener_account().address);
        let served = move || {
            let snapshot = current.load_full();
            let listener = snapshot.listener_of(address, || Some(own))?;
            let table = listener.plain_http.as_ref()?.table.clone();
            Some(connection::Served { snapshot, table })
        };
        let _ = client.set_nodelay(true);
        let connection = Connection {
            client: canonical(peer),
            own,
            scheme: "http",
            account: account.account(),
            admission: permit.admission().clone(),
            worker: service.http.clone(),
            connector: service.clone(),
            served: Box::new(served),
            activity: Arc::new(Activity::new(Instant::now())),
            tunnel: Cell::default(),
        };
        connection::serve(client, Rc::new(connection), None, read).await
    })
}

/// A client of IPv4 is one, also on a socket of IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Connect for Service {
    fn connect<'a>(
        &'a self,
        cluster: &'a Cluster,
        candidates: Candidates,
        limit: Duration,
        admission: &'a Arc<Admission>,
    ) -> Local<'a, Result<Connected<TcpStream>, NotConnected>> {
        Box::pin(async move {
            let Cluster { max_connections, max_pending, .. } = *cluster;
            let mut place = admission
                .connect(&cluster.name, max_connections, max_pending, Instant::now())
                .map_err(NotConnected::Limited)?;
            match connect_among(cluster, candidates, None, limit, self).await {
                Ok(upstream) => {
                    place.is_settled();
                    admission.reachability.found(&cluster.name);
                    let _ = self.keepalive.apply(&upstream.stream);
                    Ok(Connected { io: upstream.stream, guard: Box::new((upstream.lease, place)) })
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
        _tls: &'a Arc<UpstreamTls>,
        authority: &'a str,
        _protocols: &'static [&'static [u8]],
        _stream: TcpStream,
    ) -> Local<'a, Result<Box<dyn Io>, NotConnected>> {
        Box::pin(async move {
            crate::log::log_limit!(warn, authority, "TLS towards backends is not served yet");
            Err(NotConnected::Tls)
        })
    }
}

#[cfg(test)]
mod tests;
