//! Request smuggling through a proxy: each attempt is refused, and the backend never receives the second request.

use super::*;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Heads with bodies, without the smuggled request.
fn vectors() -> Vec<String> {
    let post = |lines: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n{body}");
    let chunked = |body: &str| post("Transfer-Encoding: chunked", body);
    vec![
        post("Content-Length: 4\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nContent-Length: 4", "0\r\n\r\n"),
        post("Content-Length: 0\r\nContent-Length: 36", ""),
        post("Content-Length: 36\r\nContent-Length: 0", ""),
        post("Content-Length: 0, 36", ""),
        post("Content-Length: +0", ""),
        post("Content-Length: -1", ""),
        post("Content-Length: 0x0", ""),
        post("Content-Length: 0 36", ""),
        post("Content-Length: 18446744073709551616", ""),
        post("Content-Length : 36", ""),
        post("Content-Length:\u{b}0", ""),
        post("Content-Length: 0\0", ""),
        post("Content-Length:\r\n 36", ""),
        post("Transfer-Encoding : chunked", "0\r\n\r\n"),
        post("Transfer-Encoding: xchunked", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked, identity", "0\r\n\r\n"),
        post("Transfer-Encoding: identity, chunked", "0\r\n\r\n"),
        post("Transfer-Encoding: \"chunked\"", "0\r\n\r\n"),
        post("Transfer-Encoding:\r\n chunked", "0\r\n\r\n"),
        post("Transfer-Encoding:\u{b}chunked", "0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", "0\r\n\r\n"),
        post("Transfer-Encoding: x\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        post("X: a\rTransfer-Encoding: chunked", "0\r\n\r\n"),
        post("X: a\nTransfer-Encoding: chunked", "0\r\n\r\n"),
        post("X: a\r\n\tb", ""),
        post("\u{1}X: a", ""),
        post("X Y: a", ""),
        post(": a", ""),
        post("no colon", ""),
        post("Host: b", ""),
        chunked("1 \r\na\r\n0\r\n\r\n"),
        chunked("+1\r\na\r\n0\r\n\r\n"),
        chunked("0x1\r\na\r\n0\r\n\r\n"),
        chunked("1\na\r\n0\r\n\r\n"),
        chunked("1\r\nab\r\n0\r\n\r\n"),
        chunked("1;\r\u{b}\na\r\n0\r\n\r\n"),
        chunked("10000000000000001\r\na\r\n0\r\n\r\n"),
        chunked("0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        chunked("0\r\n X: folded\r\n\r\n"),
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "GET / HTTP/1.1\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: \r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n".into(),
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET /../etc HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET /%2e%2e/etc HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(),
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n".into(),
        "GET /\r\nHost: a\r\n\r\n".into(),
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n".into(),
    ]
}

#[test]
fn nothing_is_smuggled() {
    let backend = Backend::named("a");
    let rig = Plan::new(&[("a", backend.address)]).rule("/", &to(0), Forward::default()).start();
    let vectors = vectors();
    assert!(vectors.len() >= 50);
    for vector in &vectors {
        let answer = rig.say(format!("{vector}{SMUGGLED}").as_bytes());
        let refused =
            ["HTTP/1.1 400", "HTTP/1.0 400", "HTTP/1.1 405"].iter().any(|line| answer.starts_with(line));
        assert!(refused && answer.matches("HTTP/1.").count() == 1, "{vector:?}: {answer}");
    }
    let smuggled: Vec<String> =
        backend.requests().into_iter().filter(|head| head.contains("smuggled")).collect();
    assert_eq!(smuggled, Vec::<String>::new());
    // A valid request is still served.
    assert!(rig.get("/").ends_with('a'));
}

#[test]
fn a_request_that_comes_byte_by_byte_is_served() {
    let backend = Backend::named("a");
    let rig = Plan::new(&[("a", backend.address)]).rule("/", &to(0), Forward::default()).start();
    let mut client = rig.connect();
    client.set_nodelay(true).unwrap();
    for byte in b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" {
        client.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with('a'), "{answer}");
}
