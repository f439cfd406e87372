//! Starts the process anew if a signal interrupted the look at what the kernel's BPF offers.

use std::{env, io, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, bail};

use crate::bpf;

/// Counts the restarts of one start. Each restart passes the count on to the next one.
const COUNT: &str = "SNISPLICE_INTERRUPTED_STARTS";

/// A debugger or a freezer does not interrupt a start so often.
const MOST: u32 = 100;

/// Detects the features of the kernel's BPF, once for the whole process. If a signal interrupts the detection, this
/// process replaces itself by a new one with the same arguments: the process ID and the open descriptors stay.
pub(super) fn detect_features() -> anyhow::Result<()> {
    if !bpf::load::detection_was_interrupted() {
        return Ok(());
    }
    let count = env::var(COUNT).ok().and_then(|count| count.parse().ok()).unwrap_or(0_u32);
    if count >= MOST {
        bail!(
            "signals interrupted {MOST} starts while the kernel was asked for its BPF features: start again"
        );
    }
    let mut arguments = env::args_os();
    let mut anew = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    let error: io::Error = anew.args(arguments).env(COUNT, (count + 1).to_string()).exec();
    Err(error).context("cannot start the process anew after a signal interrupted its start")
}
