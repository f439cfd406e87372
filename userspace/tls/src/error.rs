//! Why bytes are not an acceptable hello.

use snisplice_config::name::NameError;
use thiserror::Error;

/// Why bytes are not an acceptable hello. The verdict is final: more bytes do not change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HelloError {
    /// The stream does not begin like a TLS handshake record: another protocol, or the hello of SSL 2.0.
    #[error("not TLS: the stream does not begin with a handshake record")]
    NotTls,
    /// TLS, but not a well-formed hello.
    #[error("malformed hello: {0}")]
    Malformed(#[from] Fault),
    /// The hello, with the headers of its records, must be longer than the limit.
    #[error("the hello is longer than the limit")]
    TooLarge,
}

impl HelloError {
    /// Metric and log label.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::Malformed(_) => "malformed",
            Self::TooLarge => "too_large",
        }
    }
}

/// What is wrong with a malformed hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// RFC 8446 section 5.1 forbids it for handshake records.
    #[error("a record without content")]
    EmptyRecord,
    /// RFC 8446 section 5.1.
    #[error("a record longer than 16384 bytes")]
    RecordOverflow,
    /// RFC 8446 section 5.1: no other record may stand between those of one message.
    #[error("a record that is not a handshake record inside the message")]
    ForeignRecord,
    /// RFC 8446 section 4: a client's first message.
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
    /// RFC 6066 section 3: the list is empty, holds an empty name, or does not fit the extension.
    #[error("the server_name list is not well-formed")]
    ServerNameList,
    /// No type but `host_name` was ever defined (RFC 6066 section 3), and servers refuse others.
    #[error("server_name holds a name of unknown type {0}")]
    ServerNameType(u8),
    /// RFC 6066 section 3: at most one name of each type.
    #[error("server_name holds more than one host name")]
    ServerNameCount,
    /// Not a DNS host name (RFC 6066 section 3): NUL, bytes outside ASCII, an overlong label and so on.
    #[error("server_name: {0}")]
    ServerName(NameError),
    /// RFC 7301 section 3.1: the list or one of its names is empty, or it does not fit the extension.
    #[error("the ALPN list is not well-formed")]
    Alpn,
    /// RFC 8446 section 4.2.1: the list is empty, cut inside a version, or does not fit the extension.
    #[error("the list of supported versions is not well-formed")]
    Versions,
}
