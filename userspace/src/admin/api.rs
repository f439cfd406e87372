//! The requests of the admin endpoint: routes, handlers and status codes.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::{
    Router,
    extract::{RawQuery, Request, State},
    http::{
        StatusCode, Uri,
        header::{ALLOW, CONTENT_TYPE},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::body::Body as _;
use serde::Serialize;
use snisplice_config::model::Target;
use tokio::{sync::oneshot, time::timeout};

use super::{
    Admin, Scope,
    backends::Backends,
    body, explain, guard,
    pages::{Families, Listed},
    routes::Routes,
};
use crate::{
    account::{
        registry::RegistryRequest,
        view::{Changed, Closed, Filter, LONGEST, MOST, Query, Reloaded},
    },
    metrics::labels::CloseReason,
    snapshot::SharedSnapshot,
    upstream::{
        health_collector::SharedWatchlist,
        overrides::{Change, Override},
    },
};

/// Prometheus' current text exposition format.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The time limit of a scrape for the workers to count the bytes of open connections.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);

/// A refused or failed request: the status, and a line with the reason or the remedy.
type TextReply = (StatusCode, String);

/// The requests that an address of this scope serves.
pub(super) fn router(admin: Arc<Admin>, scope: Scope) -> Router {
    let router = Router::new()
        .route("/ready", get(ready).fallback(async || only("GET, HEAD")))
        .route("/healthz/ready", get(status).fallback(async || only("GET, HEAD")))
        .route("/livez", get(async || StatusCode::OK).fallback(async || only("GET, HEAD")));
    let router = match scope {
        Scope::Probes => {
            router.fallback(async || (StatusCode::NOT_FOUND, "/ready\n/healthz/ready\n/livez\n"))
        }
        Scope::Local | Scope::Network => router
            .route("/metrics", get(metrics).fallback(async || only("GET, HEAD")))
            .route("/backends", get(backends).fallback(async || only("GET, HEAD")))
            .route("/config", get(config).fallback(async || only("GET, HEAD")))
            .route("/routes", get(routes).fallback(async || only("GET, HEAD")))
            .route("/explain", get(explained).fallback(async || only("GET, HEAD")))
            .route("/connections", get(list).delete(close).fallback(async || only("GET, HEAD, DELETE")))
            .route("/connections/{id}", get(list).delete(close).fallback(async || only("GET, HEAD, DELETE")))
            .route("/reload", post(reload).fallback(async || only("POST")))
            .route("/drain", post(drain).fallback(async || only("POST")))
            .route("/undrain", post(undrain).fallback(async || only("POST")))
            .route("/weight", post(weight).fallback(async || only("POST")))
            .fallback(async || not_found()),
    };
    // A layer of the whole router also covers its fallback, so every request passes it.
    let guarded = move |State(admin): State<Arc<Admin>>, request: Request, next: Next| async move {
        match allow(scope, &admin, &request) {
            Ok(()) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        }
    };
    router.layer(middleware::from_fn_with_state(admin.clone(), guarded)).with_state(admin)
}

/// Whether a request may reach a handler.
fn allow(scope: Scope, admin: &Admin, request: &Request) -> Result<(), TextReply> {
    match scope {
        Scope::Network => guard::check(request, &admin.hosts)?,
        Scope::Local => guard::no_origin(request.headers())?,
        Scope::Probes => {}
    }
    if request.body().is_end_stream() {
        Ok(())
    } else {
        Err((StatusCode::PAYLOAD_TOO_LARGE, "no request here has a body\n".into()))
    }
}

impl From<guard::Refused> for TextReply {
    fn from(refused: guard::Refused) -> Self {
        match refused {
            guard::Refused::Invalid(why) => (StatusCode::BAD_REQUEST, why.into()),
            guard::Refused::Forbidden(why) => (StatusCode::FORBIDDEN, why),
        }
    }
}

fn only(methods: &'static str) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, methods)], format!("only {methods}\n")).into_response()
}

fn not_found() -> TextReply {
    (
        StatusCode::NOT_FOUND,
        "/ready\n/metrics\n/config\n/routes\n/explain\n/connections\n/backends\n/reload\n/drain\n/undrain\n/weight\n".into(),
    )
}

fn no_such_connection() -> TextReply {
    (StatusCode::NOT_FOUND, "there is no such connection\n".into())
}

/// Whether new connections are welcome. A process at its limit keeps serving, and clients wait for a slot. Only a
/// request with `fail=full` then gets "not ready". Otherwise a burst of clients would take one process after another
/// out of service.
async fn ready(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Result<TextReply, TextReply> {
    let fails_when_full = fails_when_full(query.as_deref().unwrap_or_default())?;
    if !admin.ready.load(Relaxed) {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "not accepting connections\n".into()));
    }
    let mut state =
        if admin.probing.load(Relaxed) { "ready, probing the kernel" } else { "ready" }.to_owned();
    let mut status = StatusCode::OK;
    if admin.admission.is_full() {
        let (most, _) = admin.admission.usage().connections;
        let full = format!("full: all {most} places are taken, and clients wait; see limits.connections");
        if fails_when_full {
            (status, state) = (StatusCode::SERVICE_UNAVAILABLE, full);
        } else {
            state = format!("{state}, {full}");
        }
    }
    Ok((status, state + "\n"))
}

/// The readiness check of Istio's gateways: the status code alone.
async fn status(State(admin): State<Arc<Admin>>) -> StatusCode {
    if admin.ready.load(Relaxed) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// Whether the query makes `/ready` fail while every slot is taken. Other keys are ignored, since caches on the path
/// may use them.
fn fails_when_full(query: &str) -> Result<bool, TextReply> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
    let mut asked = false;
    for (_, value) in pairs.iter().filter(|(key, value)| key == "fail" && !value.is_empty()) {
        if value != "full" {
            return Err((StatusCode::BAD_REQUEST, format!("fail={value} is not known; fail=full is\n")));
        }
        asked = true;
    }
    Ok(asked)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    // If a worker does not reply, the metrics lack its bytes and contain the rest.
    let count = async {
        // One count at a time: many scrapers cost the workers no more than one.
        let _turn = admin.counting.lock().await;
        admin.ask(|reply| RegistryRequest::Count { reply }).await
    };
    let _ = timeout(COUNTED_WITHIN, count).await;
    admin.metrics.forget_gone();
    let families = Families::new(admin.metrics.clone());
    ([(CONTENT_TYPE, METRICS_TYPE)], body::of(families).await).into_response()
}

/// The number of a connection in a path, if the path has one. Any other path segment there is not found.
fn number(uri: &Uri) -> Result<Option<u64>, TextReply> {
    // Not percent-decoded: a number has nothing to decode.
    uri.path().strip_prefix("/connections/").map(|id| id.parse().map_err(|_| not_found())).transpose()
}

fn parse(query: Option<&str>) -> Result<Query, TextReply> {
    Query::parse(query.unwrap_or_default()).map_err(|why| (StatusCode::BAD_REQUEST, format!("{why}\n")))
}

async fn list(
    State(admin): State<Arc<Admin>>,
    uri: Uri,
    RawQuery(query): RawQuery,
) -> Result<Response, TextReply> {
    let id = number(&uri)?;
    let Query { filter, limit, after } = parse(query.as_deref())?;
    let left = limit.unwrap_or(MOST).min(LONGEST);
    let listing = Listed::begin(admin, Filter { id, ..filter }, left, after).await;
    if id.is_some() && listing.is_empty() {
        return Err(no_such_connection());
    }
    Ok(([(CONTENT_TYPE, "application/json")], body::of(listing).await).into_response())
}

/// The backends with their endpoints and health: all, or `?backend=NAME`.
async fn backends(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Result<Response, TextReply> {
    let only = only_key(query.as_deref(), "backend")?;
    let (current, health) = shown(&admin)?;
    let backends = Backends::new(current.load_full(), health.clone(), only);
    Ok(([(CONTENT_TYPE, "application/json")], body::of(backends).await).into_response())
}

/// Every name pattern with its rule: all, or those of `?listener=NAME`.
async fn routes(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Result<Response, TextReply> {
    let only = only_key(query.as_deref(), "listener")?;
    let (current, _) = shown(&admin)?;
    let routes = Routes::new(current.load_full(), only);
    Ok(([(CONTENT_TYPE, "application/json")], body::of(routes).await).into_response())
}

/// The rule of `?sni=NAME`, or of a hello without a name, and the state of its endpoints.
async fn explained(
    State(admin): State<Arc<Admin>>,
    RawQuery(query): RawQuery,
) -> Result<Response, TextReply> {
    let (current, health) = shown(&admin)?;
    let answer = explain::answer(&current.load(), health, query.as_deref().unwrap_or_default());
    let answer = answer.map_err(|why| (StatusCode::BAD_REQUEST, format!("{why}\n")))?;
    Ok(json(&answer))
}

/// The configuration in service, its findings, and the newer one that was refused.
async fn config(State(admin): State<Arc<Admin>>) -> Result<Response, TextReply> {
    let (current, _) = shown(&admin)?;
    let loaded = admin.loaded();
    let Some(loaded) = &*loaded else { return Err(not_serving()) };
    Ok(json(&loaded.view(&current.load())))
}

/// The value of the only key that a query may have.
fn only_key(query: Option<&str>, known: &str) -> Result<Option<String>, TextReply> {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query.unwrap_or_default()).unwrap_or_default();
    let mut only = None;
    for (key, value) in pairs {
        if key != known {
            return Err((StatusCode::BAD_REQUEST, format!("{key} is not known; {known}=NAME is\n")));
        }
        only = Some(value);
    }
    Ok(only)
}

/// The configuration in service, and the health of its endpoints.
fn shown(admin: &Admin) -> Result<&(Arc<SharedSnapshot>, SharedWatchlist), TextReply> {
    admin.shown.get().ok_or_else(not_serving)
}

fn not_serving() -> TextReply {
    (StatusCode::SERVICE_UNAVAILABLE, "not serving yet\n".into())
}

/// A response of one JSON object on one line.
fn json(answer: &impl Serialize) -> Response {
    match serde_json::to_string(answer) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn close(
    State(admin): State<Arc<Admin>>,
    uri: Uri,
    RawQuery(query): RawQuery,
) -> Result<Response, TextReply> {
    let id = number(&uri)?;
    if !admin.allow_close {
        let remedy = "closing is not allowed here: start with --admin-close, or set admin.allow_close\n";
        return Err((StatusCode::FORBIDDEN, remedy.into()));
    }
    let filter = match parse(query.as_deref())? {
        Query { filter, limit: None, after: None } => Filter { id, ..filter },
        _ => return Err((StatusCode::BAD_REQUEST, "limit and after are for GET only\n".into())),
    };
    if filter.is_empty() {
        let which = "say which: /connections/ID, or a filter such as /connections?backend=NAME\n";
        return Err((StatusCode::BAD_REQUEST, which.into()));
    }
    let closed = admin.close_all(&filter, CloseReason::ClosedByAdmin).await;
    tracing::info!(?filter, closed, "admin: closing connections");
    if id.is_some() && closed == 0 {
        return Err(no_such_connection());
    }
    Ok(json(&Closed { closed }))
}

/// Refuses changes that the operator has not allowed.
fn may_change(admin: &Admin) -> Result<(), TextReply> {
    if admin.allow_changes {
        return Ok(());
    }
    let remedy = "changes are not allowed here: start with --admin-changes, or set admin.allow_changes\n";
    Err((StatusCode::FORBIDDEN, remedy.into()))
}

/// Reads the configuration again. The reply has the number of the new configuration, or its errors.
async fn reload(State(admin): State<Arc<Admin>>) -> Result<Response, TextReply> {
    may_change(&admin)?;
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, "not reloaded: this process does not serve\n".to_owned());
    let (reply, result) = oneshot::channel();
    let reloads = admin.reloads.get().ok_or_else(gone)?;
    reloads.send(reply).map_err(|_| gone())?;
    tracing::info!("admin: reload");
    match result.await.map_err(|_| gone())? {
        Ok(generation) => Ok(json(&Reloaded { generation })),
        Err(why) => {
            let why = format!("the last good configuration keeps serving: {}\n", why.trim());
            Err((StatusCode::UNPROCESSABLE_ENTITY, why))
        }
    }
}

async fn drain(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Result<Response, TextReply> {
    let asked = Asked::parse(query.as_deref(), false)?;
    change(&admin, &asked, Change::Drain)
}

async fn undrain(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Result<Response, TextReply> {
    let asked = Asked::parse(query.as_deref(), false)?;
    change(&admin, &asked, Change::Undrain)
}

async fn weight(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Result<Response, TextReply> {
    let asked = Asked::parse(query.as_deref(), true)?;
    change(&admin, &asked, Change::Weight(asked.weight))
}

/// The endpoint of a change, and its weight.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    backend: String,
    endpoint: SocketAddr,
    /// `None` is the configured one.
    weight: Option<u32>,
}

impl Asked {
    fn parse(query: Option<&str>, has_weight: bool) -> Result<Self, TextReply> {
        let example = if has_weight { "&weight=NUMBER, or &weight=configured" } else { "" };
        let usage = |why: String| {
            let why = format!("{why}: write ?backend=NAME&endpoint=ADDRESS:PORT{example}\n");
            (StatusCode::BAD_REQUEST, why)
        };
        let pairs: Vec<(String, String)> =
            serde_urlencoded::from_str(query.unwrap_or_default()).unwrap_or_default();
        let (mut backend, mut endpoint, mut weight) = (None, None, None);
        for (key, value) in pairs {
            match key.as_str() {
                "backend" => backend = Some(value),
                "endpoint" => {
                    let parsed = value
                        .parse()
                        .map_err(|_| usage(format!("'{value}' is not an address and a port")))?;
                    endpoint = Some(parsed);
                }
                "weight" if has_weight && value == "configured" => weight = Some(None),
                "weight" if has_weight => {
                    let parsed = value.parse().ok().filter(|weight| *weight <= Target::MAX_WEIGHT);
                    let most = Target::MAX_WEIGHT;
                    let parsed =
                        parsed.ok_or_else(|| usage(format!("'{value}' is not a number from 0 to {most}")))?;
                    weight = Some(Some(parsed));
                }
                other => return Err(usage(format!("'{other}' is not known"))),
            }
        }
        match (backend, endpoint, weight) {
            (Some(_), Some(_), None) if has_weight => Err(usage("the weight is missing".into())),
            (Some(backend), Some(endpoint), weight) => {
                Ok(Self { backend, endpoint, weight: weight.flatten() })
            }
            _ => Err(usage("the backend or the endpoint is missing".into())),
        }
    }
}

/// Changes an endpoint until the next start of the process.
fn change(admin: &Admin, asked: &Asked, change: Change) -> Result<Response, TextReply> {
    may_change(admin)?;
    let (current, _) = shown(admin)?;
    let Asked { backend, endpoint, .. } = asked;
    let snapshot = current.load();
    let Some(cluster) = snapshot.clusters().iter().find(|cluster| *cluster.name == **backend) else {
        return Err((StatusCode::NOT_FOUND, format!("there is no backend '{backend}': see /backends\n")));
    };
    let Some(result) = cluster.change(*endpoint, change) else {
        let why = format!("'{backend}' has no endpoint {endpoint}: see /backends?backend={backend}\n");
        return Err((StatusCode::NOT_FOUND, why));
    };
    let Override { drained, weight } = result;
    tracing::info!(%backend, %endpoint, drained, ?weight, "admin: endpoint changed until the next start");
    let changed = Changed { backend: backend.clone(), endpoint: *endpoint, drained, weight };
    Ok(json(&changed))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::http::{Method, Request};
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use snisplice_config::model::{Admin as Settings, Capacity, Limits};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        account::{registry::RegistryRequest, view::ConnectionView},
        admin::{Ask, Askable},
        limits::admission::{Admission, Group},
        metrics::Metrics,
    };

    fn admin(allow_close: bool) -> Arc<Admin> {
        let settings = Settings { allow_close, ..Settings::default() };
        let admission = Admission::new(Capacity::default().connections, &Limits::default());
        Arc::new(Admin::new(Arc::new(Metrics::new()), admission, &settings))
    }

    fn request(method: Method, uri: &str) -> Request<String> {
        let request = Request::builder().method(method).uri(uri).header("host", "127.0.0.1:9900");
        request.body(String::new()).unwrap()
    }

    async fn answer(admin: &Arc<Admin>, scope: Scope, request: Request<String>) -> Response {
        let Ok(response) = TowerToHyperService::new(router(admin.clone(), scope)).call(request).await;
        response
    }

    async fn ask(allow_close: bool, method: Method, uri: &str) -> Response {
        answer(&admin(allow_close), Scope::Network, request(method, uri)).await
    }

    #[tokio::test]
    async fn every_request_has_its_status() {
        for (allow_close, method, uri, status) in [
            (false, Method::GET, "/connections", 200),
            (false, Method::HEAD, "/connections?limit=3", 200),
            (false, Method::GET, "/connections?surprise=1", 400),
            (false, Method::GET, "/connections/7", 404),
            (false, Method::GET, "/connections/x", 404),
            (false, Method::GET, "/connections/%ff", 404),
            (false, Method::GET, "/", 404),
            (false, Method::GET, "/ready", 503),
            (false, Method::GET, "/ready?fail=all", 400),
            (false, Method::GET, "/ready?fail", 503),
            (false, Method::GET, "/connections?backend=a+b", 400),
            (false, Method::GET, "/metrics", 200),
            (false, Method::GET, "/config", 503),
            (false, Method::GET, "/explain?sni=a", 503),
            (false, Method::GET, "/routes?backend=a", 400),
            (false, Method::POST, "/routes", 405),
            (false, Method::DELETE, "/connections/7", 403),
            (false, Method::DELETE, "/connections", 403),
            (true, Method::DELETE, "/connections", 400),
            (true, Method::DELETE, "/connections?limit=1", 400),
            (true, Method::DELETE, "/connections?backend=shop&after=1", 400),
            (true, Method::DELETE, "/connections?datapath=fast", 400),
            (true, Method::DELETE, "/connections?backend=shop", 200),
            (true, Method::DELETE, "/connections?client=10.0.0.0/8", 200),
            (true, Method::DELETE, "/connections?client=10.0.0.0/40", 400),
            (true, Method::DELETE, "/connections?sni=www.example.com", 200),
            (true, Method::DELETE, "/connections/7", 404),
            (true, Method::POST, "/connections", 405),
            (true, Method::DELETE, "/metrics", 405),
            (true, Method::GET, "/reload", 405),
            (true, Method::POST, "/reload", 403),
            (true, Method::GET, "/drain", 405),
            (true, Method::POST, "/drain", 400),
            (true, Method::POST, "/drain?backend=a&endpoint=10.0.0.1", 400),
            (true, Method::POST, "/drain?backend=a&endpoint=10.0.0.1:1&weight=1", 400),
            (true, Method::POST, "/drain?backend=a&endpoint=10.0.0.1:1", 403),
            (true, Method::POST, "/weight?backend=a&endpoint=10.0.0.1:1", 400),
            (true, Method::POST, "/weight?backend=a&endpoint=10.0.0.1:1&weight=1000001", 400),
            (true, Method::POST, "/weight?backend=a&endpoint=10.0.0.1:1&weight=configured", 403),
        ] {
            let response = ask(allow_close, method.clone(), uri).await;
            assert_eq!(response.status().as_u16(), status, "{method} {uri}");
        }
        let refused = ask(true, Method::POST, "/connections").await;
        assert_eq!(refused.headers()[ALLOW], "GET, HEAD, DELETE");
        assert_eq!(ask(true, Method::PUT, "/ready").await.headers()[ALLOW], "GET, HEAD");
    }

    #[tokio::test]
    async fn who_asks_is_told_that_every_place_is_taken() {
        let admission = Admission::new(1, &Limits::default());
        let admin = Arc::new(Admin::new(Arc::new(Metrics::new()), admission.clone(), &Settings::default()));
        admin.ready.store(true, Relaxed);
        let statuses = async || {
            let status = async |uri| {
                let request = request(Method::GET, uri);
                answer(&admin, Scope::Network, request).await.status().as_u16()
            };
            [status("/ready").await, status("/ready?fail=full").await]
        };
        assert_eq!(statuses().await, [200, 200]);
        let admitted = admission
            .admit(Some([192, 0, 2, 1].into()), Group { name: "any", access: None }, Instant::now())
            .unwrap();
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
            (Method::GET, "/healthz/ready", 503),
            (Method::HEAD, "/healthz/ready", 503),
            (Method::GET, "/livez", 200),
            (Method::POST, "/livez", 405),
            (Method::GET, "/healthz", 404),
            (Method::GET, "/healthz/ready/", 404),
            (Method::GET, "/metrics", 404),
            (Method::GET, "/connections", 404),
            (Method::GET, "/config", 404),
            (Method::GET, "/explain?sni=a", 404),
            (Method::DELETE, "/connections/7", 404),
            (Method::POST, "/reload", 404),
            (Method::POST, "/ready", 405),
        ] {
            let response = answer(&admin(true), Scope::Probes, request(method.clone(), uri)).await;
            assert_eq!(response.status().as_u16(), status, "{method} {uri}");
        }
        let ready = admin(false);
        ready.ready.store(true, Relaxed);
        let response = answer(&ready, Scope::Probes, request(Method::GET, "/healthz/ready")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.into_body().is_end_stream(), "the body is empty");
    }

    #[tokio::test]
    async fn a_body_is_refused() {
        let mut request = request(Method::DELETE, "/connections/7");
        request.body_mut().push('x');
        assert_eq!(answer(&admin(true), Scope::Network, request).await.status(), 413);
    }

    /// A worker that has these connections.
    fn worker(ids: std::ops::Range<u64>) -> Ask {
        let (orders, mut asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(RegistryRequest::List { after, most, reply, .. }) = asked.recv().await {
                let ids = ids.clone().filter(|id| after.is_none_or(|after| *id > after)).take(most);
                let _ = reply.send(ids.map(connection).collect());
            }
        });
        Box::new(move |request| drop(orders.send(request)))
    }

    fn connection(id: u64) -> ConnectionView {
        let listener = "https".to_owned();
        ConnectionView { id, listener, ..ConnectionView::default() }
    }

    #[tokio::test]
    async fn pages_join_to_one_listing() {
        use http_body_util::BodyExt as _;
        let admin = admin(false);
        let workers = vec![worker(0..700), worker(700..1_500)];
        admin.asks(Askable { workers, adopted: mpsc::unbounded_channel().0 });
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
            let response = answer(&admin, Scope::Network, request(Method::GET, &uri)).await;
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let listing: crate::account::view::Listing = serde_json::from_slice(&body).unwrap();
            let told: Vec<u64> = listing.connections.iter().map(|one| one.id).collect();
            assert_eq!(told, ids.collect::<Vec<_>>(), "{query}");
            assert_eq!(listing.more, more, "{query}");
        }
    }
}
