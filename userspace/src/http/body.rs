//! Streams bodies. Only the beginning of a request's body is buffered, for a retry.

use std::{
    cell::RefCell,
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{
    HeaderMap,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
};
use tokio::{
    sync::Notify,
    time::{Instant, Sleep, sleep_until},
};

use super::{connection::InFlight, pool::Return, request_log::Note};

/// The error that a body's reader gets when the body ends early.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// Bytes of a request's body that are buffered until its response begins. A longer body permits no retry.
const KEPT: usize = 64 * 1024;

/// The body of a request, which several attempts read in turn.
#[derive(Debug, Clone)]
pub struct Source(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    incoming: Incoming,
    /// The parts read so far.
    kept: Vec<Part>,
    kept_bytes: usize,
    /// Whether some parts were not buffered.
    overflowed: bool,
    /// The attempt that may read.
    attempt: u32,
    exact: Option<u64>,
    ended: Option<Instant>,
    failed: bool,
    /// The time limit for the next part, if any.
    deadline: Option<(Duration, Pin<Box<Sleep>>)>,
    stalled: bool,
    has_ended: Rc<Notify>,
    /// For the access log, while it is enabled.
    note: Option<Rc<Note>>,
}

#[derive(Debug, Clone)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Source {
    /// The body of a new request. Each part must follow the previous one within `patience`.
    #[must_use]
    pub(super) fn new(incoming: Incoming, patience: Option<Duration>, note: Option<Rc<Note>>) -> Self {
        let ended = incoming.is_end_stream().then(Instant::now);
        let has_ended = Rc::new(Notify::new());
        if ended.is_some() {
            has_ended.notify_one();
        }
        let deadline = patience
            .filter(|_| ended.is_none())
            .map(|patience| (patience, Box::pin(sleep_until(Instant::now() + patience))));
        Self(Rc::new(RefCell::new(State {
            exact: incoming.size_hint().exact(),
            incoming,
            kept: Vec::new(),
            kept_bytes: 0,
            overflowed: false,
            attempt: 0,
            ended,
            failed: false,
            deadline,
            stalled: false,
            has_ended,
            note,
        })))
    }

    /// The body for the next attempt. Earlier attempts read nothing more.
    #[must_use]
    pub fn upload(&self) -> Upload {
        let mut state = self.0.borrow_mut();
        state.attempt += 1;
        Upload { source: self.clone(), attempt: state.attempt, at: 0 }
    }

    /// Whether another attempt would send the same bytes.
    #[must_use]
    pub fn can_be_sent_again(&self) -> bool {
        let state = self.0.borrow();
        !state.overflowed && !state.failed
    }

    /// Records that the response has begun: buffering and the time limit end.
    pub fn is_answered(&self) {
        let mut state = self.0.borrow_mut();
        state.deadline = None;
        state.overflowed = true;
    }

    /// Whether the client has exceeded the time limit of a part.
    #[must_use]
    pub fn has_stalled(&self) -> bool {
        self.0.borrow().stalled
    }

    /// Whether the client has sent a malformed body, or has disconnected.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.0.borrow().failed
    }

    /// The time at which the body was complete.
    #[must_use]
    pub fn ended_at(&self) -> Option<Instant> {
        self.0.borrow().ended
    }

    /// Waits until the body is complete.
    pub async fn has_ended(&self) {
        if self.ended_at().is_some() {
            return;
        }
        let notify = self.0.borrow().has_ended.clone();
        notify.notified().await;
    }
}

impl State {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Part, BodyError>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if let Some((_, deadline)) = &mut self.deadline {
                    ready!(deadline.as_mut().poll(context));
                    self.stalled = true;
                    self.failed = true;
                    return Poll::Ready(Some(Err("the client has stalled".into())));
                }
                return Poll::Pending;
            }
        };
        if let Some((patience, deadline)) = &mut self.deadline {
            deadline.as_mut().reset(Instant::now() + *patience);
        }
        let part = match frame {
            None => None,
            Some(Err(error)) => {
                self.failed = true;
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(frame)) => Some(match frame.into_data() {
                Ok(data) => Part::Data(data),
                Err(frame) => Part::Trailers(frame.into_trailers().unwrap_or_default()),
            }),
        };
        if let (Some(note), Some(Part::Data(data))) = (&self.note, &part) {
            note.received.set(note.received.get() + data.len() as u64);
        }
        if part.is_none() || self.incoming.is_end_stream() {
            self.ended = self.ended.or_else(|| Some(Instant::now()));
            self.deadline = None;
            self.has_ended.notify_one();
        }
        Poll::Ready(part.map(Ok))
    }

    /// Buffers a part for another attempt, if there is room.
    fn keep(&mut self, part: &Part) {
        if self.overflowed {
            self.kept = Vec::new();
            return;
        }
        self.kept_bytes += match part {
            Part::Data(data) => data.len(),
            Part::Trailers(_) => 0,
        };
        if self.kept_bytes > KEPT {
            self.overflowed = true;
            self.kept = Vec::new();
        } else {
            self.kept.push(part.clone());
        }
    }
}

/// The body of one attempt.
#[derive(Debug)]
pub struct Upload {
    source: Source,
    attempt: u32,
    /// Number of buffered parts that this attempt has read.
    at: usize,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let source = self.source.clone();
        let mut state = source.0.borrow_mut();
        if state.attempt != self.attempt {
            return Poll::Ready(Some(Err("another try reads the body".into())));
        }
        let part = if let Some(part) = state.kept.get(self.at) {
            part.clone()
        } else {
            match ready!(state.poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(part)) => {
                    state.keep(&part);
                    part
                }
            }
        };
        self.at += 1;
        if state.overflowed {
            self.at = 0;
        }
        Poll::Ready(Some(Ok(match part {
            Part::Data(data) => Frame::data(data),
            Part::Trailers(trailers) => Frame::trailers(trailers),
        })))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.source.0.borrow();
        state.ended.is_some() && self.at >= state.kept.len()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.source.0.borrow();
        match state.exact {
            Some(exact) if self.at == 0 => SizeHint::with_exact(exact),
            _ => SizeHint::new(),
        }
    }
}

/// The body of a response.
#[derive(Debug)]
pub struct Download {
    content: Content,
    /// The time limit for the whole body.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The backend's connection, which the next request can use.
    connection: Option<Return>,
    /// Counts the request as in progress until dropped.
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
enum Content {
    Ours(Option<Bytes>),
    Theirs(Incoming),
}

impl Download {
    /// The body of a local reply.
    #[must_use]
    pub fn ours(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let content = Content::Ours(Some(bytes).filter(|bytes| !bytes.is_empty()));
        Self { content, deadline: None, connection: None, in_flight: None }
    }

    /// The body of a backend's response.
    #[must_use]
    pub fn theirs(incoming: Incoming, deadline: Option<Instant>, connection: Option<Return>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let mut new = Self { content: Content::Theirs(incoming), deadline, connection, in_flight: None };
        if new.is_end_stream() {
            new.is_over();
        }
        new
    }

    /// Adds a guard that counts the request as in progress.
    #[must_use]
    pub fn counted(self, in_flight: InFlight) -> Self {
        Self { in_flight: Some(in_flight), ..self }
    }

    fn has_sent(&self, bytes: usize) {
        if let Some(note) = self.in_flight.as_ref().and_then(InFlight::note) {
            note.sent.set(note.sent.get() + bytes as u64);
        }
    }

    fn is_over(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.give_back();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(in_flight) = &this.in_flight {
            in_flight.count();
        }
        let incoming = match &mut this.content {
            Content::Ours(bytes) => {
                let bytes = bytes.take();
                this.has_sent(bytes.as_ref().map_or(0, Bytes::len));
                return Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))));
            }
            Content::Theirs(incoming) => incoming,
        };
        let frame = match Pin::new(&mut *incoming).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let Some(deadline) = &mut this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(context));
                return Poll::Ready(Some(Err("the request has timed out".into())));
            }
        };
        let is_over = match &frame {
            None => true,
            Some(Ok(_)) => incoming.is_end_stream(),
            Some(Err(_)) => false,
        };
        if is_over {
            this.is_over();
        }
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.has_sent(data.len());
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Ours(bytes) => bytes.is_none(),
            Content::Theirs(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Ours(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Theirs(incoming) => incoming.size_hint(),
        }
    }
}
