//! Finds the `ClientHello` message in a stream of TLS records, and says how many bytes are still missing.
//!
//! A handshake message may be cut into records at any byte (RFC 8446 section 5.1), and the records into TCP
//! segments at any byte. [`find`] looks at the whole prefix each time and keeps no state, so the caller may peek.
//! One pass, nothing allocated unless a complete message has to be joined from several records.

use std::borrow::Cow;

use crate::error::{Fault, HelloError};

/// Content type, legacy version, length.
const RECORD_HEADER: usize = 5;
/// Longest fragment of a plaintext record, RFC 8446 section 5.1.
const MAX_FRAGMENT: usize = 1 << 14;
/// Content type `handshake`.
const HANDSHAKE: u8 = 0x16;
/// Every version of TLS has this major version on the wire; the minor one means nothing here.
const MAJOR_VERSION: u8 = 0x03;
/// Message type and 24-bit length.
const MESSAGE_HEADER: usize = 4;
/// Handshake type `client_hello`.
const CLIENT_HELLO: u8 = 0x01;

/// What a prefix of a connection's bytes holds of the hello.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// The body of the message, without its four-byte header.
    Complete(Cow<'a, [u8]>),
    /// The stream must have at least `need` bytes, more than it has now, before the message can be complete.
    Incomplete { need: usize },
}

/// Looks for the first handshake message, which must be a `ClientHello` that ends within `limit` bytes of the
/// stream, record headers included.
pub(super) fn find(bytes: &[u8], limit: usize) -> Result<Found<'_>, HelloError> {
    let mut records = Records { bytes, limit, end: 0, carried: 0 };

    // In this order, so that each verdict falls at the first byte that decides it and no later byte changes it.
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

/// A walk over the headers of the records that carry the message.
struct Records<'a> {
    bytes: &'a [u8],
    limit: usize,
    /// Where the last record whose header was read ends; may lie beyond `bytes`.
    end: usize,
    /// Bytes of handshake messages in all records up to `end`.
    carried: usize,
}

impl Records<'_> {
    /// Walks until the records carry `count` bytes of the message. `None` when all of them have arrived, otherwise
    /// the least length of the stream at which they can have.
    ///
    /// `count` must not fall from one call to the next.
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
                // The first two bytes alone can tell that this is not TLS; a peer of another protocol may wait for
                // an answer after any number of bytes.
                return Ok(Some(if self.bytes.len() < 2 { self.bytes.len() + 1 } else { need }));
            }
        }
    }

    /// Where in the stream byte number `count` of the message is or, as long as its record has not been seen, can
    /// be at the earliest: in records of the greatest length.
    fn least_stream(&self, count: usize) -> usize {
        match count.checked_sub(self.carried) {
            Some(missing) => self.end + missing + missing.div_ceil(MAX_FRAGMENT) * RECORD_HEADER,
            // Only the last record entered can carry more than was asked for.
            None => self.end - (self.carried - count),
        }
    }

    /// Reads the next record header; `false` when it has not arrived completely. What has arrived is judged.
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

/// The fragments of the records in `bytes`, the last one perhaps not whole. The headers are taken for granted.
fn fragments(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&[_, _, _, high, low], rest) = bytes.split_first_chunk::<RECORD_HEADER>()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (fragment, after) = rest.split_at(length);
        bytes = after;
        Some(fragment)
    })
}

/// The body of a message of `message` bytes that has arrived completely: borrowed from its record in the usual
/// case of one, joined otherwise.
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
