//! Flows that have ended, while late packets may come.
//!
//! The last acknowledgement may be lost. A FIN then comes again, and must reach the end in `TIME_WAIT`. The balancer's
//! sockets are closed by then. The entries in the maps are enough, and a new connection of the same addresses removes
//! them at once.

use std::{
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

use snisplice_common::packet::maps::Tuple;

use super::Shared;

/// The time for which a flow stays after its end: enough for a few retransmissions. The kernel answers a later packet
/// with a reset, which comes after everything was delivered.
pub(super) const TIME_WAIT: Duration = Duration::from_secs(2);

/// The period of the checks for expired flows.
const SWEEP: Duration = Duration::from_millis(500);

/// Flows that have ended, the oldest first.
#[derive(Debug, Default)]
pub(super) struct TimeWait(VecDeque<(Instant, u32, [Tuple; 2])>);

impl TimeWait {
    pub(super) fn add(&mut self, flow: u32, tuples: [Tuple; 2]) {
        self.0.push_back((Instant::now(), flow, tuples));
    }

    /// Removes a flow that ended at least `age` ago.
    fn take_older(&mut self, age: Duration) -> Option<(u32, [Tuple; 2])> {
        let (since, ..) = self.0.front()?;
        if since.elapsed() < age {
            return None;
        }
        self.0.pop_front().map(|(_, flow, tuples)| (flow, tuples))
    }
}

impl Shared {
    /// Forgets the flow that ended first. Returns false if there is none.
    pub(super) fn forget_oldest(&self) -> bool {
        self.forget_older(Duration::ZERO)
    }

    /// Forgets all flows that have ended.
    pub(super) fn forget_time_wait(&self) {
        while self.forget_oldest() {}
    }

    fn forget_older(&self, age: Duration) -> bool {
        let Some((flow, tuples)) = self.time_wait.borrow_mut().take_older(age) else { return false };
        self.forget(flow, &tuples);
        true
    }

    /// Removes a flow from the maps.
    pub(super) fn forget(&self, flow: u32, tuples: &[Tuple; 2]) {
        let mut maps = self.maps.borrow_mut();
        for (tuple, slot) in tuples.iter().zip(Self::slots(flow)) {
            maps.remove_tuple(tuple, slot);
        }
        self.programs.release(flow);
    }
}

/// Forgets flows when their time is over, in an endless loop.
pub(super) async fn sweep(shared: Rc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        while shared.forget_older(TIME_WAIT) {}
    }
}
