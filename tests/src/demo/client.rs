//! A client that believes nothing but the demo's own authority.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::ServerName;
use snisplice_tests::pki::Ca;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::server::BULK;

/// What one name showed.
pub(crate) struct Visit {
    /// The verified certificate's subject.
    pub(crate) subject: String,
    /// Who signed it.
    pub(crate) issuer: String,
    /// The TLS version that was agreed on.
    pub(crate) version: String,
    /// What `GET /` answered.
    pub(crate) body: String,
    /// Bytes that `GET /bulk` answered.
    pub(crate) bulk: usize,
}

/// Asks `name` at `front` for its page and for its bulk.
pub(crate) async fn visit(ca: &Ca, front: SocketAddr, name: &str) -> Result<Visit> {
    let mut stream = connect(ca, front, name).await?;
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().context("no certificate")?;
    let (_, certificate) = X509Certificate::from_der(chain.first().context("no certificate")?)?;
    let (subject, issuer) = (certificate.subject().to_string(), certificate.issuer().to_string());
    let version =
        session.protocol_version().and_then(|version| version.as_str()).unwrap_or("TLS").replace('_', ".");
    let page = get(&mut stream, name, "/").await?;
    let bulk = get(&mut connect(ca, front, name).await?, name, "/bulk").await?;
    ensure!(bulk.len() == BULK, "{} of {BULK} bytes", bulk.len());
    let body = String::from_utf8(page)?.trim_end().to_owned();
    Ok(Visit { subject, issuer, version, body, bulk: bulk.len() })
}

async fn connect(ca: &Ca, front: SocketAddr, name: &str) -> Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(ca.client(rustls::ALL_VERSIONS)?);
    let tcp = TcpStream::connect(front).await?;
    connector.connect(ServerName::try_from(name.to_owned())?, tcp).await.context("TLS handshake")
}

async fn get(stream: &mut TlsStream<TcpStream>, name: &str, path: &str) -> Result<Vec<u8>> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("not an HTTP answer")?;
    Ok(answer.split_off(end + 4))
}
