//! gRPC by grpcurl: to HTTP/2 backends without and within TLS, from clients with and without TLS.

use std::{convert::Infallible, fs, net::TcpListener, sync::Arc, thread};

use anyhow::{Result, ensure};
use http_body_util::{BodyExt as _, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, version::TLS13};
use snisplice_tests::{
    lab::Lab,
    peers::go_tool,
    process::{Said, run},
    suite::Case,
    tcp,
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::front::{self, H2, H2C, HTTP, HTTPS};

pub(crate) const CASES: &[Case] = &[
    Case::once("grpc::calls_reach_a_backend_in_clear", |lab| calls(lab, H2C)),
    Case::once("grpc::calls_reach_a_backend_within_tls", |lab| calls(lab, H2)),
    Case::once("grpc::errors_of_the_gateway_are_those_of_grpc", gateway_errors),
];

const PROTO: &str = "\
    syntax = \"proto3\";\npackage test;\n\
    service Echo {\n\
      rpc Unary(Text) returns (Text);\n  rpc Stream(Text) returns (stream Text);\n\
      rpc Chat(stream Text) returns (stream Text);\n  rpc Fail(Text) returns (Text);\n  rpc Break(Text) returns (stream Text);\n\
    }\nmessage Text { string text = 1; }\n";

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// A gRPC message: a flag, its length, and `Text` in the encoding of Protocol Buffers.
fn message(text: &str) -> Bytes {
    let length = u8::try_from(text.len()).unwrap_or_default();
    let mut bytes = vec![0, 0, 0, 0, length + 2, 0x0a, length];
    bytes.extend(text.as_bytes());
    bytes.into()
}

fn trailers(status: &str, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for (name, value) in [("grpc-status", status), ("grpc-message", message), ("x-trailer", "at the end")] {
        if let Ok(value) = value.parse() {
            trailers.insert(name, value);
        }
    }
    trailers
}

fn messages(texts: &[&str], trailers: HeaderMap) -> Body {
    let data = texts.iter().map(|text| Ok(Frame::data(message(text))));
    let frames: Vec<_> = data.chain([Ok(Frame::trailers(trailers))]).collect();
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/grpc"));
    headers.insert("x-header", hyper::header::HeaderValue::from_static("in front"));
    let good = trailers("0", "");
    let body = match method.as_str() {
        // Each message is echoed on arrival.
        "Chat" | "Unary" => request.into_body().with_trailers(async { Some(Ok(good)) }).boxed_unsync(),
        "Stream" => messages(&["one", "two", "three"], good),
        "Break" => messages(&["one"], trailers("8", "no more")),
        // Trailers only, which are HTTP headers.
        _ => {
            headers.extend(trailers("5", "not here"));
            return Ok(response);
        }
    };
    Ok(response.map(|_| body))
}

fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Result<()> {
    listener.set_nonblocking(true)?;
    thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (stream, _) = listener.accept().await?;
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => speak(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                                speak(stream).await;
                            }
                        }
                    }
                });
            }
        })
    });
    Ok(())
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // The client decides on the end of the connection.
    let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

fn grpcurl(lab: &Lab, port: u16, authority: &str, method: &str, data: &str) -> Result<Said> {
    fs::write(lab.dir().join("echo.proto"), PROTO)?;
    let mut command = go_tool("grpcurl");
    command
        .args(["-v", "-max-time", "60", "-authority", authority, "-proto", "echo.proto", "-import-path"])
        .arg(lab.dir());
    if port == HTTPS {
        command.arg("-cacert").arg(lab.ca.file());
    } else {
        command.arg("-plaintext");
    }
    run(&lab.client, command.args(["-d", data, &front::address(port), &format!("test.Echo/{method}")]))
}

fn calls(lab: &Lab, backend: u16) -> Result<()> {
    let tls = if backend == H2 {
        let mut config = (*lab.ca.issue("tls.test")?.server(&[&TLS13])?).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Some(Arc::new(config))
    } else {
        None
    };
    serve(tcp::listen(&lab.backend, &front::backend(backend))?, tls)?;
    let (daemon, _) = front::start(lab, "")?;
    let authority = front::authority(backend);
    for port in [HTTPS, HTTP] {
        let call = |method: &str, data: &str| grpcurl(lab, port, authority, method, data);
        let said = call("Unary", "{\"text\": \"hello\"}")?.ok()?.stdout;
        for words in
            ["\"text\": \"hello\"", "x-header: in front", "x-trailer: at the end", "server: snisplice"]
        {
            ensure!(said.contains(words), "{words}: {said}");
        }
        let said = call("Stream", "{\"text\": \"\"}")?.ok()?.stdout;
        let texts: Vec<_> = said.lines().filter_map(|line| line.trim().strip_prefix("\"text\": ")).collect();
        ensure!(texts == ["\"one\"", "\"two\"", "\"three\""], "{said}");
        let said = call("Chat", "{\"text\": \"a\"} {\"text\": \"b\"} {\"text\": \"c\"}")?.ok()?.stdout;
        ensure!(["a", "b", "c"].iter().all(|text| said.contains(&format!("\"text\": \"{text}\""))), "{said}");
        // The exit code of grpcurl is 64 plus the status.
        let said = call("Fail", "{}")?;
        ensure!(said.code == Some(64 + 5) && said.stderr.contains("not here"), "{said:?}");
        let said = call("Break", "{}")?;
        ensure!(said.code == Some(64 + 8) && said.stderr.contains("no more"), "{said:?}");
        ensure!(said.stdout.contains("\"one\"") && said.stdout.contains("x-trailer: at the end"), "{said:?}");
    }
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_http_requests_total", &[("code", "200")]) == 10, "{metrics:?}");
    Ok(())
}

/// A gRPC client cannot use HTTP statuses.
fn gateway_errors(lab: &Lab) -> Result<()> {
    // No backend listens there.
    let (_daemon, _) = front::start(lab, "")?;
    let said = grpcurl(lab, HTTPS, front::authority(H2C), "Unary", "{}")?;
    ensure!(said.code == Some(64 + 14) && said.stderr.contains("upstream connect error"), "{said:?}");
    Ok(())
}
