//! The checks of certificate revocation lists (RFC 5280 section 5): a function of bytes and of the time.

use rustls::pki_types::CertificateRevocationListDer;
use x509_parser::{prelude::FromDer as _, revocation_list::CertificateRevocationList};

use super::error::{Fault, Moment};

/// Whether each list parses and is in force at this time, in seconds since 1970. The handshake verifies a list's
/// signature, with the certificates of its issuer.
pub(super) fn check(lists: &[CertificateRevocationListDer<'_>], now: i64) -> Result<(), Fault> {
    for (at, der) in lists.iter().enumerate() {
        let number = at + 1;
        let (_, list) = CertificateRevocationList::from_der(der)
            .map_err(|error| Fault::BadRevocationList { number, why: error.to_string() })?;
        let end = list.next_update().map(|end| end.timestamp());
        if let Some(end) = end.filter(|end| *end < now) {
            return Err(Fault::RevocationListExpired {
                number,
                issuer: list.issuer().to_string(),
                at: Moment(end),
            });
        }
    }
    Ok(())
}
