//! How much memory a daemon has when nobody is connected.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{lab::Lab, suite::Case};

use crate::flow;

pub(crate) const CASES: &[Case] =
    &[Case::each("footprint::a_started_daemon_is_small", a_started_daemon_is_small)];

/// Twice what it has. The kernel's types, which are read at the start, take tens of megabytes.
const MOST: u64 = 8 * 1024 * 1024;

fn a_started_daemon_is_small(lab: &Lab) -> Result<()> {
    let (daemon, _listener) = flow::start(lab, "")?;
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process().pid()))?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    let bytes = kilobytes.context("the process has no memory")?.parse::<u64>()? * 1024;
    ensure!(bytes < MOST, "{bytes} bytes are in use before there is a connection");
    Ok(())
}
