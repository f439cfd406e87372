//! Finds the `ClientHello` message in a stream of TLS records, and computes the number of missing bytes.
//!
//! A handshake message may be split into records at any byte (RFC 8446 section 5.1), and the records into TCP
//! segments at any byte. [`find`] reads the whole prefix each time and keeps no state, so the caller may peek. It
//! makes one pass. It allocates only to join a complete message from several records.

use std::borrow::Cow;

use crate::error::{Fault, HelloError};

/// Content type, legacy version, length.
const RECORD_HEADER: usize = 5;
/// Longest fragment of a plaintext record, RFC 8446 section 5.1.
const MAX_FRAGMENT: usize = 1 << 14;
/// Content type `handshake`.
const HANDSHAKE: u8 = 0x16;
/// The major version of every TLS version on the wire. The minor version is ignored here.
const MAJOR_VERSION: u8 = 0x03;
/// Message type and 24-bit length.
const MESSAGE_HEADER: usize = 4;
/// Handshake type `client_hello`.
const CLIENT_HELLO: u8 = 0x01;

/// The part of the hello in a prefix of a connection's bytes.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// The body of the message, without its four-byte header.
    Complete(Cow<'a, [u8]>),
    /// The stream needs at least `need` bytes, more than now, before the message can be complete.
    Incomplete { need: usize },
}

/// Finds the first handshake message, which must be a `ClientHello` that ends within `limit` bytes of the stream,
/// including record headers.
pub(super) fn find(bytes: &[u8], limit: usize) -> Result<Found<'_>, HelloError> {
    let mut records = Records { bytes, limit, end: 0, carried: 0 };

    // The order of the checks: each verdict falls at the first byte that decides it, and no later byte changes it.
    if let Some(need) = records.reach(1)? {
        return Ok(Found::Incomplete { need });
    }
    if bytes.get(RECORD_HEADER) != Some(&CLIENT_HELLO) {
        return Err(Fault::NotClientHello.into());
    }
    if let Some(need) = records.reach(MESSAGE_HEADER)? {
        return Ok(Found::Incomplete { need });
    }
    let length = fragments(bytes)
        .flatten()
        .take(MESSAGE_HEADER)
        .skip(1)
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let message = MESSAGE_HEADER + length;
    if let Some(need) = records.reach(message)? {
        return Ok(Found::Incomplete { need });
    }
    Ok(Found::Complete(body(bytes, message)))
}

/// Iterates over the headers of the records that contain the message.
struct Records<'a> {
    bytes: &'a [u8],
    limit: usize,
    /// The end of the last record whose header was read. May lie beyond `bytes`.
    end: usize,
    /// Bytes of handshake messages in all records up to `end`.
    carried: usize,
}

impl Records<'_> {
    /// Advances until the records contain `count` bytes of the message. Returns `None` if all of them have arrived,
    /// and otherwise the least length of the stream at which they can have arrived.
    ///
    /// `count` must not decrease between calls.
    fn reach(&mut self, count: usize) -> Result<Option<usize>, HelloError> {
        loop {
            let need = self.least_stream(count);
            if need > self.limit {
                return Err(HelloError::TooLarge);
            }
            if self.carried >= count {
                return Ok((need > self.bytes.len()).then_some(need));
            }
            if !self.enter_record()? {
                // The first two bytes suffice to refuse another protocol. A peer of another protocol may wait for a
                // reply after any number of bytes.
                return Ok(Some(if self.bytes.len() < 2 { self.bytes.len() + 1 } else { need }));
            }
        }
    }

    /// The position of byte number `count` of the message in the stream. If its record has not been read, the
    /// earliest possible position: in records of the greatest length.
    fn least_stream(&self, count: usize) -> usize {
        match count.checked_sub(self.carried) {
            Some(missing) => self.end + missing + missing.div_ceil(MAX_FRAGMENT) * RECORD_HEADER,
            // Only the last record that was read can contain more than the requested bytes.
            None => self.end - (self.carried - count),
        }
    }

    /// Reads the next record header. Returns `false` if it is incomplete. The available bytes are checked.
    fn enter_record(&mut self) -> Result<bool, HelloError> {
        let foreign = || if self.end == 0 { HelloError::NotTls } else { Fault::ForeignRecord.into() };
        let header = self.bytes.get(self.end..).unwrap_or_default();
        if header.first().is_some_and(|content| *content != HANDSHAKE) {
            return Err(foreign());
        }
        if header.get(1).is_some_and(|major| *major != MAJOR_VERSION) {
            return Err(foreign());
        }
        let Some(&[_, _, _, high, low]) = header.first_chunk::<RECORD_HEADER>() else {
            return Ok(false);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 {
            return Err(Fault::EmptyRecord.into());
        }
        if length > MAX_FRAGMENT {
            return Err(Fault::RecordOverflow.into());
        }
        self.end += RECORD_HEADER + length;
        self.carried += length;
        Ok(true)
    }
}

/// The fragments of the records in `bytes`. The last one may be incomplete. The headers are not checked again.
fn fragments(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&[_, _, _, high, low], rest) = bytes.split_first_chunk::<RECORD_HEADER>()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (fragment, after) = rest.split_at(length);
        bytes = after;
        Some(fragment)
    })
}

/// The body of a complete message of `message` bytes: borrowed from its record in the usual case of one record, and
/// otherwise joined.
fn body(bytes: &[u8], message: usize) -> Cow<'_, [u8]> {
    let mut fragments = fragments(bytes).peekable();
    if let Some(whole) = fragments.peek().and_then(|first| first.get(MESSAGE_HEADER..message)) {
        return Cow::Borrowed(whole);
    }
    let mut joined = Vec::with_capacity(message);
    for fragment in fragments {
        let missing = message - joined.len();
        joined.extend_from_slice(&fragment[..fragment.len().min(missing)]);
        if joined.len() == message {
            break;
        }
    }
    joined.drain(..MESSAGE_HEADER);
    Cow::Owned(joined)
}
