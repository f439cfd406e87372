//! A client's connection as the server reads it: watched, and for HTTP/1 with nothing in it that could be read in two ways.

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
    framing::{Framing, MAX_LINE, Passed},
};

/// What no server takes for a part of a request: it stands for what was refused, and has the server answer with 400.
const MALFORMED: &[u8] = b"\0\r\n\r\n";

/// Bytes that are read at once where they are looked at.
const PORTION: usize = 8 * 1024;

/// Bytes that are read at once where they need not be.
const LARGE_PORTION: usize = 64 * 1024;

/// A connection that is watched.
#[derive(Debug)]
pub struct Guarded<I> {
    io: I,
    activity: Arc<Activity>,
    /// For HTTP/1.
    framing: Option<Framing>,
    /// What can be passed on, and how much of it has been.
    ready: (Vec<u8>, usize),
    /// The beginning of a line.
    held: Vec<u8>,
    /// Nothing more is passed on.
    ended: bool,
}

impl<I> Guarded<I> {
    /// Watches a connection of HTTP/2, or with `framing` one of HTTP/1. `first` has been read from it already.
    #[must_use]
    pub fn new(io: I, activity: Arc<Activity>, framing: Option<Framing>, first: Vec<u8>) -> Self {
        let mut new = Self { io, activity, framing, ready: (Vec::new(), 0), held: first, ended: false };
        new.sort();
        new
    }

    /// Moves what can be passed on from what is held to what is ready.
    fn sort(&mut self) {
        let now = Instant::now();
        let Some(framing) = &mut self.framing else {
            self.ready = (std::mem::take(&mut self.held), 0);
            return;
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
                    // The server says that it is too long.
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

    /// Gives what is ready.
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
    /// Reads what need not be looked at.
    fn poll_unseen(
        &mut self,
        most: u64,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.remaining()).min(LARGE_PORTION);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.io).poll_read(context, &mut part))?;
        let count = part.filled().len();
        buffer.advance(count);
        if count > 0 {
            self.activity.received(count, Instant::now());
            if let Some(framing) = &mut self.framing {
                framing.pass(count as u64);
            }
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
            let unseen = match &mut this.framing {
                None => u64::MAX,
                Some(framing) => {
                    if this.activity.is_opaque() {
                        framing.switch();
                    }
                    framing.unseen()
                }
            };
            if unseen > 0 && this.held.is_empty() {
                return this.poll_unseen(unseen, context, buffer);
            }
            let mut portion = [0; PORTION];
            let mut read = ReadBuf::new(&mut portion);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                // A line that never ends is none.
                this.ended = true;
                return Poll::Ready(Ok(()));
            }
            this.activity.received(read.filled().len(), Instant::now());
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
        self.activity.sent(written, Instant::now());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(context, parts))?;
        self.activity.sent(written, Instant::now());
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
