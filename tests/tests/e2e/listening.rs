//! The effect on clients when a listening socket closes, or is replaced.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    netns::{LB, LB_V6},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use socket2::{Domain, Socket, Type};

use crate::{
    flow::{self, Flow, NAME},
    takeover::visited,
};

pub(crate) const CASES: &[Case] = &[
    Case::once("listening::who_waits_when_a_listener_is_removed_is_counted", removed_while_waiting),
    Case::once(
        "listening::who_waits_when_the_process_stops_is_served_within_the_drain",
        served_while_draining,
    ),
    Case::once("listening::who_waits_for_the_whole_drain_is_refused", drained_while_waiting),
    Case::once(
        "listening::who_waits_for_an_address_that_is_not_taken_over_is_served",
        taken_over_while_waiting,
    ),
    Case::once("listening::a_reload_between_all_addresses_and_one", any_and_one),
    Case::once("listening::a_reload_between_all_addresses_and_one_of_ipv6", any_and_one_v6),
    Case::once("listening::all_addresses_are_given_up_in_the_end", given_up),
    Case::once("listening::a_takeover_between_all_addresses_and_one", any_and_one_taken_over),
    Case::once("listening::another_process_on_the_port_is_refused", foreign),
];

/// Slots for connections.
const PLACES: usize = 2;
/// `TCP_LISTEN`.
const LISTEN: &str = "0A";

fn limits(more: &str) -> String {
    format!("limits: {{workers: 1, connections: {PLACES}, connections_per_source: none}}\n{more}")
}

/// A daemon with a single listening socket and its configuration in this file, and its backend.
fn start<'lab>(lab: &'lab Lab, yaml: &str) -> Result<(Daemon<'lab>, TcpListener, PathBuf)> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, yaml)?;
    Ok((Daemon::start(lab, &Options::file(&file))?, listener, file))
}

/// Takes every slot, and makes `waiting` clients wait that have sent `first`. One is accepted, and the others are in
/// the kernel's queue.
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

/// Connections in the queue of the listening socket, which proc(5) shows in the column of bytes to read.
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

/// The listener is removed, so they do not wait.
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

/// Clients with a reserved descriptor wait. The others are refused at once.
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
    // They only wait for slots.
    drop(held);
    let (served, reset) = answered(&listener, clients, LAST, &first)?;
    ensure!((served, reset) == (LAST, WAITING - LAST), "{served} were served, {reset} reset");
    ensure!(daemon.wait()?.success());
    Ok(())
}

/// Answers `count` connections at the backend. Returns how many of the clients are answered, and how many are reset.
fn answered(
    listener: &TcpListener,
    clients: Vec<TcpStream>,
    count: usize,
    first: &[u8],
) -> Result<(usize, usize)> {
    let (mut served, mut reset) = (0, 0);
    thread::scope(|scope| {
        // Each frees its slot for another when it has read all bytes.
        let read = |mut client: TcpStream| tcp::read_to_end(&mut client);
        let clients: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || read(client))).collect();
        for _ in 0..count {
            let mut backend = tcp::accept(listener)?;
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
        Ok((served, reset))
    })
}

/// The new process does not serve this address. The old one serves its queue, although it is full.
fn taken_over_while_waiting(lab: &Lab) -> Result<()> {
    const WAITING: usize = 5;
    let settings = limits("timeouts: {drain: 1h}\n");
    let (mut old, listener, _) = start(lab, &flow::yaml(&settings))?;
    let first = hello::naming(NAME)?;
    let (held, clients) = fill(lab, &old, &listener, WAITING, &first)?;
    let other = flow::yaml(&settings).replace(":8443", ":8444");
    let _new = Daemon::take_over(lab, &Options::yaml(lab, &other)?, "second")?;
    old.wait_log("no longer listening")?;
    drop(held);
    ensure!(answered(&listener, clients, WAITING, &first)? == (WAITING, 0), "some are reset");
    ensure!(old.wait()?.success());
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

/// The configuration with this address.
fn at(ip: &str) -> String {
    flow::yaml("timeouts: {drain: 60s}\n").replace("0.0.0.0", ip)
}

/// The balancer's address on the other side.
const OTHER_SIDE: &str = "10.0.2.1:8443";

fn is_open_on_the_other_side(lab: &Lab) -> bool {
    tcp::connect(&lab.backend, OTHER_SIDE).is_ok()
}

/// Writes the configuration to the file, and waits until it is in service.
fn reload(daemon: &Daemon<'_>, file: &PathBuf, yaml: &str) -> Result<()> {
    let generation = || anyhow::Ok(daemon.metrics()?.sum("snisplice_config_generation", &[]));
    let before = generation()?;
    fs::write(file, yaml)?;
    daemon.process().signal(Signal::SIGHUP)?;
    wait::until_true("it is reloaded", || Ok(generation()? > before))
        .with_context(|| daemon.process().log().unwrap_or_default())
}

/// A connected client sends its hello now, and gets a greeting.
fn is_welcomed(mut client: TcpStream, first: &[u8]) -> Result<()> {
    client.write_all(first)?;
    let said = tcp::read_to_end(&mut client)?;
    ensure!(said == (b"welcome".to_vec(), Ending::Eof), "{said:?}");
    Ok(())
}

/// No client is refused or reset, including one that has connected before and sends its hello afterwards.
fn any_and_one(lab: &Lab) -> Result<()> {
    let (daemon, listener, file) = start(lab, &at("0.0.0.0"))?;
    visited(lab, &listener, 500, |first| {
        for ip in [LB, "0.0.0.0", LB, "0.0.0.0", LB] {
            let silent = tcp::connect(&lab.client, &flow::front())?;
            reload(&daemon, &file, &at(ip))?;
            is_welcomed(silent, first)?;
        }
        Ok(())
    })?;
    let metrics = daemon.metrics()?;
    for wrong in ["listener_removed", "aborted"] {
        ensure!(metrics.sum("snisplice_connections_closed_total", &[("reason", wrong)]) == 0, "{wrong}");
    }
    // An address that is not served any more is closed in the end, and at once if no remaining address includes it.
    wait::until_true("it is closed", || Ok(!is_open_on_the_other_side(lab)))?;
    reload(&daemon, &file, &at("0.0.0.0"))?;
    ensure!(is_open_on_the_other_side(lab));
    reload(&daemon, &file, &at("0.0.0.0").replace(":8443", ":8444"))?;
    wait::until_true("both are closed", || {
        Ok(!is_open_on_the_other_side(lab) && tcp::connect(&lab.client, &flow::front()).is_err())
    })?;
    Ok(())
}

/// The socket of all addresses outlives the reload for a few seconds, and no longer.
fn given_up(lab: &Lab) -> Result<()> {
    let (daemon, listener, file) = start(lab, &at("0.0.0.0"))?;
    reload(&daemon, &file, &at(LB))?;
    daemon.wait_log("arrived before the change")?;
    wait::until_true("it is closed", || Ok(!is_open_on_the_other_side(lab)))?;
    daemon.wait_log("no longer listening")?;
    Flow::open(lab, &listener)?.exchange()
}

fn any_and_one_v6(lab: &Lab) -> Result<()> {
    let one = format!("[{LB_V6}]");
    let front = format!("{one}:8443");
    let (daemon, listener, file) = start(lab, &at("[::]"))?;
    // The last one has all addresses of both families.
    for ip in [&one, "[::]", &one, "0.0.0.0:8443\", \"[::]"] {
        let yaml = at(ip);
        let silent = tcp::connect(&lab.client, &front)?;
        reload(&daemon, &file, &yaml)?;
        Flow::begin(silent, &listener)?.exchange()?;
        Flow::begin(tcp::connect(&lab.client, &front)?, &listener)?.exchange()?;
    }
    // IPv4 has an address of its own.
    Flow::open(lab, &listener)?.exchange()
}

fn any_and_one_taken_over(lab: &Lab) -> Result<()> {
    let (mut old, listener, _) = start(lab, &at("0.0.0.0"))?;
    visited(lab, &listener, 500, |first| {
        for (ip, name) in [(LB, "second"), ("0.0.0.0", "third"), (LB, "fourth")] {
            let silent = tcp::connect(&lab.client, &flow::front())?;
            let new = Daemon::take_over(lab, &Options::yaml(lab, &at(ip))?, name)?;
            is_welcomed(silent, first)?;
            ensure!(old.wait()?.success());
            old = new;
        }
        wait::until_true("it is closed", || Ok(!is_open_on_the_other_side(lab)))
    })
}

/// With any socket options: the foreign socket could belong to another daemon that takes part of the connections.
fn foreign(lab: &Lab) -> Result<()> {
    let (daemon, listener, file) = start(lab, &at(LB))?;
    for shared in [true, false] {
        let foreign = lab.lb.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_port(shared)?;
            socket.bind(&"127.0.0.9:8443".parse::<SocketAddr>()?.into())?;
            socket.listen(1)?;
            Ok(socket)
        })?;
        let rejected = || anyhow::Ok(daemon.metrics()?.sum("snisplice_config_rejected_total", &[]));
        let before = rejected()?;
        fs::write(&file, at("0.0.0.0"))?;
        daemon.process().signal(Signal::SIGHUP)?;
        wait::until_true("it is refused", || Ok(rejected()? > before))?;
        daemon.wait_log("cannot listen on 0.0.0.0:8443")?;
        daemon.wait_log("ss -ltnp")?;
        Flow::open(lab, &listener)?.exchange()?;
        drop(foreign);
        reload(&daemon, &file, &at("0.0.0.0"))?;
        ensure!(is_open_on_the_other_side(lab));
        reload(&daemon, &file, &at(LB))?;
        Flow::open(lab, &listener)?.exchange()?;
    }
    Ok(())
}
