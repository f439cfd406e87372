//! Requests over real sockets: through a session, to backends that report exactly the received bytes.

use std::{
    cell::RefCell,
    io::{Read as _, Write as _},
    net::{TcpListener as StdListener, TcpStream as StdStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use snisplice_config::{
    Options, Source, load,
    model::{
        BackendId, Model, Origin, PeerTimeouts, Route, Target,
        http::{
            BackendHttp, Forward, HeaderChanges, HeaderText, HttpAction, HttpMatch, HttpRule, HttpTable,
            HttpsRedirect, PlainHttp, Retries, StringMatch, VirtualHost,
        },
    },
    name::HostPattern,
};
use tokio::runtime::{Builder, LocalOptions};

use super::*;
use crate::{
    account::{Account, ListenerAccount, registry::Registry},
    datapath::{relay::Relay, seam::Patience},
    http::connection::Worker,
    metrics::Metrics,
    net::keepalive::Keepalive,
    proxy::session,
    snapshot::{SharedSnapshot, Snapshot},
};

#[path = "vectors.rs"]
mod vectors;

#[test]
fn a_request_is_told_from_tls() {
    for first in
        [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0", b"OPTIONS * ", b"\r\nGET /", b"VERSION-CONTROL /"]
    {
        assert_eq!(is_request(first), Some(true), "{first:?}");
    }
    for first in [
        &b"\x16\x03\x01"[..],
        b"\x80\x2e\x01",
        b"get / ",
        b"SSH-2.0-x",
        b" / HTTP",
        b"AAAAAAAAAAAAAAAAAAAAAAAA",
        b"\r\n\r\n",
    ] {
        assert_eq!(is_request(first), Some(false), "{first:?}");
    }
    for first in [&b""[..], b"G", b"GET", b"\r\n"] {
        assert_eq!(is_request(first), None, "{first:?}");
    }
}

/// A listener that serves requests by the given rules while the test runs.
struct Rig {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    drain: tokio::sync::mpsc::UnboundedSender<()>,
}

/// Backends by name, and their rules.
struct Plan {
    backends: Vec<(&'static str, SocketAddr, BackendHttp)>,
    rules: Vec<HttpRule>,
    redirect: Option<HttpsRedirect>,
    change: fn(&mut Model),
}

impl Plan {
    fn new(backends: &[(&'static str, SocketAddr)]) -> Self {
        let backends = backends.iter().map(|(name, address)| (*name, *address, BackendHttp::Http1)).collect();
        Self { backends, rules: Vec::new(), redirect: None, change: |_| {} }
    }

    /// Adds a rule for paths with this prefix. The targets are indices of backends, with weights.
    fn rule(mut self, prefix: &str, targets: &[(Option<usize>, u32)], forward: Forward) -> Self {
        let target = |(backend, weight): &(Option<usize>, u32)| Target {
            weight: *weight,
            backend: backend.map(BackendId),
        };
        let rule = Route {
            id: self.rules.len() + 1,
            name: format!("rule {prefix}"),
            origin: Origin { file: "test".into(), line: 1, column: 1 },
            targets: targets.iter().map(target).collect(),
        };
        let uri = StringMatch::Prefix(prefix.to_owned());
        self.rules.push(HttpRule {
            rule: Arc::new(rule),
            matches: vec![HttpMatch { uri: Some(uri), ..HttpMatch::default() }],
            action: HttpAction::Forward(forward),
            request_headers: HeaderChanges {
                set: vec![("x-rule".into(), HeaderText::parse(prefix).unwrap())],
                ..HeaderChanges::default()
            },
            response_headers: HeaderChanges {
                set: vec![("x-answer".into(), HeaderText::parse("changed").unwrap())],
                ..HeaderChanges::default()
            },
        });
        self
    }

    fn model(self, listener: SocketAddr) -> Model {
        let backends: Vec<String> = self
            .backends
            .iter()
            .map(|(name, address, _)| format!("{{name: {name}, endpoints: ['{address}']}}"))
            .collect();
        let text = format!(
            "listeners: [{{name: plain, bind: '{listener}'}}]\nroutes: [{{sni: [a.test], backends: [{{name: {}}}]}}]\nbackends: [{}]\n",
            self.backends[0].0,
            backends.join(", ")
        );
        let source = Source { name: "test".to_owned(), text };
        let translation = load(&[source].into_iter().collect(), &Options::default());
        let mut model = translation.model.unwrap_or_else(|| panic!("{:?}", translation.diagnostics));
        for (backend, (_, _, http)) in model.backends.iter_mut().zip(&self.backends) {
            backend.http = *http;
        }
        model.rules += self.rules.len();
        let host = VirtualHost {
            pattern: HostPattern::Any,
            https_redirect: self.redirect,
            rules: self.rules.into_iter().map(Arc::new).collect(),
        };
        model.listeners[0].plain_http = Some(PlainHttp {
            name: "test".into(),
            origin: Origin { file: "test".into(), line: 1, column: 1 },
            table: Arc::new(HttpTable { hosts: vec![host] }),
        });
        (self.change)(&mut model);
        model
    }

    fn start(self) -> Rig {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let model = self.model(address);
        let metrics = Arc::new(Metrics::new());
        let (drain, mut drains) = tokio::sync::mpsc::unbounded_channel();
        let shared = metrics.clone();
        thread::spawn(move || {
            let runtime =
                Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
            runtime.block_on(async move {
                let service = Rc::new(Service {
                    current: Arc::new(SharedSnapshot::from_pointee(Snapshot::new(model, 1))),
                    metrics: shared.clone(),
                    datapath: Rc::new(Relay::new(Duration::from_secs(60))),
                    keepalive: Rc::new(Keepalive::of(&PeerTimeouts::default())),
                    patience: Patience::of(&PeerTimeouts::default()),
                    registry: Rc::default(),
                    races: Cell::default(),
                    listening: RefCell::default(),
                    http: Rc::new(Worker::new(&shared)),
                });
                let account =
                    Rc::new(ListenerAccount::new(&shared, &"plain".into(), &service.registry).at(address));
                let admission = Admission::new(1024, &service.current.load().model.runtime.limits);
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (client, peer) = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap(),
                        Some(()) = drains.recv() => {
                            service.http.drain.cancel();
                            continue;
                        }
                    };
                    let permit = admission.admit(Some(peer.ip()), Instant::now()).unwrap().place().await;
                    let registration = Registry::register(Account::open(&account));
                    let client = client.into_std().unwrap();
                    tokio::task::spawn_local(session::serve(client, registration, service.clone(), permit));
                }
            });
        });
        Rig { address, metrics, drain }
    }
}

impl Rig {
    fn connect(&self) -> StdStream {
        let client = StdStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }

    /// Sends bytes, and reads until the connection ends.
    fn say(&self, bytes: &[u8]) -> String {
        let mut client = self.connect();
        // A client may be refused before all bytes are sent.
        let _ = client.write_all(bytes);
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str) -> String {
        self.say(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").as_bytes())
    }
}

/// An HTTP/1 backend with persistent connections. It answers each request with the result of `answer`.
struct Backend {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    fn start(answer: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Self {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, seen, answer) = (connections.clone(), requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for client in listener.incoming() {
                counted.fetch_add(1, SeqCst);
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || {
                    let mut client = client.unwrap();
                    while let Some(head) = read_head(&mut client) {
                        let count = {
                            let mut seen = seen.lock().unwrap();
                            seen.push(head.clone());
                            seen.len()
                        };
                        let answer = answer(&head, count);
                        if answer.is_empty() || client.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, connections, requests }
    }

    fn named(name: &'static str) -> Self {
        Self::start(move |_, _| ok(name))
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nServer: mine\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn read_head(client: &mut StdStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn read_answer(client: &mut StdStream) -> (String, String) {
    let head = read_head(client).expect("an answer");
    let length = head
        .to_lowercase()
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).unwrap();
    (head, String::from_utf8_lossy(&body).into_owned())
}

fn to(index: usize) -> [(Option<usize>, u32); 1] {
    [(Some(index), 1)]
}

#[test]
fn requests_of_one_connection_go_where_their_paths_lead_and_connections_are_kept() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let rig = Plan::new(&[("a", a.address), ("b", b.address)])
        .rule("/b", &to(1), Forward::default())
        .rule("/", &to(0), Forward::default())
        .start();
    let mut client = rig.connect();
    for path in ["/x", "/b/../b/%62", "/y", "/b"] {
        write!(client, "GET {path} HTTP/1.1\r\nHost: a.test:1\r\nX-Forwarded-For: 10.9.9.9\r\nConnection: x-own\r\nX-Own: 1\r\n\r\n").unwrap();
        let (head, body) = read_answer(&mut client);
        assert!(
            head.starts_with("HTTP/1.1 200")
                && head.contains("server: snisplice")
                && head.contains("x-answer: changed"),
            "{head}"
        );
        assert_eq!(body, if path.starts_with("/b") { "b" } else { "a" });
    }
    let seen = b.requests();
    assert!(seen[0].starts_with("GET /b/b HTTP/1.1\r\n"), "{seen:?}");
    assert!(
        seen[0].contains("host: a.test:1\r\n") && seen[0].contains("x-forwarded-for: 127.0.0.1\r\n"),
        "{seen:?}"
    );
    assert!(
        seen[0].contains("x-forwarded-proto: http\r\n") && seen[0].contains("x-rule: /b\r\n"),
        "{seen:?}"
    );
    assert!(
        seen[0].contains("x-request-id: ") && !seen[0].contains("x-own") && !seen[0].contains("10.9.9.9"),
        "{seen:?}"
    );
    assert_eq!((a.connections.load(SeqCst), b.connections.load(SeqCst)), (1, 1));
    let text = rig.metrics.encode().unwrap();
    assert!(text.contains("snisplice_http_requests_total{route=\"rule /b\",code=\"200\"} 2"), "{text}");
}

#[test]
fn what_no_rule_serves_is_answered_here() {
    let a = Backend::named("a");
    let mut plan = Plan::new(&[("a", a.address)]).rule("/a", &to(0), Forward::default());
    assert!(plan.rules.len() == 1 && plan.redirect.is_none());
    let rig = Plan { change: |_| {}, ..plan }.start();
    assert!(rig.get("/b").starts_with("HTTP/1.1 404"));
    plan = Plan::new(&[("a", a.address)]).rule("/", &to(0), Forward::default());
    plan.redirect = Some(HttpsRedirect { port: 443 });
    let answer = plan.start().get("/x?q=1");
    assert!(
        answer.starts_with("HTTP/1.1 301") && answer.contains("location: https://a.test/x?q=1\r\n"),
        "{answer}"
    );
    assert_eq!(a.requests().len(), 0);
}

#[test]
fn a_target_that_cannot_be_served_keeps_its_share() {
    let a = Backend::named("a");
    let rig =
        Plan::new(&[("a", a.address)]).rule("/", &[(Some(0), 3), (None, 1)], Forward::default()).start();
    let answers: Vec<String> = (0..8).map(|_| rig.get("/")).collect();
    let refused = answers
        .iter()
        .filter(|answer| answer.starts_with("HTTP/1.1 503") && answer.ends_with("no healthy upstream"))
        .count();
    let served = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 200")).count();
    assert_eq!((served, refused), (6, 2), "{answers:?}");
}

#[test]
fn a_backend_that_refuses_is_told_of_and_one_that_fails_is_tried_again() {
    let nobody = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rig = Plan::new(&[("a", nobody)]).rule("/", &to(0), Forward::default()).start();
    let answer = rig.get("/");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connection failure"), "{answer}");

    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
    let flaky = Backend::start(move |_, count| if count % 3 == 0 { ok("at last") } else { busy.into() });
    let rig = Plan::new(&[("a", flaky.address)])
        .rule(
            "/never",
            &to(0),
            Forward { retries: Retries { attempts: 0, ..Retries::default() }, ..Forward::default() },
        )
        .rule("/", &to(0), Forward::default())
        .start();
    assert!(rig.get("/").ends_with("at last"));
    assert!(rig.get("/never").ends_with("busy"));
}

#[test]
fn a_stale_connection_costs_no_request() {
    let closes = StdListener::bind("127.0.0.1:0").unwrap();
    let address = closes.local_addr().unwrap();
    let (told, may_close) = std::sync::mpsc::channel::<()>();
    thread::spawn(move || {
        for client in closes.incoming() {
            let mut client = client.unwrap();
            read_head(&mut client).unwrap();
            client.write_all(ok("once").as_bytes()).unwrap();
            // Reads the next request, and closes the connection.
            let _ = read_head(&mut client);
            let _ = may_close.try_recv();
        }
    });
    let retries = Retries { attempts: 0, ..Retries::default() };
    let rig =
        Plan::new(&[("a", address)]).rule("/", &to(0), Forward { retries, ..Forward::default() }).start();
    for _ in 0..3 {
        assert!(rig.get("/").ends_with("once"));
    }
    drop(told);
}

#[test]
fn a_backend_that_says_nothing_is_not_waited_for() {
    let silent = StdListener::bind("127.0.0.1:0").unwrap();
    let retries = Retries {
        attempts: 1,
        per_try_timeout: Some(Duration::from_millis(100)),
        on_reset: true,
        ..Retries::default()
    };
    let rig = Plan::new(&[("a", silent.local_addr().unwrap())])
        .rule("/try", &to(0), Forward { retries, ..Forward::default() })
        .rule("/", &to(0), Forward { timeout: Some(Duration::from_millis(200)), ..Forward::default() })
        .start();
    for path in ["/", "/try"] {
        let answer = rig.get(path);
        assert!(
            answer.starts_with("HTTP/1.1 504") && answer.ends_with("upstream request timeout"),
            "{answer}"
        );
    }
}

#[test]
fn bodies_are_passed_on_byte_by_byte_in_both_directions() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Echoes all bytes.
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            client.set_nonblocking(true).unwrap();
            thread::spawn(move || {
                let runtime =
                    Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
                runtime.block_on(async move {
                    let client = TcpStream::from_std(client).unwrap();
                    let echo = service_fn(|request: Request<Incoming>| async move {
                        Ok::<_, hyper::Error>(Response::new(request.into_body()))
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(client), echo)
                        .await;
                });
            });
        }
    });
    let rig = Plan::new(&[("a", address)]).rule("/", &to(0), Forward::default()).start();
    let pattern = |at: usize| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0];
    for chunked in [false, true] {
        let mut client = rig.connect();
        let mut sending = client.try_clone().unwrap();
        let sender = thread::spawn(move || {
            let length = if chunked {
                "Transfer-Encoding: chunked".to_owned()
            } else {
                format!("Content-Length: {SIZE}")
            };
            write!(
                sending,
                "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\n{length}\r\n\r\n"
            )
            .unwrap();
            let bytes: Vec<u8> = (0..SIZE).map(pattern).collect();
            for part in bytes.chunks(77_777) {
                if chunked {
                    write!(sending, "{:x};a=b\r\n", part.len()).unwrap();
                }
                sending.write_all(part).unwrap();
                if chunked {
                    sending.write_all(b"\r\n").unwrap();
                }
            }
            if chunked {
                sending.write_all(b"0\r\n\r\n").unwrap();
            }
        });
        let go_on = read_head(&mut client).unwrap();
        assert!(go_on.starts_with("HTTP/1.1 100"), "{go_on}");
        let head = read_head(&mut client).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        sender.join().unwrap();
        if chunked {
            answer = unchunk(&answer);
        }
        assert_eq!(answer.len(), SIZE);
        assert!(answer.iter().enumerate().all(|(at, byte)| *byte == pattern(at)));
    }
}

/// Bytes of a large body.
const SIZE: usize = 12_000_000;

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        bytes = &bytes[end + 2..];
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&bytes[..size]);
        bytes = &bytes[size + 2..];
    }
}

#[test]
fn another_protocol_is_passed_on_after_an_upgrade() {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let head = read_head(&mut client).unwrap().to_lowercase();
        assert!(
            head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"),
            "{head}"
        );
        client.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello").unwrap();
        let mut bytes = [0; 5];
        client.read_exact(&mut bytes).unwrap();
        bytes.reverse();
        client.write_all(&bytes).unwrap();
    });
    let rig = Plan::new(&[("a", address)]).rule("/", &to(0), Forward::default()).start();
    let mut client = rig.connect();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("sec-websocket-accept: x"), "{head}");
    let mut hello = [0; 5];
    client.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    // These bytes are no request line, and a request may not contain them.
    client.write_all(b"\0\nG\r\x16").unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"\x16\rG\n\0");
}

#[test]
fn slow_heads_and_bodies_are_not_waited_for() {
    let a = Backend::named("a");
    let mut plan = Plan::new(&[("a", a.address)]).rule("/", &to(0), Forward::default());
    plan.change = |model| {
        model.runtime.timeouts.hello = Duration::from_millis(300);
        model.runtime.http.body_timeout = Duration::from_millis(300);
    };
    let rig = plan.start();
    // Unfinished requests: no byte, a method, a head in small pieces, and a second request.
    for (begin, statuses) in [
        ("", &[][..]),
        ("GET", &["408"]),
        ("GET / HT", &["408"]),
        ("GET / HTTP/1.1\r\nHost: a\r\n", &["408"]),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT", &["200", "408"]),
    ] {
        let answer = rig.say(begin.as_bytes());
        let found: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(found, statuses, "{begin:?}: {answer}");
    }
    let stalled = Backend::start(|_, _| {
        thread::sleep(Duration::from_secs(60));
        String::new()
    });
    let mut plan = Plan::new(&[("a", stalled.address)]).rule("/", &to(0), Forward::default());
    plan.change = |model| model.runtime.http.body_timeout = Duration::from_millis(300);
    let answer = plan.start().say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[test]
fn a_head_has_its_limits() {
    let a = Backend::named("a");
    let rig = Plan::new(&[("a", a.address)]).rule("/", &to(0), Forward::default()).start();
    let with = |lines: &str| {
        rig.say(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n").as_bytes())
    };
    let many =
        |count: usize| (0..count).map(|at| ["x-", &at.to_string(), ": 1\r\n"].concat()).collect::<String>();
    assert!(with(&many(90)).starts_with("HTTP/1.1 200"));
    assert!(with(&many(120)).starts_with("HTTP/1.1 431"));
    assert!(with(&format!("x: {}\r\n", "a".repeat(50_000))).starts_with("HTTP/1.1 200"));
    let answer = with(&format!("x: {}\r\n", "a".repeat(70_000)));
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[test]
fn a_drain_closes_connections_once_they_have_their_answers() {
    let a = Backend::named("a");
    let rig = Plan::new(&[("a", a.address)]).rule("/", &to(0), Forward::default()).start();
    let (mut idle, mut busy) = (rig.connect(), rig.connect());
    for client in [&mut idle, &mut busy] {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(!read_answer(client).0.contains("connection: close"));
    }
    busy.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n").unwrap();
    while a.requests().len() < 3 {
        thread::sleep(Duration::from_millis(5));
    }
    rig.drain.send(()).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    let _ = busy.write_all(b"x");
    let mut rest = String::new();
    let _ = busy.read_to_string(&mut rest);
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 200"), "{rest}");
}

/// An HTTP/2 backend with prior knowledge, which echoes the body and adds a trailer.
fn http2_backend() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    thread::spawn(move || {
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, SeqCst);
                let echo = service_fn(|request: Request<Incoming>| async move {
                    assert_eq!(
                        request.headers().get("te").map(hyper::header::HeaderValue::as_bytes),
                        Some(&b"trailers"[..])
                    );
                    let body = request.into_body().collect().await?;
                    let trailers = body.trailers().cloned().unwrap_or_default();
                    let frames =
                        [Ok(Frame::data(body.to_bytes())), Ok::<_, hyper::Error>(Frame::trailers(trailers))];
                    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
                    response.headers_mut().insert("trailer-comes", "yes".parse().unwrap());
                    Ok::<_, hyper::Error>(response)
                });
                tokio::task::spawn_local(async move {
                    let io = TokioIo::new(client);
                    hyper::server::conn::http2::Builder::new(crate::http::pool::OnWorker)
                        .serve_connection(io, echo)
                        .await
                });
            }
        });
    });
    (address, connections)
}

#[test]
fn trailers_pass_over_http2_and_streams_share_a_connection() {
    let (address, connections) = http2_backend();
    let mut plan = Plan::new(&[("a", address)]).rule("/", &to(0), Forward::default());
    plan.backends[0].2 = BackendHttp::Http2;
    let rig = plan.start();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let client = TcpStream::connect(rig.address).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(crate::http::pool::OnWorker, TokioIo::new(client))
                .await
                .unwrap();
        tokio::task::spawn_local(connection);
        let requests = (0..20_u8).map(|number| {
            let mut sender = sender.clone();
            async move {
                let mut trailers = hyper::HeaderMap::new();
                trailers.insert("grpc-status", number.to_string().parse().unwrap());
                let body = vec![number; 100_000];
                let frames = [
                    Ok(Frame::data(Bytes::from(body.clone()))),
                    Ok::<_, std::convert::Infallible>(Frame::trailers(trailers.clone())),
                ];
                let request = Request::post(format!("http://a.test/{number}"))
                    .header("te", "trailers")
                    .header("content-type", "application/grpc")
                    .body(StreamBody::new(futures_util::stream::iter(frames)))
                    .unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                let answer = response.into_body().collect().await.unwrap();
                assert_eq!(answer.trailers(), Some(&trailers));
                assert_eq!(answer.to_bytes(), body);
            }
        });
        futures_util::future::join_all(requests).await;
        let _ = Full::new(Bytes::new());
    });
    assert_eq!(connections.load(SeqCst), 1);
}

/// One frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn http2_preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes
}

/// Sends a flood. Returns the number of frames that were accepted before the connection ended.
fn flood(rig: &Rig, first: &[u8], next: impl Fn(u32) -> Vec<u8>, most: u32) -> u32 {
    let mut client = rig.connect();
    client.write_all(first).unwrap();
    let mut reading = client.try_clone().unwrap();
    let reader = thread::spawn(move || std::io::copy(&mut reading, &mut std::io::sink()));
    let mut taken = 0;
    while taken < most && client.write_all(&next(taken)).is_ok() {
        taken += 1;
    }
    let _ = client.shutdown(std::net::Shutdown::Write);
    let _ = reader.join();
    taken
}

/// More frames than any client may send without effect.
const MOST: u32 = 200_000;

#[test]
fn floods_of_http2_end_the_connection() {
    let a = Backend::start(|_, _| {
        thread::sleep(Duration::from_secs(60));
        String::new()
    });
    let rig = Plan::new(&[("a", a.address)]).rule("/", &to(0), Forward::default()).start();
    // `:method GET`, `:scheme http`, `:path /`, and `:authority` as a literal.
    let head = [&[0x82, 0x86, 0x84, 0x41, 6][..], b"a.test"].concat();
    let rapid_reset = |at: u32| {
        let stream = at * 2 + 1;
        [frame(1, 5, stream, &head), frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let taken = flood(&rig, &http2_preface(), rapid_reset, MOST);
    assert!(taken < MOST, "rapid resets went on");
    let mut first = http2_preface();
    first.extend(frame(1, 1, 1, &head));
    let taken = flood(&rig, &first, |_| frame(9, 0, 1, &[0; 1_000]), MOST);
    assert!(taken < MOST, "continuations went on");
    let taken = flood(&rig, &http2_preface(), |_| frame(9, 0, 1, &[]), MOST);
    assert!(taken < MOST, "empty continuations went on");
    let taken = flood(&rig, &http2_preface(), |_| frame(6, 0, 0, &[0; 8]), MOST);
    assert!(taken < MOST, "pings went on");
    // Other clients are served.
    assert!(a.requests().len() < 500, "{} requests of streams that were reset", a.requests().len());
}
