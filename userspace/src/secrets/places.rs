//! Where a Secret may be in the secrets directory: pure.

use std::path::{Path, PathBuf};

/// Files that hold a certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate's.
    pub certificate: PathBuf,
    /// The key's; the same where both are in one file.
    pub key: PathBuf,
    /// That of an OCSP response, where there is one.
    pub staple: PathBuf,
}

/// Whether a name can be that of a Secret, and leads nowhere else.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.len() <= 253
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// Where a certificate of this name may be, the first place first: a mounted Secret, what certbot writes, two files, and one.
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

/// Files that hold the certificates of authorities, and what these have revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuers {
    /// That of the certificates.
    pub authorities: PathBuf,
    /// That of the certificate revocation lists, where there is one.
    pub revocation_lists: PathBuf,
}

/// Where the certificates of authorities for this name may be, the first place first.
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

/// The OCSP response beside a certificate's file, by the name that `HAProxy` gives it.
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
