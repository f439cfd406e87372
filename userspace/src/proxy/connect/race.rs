//! Several attempts at once, since the first was not answered within its head start or has failed.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{AttemptError, ConnectError, Context, Upstream, connect_to, reset};
use crate::{
    metrics::labels::ConnectFailure,
    upstream::{candidates::Candidates, endpoint::Endpoint, schedule},
};

/// An attempt under way.
pub(super) struct Attempt<'a> {
    endpoint: Arc<Endpoint>,
    begun: Instant,
    future: Pin<Box<dyn Future<Output = Result<Upstream, AttemptError>> + 'a>>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        begun: Instant,
        future: impl Future<Output = Result<Upstream, AttemptError>> + 'a,
    ) -> Self {
        Self { endpoint, begun, future: Box::pin(future) }
    }
}

/// All attempts of one connection.
pub(super) struct Race<'a> {
    context: Context<'a>,
    candidates: Candidates,
    begun: Instant,
    limit: Duration,
    /// The oldest first.
    running: Vec<Attempt<'a>>,
    last: Option<ConnectError>,
}

/// What happens next.
enum Event {
    Ended(Attempted, Result<Upstream, AttemptError>),
    NextIsDue,
    TimeIsOver,
    ClientGone,
}

/// An attempt that has ended.
struct Attempted(Arc<Endpoint>);

impl<'a> Race<'a> {
    pub(super) fn new(context: Context<'a>, candidates: Candidates, begun: Instant, limit: Duration) -> Self {
        Self { context, candidates, begun, limit, running: Vec::new(), last: None }
    }

    /// With an attempt that is under way.
    pub(super) fn with(mut self, attempt: Attempt<'a>) -> Self {
        self.running.push(attempt);
        self
    }

    /// After an attempt that has failed.
    pub(super) fn failed(mut self, error: ConnectError) -> Self {
        self.last = Some(error);
        self
    }

    /// Until one attempt succeeds, all have failed, or the time is over.
    pub(super) async fn run(mut self) -> Result<Upstream, ConnectError> {
        let share = schedule::share(self.limit, self.candidates.remaining() + self.running.len());
        // After a failure the next one needs no head start.
        let mut is_due = self.running.is_empty();
        loop {
            if is_due {
                self.begin_next();
            }
            if self.running.is_empty() && self.candidates.remaining() == 0 {
                let backend = self.context.backend.name.to_string();
                return Err(self.last.unwrap_or(ConnectError::NoEndpoint { backend }));
            }
            is_due = match self.event(share).await {
                Event::Ended(Attempted(endpoint), Ok(upstream)) => {
                    self.overtake(&endpoint);
                    return Ok(upstream);
                }
                Event::Ended(Attempted(endpoint), Err(error)) => {
                    self.last = Some(self.context.failed(&endpoint, error));
                    true
                }
                Event::NextIsDue => {
                    if self.running.len() >= schedule::MOST_AT_ONCE {
                        let oldest = self.running.remove(0);
                        self.last = Some(self.context.failed(&oldest.endpoint, AttemptError::timed_out()));
                    }
                    true
                }
                Event::TimeIsOver => {
                    for attempt in std::mem::take(&mut self.running) {
                        self.last = Some(self.context.failed(&attempt.endpoint, AttemptError::timed_out()));
                    }
                    let backend = self.context.backend.name.to_string();
                    return Err(self.last.unwrap_or(ConnectError::NoEndpoint { backend }));
                }
                Event::ClientGone => return Err(ConnectError::ClientGone),
            };
        }
    }

    fn begin_next(&mut self) {
        if let Some(endpoint) = self.candidates.next() {
            let future = connect_to(self.context, endpoint.clone());
            self.running.push(Attempt::new(endpoint, Instant::now(), future));
        }
    }

    async fn event(&mut self, share: Duration) -> Event {
        let begun = self.begun;
        let starts: Vec<_> = self.running.iter().map(|attempt| attempt.begun - begun).collect();
        let head_start = self.running.last().map_or(Duration::ZERO, |attempt| attempt.endpoint.head_start());
        let (next, _) = schedule::next_start(&starts, head_start, share);
        let is_last = self.candidates.remaining() == 0;
        tokio::select! {
            biased;
            (endpoint, result) = ended(&mut self.running) => Event::Ended(Attempted(endpoint), result),
            () = reset(self.context.client) => Event::ClientGone,
            () = sleep_until(begun + self.limit) => Event::TimeIsOver,
            () = sleep_until(begun + next), if !is_last => Event::NextIsDue,
        }
    }

    /// Those that were silent for longer than their head start when another one answered.
    fn overtake(&self, winner: &Arc<Endpoint>) {
        for attempt in &self.running {
            let is_late = attempt.begun.elapsed() >= attempt.endpoint.head_start();
            if is_late && !Arc::ptr_eq(&attempt.endpoint, winner) {
                let Context { backend, service, .. } = self.context;
                service.metrics.connect_failed(&backend.name, ConnectFailure::ConnectOvertaken);
                attempt.endpoint.overtaken();
            }
        }
    }
}

/// The next attempt to end, which is then no longer under way.
async fn ended(running: &mut Vec<Attempt<'_>>) -> (Arc<Endpoint>, Result<Upstream, AttemptError>) {
    poll_fn(|cx| {
        for index in 0..running.len() {
            if let Poll::Ready(result) = running[index].future.as_mut().poll(cx) {
                return Poll::Ready((running.remove(index).endpoint, result));
            }
        }
        Poll::Pending
    })
    .await
}
