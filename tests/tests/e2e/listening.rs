//! What becomes of clients when a listening socket closes, or another one takes its place.

use std::{
    fs,
    io::Write as _,
    net::{TcpListener, TcpStream},
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::once("listening::who_waits_when_a_listener_is_removed_is_counted", removed_while_waiting),
    Case::once(
        "listening::who_waits_when_the_process_stops_is_served_within_the_drain",
        served_while_draining,
    ),
    Case::once("listening::who_waits_for_the_whole_drain_is_refused", drained_while_waiting),
];

/// Places for connections.
const PLACES: usize = 2;
/// `TCP_LISTEN`.
const LISTEN: &str = "0A";

fn limits(more: &str) -> String {
    format!("limits: {{workers: 1, connections: {PLACES}, connections_per_source: none}}\n{more}")
}

/// A daemon of one socket whose configuration is in this file, and its backend.
fn start<'lab>(lab: &'lab Lab, yaml: &str) -> Result<(Daemon<'lab>, TcpListener, PathBuf)> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, yaml)?;
    Ok((Daemon::start(lab, &Options::file(&file))?, listener, file))
}

/// Takes every place, and has `waiting` clients wait that have said `first`: one has been accepted, all others are in the kernel's queue.
fn fill(
    lab: &Lab,
    daemon: &Daemon<'_>,
    listener: &TcpListener,
    waiting: usize,
    first: &[u8],
) -> Result<(Vec<Flow>, Vec<TcpStream>)> {
    let held = (0..PLACES).map(|_| Flow::open(lab, listener)).collect::<Result<_>>()?;
    let clients = (0..waiting)
        .map(|_| {
            let mut client = tcp::connect(&lab.client, &flow::front())?;
            client.write_all(first)?;
            Ok(client)
        })
        .collect::<Result<_>>()?;
    daemon.wait_metrics("one waits", |metrics| metrics.sum("snisplice_connections_waiting", &[]) == 1)?;
    wait::until_true("the others are in the queue", || Ok(queued(lab)? == waiting - 1))?;
    Ok((held, clients))
}

/// Connections in the queue of the front, which proc(5) shows in the place of bytes to be read.
fn queued(lab: &Lab) -> Result<usize> {
    let table = lab.lb.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut front =
        line.filter(|fields| fields.get(1).is_some_and(|at| at.ends_with(":20FB")) && fields[3] == LISTEN);
    let front = front.next().context("nobody listens")?;
    let (_, waiting) = front[4].split_once(':').context("no queue")?;
    Ok(usize::from_str_radix(waiting, 16)?)
}

fn closed(daemon: &Daemon<'_>, reason: &str) -> Result<i64> {
    Ok(daemon.metrics()?.sum("snisplice_connections_closed_total", &[("reason", reason)]))
}

fn are_reset(clients: Vec<TcpStream>) -> Result<()> {
    for mut client in clients {
        let end = tcp::read_to_end(&mut client)?;
        ensure!(end == (Vec::new(), Ending::Reset), "{end:?}");
    }
    Ok(())
}

/// Nobody serves them any more, so that they wait for nothing.
fn removed_while_waiting(lab: &Lab) -> Result<()> {
    const WAITING: usize = 5;
    let yaml = flow::yaml(&limits(""));
    let (daemon, listener, file) = start(lab, &yaml)?;
    let (mut held, clients) = fill(lab, &daemon, &listener, WAITING, &hello::naming(NAME)?)?;
    fs::write(&file, yaml.replace(":8443", ":8444"))?;
    daemon.process().signal(Signal::SIGHUP)?;
    are_reset(clients)?;
    wait::until_true("all of them are counted", || {
        Ok(closed(&daemon, "listener_removed")? == i64::try_from(WAITING)?)
    })?;
    daemon.wait_log("refusing clients that wait")?;
    ensure!(daemon.metrics()?.sum("snisplice_connections_waiting", &[]) == 0);
    held.iter_mut().try_for_each(Flow::exchange)
}

/// As many as there are descriptors kept for wait; the others are told at once.
fn served_while_draining(lab: &Lab) -> Result<()> {
    const WAITING: usize = 80;
    const LAST: usize = 64;
    let (mut daemon, listener, _) = start(lab, &flow::yaml(&limits("timeouts: {drain: 1h}\n")))?;
    let first = hello::naming(NAME)?;
    let (held, clients) = fill(lab, &daemon, &listener, WAITING, &first)?;
    daemon.terminate()?;
    let refused = i64::try_from(WAITING - LAST)?;
    let metrics = daemon.wait_metrics("some are refused", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "connection_limit")]) == refused
    })?;
    ensure!(metrics.sum("snisplice_limit_refused_total", &[("reason", "connection_limit")]) == refused);
    ensure!(metrics.sum("snisplice_connections_waiting", &[]) == i64::try_from(LAST)?);
    daemon.wait_log("see limits.connections")?;
    ensure!(tcp::connect(&lab.client, &flow::front()).is_err(), "it accepts still");
    // They wait for places alone.
    drop(held);
    let (mut served, mut reset) = (0, 0);
    thread::scope(|scope| {
        // Each leaves its place to another when it has read all.
        let read = |mut client: TcpStream| tcp::read_to_end(&mut client);
        let clients: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || read(client))).collect();
        for _ in 0..LAST {
            let mut backend = tcp::accept(&listener)?;
            ensure!(tcp::read_exact(&mut backend, first.len())? == first);
            backend.write_all(b"welcome")?;
        }
        for client in clients {
            match client.join().expect("no client panics")? {
                (said, Ending::Eof) if said == b"welcome" => served += 1,
                (said, Ending::Reset) if said.is_empty() => reset += 1,
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    })?;
    ensure!((served, reset) == (LAST, WAITING - LAST), "{served} were served, {reset} reset");
    ensure!(daemon.wait()?.success());
    Ok(())
}

fn drained_while_waiting(lab: &Lab) -> Result<()> {
    let (mut daemon, listener, _) = start(lab, &flow::yaml(&limits("timeouts: {drain: 1s}\n")))?;
    let (_held, clients) = fill(lab, &daemon, &listener, 3, &hello::naming(NAME)?)?;
    daemon.terminate()?;
    are_reset(clients)?;
    ensure!(daemon.wait()?.success());
    daemon.wait_log("a listener stops: refusing clients that wait for a place")
}
