//! Faults of certificates and keys, with place and remedy. No message contains key material.

use std::{fmt, io};

use thiserror::Error;
use x509_parser::time::ASN1Time;

use super::files;

/// A certificate, key or Secret that cannot be used.
#[derive(Debug, Error)]
#[error("{place}: {fault}")]
pub struct SecretError {
    /// The file, or the Secret and its key.
    pub place: String,
    /// The fault.
    pub fault: Fault,
}

impl SecretError {
    /// Whether the place is empty, so that a file may appear there later.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match &self.fault {
            Fault::NotFound { .. } => true,
            Fault::Unreadable(error) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// A fault at this place.
    #[must_use]
    pub fn new(place: impl Into<String>, fault: Fault) -> Self {
        Self { place: place.into(), fault }
    }
}

/// A time, printed for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub i64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ASN1Time::from_timestamp(self.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "second {} since 1970", self.0),
        }
    }
}

/// The fault. Each message ends with its remedy.
#[derive(Debug, Error)]
pub enum Fault {
    /// The file cannot be read.
    #[error("cannot be read: {0}; correct the path, or let the user of the process read it")]
    Unreadable(io::Error),
    /// The path is a directory, a pipe or the like.
    #[error("is no regular file; name a file in PEM")]
    NotAFile,
    /// The file is larger than any certificate.
    #[error("is longer than {} KiB; name a file that holds certificates alone", files::LONGEST >> 10)]
    TooLong,
    /// The file is empty.
    #[error("is empty; write the {0} in PEM into it")]
    Empty(&'static str),
    /// The file is DER or has another format.
    #[error("is not PEM: there is no '-----BEGIN'{0}")]
    NotPem(&'static str),
    /// The PEM does not parse.
    #[error("is broken PEM: {0}; write the file again")]
    BrokenPem(String),
    /// The PEM has sections of other kinds only.
    #[error("holds no certificate; a certificate begins with '-----BEGIN CERTIFICATE-----'")]
    NoCertificate,
    /// The PEM has sections of other kinds only.
    #[error("holds no private key; a key begins with '-----BEGIN PRIVATE KEY-----'")]
    NoKey,
    /// The key requires a passphrase.
    #[error("holds an encrypted key; decrypt it with `openssl pkey -in FILE -out FILE`")]
    EncryptedKey,
    /// The library does not support this type of key.
    #[error("holds a key that cannot be used ({0}); use RSA of 2048 bits or more, or ECDSA P-256 or P-384")]
    UnsupportedKey(String),
    /// The X.509 certificate does not parse.
    #[error("certificate {number} cannot be parsed ({why}); issue it again")]
    BadCertificate {
        /// The number within the file, from 1.
        number: usize,
        /// The parser's message.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error(
        "the key does not match the certificate '{subject}' of {certificate}; use the key that it was requested with"
    )]
    KeyMismatch {
        /// The certificate's subject.
        subject: String,
        /// The place of the certificate.
        certificate: String,
    },
    /// The certificate of the key is in the chain, but not first.
    #[error(
        "the chain is out of order: the key belongs to certificate {number}, '{subject}'; put the server's own \
         certificate first, then the one that issued it"
    )]
    LeafNotFirst {
        /// The number within the chain, from 1.
        number: usize,
        /// The certificate's subject.
        subject: String,
    },
    /// A certificate was not issued by the next one.
    #[error(
        "the chain is out of order: certificate {number} was issued by '{issuer}', but the next one is '{next}'; put each \
         certificate before the one that issued it, and leave others out"
    )]
    Order {
        /// The number within the chain, from 1.
        number: usize,
        /// The certificate's issuer.
        issuer: String,
        /// The subject of the next one.
        next: String,
    },
    /// The certificate has expired.
    #[error("certificate {number}, '{subject}', has expired at {at}; renew it")]
    Expired {
        /// The number within the file, from 1.
        number: usize,
        /// The certificate's subject.
        subject: String,
        /// The time of expiry.
        at: Moment,
    },
    /// The certificate is not yet valid.
    #[error(
        "certificate {number}, '{subject}', is not valid before {at}; check the clock of this host, or issue it again"
    )]
    NotYetValid {
        /// The number within the file, from 1.
        number: usize,
        /// The certificate's subject.
        subject: String,
        /// The begin of validity.
        at: Moment,
    },
    /// The OCSP response is invalid.
    #[error("is no OCSP response in DER; fetch it again (`openssl ocsp -respout FILE`), or remove it")]
    BadStaple,
    /// PEM without a certificate revocation list.
    #[error("holds no certificate revocation list ('-----BEGIN X509 CRL-----'); put one there, or remove it")]
    NoRevocationList,
    /// A certificate revocation list does not parse.
    #[error(
        "certificate revocation list {number} does not parse ({why}); issue it again (`openssl ca -gencrl`)"
    )]
    BadRevocationList {
        /// The number within the file, from 1.
        number: usize,
        /// The parser's message.
        why: String,
    },
    /// A certificate revocation list has expired.
    #[error(
        "certificate revocation list {number}, of '{issuer}', has expired at {at}; issue it again (`openssl ca -gencrl`)"
    )]
    RevocationListExpired {
        /// The number within the file, from 1.
        number: usize,
        /// The issuer of the list.
        issuer: String,
        /// The time of expiry.
        at: Moment,
    },
    /// The Secret has other keys.
    #[error("the Secret has no {wanted}; it has {found}")]
    NoEntry {
        /// The expected keys.
        wanted: &'static str,
        /// The present keys.
        found: String,
    },
    /// The secret is missing.
    #[error("not found; tried {tried}; {remedy}")]
    NotFound {
        /// All searched places.
        tried: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// Several Secrets have the same name, and none is in the requested namespace.
    #[error(
        "several Secrets have this name, in the namespaces {0}, and none is in the namespace that is asked for; keep one of them"
    )]
    Ambiguous(String),
    /// The name leads out of the directory.
    #[error("is no name of a Secret; use lower-case letters, digits, '-' and '.'")]
    BadName,
    /// The YAML has faults.
    #[error("{0}")]
    Yaml(String),
    /// The system's trust store is unusable.
    #[error(
        "the system trusts no certificate that can be read ({0}); install ca-certificates, or name a file"
    )]
    NoSystemStore(String),
    /// The certificate cannot be an issuer.
    #[error("certificate {number} cannot be trusted as an authority ({why}); take it out")]
    BadAuthority {
        /// The number within the file, from 1.
        number: usize,
        /// The library's message.
        why: String,
    },
}

/// A doubt about a secret that is used all the same.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SecretWarning {
    /// Other users may read the key.
    #[error("{place}: the key can be read by every user (mode {mode:04o}); `chmod o-rwx` it")]
    Readable {
        /// The file.
        place: String,
        /// Its mode.
        mode: u32,
    },
    /// No certificate of the server covers one of its names.
    #[error(
        "{server}: no certificate covers {name}; clients will refuse it: issue one with this name, or serve it elsewhere"
    )]
    NotCovered {
        /// The server.
        server: String,
        /// The name or pattern.
        name: String,
    },
    /// The certificate expires within 30 days.
    #[error("{place}: the certificate expires at {at}, in {days} days; renew it")]
    Expires {
        /// The place of the certificate.
        place: String,
        /// The time of expiry.
        at: Moment,
        /// Whole days until then.
        days: i64,
    },
    /// The certificate of an issuer has expired.
    #[error(
        "{place}: certificate {number} of the chain, '{subject}', has expired at {at}; clients may refuse the chain"
    )]
    IssuerExpired {
        /// The place of the chain.
        place: String,
        /// The number within the chain, from 1.
        number: usize,
        /// The certificate's subject.
        subject: String,
        /// The time of expiry.
        at: Moment,
    },
    /// A certificate or authority is missing (for now).
    #[error("{0}; until it is there, what needs it is refused")]
    Missing(String),
    /// Verification is off.
    #[error("{0}: the certificate of the backend is not verified (insecureSkipVerify); name its authority")]
    NotVerified(String),
    /// Files that are unreadable after privileges are dropped.
    #[error(
        "{0}: can be read with the privileges of the start only; a changed file will not be taken: let the user of the process read it"
    )]
    NotReadableLater(String),
}
