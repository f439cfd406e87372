//! TLS termination: certificates, client certificates, versions, and the content.

use std::{fmt, sync::Arc};

use super::{http::HttpTable, route::Origin};
use crate::kind::choices;

/// The termination of TLS by a rule, and the content. A rule without a termination passes TLS through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// Dense index over all terminations of one model, from 0 to [`Model::terminations`](super::Model::terminations).
    /// Rules of one server share one termination.
    pub id: usize,
    /// The server: `route NAME` or `Gateway namespace/name servers[0]`.
    pub name: String,
    /// The location in the configuration.
    pub origin: Origin,
    /// At least one. The first one that matches the client's signature algorithms and the server name is used.
    pub certificates: Vec<CertificateSource>,
    /// The authentication of clients by certificate.
    pub client: ClientAuth,
    /// The oldest supported version.
    pub min_version: TlsVersion,
    /// The newest supported version.
    pub max_version: TlsVersion,
    /// The supported cipher suites, by their names in the IANA registry (`TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`). An
    /// empty list is the library's choice. As in Envoy, the list restricts TLS 1.2 only, unless it contains a TLS 1.3
    /// suite.
    pub cipher_suites: Vec<String>,
    /// Protocols to offer (RFC 7301), the preferred one first. An empty list offers none.
    pub alpn: Vec<String>,
    /// The content of the connection.
    pub inside: Inside,
}

/// The source of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateSource {
    /// A Secret by name: one of the loaded objects, or of the secrets directory.
    Secret(SecretName),
    /// Paths of files.
    Files {
        /// The certificate and its intermediate certificates, in PEM.
        certificate: String,
        /// The private key, in PEM.
        key: String,
    },
}

/// A Secret's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretName {
    /// The namespace that is searched first. An empty string is any namespace.
    pub namespace: String,
    /// `metadata.name`, or the name of a file or directory of the secrets directory.
    pub name: String,
}

impl SecretName {
    /// The suffix of the name of the Secret with the certificates of authorities.
    pub const AUTHORITIES: &str = "-cacert";
}

/// As `namespace/name`, or the name alone.
impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The authentication of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate is requested.
    #[default]
    None,
    /// A certificate is requested, and must be valid if the client sends one (`OPTIONAL_MUTUAL`).
    Optional(ClientCertificates),
    /// A valid certificate is required (`MUTUAL`).
    Required(ClientCertificates),
}

/// The conditions for a valid client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The accepted issuers.
    pub authorities: AuthoritySource,
    /// A file with the issuers' revocation lists, in PEM. A Secret may contain them beside the certificates, as
    /// `ca.crl`.
    pub crl: Option<String>,
    /// The certificate must have one of these names, if there are any.
    pub subject_alt_names: Vec<String>,
}

/// The source of the authorities' certificates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AuthoritySource {
    /// `ca.crt` or `cacert` of a Secret, or of the Secret with the suffix `-cacert`.
    Secret(SecretName),
    /// A file with certificates in PEM.
    File(String),
    /// The system's trust store.
    System,
}

choices! {
    /// A supported version of TLS.
    #[derive(PartialOrd, Ord)]
    pub enum TlsVersion {
        /// TLS 1.2 (RFC 5246).
        #[strum(serialize = "TLSv1.2")]
        V1_2,
        /// TLS 1.3 (RFC 8446).
        #[strum(serialize = "TLSv1.3")]
        V1_3,
    }
}

/// The content of a terminated connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// Bytes, which are forwarded to the rule's targets.
    Bytes,
    /// HTTP requests, each of which has a rule of its own. The rule of the server name then has no targets.
    Http(Arc<HttpTable>),
}

/// TLS to a backend (`DestinationRule` `trafficPolicy.tls`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// The server name to send. `None` sends the endpoint's host, if it is a name.
    pub sni: Option<String>,
    /// The issuers of the backend's certificate. `None` does not verify the certificate (`insecureSkipVerify`).
    pub authorities: Option<AuthoritySource>,
    /// A file with the issuers' revocation lists, in PEM. A Secret may contain them beside the certificates, as
    /// `ca.crl`.
    pub crl: Option<String>,
    /// The backend's certificate must have one of these names. If empty, it must have the server name.
    pub subject_alt_names: Vec<String>,
    /// The balancer's client certificate (`MUTUAL`).
    pub certificate: Option<CertificateSource>,
}
