//! Ctrl-C and SIGTERM end the run early but in order: no resource is left behind.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Begins to handle SIGINT, SIGTERM and SIGHUP.
pub(crate) fn watch() -> anyhow::Result<()> {
    ctrlc::set_handler(|| REQUESTED.store(true, Relaxed)).context("install a signal handler")
}

/// Whether the run must end.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Relaxed)
}

/// Returns an error if the run must end.
pub(crate) fn check() -> anyhow::Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, and wakes early if the run must end.
pub(crate) fn sleep_until(deadline: Instant) {
    const PIECE: Duration = Duration::from_millis(50);
    while !requested() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(PIECE));
    }
}
