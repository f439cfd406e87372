//! WebSocket by tungstenite: over HTTP/1 and over HTTP/2 (RFC 8441), with and without TLS, to an HTTP/1 backend.

use std::{
    net::{TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Empty;
use hyper::{Method, Request, body::Bytes, ext::Protocol};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::version::TLS13;
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::Lab,
    suite::Case,
    tcp, wait,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, WebSocket, handshake::server, protocol::Role},
};

use crate::front::{self, HTTP, HTTPS, NAME, PLAIN};

pub(crate) const CASES: &[Case] = &[
    Case::once("websocket::messages_pass_over_http1", over_http1),
    Case::once("websocket::messages_pass_over_http2", over_http2),
    Case::once("websocket::a_tunnel_counts_for_its_backend", a_tunnel_counts),
    Case::once("websocket::a_refusal_of_the_backend_is_passed_on", refused),
];

/// Echoes each message, and reports the headers of each request.
fn echo(listener: TcpListener) -> mpsc::Receiver<Vec<(String, String)>> {
    let (told, heard) = mpsc::channel();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let told = told.clone();
            thread::spawn(move || serve(stream, &told));
        }
    });
    heard
}

#[expect(clippy::result_large_err, reason = "the library's callback has this type")]
fn serve(stream: TcpStream, told: &mpsc::Sender<Vec<(String, String)>>) {
    let accepted =
        tungstenite::accept_hdr(stream, |request: &server::Request, mut response: server::Response| {
            let text =
                |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers = request.headers().iter().map(|(name, value)| (name.to_string(), text(value)));
            let _ = told.send(headers.chain([("path".to_owned(), request.uri().to_string())]).collect());
            if request.uri().path() == "/refused" {
                let mut refusal = server::ErrorResponse::new(Some("not today".to_owned()));
                *refusal.status_mut() = hyper::StatusCode::FORBIDDEN;
                return Err(refusal);
            }
            if let Some(protocol) = request.headers().get("sec-websocket-protocol") {
                response.headers_mut().insert("sec-websocket-protocol", protocol.clone());
            }
            Ok(response)
        });
    let Ok(mut socket) = accepted else { return };
    while let Ok(message) = socket.read() {
        let done = match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message),
            _ => socket.flush(),
        };
        if done.is_err() {
            break;
        }
    }
}

fn large() -> Vec<u8> {
    (0..300_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

fn talk<S: std::io::Read + std::io::Write>(mut socket: WebSocket<S>) -> Result<()> {
    for message in [Message::text("hello"), Message::binary(large()), Message::text("")] {
        socket.send(message.clone())?;
        ensure!(socket.read()? == message);
    }
    socket.close(None)?;
    while let Ok(message) = socket.read() {
        ensure!(message.is_close(), "{message:?}");
    }
    Ok(())
}

fn heard(from: &mpsc::Receiver<Vec<(String, String)>>) -> Result<impl Fn(&str) -> Option<String>> {
    let headers = from.recv_timeout(Duration::from_secs(60))?;
    Ok(move |name: &str| headers.iter().find(|(one, _)| one == name).map(|(_, value)| value.clone()))
}

fn over_http1(lab: &Lab) -> Result<()> {
    let backend = echo(tcp::listen(&lab.backend, &front::backend(PLAIN))?);
    let (daemon, _) = front::start(lab, "")?;
    let plain = tcp::connect(&lab.client, &front::address(HTTP))?;
    let (socket, response) = tungstenite::client(format!("ws://{NAME}/chat?a=b"), plain)?;
    ensure!(response.status() == 101, "{response:?}");
    talk(socket)?;
    let (socket, _) =
        tungstenite::client(format!("wss://{NAME}/chat?a=b"), front::connect(lab, "http/1.1")?)?;
    talk(socket)?;
    for scheme in ["http", "https"] {
        let of = heard(&backend)?;
        ensure!(
            of("path").as_deref() == Some("/chat?a=b") && of("x-forwarded-proto").as_deref() == Some(scheme)
        );
    }
    // The library ends TLS without a close_notify, which is no orderly end.
    daemon.wait_metrics("both have ended", |metrics| {
        metrics.sum(
            "snisplice_connections_closed_total",
            &[("listener", "gateway-8080"), ("reason", "finished")],
        ) == 1
            && metrics.sum("snisplice_connections_closed_total", &[]) == 2
    })?;
    Ok(())
}

/// An HTTP/2 stream with a WebSocket, beside a request of the same connection.
async fn within_http2<I>(io: I, scheme: &str) -> Result<()>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let uri = format!("{scheme}://{NAME}/chat?a=b");
    // The server's settings have arrived once a response has. Extended CONNECT requires them (RFC 8441 section 3).
    let plain = Request::get(format!("{scheme}://{NAME}/plain")).body(Empty::<Bytes>::new())?;
    let _ = sender.send_request(plain).await?;
    let connect = |protocol: &'static str| {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(&uri)
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
            .body(Empty::<Bytes>::new())?;
        request.extensions_mut().insert(Protocol::from_static(protocol));
        anyhow::Ok(request)
    };
    ensure!(sender.send_request(connect("connect-udp")?).await?.status() == 501);
    let response = sender.send_request(connect("websocket")?).await?;
    let headers = response.headers().clone();
    ensure!(response.status() == 200 && headers.get("sec-websocket-protocol").is_some(), "{headers:?}");
    ensure!(!headers.contains_key("sec-websocket-accept") && !headers.contains_key("upgrade"), "{headers:?}");
    let upgraded = TokioIo::new(hyper::upgrade::on(response).await?);
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    for message in [Message::text("hello"), Message::binary(large()), Message::text("")] {
        socket.send(message.clone()).await?;
        ensure!(socket.next().await.context("the end")?? == message);
    }
    socket.close(None).await?;
    while let Some(Ok(message)) = socket.next().await {
        ensure!(message.is_close(), "{message:?}");
    }
    Ok(())
}

fn over_http2(lab: &Lab) -> Result<()> {
    let backend = echo(tcp::listen(&lab.backend, &front::backend(PLAIN))?);
    let (_daemon, _) = front::start(lab, "")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut config = (*lab.ca.client(&[&TLS13])?).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for port in [HTTP, HTTPS] {
        let stream = tcp::connect(&lab.client, &front::address(port))?;
        stream.set_nonblocking(true)?;
        let talking = async {
            let stream = tokio::net::TcpStream::from_std(stream)?;
            if port == HTTP {
                within_http2(stream, "http").await
            } else {
                within_http2(connector.connect(NAME.try_into()?, stream).await?, "https").await
            }
        };
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(90), talking).await? })?;
        let of = heard(&backend)?;
        ensure!(of("path").as_deref() == Some("/chat?a=b"));
        ensure!(of("sec-websocket-key").is_some_and(|key| key.len() == 24), "the backend has no key");
    }
    Ok(())
}

/// A connection that has switched to another protocol still takes a place of its backend.
fn a_tunnel_counts(lab: &Lab) -> Result<()> {
    let _backend = echo(tcp::listen(&lab.backend, &front::backend(PLAIN))?);
    let yaml = format!(
        "listeners: [{{name: web, bind: \"{}\", http: [{{backends: pool}}]}}]\n\
         backends: [{{name: pool, max_connections: 1, endpoints: \"{}\"}}]\n",
        front::address(HTTP),
        front::backend(PLAIN),
    );
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let open = || -> Result<_> {
        let stream = tcp::connect(&lab.client, &front::address(HTTP))?;
        match tungstenite::client(format!("ws://{NAME}/chat"), stream) {
            Ok((socket, _)) => Ok(Some(socket)),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response)))
                if response.status() == 503 =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    };
    let first = open()?.context("the only place is free")?;
    ensure!(open()?.is_none(), "a second tunnel has a place");
    talk(first)?;
    wait::until_true("the place is free again", || Ok(open()?.is_some()))
}

fn refused(lab: &Lab) -> Result<()> {
    let _backend = echo(tcp::listen(&lab.backend, &front::backend(PLAIN))?);
    let (_daemon, _) = front::start(lab, "")?;
    let plain = tcp::connect(&lab.client, &front::address(HTTP))?;
    match tungstenite::client(format!("ws://{NAME}/refused"), plain) {
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            ensure!(response.status() == 403, "{response:?}");
        }
        other => anyhow::bail!("not refused: {:?}", other.map(|(_, response)| response)),
    }
    Ok(())
}
