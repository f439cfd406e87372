//! The names of cipher suites: those of OpenSSL, of the IANA registry and of rustls.

/// The supported suites: the name in the IANA registry and the name in OpenSSL.
const SPOKEN: [(&str, &str); 9] = [
    ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
    ("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
    ("TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
];

/// Suites that Istio accepts and that are not supported here: without forward secrecy, or without authenticated
/// encryption.
const WEAK: [&str; 12] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// The result of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// A supported suite, by its name in the IANA registry.
    Spoken(&'static str),
    /// A known suite that is not supported.
    Weak,
    /// An unknown name.
    Unknown,
}

/// Looks up a name of OpenSSL or the IANA registry, in any case.
pub(crate) fn look_up(name: &str) -> Suite {
    let spoken = |(iana, openssl): &&(&'static str, &'static str)| {
        iana.eq_ignore_ascii_case(name) || openssl.eq_ignore_ascii_case(name)
    };
    if let Some((iana, _)) = SPOKEN.iter().find(spoken) {
        Suite::Spoken(iana)
    } else if WEAK.iter().any(|weak| weak.eq_ignore_ascii_case(name)) {
        Suite::Weak
    } else {
        Suite::Unknown
    }
}

/// All supported suites, by their names in the IANA registry.
pub(crate) fn spoken() -> impl Iterator<Item = &'static str> {
    SPOKEN.iter().map(|(iana, _)| *iana)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_suite() {
        let suite = Suite::Spoken("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
        assert_eq!(look_up("ECDHE-RSA-AES128-GCM-SHA256"), suite);
        assert_eq!(look_up("tls_ecdhe_rsa_with_aes_128_gcm_sha256"), suite);
        assert_eq!(look_up("AES128-SHA"), Suite::Weak);
        assert_eq!(look_up("RC4"), Suite::Unknown);
        assert_eq!(spoken().count(), 9);
    }
}
