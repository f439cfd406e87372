//! The life of the daemon: a stop that cuts no connection short, and a reload without an effect on clients.

use std::{fs, io::ErrorKind, io::Write as _, net::SocketAddr, os::unix::net::UnixDatagram};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::{
        signal::{self, Signal},
        time::TimeValLike as _,
    },
    time::{ClockId, clock_gettime},
};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("lifecycle::hangups_at_every_moment", hangups),
    Case::each("lifecycle::only_a_second_stop_ends_a_drain", second_stop),
    Case::once("lifecycle::a_reload_and_a_stop_at_once", reload_and_stop),
    Case::once("lifecycle::a_stop_while_starting", stop_while_starting),
    Case::once("lifecycle::other_signals_mean_nothing", other_signals),
    Case::once("lifecycle::the_service_manager_is_told", service_manager),
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

/// The plain configuration with another name.
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
    // The log names the file and the field.
    daemon.wait_log("routes.yaml")?;
    daemon.wait_log("surprise")
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
    // Its connections end with it, on both sides.
    tcp::read_to_end(&mut flow.client)?;
    tcp::read_to_end(&mut flow.backend)?;
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?)?;
    Flow::open(lab, &listener)?.exchange()
}

fn auto_takes_the_kernel_where_it_can(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?.datapath("auto"))?;
    ensure!(daemon.serves_with("auto")?);
    Flow::open(lab, &listener)?.exchange()
}

/// The relay serves connections during the probes of the kernel, and the same connections are offloaded later.
fn it_serves_before_the_kernel_is_known(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    // A user who cannot write the file stores no results, so the start must wait for the probes.
    let options =
        Options::yaml(lab, &flow::yaml("offload: {after_messages: 2}\n"))?.datapath("auto").in_a_container();
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
        daemon
            .ask("GET", &format!("/connections?datapath={carrier}"))
            .map(|(_, list)| list.contains("\"id\""))
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

/// The second start since boot uses the results of the first one at once.
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
        log.lines().any(|line| line.contains("WARN") && line.contains("relayed in userspace")),
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
    ensure!(
        text.contains("the datapath packet does not work here") && text.contains("packet programs"),
        "{text}"
    );
    Ok(())
}

/// Namespaces for the packet probes cannot be created, which is no evidence against the kernel.
fn untried(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?.in_a_container())?;
    let log = daemon.process().log()?;
    let told = |line: &str| line.contains("a probe could not run") && line.contains("network namespace");
    ensure!(log.lines().any(told), "the reason is not logged: {log}");
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    ensure!(daemon.metrics()?.sum("snisplice_packet_flows_total", &[]) == 1);
    Ok(())
}

/// SIGHUP only requests a reload, also during the start and during a drain.
fn hangups(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let mut daemon =
        Daemon::spawn(lab, &Options::yaml(lab, &flow::yaml("timeouts: {drain: 60s}\n"))?, "snisplice")?;
    wait::until_true("it hears signals", || catches(daemon.process().pid(), Signal::SIGHUP))?;
    let mut hangups = 0;
    wait::until_true("it serves, whatever comes meanwhile", || {
        daemon.process().signal(Signal::SIGHUP)?;
        hangups += 1;
        ensure!(daemon.process().is_running(), "{}", daemon.process().log()?);
        Ok(daemon.is_ready().unwrap_or(false))
    })?;
    daemon.wait_metrics("the configuration was read again", |metrics| {
        metrics.sum("snisplice_config_generation", &[]) >= 2
    })?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    daemon.terminate()?;
    daemon.wait_log("stopping")?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_log("not read again")?;
    for _ in 0..20 {
        daemon.process().signal(Signal::SIGHUP)?;
        flow.exchange()?;
    }
    drop(flow);
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status} after {hangups} hangups");
    Ok(())
}

/// Whether a process has a handler for the signal.
fn catches(pid: u32, signal: Signal) -> Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("no such line")?;
    Ok(u64::from_str_radix(caught.trim(), 16)? & (1 << (signal as u32 - 1)) != 0)
}

/// A second stop ends the process without waiting, and is no failure.
fn second_stop(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "timeouts: {drain: 1h}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    daemon.terminate()?;
    daemon.wait_log("stopping")?;
    flow.exchange()?;
    wait::until_true("it ends", || {
        daemon.terminate()?;
        Ok(!daemon.process().is_running())
    })?;
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    tcp::read_to_end(&mut flow.client)?;
    tcp::read_to_end(&mut flow.backend)?;
    Ok(())
}

/// In any order the signals make at most one reload, and one stop.
fn reload_and_stop(lab: &Lab) -> Result<()> {
    for _ in 0..5 {
        for order in [[Signal::SIGHUP, Signal::SIGTERM], [Signal::SIGTERM, Signal::SIGHUP]] {
            let (mut daemon, listener) = flow::start(lab, "timeouts: {drain: 60s}\n")?;
            let mut flow = Flow::open(lab, &listener)?;
            flow.exchange()?;
            for signal in order {
                daemon.process().signal(signal)?;
            }
            daemon.wait_log("stopping")?;
            for _ in 0..20 {
                flow.exchange()?;
            }
            drop(flow);
            let status = daemon.wait()?;
            ensure!(status.code() == Some(0), "{order:?}: {status}");
            fs::remove_file(lab.dir().join("snisplice.log"))?;
        }
    }
    Ok(())
}

/// No connection is served yet, so the process does not wait.
fn stop_while_starting(lab: &Lab) -> Result<()> {
    let options = Options::yaml(lab, &flow::yaml(""))?;
    let mut daemon = Daemon::spawn(lab, &options, "snisplice")?;
    wait::until_true("it hears signals", || catches(daemon.process().pid(), Signal::SIGTERM))?;
    daemon.terminate()?;
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

fn other_signals(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGPIPE,
        Signal::SIGXFSZ,
    ] {
        daemon.process().signal(signal)?;
        flow.exchange()?;
    }
    daemon.wait_log("means nothing here")?;
    ensure!(daemon.process().is_running());
    drop(flow);
    daemon.terminate()?;
    let status = daemon.wait()?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

/// The protocol of `sd_notify(3)` and systemd.service(5) (`Type=notify-reload`).
fn service_manager(lab: &Lab) -> Result<()> {
    let path = lab.dir().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(wait::DEADLINE))?;
    let heard = || -> Result<String> {
        let mut message = [0; 4_096];
        let count = loop {
            match manager.recv(&mut message) {
                // With a time limit, the kernel restarts no call after a signal (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        Ok(String::from_utf8(message[..count].to_vec())?)
    };
    let options = Options::yaml(lab, &flow::yaml(""))?.env("NOTIFY_SOCKET", &path);
    let mut daemon = Daemon::start(lab, &options)?;
    let message = heard()?;
    ensure!(message.lines().any(|line| line == "READY=1"), "{message}");
    for yaml in [flow::yaml(""), flow::yaml("surprise: 1\n")] {
        let before = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        Options::yaml(lab, &yaml)?;
        daemon.process().signal(Signal::SIGHUP)?;
        let message = heard()?;
        ensure!(message.lines().any(|line| line == "RELOADING=1"), "{message}");
        let moment =
            message.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).context("no moment")?;
        ensure!(moment.parse::<i64>()? >= before.num_microseconds(), "{message}");
        let message = heard()?;
        ensure!(message.lines().any(|line| line == "READY=1"), "{message}");
        ensure!(message.contains("has errors") == yaml.contains("surprise"), "{message}");
    }
    daemon.terminate()?;
    let message = heard()?;
    ensure!(message.lines().any(|line| line == "STOPPING=1"), "{message}");
    ensure!(daemon.wait()?.success());
    Ok(())
}
