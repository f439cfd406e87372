//! The boundaries of requests in an HTTP/1 connection (RFC 9112), by a strict parser.
//!
//! The server's parser is lenient where the RFC allows it. Differences between lenient parsers enable request
//! smuggling. So this parser first verifies that the bytes have one meaning only.

use super::refused::Refused;

/// The greatest length of an incomplete line that is held back. The server refuses longer lines.
pub const MAX_LINE: usize = 60 * 1024;

/// Empty lines before a request (RFC 9112 section 2.2).
const MAX_EMPTY: u8 = 4;

/// The position of the next byte within the requests of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a request line, after this number of empty lines.
    Start(u8),
    /// In the head, with the body length declared so far.
    Head(Lengths),
    /// In a body, with this number of bytes left.
    Body(u64),
    /// Before the size of a chunk.
    Size,
    /// In a chunk, with this number of bytes left.
    Chunk(u64),
    /// Before the end of the line after a chunk.
    AfterChunk,
    /// In the trailers.
    Trailers,
    /// The connection has switched to another protocol.
    Opaque,
}

/// The length of the body, as declared by the lines of a head so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lengths {
    content_length: Option<u64>,
    chunked: bool,
    hosts: u8,
    old_version: bool,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub struct Framing(Place);

impl Default for Framing {
    fn default() -> Self {
        Self(Place::Start(0))
    }
}

/// The bytes that may be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// This number of bytes.
    Bytes(usize),
    /// No byte before the line is complete.
    PartOfLine,
}

impl Framing {
    /// Whether a head has begun and is incomplete, apart from a line that is held back.
    #[must_use]
    pub fn is_in_head(&self) -> bool {
        matches!(self.0, Place::Head(_))
    }

    /// Number of bytes that can be passed on without a check.
    #[must_use]
    pub fn unseen(&self) -> u64 {
        match self.0 {
            Place::Body(left) | Place::Chunk(left) => left,
            Place::Opaque => u64::MAX,
            _ => 0,
        }
    }

    /// Records the switch to another protocol (RFC 9110 section 7.8).
    pub fn switch(&mut self) {
        self.0 = Place::Opaque;
    }

    /// Records bytes that were passed on, of those that [`Framing::unseen`] allows.
    pub fn pass(&mut self, bytes: u64) {
        match &mut self.0 {
            Place::Body(left) => {
                *left -= bytes.min(*left);
                if *left == 0 {
                    self.0 = Place::Start(0);
                }
            }
            Place::Chunk(left) => {
                *left -= bytes.min(*left);
                if *left == 0 {
                    self.0 = Place::AfterChunk;
                }
            }
            _ => {}
        }
    }

    /// Parses the beginning of the received bytes: part of a body, or a line.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Passed, Refused> {
        let unseen = usize::try_from(self.unseen()).unwrap_or(usize::MAX).min(bytes.len());
        if unseen > 0 {
            self.pass(unseen as u64);
            return Ok(Passed::Bytes(unseen));
        }
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            // Further bytes cannot make this control character valid.
            if bytes.contains(&0) {
                return Err(Refused::ControlCharacter);
            }
            return Ok(Passed::PartOfLine);
        };
        let line = bytes[..end].strip_suffix(b"\r").ok_or(Refused::BareLineFeed)?;
        self.line(line)?;
        Ok(Passed::Bytes(end + 1))
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Refused> {
        if line.contains(&b'\r') {
            return Err(Refused::BareCarriageReturn);
        }
        self.0 = match self.0 {
            Place::Start(empty) if line.is_empty() => {
                if empty >= MAX_EMPTY {
                    return Err(Refused::RequestLine);
                }
                Place::Start(empty + 1)
            }
            Place::Start(_) => Place::Head(request_line(line)?),
            Place::Head(lengths) if line.is_empty() => lengths.body()?,
            Place::Head(lengths) => Place::Head(lengths.with(line)?),
            Place::Size => match chunk_size(line)? {
                0 => Place::Trailers,
                size => Place::Chunk(size),
            },
            Place::AfterChunk if line.is_empty() => Place::Size,
            Place::AfterChunk => return Err(Refused::Chunk),
            Place::Trailers if line.is_empty() => Place::Start(0),
            Place::Trailers => {
                let (name, _) = field(line)?;
                // These fields could change the body's length or the request's host (RFC 9110 section 6.5.1).
                if [&b"content-length"[..], b"transfer-encoding", b"host", b"trailer"]
                    .iter()
                    .any(|framing| name.eq_ignore_ascii_case(framing))
                {
                    return Err(Refused::Trailer);
                }
                Place::Trailers
            }
            place @ (Place::Body(_) | Place::Chunk(_) | Place::Opaque) => place,
        };
        Ok(())
    }
}

/// A method, a target and a version, separated by one space (RFC 9112 section 3).
fn request_line(line: &[u8]) -> Result<Lengths, Refused> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refused::RequestLine);
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(Refused::RequestLine);
    }
    if target.is_empty() || target.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'#') {
        return Err(Refused::Target);
    }
    match version {
        b"HTTP/1.1" => Ok(Lengths::default()),
        b"HTTP/1.0" => Ok(Lengths { old_version: true, ..Lengths::default() }),
        _ => Err(Refused::RequestLine),
    }
}

impl Lengths {
    fn with(mut self, line: &[u8]) -> Result<Self, Refused> {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            // Also refused if both values are equal: another parser may read them differently.
            if self.content_length.is_some() {
                return Err(Refused::ContentLength);
            }
            self.content_length = Some(number(value, 10).ok_or(Refused::ContentLength)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || self.old_version || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refused::TransferEncoding);
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            self.hosts = self.hosts.saturating_add(1);
        }
        Ok(self)
    }

    fn body(self) -> Result<Place, Refused> {
        if self.hosts > 1 || (self.hosts == 0 && !self.old_version) {
            return Err(Refused::Host);
        }
        match self {
            Self { chunked: true, content_length: Some(_), .. } => Err(Refused::BothLengths),
            Self { chunked: true, .. } => Ok(Place::Size),
            Self { content_length: Some(length @ 1..), .. } => Ok(Place::Body(length)),
            _ => Ok(Place::Start(0)),
        }
    }
}

/// The name and the value of a header line (RFC 9112 section 5).
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Refused> {
    if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(Refused::ObsoleteFold);
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or(Refused::HeaderLine)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Refused::HeaderName);
    }
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Refused::ControlCharacter);
    }
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(begin, |last| last + 1);
    Ok((name, &value[begin..end]))
}

/// The size of a chunk. Extensions are ignored (RFC 9112 section 7.1.1).
fn chunk_size(line: &[u8]) -> Result<u64, Refused> {
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (size, extension) = line.split_at(end);
    // No client needs long extensions (CVE-2023-39326).
    if extension.len() > 256 || extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Refused::Chunk);
    }
    number(size, 16).ok_or(Refused::Chunk)
}

/// Digits only: no sign, no space, no overflow.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    let is_number =
        !text.is_empty() && text.len() <= 20 && text.iter().all(|byte| char::from(*byte).is_digit(radix));
    let number = is_number.then(|| u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok())??;
    // Keeps later arithmetic far from an overflow.
    i64::try_from(number).is_ok().then_some(number)
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::path::normalise;

    /// Returns the number of bytes passed on, or the error.
    fn follow(text: &[u8]) -> Result<(usize, Framing), Refused> {
        let mut framing = Framing::default();
        let mut at = 0;
        while at < text.len() {
            match framing.take(&text[at..])? {
                Passed::Bytes(count) => at += count,
                Passed::PartOfLine => break,
            }
        }
        Ok((at, framing))
    }

    fn refused(text: &str) -> Option<Refused> {
        follow(text.as_bytes()).err()
    }

    #[test]
    fn requests_follow_each_other() {
        let text = "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /x HTTP/1.1\r\nhost:a\r\nContent-Length: 3\r\n\r\nabcPUT / HTTP/1.1\r\n\
                    Host: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\na\r\n\r\n0A\r\n0123456789\r\n0\r\nchecksum: 1\r\n\r\n\
                    GET / HTTP/1.0\r\n\r\n";
        let (passed, framing) = follow(text.as_bytes()).unwrap();
        assert_eq!((passed, framing.0), (text.len(), Place::Start(0)));
    }

    #[test]
    fn the_cuts_of_packets_change_nothing() {
        let text =
            b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /";
        let whole = follow(text).unwrap().0;
        for cut in 0..text.len() {
            let (mut framing, mut held, mut passed) = (Framing::default(), Vec::new(), 0);
            for part in [&text[..cut], &text[cut..]] {
                held.extend_from_slice(part);
                while !held.is_empty() {
                    match framing.take(&held).unwrap() {
                        Passed::Bytes(count) => {
                            held.drain(..count);
                            passed += count;
                        }
                        Passed::PartOfLine => break,
                    }
                }
            }
            assert_eq!(passed, whole, "cut at {cut}");
        }
    }

    #[test]
    fn another_protocol_is_not_read() {
        let mut framing = Framing::default();
        framing.switch();
        assert_eq!(framing.take(b"\0\n\r\n \0"), Ok(Passed::Bytes(6)));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
        let chunked = |body: &str| format!("{}{body}", head("Transfer-Encoding: chunked"));
        let cases = [
            (head("Content-Length: 1\r\nTransfer-Encoding: chunked"), Refused::BothLengths),
            (head("Transfer-Encoding: chunked\r\nContent-Length: 1"), Refused::BothLengths),
            (head("Content-Length: 1\r\nContent-Length: 2"), Refused::ContentLength),
            (head("Content-Length: 1\r\ncontent-length: 1"), Refused::ContentLength),
            (head("Content-Length: 1, 1"), Refused::ContentLength),
            (head("Content-Length: +1"), Refused::ContentLength),
            (head("Content-Length: -1"), Refused::ContentLength),
            (head("Content-Length: 0x1"), Refused::ContentLength),
            (head("Content-Length: 1 1"), Refused::ContentLength),
            (head("Content-Length:"), Refused::ContentLength),
            (head("Content-Length: 9223372036854775808"), Refused::ContentLength),
            (head("Content-Length: 99999999999999999999999"), Refused::ContentLength),
            (head("Transfer-Encoding: gzip, chunked"), Refused::TransferEncoding),
            (head("Transfer-Encoding: chunked, chunked"), Refused::TransferEncoding),
            (head("Transfer-Encoding: identity"), Refused::TransferEncoding),
            (head("Transfer-Encoding: xchunked"), Refused::TransferEncoding),
            (head("Transfer-Encoding: \"chunked\""), Refused::TransferEncoding),
            (head("Transfer-Encoding: chunked;q=1"), Refused::TransferEncoding),
            (head("Transfer-Encoding:"), Refused::TransferEncoding),
            (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Refused::TransferEncoding),
            (head("Transfer-Encoding : chunked"), Refused::HeaderName),
            (head("Transfer-Encoding\t: chunked"), Refused::HeaderName),
            (head("Transfer\u{b}Encoding: chunked"), Refused::HeaderName),
            (head("Transfer-Encoding: \u{b}chunked"), Refused::ControlCharacter),
            (head("X: a\r\n Transfer-Encoding: chunked"), Refused::ObsoleteFold),
            (head("X: a\r\n\tb"), Refused::ObsoleteFold),
            (head("X: a\0b"), Refused::ControlCharacter),
            (head("X: a\rTransfer-Encoding: chunked"), Refused::BareCarriageReturn),
            (head("X: a\nTransfer-Encoding: chunked"), Refused::BareLineFeed),
            (head(": a"), Refused::HeaderName),
            (head("X"), Refused::HeaderLine),
            (head("Host: b"), Refused::Host),
            ("GET / HTTP/1.1\r\n\r\n".into(), Refused::Host),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), Refused::BareLineFeed),
            ("GET  / HTTP/1.1\r\n".into(), Refused::RequestLine),
            ("GET / HTTP/1.1 \r\n".into(), Refused::RequestLine),
            (" GET / HTTP/1.1\r\n".into(), Refused::RequestLine),
            ("GET /a b HTTP/1.1\r\n".into(), Refused::RequestLine),
            ("GET /\tb HTTP/1.1\r\n".into(), Refused::Target),
            ("GET /#a HTTP/1.1\r\n".into(), Refused::Target),
            ("GET /\u{e9} HTTP/1.1\r\n".into(), Refused::Target),
            ("GET / HTTP/2.0\r\n".into(), Refused::RequestLine),
            ("GET / HTTP/1.10\r\n".into(), Refused::RequestLine),
            ("GET /\r\n".into(), Refused::RequestLine),
            ("G(T / HTTP/1.1\r\n".into(), Refused::RequestLine),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(), Refused::TransferEncoding),
            (chunked("x\r\n"), Refused::Chunk),
            (chunked("-1\r\n"), Refused::Chunk),
            (chunked("0x1\r\n"), Refused::Chunk),
            (chunked("1 \r\n"), Refused::Chunk),
            (chunked(" 1\r\n"), Refused::Chunk),
            (chunked("\r\n"), Refused::Chunk),
            (chunked("1\r\nab\r\n"), Refused::Chunk),
            (chunked("1\na\r\n"), Refused::BareLineFeed),
            (chunked("1;\0\r\n"), Refused::Chunk),
            (chunked("1;a=\rb\r\n"), Refused::BareCarriageReturn),
            (chunked("FFFFFFFFFFFFFFFF\r\n"), Refused::Chunk),
            (chunked("10000000000000000\r\n"), Refused::Chunk),
            (chunked(&format!("1;{}\r\n", "a".repeat(300))), Refused::Chunk),
            (chunked("0\r\nContent-Length: 1\r\n\r\n"), Refused::Trailer),
            (chunked("0\r\nTransfer-Encoding: chunked\r\n\r\n"), Refused::Trailer),
            (chunked("0\r\n folded\r\n\r\n"), Refused::ObsoleteFold),
        ];
        for (text, why) in cases {
            assert_eq!(refused(&text), Some(why), "{text:?}");
        }
    }

    proptest! {
        /// For any input: no panic, each step makes progress, and byte-by-byte input gives the same result.
        #[test]
        fn any_bytes_are_followed(text in "(GET|POST) /a HTTP/1\\.[01]\r\n(Host: a\r\n|Content-Length: [0-9]{1,3}\r\n|Transfer-Encoding: chunked\r\n|[ -~\t\r]{0,9}\n){0,4}\r\n([0-9a-f]{1,2}\r\n|[ -~]{0,20}(\r\n)?){0,6}") {
            let whole = follow(text.as_bytes()).map(|(passed, framing)| (passed, framing.0));
            let (mut framing, mut held, mut passed) = (Framing::default(), Vec::new(), 0);
            let mut refused = None;
            'bytes: for byte in text.bytes() {
                held.push(byte);
                while !held.is_empty() {
                    match framing.take(&held) {
                        Ok(Passed::Bytes(count)) => {
                            prop_assert!(count > 0 && count <= held.len());
                            held.drain(..count);
                            passed += count;
                        }
                        Ok(Passed::PartOfLine) => break,
                        Err(why) => {
                            refused = Some(why);
                            break 'bytes;
                        }
                    }
                }
            }
            match whole {
                Ok((count, place)) => prop_assert_eq!((count, place, None), (passed, framing.0, refused)),
                Err(why) => prop_assert_eq!(Some(why), refused),
            }
        }

        /// Any path has exactly one normal form, which does not leave the root.
        #[test]
        fn any_path_is_normalised_once(path in "/([a-c.]{0,3}|%2[eEfF]|%[0-9a-f]{1,2}|/|\\\\){0,8}") {
            if let Ok(normal) = normalise(&path) {
                prop_assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{} {}", path, normal);
                let again = normalise(&normal);
                prop_assert_eq!(again.as_deref(), Ok(&*normal));
            }
        }
    }
}
