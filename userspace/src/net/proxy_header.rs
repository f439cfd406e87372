//! The header of the PROXY protocol (`HAProxy`'s `proxy-protocol.txt`), versions 1 and 2: bytes in, values out.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use snisplice_config::model::proxy_protocol::{ProxyTlv, ProxyVersion, SendProxy};
use thiserror::Error;

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes of version 2 before the addresses.
const FIXED: usize = SIGNATURE.len() + 4;

/// The first bytes of version 1.
const WORD: &[u8] = b"PROXY ";

/// The longest header of version 1, with its line end.
const LONGEST_LINE: usize = 107;

/// The shortest header of version 1: `PROXY UNKNOWN` and its line end.
const SHORTEST_LINE: usize = 15;

/// The longest header that is accepted: `HAProxy`'s buffer (`tune.bufsize`).
pub const LONGEST: usize = 16 * 1024;

/// The longest unique id (section 2.2.5 of the specification).
const LONGEST_ID: usize = 128;

/// The types of additional fields.
mod tlv {
    pub(super) const ALPN: u8 = 0x01;
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const CRC32C: u8 = 0x03;
    pub(super) const UNIQUE_ID: u8 = 0x05;
}

/// The connection that a header describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The client.
    pub source: SocketAddr,
    /// The address to which the client has connected.
    pub destination: SocketAddr,
    /// The id of the connection, if the proxy has given one.
    pub unique_id: Option<Box<[u8]>>,
}

/// The form of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Version 1 with addresses.
    V1,
    /// Version 2 with addresses.
    V2,
    /// A header without addresses of a TCP connection, such as `LOCAL` and `UNKNOWN`. The connection is the proxy's
    /// own.
    Local,
}

/// A complete header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its length in bytes.
    pub length: usize,
    /// The connection that it describes. `None` for [`Form::Local`].
    pub origin: Option<Origin>,
    /// Its form.
    pub form: Form,
}

/// The result of [`parse`] for bytes that are a header, or can become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parse {
    /// The header is complete. Other bytes may follow.
    Done(Header),
    /// More bytes are needed.
    Incomplete {
        /// The least length at which the header can be complete.
        need: usize,
    },
}

/// The reason for which bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The first bytes begin no header.
    #[error("the connection does not begin with a PROXY header")]
    Absent,
    /// The header has an error.
    #[error("{0}")]
    Malformed(&'static str),
    /// The header is longer than [`LONGEST`].
    #[error("the header is longer than {LONGEST} bytes")]
    TooLarge,
}

/// Parses the first bytes of a connection. More bytes never change a verdict.
///
/// # Errors
/// Returns an error if the bytes cannot become a valid header.
pub fn parse(bytes: &[u8]) -> Result<Parse, HeaderError> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, wanted)| byte == wanted);
    if bytes.is_empty() {
        Ok(Parse::Incomplete { need: SHORTEST_LINE })
    } else if begins(SIGNATURE) {
        parse_binary(bytes)
    } else if begins(WORD) {
        parse_line(bytes)
    } else {
        Err(HeaderError::Absent)
    }
}

fn parse_line(bytes: &[u8]) -> Result<Parse, HeaderError> {
    let wrong = Err(HeaderError::Malformed("the line of version 1 is malformed"));
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        if window.len() == LONGEST_LINE {
            return Err(HeaderError::Malformed("the line of version 1 has no end within 107 bytes"));
        }
        return Ok(Parse::Incomplete { need: (bytes.len() + 1).max(SHORTEST_LINE) });
    };
    let Some(line) = window[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok()) else {
        return wrong;
    };
    let length = end + 1;
    let mut words = line.split(' ').skip(1);
    let four = match words.next() {
        Some("TCP4") => true,
        Some("TCP6") => false,
        Some("UNKNOWN") => {
            return Ok(Parse::Done(Header { length, origin: None, form: Form::Local }));
        }
        _ => return wrong,
    };
    let [source, destination] = [words.next(), words.next()].map(|word| address(word?, four));
    let [from, to] = [words.next(), words.next()].map(|word| port(word?));
    match (source, destination, from, to, words.next()) {
        (Some(source), Some(destination), Some(from), Some(to), None) => {
            let origin = origin((source, from), (destination, to), None);
            Ok(Parse::Done(Header { length, origin: Some(origin), form: Form::V1 }))
        }
        _ => wrong,
    }
}

fn address(word: &str, four: bool) -> Option<IpAddr> {
    if four {
        word.parse::<Ipv4Addr>().ok().map(IpAddr::from)
    } else {
        word.parse::<Ipv6Addr>().ok().map(IpAddr::from)
    }
}

/// A decimal number without a sign and without leading zeros.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    plain.then(|| word.parse().ok()).flatten()
}

/// Mapped addresses become IPv4.
fn origin(source: (IpAddr, u16), destination: (IpAddr, u16), unique_id: Option<&[u8]>) -> Origin {
    let canonical = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip.to_canonical(), port);
    Origin {
        source: canonical(source),
        destination: canonical(destination),
        unique_id: unique_id.map(Into::into),
    }
}

fn parse_binary(bytes: &[u8]) -> Result<Parse, HeaderError> {
    let command = bytes.get(SIGNATURE.len()).copied();
    if command.is_some_and(|command| command >> 4 != 2 || command & 0xF > 1) {
        return Err(HeaderError::Malformed("the version or the command is unknown"));
    }
    let (Some(command), Some(family), Some(length)) =
        (command, bytes.get(FIXED - 3), bytes.get(FIXED - 2..FIXED))
    else {
        return Ok(Parse::Incomplete { need: FIXED });
    };
    let length = FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length > LONGEST {
        return Err(HeaderError::TooLarge);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Parse::Incomplete { need: length }) };
    let local = Ok(Parse::Done(Header { length, origin: None, form: Form::Local }));
    if command % 16 == 0 {
        // The rest has no meaning.
        return local;
    }
    let (family, transport) = (family >> 4, family & 0xF);
    if transport > 2 {
        return Err(HeaderError::Malformed("the transport protocol is unknown"));
    }
    let addresses = match family {
        0 => 0,
        1 => 12,
        2 => 36,
        // AF_UNIX.
        3 => 216,
        _ => return Err(HeaderError::Malformed("the address family is unknown")),
    };
    let Some((addresses, fields)) = header[FIXED..].split_at_checked(addresses) else {
        return Err(HeaderError::Malformed("the addresses are cut off"));
    };
    let unique_id = read_fields(header, fields)?;
    let port = |at: usize| addresses.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
    let ip = |at: usize, length: usize| {
        let bytes = addresses.get(at..at + length)?;
        match length {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    let ends = match (family, transport) {
        (1, 1) => (ip(0, 4).zip(port(8)), ip(4, 4).zip(port(10))),
        (2, 1) => (ip(0, 16).zip(port(32)), ip(16, 16).zip(port(34))),
        _ => return local,
    };
    let (Some(source), Some(destination)) = ends else { return local };
    let origin = Some(origin(source, destination, unique_id));
    Ok(Parse::Done(Header { length, origin, form: Form::V2 }))
}

/// Verifies the additional fields of a header. Returns the unique id, if there is one.
fn read_fields<'h>(header: &[u8], fields: &'h [u8]) -> Result<Option<&'h [u8]>, HeaderError> {
    let (mut rest, mut unique_id, mut has_checksum) = (fields, None, false);
    while !rest.is_empty() {
        let value = match *rest {
            [kind, high, low, ref behind @ ..] => {
                behind.split_at_checked(usize::from(u16::from_be_bytes([high, low]))).map(|cut| (kind, cut))
            }
            _ => None,
        };
        let Some((kind, (value, behind))) = value else {
            return Err(HeaderError::Malformed("an additional field is cut off"));
        };
        match kind {
            tlv::CRC32C => {
                let wanted = <[u8; 4]>::try_from(value).ok().filter(|_| !has_checksum);
                let wanted = wanted.ok_or(HeaderError::Malformed("the checksum is malformed"))?;
                has_checksum = true;
                let at = header.len() - behind.len() - wanted.len();
                if checksum(header, at) != u32::from_be_bytes(wanted) {
                    return Err(HeaderError::Malformed("the checksum is wrong"));
                }
            }
            tlv::UNIQUE_ID => {
                if value.len() > LONGEST_ID {
                    return Err(HeaderError::Malformed("the unique id is longer than 128 bytes"));
                }
                unique_id = Some(value);
            }
            _ => {}
        }
        rest = behind;
    }
    Ok(unique_id)
}

/// The values of the additional fields.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fields<'a> {
    /// The application protocol.
    pub alpn: Option<&'a [u8]>,
    /// The server name.
    pub authority: Option<&'a str>,
    /// The id of the connection.
    pub unique_id: Option<&'a [u8]>,
}

/// A header for a connection of a client.
#[must_use]
pub fn header(rules: &SendProxy, origin: &Origin, fields: &Fields<'_>) -> Vec<u8> {
    let (source, destination) = (origin.source, origin.destination);
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let mut out = Vec::with_capacity(128);
    if rules.version == ProxyVersion::V1 {
        let (from_port, to_port) = (source.port(), destination.port());
        // A write to memory does not fail.
        let _ = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                write!(out, "PROXY TCP4 {from} {to} {from_port} {to_port}\r\n")
            }
            (from, to) => {
                write!(out, "PROXY TCP6 {} {} {from_port} {to_port}\r\n", mapped(from), mapped(to))
            }
        };
        return out;
    }
    out.extend_from_slice(SIGNATURE);
    // Version 2 and the command PROXY; then the address family and TCP.
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            out.extend_from_slice(&[0x21, 0x21, 0, 0]);
            out.extend_from_slice(&mapped(from).octets());
            out.extend_from_slice(&mapped(to).octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
    let has = |tlv| rules.tlvs.contains(&tlv);
    if let Some(alpn) = fields.alpn.filter(|_| has(ProxyTlv::Alpn)) {
        field(&mut out, tlv::ALPN, alpn);
    }
    if let Some(name) = fields.authority.filter(|_| has(ProxyTlv::Authority)) {
        field(&mut out, tlv::AUTHORITY, name.as_bytes());
    }
    if let Some(id) = fields.unique_id.filter(|_| has(ProxyTlv::UniqueId)) {
        field(&mut out, tlv::UNIQUE_ID, &id[..id.len().min(LONGEST_ID)]);
    }
    finish(&mut out, has(ProxyTlv::Crc32c));
    out
}

/// A header for a connection of the balancer itself, such as a health check: `LOCAL`, or `UNKNOWN` in version 1.
#[must_use]
pub fn local(rules: &SendProxy) -> Vec<u8> {
    if rules.version == ProxyVersion::V1 {
        return b"PROXY UNKNOWN\r\n".to_vec();
    }
    let mut out = SIGNATURE.to_vec();
    out.extend_from_slice(&[0x20, 0, 0, 0]);
    out
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    }
}

/// Appends an additional field. Its value is at most a server name, a protocol or an id.
fn field(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let Ok(length) = u16::try_from(value.len()) else { return };
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
}

/// Sets the length, and appends the checksum if it is wanted.
fn finish(out: &mut Vec<u8>, with_checksum: bool) {
    if with_checksum {
        field(out, tlv::CRC32C, &[0; 4]);
    }
    // A name has at most 255 bytes, as a protocol has.
    let length = u16::try_from(out.len() - FIXED).unwrap_or(u16::MAX);
    out[FIXED - 2..FIXED].copy_from_slice(&length.to_be_bytes());
    if with_checksum {
        let at = out.len() - 4;
        let sum = checksum(out, at);
        out[at..].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The `CRC32c` (RFC 9260 appendix A) of a header, whose four bytes at `zeroed` count as zero.
fn checksum(header: &[u8], zeroed: usize) -> u32 {
    let bytes = header.iter().enumerate();
    let sum = bytes.fold(u32::MAX, |sum, (at, byte)| {
        let byte = if (zeroed..zeroed + 4).contains(&at) { 0 } else { *byte };
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0x82F6_3B78 & (sum & 1).wrapping_neg()))
    });
    !sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn done(bytes: &[u8]) -> Header {
        match parse(bytes) {
            Ok(Parse::Done(header)) => header,
            other => panic!("{other:?}"),
        }
    }

    fn v2(tlvs: &[ProxyTlv]) -> SendProxy {
        SendProxy { version: ProxyVersion::V2, tlvs: tlvs.to_vec() }
    }

    fn of(source: &str, destination: &str) -> Origin {
        let [source, destination] = [source, destination].map(|text| text.parse().unwrap());
        Origin { source, destination, unique_id: None }
    }

    /// The examples of the specification, section 2.1.
    #[test]
    fn lines() {
        let header = done(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\nGET");
        assert_eq!((header.length, header.form), (56, Form::V1));
        assert_eq!(header.origin, Some(of("255.255.255.255:65535", "255.255.255.255:65535")));
        let header = done(b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 443\r\n");
        assert_eq!(header.origin, Some(of("192.0.2.1:1", "[2001:db8::1]:443")));
        for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff:f 65535 x\r\n"] {
            let header = done(unknown);
            assert_eq!((header.length, header.form, header.origin), (unknown.len(), Form::Local, None));
        }
    }

    #[test]
    fn bad_lines() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat();
        for bad in [
            &b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n"[..],
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            b"PROXY TCP4 1.2.3.4  1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY \r\n",
            b"PROXY \xff\r\n",
            &long,
        ] {
            assert!(
                matches!(parse(bad), Err(HeaderError::Malformed(_))),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
        for absent in [&b"\x16\x03\x01"[..], b"PRI * HTTP/2.0\r\n", b"proxy ", b"\r\n\r\n\0\r\nQUIX", b"\n"] {
            assert_eq!(parse(absent), Err(HeaderError::Absent));
        }
    }

    #[test]
    fn binary_headers() {
        let origin =
            Origin { unique_id: Some(Box::from(*b"id-7")), ..of("192.0.2.1:4711", "198.51.100.9:443") };
        let fields = Fields { alpn: Some(b"h2"), authority: Some("a.test"), unique_id: Some(b"id-7") };
        let all = [ProxyTlv::Alpn, ProxyTlv::Authority, ProxyTlv::Crc32c, ProxyTlv::UniqueId];
        let written = header(&v2(&all), &origin, &fields);
        let read = done(&written);
        assert_eq!((read.length, read.form), (written.len(), Form::V2));
        assert_eq!(read.origin, Some(origin.clone()));
        // Every changed bit is noticed.
        // The type of the checksum excepted: without one, nothing is verified.
        for at in (0..written.len() * 8).filter(|at| at / 8 != written.len() - 7) {
            let mut wrong = written.clone();
            wrong[at / 8] ^= 1 << (at % 8);
            let same =
                matches!(parse(&wrong), Ok(Parse::Done(Header { origin: Some(read), .. })) if read == origin);
            assert!(!same, "bit {at}");
        }
        let bare = header(&v2(&[]), &of("192.0.2.1:4711", "198.51.100.9:443"), &fields);
        assert_eq!(bare[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 9, 0x12, 0x67, 1, 0xBB]);
    }

    /// The value of RFC 3720 appendix B.4 for 32 bytes of zeros.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(checksum(&[0; 32], 0), 0x8A91_36AA);
        assert_eq!(checksum(b"123456789", 100), 0xE306_9283);
    }

    #[test]
    fn families_are_mixed_as_mapped_addresses() {
        let mixed = of("192.0.2.1:1", "[2001:db8::1]:2");
        let line = header(&SendProxy::default(), &mixed, &Fields::default());
        assert_eq!(line, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n");
        let mapped = of("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2");
        let line = header(&SendProxy::default(), &mapped, &Fields::default());
        assert_eq!(line, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
        assert_eq!(done(&header(&v2(&[]), &mixed, &Fields::default())).origin, Some(mixed));
    }

    #[test]
    fn headers_without_addresses_are_of_the_proxy() {
        let fixed = |command, family, rest: &[u8]| {
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend([command, family, 0, u8::try_from(rest.len()).unwrap()]);
            bytes.extend(rest);
            bytes
        };
        for own in [
            local(&v2(&[])),
            local(&SendProxy::default()),
            fixed(0x20, 0x11, &[0; 12]),
            fixed(0x20, 0xFF, &[1]),
            fixed(0x21, 0, &[]),
            fixed(0x21, 0x12, &[0; 12]),
            fixed(0x21, 0x31, &[0; 216]),
            // A field without a meaning (`PP2_TYPE_NOOP`).
            fixed(0x21, 0, &[4, 0, 2, 9, 9]),
        ] {
            let header = done(&own);
            assert_eq!((header.length, header.form, header.origin), (own.len(), Form::Local, None));
        }
        for bad in [
            fixed(0x11, 0x11, &[0; 12]),
            fixed(0x22, 0x11, &[0; 12]),
            fixed(0x21, 0x11, &[0; 11]),
            fixed(0x21, 0x21, &[0; 35]),
            fixed(0x21, 0x41, &[0; 12]),
            fixed(0x21, 0x13, &[0; 12]),
            fixed(0x21, 0, &[4]),
            fixed(0x21, 0, &[4, 0, 1]),
            fixed(0x21, 0, &[3, 0, 3, 0, 0, 0]),
        ] {
            assert!(matches!(parse(&bad), Err(HeaderError::Malformed(_))), "{bad:?}");
        }
        let mut large = SIGNATURE.to_vec();
        large.extend([0x21, 0x11, 0xFF, 0xFF]);
        assert_eq!(parse(&large), Err(HeaderError::TooLarge));
    }

    /// Each prefix of a header needs more bytes, and no more than the header has.
    fn check_prefixes(bytes: &[u8]) {
        for length in 0..bytes.len() {
            match parse(&bytes[..length]) {
                Ok(Parse::Incomplete { need }) => {
                    assert!(need > length && need <= bytes.len(), "{length}: {need}");
                }
                other => panic!("{length} of {}: {other:?}", bytes.len()),
            }
        }
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let ip = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            any::<[u8; 16]>().prop_map(|bytes| IpAddr::from(bytes).to_canonical()),
        ];
        (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            source in address(),
            destination in address(),
            name in "[a-z.]{0,253}",
            alpn in proptest::collection::vec(any::<u8>(), 0..255),
            id in proptest::collection::vec(any::<u8>(), 0..=128),
            second in any::<bool>(),
            tlvs in proptest::sample::subsequence(
                vec![ProxyTlv::Alpn, ProxyTlv::Authority, ProxyTlv::Crc32c, ProxyTlv::UniqueId], 0..=4),
        ) {
            let version = if second { ProxyVersion::V2 } else { ProxyVersion::V1 };
            let has_id = second && tlvs.contains(&ProxyTlv::UniqueId);
            let rules = SendProxy { version, tlvs };
            let origin = Origin { source, destination, unique_id: has_id.then(|| id.clone().into()) };
            let fields = Fields { alpn: Some(&alpn), authority: Some(&name), unique_id: Some(&id) };
            let written = header(&rules, &origin, &fields);
            check_prefixes(&written);
            let read = done(&[&written[..], b"\x16\x03\x01"].concat());
            prop_assert_eq!(read.length, written.len());
            prop_assert_eq!(read.origin, Some(origin));
        }

        #[test]
        fn any_bytes_have_one_verdict(
            start in proptest::sample::select(vec![
                &b""[..], WORD, b"PROXY TCP4 1.2.3.4 ", SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20",
            ]),
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [start, &rest].concat();
            let mut verdict = None;
            for length in 0..=bytes.len() {
                let parsed = parse(&bytes[..length]);
                match (&verdict, &parsed) {
                    (Some(before), _) => prop_assert_eq!(before, &parsed),
                    (None, Ok(Parse::Incomplete { need })) => prop_assert!(*need > length && *need <= LONGEST),
                    (None, Ok(Parse::Done(header))) => {
                        prop_assert!(header.length <= length);
                        verdict = Some(parsed);
                    }
                    (None, Err(_)) => verdict = Some(parsed),
                }
            }
        }
    }
}
