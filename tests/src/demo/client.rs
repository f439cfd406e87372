//! A client that trusts only the demo's authority.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::ServerName;
use snisplice_tests::pki::Ca;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::server::PAGE;

/// The result of a visit to one name.
pub(crate) struct Visit {
    /// The verified certificate's subject.
    pub(crate) subject: String,
    /// The issuer of the certificate.
    pub(crate) issuer: String,
    /// The negotiated TLS version.
    pub(crate) version: String,
    /// The response to `GET /`.
    pub(crate) body: String,
    /// Bytes of all pages after that.
    pub(crate) bytes: usize,
}

/// The number of requests `GET /page`.
const PAGES: usize = 64;

/// Requests the pages of `name` at `front`, on one connection.
pub(crate) async fn visit(ca: &Ca, front: SocketAddr, name: &str) -> Result<Visit> {
    let stream = connect(ca, front, name).await?;
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().context("no certificate")?;
    let (_, certificate) = X509Certificate::from_der(chain.first().context("no certificate")?)?;
    let (subject, issuer) = (certificate.subject().to_string(), certificate.issuer().to_string());
    let version =
        session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS").replace('_', ".");
    let mut stream = BufStream::new(stream);
    let body = String::from_utf8(get(&mut stream, name, "/").await?)?.trim_end().to_owned();
    let mut bytes = 0;
    for _ in 0..PAGES {
        bytes += get(&mut stream, name, "/page").await?.len();
    }
    ensure!(bytes == PAGES * PAGE, "{bytes} bytes in {PAGES} pages of {PAGE}");
    stream.shutdown().await?;
    Ok(Visit { subject, issuer, version, body, bytes })
}

async fn connect(ca: &Ca, front: SocketAddr, name: &str) -> Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(ca.client(rustls::ALL_VERSIONS)?);
    let tcp = TcpStream::connect(front).await?;
    connector.connect(ServerName::try_from(name.to_owned())?, tcp).await.context("TLS handshake")
}

async fn get(stream: &mut BufStream<TlsStream<TcpStream>>, name: &str, path: &str) -> Result<Vec<u8>> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes()).await?;
    stream.flush().await?;
    let (mut length, mut line) = (None, String::new());
    while stream.read_line(&mut line).await? > 2 {
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = Some(value.trim().parse()?);
        }
        line.clear();
    }
    let mut body = vec![0; length.context("an answer without a length")?];
    stream.read_exact(&mut body).await?;
    Ok(body)
}
