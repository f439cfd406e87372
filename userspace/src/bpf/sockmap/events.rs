//! The verdict program's events: directions that fell back to userspace.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{MapData, PerCpuArray};
use snisplice_common::sockmap::{counters::Counters, event::Event};

use crate::bpf::{
    events::Events,
    load::total,
    wakeup::{Ready, Token, What},
};

/// The period of the checks of every direction that correct the sum of waiting bytes.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// The thread's name.
pub(super) const THREAD: &str = "kernel-events";

/// Reads the events.
pub(super) struct Fallbacks {
    counters: Arc<PerCpuArray<MapData, Counters>>,
    /// Lost events that were compensated for.
    lost: u64,
    tidy: Tidy,
}

impl Fallbacks {
    pub(super) fn new(counters: Arc<PerCpuArray<MapData, Counters>>) -> Self {
        Self { counters, lost: 0, tidy: Tidy::default() }
    }
}

impl Events for Fallbacks {
    const EVERYTHING: Ready = Ready::both(What::Passed);

    fn read(&mut self, event: &[u8]) -> Option<(Token, Ready)> {
        let token = Token::unpack(parse(event)?.token);
        Some((token, Ready::of(token.peer, What::Passed)))
    }

    fn must_all_look(&mut self) -> bool {
        let Ok(now) = total(&self.counters) else { return false };
        let lost = now.lost_events != std::mem::replace(&mut self.lost, now.lost_events);
        lost || self.tidy.is_due(&now, Instant::now())
    }
}

/// The time at which every direction is checked because the sum of waiting bytes has refused packets: the sum may
/// contain outdated shares.
#[derive(Debug, Default)]
struct Tidy {
    /// Refused packets at the last check.
    refused: u64,
    last: Option<Instant>,
}

impl Tidy {
    /// A check takes a moment, so it is made only now and then.
    fn is_due(&mut self, counted: &Counters, now: Instant) -> bool {
        let is_soon = self.last.is_some_and(|last| now.duration_since(last) < TIDY_EVERY);
        if counted.over_budget == self.refused || is_soon {
            return false;
        }
        self.refused = counted.over_budget;
        self.last = Some(now);
        true
    }
}

fn parse(event: &[u8]) -> Option<Event> {
    let (token, rest) = event.split_first_chunk()?;
    let (cookie, _) = rest.split_first_chunk()?;
    Some(Event { token: u64::from_ne_bytes(*token), cookie: u64::from_ne_bytes(*cookie) })
}
