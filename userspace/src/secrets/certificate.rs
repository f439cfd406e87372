//! A certificate with its chain and its key, verified: functions of bytes and of the time.

use std::{fmt, net::IpAddr, sync::Arc};

use rustls::{
    Error, InconsistentKeys,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::{CertifiedKey, SigningKey},
};
use snisplice_config::name::{HostPattern, ServerName};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer as _, X509Name},
};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    error::{Fault, Moment, SecretError, SecretWarning},
    pem,
};

/// The library's function that turns a key into a signer.
pub type LoadKey = fn(&PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Error>;

/// Seconds per day.
const DAY: i64 = 86_400;

/// Days before its end from which a certificate causes a warning.
pub const WARN_DAYS: i64 = 30;

/// Bytes, and their source.
pub struct Part {
    /// The file, or the Secret and its key.
    pub place: String,
    /// The bytes, wiped on drop.
    pub bytes: Zeroizing<Vec<u8>>,
}

/// The parts of a certificate.
pub struct Material {
    /// The certificate and its intermediate certificates, in PEM.
    pub certificate: Part,
    /// The private key, in PEM.
    pub key: Part,
    /// An OCSP response (RFC 6960) in DER.
    pub staple: Option<Part>,
}

/// A certificate in service. Its key is inside the library and never printed.
pub struct Certificate {
    /// The source of the certificate.
    pub place: String,
    /// The chain, the key and the OCSP response.
    pub key: Arc<CertifiedKey>,
    /// The certificate's names: the `DNS` entries of its `subjectAltName` (RFC 6125 section 6.4). The common name is
    /// ignored.
    pub names: Vec<String>,
    /// The last second of validity, since 1970.
    pub not_after: i64,
    /// Doubts that do not depend on the time.
    pub warnings: Vec<SecretWarning>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("place", &self.place)
            .field("names", &self.names)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Parses and verifies a certificate at this time, in seconds since 1970.
    pub fn new(material: Material, load_key: LoadKey, now: i64) -> Result<Self, SecretError> {
        let Material { certificate, key, staple } = material;
        let place = certificate.place.clone();
        let of_certificate = |fault| SecretError::new(&place, fault);
        let of_key = |fault| SecretError::new(&key.place, fault);

        let chain = pem::certificates(&certificate.bytes).map_err(of_certificate)?;
        let parsed = parse(&chain).map_err(of_certificate)?;
        let signing = {
            let mut der = pem::key(&key.bytes).map_err(of_key)?;
            let signing = load_key(&der);
            der.zeroize();
            signing.map_err(|error| of_key(Fault::UnsupportedKey(error.to_string())))?
        };
        if !is_of(&signing, &chain[0]) {
            let other = chain.iter().position(|one| is_of(&signing, one));
            return Err(other.map_or_else(
                || {
                    of_key(Fault::KeyMismatch {
                        subject: name(parsed[0].subject()),
                        certificate: place.clone(),
                    })
                },
                |at| {
                    of_certificate(Fault::LeafNotFirst {
                        number: at + 1,
                        subject: name(parsed[at].subject()),
                    })
                },
            ));
        }
        in_order(&parsed).map_err(of_certificate)?;
        let warnings = in_time(&parsed, &place, now).map_err(of_certificate)?;
        let ocsp = match staple {
            Some(staple) if is_ocsp_response(&staple.bytes) => Some(staple.bytes.to_vec()),
            Some(staple) => return Err(SecretError::new(staple.place, Fault::BadStaple)),
            None => None,
        };
        let (names, not_after) = (dns_names(&parsed[0]), parsed[0].validity().not_after.timestamp());
        let mut key = CertifiedKey::new(chain, signing);
        key.ocsp = ocsp;
        Ok(Self { place, key: Arc::new(key), names, not_after, warnings })
    }

    /// Whether the certificate covers this name. An asterisk matches one label (RFC 6125 section 6.4.3).
    #[must_use]
    pub fn covers(&self, name: &ServerName) -> bool {
        let wild = name.as_str().split_once('.').map(|(_, rest)| format!("*.{rest}"));
        self.names.iter().any(|own| own == name.as_str() || Some(own) == wild.as_ref())
    }

    /// Whether the certificate covers every name of a pattern that clients are expected to use. For a wildcard, these
    /// have one more label.
    #[must_use]
    pub fn covers_pattern(&self, pattern: &HostPattern) -> bool {
        match pattern {
            HostPattern::Exact(name) => self.covers(name),
            HostPattern::Any => true,
            // The wildcard as written.
            HostPattern::Suffix(_) => {
                let written = pattern.to_string();
                self.names.contains(&written)
            }
        }
    }

    /// A warning in the last 30 days of validity.
    #[must_use]
    pub fn expiry(&self, now: i64) -> Option<SecretWarning> {
        let days = (self.not_after - now).div_euclid(DAY);
        (days < WARN_DAYS).then(|| SecretWarning::Expires {
            place: self.place.clone(),
            at: Moment(self.not_after),
            days,
        })
    }
}

/// Parses each certificate of a chain. An error has the number of the invalid one.
pub fn parse<'c>(chain: &'c [CertificateDer<'_>]) -> Result<Vec<X509Certificate<'c>>, Fault> {
    let parsed = chain.iter().enumerate().map(|(at, der)| {
        X509Certificate::from_der(der)
            .map(|(_, parsed)| parsed)
            .map_err(|error| Fault::BadCertificate { number: at + 1, why: error.to_string() })
    });
    parsed.collect()
}

/// Whether the `subjectAltName` of a certificate has one of the names, compared as in Envoy
/// (`match_typed_subject_alt_names` with `exact`). A DNS name matches in any case, and through an asterisk for the
/// first label in the certificate. A URI, an email address and an IP address match as identical text.
#[must_use]
pub fn has_one_of(certificate: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else { return false };
    extension.value.general_names.iter().any(|own| names.iter().any(|wanted| is_named(own, wanted)))
}

fn is_named(own: &GeneralName<'_>, wanted: &str) -> bool {
    match own {
        GeneralName::DNSName(own) => {
            let behind_label = wanted.split_once('.').map(|(_, rest)| rest);
            own.eq_ignore_ascii_case(wanted)
                || own
                    .strip_prefix("*.")
                    .is_some_and(|rest| behind_label.is_some_and(|behind| behind.eq_ignore_ascii_case(rest)))
        }
        GeneralName::URI(own) | GeneralName::RFC822Name(own) => *own == wanted,
        GeneralName::IPAddress(bytes) => {
            let address = match <[u8; 4]>::try_from(*bytes) {
                Ok(four) => Some(IpAddr::from(four)),
                Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
            };
            address.is_some_and(|address| address.to_string() == wanted)
        }
        _ => false,
    }
}

/// The names of a certificate, from the `DNS` entries of its `subjectAltName`, and the last second of its validity,
/// since 1970.
///
/// # Errors
/// Returns the parser's error as text.
pub fn names_and_end(certificate: &CertificateDer<'_>) -> Result<(Vec<String>, i64), String> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("the certificate cannot be parsed: {error}"))?;
    Ok((dns_names(&parsed), parsed.validity().not_after.timestamp()))
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// Whether this is the certificate's key. An undecidable case counts as a match: a handshake would show the fault.
fn is_of(key: &Arc<dyn SigningKey>, certificate: &CertificateDer<'static>) -> bool {
    let both = CertifiedKey::new(vec![certificate.clone()], key.clone());
    !matches!(both.keys_match(), Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)))
}

/// Each certificate must be issued by the next one (RFC 5246 section 7.4.2).
fn in_order(chain: &[X509Certificate<'_>]) -> Result<(), Fault> {
    for (at, pair) in chain.windows(2).enumerate() {
        if pair[0].issuer().as_raw() != pair[1].subject().as_raw() {
            return Err(Fault::Order {
                number: at + 1,
                issuer: name(pair[0].issuer()),
                next: name(pair[1].subject()),
            });
        }
    }
    Ok(())
}

/// The first certificate must be valid now. Clients may know a newer version of an issuer.
fn in_time(chain: &[X509Certificate<'_>], place: &str, now: i64) -> Result<Vec<SecretWarning>, Fault> {
    let mut warnings = Vec::new();
    for (at, certificate) in chain.iter().enumerate() {
        let (number, subject) = (at + 1, name(certificate.subject()));
        let begin = certificate.validity().not_before.timestamp();
        let end = certificate.validity().not_after.timestamp();
        if end < now && at > 0 {
            warnings.push(SecretWarning::IssuerExpired {
                place: place.to_owned(),
                number,
                subject,
                at: Moment(end),
            });
        } else if end < now {
            return Err(Fault::Expired { number, subject, at: Moment(end) });
        } else if begin > now {
            return Err(Fault::NotYetValid { number, subject, at: Moment(begin) });
        }
    }
    Ok(warnings)
}

/// A SEQUENCE with the ENUMERATED 0, "successful", at its beginning and with a correct length (RFC 6960 section
/// 4.2.1).
fn is_ocsp_response(der: &[u8]) -> bool {
    let (length, rest) = match der {
        [0x30, length @ 0..=0x7f, rest @ ..] | [0x30, 0x81, length, rest @ ..] => {
            (usize::from(*length), rest)
        }
        [0x30, 0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return false,
    };
    length == rest.len() && rest.starts_with(&[0x0a, 0x01, 0x00])
}

fn name(name: &X509Name<'_>) -> String {
    name.to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

    use super::*;

    /// 2026-06-01, in seconds since 1970.
    pub(crate) const NOW: i64 = 1_780_272_000;

    pub(crate) fn load_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Error> {
        rustls::crypto::ring::sign::any_supported_type(key)
    }

    /// A certificate authority whose certificates are valid for a year around [`NOW`].
    pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

    impl Ca {
        pub(crate) fn new(common: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, common);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        pub(crate) fn pem(&self) -> String {
            self.0.pem()
        }

        /// A certificate and key for these names, valid until the first day of a month of 2026 or later.
        pub(crate) fn issue(&self, names: &[&str], until: (i32, u8)) -> (String, String) {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names.clone()).unwrap();
            params.distinguished_name.push(DnType::CommonName, names[0].as_str());
            params.not_before = date_time_ymd(2026, 1, 1);
            params.not_after = date_time_ymd(until.0, until.1, 1);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
        }
    }

    fn part(place: &str, text: &str) -> Part {
        Part { place: place.to_owned(), bytes: Zeroizing::new(text.as_bytes().to_vec()) }
    }

    fn check(certificate: &str, key: &str, now: i64) -> Result<Certificate, String> {
        let material =
            Material { certificate: part("a.crt", certificate), key: part("a.key", key), staple: None };
        Certificate::new(material, load_key, now).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_chain_is_taken_and_its_names_are_known() {
        let ca = Ca::new("CA");
        let (leaf, key) = ca.issue(&["a.test", "*.b.test"], (2027, 1));
        let good = check(&(leaf + &ca.pem()), &key, NOW).unwrap();
        let covers = |name: &str| good.covers(&ServerName::parse(name).unwrap());
        assert!(covers("A.test") && covers("x.b.test"));
        assert!(!covers("b.test") && !covers("y.x.b.test") && !covers("c.test"));
        assert_eq!((good.key.cert.len(), good.expiry(NOW)), (2, None));
        let shown = format!("{good:?}");
        assert!(!shown.contains("key") && shown.contains("a.test"), "{shown}");
        let soon = good.expiry(good.not_after - 29 * DAY).unwrap().to_string();
        assert!(soon.contains("in 29 days"), "{soon}");
        assert_eq!(good.expiry(good.not_after - 30 * DAY), None);
    }

    #[test]
    fn each_fault_names_its_file_and_a_remedy() {
        let (ca, other) = (Ca::new("CA"), Ca::new("Other"));
        let (leaf, key) = ca.issue(&["a.test"], (2027, 1));
        let (_, wrong) = ca.issue(&["a.test"], (2027, 1));
        let fault = |certificate: &str, key: &str, now| check(certificate, key, now).unwrap_err();
        let found = fault(&leaf, &wrong, NOW);
        assert!(
            found.starts_with("a.key: ") && found.contains("does not match") && found.contains("a.crt"),
            "{found}"
        );
        let found = fault(&(ca.pem() + &leaf), &key, NOW);
        assert!(
            found.starts_with("a.crt: ") && found.contains("certificate 2") && found.contains("first"),
            "{found}"
        );
        let found = fault(&(leaf.clone() + &other.pem()), &key, NOW);
        assert!(found.contains("out of order") && found.contains("CN=Other"), "{found}");
        let found = fault(&leaf, &key, NOW + 300 * DAY);
        assert!(found.contains("expired") && found.contains("2027"), "{found}");
        let found = fault(&leaf, &key, NOW - 300 * DAY);
        assert!(found.contains("not valid before") && found.contains("clock"), "{found}");
        assert!(fault("", &key, NOW).contains("a.crt: is empty"));
        assert!(fault(&leaf, &leaf, NOW).contains("no private key"));
        assert!(
            fault("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, NOW)
                .contains("certificate 1")
        );
    }

    #[test]
    fn names_are_compared_by_their_kind() {
        let dns = |own: &'static str| GeneralName::DNSName(own);
        let address = [192, 0, 2, 7];
        for (own, wanted, expected) in [
            (dns("a.Test"), "A.test", true),
            (dns("*.a.test"), "x.a.test", true),
            (dns("*.a.test"), "*.a.test", true),
            (dns("*.a.test"), "y.x.a.test", false),
            (dns("*.a.test"), "a.test", false),
            (dns("a.test"), "*.test", false),
            (GeneralName::URI("spiffe://a/B"), "spiffe://a/B", true),
            (GeneralName::URI("spiffe://a/B"), "spiffe://a/b", false),
            (GeneralName::RFC822Name("me@a.test"), "me@a.test", true),
            (GeneralName::IPAddress(&address), "192.0.2.7", true),
            (GeneralName::IPAddress(&address), "192.0.2.70", false),
            (GeneralName::IPAddress(&[0; 3]), "0.0.0.0", false),
        ] {
            assert_eq!(is_named(&own, wanted), expected, "{own:?} {wanted}");
        }
    }

    #[test]
    fn an_ocsp_response_must_look_like_one() {
        assert!(is_ocsp_response(&[0x30, 3, 0x0a, 1, 0]));
        assert!(!is_ocsp_response(&[0x30, 3, 0x0a, 1, 6]), "it says that nobody answered");
        assert!(!is_ocsp_response(&[0x30, 4, 0x0a, 1, 0]) && !is_ocsp_response(b"hello"));
        let ca = Ca::new("CA");
        let (leaf, key) = ca.issue(&["a.test"], (2027, 1));
        let with = |staple: &[u8]| {
            let staple = Part { place: "a.ocsp".to_owned(), bytes: Zeroizing::new(staple.to_vec()) };
            let material = Material {
                certificate: part("a.crt", &leaf),
                key: part("a.key", &key),
                staple: Some(staple),
            };
            Certificate::new(material, load_key, NOW).map(|good| good.key.ocsp.clone())
        };
        assert_eq!(with(&[0x30, 3, 0x0a, 1, 0]).unwrap(), Some(vec![0x30, 3, 0x0a, 1, 0]));
        assert!(with(b"no").unwrap_err().to_string().starts_with("a.ocsp: "));
    }

    #[test]
    fn names_of_all_kinds_are_told() {
        let mut params = CertificateParams::new(["a.test".to_owned(), "10.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        for (name, expected) in [
            ("A.test", true),
            ("10.0.0.1", true),
            ("spiffe://td/ns/a/sa/b", true),
            ("spiffe://td/ns/a/sa/B", false),
        ] {
            assert_eq!(has_one_of(made.der(), &["other".to_owned(), name.to_owned()]), expected, "{name}");
        }
    }
}
