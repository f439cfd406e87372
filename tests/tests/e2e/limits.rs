//! The isolation of clients and backends: one client, or one dead backend, cannot exhaust the resources of others.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    metrics::Metrics,
    netns::BLACKHOLE,
    process::run,
    suite::Case,
    tcp::{self, Ending},
    wait,
};
use socket2::{Domain, Socket, Type};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("limits::one_source_leaves_places_to_others", one_source),
    Case::once("limits::a_network_is_one_source_if_that_is_said", one_network),
    Case::each("limits::the_oldest_silent_client_makes_room", silent_clients),
    Case::once("limits::silent_clients_make_room_for_one_that_waits_for_a_place", silent_for_a_place),
    Case::once("limits::ready_tells_that_every_place_is_taken", full),
    Case::once("limits::a_dead_backend_leaves_places_to_others", dead_backend),
    Case::each("limits::connections_to_a_backend_are_bounded", bounded_backend),
    Case::each("limits::who_hears_nothing_is_idle_since_the_hello", nothing_back),
    Case::each("limits::a_side_that_has_sent_fin_is_not_waited_for_for_ever", half_closed),
    Case::once("limits::a_backend_that_is_away_is_told_of_once", away),
    Case::each("limits::a_reload_keeps_sockets_by_their_address", reload_storm),
    Case::once("limits::an_address_that_is_not_here_yet", freebind),
    Case::each("limits::an_address_as_server_name", address_as_name),
];

/// Another address in the client's namespace.
pub(crate) const OTHER_CLIENT: &str = "10.0.1.3";

/// A client with another address.
fn connect_from(lab: &Lab, source: &str) -> Result<TcpStream> {
    connect_between(lab, source, &flow::front())
}

/// A client with this address, of either family, at this address of the daemon.
pub(crate) fn connect_between(lab: &Lab, source: &str, front: &str) -> Result<TcpStream> {
    let source = SocketAddr::new(source.parse()?, 0);
    let front = front.parse::<SocketAddr>()?;
    let stream = lab.client.enter(|| {
        let socket = Socket::new(Domain::for_address(front), Type::STREAM, None)?;
        socket.bind(&source.into())?;
        socket.connect(&front.into())?;
        Ok(TcpStream::from(socket))
    })?;
    stream.set_read_timeout(Some(wait::DEADLINE))?;
    Ok(stream)
}

pub(crate) fn second_address(lab: &Lab) -> Result<()> {
    let add = ["address", "add", &format!("{OTHER_CLIENT}/24"), "dev", "to-lb"];
    run(&lab.client, Command::new("ip").args(add))?.ok()?;
    Ok(())
}

pub(crate) fn refused(metrics: &Metrics, reason: &str) -> i64 {
    metrics.sum("snisplice_limit_refused_total", &[("reason", reason)])
}

/// The number of log lines with this text, once there is one: a separate thread writes the log.
pub(crate) fn lines(daemon: &Daemon<'_>, text: &str) -> Result<usize> {
    daemon.wait_log(text)?;
    Ok(daemon.process().log()?.lines().filter(|line| line.contains(text)).count())
}

/// A source at its limit of connections is refused further ones. Others are served at once, also during repeated
/// attempts.
fn one_source(lab: &Lab) -> Result<()> {
    const PLACES: usize = 40;
    second_address(lab)?;
    let (daemon, listener) = flow::start(lab, &format!("limits: {{connections: {PLACES}}}\n"))?;
    let held: Result<Vec<_>> = (0..PLACES / 2).map(|_| Flow::open(lab, &listener)).collect();
    let mut held = held?;
    let stop = AtomicBool::new(false);
    let _others = thread::scope(|scope| {
        let greedy = scope.spawn(|| {
            while !stop.load(Relaxed) {
                let mut client = tcp::connect(&lab.client, &flow::front())?;
                let end = tcp::send_and_read_to_end(&mut client, &hello::naming(NAME)?)?;
                ensure!(end == (Vec::new(), Ending::Reset), "{end:?}");
            }
            anyhow::Ok(())
        });
        let others = (0..PLACES / 2).map(|_| {
            let mut flow = Flow::begin(connect_from(lab, OTHER_CLIENT)?, &listener)?;
            flow.exchange()?;
            Ok(flow)
        });
        let others: Result<Vec<_>> = others.collect();
        stop.store(true, Relaxed);
        greedy.join().expect("the greedy client does not panic")?;
        others
    })?;
    let metrics = daemon.wait_metrics("what was refused is counted", |metrics| {
        refused(metrics, "source_limit") > 0
            && metrics.sum("snisplice_connections_closed_total", &[("reason", "source_limit")])
                == refused(metrics, "source_limit")
    })?;
    ensure!(metrics.sum("snisplice_limit", &[("limit", "connections_per_source")]) == 20);
    ensure!(lines(&daemon, "limits.connections_per_source")? == 1, "one line tells of it");
    // Open connections are not affected, and a closed one frees its slot.
    held[0].exchange()?;
    held.pop();
    daemon.wait_metrics("one of them has left", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == i64::try_from(PLACES).unwrap_or(0) - 1
    })?;
    Flow::open(lab, &listener)?.exchange()
}

fn one_network(lab: &Lab) -> Result<()> {
    second_address(lab)?;
    let limits = "limits: {connections_per_source: 1, source_prefix_ipv4: 24}\n";
    let (daemon, listener) = flow::start(lab, limits)?;
    let mut first = Flow::open(lab, &listener)?;
    let mut second = connect_from(lab, OTHER_CLIENT)?;
    ensure!(tcp::send_and_read_to_end(&mut second, &hello::naming(NAME)?)?.1 == Ending::Reset);
    first.exchange()?;
    daemon.wait_log("10.0.1.0/24")
}

/// Many clients send nothing, or half a hello. Each new client evicts one of them.
fn silent_clients(lab: &Lab) -> Result<()> {
    const HELLOS: usize = 8;
    let more = format!("limits: {{hellos: {HELLOS}, hellos_per_source: none}}\ntimeouts: {{hello: 1h}}\n");
    let (daemon, listener) = flow::start(lab, &more)?;
    let half = hello::naming(NAME)?[..50].to_vec();
    let mut half_said: Vec<_> = (0..HELLOS)
        .map(|_| {
            let mut client = tcp::connect(&lab.client, &flow::front())?;
            client.write_all(&half)?;
            Ok(client)
        })
        .collect::<Result<_>>()?;
    let used = |metrics: &Metrics| metrics.sum("snisplice_limit_used", &[("limit", "hellos")]);
    let as_many = i64::try_from(HELLOS)?;
    daemon.wait_metrics("all of them are waited for", |metrics| used(metrics) == as_many)?;
    // A client whose hello arrives in pieces is served although all slots are taken.
    let whole = hello::naming(NAME)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&whole[..60])?;
    daemon.wait_metrics("one has made room", |metrics| refused(metrics, "hello_limit") == 1)?;
    // There are several workers, so either client may be the older one.
    wait::until_true("it was reset", || {
        half_said.iter_mut().try_fold(false, |gone, client| Ok(gone || is_reset(client)?))
    })?;
    client.write_all(&whole[60..])?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, whole.len())? == whole);
    Flow { client, backend }.exchange()?;
    // Clients whose hello arrives at once never wait.
    for _ in 0..2 * HELLOS {
        Flow::open(lab, &listener)?.exchange()?;
    }
    let metrics = daemon.wait_metrics("they are counted", |metrics| used(metrics) == as_many - 1)?;
    ensure!(refused(&metrics, "hello_limit") == 1);
    ensure!(lines(&daemon, "limits.hellos")? == 1);
    Ok(())
}

/// Whether the daemon has reset the connection of a client, without a byte to it.
pub(crate) fn is_reset(client: &mut TcpStream) -> Result<bool> {
    client.set_nonblocking(true)?;
    match client.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
        other => bail!("{other:?}"),
    }
}

fn silent_for_a_place(lab: &Lab) -> Result<()> {
    const PLACES: usize = 4;
    let more = format!("limits: {{connections: {PLACES}}}\ntimeouts: {{hello: 1h}}\n");
    let (daemon, listener) = flow::start(lab, &more)?;
    let half = hello::naming(NAME)?[..50].to_vec();
    let _silent: Vec<_> = (0..PLACES)
        .map(|_| {
            let mut client = tcp::connect(&lab.client, &flow::front())?;
            client.write_all(&half)?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    daemon.wait_metrics("every place is taken", |metrics| {
        metrics.sum("snisplice_limit_used", &[("limit", "connections")]) == i64::try_from(PLACES).unwrap_or(0)
    })?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    ensure!(refused(&daemon.metrics()?, "hello_limit") >= 1);
    ensure!(lines(&daemon, "limits.connections")? >= 1, "the log tells that it is full");
    Ok(())
}

/// `/ready` reports the limit, and fails on request while it lasts.
fn full(lab: &Lab) -> Result<()> {
    const PLACES: usize = 2;
    let (daemon, listener) = flow::start(lab, &format!("limits: {{connections: {PLACES}}}\n"))?;
    let mut held = (0..PLACES).map(|_| Flow::open(lab, &listener)).collect::<Result<Vec<_>>>()?;
    let (status, body) = daemon.ask("GET", "/ready?fail=full")?;
    ensure!(status == 503 && body.contains("limits.connections"), "{status} {body}");
    let (status, body) = daemon.ask("GET", "/ready")?;
    ensure!(status == 200 && body.contains("full: all 2 places are taken"), "{status} {body}");
    // A waiting connection does not affect established ones.
    let mut waits = tcp::connect(&lab.client, &flow::front())?;
    waits.write_all(&hello::naming(NAME)?)?;
    daemon.wait_metrics("one waits for a place", |metrics| {
        metrics.sum("snisplice_connections_waiting", &[]) == 1
    })?;
    for flow in &mut held {
        flow.exchange()?;
    }
    drop(held);
    wait::until_true("it is ready again", || Ok(daemon.ask("GET", "/ready?fail=full")?.0 == 200))?;
    let mut backend = tcp::accept(&listener)?;
    tcp::read_exact(&mut backend, hello::naming(NAME)?.len())?;
    Flow { client: waits, backend }.exchange()
}

/// Clients of a backend that swallows all packets take only a part of the slots.
fn dead_backend(lab: &Lab) -> Result<()> {
    const PLACES: usize = 160;
    let more = format!(
        "limits: {{connections: {PLACES}, connections_per_source: none}}\ntimeouts: {{connect: 1h}}\n"
    );
    let dead = format!("backends:\n  - {{name: dead, endpoints: [\"{BLACKHOLE}:9000\"]}}\n");
    let yaml = flow::yaml(&more)
        .replace("routes:\n", "routes:\n  - {sni: dead.example.com, backends: dead}\n")
        .replace("backends:\n", &dead);
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let hello = hello::naming("dead.example.com")?;
    let _waiting: Vec<_> = (0..2 * PLACES)
        .map(|_| {
            let mut client = tcp::connect(&lab.client, &flow::front())?;
            let _ = client.write_all(&hello);
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    let metrics = daemon.wait_metrics("the rest is refused", |metrics| {
        refused(metrics, "pending_limit") + metrics.sum("snisplice_limit_used", &[("limit", "pending")])
            == i64::try_from(2 * PLACES).unwrap_or(0)
    })?;
    ensure!(metrics.sum("snisplice_limit_used", &[("limit", "pending")]) == 20, "an eighth");
    for _ in 0..10 {
        Flow::open(lab, &listener)?.exchange()?;
    }
    ensure!(lines(&daemon, "max_pending")? == 1);
    Ok(())
}

fn bounded_backend(lab: &Lab) -> Result<()> {
    let yaml = flow::yaml("").replace("  - name: pool\n", "  - name: pool\n    max_connections: 2\n");
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut first = Flow::open(lab, &listener)?;
    let mut second = Flow::open(lab, &listener)?;
    let mut third = tcp::connect(&lab.client, &flow::front())?;
    third.write_all(&hello::naming(NAME)?)?;
    ensure!(tcp::read_to_end(&mut third)?.0.is_empty());
    ensure!(refused(&daemon.metrics()?, "backend_limit") == 1);
    first.exchange()?;
    second.exchange()?;
    let Flow { client, mut backend } = first;
    drop(client);
    tcp::read_to_end(&mut backend)?;
    drop(backend);
    daemon.wait_metrics("it is over", |metrics| metrics.sum("snisplice_connections_active", &[]) == 1)?;
    Flow::open(lab, &listener)?.exchange()?;
    second.exchange()
}

/// A client that sends a byte now and then to a silent backend.
fn nothing_back(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "timeouts: {idle: 2s}\n")?;
    let mut answered = Flow::open(lab, &listener)?;
    answered.exchange()?;
    let mut silent = Flow::open(lab, &listener)?;
    let ended = || {
        let ended =
            daemon.metrics()?.sum("snisplice_connections_closed_total", &[("reason", "idle_timeout")]);
        anyhow::Ok(ended > 0)
    };
    let started = Instant::now();
    while !ended()? {
        // The connection may end between the two calls.
        let _ = silent.client.write_all(b"x");
        answered.exchange()?;
        ensure!(started.elapsed() < wait::DEADLINE, "it goes on for ever");
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(tcp::read_to_end(&mut silent.client)?.0.is_empty());
    answered.exchange()
}

/// After a FIN of one side, the other side may send, but not be silent for long.
fn half_closed(lab: &Lab) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(2);
    let (daemon, listener) = flow::start(lab, "timeouts: {half_closed: 2s}\n")?;
    let mut open = Flow::open(lab, &listener)?;
    for by_client in [true, false] {
        let mut flow = Flow::open(lab, &listener)?;
        for _ in 0..4 {
            flow.exchange()?;
        }
        let Flow { client, backend } = flow;
        let (mut quiet, mut speaker) = if by_client { (client, backend) } else { (backend, client) };
        quiet.shutdown(Shutdown::Write)?;
        ensure!(tcp::read_to_end(&mut speaker)? == (Vec::new(), Ending::Eof));
        let started = Instant::now();
        while started.elapsed() < LIMIT + LIMIT / 2 {
            speaker.write_all(b"more")?;
            ensure!(tcp::read_exact(&mut quiet, 4)? == b"more");
            thread::sleep(LIMIT / 20);
        }
        open.exchange()?;
        let (rest, _) = tcp::read_to_end(&mut quiet)?;
        ensure!(rest.is_empty());
    }
    daemon.wait_metrics("both have ended by that limit", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "half_closed_timeout")]) == 2
    })?;
    open.exchange()
}

fn away(lab: &Lab) -> Result<()> {
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(""))?)?;
    for _ in 0..20 {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&hello::naming(NAME)?)?;
        tcp::read_to_end(&mut client)?;
    }
    ensure!(lines(&daemon, "cannot be reached")? == 1, "one line for all of them");
    let listener = flow::backend(lab)?;
    for _ in 0..5 {
        Flow::open(lab, &listener)?.exchange()?;
    }
    ensure!(lines(&daemon, "can be reached again")? == 1);
    Ok(())
}

/// Any change of a listener except its address neither refuses nor resets new connections.
fn reload_storm(lab: &Lab) -> Result<()> {
    const RELOADS: u32 = 60;
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("routes.yaml");
    let yaml = |turn: u32| {
        let listeners = format!("  - name: front{turn}\n    mss: {}\n", 1_000 + turn);
        flow::yaml("").replace("  - name: front\n", &listeners).replace("    listeners: [front]\n", "")
    };
    fs::write(&file, yaml(0))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let mut open = Flow::open(lab, &listener)?;
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            while !stop.load(Relaxed) {
                Flow::open(lab, &listener)?.exchange()?;
                served.fetch_add(1, Relaxed);
            }
            anyhow::Ok(())
        });
        for turn in 1..=RELOADS {
            fs::write(&file, yaml(turn))?;
            let before = served.load(Relaxed);
            daemon.process().signal(Signal::SIGHUP)?;
            wait::until_true("somebody is served", || {
                Ok(served.load(Relaxed) > before || clients.is_finished())
            })?;
        }
        stop.store(true, Relaxed);
        clients.join().expect("the clients do not panic")
    })?;
    open.exchange()?;
    daemon
        .wait_metrics("the last one serves", |metrics| metrics.sum("snisplice_config_generation", &[]) > 1)?;
    Flow::open(lab, &listener)?.exchange()?;
    let metrics = daemon.wait_metrics("every one but the first is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 1
    })?;
    for wrong in ["listener_removed", "client_gone", "aborted"] {
        ensure!(metrics.sum("snisplice_connections_closed_total", &[("reason", wrong)]) == 0, "{wrong}");
    }
    Ok(())
}

/// As on a standby host: the address arrives after the other host's failure.
fn freebind(lab: &Lab) -> Result<()> {
    const LATER: &str = "10.0.1.77";
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml("").replace("0.0.0.0", LATER);
    let (front, file) = (format!("{LATER}:8443"), lab.dir().join("routes.yaml"));
    fs::write(&file, &yaml)?;
    let mut refused = Daemon::spawn(lab, &Options::file(&file), "refused")?;
    ensure!(refused.wait()?.code() == Some(1));
    ensure!(refused.process().log()?.contains("freebind: true"), "the remedy is named");
    drop(refused);

    fs::write(&file, yaml.replace("    bind:", "    freebind: true\n    bind:"))?;
    let _daemon = Daemon::start(lab, &Options::file(&file))?;
    let add = ["address", "add", &format!("{LATER}/24"), "dev", "to-client"];
    run(&lab.lb, Command::new("ip").args(add))?.ok()?;
    Flow::begin(tcp::connect(&lab.client, &front)?, &listener)?.exchange()
}

/// A hello with `name`, of the same length as [`NAME`].
fn hello_with(name: &str) -> Result<Vec<u8>> {
    let whole = hello::naming(NAME)?;
    let at = whole.windows(NAME.len()).position(|part| part == NAME.as_bytes()).context("the name")?;
    let mut other = whole;
    other[at..at + NAME.len()].copy_from_slice(name.as_bytes());
    Ok(other)
}

/// Small devices send an address as the name. The route for `*` serves it, and otherwise it is refused as a hello
/// without a name.
fn address_as_name(lab: &Lab) -> Result<()> {
    let addresses = ["192.168.100.100", "fd00:1:2:3:4::1"];
    let (daemon, listener) = flow::start(lab, "")?;
    for address in addresses {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&hello_with(address)?)?;
        ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof), "{address}");
    }
    ensure!(daemon.metrics()?.sum("snisplice_unrouted_total", &[("verdict", "no_sni")]) == 2);
    drop(daemon);

    let any = flow::yaml("").replace(&format!("sni: [\"{NAME}\"]"), "sni: [\"*\"]");
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &any)?)?;
    for address in addresses {
        Flow::open_with(lab, &listener, &hello_with(address)?)?.exchange()?;
    }
    Ok(())
}
