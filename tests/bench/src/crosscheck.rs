//! The same work with standard tools, which confirm the generator's results.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    contestants::{HTTPS_NAME, HTTPS_PORT, Invocation, RAW_PORT, Search, https_backend_config},
    load::frame::{ACK_BYTES, Ack},
    measure::{Measured, Rig, Subject},
    running::Running,
    topology::BALANCER,
    work,
};

/// The helper of a cross-check on the backend's side.
pub(crate) enum Helper {
    /// An iperf3 server.
    Iperf3,
    /// nginx with TLS.
    Https,
}

impl Helper {
    /// Starts the helper in the first backend's namespace. `None` if the tools are missing.
    pub(crate) fn start(
        &self,
        rig: &Rig,
        search: &Search,
        directory: &std::path::Path,
    ) -> anyhow::Result<Option<Running>> {
        let (namespace, address) = &rig.topology.backends[0];
        let invocation = match self {
            Self::Iperf3 => search.program("iperf3").map(|program| Invocation {
                program,
                arguments: ["-s", "-p", &RAW_PORT.to_string(), "-B", &address.to_string()]
                    .map(ToString::to_string)
                    .into(),
            }),
            Self::Https => {
                let (Some(program), Some(_)) = (search.program("nginx"), search.program("wrk")) else {
                    return Ok(None);
                };
                let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
                    let path = directory.join(name);
                    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
                    Ok(path)
                };
                write("certificate.pem", &rig.identity.certificate_pem)?;
                write("key.pem", &rig.identity.key_pem)?;
                let config = write("https.conf", &https_backend_config(*address, rig.threads, directory))?;
                let arguments =
                    ["-e", "stderr", "-p", &directory.to_string_lossy(), "-c", &config.to_string_lossy()]
                        .map(ToString::to_string)
                        .into();
                Some(Invocation { program, arguments })
            }
        };
        let Some(invocation) = invocation else { return Ok(None) };
        let port = match self {
            Self::Iperf3 => RAW_PORT,
            Self::Https => HTTPS_PORT,
        };
        let mut running = Running::start(&[invocation], namespace, "helper", directory.join("helper.log"))?;
        let target = SocketAddr::from((*address, port));
        for _ in 0..400 {
            if namespace.run(|| Ok(TcpStream::connect(target).is_ok()))? {
                return Ok(Some(running));
            }
            running.check()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("nothing listens on {target}: {}", running.log_tail())
    }
}

/// Opens a connection in the calling thread's namespace and sends a hello. Returns whether the backend has answered.
pub(crate) fn one_answer(target: &SocketAddr, hello: &[u8]) -> bool {
    const PATIENCE: Duration = Duration::from_millis(500);
    let ask = || -> std::io::Result<[u8; ACK_BYTES]> {
        let mut stream = TcpStream::connect_timeout(target, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(hello)?;
        let mut answer = [0; ACK_BYTES];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| Ack::decode(&answer).is_ok())
}

/// Whole seconds, as the tools require.
fn seconds(window: Duration) -> String {
    window.as_secs_f64().ceil().max(1.0).to_string()
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    // Both tools print errors on stdout or stderr. The callers search for figures and find none.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// Bulk with iperf3. iperf3 sends first and does not use TLS, so the balancer's policy for other protocols forwards
/// the connection.
pub(crate) fn iperf3(
    rig: &Rig,
    subject: &Subject<'_>,
    down: bool,
    streams: usize,
) -> anyhow::Result<Measured> {
    let address = if subject.running.is_some() { BALANCER } else { rig.topology.backends[0].1 };
    let mut command = rig.topology.clients[0].command("iperf3");
    command.args(["-c", &address.to_string(), "-p", &RAW_PORT.to_string(), "-P", &streams.to_string(), "-J"]);
    command.args(["-t", &seconds(rig.window), "--connect-timeout", "2000"]);
    if down {
        command.arg("-R");
    }
    // The server runs one test at a time and refuses others. Through a balancer it detects the end of a test a little
    // later than the client.
    let deadline = Instant::now() + Duration::from_secs(2);
    while rig.topology.backends[0].0.run(|| is_in_use(RAW_PORT))? && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = run(&mut command)?;
    let mut measured = Measured::default();
    match bits_per_second(&text) {
        Ok(bits) => measured.set(work::THROUGHPUT, bits / 1e9),
        Err(error) => measured.faults.note(format!("iperf3: {error}")),
    }
    Ok(measured)
}

/// Whether a connection to `port` is open in the calling thread's namespace.
fn is_in_use(port: u16) -> anyhow::Result<bool> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp").context("read /proc/thread-self/net/tcp")?;
    Ok(has_open(&table, port))
}

/// Finds a line with this local port in any state except LISTEN and `TIME_WAIT` (proc(5), /proc/net/tcp).
fn has_open(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    const TIME_WAIT: &str = "06";
    let suffix = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next(), words.nth(1));
        local.is_some_and(|local| local.ends_with(&suffix))
            && ![Some(LISTEN), Some(TIME_WAIT)].contains(&state)
    })
}

/// The receiver's result in iperf3's JSON.
fn bits_per_second(json: &str) -> Result<f64, String> {
    let value: serde_json::Value =
        serde_json::from_str(json).map_err(|_| json.lines().next().unwrap_or("no output").to_owned())?;
    if let Some(error) = value["error"].as_str() {
        return Err(error.to_owned());
    }
    value["end"]["sum_received"]["bits_per_second"].as_f64().ok_or_else(|| "no sum in the output".to_owned())
}

/// Requests with wrk over TLS. wrk takes the server name from the URL, so the name must resolve: a private mount
/// namespace has its own /etc/hosts.
pub(crate) fn wrk(rig: &Rig, subject: &Subject<'_>, connections: usize) -> anyhow::Result<Measured> {
    const WITH_HOSTS: &str = "mount --bind \"$1\" /etc/hosts && shift && exec \"$@\"";
    let (address, port) = if subject.running.is_some() {
        (BALANCER, crate::contestants::SNI_PORT)
    } else {
        (rig.topology.backends[0].1, HTTPS_PORT)
    };
    let mut hosts = tempfile::NamedTempFile::new().context("make a hosts file")?;
    writeln!(hosts, "{address} {HTTPS_NAME}").context("write a hosts file")?;
    let inner = rig.topology.clients[0].command("wrk");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", WITH_HOSTS, "sh"]).arg(hosts.path());
    command.arg(inner.get_program()).args(inner.get_args());
    let threads = rig.threads.min(connections).to_string();
    command.args(["-t", &threads, "-c", &connections.to_string(), "-d", &seconds(rig.window)]);
    command.arg(format!("https://{HTTPS_NAME}:{port}/"));
    let text = run(&mut command)?;
    let mut measured = Measured::default();
    match requests_per_second(&text) {
        Ok(rate) => measured.set(work::REQUESTS, rate),
        Err(error) => measured.faults.note(format!("wrk: {error}")),
    }
    Ok(measured)
}

/// The final result of wrk, unless it reports failures.
fn requests_per_second(text: &str) -> Result<f64, String> {
    let line = |start: &str| text.lines().map(str::trim).find(|line| line.starts_with(start));
    if let Some(errors) = line("Socket errors:").or_else(|| line("Non-2xx")) {
        return Err(errors.to_owned());
    }
    line("Requests/sec:")
        .and_then(|line| line.split_whitespace().nth(1))
        .and_then(|rate| rate.parse().ok())
        .filter(|rate| *rate > 0.0)
        .ok_or_else(|| text.lines().next().unwrap_or("no output").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperf3_reports_the_receivers_sum_or_an_error() {
        let good =
            r#"{"end": {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 8.5e9}}}"#;
        assert_eq!(bits_per_second(good), Ok(8.5e9));
        let bad = r#"{"start": {}, "error": "unable to connect to server"}"#;
        assert_eq!(bits_per_second(bad), Err("unable to connect to server".to_owned()));
        assert!(bits_per_second("iperf3: not found").is_err());
    }

    #[test]
    fn listeners_and_what_has_ended_are_not_in_use() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 0200CA0A:1451 00000000:0000 0A 00000000:00000000 00:00000000\n\
             1: 0200CA0A:1451 0100CA0A:9C40 06 00000000:00000000 00:00000000\n\
             2: 0200CA0A:1B59 0100CA0A:1451 01 00000000:00000000 00:00000000\n";
        assert!(!has_open(table, 5201));
        assert!(has_open(table, 7001));
        assert!(has_open(&table.replace(" 06 ", " 08 "), 5201), "CLOSE_WAIT");
    }

    #[test]
    fn wrk_with_errors_has_no_rate() {
        let good = "Running 1s test\n  12345 requests in 1.00s, 1MB read\nRequests/sec:  12340.50\nTransfer/sec: 1MB\n";
        assert_eq!(requests_per_second(good), Ok(12340.5));
        let errors = "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec:  12340.50\n";
        assert!(requests_per_second(errors).is_err());
        assert!(requests_per_second("unable to resolve").is_err());
        assert!(requests_per_second("Requests/sec:      0.00").is_err());
    }

    #[test]
    fn windows_become_whole_seconds() {
        assert_eq!(seconds(Duration::from_millis(300)), "1");
        assert_eq!(seconds(Duration::from_millis(1200)), "2");
    }
}
