//! The content of a TLS `ClientHello` that routing needs.
//!
//! [`parse`] is a function of the bytes received so far. Call it again with a longer prefix until it returns a
//! verdict. It follows the hello through any split into records and segments. A hello is complete, incomplete, or
//! refused with a reason: there is no undecided case. A refused hello must never reach a default route, since the
//! server behind it may read a name that the balancer did not read.
//!
//! The parser is strict in the parts that affect the verdict: framing, the list of extensions, `server_name`, ALPN
//! and `supported_versions`. The backend judges all other parts. GREASE values (RFC 8701) are accepted wherever they
//! are allowed, and are not reported. Bytes after the hello (early data, further records, further messages in the
//! same record) are ignored.

use std::fmt;

use snisplice_config::name::{ServerName, is_address};
use tls_parser::{
    SNIType, TlsExtension, TlsExtensionType, parse_tls_extension_alpn_content,
    parse_tls_extension_sni_content, parse_tls_extension_unknown, parse_tls_handshake_client_hello,
};

use crate::{
    error::{Fault, HelloError},
    record::{self, Found},
};

#[cfg(any(test, feature = "invariants"))]
pub mod invariants;
#[cfg(test)]
mod tests;

/// Extension `encrypted_client_hello`, RFC 9849 section 5.
const ENCRYPTED_CLIENT_HELLO: TlsExtensionType = TlsExtensionType(0xfe0d);

/// A complete `ClientHello`, with the fields that routing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The host name of the `server_name` extension; `None` without that extension, or if it holds an IP address.
    pub server_name: Option<ServerName>,
    /// The application protocols offered, in the client's order of preference.
    pub alpn: Alpn,
    /// Whether the client sent `encrypted_client_hello` (RFC 9849).
    ///
    /// [`server_name`](Self::server_name) is then the public name of the outer hello. The inner one is encrypted. A
    /// GREASE ECH extension, which browsers send to every server, looks the same on purpose. So the flag means that
    /// the name *may* not be the one that the client requests.
    pub ech_offered: bool,
    /// Whether the client sent `early_data` (RFC 8446, section 4.2.10). The client then sends further bytes before it
    /// has received a reply.
    pub early_data: bool,
    /// The protocol versions offered.
    pub versions: Versions,
}

/// The result of [`parse`] for bytes that are a hello, or can become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parse {
    /// The hello is complete.
    Done(ClientHello),
    /// More bytes are needed.
    Incomplete {
        /// The least length of the whole stream at which the hello can be complete: a value for `SO_RCVLOWAT`. It
        /// always exceeds the current length. It is exact if the rest of the hello is in the current record, and
        /// otherwise a lower bound that never exceeds the limit. A fault in a later record is detected at that
        /// length, or by an earlier call. A call for each header would cost a read for each record.
        need: usize,
    },
}

/// Parses the hello at the start of a connection. `bytes` is everything that has arrived so far.
///
/// `limit` bounds the hello on the wire in bytes, including record headers. The cost is linear in the length of
/// `bytes` (times the logarithm of the number of extensions). No memory is allocated before the hello is complete. A
/// caller that waits for `need` bytes between calls makes few of them, even if every record contains one byte.
///
/// # Errors
/// See [`HelloError`]. Each error is returned as soon as the bytes decide it.
pub fn parse(bytes: &[u8], limit: usize) -> Result<Parse, HelloError> {
    Ok(match record::find(bytes, limit)? {
        Found::Incomplete { need } => Parse::Incomplete { need },
        Found::Complete(body) => Parse::Done(ClientHello::from_body(&body)?),
    })
}

impl ClientHello {
    /// Parses the body of the handshake message.
    fn from_body(body: &[u8]) -> Result<Self, Fault> {
        let (rest, fields) = parse_tls_handshake_client_hello(body).map_err(|_| Fault::Fields)?;
        // The parser ignores an extension block that does not fit, and accepts two empty lists.
        if !rest.is_empty() || fields.ciphers.is_empty() || fields.comp.is_empty() {
            return Err(Fault::Fields);
        }
        let mut hello = Self {
            server_name: None,
            alpn: Alpn::default(),
            ech_offered: false,
            early_data: false,
            versions: Versions::from_legacy(fields.version.0),
        };

        let mut types = Vec::with_capacity(32);
        let mut rest = fields.ext.unwrap_or_default();
        while !rest.is_empty() {
            // The envelope only: the typed parser refuses and skips extensions that do not matter here.
            let Ok((after, TlsExtension::Unknown(extension, data))) = parse_tls_extension_unknown(rest)
            else {
                return Err(Fault::Extensions);
            };
            types.push(extension.0);
            match extension {
                TlsExtensionType::ServerName => hello.server_name = server_name(data)?,
                TlsExtensionType::ApplicationLayerProtocolNegotiation => {
                    hello.alpn = Alpn::from_extension(data)?;
                }
                TlsExtensionType::SupportedVersions => hello.versions = Versions::from_extension(data)?,
                TlsExtensionType::EarlyData => hello.early_data = true,
                ENCRYPTED_CLIENT_HELLO => hello.ech_offered = true,
                _ => {}
            }
            rest = after;
        }

        types.sort_unstable();
        match types.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::DuplicateExtension(pair[0])),
            None => Ok(hello),
        }
    }
}

/// The single host name in a `server_name` extension (RFC 6066 section 3).
///
/// A literal address is no host name. The RFC forbids clients to send one, but small devices that connect by address
/// do so. It names no server, as if the extension were missing.
fn server_name(data: &[u8]) -> Result<Option<ServerName>, Fault> {
    let Ok((_, TlsExtension::SNI(names))) = parse_tls_extension_sni_content(data) else {
        return Err(Fault::ServerNameList);
    };
    // The parser stops without an error at an unreadable byte, in the list and after it. So the code counts the bytes
    // that were read: the list's length, and for each name its type and length.
    let read = names.iter().fold(2, |sum, (_, name)| sum + 3 + name.len());
    if read != data.len() {
        return Err(Fault::ServerNameList);
    }
    if let Some((other, _)) = names.iter().find(|(kind, _)| *kind != SNIType::HostName) {
        return Err(Fault::ServerNameType(other.0));
    }
    match names[..] {
        [] | [(_, [])] => Err(Fault::ServerNameList),
        [(_, name)] if is_address(name) => Ok(None),
        [(_, name)] => ServerName::parse(name).map(Some).map_err(Fault::ServerName),
        _ => Err(Fault::ServerNameCount),
    }
}

/// The application protocols that a client offers (RFC 7301), without GREASE.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Alpn {
    /// The validated wire format: each name with a length prefix. One allocation for any number of names.
    names: Box<[u8]>,
}

impl Alpn {
    fn from_extension(data: &[u8]) -> Result<Self, Fault> {
        let Ok((_, TlsExtension::ALPN(names))) = parse_tls_extension_alpn_content(data) else {
            return Err(Fault::Alpn);
        };
        // As for `server_name`: bytes that the parser did not read are missing from the sum.
        let read = names.iter().fold(2, |sum, name| sum + 1 + name.len());
        if read != data.len() || names.is_empty() || names.iter().any(|name| name.is_empty()) {
            return Err(Fault::Alpn);
        }
        Ok(Self { names: data[2..].into() })
    }

    /// The names, most preferred first. They are bytes and may not be text.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.names[..];
        let names = std::iter::from_fn(move || {
            let (length, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(*length))?;
            rest = after;
            Some(name)
        });
        names.filter(|name| !<[u8; 2]>::try_from(*name).is_ok_and(is_grease))
    }

    /// Whether the client offers no protocol, with or without the extension.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }
}

impl fmt::Debug for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|name| name.escape_ascii().to_string())).finish()
    }
}

/// A protocol version that a client can offer over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// SSL 3.0, 0x0300.
    Ssl30,
    /// TLS 1.0, 0x0301.
    Tls10,
    /// TLS 1.1, 0x0302.
    Tls11,
    /// TLS 1.2, 0x0303.
    Tls12,
    /// TLS 1.3, 0x0304.
    Tls13,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Self; 5] = [Self::Ssl30, Self::Tls10, Self::Tls11, Self::Tls12, Self::Tls13];

    /// The value of `ProtocolVersion` on the wire.
    #[must_use]
    pub fn wire(self) -> u16 {
        0x0300 + self as u16
    }

    /// The standard notation: a log and metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ssl30 => "SSLv3",
            Self::Tls10 => "TLSv1",
            Self::Tls11 => "TLSv1.1",
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }
}

/// The set of protocol versions that a client offers.
///
/// GREASE, drafts and unknown versions are left out.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Versions {
    /// Bit n stands for `Version::ALL[n]`.
    bits: u8,
}

impl Versions {
    /// The versions of a hello without `supported_versions`. The hello names the newest version only, and a server
    /// chooses TLS 1.2 at most (RFC 8446 section 4.2.1).
    fn from_legacy(legacy_version: u16) -> Self {
        let newest = legacy_version.min(Version::Tls12.wire());
        Version::ALL.into_iter().filter(|version| version.wire() == newest).collect()
    }

    /// The versions of the extension `supported_versions`. Parsed here because `tls-parser` ignores the length of the
    /// list.
    fn from_extension(data: &[u8]) -> Result<Self, Fault> {
        let (length, list) = data.split_first().ok_or(Fault::Versions)?;
        if usize::from(*length) != list.len() || list.is_empty() || !list.len().is_multiple_of(2) {
            return Err(Fault::Versions);
        }
        let offered =
            |version: &Version| list.chunks_exact(2).any(|wire| wire == version.wire().to_be_bytes());
        Ok(Version::ALL.into_iter().filter(offered).collect())
    }

    /// Whether the client offers `version`.
    #[must_use]
    pub fn contains(self, version: Version) -> bool {
        self.bits & (1 << version as u8) != 0
    }

    /// The versions, oldest first.
    #[must_use]
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Version> {
        Version::ALL.into_iter().filter(move |version| self.contains(*version))
    }

    /// The newest version. `None` if the client offers unknown versions only.
    #[must_use]
    pub fn newest(self) -> Option<Version> {
        self.iter().next_back()
    }
}

impl FromIterator<Version> for Versions {
    fn from_iter<I: IntoIterator<Item = Version>>(versions: I) -> Self {
        Self { bits: versions.into_iter().fold(0, |bits, version| bits | 1 << version as u8) }
    }
}

impl fmt::Debug for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Whether a two-byte value is one of the sixteen that RFC 8701 reserves: 0x0a0a, 0x1a1a, … 0xfafa.
fn is_grease([high, low]: [u8; 2]) -> bool {
    high == low && high & 0x0f == 0x0a
}
