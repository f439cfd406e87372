//! The memory of a daemon without connections, and of each idle connection.

use std::{fmt::Write as _, fs, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::{Datapath, Lab},
    limits,
    suite::Case,
    wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("footprint::a_started_daemon_is_small", a_started_daemon_is_small),
    Case::once("footprint::many_routes_take_a_bounded_part_of_their_file", many_routes),
    Case::each("footprint::an_idle_connection_is_small", an_idle_connection_is_small),
];

/// Twice the actual memory, in bytes. The kernel's types, which are read at the start, take tens of megabytes.
const MOST: u64 = 8 * 1024 * 1024;

fn a_started_daemon_is_small(lab: &Lab) -> Result<()> {
    let (daemon, _listener) = flow::start(lab, "")?;
    let bytes = memory(&daemon)?;
    ensure!(bytes < MOST, "{bytes} bytes are in use before there is a connection");
    Ok(())
}

/// Anonymous memory of the process, in bytes.
fn memory(daemon: &Daemon<'_>) -> Result<u64> {
    status(daemon, "RssAnon:")
}

/// A size in the process's status, in bytes.
fn status(daemon: &Daemon<'_>, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.process().pid()))?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
    Ok(kilobytes.context("the process has no memory")?.parse::<u64>()? * 1024)
}

/// Istio objects of a large mesh: at its peak, reading needs a bounded part of the file's size. A reload leaves no
/// more memory in use than the start.
fn many_routes(lab: &Lab) -> Result<()> {
    const ROUTES: usize = 20_000;
    let mut yaml = "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: ingress}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8444, name: tls, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: ['*/*.example.com']}
"
    .to_owned();
    for number in 0..ROUTES {
        write!(
            yaml,
            "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: route-{number}, namespace: of-{}}}
spec:
  hosts: [host-{number}.example.com]
  gateways: [ingress/gateway]
  tls:
  - match: [{{port: 8444, sniHosts: [host-{number}.example.com]}}]
    route: [{{destination: {{host: pool.default.svc.cluster.local, port: {{number: 9000}}}}}}]
",
            number % 100
        )?;
    }
    let file = lab.dir().join("many.yaml");
    fs::write(&file, &yaml)?;
    let size = yaml.len() as u64;
    let options = Options::yaml(lab, &flow::yaml(""))?.and_file(&file);
    let daemon = Daemon::start(lab, &options.resolve("pool.default.svc.cluster.local", 9000, "10.0.2.2"))?;
    let started = wait::settled(flow::QUIET, || memory(&daemon))?;
    for reload in 1..=3 {
        daemon.process().signal(Signal::SIGHUP)?;
        wait::until_true("the configuration is reloaded", || {
            Ok(daemon.process().log()?.matches("configuration reloaded").count() == reload)
        })?;
    }
    wait::until_true("memory of reading is given back", || Ok(memory(&daemon)? <= started * 3 / 2))?;
    let peak = status(&daemon, "VmHWM:")?;
    ensure!(peak < 10 * size, "{peak} bytes at the peak for a file of {size}");
    Ok(())
}

/// Connections before the measurement: the first ones allocate buffers and tables that serve all.
const BEFORE: usize = 200;
const IDLE: usize = 1_000;

fn an_idle_connection_is_small(lab: &Lab) -> Result<()> {
    limits::raise_open_files()?;
    // A fifth more than the actual memory. Memory for the begin of a flow in packets stays with the process.
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

/// Connections that have exchanged some bytes and wait.
fn idle(lab: &Lab, listener: &TcpListener, count: usize) -> Result<Vec<Flow>> {
    (0..count)
        .map(|_| {
            let mut flow = Flow::open(lab, listener)?;
            flow.exchange()?;
            Ok(flow)
        })
        .collect()
}
