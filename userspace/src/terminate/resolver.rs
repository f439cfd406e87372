//! The selection of a server's certificate for a client.

use std::sync::Arc;

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use snisplice_config::name::ServerName;

use crate::secrets::Certificate;

/// The certificates of one server, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Certificates(pub(super) Vec<Arc<Certificate>>);

impl ResolvesServerCert for Certificates {
    /// The first certificate that matches the client's signature algorithms and the server name, or else the first
    /// that matches the algorithms. Without any match, the first of all: the library then refuses the handshake with
    /// the alert for that.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::parse(name).ok());
        let signs = |certificate: &&Arc<Certificate>| {
            certificate.key.key.choose_scheme(hello.signature_schemes()).is_some()
        };
        let covers =
            |certificate: &&Arc<Certificate>| name.as_ref().is_some_and(|name| certificate.covers(name));
        let all = || self.0.iter();
        let chosen = all().filter(signs).find(covers).or_else(|| all().find(signs)).or_else(|| all().next());
        chosen.map(|certificate| certificate.key.clone())
    }
}
