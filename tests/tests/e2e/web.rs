//! Requests through the gateway by curl and h2load to nginx: bodies, persistent connections, reloads and certificates
//! that change under load, and the end of connections.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::Lab,
    netns::{BACKEND, LB},
    peers::{self, nginx, nginx_answer, nginx_with},
    process::{Process, run},
    suite::Case,
    wait,
};

use crate::{
    front::{self, HTTP, HTTPS, NAME, PLAIN},
    http2::web,
};

pub(crate) const CASES: &[Case] = &[
    Case::once("web::bodies_pass_whole_in_both_directions", bodies),
    Case::once("web::connections_to_the_backend_are_kept", kept),
    Case::once("web::a_hundred_reloads_under_load_fail_no_request", reloads),
    Case::once("web::certificates_that_change_under_load_fail_no_request", rotation),
    Case::once("web::a_drain_and_a_limit_of_time_send_goaway", goaway),
    Case::once("web::all_published_settings_run_in_one_process", all_settings),
];

fn curl(lab: &Lab, args: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*", "--cacert"])
        .arg(lab.ca.file());
    for port in [HTTP, HTTPS] {
        command.args(["--resolve", &format!("{NAME}:{port}:{LB}")]);
    }
    Ok(run(&lab.client, command.args(args))?.ok()?.stdout)
}

/// Stores uploads, and has a chunked response.
fn store(lab: &Lab) -> Result<Process> {
    let files = lab.dir().join("files");
    fs::create_dir_all(&files)?;
    let address = front::backend(PLAIN);
    let server = format!(
        "  client_max_body_size 0;\n  gzip_min_length 1;\n  gzip_types *;\n  server {{\n    listen {address};\n    root {};\n    \
         location / {{ dav_methods PUT DELETE; }}\n    location /chunked/ {{ alias {}/; gzip on; gzip_comp_level 1; }}\n  }}\n",
        files.display(),
        files.display()
    );
    nginx_with(lab, &server, &[&address])
}

fn bodies(lab: &Lab) -> Result<()> {
    const SIZE: usize = 20_000_000;
    let _nginx = store(lab)?;
    let (daemon, _) = front::start(lab, "")?;
    let bytes: Vec<u8> =
        (0..SIZE).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    let (upload, download) = (lab.dir().join("upload"), lab.dir().join("download"));
    fs::write(&upload, &bytes)?;
    let (upload, download) = (upload.display().to_string(), download.display().to_string());
    for (scheme, port, version) in [
        ("http", HTTP, "--http1.1"),
        ("http", HTTP, "--http2-prior-knowledge"),
        ("https", HTTPS, "--http1.1"),
        ("https", HTTPS, "--http2"),
    ] {
        for (number, more) in
            [&[][..], &["--header", "Transfer-Encoding: chunked"], &["--header", "Expect: 100-continue"]]
                .into_iter()
                .enumerate()
        {
            let url = format!("{scheme}://{NAME}:{port}/{number}{version}-{port}");
            let said = curl(
                lab,
                &[
                    &[version, "--write-out", "%{http_code} %{http_version}", "--upload-file", &upload],
                    more,
                    &[&url],
                ]
                .concat(),
            )?;
            let spoken = if version == "--http1.1" { "1.1" } else { "2" };
            ensure!(said == format!("201 {spoken}"), "{version} {more:?}: {said}");
            ensure!(
                fs::read(lab.dir().join(format!("files/{number}{version}-{port}")))? == bytes,
                "{version} {more:?}: changed"
            );
            curl(lab, &[version, "--output", &download, &url])?;
            ensure!(fs::read(&download)? == bytes, "{version}: changed on the way down");
        }
        let url = format!("{scheme}://{NAME}:{port}/chunked/0{version}-{port}");
        let head = curl(lab, &[version, "--compressed", "--dump-header", "-", "--output", &download, &url])?;
        ensure!(fs::read(&download)? == bytes, "{version}: changed in chunks");
        ensure!(head.to_lowercase().contains("content-encoding: gzip"), "{head}");
    }
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_http_requests_total", &[("code", "201")]) == 12, "{metrics:?}");
    Ok(())
}

fn kept(lab: &Lab) -> Result<()> {
    let address = front::backend(PLAIN);
    // The number of the connection, and of the request on it.
    let server = format!(
        "  server {{\n    listen {address};\n    location / {{ return 200 \"$connection $connection_requests\\n\"; }}\n  }}\n"
    );
    let _nginx = nginx_with(lab, &server, &[&address])?;
    let (_daemon, _) = front::start(lab, "limits: {workers: 1}\n")?;
    let mut connections = BTreeSet::new();
    for version in ["--http1.1", "--http2"] {
        for request in 0..20 {
            let said = curl(lab, &[version, &format!("https://{NAME}:{HTTPS}/{request}")])?;
            connections.insert(said.split(' ').next().unwrap_or_default().to_owned());
        }
    }
    ensure!(connections.len() == 1, "{connections:?}");
    Ok(())
}

/// Runs h2load repeatedly until `work` has ended. None of its requests may fail. Returns their number.
fn under_load(lab: &Lab, work: impl FnOnce() -> Result<()>) -> Result<()> {
    const REQUESTS: u64 = 2_000;
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = ["h2", "http/1.1"]
            .into_iter()
            .map(|version| {
                let (stop, served) = (&stop, &served);
                scope.spawn(move || -> Result<()> {
                    while !stop.load(Relaxed) {
                        let mut command = Command::new("h2load");
                        // HTTP/2 is its first offer.
                        if version != "h2" {
                            command.arg("--h1");
                        }
                        command.args([
                            "--clients=8",
                            "--max-concurrent-streams=8",
                            &format!("--requests={REQUESTS}"),
                        ]);
                        command.args([
                            &format!("--connect-to={}", front::address(HTTPS)),
                            &format!("https://{NAME}/"),
                        ]);
                        let said = run(&lab.client, &mut command)?.ok()?.stdout;
                        let wanted = format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout");
                        ensure!(
                            said.contains(&wanted)
                                && said.contains(&format!("{REQUESTS} 2xx"))
                                && said.contains(&format!("Application protocol: {version}")),
                            "{version}: {said}"
                        );
                        served.fetch_add(REQUESTS, Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let done = wait::until_true("requests are served", || {
            Ok(served.load(Relaxed) > 0 || clients.iter().any(thread::ScopedJoinHandle::is_finished))
        })
        .and_then(|()| work());
        stop.store(true, Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client has failed"))??;
        }
        done
    })
}

fn reloads(lab: &Lab) -> Result<()> {
    let _nginx = web(lab)?;
    let (daemon, _) = front::start(lab, "")?;
    under_load(lab, || {
        for generation in 2..102 {
            daemon.process().signal(Signal::SIGHUP)?;
            daemon.wait_metrics("it is reloaded", |metrics| {
                metrics.sum("snisplice_config_generation", &[]) == generation
            })?;
        }
        Ok(())
    })?;
    only_good_ends(&daemon)
}

/// Checks that every connection ended as its client requested.
fn only_good_ends(daemon: &Daemon<'_>) -> Result<()> {
    let metrics = daemon
        .wait_metrics("all have ended", |metrics| metrics.sum("snisplice_connections_active", &[]) == 0)?;
    let all = metrics.sum("snisplice_connections_closed_total", &[]);
    let good: i64 = ["finished", "client_gone"]
        .iter()
        .map(|reason| metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]))
        .sum();
    ensure!(all > 0 && all == good, "{metrics:?}");
    Ok(())
}

fn rotation(lab: &Lab) -> Result<()> {
    let _nginx = web(lab)?;
    let (daemon, directory) = front::start(lab, "")?;
    let serial = || -> Result<Vec<u8>> {
        let client = front::connect(lab, "http/1.1")?;
        Ok(client.conn.peer_certificates().context("no certificate")?[0].to_vec())
    };
    under_load(lab, || {
        for _ in 0..3 {
            let before = serial()?;
            front::change_certificate(lab, &directory)?;
            wait::until_true("the new certificate is shown", || Ok(serial()? != before))?;
        }
        Ok(())
    })?;
    only_good_ends(&daemon)
}

/// Answers PING frames. Returns the bytes received up to the end of the connection.
fn listen_on(client: &mut front::Client) -> Result<Vec<u8>> {
    const PING: u8 = 6;
    let (mut received, mut at) = (Vec::new(), 0);
    let mut buffer = [0; 4096];
    loop {
        let count = client.read(&mut buffer).context("no orderly end")?;
        if count == 0 {
            return Ok(received);
        }
        received.extend_from_slice(&buffer[..count]);
        while let Some([high, middle, low, kind, flags, ..]) = received.get(at..) {
            let end = at + 9 + (usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low));
            let Some(frame) = received.get(at..end) else { break };
            if (*kind, *flags) == (PING, 0) {
                // The same frame as a reply.
                let answer = [&[0, 0, 8, PING, 1], &frame[5..]].concat();
                client.write_all(&answer)?;
            }
            at = end;
        }
    }
}

fn goaway(lab: &Lab) -> Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // GET / of `a`.
    const REQUEST: &[u8] = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x87\x84\x41\x01a";
    // A GOAWAY without an error, with any last stream.
    let is_sent = |received: &[u8]| received.windows(9).any(|frame| frame[..4] == [0, 0, 8, 7]);
    let _nginx = web(lab)?;
    let (daemon, _) = front::start(lab, "timeouts: {max_duration: 2s, drain: 60s}\n")?;
    let mut client = front::connect(lab, "h2")?;
    client.write_all(PREFACE)?;
    client.write_all(REQUEST)?;
    ensure!(is_sent(&listen_on(&mut client)?), "no GOAWAY at max_duration");
    daemon.wait_metrics("it is counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "max_duration")]) == 1
    })?;
    fs::write(
        lab.dir().join("settings.yaml"),
        format!("secrets: {}\n", lab.dir().join("secrets").display()),
    )?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("it is reloaded", |metrics| metrics.sum("snisplice_config_generation", &[]) == 2)?;
    let (mut second, mut first) = (front::connect(lab, "h2")?, front::connect(lab, "http/1.1")?);
    second.write_all(PREFACE)?;
    second.write_all(REQUEST)?;
    write!(first, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let mut head = [0; 15];
    first.read_exact(&mut head)?;
    ensure!(head == *b"HTTP/1.1 200 OK", "{head:?}");
    daemon.wait_metrics("all three are answered", |metrics| {
        metrics.sum("snisplice_http_requests_total", &[("code", "200")]) == 3
    })?;
    daemon.terminate()?;
    ensure!(is_sent(&listen_on(&mut second)?), "no GOAWAY at a drain");
    ensure!(first.read_to_end(&mut Vec::new()).is_ok(), "no orderly end of HTTP/1");
    Ok(())
}

/// The four published, unedited configurations at once: passthrough of three of them beside the termination of the
/// fourth.
fn all_settings(lab: &Lab) -> Result<()> {
    const NAMES: [(&str, u16, &str); 3] = [
        ("sample.aliyun.com", 443, "mynginxapp.default.svc.cluster.local"),
        ("nginx.example.com", 443, "my-nginx.default.svc.cluster.local"),
        ("nginx.tls.danielstechblog.de", 10_443, "my-nginx.nginx.svc.cluster.local"),
    ];
    let secrets = lab.dir().join("secrets");
    fs::create_dir(&secrets)?;
    let ours = lab.ca.issue("*.danielstechblog.de")?;
    fs::copy(&ours.certificate, secrets.join("istio-ingress-cert.crt"))?;
    fs::copy(&ours.key, secrets.join("istio-ingress-cert.key"))?;
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/testdata");
    let mut options = Options::file(testdata.join("asm-passthrough"));
    for other in ["istio-sni-passthrough", "wildcard-gateway"] {
        options = options.and_file(testdata.join(other));
    }
    let mut leaves = Vec::new();
    let addresses = [443, 444, 445].map(|port| format!("{BACKEND}:{port}"));
    for ((name, _, destination), address) in NAMES.iter().zip(&addresses) {
        leaves.push(lab.ca.issue(name)?);
        options = options.resolve(destination, 443, address);
    }
    let servers: Vec<_> = addresses.iter().map(String::as_str).zip(&leaves).collect();
    let _nginx = nginx(lab, &servers)?;
    let _daemon = Daemon::start(lab, &options.arg("--secrets").arg(secrets.display().to_string()))?;
    for ((name, port, _), leaf) in NAMES.iter().zip(&leaves) {
        let said = peers::curl(lab, name, *port, LB)?.ok().with_context(|| (*name).to_owned())?;
        ensure!(said.stdout == nginx_answer(leaf), "{name}: {}", said.stdout);
    }
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--max-time",
        "30",
        "--noproxy",
        "*",
        "--write-out",
        "%{http_code} %{redirect_url}",
    ]);
    command.args([
        "--resolve",
        &format!("www.danielstechblog.de:80:{LB}"),
        "http://www.danielstechblog.de/a",
    ]);
    let said = run(&lab.client, &mut command)?.ok()?.stdout;
    ensure!(said.ends_with("301 https://www.danielstechblog.de/a"), "{said}");
    Ok(())
}
