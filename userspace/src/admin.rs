//! The admin endpoint: HTTP for probes, scrapers and operators, on the main thread, away from the workers.
//!
//! It asks nobody who they are: it is for an address that only operators reach.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    connections::{Closed, Filter, Listing, MOST, Query},
    limits::admission::Admission,
    log::log_limit,
    metrics::Metrics,
    roster::Request as Asked,
    worker::Order,
};

/// Prometheus' current text exposition format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
    asked: OnceLock<Askable>,
}

/// Who is asked for connections.
#[derive(Debug)]
pub struct Askable {
    /// Each has those that it accepted.
    pub workers: Vec<mpsc::UnboundedSender<Order>>,
    /// Those that were taken over from another process.
    pub orphans: mpsc::UnboundedSender<Asked>,
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
    pub fn new(metrics: Arc<Metrics>, admission: Arc<Admission>, allow_close: bool) -> Self {
        Self {
            metrics,
            ready: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            admission,
            allow_close,
            asked: OnceLock::new(),
        }
    }

    /// From now on these are asked for their connections.
    pub fn asks(&self, asked: Askable) {
        // Only the first time counts; there is no second.
        let _ = self.asked.set(asked);
    }

    /// Serves until dropped.
    pub async fn serve(self: Arc<Self>, socket: TcpListener) {
        loop {
            let stream = match socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log_limit!(warn, %error, "admin: cannot accept; trying again shortly");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(&request).await) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = served.await {
                    tracing::debug!(%error, "admin: connection failed");
                }
            });
        }
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let target = Target::of(request.uri().path());
        let query = request.uri().query().unwrap_or_default();
        match (request.method(), &target) {
            (_, Target::Unknown) => text(StatusCode::NOT_FOUND, "/ready\n/metrics\n/connections\n".into()),
            (&Method::GET | &Method::HEAD, Target::Ready) => self.ready(query),
            (&Method::GET | &Method::HEAD, Target::Metrics) => self.metrics(),
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
    fn ready(&self, query: &str) -> Response<Full<Bytes>> {
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

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.metrics.encode() {
            Ok(metrics) => of_type(METRICS_TYPE, text(StatusCode::OK, metrics)),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn list(&self, id: Option<u64>, query: &str) -> Response<Full<Bytes>> {
        let Query { filter, limit } = match Query::parse(query) {
            Ok(query) => query,
            Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        let filter = Filter { id, ..filter };
        let limit = limit.unwrap_or(MOST);
        // One more than wanted tells that there are more.
        let most = limit.saturating_add(1);
        let parts = self.ask(|reply| Asked::List { filter: filter.clone(), most, reply }).await;
        let mut connections: Vec<_> = parts.into_iter().flatten().collect();
        if id.is_some() && connections.is_empty() {
            return text(StatusCode::NOT_FOUND, "there is no such connection\n".into());
        }
        connections.sort_by_key(|one| one.id);
        let more = connections.len() > limit;
        connections.truncate(limit);
        json(&Listing { connections, more })
    }

    async fn close(&self, id: Option<u64>, query: &str) -> Response<Full<Bytes>> {
        if !self.allow_close {
            let remedy = "closing is not allowed here: start with --admin-close, or set admin.allow_close\n";
            return text(StatusCode::FORBIDDEN, remedy.into());
        }
        let filter = match Query::parse(query) {
            Ok(Query { limit: Some(_), .. }) => {
                return text(StatusCode::BAD_REQUEST, "a limit is for GET only\n".into());
            }
            Ok(Query { filter, limit: None }) => Filter { id, ..filter },
            Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
        };
        if filter.is_empty() {
            let which = "say which: /connections/ID, or a filter such as /connections?backend=NAME\n";
            return text(StatusCode::BAD_REQUEST, which.into());
        }
        let closed = self.ask(|reply| Asked::Close { filter: filter.clone(), reply }).await.into_iter().sum();
        tracing::info!(?filter, closed, "admin: closing connections");
        if id.is_some() && closed == 0 {
            return text(StatusCode::NOT_FOUND, "there is no such connection\n".into());
        }
        json(&Closed { closed })
    }

    /// Asks all, and waits for their answers. One that has ended has none.
    async fn ask<T>(&self, request: impl Fn(mpsc::UnboundedSender<T>) -> Asked) -> Vec<T> {
        let (reply, mut replies) = mpsc::unbounded_channel();
        if let Some(Askable { workers, orphans }) = self.asked.get() {
            for worker in workers {
                let _ = worker.send(Order::Ask(request(reply.clone())));
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

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(body) => of_type("application/json", text(StatusCode::OK, body + "\n")),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn of_type(kind: &'static str, mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use snisplice_config::model::Limits;

    use super::*;

    async fn ask(allow_close: bool, method: Method, uri: &str) -> Response<Full<Bytes>> {
        let admission = Admission::new(&Limits::default());
        let admin = Admin::new(Arc::new(Metrics::new()), admission, allow_close);
        admin.answer(&Request::builder().method(method).uri(uri).body(()).unwrap()).await
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
            (true, Method::DELETE, "/connections?carrier=fast", 400),
            (true, Method::DELETE, "/connections?backend=shop", 200),
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
        let admin = Admin::new(Arc::new(Metrics::new()), admission.clone(), false);
        admin.ready.store(true, Relaxed);
        let statuses = async || {
            let status = async |uri| {
                let request = Request::builder().uri(uri).body(()).unwrap();
                admin.answer(&request).await.status().as_u16()
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
}
