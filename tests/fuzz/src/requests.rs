//! Invariants for any bytes of an HTTP client.

use std::{sync::LazyLock, time::Duration};

use hyper::{HeaderMap, Request, Uri, Version, header::HeaderValue};
use snisplice_config::{
    Options, Source, load,
    model::http::{HttpAction, HttpTable, Variable},
};

use crate::http::{
    frames::Frames,
    framing::{Framing, Passed},
    headers, path,
    refused::Refused,
    route::{self, Decision},
};

/// The rules for requests: conditions, rewrites, redirects and header changes of every kind.
static TABLES: LazyLock<Vec<std::sync::Arc<HttpTable>>> = LazyLock::new(|| {
    let text = include_str!("../../../config/testdata/istio-http/1.yaml").to_owned();
    let source = Source { name: "istio-http".to_owned(), text };
    let model = load(&[source].into_iter().collect(), &Options::default()).model.expect("the rules are good");
    let tables: Vec<_> = model
        .listeners
        .iter()
        .filter_map(|listener| listener.plain_http.as_ref().map(|plain| plain.table.clone()))
        .collect();
    assert!(!tables.is_empty(), "the rules serve plain HTTP");
    tables
});

/// Parses the HTTP/1 requests in bytes that arrive in portions of this size. Returns the number of bytes passed on,
/// and the refusal if any.
fn follow(bytes: &[u8], portion: usize) -> (usize, Option<Refused>) {
    let (mut framing, mut held, mut passed) = (Framing::default(), Vec::new(), 0);
    for part in bytes.chunks(portion.max(1)) {
        held.extend_from_slice(part);
        while !held.is_empty() {
            match framing.take(&held) {
                Ok(Passed::Bytes(count)) => {
                    assert!(count > 0 && count <= held.len(), "{count} of {}", held.len());
                    held.drain(..count);
                    passed += count;
                }
                Ok(Passed::PartOfLine) => break,
                Err(refused) => return (passed, Some(refused)),
            }
        }
    }
    (passed, None)
}

/// HTTP/1 requests: the split into packets has no effect, and each head always has the same decision.
///
/// # Panics
/// Panics if an invariant does not hold.
pub fn http1(bytes: &[u8]) {
    let (whole, refused) = follow(bytes, bytes.len());
    assert!(whole <= bytes.len());
    for portion in [1, 7] {
        let (passed, cut) = follow(bytes, portion);
        // An incomplete line may be refused earlier than in one piece, never later.
        assert_eq!(passed, whole, "in portions of {portion}");
        assert_eq!(cut.is_some(), refused.is_some(), "in portions of {portion}: {cut:?} and {refused:?}");
    }
    let mut rest = &bytes[..whole];
    while let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
        decide(&rest[..end]);
        rest = &rest[end + 4..];
    }
}

/// Decides on a head.
fn decide(head: &[u8]) {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return };
    let Ok(uri) = target.parse::<Uri>() else { return };
    let mut request = Request::builder().method(method).uri(uri);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return };
        request = request.header(name, value.trim());
    }
    let Ok(request) = request.body(()) else { return };
    let (mut head, ()) = request.into_parts();
    for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
        head.version = version;
        for (scheme, trusted) in [("http", false), ("https", true)] {
            let Ok(asked) = route::read(&head, scheme, trusted) else { continue };
            if asked.path != "*" {
                let normal = path::normalise(&asked.path).expect("a normal path is one");
                assert_eq!(normal, asked.path, "a path is normal at once");
            }
            assert!(asked.path == "*" || asked.path.starts_with('/'), "{:?}", asked.path);
            assert!(!asked.path.split('/').any(|segment| matches!(segment, "." | "..")), "{:?}", asked.path);
            for table in TABLES.iter() {
                forwarded(table, &asked, version, &head.headers);
            }
        }
    }
}

/// The value of a variable: the client's bytes, or an invalid header value.
fn value(variable: &Variable, headers: &HeaderMap) -> Option<String> {
    match variable {
        Variable::RequestHeader(name, _) => {
            headers.get(&**name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        }
        _ => Some("\r\n".to_owned()),
    }
}

fn forwarded(table: &HttpTable, asked: &route::Asked<'_>, version: Version, received: &HeaderMap) {
    let rule = match route::decide(table, asked, 8080) {
        Decision::Redirected { location, .. } => {
            assert!(!location.contains(['\r', '\n', '\0']), "{location:?}");
            return;
        }
        Decision::Forwarded { rule, target, authority, .. } => {
            let sent = route::target("http", &authority, &target, version);
            if let Ok(uri) = sent {
                assert!(!uri.to_string().contains(['\r', '\n', ' ', '#']), "{uri:?}");
            }
            rule
        }
        Decision::Responded(rule) => rule,
        Decision::NotFound => return,
    };
    let mut sent = received.clone();
    headers::remove_hop_by_hop(&mut sent);
    headers::join_cookies(&mut sent);
    let sender = headers::Sender { address: [192, 0, 2, 1].into(), trusted: false, scheme: "http" };
    headers::forwarded(&mut sent, &sender, || HeaderValue::from_static("id"));
    headers::change(&mut sent, &rule.request_headers, value);
    if let HttpAction::Forward(forward) = &rule.action {
        for (of_request, _) in &forward.of_target {
            headers::change(&mut sent, of_request, value);
        }
    }
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive"] {
        assert!(!sent.contains_key(name), "{name} is of one hop");
    }
    assert_eq!(sent.get("x-forwarded-for").map(HeaderValue::as_bytes), Some(&b"192.0.2.1"[..]));
    assert_eq!(headers::count(&sent), sent.len(), "a cookie is one");
}

/// HTTP/2 frames: the split into packets has no effect.
///
/// # Panics
/// Panics if an invariant does not hold.
pub fn http2(bytes: &[u8]) {
    let follow = |portion: usize| {
        let (mut frames, mut passed) = (Frames::default(), 0);
        for part in bytes.chunks(portion.max(1)) {
            let received = frames.receive(part, Duration::ZERO).bytes;
            assert!(received <= part.len());
            passed += received;
            if frames.is_flooded() {
                return (passed, true);
            }
            assert_eq!(received, part.len(), "only a flood ends before its end");
        }
        (passed, false)
    };
    let whole = follow(bytes.len());
    for portion in [1, 7] {
        assert_eq!(follow(portion), whole, "in portions of {portion}");
    }
}
