//! Detects that a connection is idle.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, sleep};

/// Resolves once `progress` has not changed for `limit`, or up to twice as late: it checks once in each `limit`.
pub(super) async fn idle<T: PartialEq>(limit: Duration, progress: impl Fn() -> T) {
    let mut seen = progress();
    let mut timer = pin!(sleep(limit));
    loop {
        timer.as_mut().await;
        let now = progress();
        if now == seen {
            return;
        }
        seen = now;
        timer.as_mut().reset(Instant::now() + limit);
    }
}
