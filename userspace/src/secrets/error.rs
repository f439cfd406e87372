//! What is wrong with a certificate or a key, where, and what to do about it. Nothing here shows key material.

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
    /// What is wrong with it.
    pub fault: Fault,
}

impl SecretError {
    /// Whether nothing is there, so that there may be something later.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match &self.fault {
            Fault::NotFound { .. } => true,
            Fault::Unreadable(error) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Of what is there.
    #[must_use]
    pub fn new(place: impl Into<String>, fault: Fault) -> Self {
        Self { place: place.into(), fault }
    }
}

/// A moment as a person reads it.
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

/// What is wrong. Each message ends with its remedy.
#[derive(Debug, Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("cannot be read: {0}; correct the path, or let the user of the process read it")]
    Unreadable(io::Error),
    /// A directory, a pipe or the like.
    #[error("is no regular file; name a file in PEM")]
    NotAFile,
    /// More bytes than any certificate has.
    #[error("is longer than {} KiB; name a file that holds certificates alone", files::LONGEST >> 10)]
    TooLong,
    /// No byte.
    #[error("is empty; write the {0} in PEM into it")]
    Empty(&'static str),
    /// DER or another format.
    #[error("is not PEM: there is no '-----BEGIN'{0}")]
    NotPem(&'static str),
    /// PEM that does not parse.
    #[error("is broken PEM: {0}; write the file again")]
    BrokenPem(String),
    /// Sections of other kinds alone.
    #[error("holds no certificate; a certificate begins with '-----BEGIN CERTIFICATE-----'")]
    NoCertificate,
    /// Sections of other kinds alone.
    #[error("holds no private key; a key begins with '-----BEGIN PRIVATE KEY-----'")]
    NoKey,
    /// A passphrase would be needed.
    #[error("holds an encrypted key; decrypt it with `openssl pkey -in FILE -out FILE`")]
    EncryptedKey,
    /// A kind of key that the library does not know.
    #[error("holds a key that cannot be used ({0}); use RSA of 2048 bits or more, or ECDSA P-256 or P-384")]
    UnsupportedKey(String),
    /// X.509 that does not parse.
    #[error("certificate {number} cannot be parsed ({why}); issue it again")]
    BadCertificate {
        /// Which of the file, from 1.
        number: usize,
        /// What the parser says.
        why: String,
    },
    /// The key is another certificate's.
    #[error(
        "the key does not match the certificate '{subject}' of {certificate}; use the key that it was requested with"
    )]
    KeyMismatch {
        /// The certificate's subject.
        subject: String,
        /// Where the certificate is.
        certificate: String,
    },
    /// The certificate of the key is in the chain, but not at its beginning.
    #[error(
        "the chain is out of order: the key belongs to certificate {number}, '{subject}'; put the server's own \
         certificate first, then the one that issued it"
    )]
    LeafNotFirst {
        /// Which of the chain, from 1.
        number: usize,
        /// Its subject.
        subject: String,
    },
    /// A certificate was not issued by the next one.
    #[error(
        "the chain is out of order: certificate {number} was issued by '{issuer}', but the next one is '{next}'; put each \
         certificate before the one that issued it, and leave others out"
    )]
    Order {
        /// Which of the chain, from 1.
        number: usize,
        /// Its issuer.
        issuer: String,
        /// The subject of the next one.
        next: String,
    },
    /// Its time is over.
    #[error("certificate {number}, '{subject}', has expired at {at}; renew it")]
    Expired {
        /// Which of the file, from 1.
        number: usize,
        /// Its subject.
        subject: String,
        /// When.
        at: Moment,
    },
    /// Its time has not begun.
    #[error(
        "certificate {number}, '{subject}', is not valid before {at}; check the clock of this host, or issue it again"
    )]
    NotYetValid {
        /// Which of the file, from 1.
        number: usize,
        /// Its subject.
        subject: String,
        /// When.
        at: Moment,
    },
    /// An OCSP response that is none.
    #[error("is no OCSP response in DER; fetch it again (`openssl ocsp -respout FILE`), or remove it")]
    BadStaple,
    /// PEM without a certificate revocation list.
    #[error("holds no certificate revocation list ('-----BEGIN X509 CRL-----'); put one there, or remove it")]
    NoRevocationList,
    /// A certificate revocation list that cannot be understood.
    #[error(
        "certificate revocation list {number} does not parse ({why}); issue it again (`openssl ca -gencrl`)"
    )]
    BadRevocationList {
        /// Which of the file, from 1.
        number: usize,
        /// What the parser says.
        why: String,
    },
    /// A certificate revocation list that should have been replaced.
    #[error(
        "certificate revocation list {number}, of '{issuer}', has expired at {at}; issue it again (`openssl ca -gencrl`)"
    )]
    RevocationListExpired {
        /// Which of the file, from 1.
        number: usize,
        /// Whose it is.
        issuer: String,
        /// When.
        at: Moment,
    },
    /// A Secret with other keys.
    #[error("the Secret has no {wanted}; it has {found}")]
    NoEntry {
        /// The keys that were looked for.
        wanted: &'static str,
        /// The keys that are there.
        found: String,
    },
    /// Nothing is there.
    #[error("not found; tried {tried}; {remedy}")]
    NotFound {
        /// Everywhere that was looked.
        tried: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Several of one name, none of them in the namespace that was asked for.
    #[error(
        "several Secrets have this name, in the namespaces {0}, and none is in the namespace that is asked for; keep one of them"
    )]
    Ambiguous(String),
    /// A name that leads out of the directory.
    #[error("is no name of a Secret; use lower-case letters, digits, '-' and '.'")]
    BadName,
    /// YAML with faults.
    #[error("{0}")]
    Yaml(String),
    /// The system's own store.
    #[error(
        "the system trusts no certificate that can be read ({0}); install ca-certificates, or name a file"
    )]
    NoSystemStore(String),
    /// A certificate that cannot be an issuer.
    #[error("certificate {number} cannot be trusted as an authority ({why}); take it out")]
    BadAuthority {
        /// Which of the file, from 1.
        number: usize,
        /// What the library says.
        why: String,
    },
}

/// Something that is used all the same.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SecretWarning {
    /// A key that others may read.
    #[error("{place}: the key can be read by every user (mode {mode:04o}); `chmod o-rwx` it")]
    Readable {
        /// The file.
        place: String,
        /// Its mode.
        mode: u32,
    },
    /// A name of a server that its certificates are not for.
    #[error(
        "{server}: no certificate covers {name}; clients will refuse it: issue one with this name, or serve it elsewhere"
    )]
    NotCovered {
        /// Whose.
        server: String,
        /// The name or pattern.
        name: String,
    },
    /// It will expire within 30 days.
    #[error("{place}: the certificate expires at {at}, in {days} days; renew it")]
    Expires {
        /// Where it is.
        place: String,
        /// When.
        at: Moment,
        /// Whole days until then.
        days: i64,
    },
    /// A certificate of an issuer that has expired.
    #[error(
        "{place}: certificate {number} of the chain, '{subject}', has expired at {at}; clients may refuse the chain"
    )]
    IssuerExpired {
        /// Where it is.
        place: String,
        /// Which of the chain, from 1.
        number: usize,
        /// Its subject.
        subject: String,
        /// When.
        at: Moment,
    },
    /// A certificate or authority that is not there (yet).
    #[error("{0}; until it is there, what needs it is refused")]
    Missing(String),
    /// Nobody is verified.
    #[error("{0}: the certificate of the backend is not verified (insecureSkipVerify); name its authority")]
    NotVerified(String),
    /// Files that cannot be read any more once privileges are gone.
    #[error(
        "{0}: can be read with the privileges of the start only; a changed file will not be taken: let the user of the process read it"
    )]
    NotReadableLater(String),
}
