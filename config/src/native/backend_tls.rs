//! `backends[].tls` and `backends[].http`: the connection to a backend for terminated TLS and for HTTP.

use std::sync::Arc;

use super::terminate::{authorities, certificate, texts};
use crate::{
    credentials::path,
    decode::{Diagnostics, View},
    kind::{Choice, Codec as _},
    model::{
        http::BackendHttp,
        termination::{AuthoritySource, SecretName, UpstreamTls},
    },
    name::ServerName,
};

/// The HTTP version towards a backend.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    strum::EnumMessage,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
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

/// The TLS settings towards a backend.
#[derive(Debug, Default)]
pub(super) struct Towards<'n> {
    pub(super) tls: Option<Arc<UpstreamTls>>,
    pub(super) http: BackendHttp,
    /// The named Secrets, and the place of each name.
    pub(super) secrets: Vec<(SecretName, View<'n>)>,
}

/// Reports an error on `None`: the backend must not get bytes in any other form.
pub(super) fn read<'n>(
    tls_view: Option<&View<'n>>,
    http: Option<&View<'n>>,
    diagnostics: &mut Diagnostics,
) -> Option<Towards<'n>> {
    let mut secrets = Vec::new();
    let tls = match tls_view {
        None => None,
        Some(view) => Some(Arc::new(tls(view, &mut secrets, diagnostics)?)),
    };
    let version = match http {
        None => Version::Http1,
        Some(view) => Choice { what: "version of HTTP" }.read(view, diagnostics)?,
    };
    if let Some(view) = http {
        let wrong = match (version, tls.is_some()) {
            (Version::H2, false) => {
                Some(("'h2' is HTTP/2 within TLS, and there is no 'tls'", "write h2c, or add tls: {}"))
            }
            (Version::H2c, true) => {
                Some(("'h2c' is HTTP/2 without TLS, and there is 'tls'", "write h2, or remove 'tls'"))
            }
            _ => None,
        };
        if let Some((problem, remedy)) = wrong {
            view.error(problem).remedy(remedy).emit(diagnostics);
            return None;
        }
    }
    let http = match version {
        Version::Http1 => BackendHttp::Http1,
        Version::H2 | Version::H2c => BackendHttp::Http2,
    };
    Some(Towards { tls, http, secrets })
}

fn tls<'n>(
    view: &View<'n>,
    secrets: &mut Vec<(SecretName, View<'n>)>,
    diagnostics: &mut Diagnostics,
) -> Option<UpstreamTls> {
    let mut fields =
        view.fields("{sni, ca, crl, certificate, subject_alt_names, insecure_skip_verify}", diagnostics)?;
    let [sni, ca, crl, own, names, skip] =
        ["sni", "ca", "crl", "certificate", "subject_alt_names", "insecure_skip_verify"]
            .map(|key| fields.take(key));
    fields.finish(diagnostics);
    let sni = match sni {
        None => Some(None),
        Some(view) => {
            let name = view.parse::<ServerName>("a server name, for example shop.example.com", diagnostics);
            name.map(|name| Some(name.to_string()))
        }
    };
    let issuers = match &ca {
        None => Some(AuthoritySource::System),
        Some(view) if view.says("system") => Some(AuthoritySource::System),
        Some(view) => authorities(view, secrets, diagnostics),
    };
    let revoked = match &crl {
        None => Some(None),
        Some(view) => path(view, diagnostics).map(Some),
    };
    let own = match own {
        None => Some(None),
        Some(view) => certificate(&view, secrets, diagnostics).map(Some),
    };
    let subject_alt_names = match &names {
        None => Some(Vec::new()),
        Some(view) => {
            Some(texts(view, "names of certificates", diagnostics)).filter(|names| !names.is_empty())
        }
    };
    let unverified = match &skip {
        None => Some(false),
        Some(view) => view.flag(diagnostics),
    };
    if let (Some(true), Some(view)) = (unverified, &skip) {
        view.warn("the backend's certificate is not verified: whoever is on the way can read and change what is sent")
            .remedy("remove it, and name the authority of the certificate in 'ca'")
            .emit(diagnostics);
        for other in [&ca, &crl, &names].into_iter().flatten() {
            other
                .error("nothing is verified with insecure_skip_verify")
                .remedy("remove one of the two")
                .emit(diagnostics);
        }
    }
    Some(UpstreamTls {
        sni: sni?,
        authorities: Some(issuers?).filter(|_| unverified == Some(false)),
        crl: revoked?,
        subject_alt_names: subject_alt_names?,
        certificate: own?,
    })
}
