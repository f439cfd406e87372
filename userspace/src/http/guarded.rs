//! A client's connection as the server reads it. HTTP/1 bytes have one meaning only, and HTTP/2 bytes contain no
//! flood.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    activity::Activity,
    frames::{Frames, TOO_MANY},
    framing::{Framing, MAX_LINE, Passed},
};

/// Replaces refused bytes. No server accepts it as part of a request, so the server responds with 400.
const MALFORMED: &[u8] = b"\0\r\n\r\n";

/// Completes a head whose time limit is over, so that the exchange can respond.
const LATE_END: &[u8] = b"Connection: close\r\n\r\n";

/// A complete head, for a client that has not sent a complete first line.
const LATE_HEAD: &[u8] = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";

/// Bytes read at once if they are checked.
const PORTION: usize = 8 * 1024;

/// Bytes read at once if they are not checked.
const LARGE_PORTION: usize = 64 * 1024;

/// The parser that follows a connection.
#[derive(Debug)]
pub enum Follow {
    /// The requests of HTTP/1.
    Http1(Framing),
    /// The frames of HTTP/2.
    Http2(Box<Frames>),
}

/// A connection whose bytes are checked.
#[derive(Debug)]
pub struct Guarded<I> {
    io: I,
    activity: Arc<Activity>,
    follow: Follow,
    /// Bytes that can be passed on, and the number passed on already.
    ready: (Vec<u8>, usize),
    /// The beginning of an incomplete line.
    held: Vec<u8>,
    /// Whether no more bytes are passed on.
    ended: bool,
    /// Whether the head was completed artificially. The server would take an end of the connection for an end of the
    /// request, so no bytes follow.
    is_late: bool,
}

impl<I> Guarded<I> {
    /// Wraps a connection. `first` contains the bytes already read.
    #[must_use]
    pub fn new(io: I, activity: Arc<Activity>, follow: Follow, first: Vec<u8>) -> Self {
        let mut new =
            Self { io, activity, follow, ready: (Vec::new(), 0), held: first, ended: false, is_late: false };
        new.sort();
        new
    }

    /// Moves checked bytes from `held` to `ready`.
    fn sort(&mut self) {
        let now = Instant::now();
        let framing = match &mut self.follow {
            Follow::Http1(framing) => framing,
            Follow::Http2(frames) => {
                self.activity.received(self.held.len(), true, now);
                let passed = frames.receive(&self.held, self.activity.age(now)).bytes;
                self.held.truncate(passed);
                self.ready = (std::mem::take(&mut self.held), 0);
                return;
            }
        };
        if self.activity.is_opaque() {
            framing.switch();
        }
        let mut passed = 0;
        let mut refused = None;
        while passed < self.held.len() {
            match framing.take(&self.held[passed..]) {
                Ok(Passed::Bytes(count)) => passed += count,
                Ok(Passed::PartOfLine) if self.held.len() - passed > MAX_LINE => {
                    // The server reports that the line is too long.
                    passed = self.held.len();
                    self.ended = true;
                }
                Ok(Passed::PartOfLine) => break,
                Err(why) => {
                    refused = Some(why);
                    break;
                }
            }
        }
        self.activity.is_in_head(framing.is_in_head() || passed < self.held.len(), now);
        let rest = self.held.split_off(passed);
        self.ready = (std::mem::replace(&mut self.held, rest), 0);
        if let Some(why) = refused {
            tracing::debug!(%why, "a request is refused");
            self.held.clear();
            self.ready.0.extend_from_slice(MALFORMED);
            self.ended = true;
        }
    }

    /// Completes a head whose time limit is over.
    fn end_head(&mut self) {
        let Follow::Http1(framing) = &self.follow else { return };
        let end = if framing.is_in_head() { LATE_END } else { LATE_HEAD };
        self.ready = (end.to_vec(), 0);
        self.held.clear();
        self.is_late = true;
    }

    /// Checks received HTTP/2 bytes. Returns the number that may be passed on.
    fn frames_came(&mut self, bytes: &[u8]) -> usize {
        let now = Instant::now();
        let Follow::Http2(frames) = &mut self.follow else {
            self.activity.received(bytes.len(), true, now);
            return bytes.len();
        };
        let received = frames.receive(bytes, self.activity.age(now));
        self.activity.received(bytes.len(), received.of_a_message, now);
        self.activity.is_in_block(frames.is_in_head(), now);
        if frames.is_flooded() {
            tracing::debug!("a flood of frames is refused");
            self.ready = (TOO_MANY.to_vec(), 0);
            self.ended = true;
        }
        received.bytes
    }

    /// Records sent bytes.
    fn went(&mut self, parts: &[io::IoSlice<'_>], mut written: usize) {
        let now = Instant::now();
        let mut moved = true;
        if let Follow::Http2(frames) = &mut self.follow {
            let mut left = written;
            moved = false;
            for part in parts {
                let count = left.min(part.len());
                moved |= frames.send(&part[..count]);
                left -= count;
            }
            written -= left;
        }
        self.activity.sent(written, moved, now);
    }

    /// Copies ready bytes into `buffer`.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let (ready, given) = &mut self.ready;
        let count = buffer.remaining().min(ready.len() - *given);
        buffer.put_slice(&ready[*given..*given + count]);
        *given += count;
        if *given == ready.len() {
            self.ready = (Vec::new(), 0);
        }
    }
}

impl<I: AsyncRead + Unpin> Guarded<I> {
    /// Reads bytes that need no check.
    fn poll_unseen(
        &mut self,
        most: u64,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.remaining()).min(LARGE_PORTION);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.io).poll_read(context, &mut part))?;
        let passed = self.frames_came(part.filled());
        buffer.advance(passed);
        if let Follow::Http1(framing) = &mut self.follow {
            framing.pass(passed as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.0.is_empty() {
                this.give(buffer);
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            if this.activity.is_opaque() && !this.held.is_empty() {
                this.sort();
                continue;
            }
            if this.is_late {
                return Poll::Pending;
            }
            if this.activity.is_late() {
                this.end_head();
                continue;
            }
            let unseen = match &mut this.follow {
                Follow::Http2(_) => u64::MAX,
                Follow::Http1(framing) => {
                    if this.activity.is_opaque() {
                        framing.switch();
                    }
                    framing.unseen()
                }
            };
            if unseen > 0 && this.held.is_empty() {
                let before = buffer.filled().len();
                ready!(this.poll_unseen(unseen, context, buffer))?;
                if buffer.filled().len() == before && this.ended {
                    // No bytes are passed on yet, which is not the end of the connection.
                    continue;
                }
                return Poll::Ready(Ok(()));
            }
            let mut portion = [0; PORTION];
            let mut read = ReadBuf::new(&mut portion);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // The connection ended within a line, so the line is dropped.
                this.ended = true;
                return Poll::Ready(Ok(()));
            }
            this.activity.received(read.filled().len(), true, Instant::now());
            this.held.extend_from_slice(read.filled());
            this.sort();
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.went(&[io::IoSlice::new(bytes)], written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(context, parts))?;
        self.went(parts, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
