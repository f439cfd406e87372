//! Requests to a gateway that terminates TLS: HTTPS and plain HTTP in front, and backends of every kind behind.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use rustls::{ClientConfig, ClientConnection, StreamOwned, version::TLS13};
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::Lab,
    netns::{BACKEND, LB},
    tcp,
};

use crate::terminate::{put, secrets};

/// A server name of the gateway.
pub(crate) const NAME: &str = "www.example.com";
/// The port of HTTPS.
pub(crate) const HTTPS: u16 = 8443;
/// The port of HTTP.
pub(crate) const HTTP: u16 = 8080;
/// The ports of backends: HTTP/1.1, HTTP/2 with prior knowledge, HTTP/2 within TLS.
pub(crate) const PLAIN: u16 = 9000;
pub(crate) const H2C: u16 = 9001;
pub(crate) const H2: u16 = 9002;

/// The address for clients.
pub(crate) fn address(port: u16) -> String {
    format!("{LB}:{port}")
}

/// The address of a backend.
pub(crate) fn backend(port: u16) -> String {
    format!("{BACKEND}:{port}")
}

/// The authority of requests for this backend.
pub(crate) fn authority(port: u16) -> &'static str {
    match port {
        H2C => "h2c.example.com",
        H2 => "h2.example.com",
        _ => NAME,
    }
}

fn objects(lab: &Lab, tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: front, namespace: default}}\n\
         spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  \
         - port: {{number: {HTTPS}, name: https, protocol: HTTPS}}\n    tls: {{credentialName: web, {tls}}}\n    hosts: [\"*\"]\n  \
         - port: {{number: {HTTP}, name: http, protocol: HTTP}}\n    hosts: [\"*\"]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: default}}\n\
         spec:\n  hosts: [\"*\"]\n  gateways: [front]\n  http:\n  \
         - match: [{{authority: {{prefix: h2c.}}}}]\n    route: [{{destination: {{host: web.test, port: {{number: {H2C}}}}}}}]\n  \
         - match: [{{authority: {{prefix: h2.}}}}]\n    route: [{{destination: {{host: tls.test, port: {{number: {H2}}}}}}}]\n  \
         - route: [{{destination: {{host: web.test, port: {{number: {PLAIN}}}}}}}]\n\
         ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web, namespace: default}}\n\
         spec:\n  hosts: [web.test]\n  resolution: STATIC\n  endpoints: [{{address: {BACKEND}}}]\n  ports:\n  \
         - {{number: {PLAIN}, name: http, protocol: HTTP}}\n  - {{number: {H2C}, name: grpc, protocol: GRPC}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: tls, namespace: default}}\n\
         spec:\n  hosts: [tls.test]\n  resolution: STATIC\n  endpoints: [{{address: {BACKEND}}}]\n  ports:\n  \
         - {{number: {H2}, name: http2, protocol: HTTP2}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: tls, namespace: default}}\n\
         spec:\n  host: tls.test\n  trafficPolicy:\n    tls: {{mode: SIMPLE, sni: tls.test, caCertificates: {}}}\n",
        lab.ca.file().display(),
    )
}

/// A gateway, and the directory of its secrets. `settings` are further keys of the native configuration.
pub(crate) fn start<'lab>(lab: &'lab Lab, settings: &str) -> Result<(Daemon<'lab>, PathBuf)> {
    start_with(lab, "mode: SIMPLE", settings)
}

/// Like [`start`], with other TLS settings.
pub(crate) fn start_with<'lab>(lab: &'lab Lab, tls: &str, settings: &str) -> Result<(Daemon<'lab>, PathBuf)> {
    let directory = secrets(lab)?;
    // For the modes that verify client certificates.
    std::fs::copy(lab.ca.file(), directory.join("web/ca.crt"))?;
    let options = options(lab, tls, settings, &directory)?;
    Ok((Daemon::start(lab, &options)?, directory))
}

fn options(lab: &Lab, tls: &str, settings: &str, directory: &std::path::Path) -> Result<Options> {
    let file = lab.dir().join("settings.yaml");
    std::fs::write(&file, format!("secrets: {}\n{settings}", directory.display()))?;
    Ok(Options::yaml(lab, &objects(lab, tls))?.and_file(file))
}

/// An HTTP client within TLS.
pub(crate) type Client = StreamOwned<ClientConnection, std::net::TcpStream>;

/// A client that negotiates `protocol` within TLS (`h2`, `http/1.1`), after its handshake.
pub(crate) fn connect(lab: &Lab, protocol: &str) -> Result<Client> {
    let mut config: ClientConfig = (*lab.ca.client(&[&TLS13])?).clone();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let connection = ClientConnection::new(Arc::new(config), NAME.try_into()?)?;
    let mut client = StreamOwned::new(connection, tcp::connect(&lab.client, &address(HTTPS))?);
    while client.conn.is_handshaking() {
        client.conn.complete_io(&mut client.sock)?;
    }
    Ok(client)
}

/// Replaces the certificate of the gateway.
pub(crate) fn change_certificate(lab: &Lab, directory: &std::path::Path) -> Result<()> {
    put(directory, &lab.ca.issue("*.example.com")?)
}
