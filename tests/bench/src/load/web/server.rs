//! The backend's side: HTTP/1.1, without or within TLS.

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    sync::Arc,
};

use rustix::{fd::BorrowedFd, io::Errno};
use rustls::{ServerConfig, ServerConnection};

use super::{ENDLESS, NONCE_BYTES, Wanted, client::flush, http1};
use crate::load::{
    fault::Fault,
    reactor::Step,
    socket::{self, Received},
    stream::Scratch,
    tally::Tally,
};

/// Bytes that are encrypted at once.
const PIECE_BYTES: u64 = 64 * 1024;
/// Sends of one connection before others get a turn.
const SENDS_A_TURN: usize = 8;

struct Response {
    /// The head, and the start of the body.
    front: Vec<u8>,
    wanted: Wanted,
    /// Bytes of `front` and of the rest of the body that were sent or encrypted.
    sent: u64,
}

impl Response {
    fn new(wanted: Wanted) -> Self {
        let mut front = http1::response_head(wanted.size);
        front.extend_from_slice(&wanted.start());
        Self { front, wanted, sent: 0 }
    }

    /// The remaining bytes, in two pieces. Both are empty at the end.
    fn left(&self) -> (&[u8], &'static [u8]) {
        let front = self.front.len() as u64;
        let sent = usize::try_from(self.sent).unwrap_or(usize::MAX);
        let at = NONCE_BYTES as u64 + self.sent.saturating_sub(front);
        (self.front.get(sent..).unwrap_or(&[]), self.wanted.rest(at))
    }
}

/// One connection.
pub(crate) struct Web {
    tls: Option<Box<ServerConnection>>,
    request: Vec<u8>,
    response: Option<Response>,
}

impl Web {
    /// Requests without TLS.
    pub(crate) fn clear() -> Self {
        Self { tls: None, request: Vec::new(), response: None }
    }

    /// Requests within TLS.
    pub(crate) fn encrypted(config: &Arc<ServerConfig>) -> Result<Self, Fault> {
        let connection = ServerConnection::new(Arc::clone(config))
            .map_err(|_| Fault::Tls("the backend's side could not be made"))?;
        Ok(Self { tls: Some(Box::new(connection)), ..Self::clear() })
    }

    /// Continues until the socket would block. Done when the client has closed.
    pub(crate) fn drive(
        &mut self,
        socket: BorrowedFd<'_>,
        scratch: &mut Scratch,
        tally: &Tally,
    ) -> Result<Step, Fault> {
        let endless = self.response.as_ref().is_some_and(|response| response.wanted.size == ENDLESS);
        match self.go_on(socket, scratch, tally) {
            // An endless response is never read completely, and a client may close with unread tickets.
            Err(Fault::Io(Errno::PIPE | Errno::CONNRESET)) if endless || self.response.is_none() => {
                Ok(Step::Done)
            }
            result => result,
        }
    }

    fn go_on(&mut self, socket: BorrowedFd<'_>, scratch: &mut Scratch, tally: &Tally) -> Result<Step, Fault> {
        loop {
            if let Some(response) = &mut self.response {
                let step = match &mut self.tls {
                    None => send_clear(response, socket)?,
                    Some(tls) => send_encrypted(tls, response, socket)?,
                };
                if step != Step::Done {
                    return Ok(step);
                }
                self.response = None;
            }
            let end = match &mut self.tls {
                None => match socket::receive(socket, &mut scratch.receive)? {
                    Received::Bytes(count) => {
                        self.request.extend_from_slice(&scratch.receive[..count]);
                        false
                    }
                    Received::Nothing => return Ok(Step::Wait),
                    Received::End => true,
                },
                Some(tls) => match decrypt(tls, socket, scratch, &mut self.request)? {
                    Received::Bytes(_) => false,
                    Received::Nothing => return Ok(Step::Wait),
                    Received::End => true,
                },
            };
            if end {
                return Ok(Step::Done);
            }
            if let Some(length) = http1::head_length(&self.request)? {
                if length != self.request.len() {
                    return Err(Fault::Protocol("bytes behind a request"));
                }
                let wanted = http1::read_request(&self.request)?;
                self.request.clear();
                if wanted.size != ENDLESS {
                    // Counted before the client can receive it, so that the client's count is never higher.
                    tally.message();
                }
                self.response = Some(Response::new(wanted));
            }
        }
    }
}

fn send_clear(response: &mut Response, socket: BorrowedFd<'_>) -> Result<Step, Fault> {
    for _ in 0..SENDS_A_TURN {
        let (front, rest) = response.left();
        if front.is_empty() && rest.is_empty() {
            return Ok(Step::Done);
        }
        // Rust programs ignore SIGPIPE.
        match rustix::io::writev(socket, &[IoSlice::new(front), IoSlice::new(rest)]) {
            Ok(count) => response.sent += count as u64,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Step::Wait),
            Err(errno) => return Err(Fault::Io(errno)),
        }
    }
    Ok(Step::Again)
}

fn send_encrypted(
    tls: &mut ServerConnection,
    response: &mut Response,
    socket: BorrowedFd<'_>,
) -> Result<Step, Fault> {
    for _ in 0..SENDS_A_TURN {
        if !flush(tls, socket)? {
            return Ok(Step::Wait);
        }
        let (front, rest) = response.left();
        if front.is_empty() && rest.is_empty() {
            return Ok(Step::Done);
        }
        let piece = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX) - front.len();
        let rest = &rest[..rest.len().min(piece)];
        let count = tls
            .writer()
            .write_vectored(&[IoSlice::new(front), IoSlice::new(rest)])
            .map_err(|_| Fault::Tls("no room for a response"))?;
        response.sent += count as u64;
    }
    Ok(Step::Again)
}

/// Receives once and appends the decrypted bytes to `request`.
fn decrypt(
    tls: &mut ServerConnection,
    socket: BorrowedFd<'_>,
    scratch: &mut Scratch,
    request: &mut Vec<u8>,
) -> Result<Received, Fault> {
    // Handshake messages and tickets.
    if !flush(tls, socket)? {
        return Ok(Received::Nothing);
    }
    let received = socket::receive(socket, &mut scratch.receive)?;
    let Received::Bytes(count) = received else { return Ok(received) };
    let mut bytes = &scratch.receive[..count];
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes).map_err(|_| Fault::Tls("the backend's buffer is full"))?;
        tls.process_new_packets().map_err(|_| Fault::Tls("a record was refused"))?;
        loop {
            match tls.reader().read(&mut scratch.plain) {
                // close_notify.
                Ok(0) => return Ok(Received::End),
                Ok(count) => request.extend_from_slice(&scratch.plain[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Ok(Received::End),
            }
        }
    }
    Ok(received)
}
