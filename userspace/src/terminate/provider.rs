//! The cryptographic library, chosen by measurement: docs/internals/termination.md.

use std::sync::{Arc, LazyLock};

use rustls::{
    Error,
    crypto::{CryptoProvider, ring},
    pki_types::PrivateKeyDer,
    sign::SigningKey,
};

use super::LoadFault;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// The provider of this process.
pub(super) fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// The signer for this key.
pub(super) fn load_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Error> {
    ring::sign::any_supported_type(key)
}

/// A provider with these cipher suites only, by their IANA names. As in Envoy, the list restricts TLS 1.2 only,
/// unless it contains a TLS 1.3 suite.
pub(super) fn with_suites(names: &[String]) -> Result<Arc<CryptoProvider>, LoadFault> {
    let all = provider();
    if names.is_empty() {
        return Ok(all);
    }
    let name_of = |suite: rustls::SupportedCipherSuite| iana_name(suite);
    let mut suites = Vec::new();
    for name in names {
        let found =
            all.cipher_suites.iter().copied().find(|suite| name_of(*suite).eq_ignore_ascii_case(name));
        let Some(found) = found else {
            let spoken: Vec<String> = all.cipher_suites.iter().map(|suite| name_of(*suite)).collect();
            return Err(LoadFault::Suite(name.clone(), spoken.join(", ")));
        };
        suites.push(found);
    }
    if !suites.iter().any(|suite| suite.tls13().is_some()) {
        let newer = all.cipher_suites.iter().copied().filter(|suite| suite.tls13().is_some());
        suites.splice(0..0, newer);
    }
    Ok(Arc::new(CryptoProvider { cipher_suites: suites, ..(*all).clone() }))
}

/// The library writes `TLS13_` where the registry writes `TLS_`.
fn iana_name(suite: rustls::SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_of_tls_1_2_leave_those_of_1_3_alone() {
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            with_suites(&wanted).map(|provider| {
                provider.cipher_suites.iter().map(|suite| iana_name(*suite)).collect::<Vec<_>>()
            })
        };
        let older = names(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]).unwrap();
        assert_eq!(older.len(), 4, "{older:?}");
        assert_eq!(older[3], "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
        assert_eq!(names(&["TLS_AES_128_GCM_SHA256"]).unwrap(), ["TLS_AES_128_GCM_SHA256"]);
        let error = names(&["RC4"]).unwrap_err().to_string();
        assert!(error.contains("RC4") && error.contains("TLS_AES_256_GCM_SHA384"), "{error}");
    }
}
