//! HTTP requests within TLS: the load for contestants that terminate TLS.
//!
//! A request contains the size of its response and a nonce: `GET /SIZE/NONCE`. The body of the response begins with
//! the nonce, so a response to another connection's request is detected. The rest is the pattern of all blocks.

pub(crate) mod client;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod keys;
pub(crate) mod server;

use super::{fault::Fault, frame::BLOCK};

/// Digits of a nonce, in the path and at the start of the body.
pub(crate) const NONCE_BYTES: usize = 16;
/// The size of a response that no client receives completely: bulk data.
pub(crate) const ENDLESS: u64 = 1 << 40;

/// The content of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Bytes of the response's body; at least [`NONCE_BYTES`].
    pub size: u64,
    /// Returned at the start of the body.
    pub nonce: u64,
}

impl Wanted {
    /// The path of the request.
    pub(crate) fn path(self) -> String {
        format!("/{}/{:016x}", self.size, self.nonce)
    }

    /// Parses a path.
    pub(crate) fn of_path(path: &str) -> Result<Self, Fault> {
        let parse = || {
            let (size, nonce) = path.strip_prefix('/')?.split_once('/')?;
            let (size, nonce) = (size.parse().ok()?, u64::from_str_radix(nonce, 16).ok()?);
            (size >= NONCE_BYTES as u64).then_some(Self { size, nonce })
        };
        parse().ok_or(Fault::Protocol("a request that the generator did not send"))
    }

    /// The first bytes of the body.
    pub(crate) fn start(self) -> [u8; NONCE_BYTES] {
        let mut start = [0; NONCE_BYTES];
        start.copy_from_slice(format!("{:016x}", self.nonce).as_bytes());
        start
    }

    /// The part of the body after its start, from position `at` on: the available bytes in one piece.
    pub(crate) fn rest(self, at: u64) -> &'static [u8] {
        let offset = usize::try_from(at % BLOCK.len() as u64).unwrap_or(0);
        let left = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let piece = &BLOCK[offset..];
        &piece[..piece.len().min(left)]
    }
}

/// Checks a body as it arrives.
#[derive(Debug)]
pub(crate) struct Body {
    wanted: Wanted,
    at: u64,
    /// Whether every byte is compared, or only the start.
    verify: bool,
}

impl Body {
    /// The body of the response to a request.
    pub(crate) fn new(wanted: Wanted, verify: bool) -> Self {
        Self { wanted, at: 0, verify }
    }

    /// Checks the next bytes.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        const OTHER: Fault = Fault::Protocol("a body with other bytes than were sent");
        let start = self.wanted.start();
        while !bytes.is_empty() {
            let at = usize::try_from(self.at).unwrap_or(usize::MAX);
            let expected = if at < NONCE_BYTES { &start[at..] } else { self.wanted.rest(self.at) };
            if expected.is_empty() {
                return Err(Fault::Protocol("a body that is too long"));
            }
            let count = expected.len().min(bytes.len());
            if (self.verify || at < NONCE_BYTES) && expected[..count] != bytes[..count] {
                return Err(OTHER);
            }
            self.at += count as u64;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Whether the body is complete.
    pub(crate) fn is_complete(&self) -> bool {
        self.at == self.wanted.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_wanted() {
        let wanted = Wanted { size: 16_384, nonce: 0xabc };
        assert_eq!(wanted.path(), "/16384/0000000000000abc");
        assert_eq!(Wanted::of_path(&wanted.path()), Ok(wanted));
        for path in ["/", "/15/0", "/x/0", "/16/x", "16/0"] {
            assert!(Wanted::of_path(path).is_err(), "{path}");
        }
    }

    /// The body as the backend produces it.
    fn body(wanted: Wanted) -> Vec<u8> {
        let mut bytes = wanted.start().to_vec();
        while bytes.len() as u64 != wanted.size {
            bytes.extend_from_slice(wanted.rest(bytes.len() as u64));
        }
        bytes
    }

    #[test]
    fn a_body_is_taken_in_any_pieces_and_compared() {
        let wanted = Wanted { size: 3_000_000, nonce: 7 };
        let bytes = body(wanted);
        for piece in [1000, 65_536, 3_000_000] {
            let mut taken = Body::new(wanted, true);
            bytes.chunks(piece).for_each(|piece| taken.take(piece).unwrap());
            assert!(taken.is_complete());
            assert!(taken.take(&[0]).is_err(), "one byte more");
        }
        let mut changed = bytes.clone();
        changed[2_500_000] ^= 1;
        assert!(Body::new(wanted, true).take(&changed).is_err());
        assert!(Body::new(wanted, false).take(&changed).is_ok());
        changed[3] ^= 1;
        assert!(Body::new(wanted, false).take(&changed).is_err(), "another connection's answer");
    }
}
