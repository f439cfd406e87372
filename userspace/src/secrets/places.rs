//! Possible places of a Secret in the secrets directory: pure.

use std::path::{Path, PathBuf};

/// The files of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The file of the certificate.
    pub certificate: PathBuf,
    /// The file of the key. The same file if it contains both.
    pub key: PathBuf,
    /// The file of an optional OCSP response.
    pub staple: PathBuf,
}

/// Whether a name is valid for a Secret, and cannot lead out of the directory.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= 253
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// The places of a certificate with this name, in order: a mounted Secret, the files of certbot, two files, and one
/// file.
#[must_use]
pub fn certificate(directory: &Path, name: &str) -> [Pair; 4] {
    let at = |rest: &str| directory.join(format!("{name}{rest}"));
    let pair = |certificate: PathBuf, key: PathBuf, staple: PathBuf| Pair { certificate, key, staple };
    [
        pair(at("/tls.crt"), at("/tls.key"), at("/tls.ocsp-staple")),
        pair(at("/fullchain.pem"), at("/privkey.pem"), at("/fullchain.pem.ocsp")),
        pair(at(".crt"), at(".key"), at(".crt.ocsp")),
        pair(at(".pem"), at(".pem"), at(".pem.ocsp")),
    ]
}

/// The files of authorities' certificates and of their revocation lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuers {
    /// The file of the certificates.
    pub authorities: PathBuf,
    /// The file of the certificate revocation lists, if any.
    pub revocation_lists: PathBuf,
}

/// The places of authorities' certificates for this name, in order.
#[must_use]
pub fn authorities(directory: &Path, name: &str) -> [Issuers; 5] {
    let at = |rest: &str| directory.join(format!("{name}{rest}"));
    let issuers = |authorities, lists| Issuers { authorities: at(authorities), revocation_lists: at(lists) };
    [
        issuers("-cacert/ca.crt", "-cacert/ca.crl"),
        issuers("-cacert/cacert", "-cacert/ca.crl"),
        issuers("-cacert.crt", "-cacert.crl"),
        issuers("-cacert.pem", "-cacert.crl"),
        issuers("/ca.crt", "/ca.crl"),
    ]
}

/// The OCSP response beside a certificate's file, with the name that `HAProxy` uses.
#[must_use]
pub fn staple(certificate: &str) -> PathBuf {
    format!("{certificate}.ocsp").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_directory() {
        assert!(is_name("istio-ingress-cert") && is_name("a.b_c"));
        for name in ["", "..", ".hidden", "a/b", "../a", "a\0"] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_mounted_secret_comes_first() {
        let places = certificate(Path::new("/s"), "web").map(|pair| pair.key.display().to_string());
        assert_eq!(places, ["/s/web/tls.key", "/s/web/privkey.pem", "/s/web.key", "/s/web.pem"]);
        let third = &authorities(Path::new("/s"), "web")[2];
        assert_eq!(third.authorities, Path::new("/s/web-cacert.crt"));
        assert_eq!(third.revocation_lists, Path::new("/s/web-cacert.crl"));
    }
}
