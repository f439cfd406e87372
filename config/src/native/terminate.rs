//! `routes[].terminate`: the termination of TLS.

use std::sync::Arc;

use super::http::{self, NativeRule, Owner};
use crate::{
    builder::ModelBuilder,
    credentials::{cipher_suites, missing_secret, path, secret_name},
    decode::{Diagnostics, View},
    kind::{Choice, Codec as _},
    model::{
        cipher_suites::spoken,
        route::Origin,
        termination::{
            AuthoritySource, CertificateSource, ClientAuth, ClientCertificates, Inside, SecretName,
            Termination, TlsVersion,
        },
    },
    name::HostPattern,
};

/// The termination of a route, as written.
#[derive(Debug)]
pub(super) struct Terminate<'n> {
    /// Rules for the requests in the connection. `None` forwards bytes.
    pub(super) http: Option<Vec<NativeRule<'n>>>,
    certificates: Vec<CertificateSource>,
    client: ClientAuth,
    min_version: TlsVersion,
    max_version: TlsVersion,
    cipher_suites: Vec<String>,
    alpn: Vec<String>,
    /// The named Secrets, and the place of each name.
    secrets: Vec<(SecretName, View<'n>)>,
}

/// The values of `client_certificate`.
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
#[strum(serialize_all = "snake_case")]
pub(super) enum Wanted {
    /// A client without a valid certificate is refused.
    Required,
    /// A client may send no certificate. A certificate that it sends must be valid.
    Optional,
}

/// The offered protocols if requests have rules.
const HTTP_PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// The greatest length of a protocol's name (RFC 7301 section 3.1).
const LONGEST_PROTOCOL: usize = 255;

pub(super) fn read<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Terminate<'n>> {
    let mut fields = view.fields(
        "{certificates, http, client_ca, client_crl, client_certificate, subject_alt_names, min_version, max_version, cipher_suites, \
         alpn}",
        diagnostics,
    )?;
    let mut secrets = Vec::new();
    let expected = "the name of a Secret, or {certificate: PATH, key: PATH}";
    let certificates = fields.require("certificates", expected, diagnostics).map(|list| {
        let items = list.one_or_more(expected, diagnostics);
        if items.is_empty() {
            list.error("the list is empty").expected(expected).emit(diagnostics);
        }
        items.iter().filter_map(|item| certificate(item, &mut secrets, diagnostics)).collect::<Vec<_>>()
    });
    let authorities = fields.take("client_ca").map(|view| authorities(&view, &mut secrets, diagnostics));
    let crl_view = fields.take("client_crl");
    let crl = match &crl_view {
        None => Some(None),
        Some(view) => path(view, diagnostics).map(Some),
    };
    let wanted_view = fields.take("client_certificate");
    let wanted = wanted_view
        .as_ref()
        .map(|view| Choice { what: "kind of client certificate" }.read(view, diagnostics));
    let names_view = fields.take("subject_alt_names");
    let subject_alt_names = names_view.as_ref().map(|view| texts(view, "names of certificates", diagnostics));
    let version = Choice { what: "version" };
    let min = fields.take("min_version").map(|view| version.read(&view, diagnostics));
    let max_view = fields.take("max_version");
    let max = max_view.as_ref().map(|view| version.read(view, diagnostics));
    let suites_view = fields.take("cipher_suites");
    let alpn = fields.take("alpn").map(|view| (texts(&view, "names of protocols, as h2", diagnostics), view));
    let http = fields.take("http").map(|view| http::read(&view, false, diagnostics));
    fields.finish(diagnostics);

    let client = match (authorities, wanted) {
        (None, None) => {
            for view in [&names_view, &crl_view].into_iter().flatten() {
                view.error("no client is asked for a certificate")
                    .remedy("add 'client_ca', whose certificates clients have to show")
                    .emit(diagnostics);
            }
            ClientAuth::None
        }
        (None, Some(_)) => {
            wanted_view?
                .error("'client_ca' is missing: nothing says which certificates of clients are good")
                .remedy("add client_ca: the path of a file in PEM, or the name of a Secret")
                .emit(diagnostics);
            return None;
        }
        (Some(authorities), wanted) => {
            let subject_alt_names = subject_alt_names.unwrap_or_default();
            let certificates = ClientCertificates { authorities: authorities?, crl: crl?, subject_alt_names };
            match wanted.unwrap_or(Some(Wanted::Required))? {
                Wanted::Required => ClientAuth::Required(certificates),
                Wanted::Optional => ClientAuth::Optional(certificates),
            }
        }
    };
    let (min_version, max_version) =
        (min.unwrap_or(Some(TlsVersion::V1_2))?, max.unwrap_or(Some(TlsVersion::V1_3))?);
    if min_version > max_version {
        max_view?
            .error("older than min_version, so that no version is left")
            .remedy("leave max_version out")
            .emit(diagnostics);
        return None;
    }
    let suites = suites_view.as_ref().map(|view| cipher_suites(view, diagnostics)).unwrap_or_default();
    if let (Some(view), true) = (&suites_view, suites.is_empty()) {
        view.error("none of the cipher suites is spoken here")
            .expected(spoken().collect::<Vec<_>>().join(", "))
            .remedy("leave the key out to speak all of these")
            .emit(diagnostics);
    }
    // A route with invalid rules must not forward the requests as bytes.
    let http = match http {
        None => None,
        Some(read) => Some(read?),
    };
    let alpn = protocols(alpn, http.is_some(), diagnostics);
    Some(Terminate {
        http,
        certificates: certificates.filter(|certificates| !certificates.is_empty())?,
        client,
        min_version,
        max_version,
        cipher_suites: suites,
        alpn,
        secrets,
    })
}

/// The protocols to offer: the written ones, or else those that rules for HTTP requests need.
fn protocols(
    written: Option<(Vec<String>, View<'_>)>,
    for_http: bool,
    diagnostics: &mut Diagnostics,
) -> Vec<String> {
    let Some((names, view)) = written else {
        return if for_http { HTTP_PROTOCOLS.map(str::to_owned).into() } else { Vec::new() };
    };
    if names.iter().any(|name| name.is_empty() || name.len() > LONGEST_PROTOCOL) {
        view.error("the name of a protocol has 1 to 255 bytes (RFC 7301)").emit(diagnostics);
    } else if let Some(other) = names.iter().find(|name| for_http && !HTTP_PROTOCOLS.contains(&name.as_str()))
    {
        view.error(format!("'{other}' is not spoken where requests have rules of their own"))
            .expected(HTTP_PROTOCOLS.join(" and "))
            .remedy("leave the key out to offer both")
            .emit(diagnostics);
    }
    names
}

pub(super) fn certificate<'n>(
    view: &View<'n>,
    secrets: &mut Vec<(SecretName, View<'n>)>,
    diagnostics: &mut Diagnostics,
) -> Option<CertificateSource> {
    if view.is_text() {
        let name = secret_name(view, "", diagnostics)?;
        secrets.push((name.clone(), view.clone()));
        return Some(CertificateSource::Secret(name));
    }
    let mut fields = view.fields("the name of a Secret, or {certificate: PATH, key: PATH}", diagnostics)?;
    let certificate = fields.require("certificate", "the path of a file in PEM", diagnostics);
    let key = fields.require("key", "the path of a file in PEM", diagnostics);
    fields.finish(diagnostics);
    Some(CertificateSource::Files {
        certificate: path(&certificate?, diagnostics)?,
        key: path(&key?, diagnostics)?,
    })
}

/// A text with a slash is a path, since no name of a Secret contains one.
pub(super) fn authorities<'n>(
    view: &View<'n>,
    secrets: &mut Vec<(SecretName, View<'n>)>,
    diagnostics: &mut Diagnostics,
) -> Option<AuthoritySource> {
    let text = view.text("a path with a '/', or the name of a Secret", diagnostics)?;
    if text.contains('/') {
        return Some(AuthoritySource::File(path(view, diagnostics)?));
    }
    let name = secret_name(view, "", diagnostics)?;
    secrets.push((name.clone(), view.clone()));
    Some(AuthoritySource::Secret(name))
}

pub(super) fn texts(view: &View<'_>, expected: &str, diagnostics: &mut Diagnostics) -> Vec<String> {
    let items = view.one_or_more(expected, diagnostics);
    items.iter().filter_map(|item| item.text(expected, diagnostics).map(str::to_owned)).collect()
}

impl Terminate<'_> {
    /// Builds the termination of a route for these names.
    pub(super) fn build(
        &self,
        name: &str,
        origin: Origin,
        hosts: &[HostPattern],
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) -> Arc<Termination> {
        for (secret, view) in &self.secrets {
            let missing = missing_secret(secret, view, "the names of the route are refused");
            builder.want_secret(secret.clone(), missing);
        }
        let inside = match &self.http {
            None => Inside::Bytes,
            Some(rules) => {
                let owner = Owner { name, hosts, redirect: None };
                Inside::Http(Arc::new(http::table(rules, &owner, builder, diagnostics)))
            }
        };
        builder.termination(|id| Termination {
            id,
            name: name.to_owned(),
            origin,
            certificates: self.certificates.clone(),
            client: self.client.clone(),
            min_version: self.min_version,
            max_version: self.max_version,
            cipher_suites: self.cipher_suites.clone(),
            alpn: self.alpn.clone(),
            inside,
        })
    }
}
