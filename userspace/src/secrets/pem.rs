//! Sections of PEM (RFC 7468).

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};

use super::error::Fault;

/// The beginning of every section.
const BEGIN: &[u8] = b"-----BEGIN";

/// All certificates of a text, in order. Other sections are skipped.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    look(text, "certificate")?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(broken)?;
    if found.is_empty() { Err(Fault::NoCertificate) } else { Ok(found) }
}

/// All certificate revocation lists of a text, in order (RFC 5280 section 5).
pub fn revocation_lists(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    look(text, "certificate revocation list")?;
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(text).collect();
    let found = found.map_err(broken)?;
    if found.is_empty() { Err(Fault::NoRevocationList) } else { Ok(found) }
}

/// The first private key of a text. The caller wipes it.
pub fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Fault> {
    look(text, "private key")?;
    // PKCS #8 (RFC 5958) has a section of its own, the older formats a header (RFC 1421).
    if contains(text, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(text, b"Proc-Type: 4,ENCRYPTED") {
        return Err(Fault::EncryptedKey);
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => Fault::NoKey,
        error => broken(error),
    })
}

/// Detects faults that need no parser.
fn look(text: &[u8], what: &'static str) -> Result<(), Fault> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(Fault::Empty(what));
    }
    if contains(text, BEGIN) {
        return Ok(());
    }
    // A SEQUENCE with a length in two bytes, as in all of X.509 and PKCS.
    let der = matches!(text, [0x30, 0x81..=0x83, ..]);
    Err(Fault::NotPem(if der {
        "; it seems to be DER: convert it with `openssl x509`, `openssl pkey` or `openssl crl`, with `-inform der`"
    } else {
        "; convert it with `openssl x509` or `openssl pkey`"
    }))
}

// By value, as `map_err` gives it.
#[expect(clippy::needless_pass_by_value, reason = "`map_err` gives the error away")]
fn broken(error: pem::Error) -> Fault {
    // Some messages of the library contain the faulty line, which may be part of a key.
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no '-----END' line",
        pem::Error::IllegalSectionStart { .. } => "a '-----BEGIN' line does not end with '-----'",
        pem::Error::Base64Decode(_) => "a section is not Base64",
        _ => "it does not parse",
    };
    Fault::BrokenPem(why.to_owned())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pem_is_told_apart() {
        let fault = |text: &[u8]| key(text).unwrap_err().to_string();
        assert!(fault(b" \n").starts_with("is empty"), "{}", fault(b""));
        assert!(fault(&[0x30, 0x82, 1, 0]).contains("DER"));
        assert!(fault(b"hello").contains("not PEM"));
        assert!(
            fault(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
                .contains("encrypted")
        );
        let old = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        assert!(fault(old).contains("encrypted"));
        assert!(
            fault(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
                .contains("no private key")
        );
        assert!(fault(b"-----BEGIN PRIVATE KEY-----\nAAAA\n").contains("-----END"));
        let text = b"-----BEGIN PRIVATE KEY-----\nhush!\n-----END PRIVATE KEY-----\n";
        assert!(fault(text).contains("Base64") && !fault(text).contains("hush"));
        let certificate = |text: &[u8]| certificates(text).unwrap_err().to_string();
        assert!(
            certificate(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
                .contains("no certificate")
        );
    }
}
