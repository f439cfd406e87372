//! Persistent flows: they continue while no process runs, and the next process ends them.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    kernel::{self, Map},
    lab::Lab,
    netns::{BACKEND_V6, LB, LB_V6},
    process::run,
    stream::{self, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::{
    flow::{self, Flow},
    packet,
};

pub(crate) const CASES: &[Case] = &[
    Case::packet("persistence::flows_go_on_without_a_process_and_with_the_next", flows_go_on),
    Case::packet("persistence::killed_time_and_again", killed_time_and_again),
    Case::packet("persistence::ipv6", ipv6),
    Case::packet("persistence::a_flow_that_was_copied_first", copied_first),
    Case::packet("persistence::an_idle_flow_of_an_earlier_process_is_reset", idle),
    Case::packet("persistence::an_adopted_connection_has_the_limits_of_its_backend", idle_of_its_backend),
    Case::packet("persistence::a_peer_that_vanished_is_noticed", vanished),
    Case::packet("persistence::peers_that_never_answer_are_not_taken_for_lost", unanswered),
    Case::packet("persistence::what_is_not_delivered_is_no_persistent_flow", unsettled),
    Case::packet("persistence::an_orderly_stop_leaves_nothing", |lab| stopped(lab, false)),
    Case::packet("persistence::an_orderly_stop_ends_flows_of_an_earlier_process", |lab| stopped(lab, true)),
    Case::packet("persistence::asked_twice_to_stop", asked_twice),
    Case::packet("persistence::what_a_namespace_has_left_that_is_gone", namespace_gone),
    Case::packet("persistence::the_next_one_does_not_want_them", |lab| {
        ended_by(lab, "limits: {connections: 64}\n")
    }),
    Case::packet("persistence::maps_of_another_size", |lab| {
        ended_by(lab, "flows: {persist: true}\nlimits: {connections: 65}\n")
    }),
];

const FLOWS: usize = 20;

/// The settings of persistence. With few slots, so that a scan of the maps is fast.
pub(crate) const SETTINGS: &str = "flows: {persist: true}\nlimits: {connections: 64}\n";

/// The mode of a flow that outlives the process.
const KEPT: u64 = 4;

/// Bytes that every direction moves in each phase.
const ENOUGH: u64 = 50_000;

fn start<'lab>(lab: &'lab Lab, more: &str) -> Result<(Daemon<'lab>, TcpListener)> {
    flow::start(lab, &format!("{SETTINGS}{more}"))
}

fn again<'lab>(lab: &'lab Lab, more: &str) -> Result<Daemon<'lab>> {
    Daemon::start(lab, &Options::yaml(lab, &flow::yaml(&format!("{SETTINGS}{more}")))?)
}

pub(crate) fn kill(mut daemon: Daemon<'_>) -> Result<()> {
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.wait()?;
    Ok(())
}

pub(crate) fn map(daemon: &Daemon<'_>, name: &str) -> Result<Map> {
    let maps = Map::held_by(daemon.process().pid())?;
    maps.into_iter().find(|map| map.name == name).with_context(|| format!("there is no {name}"))
}

/// Waits until this number of flows outlives the process.
pub(crate) fn wait_kept(daemon: &Daemon<'_>, flows: usize) -> Result<()> {
    let rules = map(daemon, "SNI_RULES")?;
    wait::until_true("the flows are kept", || {
        let elements = rules.elements()?;
        let modes = elements.iter().map(|element| element["formatted"]["value"]["mode"].as_u64());
        Ok(modes.filter(|mode| *mode == Some(KEPT)).count() == flows)
    })
}

/// Directories of this lab's balancer in bpffs.
fn pins(lab: &Lab) -> Result<Vec<String>> {
    let netns = lab.lb.enter(|| Ok(fs::metadata("/proc/thread-self/ns/net")?.ino()))?;
    let suffix = format!("-{netns}");
    let entries = fs::read_dir(kernel::PINS).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.ends_with(&suffix)).collect())
}

/// Stops the daemon, which leaves nothing behind.
pub(crate) fn stop(lab: &Lab, mut daemon: Daemon<'_>) -> Result<()> {
    let programs = kernel::attached_by(daemon.process().pid())?;
    ensure!(programs.len() == 4, "attached are {programs:?}");
    daemon.terminate()?;
    ensure!(daemon.wait()?.success());
    nothing_is_left(lab, &programs)
}

fn nothing_is_left(lab: &Lab, programs: &[u32]) -> Result<()> {
    ensure!(pins(lab)?.is_empty(), "pins are left: {:?}", pins(lab)?);
    wait::until_true("the programs are gone", || Ok(!programs.iter().any(|id| kernel::has_program(*id))))?;
    wait::until_true("the sockets are gone", || Ok(kernel::sockets(&lab.lb, 1)? == 0))
}

/// Bytes in one direction, until stopped.
pub(crate) struct Traffic {
    pattern: Pattern,
    stop: AtomicBool,
    pub(crate) received: AtomicU64,
    /// The total number of bytes, once it is known.
    total: AtomicU64,
}

impl Traffic {
    fn new(seed: u64) -> Self {
        Self {
            pattern: Pattern::new(seed),
            stop: AtomicBool::new(false),
            received: AtomicU64::new(0),
            total: AtomicU64::new(u64::MAX),
        }
    }

    fn send(&self, mut to: &TcpStream) -> Result<()> {
        let mut position = 0;
        while !self.stop.load(Relaxed) {
            let bytes = self.pattern.at(position, 1_024);
            to.write_all(bytes).with_context(|| format!("sending at position {position}"))?;
            position += bytes.len() as u64;
            thread::sleep(Duration::from_millis(2));
        }
        self.total.store(position, Relaxed);
        Ok(())
    }

    fn receive(&self, from: &TcpStream) -> Result<()> {
        from.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = vec![0; 64 * 1024];
        let (mut position, mut last) = (0, Instant::now());
        while position != self.total.load(Relaxed) {
            match stream::read(from, &mut buffer) {
                Ok(0) => bail!("ended at position {position}"),
                Ok(count) => {
                    self.pattern.check(position, &buffer[..count])?;
                    position += count as u64;
                    self.received.store(position, Relaxed);
                    last = Instant::now();
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    ensure!(last.elapsed() < wait::DEADLINE, "nothing comes at position {position}");
                }
                Err(error) => bail!("receiving at position {position}: {error}"),
            }
        }
        from.set_read_timeout(Some(wait::DEADLINE))?;
        Ok(())
    }
}

/// Waits until every direction has moved more bytes.
pub(crate) fn moved(what: &str, traffic: &[[Traffic; 2]]) -> Result<()> {
    let now = || traffic.iter().flatten().map(|way| way.received.load(Relaxed)).collect::<Vec<_>>();
    let before = now();
    wait::until_true(what, || Ok(now().iter().zip(&before).all(|(now, before)| *now >= before + ENOUGH)))
}

/// Runs `scenario` while each flow has bytes in both directions. All bytes arrive.
pub(crate) fn under_traffic(
    flows: &[Flow],
    scenario: impl FnOnce(&[[Traffic; 2]]) -> Result<()>,
) -> Result<[u64; 2]> {
    let traffic: Vec<_> =
        (0..flows.len() as u64).map(|flow| [2 * flow, 2 * flow + 1].map(Traffic::new)).collect();
    thread::scope(|scope| {
        let mut tasks = Vec::new();
        for (Flow { client, backend }, [up, down]) in flows.iter().zip(&traffic) {
            tasks.push(scope.spawn(|| up.send(client).context("client")));
            tasks.push(scope.spawn(|| up.receive(backend).context("backend")));
            tasks.push(scope.spawn(|| down.send(backend).context("backend")));
            tasks.push(scope.spawn(|| down.receive(client).context("client")));
        }
        let done = scenario(&traffic);
        for way in traffic.iter().flatten() {
            way.stop.store(true, Relaxed);
        }
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))?;
        done
    })?;
    let sum = |way: usize| traffic.iter().map(|ways| ways[way].received.load(Relaxed)).sum();
    Ok([sum(0), sum(1)])
}

/// Ends flows in three ways. Both peers see each end unchanged.
pub(crate) fn end(flows: Vec<Flow>) -> Result<[i64; 3]> {
    let mut ended = [0; 3];
    for (number, Flow { mut client, mut backend }) in flows.into_iter().enumerate() {
        ended[number % 3] += 1;
        match number % 3 {
            0 => {
                client.write_all(b"last")?;
                client.shutdown(Shutdown::Write)?;
                ensure!(tcp::read_to_end(&mut backend)? == (b"last".to_vec(), Ending::Eof));
                backend.write_all(b"word")?;
                drop(backend);
                ensure!(tcp::read_to_end(&mut client)? == (b"word".to_vec(), Ending::Eof));
            }
            1 => {
                tcp::reset(client)?;
                ensure!(tcp::read_to_end(&mut backend)? == (Vec::new(), Ending::Reset));
            }
            _ => {
                tcp::reset(backend)?;
                ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Reset));
            }
        }
    }
    Ok(ended)
}

/// Waits until neither client nor backend wait for an acknowledgement, which may be delayed (RFC 1122, 4.2.3.2):
/// unacknowledged bytes of a reset connection are not counted.
pub(crate) fn wait_acknowledged(lab: &Lab) -> Result<()> {
    wait::until_true("everything is acknowledged", || {
        for netns in [&lab.client, &lab.backend] {
            let said = run(netns, Command::new("ss").args(["-Htn", "state", "established"]))?.ok()?;
            // The second column is the number of unacknowledged bytes.
            if !said.stdout.lines().all(|line| line.split_whitespace().nth(1) == Some("0")) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

fn flows_go_on(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab, "")?;
    let flows: Vec<_> = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect::<Result<_>>()?;
    let mut killed = Some(daemon);
    let mut next = None;
    let [up, down] = under_traffic(&flows, |traffic| {
        if let Some(daemon) = killed.take() {
            wait_kept(&daemon, FLOWS)?;
            kill(daemon)?;
        }
        moved("bytes move while nobody serves", traffic)?;
        next = Some(again(lab, "")?);
        moved("bytes move while the next one serves", traffic)?;
        // A held port is not available to new connections.
        wait::until_true("the ports are held", || Ok(kernel::sockets(&lab.lb, 1)? >= 2 * FLOWS))?;
        // Each new connection takes a port that is not in use.
        for _ in 0..FLOWS {
            Flow::open(lab, &listener)?.exchange()?;
        }
        moved("bytes move beside other connections", traffic)
    })?;
    let daemon = next.context("the next one serves")?;
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_packet_adopted_total", &[]) == i64::try_from(FLOWS)?, "{metrics:?}");
    wait_acknowledged(lab)?;
    let [finished, client_reset, backend_reset] = end(flows)?;
    let metrics = daemon
        .wait_metrics("all have ended", |metrics| metrics.sum("snisplice_connections_active", &[]) == 0)?;
    for (reason, count) in
        [("finished", finished), ("client_reset", client_reset), ("backend_reset", backend_reset)]
    {
        let closed = [("listener", "none"), ("datapath", "packet"), ("reason", reason)];
        let found = metrics.sum("snisplice_connections_closed_total", &closed);
        ensure!(found == count, "{found} instead of {count}: {reason}");
    }
    // The hello may have been delivered before the flow began.
    let hellos = hello::naming(flow::NAME)?.len() * FLOWS;
    for (direction, bytes, more) in [("up", up, hellos), ("down", down, 0)] {
        let labels = [("route", "none"), ("datapath", "packet"), ("direction", direction)];
        let counted = u64::try_from(metrics.sum("snisplice_bytes_total", &labels))?;
        let last = 4 * u64::try_from(finished)?;
        let range = bytes + last..=bytes + last + more as u64;
        ensure!(range.contains(&counted), "{counted} bytes counted {direction}, {range:?} were sent");
    }
    let tuples = map(&daemon, "SNI_TUPLES")?;
    wait::until_true("no addresses are left", || Ok(tuples.elements()?.is_empty()))?;
    stop(lab, daemon)
}

/// Every process adopts the flows that the previous one has adopted, and those that it has begun.
fn killed_time_and_again(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = start(lab, "")?;
    let mut flows = Vec::new();
    for generation in 1..=3 {
        let mut flow = Flow::open(lab, &listener)?;
        flow.exchange()?;
        flows.push(flow);
        wait_kept(&daemon, generation)?;
        kill(daemon)?;
        flows.iter_mut().try_for_each(Flow::exchange)?;
        daemon = again(lab, "")?;
        flows.iter_mut().try_for_each(Flow::exchange)?;
    }
    end(flows)?;
    daemon.wait_metrics("all have ended", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("listener", "none")]) == 3
    })?;
    stop(lab, daemon)
}

/// With `auto`, a flow begins in mid-stream.
fn copied_first(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml(&format!("{SETTINGS}offload: {{after_messages: 2}}\n"));
    let options = Options::yaml(lab, &yaml)?.datapath("auto");
    let daemon = Daemon::start(lab, &options)?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..10 {
        flow.exchange()?;
    }
    wait_kept(&daemon, 1)?;
    kill(daemon)?;
    flow.exchange()?;
    let daemon = Daemon::start(lab, &options)?;
    flow.exchange()?;
    end(vec![flow])?;
    closed(&daemon, "finished")?;
    stop(lab, daemon)
}

fn ipv6(lab: &Lab) -> Result<()> {
    let listener = tcp::listen(&lab.backend, &format!("[{BACKEND_V6}]:9000"))?;
    let yaml = flow::yaml_with(&[&format!("[{BACKEND_V6}]:9000")], SETTINGS).replace("0.0.0.0", "[::]");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let first = hello::naming(flow::NAME)?;
    let open = || -> Result<Flow> {
        let mut client = tcp::connect(&lab.client, &flow::front().replace(LB, &format!("[{LB_V6}]")))?;
        client.write_all(&first)?;
        let mut backend = tcp::accept(&listener)?;
        ensure!(tcp::read_exact(&mut backend, first.len())? == first);
        Ok(Flow { client, backend })
    };
    let mut flows: Vec<_> = (0..3).map(|_| open()).collect::<Result<_>>()?;
    wait_kept(&daemon, flows.len())?;
    kill(daemon)?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    flows.iter_mut().try_for_each(Flow::exchange)?;
    open()?.exchange()?;
    end(flows)?;
    stop(lab, daemon)
}

/// A flow that a second process has adopted from a first one.
fn adopted_flow<'lab>(lab: &'lab Lab, more: &str) -> Result<(Daemon<'lab>, Flow)> {
    let (daemon, mut flow) = silent_flow(lab, more)?;
    flow.exchange()?;
    Ok((daemon, flow))
}

/// A flow like that of [`adopted_flow`], without a packet of its peers since the kill of the earlier process.
fn silent_flow<'lab>(lab: &'lab Lab, more: &str) -> Result<(Daemon<'lab>, Flow)> {
    let (daemon, listener) = start(lab, more)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    wait_kept(&daemon, 1)?;
    kill(daemon)?;
    Ok((again(lab, more)?, flow))
}

fn are_reset(Flow { mut client, mut backend }: Flow) -> Result<()> {
    ensure!(tcp::read_to_end(&mut client).context("client")? == (Vec::new(), Ending::Reset));
    ensure!(tcp::read_to_end(&mut backend).context("backend")? == (Vec::new(), Ending::Reset));
    Ok(())
}

fn closed(daemon: &Daemon<'_>, reason: &str) -> Result<()> {
    daemon.wait_metrics(reason, |metrics| {
        let closed = [("listener", "none"), ("reason", reason)];
        metrics.sum("snisplice_connections_closed_total", &closed) == 1
            && metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    Ok(())
}

fn idle(lab: &Lab) -> Result<()> {
    let (daemon, flow) = adopted_flow(lab, "timeouts: {idle: 4s}\n")?;
    are_reset(flow)?;
    closed(&daemon, "idle_timeout")?;
    stop(lab, daemon)
}

/// The addresses identify the backend of an adopted connection.
fn idle_of_its_backend(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    wait_kept(&daemon, 1)?;
    kill(daemon)?;
    let yaml = flow::yaml(SETTINGS).replace("- name: pool", "- name: pool\n    timeouts: {idle: 4s}");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    are_reset(flow)?;
    closed(&daemon, "idle_timeout")?;
    stop(lab, daemon)
}

fn vanished(lab: &Lab) -> Result<()> {
    let (daemon, flow) = adopted_flow(lab, "timeouts: {keepalive: 1s}\n")?;
    // The probes get replies: no reachable peer is taken for lost.
    let passed = || -> Result<i64> { Ok(daemon.metrics()?.sum("snisplice_packet_own_passed_total", &[])) };
    let before = passed()?;
    wait::until_true("peers are asked more often than they may be silent", || Ok(passed()? >= before + 20))?;
    ensure!(daemon.metrics()?.sum("snisplice_connections_closed_total", &[]) == 0);
    let Flow { client: _client, mut backend } = flow;
    lab.client.unplug()?;
    ensure!(tcp::read_to_end(&mut backend)? == (Vec::new(), Ending::Reset));
    closed(&daemon, "client_lost")?;
    stop(lab, daemon)
}

/// Some systems ignore packets without timestamps, and the probes of adopted flows have none.
fn unanswered(lab: &Lab) -> Result<()> {
    for netns in [&lab.client, &lab.backend] {
        packet::nft(
            netns,
            "table inet strict {\n chain in {\n type filter hook input priority 0;\n \
             tcp flags & (rst | ack) == ack tcp option timestamp missing drop\n }\n }",
        )?;
    }
    // Packets between the peers after the first probe would count as a reply.
    let (daemon, mut flow) = silent_flow(lab, "timeouts: {keepalive: 1s}\n")?;
    let asked = || -> Result<i64> { Ok(daemon.metrics()?.sum("snisplice_packet_own_passed_total", &[])) };
    wait::until_true("both are asked until nobody would wait any longer", || Ok(asked()? >= 12))?;
    wait::settled(Duration::from_secs(4), asked)?;
    flow.exchange()?;
    ensure!(daemon.metrics()?.sum("snisplice_connections_closed_total", &[]) == 0);
    wait::until_true("the ports are held", || Ok(kernel::sockets(&lab.lb, 1)? >= 2))?;
    end(vec![flow])?;
    closed(&daemon, "finished")?;
    stop(lab, daemon)
}

/// A deleted network namespace has no next process. A process that starts in another one removes its pins. Pins for
/// existing devices stay.
fn namespace_gone(lab: &Lab) -> Result<()> {
    let killed = |lab: &Lab| -> Result<Vec<PathBuf>> {
        let (daemon, listener) = start(lab, "")?;
        let mut flow = Flow::open(lab, &listener)?;
        flow.exchange()?;
        wait_kept(&daemon, 1)?;
        kill(daemon)?;
        Ok(pins(lab)?.into_iter().map(|name| Path::new(kernel::PINS).join(name)).collect())
    };
    let (gone, alive) = (Lab::new(lab.datapath)?, Lab::new(lab.datapath)?);
    // The namespace exists until its last socket closes: the sockets of the killed process retransmit their FIN.
    gone.lb.sysctl("net/ipv4/tcp_orphan_retries", "1")?;
    let (left, kept) = (killed(&gone)?, killed(&alive)?);
    ensure!(left.len() == 1 && kept.len() == 1, "{left:?} and {kept:?}");
    drop(gone);
    wait::until_true("what it has left is removed", || {
        let mut daemon = again(lab, "")?;
        daemon.terminate()?;
        ensure!(daemon.wait()?.success() && kept[0].exists());
        Ok(!left[0].exists())
    })?;
    let daemon = again(&alive, "")?;
    stop(&alive, daemon)
}

/// If the balancer's sockets have bytes left to deliver, no other process could deliver them.
fn unsettled(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    kill(daemon)?;
    // On a slow machine, the flow may already be persistent.
    let mut bytes = [0; 1];
    flow.client.set_read_timeout(Some(Duration::from_secs(2)))?;
    match stream::read(&flow.client, &mut bytes) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
            ensure!(tcp::read_to_end(&mut flow.backend)? == (Vec::new(), Ending::Reset));
        }
        _ => flow.exchange()?,
    }
    let daemon = again(lab, "")?;
    Flow::open(lab, &listener)?.exchange()?;
    stop(lab, daemon)
}

fn stopped(lab: &Lab, left_alone: bool) -> Result<()> {
    const DRAIN: &str = "timeouts: {drain: 1s}\n";
    let (daemon, flow) = if left_alone {
        adopted_flow(lab, DRAIN)?
    } else {
        let (daemon, listener) = start(lab, DRAIN)?;
        let flow = Flow::open(lab, &listener)?;
        wait_kept(&daemon, 1)?;
        (daemon, flow)
    };
    ensure!(pins(lab)?.len() == 1);
    stop(lab, daemon)?;
    are_reset(flow)
}

/// A second stop ends all flows.
fn asked_twice(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = start(lab, "")?;
    let flow = Flow::open(lab, &listener)?;
    wait_kept(&daemon, 1)?;
    let programs = kernel::attached_by(daemon.process().pid())?;
    daemon.terminate()?;
    wait::until_true("it is stopping", || Ok(!daemon.is_ready()?))?;
    daemon.terminate()?;
    daemon.wait()?;
    are_reset(flow)?;
    nothing_is_left(lab, &programs)
}

/// A process with other settings ends the flows of the previous one.
fn ended_by(lab: &Lab, settings: &str) -> Result<()> {
    let (daemon, listener) = start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    wait_kept(&daemon, 1)?;
    let programs = kernel::attached_by(daemon.process().pid())?;
    kill(daemon)?;
    flow.exchange()?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(settings))?)?;
    wait::until_true("the programs are gone", || Ok(!programs.iter().any(|id| kernel::has_program(*id))))?;
    // Each peer gets a reset for its next packet.
    (&flow.client).write_all(b"question")?;
    (&flow.backend).write_all(b"answer")?;
    are_reset(flow)?;
    Flow::open(lab, &listener)?.exchange()?;
    stop(lab, daemon)
}
