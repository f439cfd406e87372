//! One request and its response.

use std::{
    cell::OnceCell,
    net::IpAddr,
    ops::Deref,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
};
use snisplice_config::model::{
    Backend, BackendId, Route,
    http::{BackendHttp, Forward, HeaderChanges, HttpAction, HttpRule},
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    body::{Download, Source},
    connect::{Connected, Io, NotConnected},
    connection::{Connection, InFlight, Served, Tunnel, carry_stream},
    failure::Failure,
    headers::{self, SERVER},
    pool::{Key, Pools, Return, Sender, Through, begin_http1, begin_http2},
    refused::Refused,
    request_log::Note,
    route::{self, Decision},
    variables::{Facts, Upstream},
    websocket,
};
use crate::{
    account::access_log::outcome::NO_FLAG,
    metrics::NONE,
    net::{proxy_header::Fields, proxy_sender::header_for, uuid},
    upstream::{balance::hash, cluster::Cluster, endpoint::Endpoint},
};

/// The upper limit of the first pause before a retry. Each further pause has twice that limit (Envoy's
/// `base_interval`).
const PAUSE: Duration = Duration::from_millis(25);

/// The longest pause before a retry (Envoy's `max_interval`).
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Serves a request.
pub async fn exchange(mut request: Request<Incoming>, connection: Rc<Connection>) -> Response<Download> {
    let in_flight = InFlight::new(&connection, &request);
    if connection.activity.is_late() {
        note_answer(&in_flight, NO_FLAG, "request_header_timeout");
        let response = closing(answered(StatusCode::REQUEST_TIMEOUT, "", false), request.version());
        return finished(response, None, &connection, in_flight);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let extended = websocket::begin(&mut request);
    let (head, body) = request.into_parts();
    let is_grpc = is_grpc(&head.headers);
    let Some(Served { snapshot, table }) = (connection.served)() else {
        let response = answered(StatusCode::MISDIRECTED_REQUEST, "", false);
        return finished(response, None, &connection, in_flight);
    };
    let trusted = snapshot.model.runtime.http.trusted_sources.contains(connection.client.ip());
    let asked = extended.and_then(|extended| Ok((route::read(&head, connection.scheme, trusted)?, extended)));
    let (asked, extended) = match asked {
        Ok(asked) => asked,
        Err(why) => {
            tracing::debug!(%why, client = %connection.client, "a request is refused");
            note_answer(&in_flight, "DPE", "http1.codec_error");
            let response = closing(answered(why.status(), "", false), head.version);
            return finished(response, None, &connection, in_flight);
        }
    };
    let unlogged = Upstream::default();
    let facts = Facts {
        head: &head,
        scheme: asked.scheme,
        authority: &asked.authority,
        client: connection.client,
        own: connection.own,
        server_name: connection.server_name.as_deref(),
        trusted,
        started: SystemTime::now(),
        sent: OnceCell::new(),
        upstream: in_flight.note().map_or(&unlogged, |note| &note.upstream),
    };
    let decision = route::decide(&table, &asked, connection.own.port());
    let (mut response, rule) = match decision {
        Decision::NotFound => {
            note_answer(&in_flight, "NR", "route_not_found");
            (answered(StatusCode::NOT_FOUND, "", is_grpc), None)
        }
        Decision::Redirected { rule, status, location } => {
            note_answer(&in_flight, NO_FLAG, "direct_response");
            let mut response = answered(status, "", false);
            match HeaderValue::try_from(location) {
                Ok(location) => drop(response.headers_mut().insert(header::LOCATION, location)),
                Err(_) => response = answered(Refused::Target.status(), "", false),
            }
            (response, rule)
        }
        Decision::Responded(rule) => {
            note_answer(&in_flight, NO_FLAG, "direct_response");
            (responded(rule), Some(rule))
        }
        Decision::Forwarded { rule, forward, target, authority } => {
            let order = Order {
                connection: &connection,
                snapshot: &snapshot,
                rule,
                forward,
                target: &target,
                authority: &authority,
                facts: &facts,
                is_extended: extended.is_some(),
                upgrade: extended.or_else(|| headers::upgrade(head.version, &head.headers)),
                note: in_flight.note(),
            };
            // On the heap, since local replies do not need this future.
            let response = match Box::pin(order.serve(body, upgrade)).await {
                Ok(response) => response,
                Err(failure) => {
                    let (status, text) = failure.response();
                    if let Some(note) = in_flight.note() {
                        let (flags, details) = failure.in_the_log();
                        note.is_answered_here(flags, details);
                    }
                    let response = answered(status, text, is_grpc);
                    if failure.is_of_the_client() { closing(response, head.version) } else { response }
                }
            };
            (response, Some(rule))
        }
    };
    if let Some(rule) = rule {
        headers::change(response.headers_mut(), &rule.response_headers, |variable, headers| {
            facts.of_response(variable, headers)
        });
    }
    let label = rule.map(|rule| snapshot.label(&rule.rule));
    finished(response, label, &connection, in_flight)
}

/// Records the reason for a local reply in the access log.
fn note_answer(in_flight: &InFlight, flags: &'static str, details: &'static str) {
    if let Some(note) = in_flight.note() {
        note.is_answered_here(flags, details);
    }
}

/// Counts a response, and counts the request as in progress until the response is sent.
fn finished(
    mut response: Response<Download>,
    route: Option<Arc<str>>,
    connection: &Rc<Connection>,
    in_flight: InFlight,
) -> Response<Download> {
    if let Some(note) = in_flight.note() {
        note.answers(response.status().as_u16(), route.clone());
    }
    let route = route.unwrap_or_else(|| NONE.into());
    connection.worker.metrics.http_request(&route, response.status().as_u16());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(header::SERVER, SERVER);
    }
    response.map(|body| body.counted(in_flight))
}

/// A local reply. A gRPC client gets the error in gRPC terms, as in Envoy.
fn answered(status: StatusCode, text: &'static str, is_grpc: bool) -> Response<Download> {
    let mut response = Response::new(Download::ours(if is_grpc { "" } else { text }));
    if is_grpc {
        let code = match status.as_u16() {
            400 => "13",
            401 => "16",
            403 => "7",
            404 => "12",
            408 | 504 => "4",
            429 | 502 | 503 => "14",
            _ => "2",
        };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code));
        headers.insert(HeaderName::from_static("grpc-message"), HeaderValue::from_static(text));
        return response;
    }
    *response.status_mut() = status;
    if !text.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// A local reply that closes the connection, because the begin of the next request is uncertain.
fn closing(mut response: Response<Download>, version: Version) -> Response<Download> {
    if version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn responded(rule: &HttpRule) -> Response<Download> {
    let HttpAction::Respond(respond) = &rule.action else {
        return answered(StatusCode::NOT_FOUND, "", false);
    };
    let mut response = Response::new(Download::ours(respond.body.clone()));
    *response.status_mut() = StatusCode::from_u16(respond.status).unwrap_or(StatusCode::OK);
    if !respond.body.is_empty() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A request that is forwarded.
struct Order<'a> {
    connection: &'a Rc<Connection>,
    snapshot: &'a crate::snapshot::Snapshot,
    rule: &'a HttpRule,
    forward: &'a Forward,
    target: &'a str,
    authority: &'a str,
    facts: &'a Facts<'a>,
    upgrade: Option<HeaderValue>,
    /// Whether the request is an HTTP/2 upgrade (RFC 8441).
    is_extended: bool,
    note: Option<&'a Rc<Note>>,
}

/// The backend of a request.
#[derive(Clone, Copy)]
struct Destination<'a> {
    id: BackendId,
    backend: &'a Backend,
}

impl Deref for Destination<'_> {
    type Target = Backend;

    fn deref(&self) -> &Backend {
        self.backend
    }
}

/// The result of an attempt.
struct Answer {
    response: Response<Incoming>,
    connection: Option<Return>,
}

impl Order<'_> {
    async fn serve(
        &self,
        body: Incoming,
        upgrade: hyper::upgrade::OnUpgrade,
    ) -> Result<Response<Download>, Failure> {
        let (rule, head): (&Route, _) = (&self.rule.rule, self.facts.head);
        let runtime = &self.snapshot.model.runtime;
        let (index, cluster) = self.snapshot.next_target_of(rule).ok_or(Failure::NoHealthyUpstream)?;
        let id = rule.targets[index].backend.ok_or(Failure::NoHealthyUpstream)?;
        let backend = self.snapshot.model.backends.get(id.0).ok_or(Failure::NoHealthyUpstream)?;
        let backend = Destination { id, backend };
        self.connection.account.goes_to(cluster.name.clone());
        self.connection.account.routed(self.snapshot.label(rule));
        if self.upgrade.is_some() && backend.http == BackendHttp::Http2 {
            return Err(Failure::Upgrade);
        }
        let none = (HeaderChanges::default(), HeaderChanges::default());
        let (of_request, of_response) = self.forward.of_target.get(index).unwrap_or(&none);
        let _ = self.facts.upstream.cluster.set(cluster.name.clone());
        let sent = self.facts.sent.get_or_init(|| self.headers(of_request));

        // A gRPC stream may be silent from its beginning, for any time.
        let patience =
            Some(runtime.http.body_timeout).filter(|patience| !patience.is_zero() && !is_grpc(&head.headers));
        if let Some(note) = self.note {
            note.forwards(sent);
        }
        let body = Source::new(body, patience, self.note.cloned());
        let answering = self.attempts(&head.method, sent, &body, cluster, backend);
        let answer = match self.forward.timeout {
            None => answering.await,
            // Counted from the request's end.
            Some(limit) => tokio::select! {
                biased;
                answer = answering => answer,
                () = async { body.has_ended().await; sleep(limit).await } => Err(Failure::Timeout),
            },
        };
        let Answer { mut response, connection } = answer?;
        if let Some(note) = self.note {
            note.is_served();
        }
        body.is_answered();
        let deadline = self.forward.timeout.and_then(|limit| Some(body.ended_at()? + limit));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response, upgrade, of_response);
        }
        // On the client's stream, a success status would mean that the protocol has switched (RFC 8441).
        if self.is_extended && response.status().is_success() {
            return Err(Failure::Protocol);
        }
        headers::remove_hop_by_hop(response.headers_mut());
        headers::change(response.headers_mut(), of_response, |variable, headers| {
            self.facts.of_response(variable, headers)
        });
        // Each hop has its own version.
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(|incoming| Download::theirs(incoming, deadline, connection)))
    }

    /// The headers to forward.
    fn headers(&self, of_target: &HeaderChanges) -> HeaderMap {
        let mut headers = self.facts.head.headers.clone();
        headers::remove_hop_by_hop(&mut headers);
        headers::join_cookies(&mut headers);
        // The reply to `Expect` is local, as in Envoy: the server sends it when the body is read.
        headers.remove(header::EXPECT);
        headers.remove(header::HOST);
        let address = match self.connection.client.ip() {
            IpAddr::V6(six) => six.to_canonical(),
            four @ IpAddr::V4(_) => four,
        };
        let sender = headers::Sender { address, trusted: self.facts.trusted, scheme: self.facts.scheme };
        headers::forwarded(&mut headers, &sender, request_id);
        // Envoy's order: the changes nearest to the target come first.
        for changes in [of_target, &self.rule.request_headers] {
            headers::change(&mut headers, changes, |variable, headers| {
                self.facts.of_request(variable, headers)
            });
        }
        if let Some(wanted) = &self.upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, wanted.clone());
        }
        if self.is_extended {
            websocket::complete(&mut headers, fastrand::u128(..).to_be_bytes());
        }
        headers
    }

    /// Makes attempts until there is a response or no retry is left.
    async fn attempts(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: &Source,
        cluster: &Cluster,
        backend: Destination<'_>,
    ) -> Result<Answer, Failure> {
        let retries = &self.forward.retries;
        let mut left = retries.attempts;
        let mut pause = PAUSE;
        loop {
            let attempt = self.attempt(method, headers, body, cluster, backend);
            let result = match retries.per_try_timeout {
                Some(limit) => timeout(limit, attempt).await.unwrap_or(Err(Failure::TryTimeout)),
                None => attempt.await,
            };
            let again = match &result {
                Ok(answer) => retries.on_status.contains(&answer.response.status().as_u16()),
                Err(failure) => failure.is_retried(retries),
            };
            if left == 0 || !again || !body.can_be_sent_again() {
                return match result {
                    Err(_) if body.has_stalled() => Err(Failure::ClientStalled),
                    Err(_) if body.has_failed() => Err(Failure::ClientMalformed),
                    result => result,
                };
            }
            left -= 1;
            drop(result);
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The client and the host of the request, for balancing.
    fn caller(&self) -> (IpAddr, u64) {
        let host = self.authority.rsplit_once(':').map_or(self.authority, |(host, port)| {
            if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { self.authority }
        });
        (self.connection.client.ip(), hash::server_name(host))
    }

    /// The connections that may serve the request. A connection with a PROXY protocol header, or with the client's
    /// address, is its client's alone.
    fn pools(&self, cluster: &Cluster) -> &Rc<Pools> {
        let Connection { worker, own_pools, .. } = &**self.connection;
        let is_of_one_client = cluster.proxy_protocol.is_some() || cluster.transparent;
        if is_of_one_client { own_pools.get_or_init(Rc::default) } else { &worker.pools }
    }

    /// The PROXY protocol header of a new connection.
    fn proxy_header(&self, cluster: &Cluster) -> Option<Vec<u8>> {
        let Connection { client, own, account, server_name, alpn, .. } = &**self.connection;
        let rules = cluster.proxy_protocol.as_ref()?;
        let fields = Fields { alpn: *alpn, authority: server_name.as_deref(), unique_id: None };
        Some(header_for(rules, &account.origin_or(*client, *own), &fields))
    }

    /// Makes one attempt, over an idle connection or a new one.
    async fn attempt(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: &Source,
        cluster: &Cluster,
        backend: Destination<'_>,
    ) -> Result<Answer, Failure> {
        let pools = self.pools(cluster);
        let mut may_reuse = true;
        loop {
            let mut candidates = cluster.candidates(&self.caller());
            // The lease counts at the endpoint while the request is in progress.
            let Some(lease) = candidates.next() else {
                // A DNS lookup may be in progress. The connect waits for it.
                let (sender, endpoint) = self.connect(cluster, backend, candidates).await?;
                let result = self.over(sender, None, method, headers, body, backend).await;
                if let Ok(answer) = &result {
                    endpoint.responded(Some(answer.response.status().as_u16()));
                }
                return result.map_err(|(failure, _)| failure);
            };
            let address = lease.address();
            let mut endpoint = lease.endpoint().clone();
            candidates.connected(&lease);
            candidates.put_back();
            drop(lease);
            self.facts.upstream.host.set(Some(address));
            let mut key =
                Key { cluster: cluster.name.clone(), address, http: backend.http, tls: backend.tls.clone() };
            let (sender, reused) = match backend.http {
                BackendHttp::Http1 => {
                    if let Some(through) = pools.take(&key).filter(|_| may_reuse) {
                        (Sender::Http1(through), true)
                    } else {
                        let (sender, found) = self.connect(cluster, backend, candidates).await?;
                        // Another endpoint, if the first one did not answer.
                        key.address = found.address();
                        endpoint = found;
                        (sender, false)
                    }
                }
                BackendHttp::Http2 => {
                    let place = pools.multiplexed(&key);
                    let mut place = place.lock().await;
                    let kept = place.as_ref().filter(|through| may_reuse && !through.sender.is_closed());
                    if let Some(through) = kept {
                        (Sender::Http2(through.clone()), true)
                    } else {
                        let (sender, found) = self.connect(cluster, backend, candidates).await?;
                        // A connection to another endpoint serves this request only.
                        if let Sender::Http2(through) = &sender
                            && found.address() == address
                        {
                            *place = Some(through.clone());
                        }
                        endpoint = found;
                        (sender, false)
                    }
                }
            };
            let place = Some((pools.clone(), key));
            let result = self.over(sender, place, method, headers, body, backend).await;
            match result {
                Ok(answer) => {
                    endpoint.responded(Some(answer.response.status().as_u16()));
                    return Ok(answer);
                }
                Err((failure, sent)) => {
                    // The backend may have closed an idle connection before it received this request.
                    let is_safe = !sent || (method.is_idempotent() && failure == Failure::Reset);
                    if !(reused && is_safe && body.can_be_sent_again()) {
                        if !reused && !body.has_failed() && !body.has_stalled() {
                            endpoint.responded(None);
                        }
                        return Err(failure);
                    }
                    may_reuse = false;
                }
            }
        }
    }

    /// Sends the request over a connection. An error includes whether any byte may have been sent.
    async fn over(
        &self,
        mut sender: Sender,
        place: Option<(Rc<Pools>, Key)>,
        method: &Method,
        headers: &HeaderMap,
        body: &Source,
        backend: Destination<'_>,
    ) -> Result<Answer, (Failure, bool)> {
        let request = self.request(method, headers, body, backend).map_err(|_| (Failure::Protocol, false))?;
        self.facts.upstream.local.set(sender.local());
        match sender.send(request).await {
            Ok(response) => {
                let connection = match (sender, place) {
                    (Sender::Http1(through), Some((pools, key))) => Some(Return { pools, key, through }),
                    _ => None,
                };
                Ok(Answer { response, connection })
            }
            Err(mut error) => {
                let sent = error.take_message().is_none();
                let error = error.into_error();
                tracing::debug!(%error, sent, "no response");
                let failure = if error.is_parse() { Failure::Protocol } else { Failure::Reset };
                Err((failure, sent))
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: &Source,
        backend: Destination<'_>,
    ) -> Result<Request<super::body::Upload>, Refused> {
        let version = match backend.http {
            BackendHttp::Http1 => Version::HTTP_11,
            BackendHttp::Http2 => Version::HTTP_2,
        };
        let scheme = if backend.tls.is_some() { "https" } else { "http" };
        let mut request = Request::new(body.upload());
        *request.method_mut() = method.clone();
        *request.version_mut() = version;
        *request.uri_mut() = route::target(scheme, self.authority, self.target, version)?;
        *request.headers_mut() = headers.clone();
        if version != Version::HTTP_2 {
            let host = HeaderValue::from_str(self.authority).map_err(|_| Refused::Host)?;
            request.headers_mut().insert(header::HOST, host);
        }
        Ok(request)
    }

    /// Makes a new connection to one of the endpoints. Returns the connection and the endpoint.
    async fn connect(
        &self,
        cluster: &Cluster,
        backend: Destination<'_>,
        candidates: crate::upstream::candidates::Candidates,
    ) -> Result<(Sender, Arc<Endpoint>), Failure> {
        let Connection { connector, admission, account, .. } = &**self.connection;
        let limit = self.snapshot.connect_timeout(cluster, account.limits());
        let deadline = Instant::now() + limit;
        let mut candidates = Some(candidates);
        let connected = loop {
            let candidates = candidates.take().unwrap_or_else(|| cluster.candidates(&self.caller()));
            let client = Some(self.connection.client.ip());
            // Each connection has a header of its own, with an id of its own.
            let header = self.proxy_header(cluster);
            match connector.connect(cluster, candidates, client, header.as_deref(), limit, admission).await {
                Ok(connected) => break connected,
                // Idle connections give their slot to a connection with a request.
                Err(NotConnected::Limited(_)) if self.pools(cluster).make_room(&cluster.name) => {
                    tokio::task::yield_now().await;
                    tokio::task::yield_now().await;
                }
                Err(NotConnected::Limited(_)) => return Err(Failure::Overflow),
                Err(NotConnected::Failed(crate::metrics::labels::CloseReason::NoEndpoint)) => {
                    return Err(Failure::NoHealthyUpstream);
                }
                Err(NotConnected::Failed(_) | NotConnected::Tls) => return Err(Failure::NotConnected),
            }
        };
        let Connected { io: stream, endpoint, guard } = connected;
        let local = stream.local_addr().ok();
        self.facts.upstream.host.set(Some(endpoint.address()));
        let io: Box<dyn Io> = if backend.tls.is_none() {
            Box::new(stream)
        } else {
            let encrypting = connector.encrypt(self.snapshot, backend.id, backend.http, stream);
            let encrypted = timeout_at(deadline, encrypting).await.unwrap_or(Err(NotConnected::Tls));
            encrypted.map_err(|_| {
                endpoint.responded(None);
                Failure::NotConnected
            })?
        };
        let connected = Connected { io, endpoint: endpoint.clone(), guard };
        let begun = match backend.http {
            BackendHttp::Http1 => {
                begin_http1(connected).await.map(|sender| Sender::Http1(Through { sender, local }))
            }
            BackendHttp::Http2 => {
                begin_http2(connected).await.map(|sender| Sender::Http2(Through { sender, local }))
            }
        };
        let sender = begun.map_err(|_| Failure::NotConnected)?;
        Ok((sender, endpoint))
    }

    /// Switches the connections of client and backend to another protocol.
    fn switch(
        &self,
        mut response: Response<Incoming>,
        client: hyper::upgrade::OnUpgrade,
        changes: &HeaderChanges,
    ) -> Result<Response<Download>, Failure> {
        if self.upgrade.is_none() {
            return Err(Failure::Protocol);
        }
        let wanted = response.headers().get(header::UPGRADE).cloned().ok_or(Failure::Protocol)?;
        let tunnel = Tunnel { client, backend: hyper::upgrade::on(&mut response) };
        let headers = response.headers_mut();
        headers::remove_hop_by_hop(headers);
        headers::change(headers, changes, |variable, headers| self.facts.of_response(variable, headers));
        if self.is_extended {
            websocket::answer(headers);
            *response.status_mut() = StatusCode::OK;
            spawn_local(carry_stream(tunnel));
            return Ok(response.map(|_| Download::ours("")));
        }
        self.connection.tunnel.set(Some(tunnel));
        self.connection.activity.switch();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, wanted);
        Ok(response.map(|_| Download::ours("")))
    }
}

/// A random UUID (RFC 9562 section 5.4).
fn request_id() -> HeaderValue {
    HeaderValue::try_from(uuid::random()).unwrap_or(HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_random_uuid() {
        let id = request_id();
        let id = id.to_str().unwrap();
        assert_eq!((id.len(), &id[14..15], id.matches('-').count()), (36, "4", 4), "{id}");
        assert!("89ab".contains(&id[19..20]), "{id}");
        assert_ne!(request_id(), request_id());
    }
}
