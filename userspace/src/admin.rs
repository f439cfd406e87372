//! The admin endpoint: HTTP for probes, scrapers and operators, on the main thread, away from the workers.
//!
//! It asks nobody who they are: it is for an address that only operators reach.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Bytes},
    header::{self, HeaderValue},
};
use serde::Serialize;
use snisplice_config::{admin::Admin as Settings, name::HostName};
use tokio::sync::mpsc;

use crate::{
    account::{
        registry::Request as Asked,
        view::{Closed, Connection, Filter, LONGEST, MOST, Query},
    },
    limits::admission::Admission,
    metrics::{Metrics, labels::CloseReason},
    net::admin_socket::Socket,
};

use self::{
    body::{Answer, Pieces},
    guard::Refused,
};

mod body;
mod guard;
pub mod server;

/// Prometheus' current text exposition format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections that are asked of the workers at once.
const PAGE: usize = 256;

/// What the endpoint shows.
#[derive(Debug)]
pub struct Admin {
    /// Everything counted.
    pub metrics: Arc<Metrics>,
    /// Whether new connections are welcome: true from the last bind to the first SIGTERM.
    pub ready: AtomicBool,
    /// Whether connections are relayed because it is not known yet what the kernel can do.
    pub probing: AtomicBool,
    /// Tells whether every place is taken.
    admission: Arc<Admission>,
    allow_close: bool,
    /// Names that a `Host` header may have.
    hosts: Vec<HostName>,
    asked: OnceLock<Askable>,
}

/// Asks a worker. One that has ended does not answer.
pub type Ask = Box<dyn Fn(Asked) + Send + Sync>;

/// Who is asked for connections.
pub struct Askable {
    /// Each has those that it accepted.
    pub workers: Vec<Ask>,
    /// Those that were taken over from another process.
    pub orphans: mpsc::UnboundedSender<Asked>,
}

impl fmt::Debug for Askable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Askable").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

/// What is served at an address, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything, to whoever may open the file: no browser opens unix sockets.
    Local,
    /// Everything, but nothing that may come from a web page.
    Network,
    /// `/ready` alone, to everybody.
    Ready,
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Ready,
    Metrics,
    Connections(Option<u64>),
    Unknown,
}

impl Target {
    fn of(path: &str) -> Self {
        match path {
            "/ready" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/connections" => Self::Connections(None),
            _ => {
                let id = path.strip_prefix("/connections/").and_then(|id| id.parse().ok());
                id.map_or(Self::Unknown, |id| Self::Connections(Some(id)))
            }
        }
    }

    /// The methods that can be used on it.
    fn allow(&self) -> &'static str {
        match self {
            Self::Connections(_) => "GET, HEAD, DELETE",
            Self::Ready | Self::Metrics | Self::Unknown => "GET, HEAD",
        }
    }
}

impl Admin {
    /// Not ready yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, admission: Arc<Admission>, settings: &Settings) -> Self {
        let Settings { hosts, allow_close, .. } = settings;
        Self {
            metrics,
            ready: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            admission,
            allow_close: *allow_close,
            hosts: hosts.clone(),
            asked: OnceLock::new(),
        }
    }

    /// From now on these are asked for their connections.
    pub fn asks(&self, asked: Askable) {
        // Only the first time counts; there is no second.
        let _ = self.asked.set(asked);
    }

    /// Serves until dropped. Ends only with an error, before the first connection.
    pub async fn serve(self: Arc<Self>, socket: Socket, scope: Scope) {
        if let Err(error) = server::serve(self, socket, scope).await {
            tracing::error!(%error, "the admin endpoint does not serve");
        }
    }

    async fn answer<B: Body>(self: &Arc<Self>, scope: Scope, request: &Request<B>) -> Response<Answer> {
        let allowed = match scope {
            Scope::Network => guard::check(request, &self.hosts),
            Scope::Local => guard::no_origin(request.headers()),
            Scope::Ready => Ok(()),
        };
        match allowed {
            Ok(()) => {}
            Err(Refused::Invalid(why)) => return text(StatusCode::BAD_REQUEST, why.into()),
            Err(Refused::Forbidden(why)) => return text(StatusCode::FORBIDDEN, why),
        }
        if !request.body().is_end_stream() {
            return text(StatusCode::PAYLOAD_TOO_LARGE, "no request here has a body\n".into());
        }
        let target = match Target::of(request.uri().path()) {
            Target::Ready => Target::Ready,
            _ if scope == Scope::Ready => return text(StatusCode::NOT_FOUND, "only /ready is here\n".into()),
            target => target,
        };
        let query = request.uri().query().unwrap_or_default();
        match (request.method(), &target) {
            (_, Target::Unknown) => text(StatusCode::NOT_FOUND, "/ready\n/metrics\n/connections\n".into()),
            (&Method::GET | &Method::HEAD, Target::Ready) => self.ready(query),
            (&Method::GET | &Method::HEAD, Target::Metrics) => self.metrics().await,
            (&Method::GET | &Method::HEAD, Target::Connections(id)) => self.list(*id, query).await,
            (&Method::DELETE, Target::Connections(id)) => self.close(*id, query).await,
            _ => {
                let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {}\n", target.allow()));
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(target.allow()));
                response
            }
        }
    }

    /// Whether new connections are welcome. A process that is full goes on serving, and clients wait for a place: only who
    /// asks with `fail=full` is told that it is not ready. Otherwise a crowd would have one process after another taken out
    /// of service.
    fn ready(&self, query: &str) -> Response<Answer> {
        let fails_when_full = match fails_when_full(query) {
            Ok(asked) => asked,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        if !self.ready.load(Relaxed) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "not accepting connections\n".into());
        }
        let mut state =
            if self.probing.load(Relaxed) { "ready, probing the kernel" } else { "ready" }.to_owned();
        let mut status = StatusCode::OK;
        if self.admission.is_full() {
            let (most, _) = self.admission.standing().connections;
            let full = format!("full: all {most} places are taken, and clients wait; see limits.connections");
            if fails_when_full {
                (status, state) = (StatusCode::SERVICE_UNAVAILABLE, full);
            } else {
                state = format!("{state}, {full}");
            }
        }
        text(status, state + "\n")
    }

    async fn metrics(&self) -> Response<Answer> {
        self.metrics.forget_gone();
        let families = Families { metrics: self.metrics.clone(), next: 0 };
        of_type(METRICS_TYPE, Response::new(Answer::of(families).await))
    }

    async fn list(self: &Arc<Self>, id: Option<u64>, query: &str) -> Response<Answer> {
        let Query { filter, limit, after } = match Query::parse(query) {
            Ok(query) => query,
            Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        let left = limit.unwrap_or(MOST).min(LONGEST);
        let mut listing = Listed {
            admin: self.clone(),
            filter: Filter { id, ..filter },
            left,
            page: Vec::new(),
            state: State::Begins,
        };
        listing.turn_to(after).await;
        if id.is_some() && listing.page.is_empty() {
            return text(StatusCode::NOT_FOUND, "there is no such connection\n".into());
        }
        of_type("application/json", Response::new(Answer::of(listing).await))
    }

    async fn close(&self, id: Option<u64>, query: &str) -> Response<Answer> {
        if !self.allow_close {
            let remedy = "closing is not allowed here: start with --admin-close, or set admin.allow_close\n";
            return text(StatusCode::FORBIDDEN, remedy.into());
        }
        let filter = match Query::parse(query) {
            Ok(Query { filter, limit: None, after: None }) => Filter { id, ..filter },
            Ok(_) => return text(StatusCode::BAD_REQUEST, "limit and after are for GET only\n".into()),
            Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        if filter.is_empty() {
            let which = "say which: /connections/ID, or a filter such as /connections?backend=NAME\n";
            return text(StatusCode::BAD_REQUEST, which.into());
        }
        let closed = self.close_all(&filter, CloseReason::ClosedByAdmin).await;
        tracing::info!(?filter, closed, "admin: closing connections");
        if id.is_some() && closed == 0 {
            return text(StatusCode::NOT_FOUND, "there is no such connection\n".into());
        }
        json(&Closed { closed })
    }

    /// Ends connections for this reason; how many.
    pub async fn close_all(&self, filter: &Filter, reason: CloseReason) -> usize {
        let closed = self.ask(|reply| Asked::Close { filter: filter.clone(), reason, reply }).await;
        closed.into_iter().sum()
    }

    /// Asks all, and waits for their answers. One that has ended has none.
    async fn ask<T>(&self, request: impl Fn(mpsc::UnboundedSender<T>) -> Asked) -> Vec<T> {
        let (reply, mut replies) = mpsc::unbounded_channel();
        if let Some(Askable { workers, orphans }) = self.asked.get() {
            for ask in workers {
                ask(request(reply.clone()));
            }
            let _ = orphans.send(request(reply.clone()));
        }
        drop(reply);
        let mut answers = Vec::new();
        while let Some(answer) = replies.recv().await {
            answers.push(answer);
        }
        answers
    }
}

/// Whether `/ready` was asked to fail while every place is taken. Other keys are for others, such as caches on the way.
fn fails_when_full(query: &str) -> Result<bool, String> {
    let mut asked = false;
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        match (key, value) {
            ("fail", "full") => asked = true,
            ("fail", other) => return Err(format!("fail={other} is not known; fail=full is\n")),
            _ => {}
        }
    }
    Ok(asked)
}

/// The metrics, family by family.
struct Families {
    metrics: Arc<Metrics>,
    next: usize,
}

impl Pieces for Families {
    async fn next(&mut self) -> Option<Bytes> {
        let family = self.metrics.encode_family(self.next)?;
        self.next += 1;
        Some(family.into())
    }
}

/// Open connections, page by page, as the text of a [`Listing`](crate::account::view::Listing).
struct Listed {
    admin: Arc<Admin>,
    filter: Filter,
    /// So many more may be told.
    left: usize,
    /// What comes next, and one more if there is more.
    page: Vec<Connection>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Begins,
    GoesOn,
    Ended,
}

impl Listed {
    /// Asks for the connections behind the one of this number.
    async fn turn_to(&mut self, after: Option<u64>) {
        let most = self.left.min(PAGE) + 1;
        let filter = &self.filter;
        let asked = |reply| Asked::List { filter: filter.clone(), after, most, reply };
        self.page = self.admin.ask(asked).await.into_iter().flatten().collect();
        self.page.sort_by_key(|one| one.id);
        self.page.truncate(most);
    }
}

impl Pieces for Listed {
    async fn next(&mut self) -> Option<Bytes> {
        let mut text = match self.state {
            State::Begins => br#"{"connections":["#.to_vec(),
            State::GoesOn => vec![b','],
            State::Ended => return None,
        };
        let told = self.page.len().min(self.left.min(PAGE));
        let more = self.page.len() > told;
        self.left -= told;
        for (index, one) in self.page[..told].iter().enumerate() {
            if index > 0 {
                text.push(b',');
            }
            if let Err(error) = serde_json::to_writer(&mut text, one) {
                tracing::error!(%error, "admin: a connection cannot be told");
                return None;
            }
        }
        self.state = State::GoesOn;
        if more && self.left > 0 {
            let last = self.page[..told].last().map(|one| one.id);
            self.turn_to(last).await;
            // All of them may have ended meanwhile.
            if !self.page.is_empty() {
                return Some(text.into());
            }
        }
        self.state = State::Ended;
        text.extend_from_slice(if more && self.left == 0 {
            b"],\"more\":true}\n"
        } else {
            b"],\"more\":false}\n"
        });
        Some(text.into())
    }
}

fn json(value: &impl Serialize) -> Response<Answer> {
    match serde_json::to_string(value) {
        Ok(body) => of_type("application/json", text(StatusCode::OK, body + "\n")),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn of_type(kind: &'static str, mut response: Response<Answer>) -> Response<Answer> {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, body: String) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(Bytes::from(body)));
    *response.status_mut() = status;
    of_type("text/plain; charset=utf-8", response)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use snisplice_config::model::Limits;

    use super::*;

    fn admin(allow_close: bool) -> Arc<Admin> {
        let settings = Settings { allow_close, ..Settings::default() };
        let admission = Admission::new(&Limits::default());
        Arc::new(Admin::new(Arc::new(Metrics::new()), admission, &settings))
    }

    fn request(method: Method, uri: &str) -> Request<String> {
        let request = Request::builder().method(method).uri(uri).header("host", "127.0.0.1:9900");
        request.body(String::new()).unwrap()
    }

    async fn ask(allow_close: bool, method: Method, uri: &str) -> Response<Answer> {
        admin(allow_close).answer(Scope::Network, &request(method, uri)).await
    }

    #[tokio::test]
    async fn every_request_has_its_status() {
        for (allow_close, method, uri, status) in [
            (false, Method::GET, "/connections", 200),
            (false, Method::HEAD, "/connections?limit=3", 200),
            (false, Method::GET, "/connections?surprise=1", 400),
            (false, Method::GET, "/connections/7", 404),
            (false, Method::GET, "/connections/x", 404),
            (false, Method::GET, "/", 404),
            (false, Method::GET, "/ready", 503),
            (false, Method::GET, "/ready?fail=all", 400),
            (false, Method::GET, "/metrics", 200),
            (false, Method::DELETE, "/connections/7", 403),
            (false, Method::DELETE, "/connections", 403),
            (true, Method::DELETE, "/connections", 400),
            (true, Method::DELETE, "/connections?limit=1", 400),
            (true, Method::DELETE, "/connections?backend=shop&after=1", 400),
            (true, Method::DELETE, "/connections?carrier=fast", 400),
            (true, Method::DELETE, "/connections?backend=shop", 200),
            (true, Method::DELETE, "/connections?client=10.0.0.0/8", 200),
            (true, Method::DELETE, "/connections?client=10.0.0.0/40", 400),
            (true, Method::DELETE, "/connections?sni=www.example.com", 200),
            (true, Method::DELETE, "/connections/7", 404),
            (true, Method::POST, "/connections", 405),
            (true, Method::DELETE, "/metrics", 405),
        ] {
            let response = ask(allow_close, method.clone(), uri).await;
            assert_eq!(response.status().as_u16(), status, "{method} {uri}");
        }
        let refused = ask(true, Method::POST, "/connections").await;
        assert_eq!(refused.headers()[header::ALLOW], "GET, HEAD, DELETE");
        assert_eq!(ask(true, Method::PUT, "/ready").await.headers()[header::ALLOW], "GET, HEAD");
    }

    #[tokio::test]
    async fn who_asks_is_told_that_every_place_is_taken() {
        let admission = Admission::new(&Limits { connections: 1, ..Limits::default() });
        let admin = Arc::new(Admin::new(Arc::new(Metrics::new()), admission.clone(), &Settings::default()));
        admin.ready.store(true, Relaxed);
        let statuses = async || {
            let status = async |uri| {
                let request = request(Method::GET, uri);
                admin.answer(Scope::Network, &request).await.status().as_u16()
            };
            [status("/ready").await, status("/ready?fail=full").await]
        };
        assert_eq!(statuses().await, [200, 200]);
        let admitted = admission.admit([192, 0, 2, 1].into(), Instant::now()).unwrap();
        let permit = admitted.try_place().unwrap();
        assert_eq!(statuses().await, [200, 503]);
        drop(permit);
        assert_eq!(statuses().await, [200, 200]);
    }

    #[tokio::test]
    async fn an_address_for_probes_tells_nothing_else() {
        for (method, uri, status) in [
            (Method::GET, "/ready", 503),
            (Method::HEAD, "/ready", 503),
            (Method::GET, "/metrics", 404),
            (Method::GET, "/connections", 404),
            (Method::DELETE, "/connections/7", 404),
            (Method::POST, "/ready", 405),
        ] {
            let response = admin(true).answer(Scope::Ready, &request(method.clone(), uri)).await;
            assert_eq!(response.status().as_u16(), status, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn a_body_is_refused() {
        let mut request = request(Method::DELETE, "/connections/7");
        request.body_mut().push('x');
        assert_eq!(admin(true).answer(Scope::Network, &request).await.status(), 413);
    }

    /// One worker that has these connections.
    fn worker(ids: std::ops::Range<u64>) -> Ask {
        let (orders, mut asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Asked::List { after, most, reply, .. }) = asked.recv().await {
                let ids = ids.clone().filter(|id| after.is_none_or(|after| *id > after)).take(most);
                let _ = reply.send(ids.map(connection).collect());
            }
        });
        Box::new(move |request| drop(orders.send(request)))
    }

    fn connection(id: u64) -> Connection {
        let listener = "https".to_owned();
        Connection { id, listener, ..Connection::default() }
    }

    #[tokio::test]
    async fn pages_join_to_one_listing() {
        use http_body_util::BodyExt as _;
        let admin = admin(false);
        let workers = vec![worker(0..700), worker(700..1_500)];
        admin.asks(Askable { workers, orphans: mpsc::unbounded_channel().0 });
        for (query, ids, more) in [
            ("?limit=1500", 0..1_500, false),
            ("?limit=1499", 0..1_499, true),
            ("", 0..1_000, true),
            ("?limit=256", 0..256, true),
            ("?limit=1", 0..1, true),
            ("?after=1489", 1_490..1_500, false),
            ("?after=1499", 1_500..1_500, false),
            ("?limit=99999999999999", 0..1_500, false),
        ] {
            let uri = format!("/connections{query}");
            let answer = admin.answer(Scope::Network, &request(Method::GET, &uri)).await;
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let listing: crate::account::view::Listing = serde_json::from_slice(&body).unwrap();
            let told: Vec<u64> = listing.connections.iter().map(|one| one.id).collect();
            assert_eq!(told, ids.collect::<Vec<_>>(), "{query}");
            assert_eq!(listing.more, more, "{query}");
        }
    }
}
