//! HTTP/2 within terminated TLS: conformance by h2spec, and clients with floods.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::Daemon,
    lab::Lab,
    netns::LB,
    peers::{self, nginx_with},
    process::{Process, run},
    suite::Case,
    tcp,
};

use crate::front::{self, Client, H2C, HTTP, HTTPS, PLAIN, connect};

pub(crate) const CASES: &[Case] = &[
    Case::once("http2::h2spec_passes_whole_within_tls", |lab| {
        h2spec(lab, "mode: SIMPLE", HTTPS, "h2spec-simple")
    }),
    Case::once("http2::h2spec_passes_whole_where_certificates_are_optional", |lab| {
        h2spec(lab, "mode: OPTIONAL_MUTUAL", HTTPS, "h2spec-optional")
    }),
    Case::once("http2::h2spec_passes_without_tls", |lab| h2spec(lab, "mode: SIMPLE", HTTP, "h2spec-plain")),
    Case::once("http2::floods_are_answered_with_goaway", floods),
    Case::once("http2::a_header_bomb_is_bounded", header_bomb),
    Case::once("http2::slow_clients_are_not_waited_for", slow),
];

/// Answers every request, with any method.
pub(crate) fn web(lab: &Lab) -> Result<Process> {
    let address = front::backend(PLAIN);
    let server = format!(
        "  server {{\n    listen {address};\n    location / {{ return 200 \"hello from the backend\\n\"; }}\n  }}\n"
    );
    nginx_with(lab, &server, &[&address])
}

fn h2spec(lab: &Lab, tls: &str, port: u16, name: &str) -> Result<()> {
    let _nginx = web(lab)?;
    let (_daemon, _) = front::start_with(lab, tls, "")?;
    let mut failed = failed_specs(lab, port, name)?;
    // If both versions are supported, bytes other than a preface are a bad HTTP/1 request (RFC 9113 section 3.4).
    failed.retain(|spec| port != HTTP || !spec.contains("Sends invalid connection preface"));
    // Some specs send a frame for a stream after its reset. They fail if the client is so slow that it first reads the
    // response to the stream's request. So a spec must fail every time.
    for _ in 0..3 {
        if failed.is_empty() {
            break;
        }
        let again = failed_specs(lab, port, name)?;
        failed.retain(|spec| again.contains(spec));
    }
    ensure!(failed.is_empty(), "{failed:#?}");
    Ok(())
}

/// Runs all specs. Returns those that fail.
fn failed_specs(lab: &Lab, port: u16, name: &str) -> Result<BTreeSet<String>> {
    let mut command = peers::go_tool("h2spec");
    command.args(["-h", LB, "-p", &port.to_string(), "-o", "2"]);
    if port == HTTPS {
        command.args(["-t", "-k"]);
    }
    let said = run(&lab.client, command.arg("-j").arg(lab.dir().join(name)))?;
    let summary = said.stdout.lines().rev().find(|line| line.contains(" tests, ")).unwrap_or_default();
    // Failures are repeated at the end, with the expected result.
    let failures = said.stdout.split_once("Failures:").map_or("", |(_, failures)| failures);
    let failed: Vec<_> = failures.lines().map(str::trim).filter(|line| line.starts_with('×')).collect();
    let mut words = summary.split(' ');
    let count: usize = words.next().unwrap_or_default().parse().context("h2spec says no number")?;
    let agrees = summary.contains(&format!(" {} failed", failed.len()));
    ensure!(count >= 145 && agrees, "{summary}{failures}\n{}", said.stderr);
    if !failed.is_empty() {
        eprintln!("{failures}");
    }
    Ok(failed.into_iter().map(str::to_owned).collect())
}

/// One frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// The flag of HEADERS and DATA.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The error code of RFC 9113 section 7.
const ENHANCE_YOUR_CALM: u32 = 11;

/// The first bytes of a client.
fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat()
}

/// A request's header block: `:method`, `:scheme https`, `:path /`, and `:authority` as a literal.
fn head(method: u8) -> Vec<u8> {
    head_for(method, front::NAME)
}

fn head_for(method: u8, authority: &str) -> Vec<u8> {
    let name = authority.as_bytes();
    [&[method, 0x87, 0x84, 0x41, u8::try_from(name.len()).unwrap_or_default()], name].concat()
}

/// Index in the static table (RFC 7541 appendix A).
const GET: u8 = 0x82;
const POST: u8 = 0x83;

/// Sends `first`, then the frames of `next` until the connection ends. Returns the error code of the received GOAWAY.
fn goaway_of(lab: &Lab, first: &[u8], next: impl Fn(u32) -> Vec<u8>) -> Result<Option<u32>> {
    // Without an end, this is a gigabyte of the smallest frames.
    const MOST: u32 = 1_000_000;
    let mut client = connect(lab, "h2")?;
    client.write_all(&[&preface()[..], first].concat())?;
    client.sock.set_nonblocking(true)?;
    let mut received = Vec::new();
    let mut at = 0;
    let mut buffer = vec![0; 1 << 16];
    let started = std::time::Instant::now();
    loop {
        // The frames of one TLS record.
        while !client.conn.wants_write() && at < MOST {
            let mut portion = Vec::new();
            while portion.len() < 16_000 {
                portion.extend(next(at));
                at += 1;
            }
            client.conn.writer().write_all(&portion)?;
        }
        let sent = client.conn.write_tls(&mut client.sock);
        let came = client.conn.read_tls(&mut client.sock);
        if client.conn.process_new_packets().is_err() {
            break;
        }
        while let Ok(count @ 1..) = client.conn.reader().read(&mut buffer) {
            received.extend_from_slice(&buffer[..count]);
        }
        match (sent, came) {
            (_, Ok(0)) => break,
            (_, Err(error)) if error.kind() != std::io::ErrorKind::WouldBlock => break,
            (Err(error), Err(_)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            _ => {}
        }
        ensure!(
            started.elapsed() < snisplice_tests::wait::DEADLINE && at < MOST,
            "the flood is taken: {at} frames"
        );
    }
    Ok(goaway(&received))
}

/// The error code of the last GOAWAY among these frames.
fn goaway(mut frames: &[u8]) -> Option<u32> {
    let mut code = None;
    while let [high, middle, low, kind, ..] = *frames {
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if kind == GOAWAY && frames.len() >= 17 {
            code = Some(u32::from_be_bytes([frames[13], frames[14], frames[15], frames[16]]));
        }
        frames = frames.get(9 + length..).unwrap_or_default();
    }
    code
}

/// Makes one request over a connection of its own, to verify that other clients are served.
fn is_served(lab: &Lab) -> Result<()> {
    let mut client = connect(lab, "http/1.1")?;
    write!(client, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", front::NAME)?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello from the backend\n"), "{answer}");
    Ok(())
}

fn counted(daemon: &Daemon<'_>, reason: &str, count: i64) -> Result<()> {
    daemon.wait_metrics(&format!("{count} ended as {reason}"), |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) == count
    })?;
    Ok(())
}

/// The name, the first bytes, and the frames of each round.
type Flood<'f> = (&'static str, &'f [u8], &'f dyn Fn(u32) -> Vec<u8>);

fn floods(lab: &Lab) -> Result<()> {
    let _nginx = web(lab)?;
    let (daemon, _) = front::start(lab, "")?;
    is_served(lab)?;
    let before = daemon.process().resident_bytes()?;
    let get = head(GET);
    let stream = |at: u32| (at * 2 + 1) & 0x7fff_ffff;
    let begun = frame(HEADERS, END_STREAM, 1, &get);
    let upload = frame(HEADERS, END_HEADERS, 1, &head(POST));
    let floods: [Flood<'_>; 10] = [
        ("rapid resets", &[], &|at| {
            let reset = frame(RST_STREAM, 0, stream(at), &8_u32.to_be_bytes());
            [frame(HEADERS, END_HEADERS | END_STREAM, stream(at), &get), reset].concat()
        }),
        ("continuations", &begun, &|_| frame(CONTINUATION, 0, 1, &[0; 64])),
        ("empty continuations", &begun, &|_| frame(CONTINUATION, 0, 1, &[])),
        ("settings", &[], &|_| frame(SETTINGS, 0, 0, &[])),
        ("settings with values", &[], &|at| {
            frame(SETTINGS, 0, 0, &[&[0, 4][..], &(at & 0xffff).to_be_bytes()].concat())
        }),
        ("pings", &[], &|_| frame(PING, 0, 0, &[7; 8])),
        ("empty data", &upload, &|_| frame(DATA, 0, 1, &[])),
        ("priorities", &[], &|at| frame(PRIORITY, 0, stream(at % 1000), &[0, 0, 0, 0, 7])),
        ("windows", &upload, &|_| frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())),
        ("unknown frames", &[], &|_| frame(0x77, 0, 0, &[0; 8])),
    ];
    for (count, (name, first, next)) in (1..).zip(floods) {
        let code = goaway_of(lab, first, next).context(name)?;
        ensure!(code == Some(ENHANCE_YOUR_CALM), "{name}: {code:?}");
        counted(&daemon, "flood", count).context(name)?;
        is_served(lab).context(name)?;
    }
    let after = daemon.process().resident_bytes()?;
    ensure!(after < before + (48 << 20), "the floods have taken memory: {before}, then {after}");
    Ok(())
}

/// Reads frames until the connection ends.
fn rest(client: &mut Client) -> Vec<u8> {
    let mut received = Vec::new();
    let _ = client.read_to_end(&mut received);
    received
}

/// A header that is stored once, and referenced by one byte each time (RFC 7541 section 6.1).
fn header_bomb(lab: &Lab) -> Result<()> {
    let _nginx = web(lab)?;
    let (daemon, _) = front::start(lab, "")?;
    is_served(lab)?;
    let before = daemon.process().resident_bytes()?;
    let mut block = head(GET);
    // A literal with indexing: a name of one letter, and a value of 4000 bytes.
    block.extend([0x40, 1, b'x', 0x7f]);
    block.extend([0xa1, 0x1e]);
    block.extend([b'a'; 127 + 0x21 + (0x1e << 7)]);
    block.resize(16_000, 0xbe);
    let mut client = connect(lab, "h2")?;
    client.write_all(&preface())?;
    client.write_all(&frame(HEADERS, END_STREAM, 1, &block))?;
    for _ in 0..3 {
        let _ = client.write_all(&frame(CONTINUATION, 0, 1, &[0xbe; 16_000]));
    }
    let code = goaway(&rest(&mut client));
    ensure!(code == Some(ENHANCE_YOUR_CALM), "{code:?}");
    counted(&daemon, "flood", 1)?;
    let after = daemon.process().resident_bytes()?;
    ensure!(after < before + (16 << 20), "the bomb has taken memory: {before}, then {after}");
    is_served(lab)
}

fn slow(lab: &Lab) -> Result<()> {
    let _nginx = web(lab)?;
    let (daemon, _) = front::start(lab, "timeouts: {hello: 1s}\nhttp: {body_timeout: 1s}\n")?;
    // The first bytes of each client, and the following bytes, sent byte by byte as long as possible.
    let get = head(GET);
    let cases: [(&str, Vec<u8>, Vec<u8>); 4] = [
        ("says nothing", preface(), Vec::new()),
        ("sends probes alone", preface(), frame(PING, 0, 0, &[0; 8])),
        (
            "does not end a header block",
            [preface(), frame(HEADERS, END_STREAM, 1, &get[..3])].concat(),
            frame(CONTINUATION, 0, 1, &[]),
        ),
        (
            "does not end a frame",
            [preface(), vec![0, 0x20, 0, HEADERS, END_HEADERS, 0, 0, 0, 1]].concat(),
            vec![0x82],
        ),
    ];
    for (count, (name, first, next)) in (1..).zip(cases) {
        let mut client = connect(lab, "h2")?;
        client.write_all(&first)?;
        // Fewer frames than the library's limit.
        client.sock.set_read_timeout(Some(Duration::from_millis(600)))?;
        let (mut received, mut buffer) = (Vec::new(), vec![0; 4096]);
        loop {
            match client.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let _ = client.write_all(&next).and_then(|()| client.flush());
                }
                Err(_) => break,
            }
        }
        ensure!(goaway(&received) == Some(0), "{name}: {received:?}");
        counted(&daemon, "request_timeout", count).context(name)?;
        is_served(lab)?;
    }
    // A body that does not continue, to a backend that waits for its end.
    let _silent = tcp::listen(&lab.backend, &front::backend(H2C))?;
    let waiting = front::authority(H2C);
    let mut client = connect(lab, "h2")?;
    client.write_all(&preface())?;
    client.write_all(&frame(HEADERS, END_HEADERS, 1, &head_for(POST, waiting)))?;
    client.write_all(&frame(DATA, 0, 1, b"ab"))?;
    let timed_out = |count| {
        daemon.wait_metrics("408 is counted", |metrics| {
            metrics.sum("snisplice_http_requests_total", &[("code", "408")]) == count
        })
    };
    timed_out(1)?;
    drop(client);
    // The same over HTTP/1.
    for (count, (begin, status)) in (5..).zip([("GET / HTTP/1.1\r\nHost: a\r\n", "408"), ("GET / HT", "408")])
    {
        let mut client = connect(lab, "http/1.1")?;
        client.write_all(begin.as_bytes())?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).context("no orderly end")?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{begin:?}: {answer}");
        counted(&daemon, "request_timeout", count)?;
    }
    let mut client = connect(lab, "http/1.1")?;
    ensure!(client.read(&mut [0]).context("no orderly end")? == 0, "an answer to nothing");
    counted(&daemon, "request_timeout", 7)?;
    let mut client = connect(lab, "http/1.1")?;
    write!(client, "POST / HTTP/1.1\r\nHost: {waiting}\r\nContent-Length: 9\r\n\r\nab")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    // A hello, and then silence.
    let mut silent = tcp::connect(&lab.client, &front::address(HTTPS))?;
    silent.write_all(&snisplice_tests::hello::naming(front::NAME)?)?;
    tcp::read_to_end(&mut silent)?;
    counted(&daemon, "handshake_timeout", 1)?;
    is_served(lab)
}
