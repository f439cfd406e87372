//! The client's side of HTTP/2 (RFC 9113): one stream at a time per connection, which suffices for this load.
//!
//! Written without a library, so that the generator costs less than the contestants. A request is one prepared header
//! block, and only the status is read from a response's header block.

use super::{Body, Wanted};
use crate::load::fault::Fault;

const FRAME_HEADER_BYTES: usize = 9;
/// Window of each stream, in bytes (RFC 9113 section 6.9): more than any body.
const STREAM_WINDOW: u32 = 1 << 24;
/// Window of the connection, in bytes. It is refilled when half of it is used.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// The initial window of a connection (RFC 9113 section 6.9.2).
const FIRST_WINDOW: u32 = 65_535;

mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

mod flag {
    pub(super) const ACK: u8 = 0x1;
    pub(super) const END_STREAM: u8 = 0x1;
    pub(super) const END_HEADERS: u8 = 0x4;
    pub(super) const PADDED: u8 = 0x8;
    pub(super) const PRIORITY: u8 = 0x20;
}

/// Appends a frame.
fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The preface of a connection, with settings and a window for bodies (RFC 9113 section 3.4).
pub(crate) fn preface() -> Vec<u8> {
    const ENABLE_PUSH: [u8; 6] = [0, 2, 0, 0, 0, 0];
    const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = [&ENABLE_PUSH[..], &INITIAL_WINDOW_SIZE, &STREAM_WINDOW.to_be_bytes()].concat();
    frame(&mut out, kind::SETTINGS, 0, 0, &settings);
    let more = CONNECTION_WINDOW - FIRST_WINDOW;
    frame(&mut out, kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
    out
}

/// The header block of a request: indices of the static table and literals without indexing (RFC 7541, 6.1, 6.2.2).
fn header_block(host: &str, wanted: Wanted) -> Vec<u8> {
    const METHOD_GET: u8 = 0x82;
    const SCHEME_HTTPS: u8 = 0x87;
    const AUTHORITY: [u8; 1] = [1];
    const PATH: [u8; 1] = [4];
    // Indices 58 and 19 do not fit into four bits.
    const USER_AGENT: [u8; 2] = [15, 58 - 15];
    const ACCEPT: [u8; 2] = [15, 19 - 15];
    let mut block = vec![METHOD_GET, SCHEME_HTTPS];
    let path = wanted.path();
    let literals: [(&[u8], &str); 4] =
        [(&AUTHORITY, host), (&PATH, &path), (&USER_AGENT, "bench"), (&ACCEPT, "*/*")];
    for (name, value) in literals {
        block.extend_from_slice(name);
        // Below 127 bytes: the length is one byte, without Huffman coding.
        block.push(u8::try_from(value.len()).unwrap_or(0) & 0x7f);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

/// Whether a header block begins with the status 200: index 8 of the static table, after changes of the table's size
/// (RFC 7541 section 6.3).
fn is_status_200(mut block: &[u8]) -> bool {
    const STATUS_200: u8 = 0x88;
    while let [first, rest @ ..] = block {
        if first & 0xe0 != 0x20 {
            return *first == STATUS_200;
        }
        // An integer with a prefix of five bits. The last byte of a longer one has a clear upper bit.
        block = rest;
        if first & 0x1f == 0x1f {
            let end = rest.iter().position(|byte| byte & 0x80 == 0).map_or(rest.len(), |end| end + 1);
            block = &rest[end..];
        }
    }
    false
}

/// A connection: its received state, and the frames to send in reply.
#[derive(Debug)]
pub(crate) struct Http2 {
    /// The header of the current frame, and the payload of all types but DATA.
    frame: Vec<u8>,
    /// The number of missing bytes of a DATA payload.
    data_left: usize,
    data_ends: bool,
    stream: u32,
    body: Option<Body>,
    unacknowledged: u32,
}

impl Http2 {
    /// The state before the first request.
    pub(crate) fn new() -> Self {
        Self { frame: Vec::new(), data_left: 0, data_ends: false, stream: 0, body: None, unacknowledged: 0 }
    }

    /// Appends the next request to `out`.
    pub(crate) fn request(&mut self, host: &str, wanted: Wanted, out: &mut Vec<u8>) {
        // Streams of a client have odd numbers (RFC 9113 section 5.1.1).
        self.stream = if self.stream == 0 { 1 } else { self.stream + 2 };
        self.body = None;
        let flags = flag::END_STREAM | flag::END_HEADERS;
        frame(out, kind::HEADERS, flags, self.stream, &header_block(host, wanted));
    }

    /// Parses bytes. Returns whether the response to `wanted` is complete. Replies are appended to `out`.
    pub(crate) fn take(
        &mut self,
        mut bytes: &[u8],
        wanted: Wanted,
        verify: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, Fault> {
        let mut complete = false;
        while !bytes.is_empty() {
            if self.data_left > 0 {
                let count = self.data_left.min(bytes.len());
                let Some(body) = &mut self.body else { return Err(Fault::Protocol("DATA before HEADERS")) };
                body.take(&bytes[..count])?;
                bytes = &bytes[count..];
                self.data_left -= count;
                if self.data_left == 0 && self.data_ends {
                    complete = self.ended()?;
                }
                continue;
            }
            let wants = match self.frame.get(..FRAME_HEADER_BYTES) {
                None => FRAME_HEADER_BYTES,
                Some(header) => FRAME_HEADER_BYTES + payload_length(header),
            };
            let count = (wants - self.frame.len()).min(bytes.len());
            self.frame.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            complete |= self.advance(wanted, verify, out)?;
        }
        Ok(complete)
    }

    /// Whether the current frame ends a response.
    fn advance(&mut self, wanted: Wanted, verify: bool, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let Some((header, payload)) = self.frame.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(false);
        };
        let (length, kind, flags) = (payload_length(header), header[3], header[4]);
        if kind == kind::DATA {
            if flags & flag::PADDED != 0 {
                return Err(Fault::Protocol("padding, which this client does not take"));
            }
            self.frame.clear();
            self.unacknowledged += u32::try_from(length).unwrap_or(0);
            if self.unacknowledged > CONNECTION_WINDOW / 2 {
                frame(out, kind::WINDOW_UPDATE, 0, 0, &self.unacknowledged.to_be_bytes());
                self.unacknowledged = 0;
            }
            (self.data_left, self.data_ends) = (length, flags & flag::END_STREAM != 0);
            return if length == 0 && self.data_ends { self.ended() } else { Ok(false) };
        }
        if payload.len() < length {
            return Ok(false);
        }
        match kind {
            kind::HEADERS => {
                let block = match flags & (flag::PADDED | flag::PRIORITY | flag::END_HEADERS) {
                    flag::END_HEADERS => payload,
                    _ => return Err(Fault::Protocol("HEADERS of a form that this client does not take")),
                };
                if self.body.is_none() {
                    if !is_status_200(block) {
                        return Err(Fault::Protocol("a response with another status than 200"));
                    }
                    self.body = Some(Body::new(wanted, verify));
                }
                self.frame.clear();
                return if flags & flag::END_STREAM != 0 { self.ended() } else { Ok(false) };
            }
            kind::SETTINGS if flags & flag::ACK == 0 => frame(out, kind::SETTINGS, flag::ACK, 0, &[]),
            kind::PING if flags & flag::ACK == 0 => frame(out, kind::PING, flag::ACK, 0, payload),
            kind::GOAWAY => return Err(Fault::Closed("GOAWAY came")),
            kind::RST_STREAM => return Err(Fault::Closed("a stream was reset")),
            kind::PUSH_PROMISE | kind::CONTINUATION => {
                return Err(Fault::Protocol("a frame that this client does not take"));
            }
            // Requests have no body, so windows do not matter. Unknown frames are ignored (section 5.5).
            _ => {}
        }
        self.frame.clear();
        Ok(false)
    }

    /// The end of a stream: its body must be complete.
    fn ended(&mut self) -> Result<bool, Fault> {
        self.data_ends = false;
        match self.body.take() {
            Some(body) if body.is_complete() => Ok(true),
            _ => Err(Fault::Protocol("a response that ended early")),
        }
    }
}

fn payload_length(header: &[u8]) -> usize {
    header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { size: 40_000, nonce: 9 };

    /// The first frames of a server, and a response in frames of 16 KiB.
    fn response(stream: u32) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        frame(&mut out, kind::SETTINGS, flag::ACK, 0, &[]);
        frame(&mut out, kind::PING, 0, 0, &[7; 8]);
        frame(&mut out, kind::HEADERS, flag::END_HEADERS, stream, &[0x3f, 0xe1, 0x1f, 0x88, 0x76]);
        let mut body = WANTED.start().to_vec();
        body.extend_from_slice(&WANTED.rest(16)[..40_000 - 16]);
        for piece in body.chunks(16_384) {
            frame(&mut out, kind::DATA, 0, stream, piece);
        }
        frame(&mut out, kind::DATA, flag::END_STREAM, stream, &[]);
        out
    }

    #[test]
    fn responses_are_taken_in_any_pieces() {
        for piece in [1, 10, 5000, 100_000] {
            let mut http2 = Http2::new();
            for stream in [1, 3, 5] {
                let mut out = Vec::new();
                http2.request("a.example", WANTED, &mut out);
                assert_eq!(out[5..9], u32::to_be_bytes(stream));
                out.clear();
                let bytes = response(stream);
                let mut pieces = bytes.chunks(piece).peekable();
                while let Some(piece) = pieces.next() {
                    let complete = http2.take(piece, WANTED, true, &mut out).unwrap();
                    assert_eq!(complete, pieces.peek().is_none());
                }
                // An acknowledgement of the settings and a reply to the ping.
                assert_eq!(out.len(), 9 + 17, "{out:?}");
            }
        }
    }

    #[test]
    fn the_window_of_the_connection_is_filled_up() {
        let mut http2 = Http2::new();
        http2.unacknowledged = CONNECTION_WINDOW / 2;
        let mut out = Vec::new();
        http2.request("a.example", WANTED, &mut Vec::new());
        assert_eq!(http2.take(&response(1), WANTED, false, &mut out), Ok(true));
        let update: Vec<u8> = (CONNECTION_WINDOW / 2 + 16_384).to_be_bytes().into();
        assert!(out.windows(4).any(|window| window == update), "{out:?}");
    }

    #[test]
    fn another_status_and_an_early_end_are_faults() {
        assert!(is_status_200(&[0x88]) && is_status_200(&[0x20, 0x3f, 0xe1, 0x1f, 0x88, 1]));
        assert!(!is_status_200(&[0x8d]) && !is_status_200(&[]) && !is_status_200(&[0x3f]));
        let mut short = Vec::new();
        frame(&mut short, kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &[0x88]);
        assert!(Http2::new().take(&short, WANTED, false, &mut Vec::new()).is_err());
        let mut away = Vec::new();
        frame(&mut away, kind::GOAWAY, 0, 0, &[0; 8]);
        assert!(Http2::new().take(&away, WANTED, false, &mut Vec::new()).is_err());
    }
}
