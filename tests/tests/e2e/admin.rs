//! The admin endpoint, for operators and for unauthorised clients.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use snisplice_tests::{
    daemon::{ADMIN, Daemon, Options, cli},
    lab::Lab,
    netns::LB,
    suite::Case,
    tcp, wait,
};
use socket2::{Domain, Socket, Type};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::once("admin::a_crowd_that_says_nothing_starves_nobody", silent_crowd),
    Case::once("admin::an_unfinished_head_is_bounded_in_time_and_size", unfinished_heads),
    Case::once("admin::who_does_not_read_is_left", deaf),
    Case::once("admin::what_a_web_page_sends_is_refused", web_page),
    Case::once("admin::a_unix_socket_serves_its_owner_alone", unix_socket),
    Case::once("admin::a_unix_socket_goes_over", unix_socket_goes_over),
    Case::once("admin::an_address_for_probes_serves_nothing_else", probes),
    Case::once("admin::the_configuration_in_service_is_shown", in_service),
];

/// Concurrent connections to the endpoint (`admin::server::CONNECTIONS`).
const PLACES: usize = 64;

/// Sends `head` and reads the response: its status, and the whole text.
fn ask(lab: &Lab, address: &str, head: &str) -> Result<(u16, String)> {
    let mut stream = tcp::connect(&lab.lb, address)?;
    stream.write_all(head.as_bytes())?;
    answer(&mut stream)
}

fn answer(stream: &mut impl std::io::Read) -> Result<(u16, String)> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).with_context(|| format!("no answer: {answer:?}"))?;
    Ok((status.parse()?, answer))
}

fn silent_crowd(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let before = daemon.process().descriptors()?;
    let mut crowd = (0..300).map(|_| tcp::connect(&lab.lb, ADMIN)).collect::<Result<Vec<_>>>()?;
    // A client with a request still gets a response, every time.
    for _ in 0..20 {
        let (status, _) = daemon.ask("GET", "/metrics")?;
        ensure!(status == 200, "{status}");
    }
    let now = daemon.process().descriptors()?;
    ensure!(now <= before + PLACES + 8, "{now} descriptors, {before} before");
    flow.exchange()?;
    Flow::open(lab, &listener)?.exchange()?;
    // Connections in service end without an action of the test.
    for stream in &mut crowd {
        end(stream)?;
    }
    wait::until_true("all descriptors are free again", || Ok(daemon.process().descriptors()? <= before + 2))?;
    let log = daemon.process().log()?;
    let lines = log.lines().filter(|line| line.contains("all connections are in use")).count();
    ensure!(lines <= 2, "{lines} lines");
    Ok(())
}

/// Reads until the other end closes, by FIN or RST.
fn end(stream: &mut TcpStream) -> Result<()> {
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("it is not ended"),
        }
    }
}

fn unfinished_heads(lab: &Lab) -> Result<()> {
    let (daemon, _listener) = flow::start(lab, "")?;
    let mut slow = tcp::connect(&lab.lb, ADMIN)?;
    let started = Instant::now();
    slow.write_all(b"GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\n")?;
    end(&mut slow)?;
    let took = started.elapsed();
    ensure!(took >= Duration::from_secs(4), "ended after {took:?}");
    let line = format!("x: {}\r\n", "y".repeat(4_000));
    let mut long = tcp::connect(&lab.lb, ADMIN)?;
    // The response, or a reset, may come before all bytes are sent.
    let _ = long
        .write_all(format!("GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\n{}\r\n", line.repeat(40)).as_bytes());
    let mut said = Vec::new();
    let _ = long.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{said}");
    ensure!(daemon.is_ready()?);
    // A request body is not allowed.
    let (status, _) = ask(
        lab,
        ADMIN,
        "DELETE /connections/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello",
    )?;
    ensure!(status == 413, "{status}");
    Ok(())
}

/// The list of connections is larger than the sockets' buffers.
fn deaf(lab: &Lab) -> Result<()> {
    lab.lb.sysctl("net/ipv4/tcp_wmem", "4096 16384 16384")?;
    let (daemon, listener) = flow::start(lab, "")?;
    let flows = (0..400).map(|_| Flow::open(lab, &listener)).collect::<Result<Vec<_>>>()?;
    let before = daemon.process().descriptors()?;
    let mut askers = Vec::new();
    for _ in 0..PLACES {
        let asker = lab.lb.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_recv_buffer_size(4_096)?;
            socket.connect(&ADMIN.parse::<std::net::SocketAddr>()?.into())?;
            Ok(TcpStream::from(socket))
        })?;
        (&asker).write_all(b"GET /connections HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")?;
        askers.push(asker);
    }
    wait::until_true("they are answered", || Ok(daemon.process().descriptors()? >= before + PLACES - 2))?;
    wait::until_true("they are left", || Ok(daemon.process().descriptors()? <= before + 2))?;
    ensure!(daemon.is_ready()?);
    drop((askers, flows));
    Ok(())
}

fn web_page(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml =
        flow::yaml("admin: {address: \"127.0.0.1:9900\", allow_close: true, hosts: [lb.example.com]}\n");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut flow = Flow::open(lab, &listener)?;
    for (host, more, status) in [
        ("127.0.0.1:9900", "", 200),
        ("localhost:9900", "", 200),
        ("lb.example.com", "", 200),
        ("[::1]:9900", "", 200),
        ("evil.example", "", 403),
        ("evil.example:9900", "", 403),
        ("127.0.0.1:9900", "Origin: http://evil.example\r\n", 403),
        ("127.0.0.1:9900", "Origin: null\r\n", 403),
    ] {
        for request in ["GET /ready", "GET /metrics", "GET /connections"] {
            let head = format!("{request} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n");
            let (found, said) = ask(lab, ADMIN, &head)?;
            ensure!(found == status, "{head}: {said}");
            ensure!(status == 200 || said.contains("admin.hosts") || said.contains("Origin"), "{said}");
        }
    }
    let head = "DELETE /connections?backend=pool HTTP/1.1\r\nHost: evil.example:9900\r\n\r\n";
    ensure!(ask(lab, ADMIN, head)?.0 == 403);
    let twice = "GET /ready HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n";
    ensure!(ask(lab, ADMIN, twice)?.0 == 400);
    flow.exchange()?;
    drop(daemon);
    Ok(())
}

/// The status of `/ready` on a unix socket.
fn ready(path: &std::path::Path) -> Result<u16> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(wait::DEADLINE))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    Ok(answer(&mut stream)?.0)
}

fn unix_socket(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let path = lab.dir().join("run/admin.sock");
    let address = format!("unix:{}", path.display());
    let options = Options::yaml(lab, &flow::yaml(""))?.arg("--admin").arg(&address).arg("--admin-close");
    let mut daemon = Daemon::spawn(lab, &options, "first")?;
    wait::until_true("it serves", || Ok(ready(&path).is_ok_and(|status| status == 200)))?;
    let mode = fs::metadata(&path)?.mode() & 0o777;
    ensure!(mode == 0o600, "mode {mode:o}");
    let mut flow = Flow::open(lab, &listener)?;
    let said = cli(lab, &["connections", "--admin", &address])?.ok()?.stdout;
    ensure!(said.contains("pool"), "{said}");
    let said = cli(lab, &["close", "--admin", &address, "--backend", "pool"])?.ok()?.stdout;
    ensure!(said == "1 closed\n", "{said}");
    tcp::read_to_end(&mut flow.client)?;
    // Another daemon does not replace the socket by mistake.
    let elsewhere = lab.dir().join("elsewhere.yaml");
    fs::write(&elsewhere, flow::yaml("").replace(":8443", ":8444"))?;
    let mut second = Daemon::spawn(lab, &Options::file(&elsewhere).arg("--admin").arg(&address), "second")?;
    ensure!(!second.wait()?.success());
    let log = second.process().log()?;
    ensure!(log.contains("another process serves there") && log.contains("--admin"), "{log}");
    ensure!(ready(&path)? == 200);
    // The socket of a killed daemon is replaced.
    daemon.process().signal(Signal::SIGKILL)?;
    daemon.wait()?;
    ensure!(path.exists());
    let mut third = Daemon::spawn(lab, &options, "third")?;
    wait::until_true("it serves again", || Ok(ready(&path).is_ok_and(|status| status == 200)))?;
    third.terminate()?;
    ensure!(third.wait()?.success());
    ensure!(!path.exists(), "the file stays");
    Ok(())
}

fn unix_socket_goes_over(lab: &Lab) -> Result<()> {
    let _listener = flow::backend(lab)?;
    let path = lab.dir().join("admin.sock");
    let ready_only = format!("{LB}:9901");
    let admin = format!("unix:{}", path.display());
    let options =
        Options::yaml(lab, &flow::yaml(""))?.arg("--admin").arg(admin).arg("--ready").arg(&ready_only);
    let mut old = Daemon::spawn(lab, &options, "old")?;
    wait::until_true("it serves", || Ok(ready(&path).is_ok_and(|status| status == 200)))?;
    let file = fs::metadata(&path)?.ino();
    let mut new = Daemon::take_over(lab, &options, "new")?;
    ensure!(old.wait()?.success());
    ensure!(fs::metadata(&path)?.ino() == file, "it is another socket");
    wait::until_true("the new one serves", || Ok(ready(&path).is_ok_and(|status| status == 200)))?;
    let head = "GET /ready HTTP/1.1\r\nHost: 10.0.1.1\r\n\r\n";
    ensure!(ask(lab, &ready_only, head)?.0 == 200);
    new.terminate()?;
    ensure!(new.wait()?.success());
    ensure!(!path.exists(), "the file stays");
    Ok(())
}

/// The JSON body of the response to `GET path`.
fn get(lab: &Lab, path: &str) -> Result<Value> {
    let (status, said) =
        ask(lab, ADMIN, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))?;
    ensure!(status == 200, "{path}: {said}");
    let body = said.split_once("\r\n\r\n").context("no body")?.1;
    Ok(serde_json::from_str(body)?)
}

fn in_service(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml = flow::yaml("  - name: shop\n    endpoints: [\"10.0.2.2:9\"]\n");
    let more = "  - name: shop\n    listeners: [front]\n    sni: [\"*.shop.example\"]\n    backends:\n      \
                - {name: shop, weight: 3}\n      - {name: pool, weight: 1}\nbackends:\n";
    let yaml = yaml.replacen("backends:\n  - name: pool", &format!("{more}  - name: pool"), 1);
    let options = Options::yaml(lab, &yaml)?.arg("--admin-changes");
    let file = lab.dir().join("snisplice.yaml");
    let daemon = Daemon::start(lab, &options)?;
    let config = get(lab, "/config")?;
    ensure!(config["generation"] == 1 && config["refused"].is_null(), "{config}");
    ensure!(config["paths"] == serde_json::json!([file.display().to_string()]), "{config}");
    ensure!([&config["listeners"], &config["routes"], &config["backends"]] == [1, 2, 2], "{config}");

    let routes = get(lab, "/routes")?;
    let names: Vec<_> =
        routes["routes"].as_array().context("routes")?.iter().map(|one| &one["name"]).collect();
    ensure!(names == [flow::NAME, "*.shop.example"], "{routes}");
    let targets = serde_json::json!([{"backend": "shop", "weight": 3}, {"backend": "pool", "weight": 1}]);
    ensure!(routes["routes"][1]["targets"] == targets, "{routes}");
    ensure!(get(lab, "/routes?listener=none")? == serde_json::json!({"routes": []}));

    let mut flow = Flow::open(lab, &listener)?;
    let explain =
        |name: &str| Ok::<_, anyhow::Error>(cli(lab, &["explain", "--admin", ADMIN, name])?.ok()?.stdout);
    let said = explain(flow::NAME)?;
    let offline = snisplice_tests::daemon::cli_with(lab, "explain", &file, &[flow::NAME])?.ok()?.stdout;
    let live = "  now 1 of 1 endpoints of pool available\n    10.0.2.2:9000: available, 1 connections\n";
    ensure!(said == format!("{offline}{live}"), "{said}");
    let said = explain("www.nowhere.example")?;
    ensure!(said.contains("no rule serves it"), "{said}");
    ensure!(get(lab, "/explain?sni=www.nowhere.example")?["served"] == false);
    ensure!(get(lab, "/explain?sni=a.shop.example&port=8443")?["served"] == true);

    cli(lab, &["drain", "--admin", ADMIN, "pool", "10.0.2.2:9000"])?.ok()?;
    let said = explain(flow::NAME)?;
    ensure!(said.contains("now 0 of 1") && said.contains("10.0.2.2:9000: drained"), "{said}");
    let said = cli(lab, &["backends", "--admin", ADMIN])?.ok()?.stdout;
    let row = said.lines().find(|line| line.starts_with("pool")).context("no row")?.to_owned();
    let words: Vec<_> = row.split_whitespace().collect();
    ensure!(words == ["pool", "10.0.2.2:9000", "1", "0", "drained"], "{said}");
    let said = cli(lab, &["backends", "--admin", ADMIN, "nobody"])?;
    ensure!(said.code != Some(0) && said.stderr.contains("no backend 'nobody'"), "{}", said.stderr);
    let overrides = get(lab, "/config")?["overrides"].clone();
    let drained = serde_json::json!([{"backend": "pool", "endpoint": "10.0.2.2:9000", "drained": true, "weight": null}]);
    ensure!(overrides == drained, "{overrides}");

    fs::write(&file, yaml.replacen("sni:", "snj:", 1))?;
    let refused = cli(lab, &["reload", "--admin", ADMIN])?;
    ensure!(refused.code != Some(0) && refused.stderr.contains("snj"), "{}", refused.stderr);
    let config = get(lab, "/config")?;
    let error = config["refused"]["error"].as_str().context("no error")?;
    ensure!(config["generation"] == 1 && error.contains("snj"), "{config}");
    fs::write(&file, &yaml)?;
    cli(lab, &["reload", "--admin", ADMIN])?.ok()?;
    let config = get(lab, "/config")?;
    ensure!(config["generation"] == 2 && config["refused"].is_null(), "{config}");
    ensure!(config["overrides"] == drained, "{config}");
    flow.exchange()?;
    drop(daemon);
    Ok(())
}

fn probes(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml =
        flow::yaml(&format!("admin: {{address: \"{ADMIN}\", ready: \"{LB}:9901\", allow_close: true}}\n"));
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut flow = Flow::open(lab, &listener)?;
    for (request, status) in [
        ("GET /ready", 200),
        ("HEAD /ready", 200),
        ("GET /metrics", 404),
        ("GET /connections", 404),
        ("DELETE /connections?backend=pool", 404),
        ("POST /ready", 405),
    ] {
        // A kubelet uses any configured host name.
        let head = format!("{request} HTTP/1.1\r\nHost: balancer.internal\r\n\r\n");
        let mut stream = tcp::connect(&lab.client, &format!("{LB}:9901"))?;
        stream.write_all(head.as_bytes())?;
        let (found, said) = answer(&mut stream)?;
        ensure!(found == status, "{head}: {said}");
    }
    flow.exchange()?;
    daemon.terminate()?;
    let draining = "GET /ready HTTP/1.1\r\nHost: x\r\n\r\n";
    wait::until_true("it says that it stops", || Ok(ask(lab, &format!("{LB}:9901"), draining)?.0 == 503))?;
    Ok(())
}
