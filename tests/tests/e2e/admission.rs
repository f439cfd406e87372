//! The clients that a listener or a route serves: source rules, maxima, rates, and the hellos of one source.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::Instant,
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use rustls::{ClientConnection, StreamOwned};
use snisplice_tests::{
    daemon::{Daemon, Options, cli_with},
    hello,
    lab::Lab,
    metrics::Metrics,
    netns::{BACKEND, CLIENT, LB, LB_V6},
    process::run,
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::{
    flow::{self, Flow, NAME},
    limits::{OTHER_CLIENT, connect_between, is_reset, lines, refused, second_address},
};

pub(crate) const CASES: &[Case] = &[
    Case::once("admission::a_listener_serves_the_clients_of_its_rules", listener_rules),
    Case::each("admission::a_route_serves_the_clients_of_its_rules", route_rules),
    Case::once("admission::rules_hold_where_tls_ends_and_without_tls", rules_inside),
    Case::each("admission::connections_of_a_listener_are_bounded", listener_limit),
    Case::each("admission::connections_of_a_route_are_bounded", route_limit),
    Case::once("admission::connections_are_bounded_where_tls_ends_and_without_tls", limits_inside),
    Case::once("admission::new_connections_of_a_source_are_bounded", source_rate),
    Case::once("admission::new_connections_of_a_listener_and_a_route_are_bounded", listener_and_route_rate),
    Case::each("admission::a_limit_of_a_reload_counts_open_connections", reload),
    Case::each("admission::a_source_of_silent_connections_leaves_hellos_to_others", slow_source),
    Case::once("admission::explain_and_check_show_the_rules", shown),
];

const CLIENT_V6: &str = "fd00:1::2";
const OTHER_CLIENT_V6: &str = "fd00:1::3";
/// A name of another route.
const OTHER_NAME: &str = "other.example.com";
/// A listener beside the usual one.
const SECOND_PORT: u16 = 8444;

/// The usual setting with further keys of the listener and of the route. A second listener and a second route have none.
fn yaml(listener: &str, route: &str, more: &str) -> String {
    flow::yaml(more)
        .replace(
            "    bind: [\"0.0.0.0:8443\"]\n",
            &format!(
                "    bind: [\"0.0.0.0:8443\", \"[::]:8443\"]\n{listener}  - name: second\n    bind: [\"0.0.0.0:{SECOND_PORT}\"]\n"
            ),
        )
        .replace("    listeners: [front]\n", route)
        .replace("routes:\n", &format!("routes:\n  - {{name: other, sni: {OTHER_NAME}, backends: pool}}\n"))
}

fn addresses(lab: &Lab) -> Result<()> {
    second_address(lab)?;
    let address = format!("{OTHER_CLIENT_V6}/64");
    let add = ["address", "add", &address, "dev", "to-lb", "nodad"];
    run(&lab.client, Command::new("ip").args(add))?.ok()?;
    Ok(())
}

fn second_front() -> String {
    format!("{LB}:{SECOND_PORT}")
}

fn closed(metrics: &Metrics, labels: &[(&str, &str)]) -> i64 {
    metrics.sum("snisplice_connections_closed_total", labels)
}

/// Sends a hello for `name`. The daemon resets the connection, without a byte to the client.
fn refuses(mut client: TcpStream, name: &str) -> Result<()> {
    let end = tcp::send_and_read_to_end(&mut client, &hello::naming(name)?)?;
    ensure!(end == (Vec::new(), Ending::Reset), "{end:?}");
    Ok(())
}

/// The connection is served by the backend of `name`.
fn serves(mut client: TcpStream, name: &str, listener: &TcpListener) -> Result<Flow> {
    let hello = hello::naming(name)?;
    client.write_all(&hello)?;
    let mut backend = tcp::accept(listener)?;
    ensure!(tcp::read_exact(&mut backend, hello.len())? == hello);
    let mut flow = Flow { client, backend };
    flow.exchange()?;
    Ok(flow)
}

/// Ends a connection and waits until the daemon has recorded that `left` are open.
fn end(flow: Flow, daemon: &Daemon<'_>, left: i64) -> Result<()> {
    let Flow { client, mut backend } = flow;
    drop(client);
    tcp::read_to_end(&mut backend)?;
    drop(backend);
    daemon.wait_metrics("it is over", |metrics| metrics.sum("snisplice_connections_active", &[]) == left)?;
    Ok(())
}

/// Writes a configuration and reloads it. `generation` is its number.
fn serve(daemon: &Daemon<'_>, file: &Path, yaml: &str, generation: i64) -> Result<()> {
    fs::write(file, yaml)?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("it is reloaded", |metrics| {
        metrics.sum("snisplice_config_generation", &[]) == generation
    })?;
    Ok(())
}

/// Clients of both families, before they have sent a byte.
fn listener_rules(lab: &Lab) -> Result<()> {
    addresses(lab)?;
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("rules.yaml");
    let rules = |denied: [&str; 2]| {
        format!(
            "    allow: [10.0.1.0/24, \"fd00:1::/64\"]\n    deny: [\"{}\", \"{}\"]\n",
            denied[0], denied[1]
        )
    };
    fs::write(&file, yaml(&rules([OTHER_CLIENT, OTHER_CLIENT_V6]), "", ""))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let front_v6 = format!("[{LB_V6}]:8443");
    let mut open = Vec::new();
    for (client, front) in [(CLIENT, flow::front()), (CLIENT_V6, front_v6.clone())] {
        open.push(serves(connect_between(lab, client, &front)?, NAME, &listener)?);
    }
    for (client, front) in [(OTHER_CLIENT, flow::front()), (OTHER_CLIENT_V6, front_v6.clone())] {
        // Without a byte of the client.
        let mut client = connect_between(lab, client, &front)?;
        ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Reset));
    }
    let other = serves(connect_between(lab, OTHER_CLIENT, &second_front())?, NAME, &listener)?;
    let denied = [("listener", "front"), ("reason", "denied")];
    daemon.wait_metrics("they are counted", |metrics| closed(metrics, &denied) == 2)?;
    end(other, &daemon, 2)?;
    // A reload concerns new connections.
    serve(&daemon, &file, &yaml(&rules([CLIENT, CLIENT_V6]), "", ""), 2)?;
    for (client, front) in [(CLIENT, flow::front()), (CLIENT_V6, front_v6.clone())] {
        refuses(connect_between(lab, client, &front)?, NAME)?;
    }
    for (client, front) in [(OTHER_CLIENT, flow::front()), (OTHER_CLIENT_V6, front_v6)] {
        serves(connect_between(lab, client, &front)?, NAME, &listener)?;
    }
    open.iter_mut().try_for_each(Flow::exchange)?;
    // Another network is not in the list.
    serve(&daemon, &file, &yaml("    allow: 192.0.2.0/24\n", "", ""), 3)?;
    refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    daemon.wait_metrics("they are counted", |metrics| closed(metrics, &denied) == 5)?;
    Ok(())
}

fn route_rules(lab: &Lab) -> Result<()> {
    addresses(lab)?;
    let listener = flow::backend(lab)?;
    let rules = format!(
        "    allow: [10.0.1.0/24, \"fd00:1::/64\"]\n    deny: [{OTHER_CLIENT}, \"{OTHER_CLIENT_V6}\"]\n"
    );
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml("", &rules, ""))?)?;
    for (client, denied, front) in
        [(CLIENT, OTHER_CLIENT, flow::front()), (CLIENT_V6, OTHER_CLIENT_V6, format!("[{LB_V6}]:8443"))]
    {
        let mut served = serves(connect_between(lab, client, &front)?, NAME, &listener)?;
        refuses(connect_between(lab, denied, &front)?, NAME)?;
        // The hello in two parts takes another path.
        let (hello, mut client) = (hello::naming(NAME)?, connect_between(lab, denied, &front)?);
        client.write_all(&hello[..40])?;
        daemon.wait_metrics("the hello is incomplete", |metrics| {
            metrics.sum("snisplice_limit_used", &[("limit", "hellos")]) == 1
        })?;
        client.write_all(&hello[40..])?;
        ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Reset));
        serves(connect_between(lab, denied, &front)?, OTHER_NAME, &listener)?;
        served.exchange()?;
    }
    let denied = [("route", "route www"), ("reason", "route_denied")];
    daemon.wait_metrics("they are counted", |metrics| closed(metrics, &denied) == 4)?;
    Ok(())
}

/// A route that ends TLS for bytes, and a listener for HTTP without TLS. `rules` are keys of both.
fn inside(lab: &Lab, rules: &str) -> Result<String> {
    let leaf = lab.ca.issue(NAME)?;
    Ok(format!(
        "listeners:\n- {{name: https, bind: \"0.0.0.0:8443\"}}\n\
         - {{name: http, bind: \"0.0.0.0:8080\", http: [{{direct_response: {{status: 200, body: \"plain\"}}}}], {rules}}}\n\
         routes:\n- {{name: www, sni: {NAME}, backends: pool, {rules}, \
         terminate: {{certificates: [{{certificate: {}, key: {}}}]}}}}\n\
         backends:\n- {{name: pool, endpoints: \"{BACKEND}:9000\"}}\n",
        leaf.certificate.display(),
        leaf.key.display()
    ))
}

/// A connection whose TLS the daemon ends, with both of its ends.
struct Ended {
    client: StreamOwned<ClientConnection, TcpStream>,
    backend: TcpStream,
}

impl Ended {
    fn open(lab: &Lab, client: TcpStream, listener: &TcpListener) -> Result<Self> {
        let config = lab.ca.client(&[&rustls::version::TLS13])?;
        let mut client = StreamOwned::new(ClientConnection::new(config, NAME.try_into()?)?, client);
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock)?;
        }
        let mut ended = Self { client, backend: tcp::accept(listener)? };
        ended.exchange()?;
        Ok(ended)
    }

    fn exchange(&mut self) -> Result<()> {
        self.client.write_all(b"question")?;
        ensure!(tcp::read_exact(&mut self.backend, 8)? == b"question");
        self.backend.write_all(b"answer")?;
        let mut answer = [0; 6];
        self.client.read_exact(&mut answer)?;
        ensure!(&answer == b"answer");
        Ok(())
    }
}

fn plain_front() -> String {
    format!("{LB}:8080")
}

/// One HTTP request without TLS. The connection stays open.
fn request(client: &TcpStream) -> Result<()> {
    write!(&*client, "GET / HTTP/1.1\r\nhost: {NAME}\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(client.try_clone()?).read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "{line}");
    Ok(())
}

/// The daemon resets a client of the listener for HTTP.
fn refuses_http(mut client: TcpStream) -> Result<()> {
    let request = format!("GET / HTTP/1.1\r\nhost: {NAME}\r\n\r\n");
    let end = tcp::send_and_read_to_end(&mut client, request.as_bytes())?;
    ensure!(end == (Vec::new(), Ending::Reset), "{end:?}");
    Ok(())
}

fn rules_inside(lab: &Lab) -> Result<()> {
    second_address(lab)?;
    let listener = flow::backend(lab)?;
    let yaml = inside(lab, &format!("allow: 10.0.1.0/24, deny: {CLIENT}"))?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    Ended::open(lab, connect_between(lab, OTHER_CLIENT, &flow::front())?, &listener)?;
    refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    request(&connect_between(lab, OTHER_CLIENT, &plain_front())?)?;
    refuses_http(tcp::connect(&lab.client, &plain_front())?)?;
    daemon.wait_metrics("both are counted", |metrics| {
        closed(metrics, &[("listener", "http"), ("reason", "denied")]) == 1
            && closed(metrics, &[("route", "route www"), ("reason", "route_denied")]) == 1
    })?;
    ensure!(daemon.metrics()?.sum("snisplice_limit_refused_total", &[]) == 0, "these are no limits");
    Ok(())
}

fn listener_limit(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml("    max_connections: 2\n", "", ""))?)?;
    let mut first = Flow::open(lab, &listener)?;
    first.exchange()?;
    // A client counts from accept(2) on.
    let silent = tcp::connect(&lab.client, &flow::front())?;
    daemon.wait_metrics("both are open", |metrics| metrics.sum("snisplice_connections_active", &[]) == 2)?;
    for _ in 0..3 {
        refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    }
    let metrics = daemon.wait_metrics("it is counted", |metrics| {
        closed(metrics, &[("listener", "front"), ("reason", "listener_limit")]) == 3
    })?;
    ensure!(refused(&metrics, "listener_limit") == 3);
    ensure!(lines(&daemon, "listeners[].max_connections")? == 1, "one line tells of it");
    // Another listener for the same route is not affected.
    let other = serves(tcp::connect(&lab.client, &second_front())?, NAME, &listener)?;
    first.exchange()?;
    drop(silent);
    daemon.wait_metrics("it has left", |metrics| metrics.sum("snisplice_connections_active", &[]) == 2)?;
    let second = Flow::open(lab, &listener)?;
    refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    end(first, &daemon, 2)?;
    Flow::open(lab, &listener)?.exchange()?;
    drop((second, other));
    Ok(())
}

fn route_limit(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml("", "    max_connections: 2\n", ""))?)?;
    let mut first = Flow::open(lab, &listener)?;
    first.exchange()?;
    // All listeners together.
    let mut second = serves(tcp::connect(&lab.client, &second_front())?, NAME, &listener)?;
    for front in [flow::front(), second_front()] {
        refuses(tcp::connect(&lab.client, &front)?, NAME)?;
    }
    let metrics = daemon.wait_metrics("they are counted", |metrics| {
        closed(metrics, &[("route", "route www"), ("reason", "route_limit")]) == 2
    })?;
    ensure!(refused(&metrics, "route_limit") == 2);
    ensure!(lines(&daemon, "routes[].max_connections")? == 1, "one line tells of it");
    serves(tcp::connect(&lab.client, &flow::front())?, OTHER_NAME, &listener)?;
    daemon.wait_metrics("it has left", |metrics| metrics.sum("snisplice_connections_active", &[]) == 2)?;
    second.exchange()?;
    end(first, &daemon, 1)?;
    Flow::open(lab, &listener)?.exchange()?;
    second.exchange()
}

fn limits_inside(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &inside(lab, "max_connections: 1")?)?)?;
    let mut first = Ended::open(lab, tcp::connect(&lab.client, &flow::front())?, &listener)?;
    refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    let plain = tcp::connect(&lab.client, &plain_front())?;
    request(&plain)?;
    refuses_http(tcp::connect(&lab.client, &plain_front())?)?;
    daemon.wait_metrics("both are counted", |metrics| {
        closed(metrics, &[("route", "route www"), ("reason", "route_limit")]) == 1
            && closed(metrics, &[("listener", "http"), ("reason", "listener_limit")]) == 1
    })?;
    first.exchange()?;
    request(&plain)?;
    drop((first, plain));
    daemon.wait_metrics("both have left", |metrics| metrics.sum("snisplice_connections_active", &[]) == 0)?;
    Ended::open(lab, tcp::connect(&lab.client, &flow::front())?, &listener)?;
    request(&tcp::connect(&lab.client, &plain_front())?)
}

/// Connects until `count` clients are refused. Returns the number of those that are served.
fn flood(lab: &Lab, front: &str, name: &str, count: usize) -> Result<usize> {
    let (mut served, mut gone) = (0, 0);
    let hello = hello::naming(name)?;
    while gone < count {
        let mut client = tcp::connect(&lab.client, front)?;
        match tcp::send_and_read_to_end(&mut client, &hello)? {
            (bytes, Ending::Reset) if bytes.is_empty() => gone += 1,
            (bytes, Ending::Eof) if bytes == b"served" => served += 1,
            other => anyhow::bail!("{other:?}"),
        }
    }
    Ok(served)
}

/// A backend that reads a hello, answers `served` and closes.
fn serving(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || -> Result<()> {
                stream.read_exact(&mut [0; 100])?;
                stream.write_all(b"served")?;
                stream.shutdown(std::net::Shutdown::Write)?;
                // Reads the rest, so that the close is no reset.
                while stream.read(&mut [0; 1_024])? > 0 {}
                Ok(())
            });
        }
    });
}

/// Whether as many are served as a burst of five and one in a second allow.
fn as_a_bucket(served: usize, since: Instant) -> Result<()> {
    const BURST: usize = 5;
    let most = BURST + usize::try_from(since.elapsed().as_secs())? + 1;
    ensure!((BURST..=most).contains(&served), "{served} are served, at most {most} expected");
    Ok(())
}

/// Waits until the bucket has a token again.
fn has_a_token_again(lab: &Lab, front: &str, name: &str) -> Result<()> {
    let hello = hello::naming(name)?;
    wait::until_true("a client is served again", || {
        let mut client = tcp::connect(&lab.client, front)?;
        Ok(tcp::send_and_read_to_end(&mut client, &hello)?.0 == b"served")
    })
}

fn source_rate(lab: &Lab) -> Result<()> {
    second_address(lab)?;
    serving(flow::backend(lab)?);
    let limits = "limits: {connection_rate_per_source: 1, connection_burst_per_source: 5}\n";
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml("", "", limits))?)?;
    let since = Instant::now();
    as_a_bucket(flood(lab, &flow::front(), NAME, 20)?, since)?;
    // Another source has a bucket of its own.
    let mut other = connect_between(lab, OTHER_CLIENT, &flow::front())?;
    other.write_all(&hello::naming(NAME)?)?;
    ensure!(tcp::read_to_end(&mut other)?.0 == b"served");
    has_a_token_again(lab, &flow::front(), NAME)?;
    daemon.wait_metrics("they are counted", |metrics| {
        refused(metrics, "source_rate") >= 20
            && closed(metrics, &[("reason", "source_rate")]) == refused(metrics, "source_rate")
    })?;
    ensure!(lines(&daemon, "limits.connection_rate_per_source")? == 1, "one line tells of it");
    Ok(())
}

fn listener_and_route_rate(lab: &Lab) -> Result<()> {
    serving(flow::backend(lab)?);
    let rate = "    connection_rate: 1\n    connection_burst: 5\n";
    let file = lab.dir().join("rate.yaml");
    fs::write(&file, yaml(rate, "", ""))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let since = Instant::now();
    as_a_bucket(flood(lab, &flow::front(), NAME, 20)?, since)?;
    let mut other = tcp::connect(&lab.client, &second_front())?;
    other.write_all(&hello::naming(NAME)?)?;
    ensure!(tcp::read_to_end(&mut other)?.0 == b"served", "another listener");
    has_a_token_again(lab, &flow::front(), NAME)?;
    daemon.wait_metrics("they are counted", |metrics| {
        refused(metrics, "listener_rate") >= 20
            && closed(metrics, &[("listener", "front"), ("reason", "listener_rate")])
                == refused(metrics, "listener_rate")
    })?;
    ensure!(lines(&daemon, "listeners[].connection_rate")? == 1, "one line tells of it");

    serve(&daemon, &file, &yaml("", rate, ""), 2)?;
    let since = Instant::now();
    as_a_bucket(flood(lab, &flow::front(), NAME, 20)?, since)?;
    let mut other = tcp::connect(&lab.client, &flow::front())?;
    other.write_all(&hello::naming(OTHER_NAME)?)?;
    ensure!(tcp::read_to_end(&mut other)?.0 == b"served", "another route");
    has_a_token_again(lab, &second_front(), NAME)?;
    daemon.wait_metrics("they are counted", |metrics| {
        refused(metrics, "route_rate") >= 20
            && closed(metrics, &[("route", "route www"), ("reason", "route_rate")])
                == refused(metrics, "route_rate")
    })?;
    ensure!(lines(&daemon, "routes[].connection_rate")? == 1, "one line tells of it");
    Ok(())
}

/// Connections that begin before a limit, and under another one, count for it.
fn reload(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let file = lab.dir().join("limit.yaml");
    fs::write(&file, yaml("", "", ""))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let mut open: Vec<Flow> = Vec::new();
    for _ in 0..3 {
        open.push(Flow::open(lab, &listener)?);
    }
    open.iter_mut().try_for_each(Flow::exchange)?;
    let limits = |listener: usize, route: usize| {
        yaml(&format!("    max_connections: {listener}\n"), &format!("    max_connections: {route}\n"), "")
    };
    serve(&daemon, &file, &limits(3, 100), 2)?;
    refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    serve(&daemon, &file, &limits(100, 3), 3)?;
    refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    serve(&daemon, &file, &limits(4, 4), 4)?;
    open.push(Flow::open(lab, &listener)?);
    refuses(tcp::connect(&lab.client, &flow::front())?, NAME)?;
    // A lower limit ends no connection.
    serve(&daemon, &file, &limits(1, 1), 5)?;
    open.iter_mut().try_for_each(Flow::exchange)?;
    let reasons = ["listener_limit", "route_limit"];
    let metrics = daemon.wait_metrics("they are counted", |metrics| {
        reasons.iter().map(|reason| refused(metrics, reason)).sum::<i64>() == 3
    })?;
    ensure!(refused(&metrics, "route_limit") == 1);
    while let Some(flow) = open.pop() {
        end(flow, &daemon, i64::try_from(open.len())?)?;
    }
    Flow::open(lab, &listener)?.exchange()
}

/// One source opens many connections, each with a part of a hello. The slow hello of another client stays.
fn slow_source(lab: &Lab) -> Result<()> {
    const HELLOS: usize = 32;
    const MANY: usize = 800;
    second_address(lab)?;
    let more = format!(
        "limits: {{hellos: {HELLOS}, connections_per_source: none, connections: 2000}}\ntimeouts: {{hello: 1h}}\n"
    );
    let (daemon, listener) = flow::start(lab, &more)?;
    let whole = hello::naming(NAME)?;
    let used = |metrics: &Metrics| metrics.sum("snisplice_limit_used", &[("limit", "hellos")]);
    let mut slow = connect_between(lab, OTHER_CLIENT, &flow::front())?;
    slow.write_all(&whole[..60])?;
    let mut silent = connect_between(lab, OTHER_CLIENT, &flow::front())?;
    daemon.wait_metrics("both are waited for", |metrics| used(metrics) == 2)?;
    let mut flood = Vec::new();
    for turn in 0..MANY {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        // It may have made room already.
        let _ = client.write_all(&whole[..=(turn % 40)]);
        flood.push(client);
        if turn % 100 == 0 {
            serves(connect_between(lab, OTHER_CLIENT, &flow::front())?, NAME, &listener)?;
        }
    }
    let half = i64::try_from(HELLOS / 2)?;
    let metrics = daemon.wait_metrics("the source has its share", |metrics| {
        used(metrics) == half + 2
            && refused(metrics, "hello_limit") == i64::try_from(MANY).unwrap_or(0) - half
    })?;
    ensure!(metrics.sum("snisplice_limit", &[("limit", "hellos_per_source")]) == half);
    ensure!(lines(&daemon, "limits.hellos_per_source")? == 1, "one line tells of it");
    ensure!(!is_reset(&mut slow)? && !is_reset(&mut silent)?, "others make no room");
    for client in [&slow, &silent] {
        client.set_nonblocking(false)?;
    }
    for (mut client, sent) in [(slow, 60), (silent, 0)] {
        client.write_all(&whole[sent..])?;
        let mut backend = tcp::accept(&listener)?;
        ensure!(tcp::read_exact(&mut backend, whole.len())? == whole);
        Flow { client, backend }.exchange()?;
    }
    drop(flood);
    Ok(())
}

fn shown(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("shown.yaml");
    let route = "    deny: 192.0.2.0/24\n    connection_rate: 7\n";
    fs::write(&file, yaml("    allow: 10.0.0.0/8\n    max_connections: 9\n", route, ""))?;
    let said = cli_with(lab, "explain", &file, &[NAME])?.ok()?;
    for text in ["for 10.0.0.0/8, at most 9 connections", "not 192.0.2.0/24, 7 new ones a second (burst 7)"] {
        ensure!(said.stdout.contains(text), "{text} is not in {}", said.stdout);
    }
    fs::write(&file, yaml("    allow:\n", "", ""))?;
    let refused = cli_with(lab, "check", &file, &[])?;
    ensure!(refused.code == Some(2) && refused.stdout.contains("leave the key out"), "{refused:?}");
    Ok(())
}
