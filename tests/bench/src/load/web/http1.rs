//! The part of HTTP/1.1 that generator and backend need (RFC 9112).

use super::{Body, Wanted};
use crate::load::fault::Fault;

/// Longer heads are invalid, also with a balancer's additions.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A request of a typical client.
pub(crate) fn request(host: &str, wanted: Wanted) -> Vec<u8> {
    let path = wanted.path();
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n").into_bytes()
}

/// The head of the backend's response.
pub(crate) fn response_head(size: u64) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {size}\r\n\r\n")
        .into_bytes()
}

/// The length of the head at the start of `bytes`, including its empty line. `None` if it is incomplete.
pub(crate) fn head_length(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        Some(at) => Ok(Some(at + 4)),
        None if bytes.len() > HEAD_BYTES_MAX => Err(Fault::Protocol("a head that is too long")),
        None => Ok(None),
    }
}

/// Parses the head of a request.
pub(crate) fn read_request(head: &[u8]) -> Result<Wanted, Fault> {
    let line = std::str::from_utf8(head).ok().and_then(|head| head.lines().next()).unwrap_or("");
    let path = line.strip_prefix("GET ").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    Wanted::of_path(path.unwrap_or(""))
}

/// The length of the body from the head of a response.
fn read_response(head: &[u8]) -> Result<u64, Fault> {
    let head = std::str::from_utf8(head).map_err(|_| Fault::Protocol("a head that is not text"))?;
    let mut lines = head.lines();
    if !lines.next().is_some_and(|line| line.starts_with("HTTP/1.1 200")) {
        return Err(Fault::Protocol("a response with another status than 200"));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or(Fault::Protocol("a response without its length"))
}

/// Parses one response after another.
#[derive(Debug)]
pub(crate) struct Responses {
    head: Vec<u8>,
    body: Option<Body>,
}

impl Responses {
    /// The state before the first response.
    pub(crate) fn new() -> Self {
        Self { head: Vec::new(), body: None }
    }

    /// Parses bytes of the response to `wanted`. Returns whether it is complete.
    pub(crate) fn take(&mut self, mut bytes: &[u8], wanted: Wanted, verify: bool) -> Result<bool, Fault> {
        if self.body.is_none() {
            // The head usually arrives whole.
            let before = self.head.len();
            self.head.extend_from_slice(&bytes[..bytes.len().min(HEAD_BYTES_MAX + 1)]);
            let Some(length) = head_length(&self.head)? else { return Ok(false) };
            if read_response(&self.head[..length])? != wanted.size {
                return Err(Fault::Protocol("a response of another length than was asked for"));
            }
            self.head.clear();
            bytes = &bytes[length - before..];
            self.body = Some(Body::new(wanted, verify));
        }
        let Some(body) = &mut self.body else { return Ok(false) };
        body.take(bytes)?;
        let complete = body.is_complete();
        if complete {
            self.body = None;
        }
        Ok(complete)
    }

    /// Whether the head of a response is complete, and its body is not.
    pub(crate) fn is_within_body(&self) -> bool {
        self.body.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { size: 1000, nonce: 5 };

    fn response() -> Vec<u8> {
        let mut bytes = response_head(WANTED.size);
        bytes.extend_from_slice(&WANTED.start());
        bytes.extend_from_slice(WANTED.rest(16));
        bytes
    }

    #[test]
    fn the_backend_reads_what_the_client_asks_for() {
        let bytes = request("a.example", WANTED);
        let length = head_length(&bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!(read_request(&bytes), Ok(WANTED));
        assert_eq!(head_length(&bytes[..length - 1]), Ok(None));
        assert!(read_request(b"POST /16/0 HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn responses_are_taken_in_any_pieces_one_after_another() {
        for piece in [1, 7, 100, 5000] {
            let mut responses = Responses::new();
            for _ in 0..3 {
                let bytes = response();
                let mut pieces = bytes.chunks(piece).peekable();
                while let Some(piece) = pieces.next() {
                    let complete = responses.take(piece, WANTED, true).unwrap();
                    assert_eq!(complete, pieces.peek().is_none());
                }
            }
        }
    }

    #[test]
    fn another_status_or_length_is_a_fault() {
        let other = |text: &str| Responses::new().take(text.as_bytes(), WANTED, false);
        assert!(other("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1000\r\n\r\n").is_err());
        assert!(other("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n").is_err());
        assert!(other("HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert_eq!(other("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), Ok(false));
    }
}
