//! Certificates, keys and authorities: the name of a Secret, or paths of files.

use super::{
    codec::{By, Form, text},
    keys::{FromKeys, TextOr, mapping},
};
use crate::{
    credentials::{path, secret_name},
    decode::{Diagnostics, View},
    model::termination::{AuthoritySource, CertificateSource, SecretName},
};

/// A Secret that is named, and the place of the name.
pub(super) type NamedSecret<'n> = (SecretName, View<'n>);

/// A certificate with its key.
#[derive(Debug)]
pub(super) struct Certificate<'n> {
    pub(super) source: CertificateSource,
    pub(super) secret: Option<NamedSecret<'n>>,
}

/// The certificates of authorities.
#[derive(Debug)]
pub(super) struct Authorities<'n> {
    pub(super) source: AuthoritySource,
    pub(super) secret: Option<NamedSecret<'n>>,
}

/// The name of a Secret, or a mapping with paths.
pub(super) fn certificate<'n>(example: &'static str) -> impl Form<'n, Certificate<'n>> {
    let named = |view: &View<'n>, diagnostics: &mut Diagnostics| {
        let name = secret_name(view, "", diagnostics)?;
        Some(Certificate {
            source: CertificateSource::Secret(name.clone()),
            secret: Some((name, view.clone())),
        })
    };
    TextOr(By(text("the name of a Secret", example), named))
}

mapping! {
    /// A certificate and its key. A text instead of a mapping is the name of a Secret, which is looked for in the
    /// loaded files, then in `secrets`
    pub(super) struct CertificateKeys("certificate", "routes[].terminate.certificates[]") {
        /// The certificate, and those that lead to its issuer, in PEM.
        certificate: String = required("the path of a file in PEM"), pem("/etc/ssl/shop.crt");
        /// The private key, in PEM.
        key: String = required("the path of a file in PEM"), pem("/etc/ssl/shop.key");
    }
}

impl<'n> FromKeys<'n> for Certificate<'n> {
    type Keys = CertificateKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        let source = CertificateSource::Files { certificate: keys.certificate?, key: keys.key? };
        Some(Self { source, secret: None })
    }
}

/// The path of a file in PEM.
pub(super) fn pem<'n>(example: &'static str) -> impl Form<'n, String> {
    By(text("a path", example), path)
}

/// A text with a slash is a path, since no name of a Secret contains one.
pub(super) fn authorities<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Authorities<'n>> {
    let text = view.text("a path with a '/', or the name of a Secret", diagnostics)?;
    if text.contains('/') {
        return Some(Authorities { source: AuthoritySource::File(path(view, diagnostics)?), secret: None });
    }
    let name = secret_name(view, "", diagnostics)?;
    Some(Authorities { source: AuthoritySource::Secret(name.clone()), secret: Some((name, view.clone())) })
}

/// Any text.
pub(super) fn owned(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    view.text("a text", diagnostics).map(str::to_owned)
}
