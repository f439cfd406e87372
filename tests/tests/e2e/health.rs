//! Endpoints that die, return, fail or vanish: active checks, outlier detection and panic.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use rustls::{ServerConfig, ServerConnection, StreamOwned, version::TLS13};
use snisplice_tests::{
    daemon::{Daemon, Options, cli_with},
    hello,
    lab::Lab,
    netns::{BACKEND, BACKEND_2, BACKEND_3},
    process::run,
    suite::Case,
    tcp, wait,
};

use crate::{flow, packet::nft};

pub(crate) const CASES: &[Case] = &[
    Case::each("health::a_dead_endpoint_is_taken_out_and_returns", dead_endpoint),
    Case::once("health::a_tls_check_wants_a_server_hello", tls_check),
    Case::each("health::resets_before_the_first_byte_eject", resets_eject),
    Case::once("health::refused_connections_eject", refused_eject),
    Case::once("health::failing_responses_eject", responses_eject),
    Case::each("health::a_rolling_restart_under_load_fails_nothing", rolling_restart),
    Case::each("health::a_blackholed_backend_fails_nothing", blackhole),
    Case::once("health::all_down_is_panic", all_down),
    Case::once("health::all_down_without_panic_is_refused", none_left),
    Case::once("health::a_backup_serves_instead_of_panic", backup),
    Case::once("health::certificates_are_held_against_the_routes", certificates),
    Case::once("health::a_reload_keeps_what_is_known", reload),
    Case::once("health::a_new_process_checks_at_once", succession),
];

/// The behaviour of a test server.
#[derive(Clone)]
enum Manner {
    /// Sends its number, then echoes the received bytes.
    Echo,
    /// Reads, and resets.
    Reset,
    /// Speaks TLS, and ends with the client.
    Tls(Arc<ServerConfig>),
    /// Answers an HTTP request with this status.
    Http(&'static str),
}

/// A server that can be stopped and started.
struct Server {
    address: String,
    manner: Arc<Mutex<Manner>>,
    stop: Arc<AtomicBool>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts a server with this number.
    fn start(lab: &Lab, host: &str, number: u8, manner: Manner) -> Result<Self> {
        let address = format!("{host}:9000");
        let mut server =
            Self { address, manner: Arc::new(Mutex::new(manner)), stop: Arc::default(), acceptor: None };
        server.listen(lab, number)?;
        Ok(server)
    }

    fn listen(&mut self, lab: &Lab, number: u8) -> Result<()> {
        let listener = tcp::listen(&lab.backend, &self.address)?;
        listener.set_nonblocking(true)?;
        let (stop, manner) = (Arc::new(AtomicBool::new(false)), self.manner.clone());
        self.stop = stop.clone();
        self.acceptor = Some(thread::spawn(move || accept(&listener, number, &manner, &stop)));
        Ok(())
    }

    fn becomes(&self, manner: Manner) {
        *self.manner.lock().expect("no thread panics with it") = manner;
    }

    /// Accepts pending connections, and stops listening. Open connections stay in service.
    fn stop(&mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        match self.acceptor.take().map(thread::JoinHandle::join) {
            Some(Err(_)) => bail!("a server has panicked"),
            _ => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn accept(listener: &TcpListener, number: u8, manner: &Mutex<Manner>, stop: &AtomicBool) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let manner = manner.lock().expect("no thread panics with it").clone();
                // Errors are ignored: a check may disconnect at any time.
                thread::spawn(move || serve(stream, number, &manner));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if stop.load(Relaxed) {
                    return;
                }
                thread::sleep(Duration::from_millis(2));
            }
            Err(_) => {}
        }
    }
}

fn serve(mut stream: TcpStream, number: u8, manner: &Manner) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(wait::DEADLINE))?;
    let mut buffer = [0; 4096];
    match manner {
        Manner::Echo => {
            let mut first = true;
            loop {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                if std::mem::take(&mut first) {
                    stream.write_all(&[number])?;
                }
                stream.write_all(&buffer[..count])?;
            }
        }
        Manner::Reset => {
            if stream.read(&mut buffer)? > 0 {
                tcp::reset(stream)?;
            }
        }
        Manner::Tls(config) => {
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone())?, stream);
            while stream.read(&mut buffer)? > 0 {
                stream.write_all(&[number])?;
                stream.flush()?;
            }
        }
        Manner::Http(status) => {
            let _ = stream.read(&mut buffer)?;
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 1\r\nconnection: close\r\n\r\n{number}")?;
        }
    }
    Ok(())
}

/// Serves one connection to its end. Returns the number of the server, or `None` if none answered.
fn ask(lab: &Lab) -> Result<Option<u8>> {
    let hello = hello::naming(flow::NAME)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    // A connection that is reset before the write ends all the same.
    let _ = client.write_all(&hello);
    let mut answer = vec![0; hello.len() + 1];
    match client.read_exact(&mut answer) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
            return Ok(None);
        }
        Err(error) => return Err(error).context("no answer, and no end"),
    }
    ensure!(answer[1..] == hello, "the hello was changed on its way");
    client.write_all(b"more")?;
    ensure!(tcp::read_exact(&mut client, 4)? == b"more");
    Ok(Some(answer[0]))
}

/// Opens `times` connections. Returns the numbers of their servers. None may fail.
fn answered(lab: &Lab, times: usize) -> Result<BTreeSet<u8>> {
    (0..times).map(|at| ask(lab)?.with_context(|| format!("connection {at} has failed"))).collect()
}

/// Waits until both servers answer.
fn both_answer(lab: &Lab) -> Result<()> {
    wait::until_true("both servers answer", || Ok(answered(lab, 8)?.len() == 2))
}

/// The plain setting with these endpoints and further keys of the backend.
fn yaml(hosts: &[&str], keys: &str) -> String {
    let endpoints: Vec<_> = hosts.iter().map(|host| format!("{host}:9000")).collect();
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    flow::yaml_with(&endpoints, keys)
}

/// Checks with short intervals.
const QUICK: &str =
    "    health_check: {interval: 100ms, unhealthy_interval: 100ms, timeout: 2s, rise: 2, fall: 2}\n";

fn start<'lab>(lab: &'lab Lab, hosts: &[&str], keys: &str) -> Result<Daemon<'lab>> {
    Daemon::start(lab, &Options::yaml(lab, &yaml(hosts, keys))?)
}

/// Waits until a gauge of a host's endpoint has this value.
fn wait_endpoint(daemon: &Daemon<'_>, gauge: &str, host: &str, value: i64) -> Result<()> {
    let endpoint = format!("{host}:9000");
    let labels = [("backend", "pool"), ("endpoint", endpoint.as_str())];
    let name = format!("snisplice_{gauge}");
    daemon.wait_metrics(&format!("{gauge} of {host} is {value}"), |metrics| {
        metrics.find(&name, &labels) == Some(value)
    })?;
    Ok(())
}

fn failures(daemon: &Daemon<'_>) -> Result<i64> {
    Ok(daemon.metrics()?.sum("snisplice_connect_failures_total", &[]))
}

fn dead_endpoint(lab: &Lab) -> Result<()> {
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    let mut second = Server::start(lab, BACKEND_2, 2, Manner::Echo)?;
    let daemon = start(lab, &[BACKEND, BACKEND_2], QUICK)?;
    both_answer(lab)?;
    second.stop()?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 0)?;
    daemon.wait_log("endpoint is unhealthy")?;
    let before = failures(&daemon)?;
    ensure!(answered(lab, 12)? == BTreeSet::from([1]));
    ensure!(failures(&daemon)? == before, "the dead endpoint is tried by connections");
    let (_, text) = daemon.ask("GET", "/backends?backend=pool")?;
    ensure!(text.contains("\"healthy\":false") && text.contains("refused"), "{text}");
    second.listen(lab, 2)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 1)?;
    daemon.wait_log("endpoint is healthy again")?;
    both_answer(lab)
}

fn tls_check(lab: &Lab) -> Result<()> {
    let leaf = lab.ca.issue(flow::NAME)?;
    let speaks = Manner::Tls(leaf.server(&[&TLS13])?);
    let _first = Server::start(lab, BACKEND, 1, speaks.clone())?;
    // The server accepts connections, but does not speak TLS.
    let second = Server::start(lab, BACKEND_2, 2, Manner::Echo)?;
    let check = format!(
        "    health_check: {{type: tls, sni: {}, alpn: [h2, http/1.1], interval: 100ms, unhealthy_interval: 100ms, \
         fall: 1, rise: 1}}\n",
        flow::NAME
    );
    let daemon = start(lab, &[BACKEND, BACKEND_2], &check)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND, 1)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 0)?;
    let speak = || {
        let stream = tcp::connect(&lab.client, &flow::front())?;
        let client = rustls::ClientConnection::new(lab.ca.client(&[&TLS13])?, flow::NAME.try_into()?)?;
        let mut stream = StreamOwned::new(client, stream);
        stream.write_all(b"x")?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        anyhow::Ok(answer[0])
    };
    for _ in 0..6 {
        ensure!(speak()? == 1);
    }
    let now = i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?;
    let metrics = daemon.metrics()?;
    let expiry = metrics.sum("snisplice_backend_certificate_expiry_seconds", &[("backend", "pool")]);
    ensure!(expiry > now, "{expiry} is past");
    second.becomes(speaks);
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 1)?;
    wait::until_true("both servers answer", || {
        Ok((0..6).map(|_| speak()).collect::<Result<BTreeSet<_>>>()?.len() == 2)
    })
}

/// An endpoint that accepts and then resets is ejected under every carrier.
fn resets_eject(lab: &Lab) -> Result<()> {
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    let second = Server::start(lab, BACKEND_2, 2, Manner::Reset)?;
    let file = lab.dir().join("health.yaml");
    let rules = |time: &str| {
        let keys = format!("    outlier_detection: {{interval: 100ms, base_ejection_time: {time}}}\n");
        fs::write(&file, yaml(&[BACKEND, BACKEND_2], &keys))
    };
    rules("1h")?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let mut failed = 0;
    while failed < 5 {
        let ejected = daemon.metrics()?.sum("snisplice_endpoint_ejected", &[]);
        ensure!(ejected == 0, "ejected after {failed} failures in a row");
        failed += usize::from(ask(lab)?.is_none());
    }
    wait_endpoint(&daemon, "endpoint_ejected", BACKEND_2, 1)?;
    daemon.wait_log("endpoint is ejected")?;
    ensure!(answered(lab, 12)? == BTreeSet::from([1]));
    second.becomes(Manner::Echo);
    rules("100ms")?;
    daemon.process().signal(Signal::SIGHUP)?;
    wait_endpoint(&daemon, "endpoint_ejected", BACKEND_2, 0)?;
    daemon.wait_log("ejected endpoint returns")?;
    both_answer(lab)?;
    let ejections = daemon.metrics()?.sum("snisplice_endpoint_ejections_total", &[]);
    ensure!(ejections == 1, "{ejections} ejections");
    Ok(())
}

fn refused_eject(lab: &Lab) -> Result<()> {
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    let daemon = start(lab, &[BACKEND, BACKEND_2], "    outlier_detection: {}\n")?;
    wait::until_true("the dead endpoint is ejected", || {
        ensure!(ask(lab)? == Some(1), "a connection has failed");
        Ok(daemon.metrics()?.sum("snisplice_endpoint_ejected", &[]) == 1)
    })?;
    let before = failures(&daemon)?;
    ensure!(before >= 5, "ejected after {before} failures");
    answered(lab, 8)?;
    ensure!(failures(&daemon)? == before, "an ejected endpoint is tried");
    Ok(())
}

/// The Istio objects of an HTTP destination.
const ISTIO: &str = r#"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec: {servers: [{port: {number: 8443, name: http, protocol: HTTP}, hosts: ["*"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: ["www.example.com"]
  gateways: [edge]
  http: [{route: [{destination: {host: web.internal, port: {number: 9000}}}], retries: {attempts: 0}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web}
spec:
  hosts: [web.internal]
  ports: [{number: 9000, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.0.2.2}, {address: 10.0.2.3}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web.internal
  trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 1h, maxEjectionPercent: 50}}
"#;

fn responses_eject(lab: &Lab) -> Result<()> {
    let _first = Server::start(lab, BACKEND, 1, Manner::Http("200 OK"))?;
    let _second = Server::start(lab, BACKEND_2, 2, Manner::Http("503 Service Unavailable"))?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, ISTIO)?)?;
    let request = || {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        write!(client, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", flow::NAME)?;
        let (answer, _) = tcp::read_to_end(&mut client)?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let mut failed = 0;
    while failed < 3 {
        let answer = request()?;
        ensure!(answer.contains(" 200 ") || answer.contains(" 503 "), "{answer}");
        failed += usize::from(answer.contains(" 503 "));
    }
    daemon.wait_metrics("the endpoint is ejected", |metrics| {
        metrics.sum("snisplice_endpoint_ejected", &[("endpoint", "10.0.2.3:9000")]) == 1
    })?;
    for _ in 0..8 {
        let answer = request()?;
        ensure!(answer.contains(" 200 "), "{answer}");
    }
    Ok(())
}

/// Incomplete handshakes of a server.
fn handshakes(lab: &Lab, address: &str) -> Result<usize> {
    let said =
        run(&lab.backend, Command::new("ss").args(["-Htn", "state", "syn-recv", "src", address]))?.ok()?;
    Ok(said.stdout.lines().count())
}

/// A server restart: the server refuses new connections, serves open ones, ends, and returns.
fn rolling_restart(lab: &Lab) -> Result<()> {
    let hosts = [BACKEND, BACKEND_2, BACKEND_3];
    let mut servers = hosts
        .iter()
        .zip(1..)
        .map(|(host, number)| Server::start(lab, host, number, Manner::Echo))
        .collect::<Result<Vec<_>>>()?;
    let daemon = start(lab, &hosts, QUICK)?;
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let served_all = thread::scope(|scope| {
        let load = || {
            let (stop, served) = (&stop, &served);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    ask(lab)?.context("a connection has failed during the restart")?;
                    served.fetch_add(1, Relaxed);
                }
                anyhow::Ok(())
            })
        };
        let clients = [load(), load(), load()];
        let restarted = (|| {
            for (server, (host, number)) in servers.iter_mut().zip(hosts.iter().zip(1..)) {
                nft(
                    &lab.backend,
                    &format!(
                        "table inet restart {{\n chain in {{\n type filter hook input priority 0;\n ip daddr {host} tcp \
                         flags & (syn | ack) == syn reject with tcp reset\n }}\n }}"
                    ),
                )?;
                wait_endpoint(&daemon, "endpoint_healthy", host, 0)?;
                // The close of a listening socket resets connections whose handshake is not complete. The daemon may
                // complete a handshake by the hello, so a busy machine delays it.
                wait::until_true("no handshake is in progress", || {
                    Ok(handshakes(lab, &server.address)? == 0)
                })?;
                server.stop()?;
                let before = served.load(Relaxed);
                wait::until_true("the others serve", || Ok(served.load(Relaxed) > before + 20))?;
                server.listen(lab, number)?;
                nft(&lab.backend, "delete table inet restart")?;
                wait_endpoint(&daemon, "endpoint_healthy", host, 1)?;
            }
            anyhow::Ok(())
        })();
        stop.store(true, Relaxed);
        for client in clients {
            client.join().expect("no client panics")?;
        }
        restarted
    });
    if let Err(error) = served_all {
        let metrics = daemon.metrics()?;
        let names = ["snisplice_connections_closed_total", "snisplice_connect_failures_total"];
        let counts: Vec<_> = names.iter().flat_map(|name| metrics.describe(name)).collect();
        return Err(error.context(counts.join("\n")));
    }
    ensure!(answered(lab, 12)?.len() == 3, "all serve again");
    Ok(())
}

/// A backend that swallows all packets: no connection fails while another endpoint serves, and later ones do not
/// wait.
fn blackhole(lab: &Lab) -> Result<()> {
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    let _second = Server::start(lab, BACKEND_2, 2, Manner::Echo)?;
    let keys = format!("{}timeouts: {{connect: 10s}}\n", QUICK.replace("timeout: 2s", "timeout: 300ms"));
    let daemon = start(lab, &[BACKEND, BACKEND_2], &keys)?;
    both_answer(lab)?;
    nft(
        &lab.backend,
        &format!(
            "table inet deaf {{\n chain in {{\n type filter hook prerouting priority 0;\n ip daddr {BACKEND_2} drop\n }}\n }}"
        ),
    )?;
    ensure!(answered(lab, 6)? == BTreeSet::from([1]));
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 0)?;
    let before = failures(&daemon)?;
    ensure!(answered(lab, 8)? == BTreeSet::from([1]));
    ensure!(failures(&daemon)? == before, "the deaf endpoint is tried by connections");
    let timed_out =
        daemon.metrics()?.sum("snisplice_connections_closed_total", &[("reason", "connect_timeout")]);
    ensure!(timed_out == 0, "{timed_out} connections have timed out");
    nft(&lab.backend, "delete table inet deaf")?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 1)?;
    both_answer(lab)
}

fn all_down(lab: &Lab) -> Result<()> {
    let check = "    health_check: {interval: 100ms, unhealthy_interval: 1h, fall: 1}\n";
    let daemon = start(lab, &[BACKEND, BACKEND_2], check)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND, 0)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 0)?;
    daemon.wait_metrics("all are used", |metrics| metrics.sum("snisplice_backend_panic", &[]) == 1)?;
    daemon.wait_log("all endpoints are used")?;
    ensure!(ask(lab)?.is_none());
    // No check detects it, and the backend still serves.
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    ensure!(answered(lab, 4)? == BTreeSet::from([1]));
    Ok(())
}

/// Without a panic threshold, unhealthy endpoints get no connection.
fn none_left(lab: &Lab) -> Result<()> {
    let keys = format!("{QUICK}    panic_threshold: 0\n");
    let daemon = start(lab, &[BACKEND, BACKEND_2], &keys)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND, 0)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 0)?;
    let before = failures(&daemon)?;
    ensure!(ask(lab)?.is_none());
    daemon.wait_metrics("the connection is refused", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "no_endpoint")]) == 1
    })?;
    ensure!(failures(&daemon)? == before, "a dead endpoint is tried");
    ensure!(daemon.metrics()?.sum("snisplice_backend_panic", &[]) == 0);
    let _second = Server::start(lab, BACKEND_2, 2, Manner::Echo)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 1)?;
    wait::until_true("the endpoint that has recovered serves", || Ok(ask(lab)? == Some(2)))
}

/// Panic applies to a backend only if no priority can serve.
fn backup(lab: &Lab) -> Result<()> {
    let _backup = Server::start(lab, BACKEND_2, 2, Manner::Echo)?;
    let text = format!(
        "listeners: [{{name: front, bind: '0.0.0.0:8443'}}]\n\
         routes: [{{sni: ['*'], backends: [pool]}}]\n\
         backends:\n\
         \x20 - name: pool\n\
         \x20   endpoints: [{{address: '{BACKEND}:9000'}}, {{address: '{BACKEND_2}:9000', priority: 1}}]\n\
         {QUICK}"
    );
    let daemon = Daemon::start(lab, &Options::yaml(lab, &text)?)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND, 0)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 1)?;
    ensure!(answered(lab, 4)? == BTreeSet::from([2]));
    ensure!(daemon.metrics()?.sum("snisplice_backend_panic", &[]) == 0);
    let before = failures(&daemon)?;
    ensure!(answered(lab, 4)? == BTreeSet::from([2]));
    ensure!(failures(&daemon)? == before, "the dead endpoint is tried");
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND, 1)?;
    wait::until_true("the first priority serves again", || Ok(answered(lab, 4)? == BTreeSet::from([1])))
}

/// Two backends whose certificates cover each other's names or none, and expire soon.
fn certificates(lab: &Lab) -> Result<()> {
    let soon = Duration::from_secs(10 * 86_400 + 3_600);
    let shared = lab.ca.issue_for(&["a.example.com", "b.example.com"], soon)?;
    let other = lab.ca.issue_for(&["c.example.com"], soon * 10)?;
    let _first = Server::start(lab, BACKEND, 1, Manner::Tls(shared.server(&[&TLS13])?))?;
    let _second = Server::start(lab, BACKEND_2, 2, Manner::Tls(other.server(&[&TLS13])?))?;
    let text = format!(
        "listeners: [{{name: front, bind: '0.0.0.0:8443'}}]\n\
         routes:\n\
         - {{sni: [a.example.com], backends: [a]}}\n\
         - {{sni: [b.example.com], backends: [b]}}\n\
         backends:\n\
         - {{name: a, endpoints: ['{BACKEND}:9000'], health_check: {{type: tls, sni: a.example.com}}}}\n\
         - {{name: b, endpoints: ['{BACKEND_2}:9000'], health_check: {{type: tls, sni: b.example.com}}}}\n"
    );
    let file = lab.dir().join("certificates.yaml");
    fs::write(&file, text)?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    let findings = [
        format!("backend a: the certificate of {BACKEND}:9000 expires in 10 days"),
        format!(
            "backend a: the certificate of {BACKEND}:9000 covers names that the routes send elsewhere: b.example.com (b)"
        ),
        format!("backend b: the certificate of {BACKEND_2}:9000 does not cover b.example.com"),
    ];
    for finding in &findings {
        daemon.wait_log(finding)?;
    }
    let metrics = daemon.metrics()?;
    let name = "snisplice_backend_certificate_expiry_seconds";
    let [first, second] = ["a", "b"].map(|backend| metrics.sum(name, &[("backend", backend)]));
    ensure!(first > 0 && second - first >= 80 * 86_400, "{first} and {second}");
    let (_, shown) = daemon.ask("GET", "/backends")?;
    ensure!(shown.contains(r#""elsewhere":[{"name":"b.example.com","to":"b"}]"#), "{shown}");
    ensure!(shown.contains(r#""uncovered":["b.example.com"]"#), "{shown}");
    live(lab, &file, &findings)
}

/// `check --live` reports the same without a daemon, and `--strict` makes it an error.
fn live(lab: &Lab, file: &Path, findings: &[String]) -> Result<()> {
    let said = cli_with(lab, "check", file, &["--live", "--strict"])?;
    ensure!(said.code == Some(3), "{said:?}");
    for finding in findings {
        ensure!(said.stdout.contains(finding), "{finding}: {}", said.stdout);
    }
    Ok(())
}

/// The state of an endpoint outlives a reload. Without a check in the configuration, no state is left.
fn reload(lab: &Lab) -> Result<()> {
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    let check = "    health_check: {interval: 100ms, unhealthy_interval: 1h, fall: 1}\n";
    let file = lab.dir().join("health.yaml");
    let reload = |daemon: &Daemon<'_>, hosts: &[&str], keys: &str, generation| {
        fs::write(&file, yaml(hosts, keys))?;
        daemon.process().signal(Signal::SIGHUP)?;
        daemon.wait_metrics("the configuration is reloaded", |metrics| {
            metrics.sum("snisplice_config_generation", &[]) == generation
        })
    };
    fs::write(&file, yaml(&[BACKEND, BACKEND_2], check))?;
    let daemon = Daemon::start(lab, &Options::file(&file))?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 0)?;
    reload(&daemon, &[BACKEND_2, BACKEND, BACKEND_3], check, 2)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_3, 0)?;
    wait_endpoint(&daemon, "endpoint_healthy", BACKEND_2, 0)?;
    wait::until_true("there is one line for each change", || {
        Ok(daemon.process().log()?.matches("endpoint is unhealthy").count() == 2)
    })?;
    ensure!(daemon.process().has_thread("health")?);
    let metrics = reload(&daemon, &[BACKEND], "", 3)?;
    wait::until_true("the thread is gone", || Ok(!daemon.process().has_thread("health")?))?;
    ensure!(metrics.find("snisplice_endpoint_healthy", &[]).is_none(), "the series go");
    ensure!(answered(lab, 2)? == BTreeSet::from([1]));
    Ok(())
}

/// A process that takes over starts with no earlier results.
fn succession(lab: &Lab) -> Result<()> {
    let _first = Server::start(lab, BACKEND, 1, Manner::Echo)?;
    let check = "    health_check: {interval: 1h, unhealthy_interval: 1h, fall: 1}\n";
    let options = Options::yaml(lab, &yaml(&[BACKEND, BACKEND_2], check))?;
    let mut old = Daemon::start(lab, &options)?;
    wait_endpoint(&old, "endpoint_healthy", BACKEND_2, 0)?;
    let _second = Server::start(lab, BACKEND_2, 2, Manner::Echo)?;
    let new = Daemon::take_over(lab, &options, "new")?;
    old.wait()?;
    wait_endpoint(&new, "endpoint_healthy", BACKEND_2, 1)?;
    new.wait_metrics("both are checked", |metrics| {
        metrics.sum("snisplice_health_checks_total", &[("result", "success")]) == 2
    })?;
    both_answer(lab)
}
