//! The right backend for each name: Istio's own YAML with real nginx, curl and openssl, then weights and IPv6.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    kernel::Map,
    lab::Lab,
    metrics::Metrics,
    netns::{BACKEND, BACKEND_2, BACKEND_3, BACKEND_V6, LB, LB_V6},
    peers::{self, curl, ensure_verified, gnutls, nginx, nginx_answer, s_client},
    process::run,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp,
};

use crate::flow::{self, Flow, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("routing::asm_tls_passthrough", |lab| passthrough(lab, &ASM)),
    Case::each("routing::istio_sni_passthrough", |lab| passthrough(lab, &ISTIO)),
    Case::each("routing::istio_wildcard_gateway", |lab| passthrough(lab, &WILDCARD)),
    Case::once("routing::istio_termination_and_passthrough", termination_and_passthrough),
    Case::each("routing::each_name_reaches_its_own_backend", each_name_reaches_its_own_backend),
    Case::each("routing::weights_are_exact", weights_are_exact),
    Case::each("routing::endpoints_take_turns", endpoints_take_turns),
    Case::each("routing::ipv6_on_both_sides", ipv6_on_both_sides),
    Case::sockmap("routing::the_kernel_counts_what_it_moved", the_kernel_counts_what_it_moved),
];

/// One published passthrough configuration: its unedited YAML, and the expected behaviour.
struct Scenario {
    /// The directory of its files.
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

/// The published, unedited configuration with termination, a redirect, passthrough, an access log and a status port,
/// beside a route for the requests of one name.
fn termination_and_passthrough(lab: &Lab) -> Result<()> {
    const NAME: &str = "www.danielstechblog.de";
    const ROUTE: &str = "\
        apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
        metadata: {name: www, namespace: istio-config}\n\
        spec:\n  hosts: [www.danielstechblog.de]\n  gateways: [azst-aks-gateway]\n  http:\n\
        \x20 - match: [{uri: {prefix: /app/}}]\n    rewrite: {uri: /}\n\
        \x20   route: [{destination: {host: web, port: {number: 80}}}]\n";
    let leaf = lab.ca.issue(WILDCARD.name)?;
    let _nginx = nginx(lab, &[(&format!("{BACKEND}:443"), &leaf)])?;
    let secrets = lab.dir().join("secrets");
    fs::create_dir(&secrets)?;
    let ours = lab.ca.issue("*.danielstechblog.de")?;
    fs::copy(&ours.certificate, secrets.join("istio-ingress-cert.crt"))?;
    fs::copy(&ours.key, secrets.join("istio-ingress-cert.key"))?;
    let route = lab.dir().join("route.yaml");
    fs::write(&route, ROUTE)?;
    let web = flow::backend(lab)?;
    let yaml = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/testdata/wildcard-gateway");
    let options = Options::file(yaml)
        .and_file(&route)
        .arg("--secrets")
        .arg(secrets.display().to_string())
        .resolve(WILDCARD.destination, 443, BACKEND)
        .arg("--resolve")
        .arg(format!("web.istio-config.svc.cluster.local:80:{}", web.local_addr()?));
    let daemon = Daemon::start(lab, &options)?;

    let curl = |more: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*", "--cacert"]);
        command.arg(lab.ca.file());
        for port in [80, 443] {
            command.args(["--resolve", &format!("{NAME}:{port}:{LB}")]);
        }
        run(&lab.client, command.args(more))?.ok()
    };
    let shown = ["--output", "/dev/null", "--write-out", "%{http_code} %{http_version} %{redirect_url}"];
    let said = curl(&[&shown[..], &["http://www.danielstechblog.de/a?b"]].concat())?.stdout;
    ensure!(said == "301 1.1 https://www.danielstechblog.de/a?b", "{said}");
    let said = curl(&[&shown[..], &["https://www.danielstechblog.de/none"]].concat())?.stdout;
    ensure!(said == "404 2 ", "{said}");
    let said = curl(&[&shown[..], &[&format!("http://{LB}:15021/healthz/ready")]].concat())?;
    ensure!(said.stdout == "200 1.1 ", "{said:?}");
    let served = thread::scope(|scope| {
        let serving = scope.spawn(|| answer_one_request(&web));
        let said = curl(&["https://www.danielstechblog.de/app/x?y"])?.stdout;
        ensure!(said == "hello", "{said}");
        serving.join().expect("the backend does not panic")
    })?;
    ensure!(served.starts_with("GET /x?y HTTP/1.1\r\n"), "{served}");
    let served = served.to_ascii_lowercase();
    for header in ["host: www.danielstechblog.de\r\n", "x-forwarded-proto: https\r\n"] {
        ensure!(served.contains(header), "{served}");
    }
    let said = peers::curl(lab, WILDCARD.name, WILDCARD.port, LB)?.ok()?;
    ensure!(said.stdout == nginx_answer(&leaf), "{}", said.stdout);

    daemon.wait_log("\"path\":\"/app/x?y\"")?;
    let log = daemon.process().log()?;
    let lines = log.lines().filter(|line| line.starts_with('{'));
    let lines = lines.map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    let of = |path: &str| lines.iter().find(|line| line["path"] == path).context(path.to_owned());
    let forwarded = of("/app/x?y")?;
    for (field, value) in [
        ("method", "GET".into()),
        ("protocol", "HTTP/2".into()),
        ("authority", NAME.into()),
        ("requested_server_name", NAME.into()),
        ("response_code", 200.into()),
        ("response_code_details", "via_upstream".into()),
        ("bytes_sent", 5.into()),
        ("upstream_host", web.local_addr()?.to_string().into()),
        ("route_name", "VirtualService istio-config/www http[0]".into()),
    ] as [(_, Value); 9]
    {
        ensure!(forwarded[field] == value, "{field}: {forwarded}");
    }
    let missing = of("/none")?;
    ensure!(missing["response_code"] == 404 && missing["response_flags"] == "NR", "{missing}");
    ensure!(of("/a?b")?["response_code"] == 301, "{lines:?}");
    Ok(())
}

/// Answers one request with `hello`, and returns its head.
fn answer_one_request(web: &TcpListener) -> Result<String> {
    let (mut client, _) = web.accept()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?;
    Ok(String::from_utf8(head)?)
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

/// Opens `count` connections. Returns the number of each listener.
fn spread(lab: &Lab, listeners: &[TcpListener], count: usize) -> Result<Vec<usize>> {
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

/// Checks that the kernel itself moved the bytes: by the state that `bpftool` prints by name, and by the kernel's
/// counters.
fn the_kernel_counts_what_it_moved(lab: &Lab) -> Result<()> {
    const EXCHANGES: u64 = 100;
    const BULK: u64 = 20_000_000;
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..EXCHANGES {
        flow.exchange()?;
    }
    // With peers that keep up, no byte reaches userspace.
    let (up, down) = (hello::naming(NAME)?.len() as u64 + EXCHANGES * 8, EXCHANGES * 6);
    ensure!(in_flight(&daemon)? == [(up, 0), (down, 0)], "{:?}", in_flight(&daemon)?);

    // With slower peers, the program may pass some bytes, which userspace copies.
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

/// The bytes that the kernel redirected and passed in each direction of the only connection, the up direction first.
fn in_flight(daemon: &Daemon<'_>) -> Result<Vec<(u64, u64)>> {
    let maps = Map::held_by(daemon.process().pid())?;
    let flows = maps.iter().find(|map| map.name == "SNI_FLOWS").context("no map SNI_FLOWS")?.elements()?;
    let field = |element: &Value, name: &str| {
        element["formatted"]["value"][name].as_u64().with_context(|| format!("no field {name} in {element}"))
    };
    let mut ways = flows
        .iter()
        .map(|way| {
            // The lowest bit of a token is the side from which the direction receives: the client's is 0. Cookies are
            // not usable, since each processor has its own supply.
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
