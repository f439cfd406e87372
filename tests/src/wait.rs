//! Waits for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// The time after which a wait fails. It is large, since only a failure reaches it, and an emulated processor takes
/// half a minute to start a daemon.
pub const DEADLINE: Duration = Duration::from_secs(90);

const POLL: Duration = Duration::from_millis(5);

/// Calls `ask` repeatedly until it returns `Some`. Fails with `what` after [`DEADLINE`].
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > DEADLINE {
            bail!("still waiting after {} s: {what}", DEADLINE.as_secs());
        }
        thread::sleep(POLL);
    }
}

/// Like [`until`], for a plain condition.
pub fn until_true(what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, || Ok(ask()?.then_some(())))
}

/// Waits until `sample` has the same value for `quiet`, and returns it.
///
/// For the end of all movement, which has no event of its own.
pub fn settled<T: PartialEq>(quiet: Duration, mut sample: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let (mut last, mut since) = (sample()?, Instant::now());
    while since.elapsed() < quiet {
        if started.elapsed() > DEADLINE {
            bail!("still changing after {} s", DEADLINE.as_secs());
        }
        thread::sleep(POLL);
        let now = sample()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}
