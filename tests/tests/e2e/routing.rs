//! The right backend for each name: Istio's own YAML with real nginx, curl and openssl, then weights and IPv6.

use std::{io::Write as _, net::TcpStream, path::Path, thread};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    kernel::Map,
    lab::Lab,
    metrics::Metrics,
    netns::{BACKEND, BACKEND_2, BACKEND_3, BACKEND_V6, LB, LB_V6},
    peers::{curl, ensure_verified, gnutls, nginx, nginx_answer, s_client},
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("routing::asm_tls_passthrough", |lab| passthrough(lab, &ASM)),
    Case::each("routing::istio_sni_passthrough", |lab| passthrough(lab, &ISTIO)),
    Case::each("routing::istio_wildcard_gateway", |lab| passthrough(lab, &WILDCARD)),
    Case::each("routing::each_name_reaches_its_own_backend", each_name_reaches_its_own_backend),
    Case::each("routing::weights_are_exact", weights_are_exact),
    Case::each("routing::endpoints_take_turns", endpoints_take_turns),
    Case::each("routing::ipv6_on_both_sides", ipv6_on_both_sides),
    Case::sockmap("routing::the_kernel_counts_what_it_moved", the_kernel_counts_what_it_moved),
];

/// One published passthrough setting: its YAML, unedited, and what it should do.
struct Scenario {
    /// Directory of its files.
    setting: &'static str,
    name: &'static str,
    port: u16,
    destination: &'static str,
    /// A name that the same port must not serve.
    foreign: &'static str,
}

const ASM: Scenario = Scenario {
    setting: "asm-passthrough",
    name: "sample.aliyun.com",
    port: 443,
    destination: "mynginxapp.default.svc.cluster.local",
    foreign: "other.aliyun.com",
};

const ISTIO: Scenario = Scenario {
    setting: "istio-sni-passthrough",
    name: "nginx.example.com",
    port: 443,
    destination: "my-nginx.default.svc.cluster.local",
    foreign: "www.example.com",
};

const WILDCARD: Scenario = Scenario {
    setting: "wildcard-gateway",
    name: "nginx.tls.danielstechblog.de",
    port: 10443,
    destination: "my-nginx.nginx.svc.cluster.local",
    foreign: "tls.danielstechblog.de",
};

fn passthrough(lab: &Lab, scenario: &Scenario) -> Result<()> {
    let Scenario { setting, name, port, destination, foreign } = scenario;
    let leaf = lab.ca.issue(name)?;
    let _nginx = nginx(lab, &[(&format!("{BACKEND}:443"), &leaf)])?;
    let yaml = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/testdata").join(setting);
    let daemon = Daemon::start(lab, &Options::file(yaml).resolve(destination, 443, BACKEND))?;

    let said = curl(lab, name, *port, LB)?.ok()?;
    ensure!(said.stdout == nginx_answer(&leaf), "{}", said.stdout);
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(lab, name, &format!("{LB}:{port}"), &[version])?;
        ensure_verified(&said, name).with_context(|| version)?;
    }
    // curl 35: the connection was closed during the handshake; 56: reset.
    let refused = curl(lab, foreign, *port, LB)?;
    ensure!(matches!(refused.code, Some(35 | 56)), "{refused:?}");

    let by = |name: &str, metrics: &Metrics| -> i64 {
        lab.datapath.carriers().iter().map(|by| metrics.sum(name, &[("datapath", by)])).sum()
    };
    let metrics = daemon.wait_metrics("all four connections are counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[]) == 4
    })?;
    ensure!(by("snisplice_connections_closed_total", &metrics) == 3, "{metrics:?}");
    ensure!(by("snisplice_bytes_total", &metrics) > 0, "{metrics:?}");
    ensure!(metrics.sum("snisplice_unrouted_total", &[("verdict", "unknown_name")]) == 1, "{metrics:?}");
    Ok(())
}

fn each_name_reaches_its_own_backend(lab: &Lab) -> Result<()> {
    let names = ["a.example.com", "b.example.com", "deep.under.c.example.com"];
    let leaves: Result<Vec<_>> = names.iter().map(|name| lab.ca.issue(name)).collect();
    let leaves = leaves?;
    let addresses = [BACKEND, BACKEND_2, BACKEND_3].map(|address| format!("{address}:443"));
    let servers: Vec<_> = addresses.iter().map(String::as_str).zip(&leaves).collect();
    let _nginx = nginx(lab, &servers)?;
    let yaml = format!(
        "listeners:\n  - {{name: front, bind: [\"0.0.0.0:443\"]}}\n\
         routes:\n\
         \x20 - {{name: a, sni: [A.example.com], backends: [{{name: a}}]}}\n\
         \x20 - {{name: b, sni: [b.example.com], backends: [{{name: b}}]}}\n\
         \x20 - {{name: c, sni: [\"*.c.example.com\"], backends: [{{name: c}}]}}\n\
         backends:\n\
         \x20 - {{name: a, endpoints: [\"{}\"]}}\n  - {{name: b, endpoints: [\"{}\"]}}\n  - {{name: c, endpoints: [\"{}\"]}}\n",
        addresses[0], addresses[1], addresses[2]
    );
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    for leaf in &leaves {
        let said = curl(lab, &leaf.name, 443, LB)?.ok()?;
        ensure!(said.stdout == nginx_answer(leaf), "{}", said.stdout);
        ensure_verified(&s_client(lab, &leaf.name, &format!("{LB}:443"), &[])?, &leaf.name)?;
        gnutls(lab, &leaf.name, LB, 443)?.ok()?;
    }
    Ok(())
}

/// Opens `count` connections and says how many reached each listener.
fn spread(lab: &Lab, listeners: &[std::net::TcpListener], count: usize) -> Result<Vec<usize>> {
    let hello = hello::naming(NAME)?;
    let mut reached = vec![0; listeners.len()];
    for listener in listeners {
        listener.set_nonblocking(true)?;
    }
    for _ in 0..count {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&hello)?;
        let index = snisplice_tests::wait::until("a backend is reached", || {
            Ok(listeners.iter().position(|listener| listener.accept().is_ok()))
        })?;
        reached[index] += 1;
    }
    Ok(reached)
}

fn weights_are_exact(lab: &Lab) -> Result<()> {
    let addresses = [BACKEND, BACKEND_2, BACKEND_3].map(|address| format!("{address}:9000"));
    let listeners: Result<Vec<_>> =
        addresses.iter().map(|address| tcp::listen(&lab.backend, address)).collect();
    let yaml = format!(
        "listeners:\n  - {{name: front, bind: [\"0.0.0.0:8443\"]}}\n\
         routes:\n  - name: www\n    sni: [{NAME}]\n    backends:\n\
         \x20     - {{name: a, weight: 70}}\n      - {{name: b, weight: 20}}\n      - {{name: c, weight: 10}}\n\
         backends:\n\
         \x20 - {{name: a, endpoints: [\"{}\"]}}\n  - {{name: b, endpoints: [\"{}\"]}}\n  - {{name: c, endpoints: [\"{}\"]}}\n",
        addresses[0], addresses[1], addresses[2]
    );
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let reached = spread(lab, &listeners?, 60)?;
    ensure!(reached == [42, 12, 6], "{reached:?}");
    Ok(())
}

fn endpoints_take_turns(lab: &Lab) -> Result<()> {
    let addresses = [BACKEND, BACKEND_2, BACKEND_3].map(|address| format!("{address}:9000"));
    let listeners: Result<Vec<_>> =
        addresses.iter().map(|address| tcp::listen(&lab.backend, address)).collect();
    let endpoints: Vec<_> = addresses.iter().map(String::as_str).collect();
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml_with(&endpoints, ""))?)?;
    let reached = spread(lab, &listeners?, 30)?;
    ensure!(reached == [10, 10, 10], "{reached:?}");
    Ok(())
}

fn ipv6_on_both_sides(lab: &Lab) -> Result<()> {
    let leaf = lab.ca.issue(NAME)?;
    let server = format!("[{BACKEND_V6}]:443");
    let _nginx = nginx(lab, &[(&server, &leaf)])?;
    let yaml = flow::yaml_with(&[&server], "").replace("0.0.0.0", "[::]");
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let said = curl(lab, NAME, 8443, &format!("[{LB_V6}]"))?.ok()?;
    ensure!(said.stdout == nginx_answer(&leaf), "{}", said.stdout);
    Ok(())
}

/// That the kernel itself moved the bytes: by the state that `bpftool` prints by name, and by its own counters.
fn the_kernel_counts_what_it_moved(lab: &Lab) -> Result<()> {
    const EXCHANGES: u64 = 100;
    const BULK: u64 = 20_000_000;
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..EXCHANGES {
        flow.exchange()?;
    }
    // Peers that keep up: not a byte comes to userspace.
    let (up, down) = (hello::naming(NAME)?.len() as u64 + EXCHANGES * 8, EXCHANGES * 6);
    ensure!(in_flight(&daemon)? == [(up, 0), (down, 0)], "{:?}", in_flight(&daemon)?);

    // Peers that do not may make it pass some, which userspace copies.
    let pattern = Pattern::new(11);
    send_and_receive(&flow.client, &flow.backend, &pattern, BULK)?;
    send_and_receive(&flow.backend, &flow.client, &pattern, BULK)?;
    let moved = in_flight(&daemon)?;
    for ((redirected, passed), (before, whole)) in moved.iter().zip([(up, up + BULK), (down, down + BULK)]) {
        ensure!(redirected + passed == whole && *redirected > before, "{moved:?}");
    }

    drop(flow);
    let metrics = daemon.wait_metrics("the connection is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("datapath", "sockmap"), ("reason", "finished")])
            == 1
    })?;
    let redirected: u64 = moved.iter().map(|(redirected, _)| redirected).sum();
    ensure!(
        u64::try_from(metrics.sum("snisplice_sockmap_redirected_bytes_total", &[]))? == redirected,
        "{metrics:?}"
    );
    Ok(())
}

/// What the kernel redirected and passed in each direction of the only connection, the way up first.
fn in_flight(daemon: &Daemon<'_>) -> Result<Vec<(u64, u64)>> {
    let maps = Map::held_by(daemon.process().pid())?;
    let flows = maps.iter().find(|map| map.name == "SNI_FLOWS").context("no map SNI_FLOWS")?.elements()?;
    let field = |element: &Value, name: &str| {
        element["formatted"]["value"][name].as_u64().with_context(|| format!("no field {name} in {element}"))
    };
    let mut ways = flows
        .iter()
        .map(|way| {
            // The lowest bit of a token tells the side that the direction receives from: the client's is 0. Cookies
            // tell nothing, since each processor has a supply of its own.
            let side = field(way, "token")? & 1;
            Ok((side, (field(way, "redirected")?, field(way, "passed")?)))
        })
        .collect::<Result<Vec<_>>>()?;
    ways.sort_unstable();
    Ok(ways.into_iter().map(|(_, moved)| moved).collect())
}

fn send_and_receive(mut from: &TcpStream, mut to: &TcpStream, pattern: &Pattern, bytes: u64) -> Result<()> {
    thread::scope(|scope| {
        let receiving = scope.spawn(|| stream::receive(&mut to, pattern, bytes));
        stream::send(&mut from, pattern, bytes, Pace::uneven(12))?;
        receiving.join().expect("the receiver does not panic")
    })
}
