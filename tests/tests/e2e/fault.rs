//! Faults around the daemon: its backend, its descriptors, its memory, itself.

use std::{
    collections::BTreeSet,
    fs,
    net::Shutdown,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    cgroup::Cgroup,
    daemon::{Daemon, Options},
    kernel::{Map, Pinned, Programs},
    lab::{Datapath, Lab},
    netns::BACKEND,
    process::{Process, run},
    stream::{self, Pace, Pattern, Random},
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("fault::backend_killed_in_the_middle", backend_killed_in_the_middle),
    Case::each("fault::no_descriptors_left", no_descriptors_left),
    Case::each("fault::stopped_again_and_again", stopped_again_and_again),
    Case::each("fault::stopped_while_it_starts", stopped_while_it_starts),
    Case::each("fault::interrupted_while_it_asks_the_kernel", interrupted_while_it_asks_the_kernel),
    Case::sockets("fault::little_memory_for_sockets", little_memory_for_sockets),
    Case::sockmap("fault::a_killed_daemon_leaves_nothing", a_killed_daemon_leaves_nothing),
    Case::sockmap("fault::leftovers_of_others_do_not_disturb", leftovers_of_others_do_not_disturb),
];

/// The server's process dies while it sends. The client's connection ends with the sent bytes, and the next one is
/// served.
fn backend_killed_in_the_middle(lab: &Lab) -> Result<()> {
    const SIZE: usize = 64 * 1024 * 1024;
    let body: Vec<u8> = Pattern::new(3).at(0, SIZE).to_vec();
    fs::write(lab.dir().join("big"), body.repeat(SIZE / body.len()))?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?)?;
    let leaf = lab.ca.issue(NAME)?;
    let serve = || {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-WWW", "-accept", &format!("{BACKEND}:9000")]);
        command.arg("-cert").arg(&leaf.certificate).arg("-key").arg(&leaf.key).current_dir(lab.dir());
        let mut server = Process::start(&lab.backend, lab.dir(), "s_server", &mut command)?;
        server.wait_ready(|| tcp::connect(&lab.backend, &format!("{BACKEND}:9000")).is_ok())?;
        anyhow::Ok(server)
    };
    let server = serve()?;
    let (front, out) = (flow::front(), lab.dir().join("out"));
    let (address, port) = front.split_once(':').context("an address")?;
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--limit-rate", "16M"]);
    command.arg("--cacert").arg(lab.ca.file()).arg("--output").arg(&out);
    command.args(["--resolve", &format!("{NAME}:{port}:{address}"), &format!("https://{NAME}:{port}/big")]);
    let mut curl = Process::start(&lab.client, lab.dir(), "curl", &mut command)?;
    let size = || fs::metadata(&out).map_or(0, |out| out.len());
    wait::until_true("the client has some of it", || Ok(size() > 1024 * 1024))?;
    drop(server);
    // curl may or may not report an error: the server sends no length.
    curl.wait()?;
    let (got, sent) = (fs::read(&out)?, fs::read(lab.dir().join("big"))?);
    ensure!(got.len() < sent.len() && sent.starts_with(&got), "{} bytes, and not the first ones", got.len());
    daemon.wait_metrics("the connection is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })?;

    let _server = serve()?;
    let said = snisplice_tests::peers::s_client(lab, NAME, &front, &[])?;
    snisplice_tests::peers::ensure_verified(&said, NAME)
}

/// Without descriptors, accepting pauses and continues afterwards. Open connections are not affected.
fn no_descriptors_left(lab: &Lab) -> Result<()> {
    const MORE: usize = 7;
    const TOO_MANY: usize = 30;
    let (daemon, listener) = flow::start(lab, "")?;
    let mut open = Flow::open(lab, &listener)?;
    open.exchange()?;
    let process = daemon.process();
    let limit = wait::settled(flow::QUIET, || process.descriptors())? + MORE;
    let pid = process.pid().to_string();
    run(&lab.lb, Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}:{limit}")]))?
        .ok()?;

    let waiting: Result<Vec<_>> = (0..TOO_MANY).map(|_| tcp::connect(&lab.client, &flow::front())).collect();
    let waiting = waiting?;
    wait::until_true("the daemon has no descriptor left", || {
        open.exchange()?;
        Ok(process.log()?.contains("cannot accept"))
    })?;
    for _ in 0..100 {
        open.exchange()?;
    }
    drop(waiting);
    // Failed connections hold descriptors for a moment. One descriptor may be left for a client and none for its
    // backend.
    let active = || Ok(daemon.metrics()?.sum("snisplice_connections_active", &[]));
    ensure!(wait::settled(flow::QUIET, active)? == 1, "somebody is there still");
    Flow::open(lab, &listener)?.exchange()?;
    open.exchange()?;
    let refused = daemon.metrics()?.sum("snisplice_accept_errors_total", &[]);
    ensure!(refused > 0, "the failures to accept are not counted");
    Ok(())
}

/// A freezer of cgroups or a debugger stops the process, at any point.
fn stopped_again_and_again(lab: &Lab) -> Result<()> {
    const FLOWS: u64 = 8;
    /// Each part is sent after one further stop.
    const PARTS: usize = 6;
    const PART: u64 = 350_000;
    let (daemon, listener) = flow::start(lab, "")?;
    let flows: Result<Vec<_>> = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect();
    let flows = flows?;
    let patterns: Vec<_> = (0..2).map(Pattern::new).collect();
    let stops = AtomicUsize::new(0);
    let stopped = |times| wait::until_true("it is stopped", || Ok(stops.load(Relaxed) >= times));
    thread::scope(|scope| {
        let tasks: Vec<thread::ScopedJoinHandle<'_, Result<()>>> = flows
            .iter()
            .flat_map(|Flow { client, backend }| {
                [(client, backend, &patterns[0]), (backend, client, &patterns[1])]
            })
            .zip(0..)
            .flat_map(|((from, to, pattern), seed)| {
                let pace = Pace { largest_write: 4 * 1024, pause_every: 2, random: Random::new(seed) };
                [
                    scope.spawn(move || {
                        for part in 0..PARTS {
                            stopped(part)?;
                            stream::send(from, pattern, PART, pace.clone())?;
                        }
                        Ok(from.shutdown(Shutdown::Write)?)
                    }),
                    scope.spawn(move || (0..PARTS).try_for_each(|_| stream::receive(to, pattern, PART))),
                ]
            })
            .collect();
        while !tasks.iter().all(thread::ScopedJoinHandle::is_finished) {
            daemon.process().stop()?;
            // A connection that arrives now waits.
            let late = tcp::connect(&lab.client, &flow::front())?;
            daemon.process().signal(Signal::SIGCONT)?;
            Flow::begin(late, &listener)?.exchange()?;
            stops.fetch_add(1, Relaxed);
        }
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })?;
    drop(flows);
    daemon.wait_metrics("every connection is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    Ok(())
}

/// The verifier aborts (`EAGAIN`) if its thread is interrupted. That is no evidence against the program or the
/// kernel.
fn stopped_while_it_starts(lab: &Lab) -> Result<()> {
    // Longer than the start takes up to this point, and shorter than its retries.
    const RESTLESS: Duration = Duration::from_secs(1);
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start_while(lab, &Options::yaml(lab, &flow::yaml(""))?, |process| {
        let started = Instant::now();
        while started.elapsed() < RESTLESS {
            process.signal(Signal::SIGSTOP)?;
            process.signal(Signal::SIGCONT)?;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?;
    let log = daemon.process().log()?;
    ensure!(!log.contains("datapath packet is not used"), "{log}");
    Flow::open(lab, &listener)?.exchange()
}

/// A signal interrupts each of the first requests to the kernel's BPF. Some then fail with `EAGAIN`. The daemon does not
/// take such a failure for a missing feature: it starts anew, and serves with the datapath.
fn interrupted_while_it_asks_the_kernel(lab: &Lab) -> Result<()> {
    // One start makes 18 requests for features. So the second start is interrupted as well.
    const INTERRUPT: &str = "inject=bpf:signal=SIGCONT:when=1..30";
    let listener = flow::backend(lab)?;
    let trace = lab.dir().join("trace");
    let trace = trace.to_str().context("a path in UTF-8")?;
    // With `-D`, the daemon is the direct child, and strace runs beside it.
    let within = ["strace", "-D", "-f", "-qq", "-o", trace, "-e", "trace=bpf", "-e", INTERRUPT];
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?.within(&within))?;
    Flow::open(lab, &listener)?.exchange()?;
    let loads_programs = lab.datapath != Datapath::Relay;
    let interrupted = fs::read_to_string(trace)?.contains("EAGAIN");
    ensure!(interrupted == loads_programs, "EAGAIN in the trace: {interrupted}");
    drop(daemon);
    Ok(())
}

/// The daemon's sockets may hold only a few megabytes in total: transfers are slow, but every byte arrives.
fn little_memory_for_sockets(lab: &Lab) -> Result<()> {
    const FLOWS: u64 = 16;
    const EACH: u64 = 2 * 1024 * 1024;
    const LIMIT: u64 = 6 * 1024 * 1024;
    let cgroup = Cgroup::new(&lab.lb.to_string())?;
    let (daemon, listener) = flow::start(lab, "")?;
    cgroup.take(daemon.process().pid())?;
    cgroup.limit_sockets(LIMIT)?;
    let flows: Result<Vec<_>> = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect();
    let flows = flows?;
    let patterns: Vec<_> = (0..2).map(Pattern::new).collect();
    thread::scope(|scope| {
        let ways = || {
            flows.iter().flat_map(|Flow { client, backend }| {
                [(client, backend, &patterns[0]), (backend, client, &patterns[1])]
            })
        };
        let senders: Vec<_> = ways()
            .zip(0..)
            .map(|((from, _, pattern), seed)| {
                scope.spawn(move || {
                    stream::send(from, pattern, EACH, Pace::uneven(seed))?;
                    anyhow::Ok(from.shutdown(Shutdown::Write)?)
                })
            })
            .collect();
        // No client reads before the memory is used up.
        let full = wait::until_true("the sockets' memory is used up", || cgroup.is_full());
        let readers: Vec<_> =
            ways().map(|(_, to, pattern)| scope.spawn(move || stream::receive(to, pattern, EACH))).collect();
        full?;
        senders.into_iter().chain(readers).try_for_each(|task| task.join().expect("no task panics"))
    })?;
    drop(flows);
    daemon.wait_metrics("every connection is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "finished")])
            == i64::try_from(FLOWS).unwrap_or(0)
    })?;
    Ok(())
}

/// Nothing is pinned: the kernel releases all of the process's objects, and its ports are free at once.
fn a_killed_daemon_leaves_nothing(lab: &Lab) -> Result<()> {
    let (mut daemon, listener) = flow::start(lab, "")?;
    let mut open = Flow::open(lab, &listener)?;
    open.exchange()?;
    let pid = daemon.process().pid();
    let maps: BTreeSet<_> = Map::held_by(pid)?.into_iter().map(|map| map.id).collect();
    let programs = Programs::held_by(pid)?;
    ensure!(maps.len() >= 6 && !programs.is_empty(), "{} maps, {} programs", maps.len(), programs.len());

    daemon.process().signal(Signal::SIGKILL)?;
    daemon.wait()?;
    tcp::read_to_end(&mut open.client)?;
    tcp::read_to_end(&mut open.backend)?;
    wait::until_true("the kernel has forgotten its maps and its program", || {
        Ok(Map::all()?.is_disjoint(&maps) && Programs::all()?.is_disjoint(&programs))
    })?;
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?)?;
    Flow::open(lab, &listener)?.exchange()
}

/// Another program's maps with the same names as the daemon's, pinned in the usual directory.
fn leftovers_of_others_do_not_disturb(lab: &Lab) -> Result<()> {
    let foreign = ["SNI_FLOWS", "SNI_CONTROL"].map(|name| Pinned::hash(&lab.lb.to_string(), name));
    let (daemon, listener) = flow::start(lab, "")?;
    let mut open = Flow::open(lab, &listener)?;
    open.exchange()?;
    ensure!(
        daemon.metrics()?.sum("snisplice_sockmap_enrolled_total", &[]) == 1,
        "the kernel carries nothing"
    );
    for foreign in foreign {
        let map = foreign?;
        ensure!(map.map.elements()?.is_empty(), "{} of others was written to", map.map.name);
    }
    open.exchange()
}
