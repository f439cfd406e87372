//! Concurrent attempts, after the first one has failed or exceeded its head start.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::{ConnectError, Connected, Context, Upstream, connect_to, reset};
use crate::{
    metrics::labels::ConnectFailure,
    upstream::{attempt::AttemptError, candidates::Candidates, lease::Lease, schedule},
};

/// An attempt in progress.
pub(super) struct Attempt<'a> {
    lease: Lease,
    begun: Instant,
    future: Pin<Box<dyn Future<Output = Result<Connected, AttemptError>> + 'a>>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        lease: Lease,
        begun: Instant,
        future: impl Future<Output = Result<Connected, AttemptError>> + 'a,
    ) -> Self {
        Self { lease, begun, future: Box::pin(future) }
    }
}

/// All attempts of one connection.
pub(super) struct Race<'a> {
    context: Context<'a>,
    candidates: Candidates,
    begun: Instant,
    limit: Duration,
    /// Sorted by start, the oldest first.
    running: Vec<Attempt<'a>>,
    last: Option<ConnectError>,
}

/// The next event of a race.
enum Event {
    Ended(Lease, Result<Connected, AttemptError>),
    NextIsDue,
    TimeIsOver,
    ClientGone,
}

impl<'a> Race<'a> {
    pub(super) fn new(context: Context<'a>, candidates: Candidates, begun: Instant, limit: Duration) -> Self {
        Self { context, candidates, begun, limit, running: Vec::new(), last: None }
    }

    /// Adds an attempt in progress.
    pub(super) fn with(mut self, attempt: Attempt<'a>) -> Self {
        self.running.push(attempt);
        self
    }

    /// Records a failed attempt.
    pub(super) fn failed(mut self, error: ConnectError) -> Self {
        self.last = Some(error);
        self
    }

    /// Runs until one attempt succeeds, all have failed, or the time is over.
    pub(super) async fn run(mut self) -> Result<Upstream, ConnectError> {
        let share = schedule::share(self.limit, self.candidates.remaining() + self.running.len());
        // After a failure the next attempt needs no head start.
        let mut is_due = self.running.is_empty();
        loop {
            if is_due {
                self.begin_next();
            }
            if self.running.is_empty() && self.candidates.is_exhausted() {
                let backend = self.context.backend.name.to_string();
                return Err(self.last.unwrap_or(ConnectError::NoEndpoint { backend }));
            }
            is_due = match self.event(share).await {
                Event::Ended(lease, Ok(connected)) => {
                    self.overtake(&lease);
                    self.candidates.connected(&lease);
                    return Ok(connected.to(lease));
                }
                Event::Ended(lease, Err(error)) => {
                    self.last = Some(self.context.failed(lease, error));
                    true
                }
                Event::NextIsDue => {
                    if self.running.len() >= schedule::MOST_AT_ONCE {
                        let oldest = self.running.remove(0);
                        self.last = Some(self.context.failed(oldest.lease, AttemptError::timed_out()));
                    }
                    true
                }
                Event::TimeIsOver => {
                    for attempt in std::mem::take(&mut self.running) {
                        self.last = Some(self.context.failed(attempt.lease, AttemptError::timed_out()));
                    }
                    let backend = self.context.backend.name.to_string();
                    return Err(self.last.unwrap_or(ConnectError::NoEndpoint { backend }));
                }
                Event::ClientGone => return Err(ConnectError::ClientGone),
            };
        }
    }

    fn begin_next(&mut self) {
        if let Some(lease) = self.candidates.next() {
            let future = connect_to(self.context, lease.address());
            self.running.push(Attempt::new(lease, Instant::now(), future));
        }
    }

    async fn event(&mut self, share: Duration) -> Event {
        let begun = self.begun;
        let starts: Vec<_> = self.running.iter().map(|attempt| attempt.begun - begun).collect();
        let head_start = self.running.last().map_or(Duration::ZERO, |attempt| attempt.lease.head_start());
        let (next, _) = schedule::next_start(&starts, head_start, share);
        let is_last = self.candidates.is_exhausted();
        tokio::select! {
            biased;
            (lease, result) = ended(&mut self.running) => Event::Ended(lease, result),
            () = reset(self.context.client) => Event::ClientGone,
            () = sleep_until(begun + self.limit) => Event::TimeIsOver,
            () = sleep_until(begun + next), if !is_last => Event::NextIsDue,
        }
    }

    /// Reports the attempts that exceeded their head start before another one succeeded.
    fn overtake(&self, winner: &Lease) {
        for attempt in &self.running {
            let is_late = attempt.begun.elapsed() >= attempt.lease.head_start();
            if is_late && attempt.lease.address() != winner.address() {
                let Context { backend, service, .. } = self.context;
                service.metrics.connect_failed(&backend.name, ConnectFailure::ConnectOvertaken);
                attempt.lease.overtaken();
            }
        }
    }
}

/// Waits for the next attempt to end, and removes it from `running`.
async fn ended(running: &mut Vec<Attempt<'_>>) -> (Lease, Result<Connected, AttemptError>) {
    poll_fn(|cx| {
        for index in 0..running.len() {
            if let Poll::Ready(result) = running[index].future.as_mut().poll(cx) {
                return Poll::Ready((running.remove(index).lease, result));
            }
        }
        Poll::Pending
    })
    .await
}
