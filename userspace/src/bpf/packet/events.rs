//! The packet programs' events: the task of a flow that may have ended is woken. Other events are counted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use aya::maps::{MapData, PerCpuArray};
use snisplice_common::packet::maps::{BYPASS, END, FIN, FIRST, Totals};

use crate::bpf::{
    events::Events,
    load::total,
    wakeup::{Ready, Token, What},
};

/// The readiness that a flow's task waits for: it has to check the flow.
pub(crate) const LOOK: Ready = Ready::both(What::Passed);

/// The thread's name.
pub(super) const THREAD: &str = "flow-endings";

/// The number of events, by kind.
#[derive(Debug, Default)]
pub struct EventCounters {
    first: AtomicU64,
    fin: AtomicU64,
}

impl EventCounters {
    /// Ways whose first packet was forwarded.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first.load(Relaxed)
    }

    /// Ways that have ended with FIN.
    #[must_use]
    pub fn fin(&self) -> u64 {
        self.fin.load(Relaxed)
    }

    fn add(&self, what: u32) {
        for (kind, counter) in [(FIRST, &self.first), (FIN, &self.fin)] {
            if what & kind != 0 {
                counter.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Reads the events.
pub(super) struct FlowEvents {
    totals: Arc<PerCpuArray<MapData, Totals>>,
    counters: Arc<EventCounters>,
    /// Lost events that were compensated for.
    lost: u64,
}

impl FlowEvents {
    pub(super) fn new(totals: Arc<PerCpuArray<MapData, Totals>>, counters: Arc<EventCounters>) -> Self {
        Self { totals, counters, lost: 0 }
    }
}

impl Events for FlowEvents {
    const EVERYTHING: Ready = LOOK;

    fn read(&mut self, event: &[u8]) -> Option<(Token, Ready)> {
        let (token, rest) = event.split_first_chunk()?;
        let (what, _) = rest.split_first_chunk()?;
        let what = u32::from_ne_bytes(*what);
        self.counters.add(what);
        (what & (END | BYPASS) != 0).then(|| (Token::unpack(u64::from_ne_bytes(*token)), LOOK))
    }

    fn must_all_look(&mut self) -> bool {
        let Ok(now) = total(&self.totals) else { return false };
        now.lost_events != std::mem::replace(&mut self.lost, now.lost_events)
    }
}
