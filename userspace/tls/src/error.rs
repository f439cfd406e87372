//! The reasons for which bytes are not an acceptable hello.

use snisplice_config::name::NameError;
use thiserror::Error;

/// The reason for which bytes are not an acceptable hello. The verdict is final: more bytes do not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HelloError {
    /// The stream does not begin like a TLS handshake record. It is another protocol, or a hello of SSL 2.0.
    #[error("not TLS: the stream does not begin with a handshake record")]
    NotTls,
    /// The stream is TLS, but not a well-formed hello.
    #[error("malformed hello: {0}")]
    Malformed(#[from] Fault),
    /// The hello, including record headers, exceeds the limit.
    #[error("the hello is longer than the limit")]
    TooLarge,
}

impl HelloError {
    /// The label for metrics and logs.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::Malformed(_) => "malformed",
            Self::TooLarge => "too_large",
        }
    }
}

/// The fault of a malformed hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// RFC 8446 section 5.1 forbids an empty handshake record.
    #[error("a record without content")]
    EmptyRecord,
    /// RFC 8446 section 5.1.
    #[error("a record longer than 16384 bytes")]
    RecordOverflow,
    /// RFC 8446 section 5.1: no other record may come between the records of one message.
    #[error("a record that is not a handshake record inside the message")]
    ForeignRecord,
    /// RFC 8446 section 4: the first message of a client is a `ClientHello`.
    #[error("the first handshake message is not a ClientHello")]
    NotClientHello,
    /// The fields up to the extensions do not fill the message, or one has a length that RFC 8446 section 4.1.2 does
    /// not allow.
    #[error("the fields of the message do not fit its length")]
    Fields,
    /// The list of extensions ends inside an extension.
    #[error("the extensions do not fit their length")]
    Extensions,
    /// RFC 8446 section 4.2: at most one extension of each type.
    #[error("extension {0} occurs twice")]
    DuplicateExtension(u16),
    /// RFC 6066 section 3: the list is empty, contains an empty name, or does not fit the extension.
    #[error("the server_name list is not well-formed")]
    ServerNameList,
    /// RFC 6066 section 3 defines only the type `host_name`, and servers refuse others.
    #[error("server_name holds a name of unknown type {0}")]
    ServerNameType(u8),
    /// RFC 6066 section 3: at most one name of each type.
    #[error("server_name holds more than one host name")]
    ServerNameCount,
    /// Not a DNS host name (RFC 6066 section 3): for example NUL, bytes outside ASCII, or a label that is too long.
    #[error("server_name: {0}")]
    ServerName(NameError),
    /// RFC 7301 section 3.1: the list or one of its names is empty, or it does not fit the extension.
    #[error("the ALPN list is not well-formed")]
    Alpn,
    /// RFC 8446 section 4.2.1: the list is empty, ends inside a version, or does not fit the extension.
    #[error("the list of supported versions is not well-formed")]
    Versions,
}
