//! How much memory a daemon has when nobody is connected, and what each connection adds that says nothing.

use std::{fs, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::Daemon,
    lab::{Datapath, Lab},
    limits,
    suite::Case,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("footprint::a_started_daemon_is_small", a_started_daemon_is_small),
    Case::each("footprint::an_idle_connection_is_small", an_idle_connection_is_small),
];

/// Twice what it has. The kernel's types, which are read at the start, take tens of megabytes.
const MOST: u64 = 8 * 1024 * 1024;

fn a_started_daemon_is_small(lab: &Lab) -> Result<()> {
    let (daemon, _listener) = flow::start(lab, "")?;
    let bytes = memory(&daemon)?;
    ensure!(bytes < MOST, "{bytes} bytes are in use before there is a connection");
    Ok(())
}

/// What the process has and no file backs.
fn memory(daemon: &Daemon<'_>) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process().pid()))?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    Ok(kilobytes.context("the process has no memory")?.parse::<u64>()? * 1024)
}

/// Connections whose memory nobody counts: the first ones bring buffers and tables that serve all.
const BEFORE: usize = 200;
const IDLE: usize = 1_000;

fn an_idle_connection_is_small(lab: &Lab) -> Result<()> {
    limits::raise_open_files()?;
    // A fifth more than they take. What a flow in packets takes while it begins stays with the process.
    let most = match lab.datapath {
        Datapath::Relay => 1_800,
        Datapath::Sockmap | Datapath::Adaptive => 2_400,
        Datapath::Auto => 2_900,
        Datapath::Packet => 3_600,
    };
    let (daemon, listener) = flow::start(lab, "")?;
    let _first = idle(lab, &listener, BEFORE)?;
    let before = memory(&daemon)?;
    let _flows = idle(lab, &listener, IDLE)?;
    let each = memory(&daemon)?.saturating_sub(before) / IDLE as u64;
    ensure!(each <= most, "{each} bytes for each idle connection");
    Ok(())
}

/// Connections that have exchanged something and wait for more.
fn idle(lab: &Lab, listener: &TcpListener, count: usize) -> Result<Vec<Flow>> {
    (0..count)
        .map(|_| {
            let mut flow = Flow::open(lab, listener)?;
            flow.exchange()?;
            Ok(flow)
        })
        .collect()
}
