//! `backends[].tls` and `backends[].http`: the connection to a backend for terminated TLS and for HTTP.

use std::sync::Arc;

use super::{
    codec::{By, one_or_more, text},
    keys::{FromKeys, mapping},
    secrets::{Authorities, Certificate, NamedSecret, authorities, certificate, owned, pem},
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Flag, choices},
    model::{
        http::BackendHttp,
        termination::{AuthoritySource, UpstreamTls},
    },
    name::ServerName,
};

choices! {
    /// The HTTP version towards a backend.
    pub(super) enum Version {
        /// HTTP/1.1.
        #[strum(serialize = "http1")]
        Http1,
        /// HTTP/2 within TLS.
        #[strum(serialize = "h2")]
        H2,
        /// HTTP/2 without TLS, with prior knowledge (RFC 9113 section 3.3).
        #[strum(serialize = "h2c")]
        H2c,
    }
}

impl From<Version> for BackendHttp {
    fn from(version: Version) -> Self {
        match version {
            Version::Http1 => Self::Http1,
            Version::H2 | Version::H2c => Self::Http2,
        }
    }
}

/// The TLS settings towards a backend.
#[derive(Debug)]
pub(super) struct BackendTls<'n> {
    pub(super) settings: Arc<UpstreamTls>,
    pub(super) secrets: Vec<NamedSecret<'n>>,
}

mapping! {
    /// TLS towards a backend
    pub(super) struct BackendTlsKeys("backend_tls", "backends[].tls") {
        /// The server name to send. The backend's certificate must be for it, unless there are `subject_alt_names`.
        sni: String = optional("the host name of the first endpoint that has one"),
            By(text("a server name", "shop.example.com"), server_name);
        /// Certificates of the authorities that the backend's certificate is from. `system` is what the system
        /// trusts.
        ca: Authorities<'n> = optional("system"),
            By(text("a path with a `/`, the name of a Secret, or `system`", "/etc/ssl/internal.pem"), issuers);
        /// Certificates that these authorities have revoked, in PEM.
        crl: String = optional("`ca.crl` of the Secret, if it has one"), pem("/etc/ssl/internal.crl");
        /// The certificate that is shown to the backend (mutual TLS).
        certificate: Certificate<'n> = optional("none"), certificate("client-cert");
        /// Names of which the backend's certificate must have one.
        subject_alt_names: Vec<String> = optional("the server name"),
            one_or_more(By(text("a name", "spiffe://shop/web"), owned), "names of certificates")
                .or_left_out("leave the key out to mean the server name");
        /// Whether any certificate is taken. Then whoever is on the way can read and change what is sent.
        insecure_skip_verify: bool = default(false), Flag;
    }
}

fn server_name(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let name = view.parse::<ServerName>("a server name, for example shop.example.com", diagnostics);
    name.map(|name| name.to_string())
}

fn issuers<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Authorities<'n>> {
    if view.says("system") {
        return Some(Authorities { source: AuthoritySource::System, secret: None });
    }
    authorities(view, diagnostics)
}

impl<'n> FromKeys<'n> for BackendTls<'n> {
    type Keys = BackendTlsKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let unverified = keys.insecure_skip_verify?;
        if unverified {
            let view = keys.state.at("insecure_skip_verify");
            view.warn("the backend's certificate is not verified: whoever is on the way can read and change what is sent")
                .remedy("remove it, and name the authority of the certificate in 'ca'")
                .emit(diagnostics);
            let needless = ["ca", "crl", "subject_alt_names"];
            for other in needless.into_iter().filter_map(|key| keys.state.view.written(key)) {
                other
                    .error("nothing is verified with insecure_skip_verify")
                    .remedy("remove one of the two")
                    .emit(diagnostics);
            }
        }
        let (issuers, own) = match keys.ca {
            None => (AuthoritySource::System, None),
            Some(authorities) => (authorities.source, authorities.secret),
        };
        let mut secrets: Vec<NamedSecret<'n>> = own.into_iter().collect();
        let certificate = keys.certificate.map(|certificate| {
            secrets.extend(certificate.secret);
            certificate.source
        });
        let settings = Arc::new(UpstreamTls {
            sni: keys.sni,
            authorities: Some(issuers).filter(|_| !unverified),
            crl: keys.crl,
            subject_alt_names: keys.subject_alt_names.unwrap_or_default(),
            certificate,
        });
        Some(Self { settings, secrets })
    }
}
