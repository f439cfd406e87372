//! Time limits of one listener, route or backend.

use std::{
    fs,
    io::Write as _,
    net::{Shutdown, TcpListener},
    process::Command,
};

use anyhow::{Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    netns::BLACKHOLE,
    process,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("timeouts::idle_of_a_listener_a_route_and_a_backend", idle),
    Case::each("timeouts::the_narrowest_scope_wins", narrowest),
    Case::each("timeouts::half_closed_of_a_route", half_closed),
    Case::each("timeouts::max_duration_of_a_backend_with_jitter", max_duration),
    Case::once("timeouts::hello_of_a_listener", hello_of_a_listener),
    Case::once("timeouts::connect_of_a_route", connect),
    Case::once("timeouts::each_side_is_probed_by_its_own_scope", keepalive),
];

/// The plain configuration with these time limits of the listener, the route and the backend.
fn yaml(listener: &str, route: &str, backend: &str) -> String {
    let of = |name: &str, limits: &str| match limits {
        "" => name.to_owned(),
        limits => format!("{name}\n    timeouts: {{{limits}}}"),
    };
    flow::yaml("")
        .replace("name: front", &of("name: front", listener))
        .replace("name: www", &of("name: www", route))
        .replace("- name: pool", &of("- name: pool", backend))
}

fn start<'lab>(lab: &'lab Lab, yaml: &str) -> Result<(Daemon<'lab>, TcpListener)> {
    let listener = flow::backend(lab)?;
    Ok((Daemon::start(lab, &Options::yaml(lab, yaml)?)?, listener))
}

fn wait_closed(daemon: &Daemon<'_>, reason: &str) -> Result<()> {
    daemon.wait_metrics(reason, |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) == 1
    })?;
    Ok(())
}

/// A connection that has moved enough for each datapath's carrier.
fn carried(lab: &Lab, listener: &TcpListener) -> Result<Flow> {
    let mut flow = Flow::open(lab, listener)?;
    for _ in 0..4 {
        flow.exchange()?;
    }
    Ok(flow)
}

fn idle(lab: &Lab) -> Result<()> {
    for scopes in [["idle: 1s", "", ""], ["", "idle: 1s", ""], ["", "", "idle: 1s"]] {
        let (mut daemon, listener) = start(lab, &yaml(scopes[0], scopes[1], scopes[2]))?;
        let mut flow = carried(lab, &listener)?;
        wait_closed(&daemon, "idle_timeout")?;
        tcp::read_to_end(&mut flow.client)?;
        tcp::read_to_end(&mut flow.backend)?;
        daemon.terminate()?;
        daemon.wait()?;
    }
    Ok(())
}

fn narrowest(lab: &Lab) -> Result<()> {
    const SHORT: &str = "short.example.com";
    let yaml = yaml("idle: 1s", "idle: 1h, max_duration: 1h", "")
        .replace("routes:\n", &format!("routes:\n  - {{sni: {SHORT}, backends: pool}}\n"));
    let (daemon, listener) = start(lab, &yaml)?;
    let mut long = carried(lab, &listener)?;
    let mut short = Flow::open_with(lab, &listener, &hello::naming(SHORT)?)?;
    short.exchange()?;
    wait_closed(&daemon, "idle_timeout")?;
    tcp::read_to_end(&mut short.client)?;
    long.exchange()
}

fn half_closed(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab, &yaml("", "half_closed: 1s", ""))?;
    let mut flow = carried(lab, &listener)?;
    flow.client.shutdown(Shutdown::Write)?;
    wait_closed(&daemon, "half_closed_timeout")?;
    tcp::read_to_end(&mut flow.client)?;
    Ok(())
}

fn max_duration(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab, &yaml("", "", "max_duration: 1s, max_duration_jitter: 50"))?;
    let mut flow = carried(lab, &listener)?;
    wait::until_true("a busy connection ends", || Ok(flow.exchange().is_err()))?;
    wait_closed(&daemon, "max_duration")
}

fn hello_of_a_listener(lab: &Lab) -> Result<()> {
    let (daemon, _listener) = start(lab, &yaml("hello: 500ms", "", ""))?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::naming(NAME)?[..20])?;
    ensure!(tcp::read_to_end(&mut client)?.0.is_empty());
    wait_closed(&daemon, "hello_timeout")
}

fn connect(lab: &Lab) -> Result<()> {
    let yaml = flow::yaml_with(&[&format!("{BLACKHOLE}:9000")], "")
        .replace("name: www", "name: www\n    timeouts: {connect: 300ms}");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::naming(NAME)?)?;
    tcp::read_to_end(&mut client)?;
    wait_closed(&daemon, "connect_timeout")
}

/// Minutes until the next probe of the sockets of the daemon's namespace with this remote or local port.
fn probes(lab: &Lab, filter: &str) -> Result<Vec<u64>> {
    let said =
        process::run(&lab.lb, Command::new("ss").args(["-tnoH", "state", "established", filter]))?.ok()?;
    let timers =
        said.stdout.lines().filter_map(|line| line.split("timer:(keepalive,").nth(1)?.split("min").next());
    Ok(timers.filter_map(|minutes| minutes.parse().ok()).collect())
}

fn keepalive(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("snisplice.yaml");
    let (daemon, listener) = start(lab, &yaml("keepalive: 4h", "", "keepalive: 2h"))?;
    let mut flow = carried(lab, &listener)?;
    let between = |hours: u64| move |minutes: &u64| (hours * 60 - 10..=hours * 60).contains(minutes);
    let has = |filter: &str, hours: u64| Ok(probes(lab, filter)?.iter().any(between(hours)));
    wait::until_true("the client is probed by the listener's rule", || has("sport = :8443", 4))?;
    wait::until_true("the endpoint is probed by the backend's rule", || has("dport = :9000", 2))?;
    // Sockets that stay open get the new value for new clients.
    fs::write(&file, yaml("keepalive: 6h", "", "keepalive: 2h"))?;
    daemon.process().signal(nix::sys::signal::Signal::SIGHUP)?;
    daemon.wait_metrics("the configuration is read again", |metrics| {
        metrics.sum("snisplice_config_generation", &[]) == 2
    })?;
    let mut later = carried(lab, &listener)?;
    wait::until_true("the later client is probed by the new rule", || has("sport = :8443", 6))?;
    wait::until_true("the earlier client keeps its rule", || has("sport = :8443", 4))?;
    flow.exchange()?;
    later.exchange()
}
