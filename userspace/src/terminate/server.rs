//! The termination of TLS, in the library's terms.

use std::sync::Arc;

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    server::{NoServerSessionStorage, WantsServerCert},
    version::{TLS12, TLS13},
};
use snisplice_config::{
    model::termination::{Termination, TlsVersion},
    name::HostPattern,
};

use super::{Context, LoadFault, clients, provider, resolver::Certificates, tickets, verifier};
use crate::secrets::{Certificate, Loader};

/// Terminates TLS for one server.
#[derive(Debug)]
pub struct Server {
    /// The name of the server in the configuration.
    pub(super) name: String,
    /// The library's configuration.
    pub(super) config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

impl Server {
    pub(super) fn load(
        termination: &Termination,
        loader: &mut Loader<'_>,
        context: &Context,
    ) -> Result<Self, LoadFault> {
        let certificates: Result<Vec<_>, _> =
            termination.certificates.iter().map(|source| loader.certificate(source)).collect();
        let certificates = Arc::new(Certificates(certificates?));
        let authorities = match clients(&termination.client) {
            Some(clients) => Some(loader.authorities(&clients.authorities, clients.crl.as_deref())?),
            None => None,
        };
        let builder = ServerConfig::builder_with_provider(provider::with_suites(&termination.cipher_suites)?);
        let builder =
            builder.with_protocol_versions(&versions(termination)).map_err(|_| LoadFault::Versions {
                min: <&str>::from(termination.min_version).to_owned(),
                max: <&str>::from(termination.max_version).to_owned(),
            })?;
        let builder: rustls::ConfigBuilder<ServerConfig, WantsServerCert> =
            match verifier::of_clients(&termination.client, authorities.as_ref())? {
                Some(verifier) => builder.with_client_cert_verifier(verifier),
                None => builder.with_no_client_auth(),
            };
        let mut config = builder.with_cert_resolver(certificates.clone());
        config.alpn_protocols =
            termination.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
        // Tickets only: every worker can decrypt them, and so can a process that takes over.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let of = tickets::Context::of(termination, authorities.as_ref());
        config.ticketer = context.tickets.ticketer(of);
        if let Some(key_log) = &context.key_log {
            config.key_log = key_log.clone();
        }
        Ok(Self { name: termination.name.clone(), config: Arc::new(config), certificates })
    }

    /// Whether one of the certificates covers these names.
    #[must_use]
    pub fn covers(&self, pattern: &HostPattern) -> bool {
        self.certificates().any(|certificate| certificate.covers_pattern(pattern))
    }

    /// All of its certificates.
    pub fn certificates(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        self.certificates.0.iter()
    }
}

/// From the oldest to the newest configured version.
fn versions(termination: &Termination) -> Vec<&'static SupportedProtocolVersion> {
    let asked = termination.min_version..=termination.max_version;
    [(TlsVersion::V1_3, &TLS13), (TlsVersion::V1_2, &TLS12)]
        .into_iter()
        .filter_map(|(version, supported)| asked.contains(&version).then_some(supported))
        .collect()
}
