//! The daemon's own life: stopping without cutting anything short, and reloading without anyone noticing.

use std::{fs, io::ErrorKind, io::Write as _, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{self, Signal};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("lifecycle::drain_lets_connections_finish", drain_lets_connections_finish),
    Case::each("lifecycle::drain_ends_at_its_deadline", drain_ends_at_its_deadline),
    Case::each("lifecycle::an_idle_daemon_stops_at_once", an_idle_daemon_stops_at_once),
    Case::each("lifecycle::reload_changes_routes_and_no_connection", reload_changes_routes_and_no_connection),
    Case::once("lifecycle::reload_opens_and_closes_listeners", reload_opens_and_closes_listeners),
    Case::each("lifecycle::a_killed_daemon_can_be_started_again", a_killed_daemon_can_be_started_again),
    Case::sockmap("lifecycle::auto_takes_the_kernel_where_it_can", auto_takes_the_kernel_where_it_can),
    Case::packet("lifecycle::it_serves_before_the_kernel_is_known", it_serves_before_the_kernel_is_known),
    Case::sockmap("lifecycle::what_was_found_out_is_remembered", what_was_found_out_is_remembered),
    Case::once("lifecycle::without_privilege_auto_relays", without_privilege_auto_relays),
    Case::once("lifecycle::without_privilege_sockmap_refuses", without_privilege_sockmap_refuses),
    Case::once("lifecycle::without_privilege_packet_refuses", without_privilege_packet_refuses),
    Case::packet("lifecycle::packets_that_could_not_be_tried_are_carried", untried),
    Case::once("lifecycle::a_bad_reload_keeps_the_last_good_configuration", a_bad_reload_keeps_the_last_good),
];

fn drain_lets_connections_finish(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    daemon.terminate()?;
    let front: SocketAddr = flow::front().parse()?;
    wait::until_true("new connections are refused", || {
        let refused = lab.client.enter(|| Ok(std::net::TcpStream::connect(front)))?;
        Ok(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
    })?;
    for _ in 0..3 {
        flow.exchange()?;
    }
    ensure!(daemon.process().is_running(), "the daemon ended before its last connection");
    ensure!(!daemon.is_ready()?, "a draining daemon wants no new connections");
    drop(flow);
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn drain_ends_at_its_deadline(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "timeouts: {drain: 1s}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    daemon.terminate()?;
    let (rest, _) = tcp::read_to_end(&mut flow.client)?;
    ensure!(rest.is_empty());
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn an_idle_daemon_stops_at_once(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "timeouts: {drain: 1h}\n")?;
    Flow::open(lab, &listener)?.exchange()?;
    daemon.terminate()?;
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

/// The plain configuration with its name replaced.
fn serving(name: &str) -> String {
    flow::yaml("").replace(NAME, name)
}

fn reload_changes_routes_and_no_connection(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, serving(NAME))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let mut flow = Flow::open(lab, &listener)?;

    fs::write(&file, serving("new.example.com"))?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("the new configuration serves", |metrics| {
        metrics.sum("snisplice_config_generation", &[]) == 2
    })?;

    flow.exchange()?;
    Flow::open_with(lab, &listener, &hello::naming("new.example.com")?)?.exchange()?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::naming(NAME)?)?;
    ensure!(tcp::read_to_end(&mut client)?.0.is_empty());
    flow.exchange()
}

fn a_bad_reload_keeps_the_last_good(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, serving(NAME))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    fs::write(&file, format!("{}surprise: 1\n", serving("new.example.com")))?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("the bad configuration is refused", |metrics| {
        metrics.sum("snisplice_config_rejected_total", &[]) == 1
    })?;
    Flow::open(lab, &listener)?.exchange()?;
    let log = daemon.process().log()?;
    ensure!(log.contains("routes.yaml") && log.contains("surprise"), "the log names the file and the field");
    Ok(())
}

fn reload_opens_and_closes_listeners(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    fs::write(&file, serving(NAME))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let mut flow = Flow::open(lab, &listener)?;
    fs::write(&file, serving(NAME).replace(":8443", ":8444"))?;
    daemon.process().signal(Signal::SIGHUP)?;
    let (old, new) = (flow::front(), flow::front().replace(":8443", ":8444"));
    wait::until_true("the new port is open and the old one closed", || {
        let connect = |address: &str| tcp::connect(&lab.client, address);
        Ok(connect(&new).is_ok() && connect(&old).is_err())
    })?;
    flow.exchange()
}

fn a_killed_daemon_can_be_started_again(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.wait()?;
    // What it carried ends with it, on both sides.
    tcp::read_to_end(&mut flow.client)?;
    tcp::read_to_end(&mut flow.backend)?;
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?)?;
    Flow::open(lab, &listener)?.exchange()
}

fn auto_takes_the_kernel_where_it_can(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?.datapath("auto"))?;
    ensure!(daemon.serves_with("adaptive")?);
    Flow::open(lab, &listener)?.exchange()
}

/// Connections are relayed while the kernel is tried out, and the very same ones move into the kernel later.
fn it_serves_before_the_kernel_is_known(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    // Nothing is remembered for a user who cannot write the file, so the experiments have to be waited for.
    let options =
        Options::yaml(lab, &flow::yaml("handover: {messages: 2}\n"))?.datapath("auto").in_a_container();
    let mut daemon = Daemon::spawn(lab, &options, "snisplice")?;
    let experiments = wait::until("the experiments begin", || daemon.process().child("probe"))?;
    signal::kill(experiments, Signal::SIGSTOP)?;
    daemon.wait_ready()?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..8 {
        flow.exchange()?;
    }
    ensure!(daemon.ask("GET", "/ready")?.1.contains("probing"), "it does not say that it is probing");
    let carried = |daemon: &Daemon<'_>, carrier: &str| {
        daemon.ask("GET", &format!("/connections?carrier={carrier}")).map(|(_, list)| list.contains("\"id\""))
    };
    ensure!(carried(&daemon, "relay")?, "the connection is not relayed");
    signal::kill(experiments, Signal::SIGCONT)?;
    daemon.wait_settled()?;
    wait::until_true("the kernel carries the connection", || {
        flow.exchange()?;
        Ok(carried(&daemon, "packet")? || carried(&daemon, "sockmap")?)
    })?;
    flow.exchange()
}

/// The second start of a boot knows at once what the first has found out.
fn what_was_found_out_is_remembered(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml(""))?.datapath("auto");
    let mut first = Daemon::start(lab, &options)?;
    first.terminate()?;
    first.wait()?;
    let second = Daemon::start(lab, &options)?;
    let log = second.process().log()?;
    ensure!(log.contains("remembered=true"), "{log}");
    Flow::open(lab, &listener)?.exchange()
}

fn without_privilege_auto_relays(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml(""))?.datapath("auto").unprivileged();
    let daemon = Daemon::start(lab, &options)?;
    ensure!(daemon.serves_with("relay")?);
    let log = daemon.process().log()?;
    ensure!(
        log.lines().any(|line| line.contains("WARN") && line.contains("relaying")),
        "the reason is logged"
    );
    Flow::open(lab, &listener)?.exchange()
}

fn without_privilege_sockmap_refuses(lab: &Lab) -> Result<()> {
    let options = Options::yaml(lab, &flow::yaml(""))?.datapath("sockmap").unprivileged();
    let refused = Daemon::start(lab, &options).err();
    let text = format!("{:#}", refused.context("the daemon started")?);
    ensure!(text.contains("ended early") && text.contains("sockmap"), "{text}");
    Ok(())
}

fn without_privilege_packet_refuses(lab: &Lab) -> Result<()> {
    let options = Options::yaml(lab, &flow::yaml(""))?.datapath("packet").unprivileged();
    let refused = Daemon::start(lab, &options).err();
    let text = format!("{:#}", refused.context("the daemon started")?);
    ensure!(text.contains("datapath packet cannot serve here") && text.contains("packet programs"), "{text}");
    Ok(())
}

/// No namespaces can be made to try packets in, which says nothing about the kernel.
fn untried(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?.in_a_container())?;
    let log = daemon.process().log()?;
    let told = |line: &str| line.contains("could not be tried out") && line.contains("network namespace");
    ensure!(log.lines().any(told), "the reason is not logged: {log}");
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    ensure!(daemon.metrics()?.sum("snisplice_packet_flows_total", &[]) == 1);
    Ok(())
}
