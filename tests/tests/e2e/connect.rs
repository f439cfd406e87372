//! Connects to the backend: refused, unreachable, too slow, or abandoned by the client.

use std::{
    cell::Cell,
    io::Write as _,
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello, kernel,
    lab::Lab,
    netns::{BACKEND, BACKEND_2, BLACKHOLE},
    process::run,
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("connect::refused_goes_to_the_next_endpoint", refused_goes_to_the_next_endpoint),
    Case::each("connect::timeout_goes_to_the_next_endpoint", timeout_goes_to_the_next_endpoint),
    Case::each("connect::all_refused_closes_the_client", all_refused_closes_the_client),
    Case::each("connect::timeout_closes_the_client", timeout_closes_the_client),
    Case::each("connect::client_gone_costs_the_backend_nothing", client_gone_costs_the_backend_nothing),
    Case::each("connect::names_are_resolved", names_are_resolved),
    Case::each("connect::connections_beyond_the_limit_wait", connections_beyond_the_limit_wait),
    Case::each("connect::a_silent_endpoint_is_remembered", a_silent_endpoint_is_remembered),
    Case::once("connect::the_whole_phase_is_bounded", the_whole_phase_is_bounded),
    Case::each(
        "connect::an_endpoint_that_is_the_listener_is_refused",
        an_endpoint_that_is_the_listener_is_refused,
    ),
    Case::once(
        "connect::without_a_local_port_the_next_source_is_tried",
        without_a_local_port_the_next_source_is_tried,
    ),
    Case::once(
        "connect::a_source_that_is_not_here_is_not_the_backends_fault",
        a_source_that_is_not_here_is_not_the_backends_fault,
    ),
    Case::once(
        "connect::a_lack_of_descriptors_is_not_the_backends_fault",
        a_lack_of_descriptors_is_not_the_backends_fault,
    ),
];

const SYN_SENT: u8 = 2;
const QUICK: &str = "timeouts: {connect: 300ms}\n";

/// A daemon whose backend has these endpoints.
fn with_endpoints<'lab>(lab: &'lab Lab, endpoints: &[&str], more: &str) -> Result<Daemon<'lab>> {
    Daemon::start(lab, &Options::yaml(lab, &flow::yaml_with(endpoints, more))?)
}

fn serves(lab: &Lab, listener: &TcpListener, times: usize) -> Result<()> {
    for _ in 0..times {
        Flow::open(lab, listener)?.exchange()?;
    }
    Ok(())
}

fn refused_goes_to_the_next_endpoint(lab: &Lab) -> Result<()> {
    let daemon = with_endpoints(lab, &[&format!("{BACKEND_2}:1"), &format!("{BACKEND}:9000")], "")?;
    serves(lab, &flow::backend(lab)?, 4)?;
    let failures =
        daemon.metrics()?.sum("snisplice_connect_failures_total", &[("reason", "connect_refused")]);
    ensure!(failures == 2, "every second connection tries the dead endpoint first, but {failures} did");
    Ok(())
}

fn timeout_goes_to_the_next_endpoint(lab: &Lab) -> Result<()> {
    // Long enough for the other endpoint on a busy machine.
    const PATIENCE: &str = "timeouts: {connect: 3s}\n";
    let daemon = with_endpoints(lab, &[&format!("{BLACKHOLE}:9000"), &format!("{BACKEND}:9000")], PATIENCE)?;
    serves(lab, &flow::backend(lab)?, 4)?;
    let metrics = daemon.metrics()?;
    let failures: i64 = ["connect_overtaken", "connect_timeout"]
        .map(|reason| metrics.sum("snisplice_connect_failures_total", &[("reason", reason)]))
        .iter()
        .sum();
    ensure!(failures == 2, "every second connection tries the deaf endpoint first, but {failures} did");
    Ok(())
}

/// Other endpoints are tried beside it after its head start. After two silent attempts, no connection tries it first.
fn a_silent_endpoint_is_remembered(lab: &Lab) -> Result<()> {
    const PATIENCE: &str = "timeouts: {connect: 60s}\n";
    let daemon = with_endpoints(lab, &[&format!("{BLACKHOLE}:9000"), &format!("{BACKEND}:9000")], PATIENCE)?;
    let listener = flow::backend(lab)?;
    let begun = Instant::now();
    serves(lab, &listener, 12)?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(30), "12 connections took {took:?}");
    let failures =
        daemon.metrics()?.sum("snisplice_connect_failures_total", &[("reason", "connect_overtaken")]);
    // Under load, the five seconds may end meanwhile, and one connection tries it again.
    ensure!((2..=4).contains(&failures), "the deaf endpoint was tried {failures} times");
    ensure!(kernel::sockets(&lab.lb, SYN_SENT)? == 0, "an attempt that was overtaken goes on");
    Ok(())
}

/// Many silent endpoints delay a client no longer than one, and need few descriptors at a time.
fn the_whole_phase_is_bounded(lab: &Lab) -> Result<()> {
    let silent: Vec<_> = (9000..9012).map(|port| format!("{BLACKHOLE}:{port}")).collect();
    let silent: Vec<_> = silent.iter().map(String::as_str).collect();
    let daemon = with_endpoints(lab, &silent, "timeouts: {connect: 2s}\n")?;
    let begun = Instant::now();
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::naming(flow::NAME)?)?;
    let most = Cell::new(0);
    daemon.wait_metrics("the connection is over", |metrics| {
        // Of two snapshots, at least one is not in the middle of a change.
        let looks = [(); 2].map(|()| kernel::sockets(&lab.lb, SYN_SENT).unwrap_or_default());
        most.set(most.get().max(looks[0].min(looks[1])));
        metrics.sum("snisplice_connections_closed_total", &[("reason", "connect_timeout")]) == 1
    })?;
    let took = begun.elapsed();
    // Sequential attempts would take 24 s.
    ensure!(took < Duration::from_secs(15), "{took:?} for endpoints that may take 2 s in all");
    let most = most.get();
    ensure!((1..=3).contains(&most), "{most} attempts at once");
    Ok(())
}

fn an_endpoint_that_is_the_listener_is_refused(lab: &Lab) -> Result<()> {
    // The listener has all addresses of the host.
    let daemon = with_endpoints(lab, &[&flow::front()], "")?;
    for _ in 0..3 {
        turned_away(lab)?;
    }
    let metrics = daemon.wait_metrics("the connections are counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "self_loop")]) == 3
    })?;
    ensure!(metrics.sum("snisplice_connections_opened_total", &[]) == 3, "no connection comes back");
    daemon.wait_log("is a listener of this process")?;
    ensure!(daemon.process().log()?.matches("is a listener of this process").count() == 1);
    Ok(())
}

fn without_a_local_port_the_next_source_is_tried(lab: &Lab) -> Result<()> {
    const SECOND: &str = "10.0.2.9";
    run(&lab.lb, Command::new("ip").args(["addr", "add", &format!("{SECOND}/24"), "dev", "to-backend"]))?
        .ok()?;
    lab.lb.sysctl("net/ipv4/ip_local_port_range", "40000 40003")?;
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml("").replace("endpoints:", &format!("source: [10.0.2.1, {SECOND}]\n    endpoints:"));
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut flows = Vec::new();
    for _ in 0..8 {
        let mut flow = Flow::open(lab, &listener)?;
        flow.exchange()?;
        flows.push(flow);
    }
    turned_away(lab)?;
    turned_away(lab)?;
    daemon.wait_metrics("the connections are counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "no_local_port")]) == 2
    })?;
    daemon.wait_log("ip_local_port_range")?;
    let log = daemon.process().log()?;
    ensure!(log.matches("ip_local_port_range").count() == 1, "{log}");
    Ok(())
}

/// Clients are refused with this reason, which the log reports once. The log does not report the backend as
/// unreachable.
fn fault_of_this_host(lab: &Lab, daemon: &Daemon<'_>, reason: &str, line: &str) -> Result<()> {
    for _ in 0..3 {
        turned_away(lab)?;
    }
    daemon.wait_metrics("the connections are counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) == 3
    })?;
    daemon.wait_log(line)?;
    let log = daemon.process().log()?;
    ensure!(log.matches(line).count() == 1 && !log.contains("cannot be reached"), "{log}");
    Ok(())
}

fn a_source_that_is_not_here_is_not_the_backends_fault(lab: &Lab) -> Result<()> {
    const SOURCE: &str = "10.0.2.9";
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml("").replace("endpoints:", &format!("source: [{SOURCE}]\n    endpoints:"));
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    fault_of_this_host(lab, &daemon, "no_source_address", "is an address of this host")?;
    run(&lab.lb, Command::new("ip").args(["addr", "add", &format!("{SOURCE}/24"), "dev", "to-backend"]))?
        .ok()?;
    Flow::open(lab, &listener)?.exchange()
}

/// More clients arrive at once than the process may have descriptors: accepted ones leave none for their backends.
fn a_lack_of_descriptors_is_not_the_backends_fault(lab: &Lab) -> Result<()> {
    const CLIENTS: u32 = 12;
    let (daemon, listener) = flow::start(lab, "")?;
    let process = daemon.process();
    let limits = |soft: u32| {
        let [pid, limit] = [format!("--pid={}", process.pid()), format!("--nofile={soft}:")];
        run(&lab.lb, Command::new("prlimit").args([pid, limit]))?.ok()
    };
    wait::until_true("a client is turned away", || {
        limits(process.lowest_free_descriptor()? + CLIENTS / 3)?;
        process.signal(Signal::SIGSTOP)?;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = tcp::connect(&lab.client, &flow::front())?;
                client.write_all(&hello::naming(flow::NAME)?)?;
                Ok(client)
            })
            .collect::<Result<_>>()?;
        process.signal(Signal::SIGCONT)?;
        daemon.wait_log("cannot accept")?;
        clients.into_iter().try_for_each(tcp::reset)?;
        limits(4096)?;
        let metrics = daemon.metrics()?;
        Ok(metrics.sum("snisplice_connections_closed_total", &[("reason", "resource_exhausted")]) > 0)
    })?;
    daemon.wait_log("cannot open another socket")?;
    let log = process.log()?;
    ensure!(!log.contains("cannot be reached"), "{log}");
    // Clients that disconnected come first, some of them without a byte.
    let bytes = [hello::naming(flow::NAME)?, b"the last client".to_vec()].concat();
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&bytes)?;
    let backend = wait::until("the client is served", || {
        let mut backend = tcp::accept(&listener)?;
        let is_the_last = tcp::read_exact(&mut backend, bytes.len()).is_ok_and(|read| read == bytes);
        Ok(is_the_last.then_some(backend))
    })?;
    Flow { client, backend }.exchange()
}

fn all_refused_closes_the_client(lab: &Lab) -> Result<()> {
    let daemon = with_endpoints(lab, &[&format!("{BACKEND}:1"), &format!("{BACKEND_2}:1")], "")?;
    turned_away(lab)?;
    let metrics = daemon.wait_metrics("the connection is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "connect_refused")]) == 1
    })?;
    ensure!(metrics.sum("snisplice_connect_failures_total", &[("backend", "pool")]) == 2);
    Ok(())
}

fn timeout_closes_the_client(lab: &Lab) -> Result<()> {
    let daemon = with_endpoints(lab, &[&format!("{BLACKHOLE}:9000")], QUICK)?;
    turned_away(lab)?;
    daemon.wait_metrics("the connection is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "connect_timeout")]) == 1
    })?;
    Ok(())
}

/// A client resets while the daemon connects to its endpoint: the attempt ends with it.
fn client_gone_costs_the_backend_nothing(lab: &Lab) -> Result<()> {
    let daemon = with_endpoints(lab, &[&format!("{BLACKHOLE}:9000")], "")?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::naming(flow::NAME)?)?;
    wait::until_true("the endpoint is being called", || Ok(kernel::sockets(&lab.lb, SYN_SENT)? == 1))?;
    tcp::reset(client)?;
    wait::until_true("the attempt is given up", || Ok(kernel::sockets(&lab.lb, SYN_SENT)? == 0))?;
    daemon.wait_metrics("the connection is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "client_gone")]) == 1
            && metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    Ok(())
}

/// A client without a backend reads no byte, only the end.
pub(crate) fn turned_away(lab: &Lab) -> Result<()> {
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::naming(flow::NAME)?)?;
    let (bytes, ending) = tcp::read_to_end(&mut client)?;
    ensure!(bytes.is_empty(), "{} bytes, then {ending:?}", bytes.len());
    ensure!(matches!(ending, Ending::Eof | Ending::Reset));
    Ok(())
}

fn names_are_resolved(lab: &Lab) -> Result<()> {
    let listener = tcp::listen(&lab.lb, "127.0.0.1:9000")?;
    let _daemon = with_endpoints(lab, &["localhost:9000"], "")?;
    serves(lab, &listener, 2)
}

/// The kernel accepts a client beyond the limit, and the daemon serves it when a slot is free.
fn connections_beyond_the_limit_wait(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "limits: {connections: 1}\n")?;
    let mut first = Flow::open(lab, &listener)?;
    let hello = hello::naming(flow::NAME)?;
    let mut second = tcp::connect(&lab.client, &flow::front())?;
    second.write_all(&hello)?;
    for _ in 0..10 {
        first.exchange()?;
    }
    ensure!(daemon.metrics()?.sum("snisplice_connections_opened_total", &[]) == 1);
    drop(first);
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, hello.len())? == hello);
    Flow { client: second, backend }.exchange()
}
