//! The bytes of the fatal alert that tells a client the reason for a refusal.
//!
//! Nothing is negotiated and no key exists yet, so an alert is seven unencrypted bytes. Every version of TLS
//! understands them (RFC 8446 section 6, RFC 5246 section 7.2).

use crate::error::{Fault, HelloError};

/// The reason for the end of the connection, in the terms of RFC 8446 section 6.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Description {
    /// A message that is not allowed at this point, or a record of the wrong type.
    UnexpectedMessage = 10,
    /// A record longer than allowed.
    RecordOverflow = 22,
    /// No acceptable parameters: the general refusal.
    HandshakeFailure = 40,
    /// A field that is well-formed, but not allowed.
    IllegalParameter = 47,
    /// An invalid length or encoding.
    DecodeError = 50,
    /// The server does not support the version of the hello.
    ProtocolVersion = 70,
    /// An internal failure of the balancer, such as an unreachable backend.
    InternalError = 80,
    /// The hello lacks a required extension.
    MissingExtension = 109,
    /// No server has the requested name (RFC 6066 section 3).
    UnrecognizedName = 112,
}

impl Description {
    /// For a valid hello without `server_name`: RFC 8446 section 9.2 names this alert. Clients older than TLS 1.3 do
    /// not know the alert, but end the connection on any fatal alert.
    pub const NO_SERVER_NAME: Self = Self::MissingExtension;
    /// For a valid hello whose name no rule serves: RFC 6066 section 3.
    pub const UNKNOWN_NAME: Self = Self::UnrecognizedName;
    /// For a hello that did not arrive in time. No alert is defined for this case. The general refusal fits best.
    pub const TIMEOUT: Self = Self::HandshakeFailure;

    /// The alert for a hello that the parser refused.
    #[must_use]
    pub fn of(error: HelloError) -> Self {
        match error {
            // RFC 8446 section 5: an unexpected record type. Only a TLS client understands the alert.
            HelloError::NotTls => Self::UnexpectedMessage,
            // No RFC defines this case. OpenSSL and BoringSSL send this alert for an excessive message.
            HelloError::TooLarge => Self::IllegalParameter,
            HelloError::Malformed(fault) => match fault {
                // RFC 8446 sections 4 and 5.1.
                Fault::EmptyRecord | Fault::ForeignRecord | Fault::NotClientHello => Self::UnexpectedMessage,
                // RFC 8446 section 5.1.
                Fault::RecordOverflow => Self::RecordOverflow,
                // RFC 8446 section 6.2: well-formed, but not allowed.
                Fault::DuplicateExtension(_)
                | Fault::ServerNameType(_)
                | Fault::ServerNameCount
                | Fault::ServerName(_) => Self::IllegalParameter,
                // RFC 8446 section 6.2: an invalid length or encoding.
                Fault::Fields | Fault::Extensions | Fault::ServerNameList | Fault::Alpn | Fault::Versions => {
                    Self::DecodeError
                }
            },
        }
    }
}

/// One record with one fatal alert.
#[must_use]
pub fn alert(description: Description) -> [u8; 7] {
    /// Content type `alert`, RFC 8446 section 5.1.
    const ALERT: u8 = 0x15;
    /// Level `fatal`, RFC 8446 section 6.
    const FATAL: u8 = 0x02;
    // The version of a record is always 0x0303 (RFC 8446 section 5.1). The record contains two bytes.
    [ALERT, 0x03, 0x03, 0x00, 0x02, FATAL, description as u8]
}

#[cfg(test)]
mod tests {
    use snisplice_config::name::NameError;

    use super::*;

    #[test]
    fn an_alert_is_one_record() {
        assert_eq!(alert(Description::UNKNOWN_NAME), [0x15, 3, 3, 0, 2, 2, 112]);
        assert_eq!(alert(Description::NO_SERVER_NAME), [0x15, 3, 3, 0, 2, 2, 109]);
        assert_eq!(alert(Description::TIMEOUT), [0x15, 3, 3, 0, 2, 2, 40]);
    }

    #[test]
    fn every_kind_of_rejection_has_its_alert() {
        let cases = [
            (HelloError::NotTls, 10),
            (HelloError::TooLarge, 47),
            (Fault::ForeignRecord.into(), 10),
            (Fault::RecordOverflow.into(), 22),
            (Fault::DuplicateExtension(0).into(), 47),
            (Fault::ServerName(NameError::Empty).into(), 47),
            (Fault::ServerNameList.into(), 50),
            (Fault::Fields.into(), 50),
        ];
        for (rejection, code) in cases {
            assert_eq!(alert(Description::of(rejection))[6], code, "{rejection}");
        }
    }

    /// The parser of `tls-parser` reads the written bytes.
    #[test]
    fn another_implementation_reads_it() {
        let bytes = alert(Description::UnrecognizedName);
        let (rest, record) = tls_parser::parse_tls_plaintext(&bytes).unwrap();
        assert!(rest.is_empty());
        let [tls_parser::TlsMessage::Alert(alert)] = &record.msg[..] else { panic!("{record:?}") };
        assert_eq!(alert.severity, tls_parser::TlsAlertSeverity::Fatal);
        assert_eq!(alert.code, tls_parser::TlsAlertDescription::UnrecognizedName);
    }
}
