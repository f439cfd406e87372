//! Dynamic forwarding: connections go to the server name that the client requests, and never to addresses that a client
//! must not choose.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use rustls::{ServerConnection, StreamOwned, version::TLS13};
use snisplice_tests::{
    daemon::{ADMIN, Daemon, Options, cli},
    dns::{DnsServer, Mood},
    hello,
    lab::Lab,
    netns::{BACKEND, BACKEND_2, BACKEND_V6, BLACKHOLE, LB},
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp, wait,
};

use crate::{
    flow::{self, Flow},
    terminate,
};

pub(crate) const CASES: &[Case] = &[
    Case::each("dynamic::bytes_go_to_the_requested_name", bytes_go_to_the_requested_name),
    Case::each("dynamic::refused_addresses_are_not_reached", refused_addresses_are_not_reached),
    Case::once("dynamic::allow_lifts_the_refusal", allow_lifts_the_refusal),
    Case::once("dynamic::deny_refuses_further_networks", deny_refuses_further_networks),
    Case::each("dynamic::another_answer_does_not_get_around_the_rule", another_answer),
    Case::each("dynamic::all_addresses_of_a_name_are_tried", all_addresses_are_tried),
    Case::once("dynamic::a_name_that_does_not_exist_is_refused", a_name_that_does_not_exist),
    Case::once("dynamic::known_names_outlive_the_name_server", known_names_outlive_the_name_server),
    Case::once("dynamic::a_hello_without_a_name_is_refused", a_hello_without_a_name),
    Case::once("dynamic::a_flood_of_names_is_bounded", a_flood_of_names_is_bounded),
    Case::once("dynamic::a_reload_adds_it_and_its_servers", a_reload_adds_it),
    Case::once("dynamic::terminated_bytes_go_to_the_requested_name", terminated_bytes),
];

const SERVER: &str = "127.0.0.1:5353";

fn yaml(dynamic: &str, more: &str) -> String {
    format!(
        "listeners: [{{name: front, bind: \"0.0.0.0:8443\"}}]\n\
         routes: [{{name: egress, sni: \"*\", backends: egress}}]\n\
         backends:\n- name: egress\n  dynamic: {{port: 9000{dynamic}}}\n\
         dns: {{servers: [\"{SERVER}\"], min_ttl: 1s}}\n{more}"
    )
}

/// A daemon, and its name server.
fn start<'lab>(lab: &'lab Lab, dynamic: &str, more: &str) -> Result<(Daemon<'lab>, DnsServer)> {
    let server = DnsServer::start(&lab.lb, SERVER)?;
    Ok((Daemon::start(lab, &Options::yaml(lab, &yaml(dynamic, more))?)?, server))
}

fn listen(lab: &Lab, address: &str) -> Result<TcpListener> {
    let address = if address.contains(':') { format!("[{address}]:9000") } else { format!("{address}:9000") };
    tcp::listen(&lab.backend, &address)
}

/// A client that has sent a hello with this name.
fn request(lab: &Lab, name: &str) -> Result<TcpStream> {
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::naming(name)?)?;
    Ok(client)
}

/// A connection for this name, which arrives at the listener.
fn open(lab: &Lab, listener: &TcpListener, name: &str) -> Result<Flow> {
    Flow::open_with(lab, listener, &hello::naming(name)?)
}

fn closed(daemon: &Daemon<'_>, reason: &str) -> Result<i64> {
    Ok(daemon.metrics()?.sum("snisplice_connections_closed_total", &[("reason", reason)]))
}

/// Requests a name, and waits until its connection has ended for this reason.
fn is_refused(lab: &Lab, daemon: &Daemon<'_>, name: &str, reason: &str) -> Result<()> {
    let before = closed(daemon, reason)?;
    let _client = request(lab, name)?;
    wait::until_true(&format!("{name} is refused: {reason}"), || Ok(closed(daemon, reason)? == before + 1))
}

fn accepts_nothing(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    match listener.accept() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        other => bail!("a connection has arrived: {other:?}"),
    }
}

fn bytes_go_to_the_requested_name(lab: &Lab) -> Result<()> {
    const BYTES: u64 = 4_000_000;
    let (_daemon, server) = start(lab, "", "")?;
    server.has("a.test", &[BACKEND], 60)?;
    server.has("b.test", &[BACKEND_2], 60)?;
    for (name, address) in [("a.test", BACKEND), ("B.Test", BACKEND_2)] {
        let listener = listen(lab, address)?;
        let Flow { client, backend } = open(lab, &listener, name)?;
        let (up, down) = (Pattern::new(1), Pattern::new(2));
        thread::scope(|scope| {
            let tasks = [
                scope.spawn(|| stream::send(&client, &up, BYTES, Pace::uneven(3))),
                scope.spawn(|| stream::receive(&backend, &up, BYTES)),
                scope.spawn(|| stream::send(&backend, &down, BYTES, Pace::uneven(4))),
                scope.spawn(|| stream::receive(&client, &down, BYTES)),
            ];
            tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
        })?;
        // Known by now.
        let questions = server.questions();
        open(lab, &listener, name)?.exchange()?;
        ensure!(server.questions() == questions, "{name} is looked up again");
    }
    Ok(())
}

fn refused_addresses_are_not_reached(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, "", "")?;
    let loopback = tcp::listen(&lab.lb, "127.0.0.1:9000")?;
    let own = tcp::listen(&lab.lb, &format!("{LB}:9000"))?;
    let refused = [
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
        LB,
    ];
    for (number, address) in refused.iter().enumerate() {
        let name = format!("refused{number}.test");
        server.has(&name, &[address], 60)?;
        is_refused(lab, &daemon, &name, "address_refused").context(*address)?;
    }
    let failures = daemon
        .metrics()?
        .sum("snisplice_connect_failures_total", &[("backend", "egress"), ("reason", "address_refused")]);
    ensure!(failures == i64::try_from(refused.len())?, "{failures} failed attempts");
    accepts_nothing(&loopback)?;
    accepts_nothing(&own)
}

/// An allowed address is reached. A listener of the process itself is refused in any case.
fn allow_lifts_the_refusal(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, &format!(", allow: [127.0.0.0/8, {LB}]"), "")?;
    let loopback = tcp::listen(&lab.lb, "127.0.0.1:9000")?;
    server.has("local.test", &["127.0.0.1"], 60)?;
    server.has("link.test", &["169.254.1.1"], 60)?;
    open(lab, &loopback, "local.test")?.exchange()?;
    is_refused(lab, &daemon, "link.test", "address_refused")?;

    let yaml = yaml(&format!(", allow: [127.0.0.0/8, {LB}]"), "").replace("port: 9000", "port: 8443");
    fs::write(lab.dir().join("snisplice.yaml"), yaml)?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_log("configuration reloaded")?;
    server.has("own.test", &[LB], 60)?;
    is_refused(lab, &daemon, "own.test", "self_loop")?;
    is_refused(lab, &daemon, "local.test", "self_loop")
}

fn deny_refuses_further_networks(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, &format!(", deny: {BACKEND_2}"), "")?;
    let listener = listen(lab, BACKEND)?;
    let denied = listen(lab, BACKEND_2)?;
    server.has("a.test", &[BACKEND], 60)?;
    server.has("b.test", &[BACKEND_2], 60)?;
    open(lab, &listener, "a.test")?.exchange()?;
    is_refused(lab, &daemon, "b.test", "address_refused")?;
    accepts_nothing(&denied)
}

/// The name server has another answer for a name that is served already: an address of loopback.
fn another_answer(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, "", "")?;
    let (listener, loopback) = (listen(lab, BACKEND)?, tcp::listen(&lab.lb, "127.0.0.1:9000")?);
    server.has("a.test", &[BACKEND], 0)?;
    open(lab, &listener, "a.test")?.exchange()?;
    server.has("a.test", &["127.0.0.1"], 0)?;
    wait::until_true("the other answer is refused", || {
        drop(request(lab, "a.test")?);
        Ok(closed(&daemon, "address_refused")? > 0)
    })?;
    accepts_nothing(&loopback)
}

fn all_addresses_are_tried(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, "", "")?;
    let (listener, over_v6) = (listen(lab, BACKEND)?, listen(lab, BACKEND_V6)?);
    // One swallows every packet, one has no listener, and one is refused.
    server.has("mixed.test", &[BLACKHOLE, BACKEND_2, "127.0.0.1", BACKEND], 60)?;
    server.has("six.test", &["::1", BACKEND_V6], 60)?;
    for _ in 0..4 {
        open(lab, &listener, "mixed.test")?.exchange()?;
        open(lab, &over_v6, "six.test")?.exchange()?;
    }
    ensure!(closed(&daemon, "address_refused")? == 0);
    Ok(())
}

fn a_name_that_does_not_exist(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, "", "")?;
    let listener = listen(lab, BACKEND)?;
    is_refused(lab, &daemon, "a.test", "name_unresolved")?;
    // The name exists from now on, and is found once the failure is no longer remembered.
    server.has("a.test", &[BACKEND], 60)?;
    listener.set_nonblocking(true)?;
    wait::until("the name is found", || {
        let before = closed(&daemon, "name_unresolved")?;
        let _client = request(lab, "a.test")?;
        wait::until("it is served or refused", || match listener.accept() {
            Ok(_) => Ok(Some(Some(()))),
            Err(_) => Ok((closed(&daemon, "name_unresolved")? > before).then_some(None)),
        })
    })
}

/// The answers of a name server that fails or is silent stay in use. Other names are refused within the time limit.
fn known_names_outlive_the_name_server(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, "", "timeouts: {connect: 4s}\n")?;
    let listener = listen(lab, BACKEND)?;
    server.has("a.test", &[BACKEND], 0)?;
    open(lab, &listener, "a.test")?.exchange()?;
    for mood in [Mood::Fails, Mood::Silent] {
        server.is(mood);
        let questions = server.questions();
        wait::until_true("the name is looked up again", || {
            open(lab, &listener, "a.test")?.exchange()?;
            Ok(server.questions() > questions)
        })?;
        open(lab, &listener, "a.test")?.exchange()?;
        is_refused(lab, &daemon, &format!("{mood:?}.test"), "name_unresolved")?;
    }
    Ok(())
}

fn a_hello_without_a_name(lab: &Lab) -> Result<()> {
    let (daemon, server) = start(lab, "", "")?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&hello::without_name()?)?;
    wait::until_true("the hello is refused", || Ok(closed(&daemon, "no_requested_name")? == 1))?;
    ensure!(server.questions() == 0);
    Ok(())
}

/// Hundreds of clients request a name each, and the name server is silent. Neither sockets nor labels grow.
fn a_flood_of_names_is_bounded(lab: &Lab) -> Result<()> {
    const CLIENTS: usize = 700;
    let (daemon, server) = start(lab, "", "timeouts: {connect: 1m}\n")?;
    let listener = listen(lab, BACKEND)?;
    server.has("known.test", &[BACKEND], 300)?;
    open(lab, &listener, "known.test")?.exchange()?;
    server.is(Mood::Silent);
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| request(lab, &format!("flood{number}.test"))).collect::<Result<_>>()?;
    wait::until_true("some names are too many", || Ok(closed(&daemon, "name_limit")? > 0))?;
    let sockets = daemon.process().sockets()?;
    ensure!(sockets < CLIENTS + 150, "{sockets} sockets");
    open(lab, &listener, "known.test")?.exchange()?;
    for page in ["/metrics", "/backends"] {
        let (_, text) = daemon.ask("GET", page)?;
        ensure!(
            text.contains("egress") && !text.contains("flood") && !text.contains(BACKEND),
            "{page}: {text}"
        );
    }
    let table = cli(lab, &["backends", "--admin", ADMIN])?.ok()?.stdout;
    ensure!(table.contains("the requested name, port 9000"), "{table}");
    // Without clients, their names are not looked up.
    drop(clients);
    wait::until_true("all clients have left", || {
        Ok(daemon.metrics()?.sum("snisplice_connections_active", &[]) == 0)
    })?;
    server.is(Mood::Answers);
    server.has("new.test", &[BACKEND], 300)?;
    open(lab, &listener, "new.test")?.exchange()
}

/// A dynamic backend with name servers of its own, and bounds of its own, in a process that had none before.
fn a_reload_adds_it(lab: &Lab) -> Result<()> {
    let server = DnsServer::start(&lab.lb, SERVER)?;
    let own = DnsServer::start(&lab.lb, "127.0.0.1:5454")?;
    own.has("a.test", &[BACKEND], 60)?;
    let listener = listen(lab, BACKEND)?;
    let dns = format!("dns: {{servers: [\"{SERVER}\"], min_ttl: 1s}}\n");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(&dns))?)?;
    Flow::open(lab, &listener)?.exchange()?;
    let yaml = yaml("", "").replace("  dynamic", "  resolver: [\"127.0.0.1:5454\"]\n  dynamic");
    fs::write(lab.dir().join("snisplice.yaml"), yaml)?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_log("configuration reloaded")?;
    open(lab, &listener, "a.test")?.exchange()?;
    ensure!(server.questions() == 0, "{} questions to the other server", server.questions());
    Ok(())
}

/// TLS ends here, and begins again towards the server that the client means.
fn terminated_bytes(lab: &Lab) -> Result<()> {
    let directory = terminate::secrets(lab)?;
    let server = DnsServer::start(&lab.lb, SERVER)?;
    server.has(flow::NAME, &[BACKEND], 60)?;
    let listener = listen(lab, BACKEND)?;
    let config = lab.ca.issue(flow::NAME)?.server(&[&TLS13])?;
    let far = thread::spawn(move || -> Result<()> {
        let mut tls = StreamOwned::new(ServerConnection::new(config)?, tcp::accept(&listener)?);
        let mut buffer = [0; 12];
        tls.read_exact(&mut buffer)?;
        ensure!(tls.conn.server_name() == Some(flow::NAME), "{:?}", tls.conn.server_name());
        tls.write_all(&buffer)?;
        // Reads to the client's end, then closes.
        let _ = tls.read(&mut [0; 1]);
        tls.conn.send_close_notify();
        tls.flush()?;
        Ok(())
    });
    let terminate = format!("secrets: {}\n", directory.display());
    let yaml = yaml("", &terminate)
        .replace("backends: egress}", "backends: egress, terminate: {certificates: web}}")
        .replace("sni: \"*\"", "sni: \"*.example.com\"")
        .replace("  dynamic", &format!("  tls: {{ca: {}}}\n  dynamic", lab.ca.file().display()));
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    terminate::exchange(terminate::connect(lab, &lab.ca.client(&[&TLS13])?, flow::NAME)?)?;
    far.join().map_err(|_| anyhow::anyhow!("the server has failed"))?
}
