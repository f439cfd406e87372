//! How TLS ends and what is inside, in words, for `check` and `explain`.

use std::fmt;

use crate::model::{
    Rule,
    termination::{AuthoritySource, CertificateSource, ClientAuth, Inside, Termination, TlsVersion},
};

impl fmt::Display for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "Secret {name}"),
            Self::Files { certificate, .. } => f.write_str(certificate),
        }
    }
}

impl fmt::Display for AuthoritySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "Secret {name}"),
            Self::File(path) => f.write_str(path),
            Self::System => f.write_str("those of the system"),
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.into())
    }
}

/// `Secret web/cert, clients must show a certificate of /ca.pem, TLSv1.2 to TLSv1.3, offers h2`.
pub(crate) struct Settings<'t>(pub(crate) &'t Termination);

impl fmt::Display for Settings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Termination { certificates, client, min_version, max_version, cipher_suites, alpn, .. }) =
            self;
        f.write_str(&joined(certificates))?;
        let (how, clients) = match client {
            ClientAuth::None => ("", None),
            ClientAuth::Optional(clients) => ("may", Some(clients)),
            ClientAuth::Required(clients) => ("must", Some(clients)),
        };
        if let Some(clients) = clients {
            write!(f, ", clients {how} show a certificate of {}", clients.authorities)?;
            if !clients.subject_alt_names.is_empty() {
                write!(f, " for {}", clients.subject_alt_names.join(" or "))?;
            }
        }
        if min_version == max_version {
            write!(f, ", {min_version}")?;
        } else {
            write!(f, ", {min_version} to {max_version}")?;
        }
        if !cipher_suites.is_empty() {
            write!(f, ", suites {}", cipher_suites.join(", "))?;
        }
        if !alpn.is_empty() {
            write!(f, ", offers {}", alpn.join(", "))?;
        }
        Ok(())
    }
}

/// What a rule does with TLS, in a word.
pub(crate) fn mode(rule: &Rule) -> &'static str {
    if rule.termination.is_some() { "terminated" } else { "passed through" }
}

/// Whether HTTP requests are served inside of TLS.
pub(crate) fn is_http(rule: &Rule) -> bool {
    rule.termination.as_ref().is_some_and(|ends| matches!(ends.inside, Inside::Http(_)))
}

fn joined(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
