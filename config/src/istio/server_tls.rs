//! `servers[].tls`: passthrough or termination, and the certificates.

use crate::{
    credentials::{self, path, secret_name},
    decode::{Diagnostics, Fields, View},
    model::{
        cipher_suites::spoken,
        termination::{
            AuthoritySource, CertificateSource, ClientAuth, ClientCertificates, SecretName, TlsVersion,
        },
    },
};

/// The TLS mode of a server.
#[derive(Debug)]
pub(super) enum Mode<'n> {
    Passthrough,
    Terminate(Box<ServerTls<'n>>),
    /// Invalid, with an error reported. The server's names are refused.
    Refused,
}

/// The TLS termination of a server.
#[derive(Debug)]
pub(super) struct ServerTls<'n> {
    /// At least one.
    pub(super) certificates: Vec<CertificateSource>,
    pub(super) client: ClientAuth,
    pub(super) min_version: TlsVersion,
    pub(super) max_version: TlsVersion,
    pub(super) cipher_suites: Vec<String>,
    /// The named Secrets, and the place of each name.
    pub(super) secrets: Vec<(SecretName, View<'n>)>,
}

const MODES: &str = "PASSTHROUGH, SIMPLE, MUTUAL or OPTIONAL_MUTUAL";
/// The greatest number of certificates, as in Istio: one for each kind of key.
const MOST_CERTIFICATES: usize = 2;

/// Reads `tls` of a server with protocol HTTPS or TLS. Secrets are searched in `namespace` first.
pub(super) fn read<'n>(
    server: &View<'n>,
    tls: Option<&View<'n>>,
    namespace: &str,
    diagnostics: &mut Diagnostics,
) -> Mode<'n> {
    let Some(tls) = tls else {
        server
            .error("a server with protocol HTTPS or TLS needs 'tls': it is not served")
            .expected("tls: {mode: PASSTHROUGH}, or tls: {mode: SIMPLE, credentialName: NAME}")
            .emit(diagnostics);
        return Mode::Refused;
    };
    let Some(mut fields) = tls.fields("{mode, credentialName}", diagnostics) else { return Mode::Refused };
    let mode_view = fields.take_set("mode");
    let redirect = fields.take("httpsRedirect").filter(|view| !view.says("false"));
    let written = Written::take(&mut fields);
    fields.finish(diagnostics);

    let mode = match &mode_view {
        // The first value of the enumeration, which is Istio's default.
        None => "PASSTHROUGH",
        Some(view) => match view.text(MODES, diagnostics) {
            Some(mode) => mode,
            None => return Mode::Refused,
        },
    };
    let at = mode_view.as_ref().unwrap_or(tls);
    match mode {
        "PASSTHROUGH" => {
            if mode_view.is_none() {
                tls.note("no mode is given, which means PASSTHROUGH").emit(diagnostics);
            }
            for other in written.all().chain(&redirect) {
                other.warn("the field has no meaning with PASSTHROUGH, ignored").emit(diagnostics);
            }
            Mode::Passthrough
        }
        "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL" => {
            if let Some(redirect) = redirect {
                redirect
                    .warn("the field is for HTTP servers: a client of this one speaks TLS already, ignored")
                    .emit(diagnostics);
            }
            match written.termination(tls, mode, namespace, diagnostics) {
                Some(server) => Mode::Terminate(Box::new(server)),
                None => Mode::Refused,
            }
        }
        "ISTIO_MUTUAL" | "AUTO_PASSTHROUGH" => {
            let why = match mode {
                "ISTIO_MUTUAL" => "the certificates of a mesh exist only inside it",
                _ => "server names that encode a cluster exist only inside a mesh",
            };
            at.error(format!("{mode} is not implemented ({why}): the server is not served"))
                .expected(MODES)
                .remedy("use one of the other modes, or keep this server in Istio")
                .emit(diagnostics);
            Mode::Refused
        }
        _ => {
            at.error(format!("there is no mode '{mode}': the server is not served"))
                .expected(MODES)
                .emit(diagnostics);
            Mode::Refused
        }
    }
}

/// All written fields except `httpsRedirect`.
pub(super) fn others<'n>(fields: &mut Fields<'n>) -> Vec<View<'n>> {
    let mode = fields.take_set("mode").filter(|mode| !mode.says("PASSTHROUGH"));
    mode.into_iter().chain(Written::take(fields).all().cloned()).collect()
}

/// The fields of the termination, as written.
struct Written<'n> {
    server_certificate: Option<View<'n>>,
    private_key: Option<View<'n>>,
    ca_certificates: Option<View<'n>>,
    credential_name: Option<View<'n>>,
    credential_names: Option<View<'n>>,
    ca_cert_credential_name: Option<View<'n>>,
    tls_certificates: Option<View<'n>>,
    subject_alt_names: Option<View<'n>>,
    ca_crl: Option<View<'n>>,
    min_version: Option<View<'n>>,
    max_version: Option<View<'n>>,
    cipher_suites: Option<View<'n>>,
    /// Unsupported fields that restrict the accepted clients.
    narrowing: Vec<View<'n>>,
    /// Fields that are not applied.
    unused: Vec<View<'n>>,
}

impl<'n> Written<'n> {
    fn take(fields: &mut Fields<'n>) -> Self {
        let mut take = |key| fields.take_set(key);
        Self {
            server_certificate: take("serverCertificate"),
            private_key: take("privateKey"),
            ca_certificates: take("caCertificates"),
            credential_name: take("credentialName"),
            credential_names: take("credentialNames"),
            ca_cert_credential_name: take("caCertCredentialName"),
            tls_certificates: take("tlsCertificates"),
            subject_alt_names: take("subjectAltNames"),
            ca_crl: take("caCrl"),
            min_version: take("minProtocolVersion"),
            max_version: take("maxProtocolVersion"),
            cipher_suites: take("cipherSuites"),
            narrowing: ["verifyCertificateSpki", "verifyCertificateHash"]
                .into_iter()
                .filter_map(&mut take)
                .collect(),
            unused: ["ecdhCurves", "insecureSkipVerify"].into_iter().filter_map(&mut take).collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &View<'n>> {
        [
            &self.server_certificate,
            &self.private_key,
            &self.ca_certificates,
            &self.credential_name,
            &self.credential_names,
            &self.ca_cert_credential_name,
            &self.tls_certificates,
            &self.subject_alt_names,
            &self.ca_crl,
            &self.min_version,
            &self.max_version,
            &self.cipher_suites,
        ]
        .into_iter()
        .flatten()
        .chain(&self.narrowing)
        .chain(&self.unused)
    }

    fn termination(
        &self,
        tls: &View<'n>,
        mode: &'n str,
        namespace: &str,
        diagnostics: &mut Diagnostics,
    ) -> Option<ServerTls<'n>> {
        let mut secrets = Vec::new();
        let certificates = self.certificates(tls, mode, namespace, &mut secrets, diagnostics);
        let client = self.client(tls, mode, namespace, &mut secrets, diagnostics);
        let versions = self.versions(diagnostics);
        let cipher_suites = self.cipher_suites(diagnostics);
        for view in &self.unused {
            view.warn(
                "not applied: the curves of the TLS library are offered, and certificates are verified",
            )
            .emit(diagnostics);
        }
        let (min_version, max_version) = versions?;
        Some(ServerTls {
            certificates: certificates?,
            client: client?,
            min_version,
            max_version,
            cipher_suites: cipher_suites?,
            secrets,
        })
    }

    /// The certificates, from a single source.
    fn certificates(
        &self,
        tls: &View<'n>,
        mode: &str,
        namespace: &str,
        secrets: &mut Vec<(SecretName, View<'n>)>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Vec<CertificateSource>> {
        let files = self.server_certificate.as_ref().or(self.private_key.as_ref());
        let sources = [
            ("credentialName", self.credential_name.as_ref()),
            ("credentialNames", self.credential_names.as_ref()),
            ("tlsCertificates", self.tls_certificates.as_ref()),
            ("serverCertificate and privateKey", files),
        ];
        if only_source("certificates", &sources, diagnostics)?.is_none() {
            tls.error(format!("{mode} needs a certificate: the server is not served"))
                .expected("credentialName, or serverCertificate and privateKey")
                .remedy("name the Secret that holds the certificate and its key in credentialName")
                .emit(diagnostics);
            return None;
        }
        if let Some(view) = &self.credential_name {
            let name = secret_name(view, namespace, diagnostics)?;
            secrets.push((name.clone(), view.clone()));
            return Some(vec![CertificateSource::Secret(name)]);
        }
        if let Some(view) = &self.credential_names {
            let list = few(view, "a list of names of Secrets", diagnostics)?;
            let names: Option<Vec<_>> = list
                .iter()
                .map(|item| {
                    let name = secret_name(item, namespace, diagnostics)?;
                    secrets.push((name.clone(), item.clone()));
                    Some(CertificateSource::Secret(name))
                })
                .collect();
            return names;
        }
        if let Some(view) = &self.tls_certificates {
            let list = few(view, "a list of {serverCertificate, privateKey}", diagnostics)?;
            return list
                .iter()
                .map(|item| {
                    let mut fields = item.fields("{serverCertificate, privateKey}", diagnostics)?;
                    let certificate =
                        fields.require("serverCertificate", "a path of a file in PEM", diagnostics);
                    let key = fields.require("privateKey", "a path of a file in PEM", diagnostics);
                    fields.known(&["caCertificates"]);
                    fields.finish(diagnostics);
                    Some(CertificateSource::Files {
                        certificate: path(&certificate?, diagnostics)?,
                        key: path(&key?, diagnostics)?,
                    })
                })
                .collect();
        }
        let (Some(certificate), Some(key)) = (&self.server_certificate, &self.private_key) else {
            let missing = if self.private_key.is_none() { "privateKey" } else { "serverCertificate" };
            tls.error(format!("'{missing}' is missing: the server is not served"))
                .expected("serverCertificate and privateKey, each the path of a file in PEM")
                .remedy(format!("add '{missing}', or name a Secret in credentialName instead of both"))
                .emit(diagnostics);
            return None;
        };
        Some(vec![CertificateSource::Files {
            certificate: path(certificate, diagnostics)?,
            key: path(key, diagnostics)?,
        }])
    }

    /// The authentication of clients by certificate.
    fn client(
        &self,
        tls: &View<'n>,
        mode: &str,
        namespace: &str,
        secrets: &mut Vec<(SecretName, View<'n>)>,
        diagnostics: &mut Diagnostics,
    ) -> Option<ClientAuth> {
        if mode == "SIMPLE" {
            let of_clients =
                [&self.ca_certificates, &self.ca_cert_credential_name, &self.subject_alt_names, &self.ca_crl];
            for view in of_clients.into_iter().flatten().chain(&self.narrowing) {
                view.warn("with SIMPLE no client is asked for a certificate, ignored")
                    .remedy("write mode: MUTUAL if clients have to show one")
                    .emit(diagnostics);
            }
            return Some(ClientAuth::None);
        }
        let mut good = true;
        for view in &self.narrowing {
            view.error(
                "not implemented, and without it more clients would be let in: the server is not served",
            )
            .remedy("remove the field if clients with any certificate of the authorities may connect")
            .emit(diagnostics);
            good = false;
        }
        let authorities = self.authorities(tls, mode, namespace, secrets, diagnostics)?;
        let subject_alt_names = match &self.subject_alt_names {
            None => Vec::new(),
            Some(view) => {
                let list = view.list("a list of names", diagnostics);
                let names: Option<Vec<_>> =
                    list.iter().map(|item| item.text("a name", diagnostics).map(str::to_owned)).collect();
                names.filter(|names| !names.is_empty())?
            }
        };
        let crl = match &self.ca_crl {
            None => None,
            Some(view) => Some(path(view, diagnostics)?),
        };
        let certificates = ClientCertificates { authorities, crl, subject_alt_names };
        let client = match mode {
            "MUTUAL" => ClientAuth::Required(certificates),
            _ => ClientAuth::Optional(certificates),
        };
        good.then_some(client)
    }

    fn authorities(
        &self,
        tls: &View<'n>,
        mode: &str,
        namespace: &str,
        secrets: &mut Vec<(SecretName, View<'n>)>,
        diagnostics: &mut Diagnostics,
    ) -> Option<AuthoritySource> {
        let secrets_of = [
            ("caCertCredentialName", self.ca_cert_credential_name.as_ref()),
            ("credentialName", self.credential_name.as_ref()),
            ("credentialNames", self.credential_names.as_ref()),
        ];
        // A Secret with a certificate may contain the authorities too. A Secret with authorities alone comes first.
        let of_secret = secrets_of.into_iter().find(|(_, view)| view.is_some()).unwrap_or_default();
        let sources = [of_secret, ("caCertificates", self.ca_certificates.as_ref())];
        only_source("authorities", &sources, diagnostics)?;
        if let Some(view) = &self.ca_cert_credential_name {
            let name = secret_name(view, namespace, diagnostics)?;
            secrets.push((name.clone(), view.clone()));
            return Some(AuthoritySource::Secret(name));
        }
        if let Some(view) = &self.ca_certificates {
            return Some(AuthoritySource::File(path(view, diagnostics)?));
        }
        let of_list = self.credential_names.as_ref().and_then(|view| {
            view.list("a list of names of Secrets", &mut Diagnostics::default()).into_iter().next()
        });
        if let Some(view) = self.credential_name.clone().or(of_list) {
            // Errors of the name are reported with the certificate.
            return Some(AuthoritySource::Secret(secret_name(
                &view,
                namespace,
                &mut Diagnostics::default(),
            )?));
        }
        tls.error(format!(
            "{mode} needs the certificates of authorities that clients' certificates are from: the server is not served"
        ))
        .expected("caCertificates, the path of a file in PEM, or caCertCredentialName, the name of a Secret")
        .remedy("add 'caCertificates', or write mode: SIMPLE if no client has to show a certificate")
        .emit(diagnostics);
        None
    }

    fn versions(&self, diagnostics: &mut Diagnostics) -> Option<(TlsVersion, TlsVersion)> {
        let expected = "TLS_AUTO, TLSV1_2 or TLSV1_3";
        let read = |view: &Option<View<'n>>, least: bool, diagnostics: &mut Diagnostics| {
            let Some(view) = view else { return Some(None) };
            match view.text(expected, diagnostics)? {
                "TLS_AUTO" => Some(None),
                "TLSV1_2" => Some(Some(TlsVersion::V1_2)),
                "TLSV1_3" => Some(Some(TlsVersion::V1_3)),
                old @ ("TLSV1_0" | "TLSV1_1") if least => {
                    view.warn(format!("{old} is not spoken (RFC 8996): the oldest version is TLS 1.2"))
                        .remedy("write TLSV1_2")
                        .emit(diagnostics);
                    Some(None)
                }
                old @ ("TLSV1_0" | "TLSV1_1") => {
                    view.error(format!(
                        "{old} is not spoken (RFC 8996), and nothing newer is allowed: the server is not served"
                    ))
                    .expected(expected)
                    .emit(diagnostics);
                    None
                }
                other => {
                    view.error(format!("there is no version '{other}': the server is not served"))
                        .expected(expected)
                        .emit(diagnostics);
                    None
                }
            }
        };
        let least = read(&self.min_version, true, diagnostics);
        let most = read(&self.max_version, false, diagnostics);
        let (least, most) = (least?.unwrap_or(TlsVersion::V1_2), most?.unwrap_or(TlsVersion::V1_3));
        if least <= most {
            return Some((least, most));
        }
        if let Some(view) = &self.max_version {
            view.error("older than minProtocolVersion, so that no version is left: the server is not served")
                .remedy("leave maxProtocolVersion out")
                .emit(diagnostics);
        }
        None
    }

    fn cipher_suites(&self, diagnostics: &mut Diagnostics) -> Option<Vec<String>> {
        let Some(view) = &self.cipher_suites else { return Some(Vec::new()) };
        let suites = credentials::cipher_suites(view, diagnostics);
        if suites.is_empty() {
            if view.is_list() {
                view.error("none of the cipher suites is spoken here: the server is not served")
                    .expected(spoken().collect::<Vec<_>>().join(", "))
                    .remedy("leave the field out to speak all of these")
                    .emit(diagnostics);
            }
            return None;
        }
        Some(suites)
    }
}

/// The single written source, if any. Reports an error if there are two, and returns `None`.
#[expect(clippy::option_option, reason = "no source and two sources are different things")]
fn only_source<'v, 'n>(
    what: &str,
    sources: &[(&'static str, Option<&'v View<'n>>)],
    diagnostics: &mut Diagnostics,
) -> Option<Option<&'v View<'n>>> {
    let mut written = sources.iter().filter_map(|(name, view)| Some((name, (*view)?)));
    let first = written.next();
    if let (Some((first, _)), Some((second, view))) = (first, written.next()) {
        view.error(format!("the {what} come from {first} and from {second}: the server is not served"))
            .remedy(format!("keep one of the two: {first} or {second}"))
            .emit(diagnostics);
        return None;
    }
    Some(first.map(|(_, view)| view))
}

/// A list of one or two items.
fn few<'n>(view: &View<'n>, expected: &str, diagnostics: &mut Diagnostics) -> Option<Vec<View<'n>>> {
    let list = view.list(expected, diagnostics);
    if list.is_empty() {
        return None; // Already reported.
    }
    if list.len() > MOST_CERTIFICATES {
        view.error(format!("there are {} certificates: the server is not served", list.len()))
            .expected("one or two: one with an ECDSA key and one with an RSA key")
            .emit(diagnostics);
        return None;
    }
    Some(list)
}
