//! Transparent backends: their endpoints see the client's address.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::mpsc,
    thread,
};

use anyhow::{Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options, cli_with},
    hello,
    lab::Lab,
    netns::{BACKEND, BACKEND_V6, CLIENT, LB, LB_V6, Netns},
    process::run,
    suite::Case,
    tcp,
};

use crate::{
    connect::turned_away,
    flow::{self, Flow},
    persistence::{SETTINGS, kill, moved, under_traffic, wait_kept},
    proxy_protocol::ask,
};

pub(crate) const CASES: &[Case] = &[
    Case::each("transparent::an_endpoint_sees_the_client", over_ipv4),
    Case::each("transparent::an_endpoint_sees_the_client_over_ipv6", over_ipv6),
    Case::packet("transparent::a_flow_outlives_the_process", outlives_the_process),
    Case::once("transparent::requests_of_two_clients_are_not_mixed", requests),
    Case::once("transparent::missing_rules_are_found", missing_rules),
    Case::once("transparent::a_client_of_another_family_is_refused", another_family),
];

/// The client's IPv6 address.
const CLIENT_V6: &str = "fd00:1::2";

/// The configuration with a transparent backend.
fn yaml(more: &str) -> String {
    flow::yaml(more).replace("endpoints:", "transparent: true\n    endpoints:")
}

fn yaml_v6() -> String {
    flow::yaml_with(&[&format!("[{BACKEND_V6}]:9000")], "")
        .replace("endpoints:", "transparent: true\n    endpoints:")
        .replace("0.0.0.0:", "[::]:")
}

fn front_v6() -> String {
    flow::front().replace(LB, &format!("[{LB_V6}]"))
}

fn file(lab: &Lab, yaml: &str) -> Result<PathBuf> {
    let path = lab.dir().join("transparent.yaml");
    fs::write(&path, yaml)?;
    Ok(path)
}

fn ip(netns: &Netns, command: &str) -> Result<()> {
    run(netns, Command::new("ip").args(command.split(' ')))?.ok()?;
    Ok(())
}

/// The backend's replies to clients pass the balancer, as its gateway.
fn through_the_balancer(lab: &Lab) -> Result<()> {
    ip(&lab.backend, "route add default via 10.0.2.1")?;
    ip(&lab.backend, "-6 route add default via fd00:2::1")
}

/// Applies the rules that `check` prints.
fn apply_rules(lab: &Lab, yaml: &str) -> Result<()> {
    let said = cli_with(lab, "check", &file(lab, yaml)?, &[])?.ok()?;
    let rules: Vec<_> = said.stdout.lines().filter_map(|line| line.trim().strip_prefix("ip ")).collect();
    ensure!(rules.len() == 2, "{}", said.stdout);
    rules.into_iter().try_for_each(|rule| ip(&lab.lb, rule))
}

fn serve<'lab>(lab: &'lab Lab, yaml: &str) -> Result<Daemon<'lab>> {
    through_the_balancer(lab)?;
    apply_rules(lab, yaml)?;
    Daemon::start(lab, &Options::yaml(lab, yaml)?)
}

/// The backend accepts a connection from the client's address, and all bytes arrive, also after an offload.
fn sees(lab: &Lab, daemon: &Daemon<'_>, flow: Flow, client: &str) -> Result<()> {
    let source = flow.backend.peer_addr()?.ip();
    ensure!(source == client.parse::<IpAddr>()?, "the backend sees {source}");
    let flows = [flow];
    under_traffic(&flows, |traffic| {
        moved("bytes move", traffic)?;
        moved("more bytes move", traffic)
    })?;
    let [mut flow] = flows;
    flow.exchange()?;
    drop(flow);
    let carrier = lab.datapath.carriers().last().copied().unwrap_or_default();
    daemon.wait_metrics("the connection is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("datapath", carrier)]) == 1
    })?;
    Ok(())
}

fn over_ipv4(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = serve(lab, &yaml(""))?;
    sees(lab, &daemon, Flow::open(lab, &listener)?, CLIENT)
}

fn over_ipv6(lab: &Lab) -> Result<()> {
    let listener = tcp::listen(&lab.backend, &format!("[{BACKEND_V6}]:9000"))?;
    let daemon = serve(lab, &yaml_v6())?;
    let mut client = tcp::connect(&lab.client, &front_v6())?;
    let hello = hello::naming(flow::NAME)?;
    client.write_all(&hello)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, hello.len())? == hello);
    sees(lab, &daemon, Flow { client, backend }, CLIENT_V6)
}

/// Answers each request with the address of its connection's peer, and reports each connection.
fn answer(listener: TcpListener, accepted: mpsc::Sender<IpAddr>) {
    thread::spawn(move || {
        while let Ok((stream, peer)) = listener.accept() {
            let accepted = accepted.clone();
            thread::spawn(move || -> Result<()> {
                accepted.send(peer.ip())?;
                let (mut lines, body) = (BufReader::new(stream.try_clone()?).lines(), peer.ip().to_string());
                while let Some(line) = lines.next().transpose()? {
                    if line.is_empty() {
                        let length = body.len();
                        write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")?;
                    }
                }
                Ok(())
            });
        }
    });
}

/// Requests of one client do not go over a connection with another client's address, even if it is idle.
fn requests(lab: &Lab) -> Result<()> {
    let (accepted, seen) = mpsc::channel();
    answer(flow::backend(lab)?, accepted);
    let yaml = format!(
        "listeners:\n- name: front\n  bind: 0.0.0.0:8443\n  proxy_protocol: {{from: {CLIENT}}}\n  \
         http: [{{backends: pool}}]\n\
         backends: [{{name: pool, transparent: true, endpoints: \"{BACKEND}:9000\"}}]\n"
    );
    let _daemon = serve(lab, &yaml)?;
    let mut clients = Vec::new();
    for last in [7, 8] {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        write!(client, "PROXY TCP4 203.0.113.{last} 198.51.100.1 4711 443\r\n")?;
        clients.push((format!("203.0.113.{last}"), client));
    }
    for _ in 0..3 {
        for (address, client) in &clients {
            let seen = ask(client)?;
            ensure!(seen == *address, "the backend of {address} sees {seen}");
        }
    }
    let seen: Vec<_> = seen.try_iter().collect();
    ensure!(seen.len() == 2, "{seen:?}");
    Ok(())
}

/// The next process makes sockets with the client's address.
fn outlives_the_process(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let yaml = yaml(SETTINGS);
    let daemon = serve(lab, &yaml)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    wait_kept(&daemon, 1)?;
    kill(daemon)?;
    flow.exchange()?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    daemon.wait_metrics("the flow is adopted", |metrics| {
        metrics.sum("snisplice_packet_adopted_total", &[]) == 1
    })?;
    flow.exchange()?;
    // New connections beside it have the client's address, too.
    let mut other = Flow::open(lab, &listener)?;
    ensure!(other.backend.peer_addr()?.ip() == CLIENT.parse::<IpAddr>()?);
    other.exchange()?;
    flow.exchange()
}

/// Without rules, replies do not arrive. `probe --config` finds that out beforehand, and names the rules.
fn missing_rules(lab: &Lab) -> Result<()> {
    const REPLIES: &str = "backend pool: replies of 10.0.2.2:9000 to clients";
    let yaml = yaml("timeouts: {connect: 300ms}\n");
    let listener = flow::backend(lab)?;
    through_the_balancer(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let config = file(lab, &yaml)?;
    let said = cli_with(lab, "probe", &config, &["packet"])?;
    ensure!(said.code == Some(1) && said.stdout.contains(&format!("failed   {REPLIES}")), "{}", said.stdout);
    let rule = "remedy: ip rule add from 10.0.2.2 ipproto tcp sport 9000 lookup 5340";
    ensure!(said.stdout.contains(rule), "{}", said.stdout);
    turned_away(lab)?;
    daemon.wait_metrics("the attempt times out", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "connect_timeout")]) == 1
    })?;
    apply_rules(lab, &yaml)?;
    let said = cli_with(lab, "probe", &config, &["packet"])?;
    ensure!(said.stdout.contains(&format!("ok       {REPLIES}")), "{}", said.stdout);
    Flow::open(lab, &listener)?.exchange()
}

fn another_family(lab: &Lab) -> Result<()> {
    let yaml = yaml("").replace("bind: [\"0.0.0.0:8443\"]", "bind: [\"0.0.0.0:8443\", \"[::]:8443\"]");
    let listener = flow::backend(lab)?;
    let daemon = serve(lab, &yaml)?;
    let mut client = tcp::connect(&lab.client, &front_v6())?;
    client.write_all(&hello::naming(flow::NAME)?)?;
    ensure!(tcp::read_to_end(&mut client)?.0.is_empty());
    daemon.wait_metrics("the client is refused", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "no_source_address")]) == 1
    })?;
    daemon.wait_log("the client's address is of another family")?;
    Flow::open(lab, &listener)?.exchange()
}
