//! `routes[].terminate`: the termination of TLS.

use std::sync::Arc;

use super::{
    codec::{By, one_or_more, text},
    http::{NativeRule, Owner, rules, table},
    keys::{FromKeys, State, mapping},
    secrets::{Authorities, Certificate, NamedSecret, authorities, certificate, owned, pem},
};
use crate::{
    builder::ModelBuilder,
    credentials::{cipher_suites, missing_secret},
    decode::{Diagnostics, View},
    kind::{Choice, Kind, choices},
    model::{
        cipher_suites::spoken,
        route::Origin,
        termination::{CertificateSource, ClientAuth, ClientCertificates, Inside, Termination, TlsVersion},
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
    secrets: Vec<NamedSecret<'n>>,
}

choices! {
    /// The values of `client_certificate`.
    pub(super) enum Wanted {
        /// A client without a valid certificate is refused.
        Required,
        /// A client may send no certificate. A certificate that it sends must be valid.
        Optional,
    }
}

/// The offered protocols if requests have rules.
const HTTP_PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// The greatest length of a protocol's name (RFC 7301 section 3.1).
const LONGEST_PROTOCOL: usize = 255;

const CERTIFICATES: &str = "the name of a Secret, or {certificate: PATH, key: PATH}";
const VERSION: Choice = Choice { what: "version" };

mapping! {
    /// How a route ends TLS
    pub(super) struct TerminateKeys("terminate", "routes[].terminate") {
        /// Certificates with their keys. Of several, the first that fits the client and the server name is shown.
        certificates: Vec<Certificate<'n>> = required(CERTIFICATES),
            one_or_more(certificate("shop-cert"), CERTIFICATES);
        /// Rules for the HTTP requests inside of TLS. The first that matches serves; without one the answer is 404.
        http: Vec<NativeRule<'n>> = optional("what is inside is bytes"), rules();
        /// Certificates of the authorities that clients' certificates are from. A Secret holds them as `ca.crt` or
        /// `cacert`.
        client_ca: Authorities<'n> = optional("no client is asked"),
            By(text("a path with a `/`, or the name of a Secret", "/etc/ssl/clients.pem"), authorities);
        /// Certificates that these authorities have revoked, in PEM. With it, each authority of a client's chain
        /// needs a list that is in force.
        client_crl: String = optional("`ca.crl` of the Secret, if it has one"), pem("/etc/ssl/clients.crl");
        /// Whether a client must show a certificate, where there is a `client_ca`.
        client_certificate: Wanted = default(Wanted::Required), Choice { what: "kind of client certificate" };
        /// Names of which the certificate of a client must have one.
        subject_alt_names: Vec<String> = optional("any"),
            one_or_more(By(text("a name", "spiffe://shop/web"), owned), "names of certificates").or_none();
        /// The oldest version.
        min_version: TlsVersion = default(TlsVersion::V1_2), VERSION;
        /// The newest version.
        max_version: TlsVersion = default(TlsVersion::V1_3), VERSION;
        /// Cipher suites, as OpenSSL or the IANA registry writes them. One that is not spoken here is left out, with
        /// a warning.
        cipher_suites: Vec<String> = optional("all of the library"), By(suite_names(), suites);
        /// Protocols to offer (RFC 7301), the preferred one first.
        alpn: Vec<String> = optional("h2 and http/1.1 with `http`, else none"),
            one_or_more(By(text("the name of a protocol", "http/1.1"), owned), "names of protocols, as h2")
                .or_none();
    }
}

fn suite_names() -> Kind {
    Kind::List(Box::new(text("the name of a cipher suite", "ECDHE-ECDSA-AES128-GCM-SHA256")))
}

fn suites(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Vec<String>> {
    let before = diagnostics.errors();
    let suites = cipher_suites(view, diagnostics);
    (diagnostics.errors() == before).then_some(suites)
}

impl<'n> FromKeys<'n> for Terminate<'n> {
    type Keys = TerminateKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let mut secrets: Vec<NamedSecret<'n>> = Vec::new();
        let mut certificates = Vec::new();
        for certificate in keys.certificates.unwrap_or_default() {
            secrets.extend(certificate.secret);
            certificates.push(certificate.source);
        }
        let authorities = keys.client_ca.map(|authorities| {
            secrets.extend(authorities.secret);
            authorities.source
        });
        let client = match authorities {
            None => {
                report_needless(&keys.state, diagnostics)?;
                ClientAuth::None
            }
            Some(authorities) => {
                let subject_alt_names = keys.subject_alt_names.unwrap_or_default();
                let certificates =
                    ClientCertificates { authorities, crl: keys.client_crl, subject_alt_names };
                match keys.client_certificate? {
                    Wanted::Required => ClientAuth::Required(certificates),
                    Wanted::Optional => ClientAuth::Optional(certificates),
                }
            }
        };
        let (min_version, max_version) = (keys.min_version?, keys.max_version?);
        if min_version > max_version {
            let view = keys.state.at("max_version");
            view.error("older than min_version, so that no version is left")
                .remedy("leave max_version out")
                .emit(diagnostics);
            return None;
        }
        if keys.cipher_suites.as_ref().is_some_and(Vec::is_empty) {
            let view = keys.state.at("cipher_suites");
            view.error("none of the cipher suites is spoken here")
                .expected(spoken().collect::<Vec<_>>().join(", "))
                .remedy("leave the key out to speak all of these")
                .emit(diagnostics);
        }
        let for_http = keys.state.is_written("http");
        let alpn = match keys.alpn {
            None if for_http => HTTP_PROTOCOLS.map(str::to_owned).into(),
            None => Vec::new(),
            Some(names) => {
                check_protocols(&names, &keys.state.at("alpn"), for_http, diagnostics);
                names
            }
        };
        Some(Self {
            http: keys.http,
            certificates,
            client,
            min_version,
            max_version,
            cipher_suites: keys.cipher_suites.unwrap_or_default(),
            alpn,
            secrets,
        })
    }
}

/// Reports keys about clients' certificates without `client_ca`. `None` if one of them is a requirement.
fn report_needless(state: &State<'_>, diagnostics: &mut Diagnostics) -> Option<()> {
    if !state.lacks(&["client_ca"]) {
        return Some(());
    }
    if let Some(view) = state.view.written("client_certificate") {
        view.error("'client_ca' is missing: nothing says which certificates of clients are good")
            .remedy("add client_ca: the path of a file in PEM, or the name of a Secret")
            .emit(diagnostics);
        return None;
    }
    for view in ["subject_alt_names", "client_crl"].into_iter().filter_map(|key| state.view.written(key)) {
        view.error("no client is asked for a certificate")
            .remedy("add 'client_ca', whose certificates clients have to show")
            .emit(diagnostics);
    }
    Some(())
}

fn check_protocols(names: &[String], view: &View<'_>, for_http: bool, diagnostics: &mut Diagnostics) {
    if names.iter().any(|name| name.is_empty() || name.len() > LONGEST_PROTOCOL) {
        view.error("the name of a protocol has 1 to 255 bytes (RFC 7301)").emit(diagnostics);
    } else if let Some(other) = names.iter().find(|name| for_http && !HTTP_PROTOCOLS.contains(&name.as_str()))
    {
        view.error(format!("'{other}' is not spoken where requests have rules of their own"))
            .expected(HTTP_PROTOCOLS.join(" and "))
            .remedy("leave the key out to offer both")
            .emit(diagnostics);
    }
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
                Inside::Http(Arc::new(table(rules, &owner, builder, diagnostics)))
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
