//! The parts of a `DestinationRule`'s `trafficPolicy` that concern TLS and HTTP towards a destination.

use super::{balancing, proxy_protocol, subset::DestinationRule};
use crate::{
    credentials::{path, secret_name},
    decode::{Diagnostics, View},
    model::termination::{AuthoritySource, CertificateSource, SecretName, UpstreamTls},
};

/// The policies of the rules for a host, for one of its ports.
#[derive(Debug, Default)]
pub(super) struct Traffic<'n> {
    /// `tls`, and the namespace of the rule.
    tls: Option<(View<'n>, &'n str)>,
    /// Whether HTTP/1.1 requests are sent as HTTP/2 (`h2UpgradePolicy: UPGRADE`).
    pub(super) upgrades: bool,
    /// `loadBalancer` and `connectionPool.tcp`.
    pub(super) balancing: balancing::Policy<'n>,
    /// `outlierDetection`.
    pub(super) outliers: Option<View<'n>>,
    /// `proxyProtocol`.
    pub(super) proxy_protocol: Option<View<'n>>,
}

/// TLS towards a destination.
#[derive(Debug)]
pub(super) enum Towards<'n> {
    Clear,
    /// With TLS, and the Secrets that it names.
    Tls(Box<UpstreamTls>, Vec<(SecretName, View<'n>)>),
}

/// Merges the policies as Istio does: a port's settings override those of the rule, and those of a subset come after
/// both.
pub(super) fn traffic<'n>(rules: &[&DestinationRule<'n>], subset: Option<&str>, port: u16) -> Traffic<'n> {
    let mut traffic = Traffic::default();
    let named = |rule: &DestinationRule<'n>| {
        let list = rule.spec.peek("subsets")?.list("a list", &mut Diagnostics::default());
        list.into_iter().find(|one| one.peek_text("name") == subset)
    };
    let first = rules.iter().find_map(|rule| Some((rule.spec.peek("trafficPolicy")?, rule.namespace)));
    let of_subset = subset.and_then(|_| {
        rules.iter().find_map(|rule| Some((named(rule)?.peek("trafficPolicy")?, rule.namespace)))
    });
    for (policy, namespace) in first.into_iter().chain(of_subset) {
        traffic.apply(&policy, namespace);
        if let Some(header) = proxy_protocol::of(&policy) {
            traffic.proxy_protocol = Some(header);
        }
        let ports = policy.peek("portLevelSettings").filter(|view| !view.is_unset());
        let ports = ports.map(|view| view.list("a list", &mut Diagnostics::default())).unwrap_or_default();
        let own = ports.iter().find(|one| {
            let number = one.peek("port").and_then(|port| port.peek("number"));
            number.and_then(|number| number.port(&mut Diagnostics::default())) == Some(port)
        });
        if let Some(own) = own {
            // A port's settings take the place of the others. None of them is `proxyProtocol`.
            traffic = Traffic { proxy_protocol: traffic.proxy_protocol, ..Traffic::default() };
            traffic.apply(own, namespace);
        }
    }
    traffic
}

impl<'n> Traffic<'n> {
    fn apply(&mut self, policy: &View<'n>, namespace: &'n str) {
        if let Some(tls) = policy.peek("tls").filter(|view| !view.is_unset()) {
            self.tls = Some((tls, namespace));
        }
        self.balancing.apply(policy);
        if let Some(outliers) = policy.peek("outlierDetection").filter(|view| !view.is_unset()) {
            self.outliers = Some(outliers);
        }
        let pool = policy.peek("connectionPool").and_then(|pool| pool.peek("http"));
        if let Some(upgrade) = pool.and_then(|http| http.peek("h2UpgradePolicy")) {
            self.upgrades = upgrade.says("UPGRADE");
        }
    }

    /// TLS towards the destination. Reports an error on `None`: the backend must then not get unencrypted bytes.
    pub(super) fn towards(
        &self,
        workload: Option<&str>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Towards<'n>> {
        let Some((view, namespace)) = &self.tls else { return Some(Towards::Clear) };
        read(view, workload.unwrap_or(namespace), diagnostics)
    }
}

fn read<'n>(view: &View<'n>, namespace: &str, diagnostics: &mut Diagnostics) -> Option<Towards<'n>> {
    let mut fields = view.fields("{mode, sni, caCertificates}", diagnostics)?;
    let mode_view = fields.take_set("mode");
    let [certificate, key, authorities, credential, names, sni, crl] = [
        "clientCertificate",
        "privateKey",
        "caCertificates",
        "credentialName",
        "subjectAltNames",
        "sni",
        "caCrl",
    ]
    .map(|key| fields.take_set(key));
    let skip = fields.take("insecureSkipVerify");
    fields.finish(diagnostics);
    let mutual = match read_mode(view, mode_view.as_ref(), diagnostics)? {
        Mode::Disable => return Some(Towards::Clear),
        Mode::Simple => false,
        Mode::Mutual => true,
    };
    let mut secrets = Vec::new();
    let secret = match &credential {
        None => None,
        Some(view) => {
            let name = secret_name(view, namespace, diagnostics)?;
            secrets.push((name.clone(), view.clone()));
            Some(name)
        }
    };
    let unverified = match &skip {
        None => false,
        Some(view) => view.flag(diagnostics)?,
    };
    if let (true, Some(view)) = (unverified, &skip) {
        view.warn("the destination's certificate is not verified: whoever is on the way can read and change what is sent")
            .remedy("remove it, and name the authority of the certificate in caCertificates")
            .emit(diagnostics);
    }
    let crl = match crl {
        None => None,
        Some(view) => Some(path(&view, diagnostics)?),
    };
    let written = match &authorities {
        None => secret.clone().map_or(AuthoritySource::System, AuthoritySource::Secret),
        Some(view) if view.says("system") => AuthoritySource::System,
        Some(view) => {
            if credential.is_some() {
                view.error("the authorities come from credentialName too: connections for this destination are refused")
                    .remedy("keep one of the two: credentialName or caCertificates")
                    .emit(diagnostics);
                return None;
            }
            AuthoritySource::File(path(view, diagnostics)?)
        }
    };
    let certificate = if mutual {
        Some(own_certificate(view, secret, certificate.as_ref(), key.as_ref(), diagnostics)?)
    } else {
        None
    };
    let subject_alt_names = match names {
        None => Vec::new(),
        Some(view) => {
            let list = view.list("a list of names", diagnostics);
            let names: Option<Vec<_>> =
                list.iter().map(|item| item.text("a name", diagnostics).map(str::to_owned)).collect();
            names.filter(|names| !names.is_empty())?
        }
    };
    let sni = match sni {
        None => None,
        Some(view) => Some(view.parse::<crate::name::ServerName>("a server name", diagnostics)?.to_string()),
    };
    let tls = UpstreamTls {
        sni,
        authorities: (!unverified).then_some(written),
        crl,
        subject_alt_names,
        certificate,
    };
    Some(Towards::Tls(Box::new(tls), secrets))
}

/// Whether the balancer sends a client certificate.
enum Mode {
    Disable,
    Simple,
    Mutual,
}

fn read_mode(view: &View<'_>, mode: Option<&View<'_>>, diagnostics: &mut Diagnostics) -> Option<Mode> {
    let expected = "DISABLE, SIMPLE or MUTUAL";
    let mode = match mode {
        None => "DISABLE",
        Some(view) => view.text(expected, diagnostics)?,
    };
    match mode {
        "DISABLE" => return Some(Mode::Disable),
        "SIMPLE" => return Some(Mode::Simple),
        "MUTUAL" => return Some(Mode::Mutual),
        "ISTIO_MUTUAL" => {
            view.error(
                "ISTIO_MUTUAL is not implemented (the certificates of a mesh exist only inside it): connections for \
                 this destination are refused where TLS ends here",
            )
            .expected(expected)
            .remedy("write DISABLE if the destination takes connections in clear, else SIMPLE or MUTUAL")
        }
        other => view
            .error(format!("there is no mode '{other}': connections for this destination are refused"))
            .expected(expected),
    }
    .emit(diagnostics);
    None
}

/// The client certificate, from a single source.
fn own_certificate(
    view: &View<'_>,
    secret: Option<SecretName>,
    certificate: Option<&View<'_>>,
    key: Option<&View<'_>>,
    diagnostics: &mut Diagnostics,
) -> Option<CertificateSource> {
    match (secret, certificate, key) {
        (Some(secret), None, None) => return Some(CertificateSource::Secret(secret)),
        (None, Some(certificate), Some(key)) => {
            return Some(CertificateSource::Files {
                certificate: path(certificate, diagnostics)?,
                key: path(key, diagnostics)?,
            });
        }
        (Some(_), ..) => view
            .error(
                "the certificate comes from credentialName and from files: connections for this destination are refused",
            )
            .remedy("keep one of the two: credentialName, or clientCertificate and privateKey"),
        (None, ..) => view
            .error("MUTUAL needs a certificate: connections for this destination are refused")
            .expected("credentialName, or clientCertificate and privateKey"),
    }
    .emit(diagnostics);
    None
}
