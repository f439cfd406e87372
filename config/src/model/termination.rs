//! TLS that ends here: certificates, clients' certificates, versions, and what is served inside.

use std::{fmt, sync::Arc};

use super::{http::HttpTable, route::Origin};

/// How a rule ends TLS, and what it serves inside. A rule without one passes TLS through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// Dense index over all terminations of one model, from 0 to [`Model::terminations`](super::Model::terminations).
    /// Rules of one server share one termination.
    pub id: usize,
    /// Which server wants it: `route NAME` or `Gateway namespace/name servers[0]`.
    pub name: String,
    /// Where it was written.
    pub origin: Origin,
    /// At least one; of several, the first that the client's signature algorithms and the server name fit is taken.
    pub certificates: Vec<CertificateSource>,
    /// Whether clients show a certificate.
    pub client: ClientAuth,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The newest version that is spoken.
    pub max_version: TlsVersion,
    /// Cipher suites that are spoken here, by their names in the IANA registry (`TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`);
    /// empty is the library's choice. As in Envoy, they narrow TLS 1.2 alone unless one of them is of TLS 1.3.
    pub cipher_suites: Vec<String>,
    /// Protocols to offer (RFC 7301), the preferred one first; empty offers none.
    pub alpn: Vec<String>,
    /// What is inside.
    pub inside: Inside,
}

/// Where a certificate with its key is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateSource {
    /// A Secret by name: of the loaded objects, or of the secrets directory.
    Secret(SecretName),
    /// Files.
    Files {
        /// The certificate and those that lead to its issuer, in PEM.
        certificate: String,
        /// The private key, in PEM.
        key: String,
    },
}

/// A Secret's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretName {
    /// The namespace in which it is looked for first; empty is any.
    pub namespace: String,
    /// `metadata.name`, or the name of a file or directory of the secrets directory.
    pub name: String,
}

impl SecretName {
    /// What follows a Secret's name in that of the Secret with the certificates of authorities.
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

/// Whether a client must prove who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// It is not asked.
    #[default]
    None,
    /// It is asked; what it shows must be good (`OPTIONAL_MUTUAL`).
    Optional(ClientCertificates),
    /// It must show a good certificate (`MUTUAL`).
    Required(ClientCertificates),
}

/// Which certificates of clients are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// Whose certificates count as issuers.
    pub authorities: AuthoritySource,
    /// A file with what they have revoked, in PEM; a Secret may hold that beside them, as `ca.crl`.
    pub crl: Option<String>,
    /// Names of which the certificate must have one, where there are any.
    pub subject_alt_names: Vec<String>,
}

/// Where the certificates of authorities are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AuthoritySource {
    /// `ca.crt` or `cacert` of a Secret, or of the Secret with `-cacert` behind its name.
    Secret(SecretName),
    /// A file with certificates in PEM.
    File(String),
    /// What the system trusts.
    System,
}

/// A version of TLS that can be spoken.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    strum::EnumMessage,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[strum(serialize = "TLSv1.2")]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    #[strum(serialize = "TLSv1.3")]
    V1_3,
}

/// What a terminated connection carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inside {
    /// Bytes, which go to the rule's targets.
    Bytes,
    /// HTTP requests, each of which has a rule of its own. The rule of the server name has no targets then.
    Http(Arc<HttpTable>),
}

/// TLS towards a backend (`DestinationRule` `trafficPolicy.tls`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// The server name to send; none sends the host's name where it is one.
    pub sni: Option<String>,
    /// Who issues the backend's certificate; `None` does not verify it (`insecureSkipVerify`).
    pub authorities: Option<AuthoritySource>,
    /// A file with what they have revoked, in PEM; a Secret may hold that beside them, as `ca.crl`.
    pub crl: Option<String>,
    /// Names of which the backend's certificate must have one; the server name without any.
    pub subject_alt_names: Vec<String>,
    /// Our own certificate (`MUTUAL`).
    pub certificate: Option<CertificateSource>,
}
