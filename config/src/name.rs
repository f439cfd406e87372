//! Names as types: the name in a hello, the pattern of a route, the host of an endpoint.
//!
//! Each value is valid and in lower case by construction, so later code needs no check or conversion.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The greatest length of a name, without the trailing dot (RFC 1035 section 2.3.4 counts 255 octets with length
/// bytes).
const MAX_NAME: usize = 253;
/// The greatest length of a label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// A DNS name as a client sends it in the `server_name` extension.
///
/// Canonical: ASCII lower case, without the trailing dot (RFC 6066 section 3 forbids the dot, but clients send it).
/// Labels consist of letters, digits, hyphens and underscores, at any position. Stricter rules for hyphens exist, but
/// names on the Internet break them. Never an IP literal (RFC 6066 section 3).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Box<str>);

impl ServerName {
    /// Parses the bytes of a `HostName` in a hello, or any typed text.
    pub fn parse(bytes: impl AsRef<[u8]>) -> Result<Self, NameError> {
        canonical(bytes.as_ref()).map(Self)
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServerName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// The name of a host to connect to, which DNS resolves.
///
/// The same labels as in a [`ServerName`], in lower case. A trailing dot stays, since it means "no search domains" to
/// a resolver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Box<str>);

impl HostName {
    /// Parses a name as written in a configuration.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = canonical(text.as_bytes())?;
        Ok(Self(if text.ends_with('.') { format!("{name}.").into_boxed_str() } else { name }))
    }

    /// The text for a resolver.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without a trailing dot.
    #[must_use]
    pub fn without_dot(&self) -> &str {
        self.0.strip_suffix('.').unwrap_or(&self.0)
    }
}

impl FromStr for HostName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ServerName> for HostName {
    fn from(name: ServerName) -> Self {
        Self(name.0)
    }
}

/// The server names that a route serves or a listener admits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This name only.
    Exact(ServerName),
    /// `*.x`: one or more labels before `.x`, never `x` itself (Gateway API and Istio semantics).
    Suffix(ServerName),
    /// `*`: every name, and a hello without one.
    Any,
}

impl HostPattern {
    /// Parses `name`, `*.name` or `*`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            Ok(Self::Any)
        } else {
            match text.strip_prefix("*.") {
                Some(rest) if !rest.contains('*') => ServerName::parse(rest).map(Self::Suffix),
                None if !text.contains('*') => ServerName::parse(text).map(Self::Exact),
                _ => Err(NameError::Wildcard),
            }
        }
    }

    /// Whether `name` matches the pattern.
    #[must_use]
    pub fn matches(&self, name: &ServerName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Suffix(suffix) => is_below(name, suffix),
            Self::Any => true,
        }
    }

    /// Whether every name of `self` matches `other`.
    #[must_use]
    pub fn is_subset_of(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Any) => true,
            (Self::Exact(name), _) => other.matches(name),
            (Self::Suffix(inner), Self::Suffix(outer)) => inner == outer || is_below(inner, outer),
            (Self::Suffix(_) | Self::Any, _) => false,
        }
    }

    /// The common names of both, which are always one of the two patterns or none.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.is_subset_of(other) {
            Some(self.clone())
        } else if other.is_subset_of(self) {
            Some(other.clone())
        } else {
            None
        }
    }

    /// Sorts the more specific pattern higher: exact, then the suffix with more labels, then `*`.
    #[must_use]
    pub(crate) fn specificity(&self) -> usize {
        match self {
            Self::Exact(_) => usize::MAX,
            Self::Suffix(suffix) => labels(suffix.as_str()),
            Self::Any => 0,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl FromStr for HostPattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// The reason for which a text is not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty, or only a dot.
    #[error("the name is empty")]
    Empty,
    /// More than 253 characters.
    #[error("the name has more than {MAX_NAME} characters")]
    TooLong,
    /// Two dots in a row, or one at the start.
    #[error("the name has an empty label")]
    EmptyLabel,
    /// A label of more than 63 characters.
    #[error("a label of the name has more than {MAX_LABEL} characters")]
    LabelTooLong,
    /// A character that is not a letter, digit, hyphen, underscore or dot. Other scripts are written as `xn--`
    /// labels.
    #[error(
        "the name contains a character other than a-z, 0-9, '-', '_' and '.' (write other scripts as xn--)"
    )]
    Character,
    /// An IPv4 address; IPv6 is already a [`NameError::Character`].
    #[error("an IP address is not a server name (RFC 6066 section 3)")]
    IpAddress,
    /// A `*` that is not the whole first label.
    #[error("'*' can only stand alone or as the whole first label, as in *.example.com")]
    Wildcard,
}

/// Whether the bytes are a literal IPv4 or IPv6 address, with or without the brackets of a URL (RFC 3986 section
/// 3.2.2). A zone (RFC 4007 section 11.2) may follow an IPv6 address, and a final dot an IPv4 address.
#[must_use]
pub fn is_address(name: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(name) else { return false };
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let v6 = inner.split_once('%').map_or(inner, |(address, _)| address);
    let v4 = text.strip_suffix('.').unwrap_or(text);
    v6.parse::<Ipv6Addr>().is_ok() || v4.parse::<Ipv4Addr>().is_ok()
}

fn canonical(bytes: &[u8]) -> Result<Box<str>, NameError> {
    let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
    if bytes.is_empty() {
        return Err(NameError::Empty);
    }
    if bytes.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    let mut name = String::with_capacity(bytes.len());
    let mut label = 0;
    for &byte in bytes {
        match byte {
            b'.' if label == 0 => return Err(NameError::EmptyLabel),
            b'.' => label = 0,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' if label == MAX_LABEL => {
                return Err(NameError::LabelTooLong);
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => label += 1,
            _ => return Err(NameError::Character),
        }
        name.push(char::from(byte.to_ascii_lowercase()));
    }
    if label == 0 {
        return Err(NameError::EmptyLabel);
    }
    if name.parse::<Ipv4Addr>().is_ok() {
        return Err(NameError::IpAddress);
    }
    Ok(name.into_boxed_str())
}

fn is_below(name: &ServerName, suffix: &ServerName) -> bool {
    // The dot is required: `newexample.com` is not below `example.com`.
    name.0.strip_suffix(&*suffix.0).is_some_and(|head| head.ends_with('.'))
}

pub(crate) fn labels(name: &str) -> usize {
    name.split('.').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    #[test]
    fn names_are_canonical() {
        assert_eq!(name("WWW.Example.COM.").as_str(), "www.example.com");
        assert_eq!(name("a_b.-x-.example").as_str(), "a_b.-x-.example");
        assert_eq!(name("localhost").as_str(), "localhost");
        assert_eq!(name("1.2.3").as_str(), "1.2.3");
        assert_eq!(ServerName::parse(b"xn--bcher-kva.example").unwrap().as_str(), "xn--bcher-kva.example");
    }

    #[test]
    fn names_that_are_none() {
        let long_label = format!("{}.com", "a".repeat(64));
        let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join(".");
        assert_eq!(long_name.len(), 254);
        for (text, error) in [
            ("", NameError::Empty),
            (".", NameError::Empty),
            ("..", NameError::EmptyLabel),
            (".example.com", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            ("a.b..", NameError::EmptyLabel),
            (&*long_label, NameError::LabelTooLong),
            (&*long_name, NameError::TooLong),
            ("exa mple.com", NameError::Character),
            ("example.com:443", NameError::Character),
            ("bücher.example", NameError::Character),
            ("a\0b", NameError::Character),
            ("*.example.com", NameError::Character),
            ("10.0.0.1", NameError::IpAddress),
            ("10.0.0.1.", NameError::IpAddress),
            ("::1", NameError::Character),
        ] {
            assert_eq!(ServerName::parse(text), Err(error), "{text:?}");
        }
        assert!(ServerName::parse(format!("{}.", &long_name[1..])).is_ok(), "253 and a dot");
        assert_eq!(ServerName::parse([0xff, 0xfe]), Err(NameError::Character));
    }

    #[test]
    fn host_names_keep_the_dot() {
        let host = HostName::parse("DB.internal.").unwrap();
        assert_eq!((host.as_str(), host.without_dot()), ("db.internal.", "db.internal"));
        assert_eq!(HostName::parse("db").unwrap().without_dot(), "db");
    }

    #[test]
    fn patterns_parse_and_print() {
        for text in ["example.com", "*.example.com", "*"] {
            assert_eq!(pattern(text).to_string(), text);
        }
        assert_eq!(pattern("*.Example.com.").to_string(), "*.example.com");
        for text in ["*example.com", "a.*.com", "**", "*.*.com", "*."] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
        assert_eq!(HostPattern::parse("*.*.com"), Err(NameError::Wildcard));
    }

    #[test]
    fn wildcards_take_one_or_more_labels_never_the_apex() {
        let wild = pattern("*.example.com");
        assert!(wild.matches(&name("a.example.com")));
        assert!(wild.matches(&name("b.a.example.com")));
        assert!(!wild.matches(&name("example.com")));
        assert!(!wild.matches(&name("newexample.com")));
        assert!(pattern("*").matches(&name("anything")));
    }

    #[test]
    fn an_address_is_told_from_a_name() {
        for address in [
            "10.0.0.1",
            "10.0.0.1.",
            "::",
            "2001:db8::1",
            "[2001:db8::1]",
            "::ffff:192.0.2.1",
            "fe80::1%eth0",
        ] {
            assert!(is_address(address.as_bytes()), "{address}");
        }
        for name in
            ["", ".", "[]", "[10.0.0.1]", "10.0.0", "10.0.0.1.example", "10.0.0.256", "a::example", "%eth0"]
        {
            assert!(!is_address(name.as_bytes()), "{name}");
        }
        assert!(!is_address(b"\xff"));
    }

    #[test]
    fn subset_and_intersection() {
        // The Gateway API hostname intersection table, and the Istio bug of a route wider than its listener.
        for (a, b, both) in [
            ("a.com", "a.com", Some("a.com")),
            ("a.com", "b.com", None),
            ("*.example.com", "abc.example.com", Some("abc.example.com")),
            ("*.example.com", "example.com", None),
            ("*.com", "*.example.com", Some("*.example.com")),
            ("*.com", "example.com", Some("example.com")),
            ("*.example.com", "*.example.org", None),
            ("*.ample.com", "*.example.com", None),
            ("*", "*.example.com", Some("*.example.com")),
            ("*", "*", Some("*")),
        ] {
            let (a, b) = (pattern(a), pattern(b));
            let both = both.map(pattern);
            assert_eq!(a.intersect(&b), both, "{a} and {b}");
            assert_eq!(b.intersect(&a), both, "{b} and {a}");
            assert_eq!(a.is_subset_of(&b), both.as_ref() == Some(&a), "{a} within {b}");
        }
    }
}
