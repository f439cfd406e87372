//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long anything may take before the test fails. Generous: it is only ever reached by a failure, and an emulated
/// processor takes half a minute for the start of a daemon.
pub const DEADLINE: Duration = Duration::from_secs(90);

const POLL: Duration = Duration::from_millis(5);

/// Asks again and again until the answer is `Some`, and fails with `what` after [`DEADLINE`].
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

/// [`until`] for a plain condition.
pub fn until_true(what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, || Ok(ask()?.then_some(())))
}

/// Waits until `sample` gives the same value for `quiet`, and returns it.
///
/// For "nothing moves any more", which has no event of its own.
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
