//! HTTP requests by rules of the native format: terminated HTTPS beside passthrough, and plain HTTP that is
//! redirected to HTTPS.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use rustls::{ClientConfig, ClientConnection, StreamOwned, version::TLS13};
use serde_json::Value;
use snisplice_tests::{
    daemon::{Daemon, Options, cli_with},
    lab::Lab,
    netns::{BACKEND, CLIENT, LB},
    process::run,
    suite::Case,
    tcp, wait,
};

use crate::flow;

pub(crate) const CASES: &[Case] = &[
    Case::once("native_http::plain_http_is_sent_to_https_and_its_rules", redirected),
    Case::once("native_http::a_revoked_client_is_refused", revoked),
];

const NAME: &str = "www.example.com";

/// Answers every request with its head.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || -> Result<()> {
                let mut reader = BufReader::new(stream.try_clone()?);
                loop {
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if reader.read_line(&mut head)? == 0 {
                            return Ok(());
                        }
                    }
                    let length = head.len();
                    write!(
                        &stream,
                        "HTTP/1.1 200 OK\r\nx-internal: 1\r\ncontent-length: {length}\r\n\r\n{head}"
                    )?;
                }
            });
        }
    });
}

fn yaml(lab: &Lab) -> Result<String> {
    let leaf = lab.ca.issue(NAME)?;
    let (certificate, key, log) =
        (leaf.certificate.display(), leaf.key.display(), lab.dir().join("access.log").display().to_string());
    Ok(format!(
        r#"
listeners:
  - {{name: https, bind: "0.0.0.0:8443"}}
  - name: http
    bind: "0.0.0.0:8080"
    redirect_https: {{port: 8443}}
    http:
      - match: [{{path: {{prefix: /.well-known/acme-challenge/}}}}]
        direct_response: {{status: 200, body: "token"}}
routes:
  - name: www
    sni: {NAME}
    terminate:
      certificates: [{{certificate: {certificate}, key: {key}}}]
      http:
        - match: [{{path: {{prefix: /api/}}, query: {{q: {{regex: "[0-9]+"}}}}}}]
          backends: plain
          rewrite: {{path: /, authority: api.internal}}
          request_headers:
            set: {{x-client: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQUESTED_SERVER_NAME%"}}
            remove: [user-agent]
          response_headers: {{set: {{x-seen: "%REQ(X-REQUEST-ID)% %PROTOCOL%"}}, remove: [x-internal]}}
        - match: [{{path: /old}}]
          redirect: {{path: /api/new?q=7, code: 308}}
        - match: [{{method: DELETE}}]
          direct_response: {{status: 405, body: "no"}}
  - {{sni: "*.{NAME}", backends: through}}
backends:
  - {{name: plain, endpoints: "{BACKEND}:9000"}}
  - {{name: through, endpoints: "{BACKEND}:9001"}}
access_log: {{path: "{log}"}}
"#
    ))
}

/// The output of curl for an address: the body, then the heads of all responses, then the output of `-w`.
fn curl(lab: &Lab, args: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--dump-header", "/dev/stdout"]);
    command.args(["--write-out", "\n%{num_redirects} %{http_version} %{url_effective}\n"]);
    command.arg("--cacert").arg(lab.ca.file());
    for port in [8080, 8443] {
        command.args(["--resolve", &format!("{NAME}:{port}:{LB}")]);
    }
    command.args(args);
    Ok(run(&lab.client, &mut command)?.ok()?.stdout)
}

fn redirected(lab: &Lab) -> Result<()> {
    echo(tcp::listen(&lab.backend, &format!("{BACKEND}:9000"))?);
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml(lab)?)?)?;
    let plain = format!("http://{NAME}:8080");
    let has = |text: &str, wanted: &[&str]| -> Result<()> {
        for wanted in wanted {
            ensure!(text.contains(wanted), "no '{wanted}': {text}");
        }
        Ok(())
    };
    for (version, protocol, number) in [("--http1.1", "HTTP/1.1", "1.1"), ("--http2", "HTTP/2", "2")] {
        let said = curl(lab, &[version, "--location", &format!("{plain}/api/x?q=1")])?;
        has(
            &said,
            &[
                "301 Moved Permanently",
                &format!("location: https://{NAME}:8443/api/x?q=1"),
                "GET /x?q=1 HTTP/1.1\r\n",
                "host: api.internal\r\n",
                &format!("x-client: {CLIENT} {NAME}\r\n"),
                &format!("{protocol}\r\n"),
                &format!("\n1 {number} https://{NAME}:8443/api/x?q=1"),
            ],
        )?;
        ensure!(!said.contains("user-agent") && !said.contains("x-internal"), "they are removed: {said}");
        let id =
            said.lines().find_map(|line| line.strip_prefix("x-request-id: ")).context("an id is sent on")?;
        has(&said, &[&format!("x-seen: {} {protocol}", id.trim())])?;
    }
    has(
        &curl(lab, &[&format!("{plain}/.well-known/acme-challenge/x")])?,
        &["HTTP/1.1 200 OK", "token", "\n0 "],
    )?;
    let encrypted = format!("https://{NAME}:8443");
    has(&curl(lab, &["--location", &format!("{encrypted}/old")])?, &["308", "GET /new?q=7 HTTP/1.1"])?;
    has(&curl(lab, &["--request", "DELETE", &format!("{encrypted}/x")])?, &["405", "no"])?;
    has(&curl(lab, &[&format!("{encrypted}/api/x?q=x")])?, &["404"])?;
    let line = wait::until("the line of the request", || {
        let text = fs::read_to_string(lab.dir().join("access.log")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let parsed = whole.map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        Ok(parsed.into_iter().find(|line| line["path"] == "/api/x?q=1" && line["protocol"] == "HTTP/2"))
    })?;
    let local = line["upstream_local_address"].as_str().context("our address towards the endpoint")?;
    ensure!(local.starts_with("10.0.2.1:"), "{line}");
    ensure!(
        line["upstream_host"] == format!("{BACKEND}:9000") && line["route_name"] == "route www http[0]",
        "{line}"
    );
    drop(daemon);

    let file = lab.dir().join("snisplice.yaml");
    let asked = ["--path", "/api/x?q=1", "--header", "x-a:b", NAME];
    let said = cli_with(lab, "explain", &file, &asked)?.ok()?.stdout;
    has(&said, &["GET https://www.example.com/api/x?q=1", "route www http[0]", "serves it: path /api/*"])?;
    let asked = ["--path", "/api/../x", "--scheme", "http", NAME];
    let said = cli_with(lab, "explain", &file, &asked)?.ok()?.stdout;
    has(&said, &["GET http://www.example.com/x", "redirected to HTTPS on port 8443", "comes later"])
}

fn exchange(lab: &Lab, config: &Arc<ClientConfig>) -> Result<()> {
    let connection = ClientConnection::new(config.clone(), NAME.try_into()?)?;
    let mut client = StreamOwned::new(connection, tcp::connect(&lab.client, &flow::front())?);
    client.write_all(b"GET / HTTP/1.1\r\nhost: www.example.com\r\n\r\n")?;
    let mut answer = [0; 15];
    client.read_exact(&mut answer)?;
    ensure!(&answer == b"HTTP/1.1 200 OK", "{answer:?}");
    Ok(())
}

/// The revocation list beside the authorities is applied, its change is loaded, and an invalid one leaves the last
/// good one in service.
fn revoked(lab: &Lab) -> Result<()> {
    let server = lab.ca.issue(NAME)?;
    let (good, bad) = (lab.ca.issue("good.client")?, lab.ca.issue("bad.client")?);
    let directory = lab.dir().join("secrets");
    fs::create_dir(&directory)?;
    let list = directory.join("clients-cacert.crl");
    fs::copy(lab.ca.file(), directory.join("clients-cacert.crt"))?;
    let put = |text: &str| -> Result<()> {
        fs::write(directory.join(".new"), text)?;
        Ok(fs::rename(directory.join(".new"), &list)?)
    };
    put(&lab.ca.revoke(&[])?)?;
    let yaml = format!(
        "listeners: [{{name: front, bind: \"0.0.0.0:8443\"}}]\nsecrets: {}\n\
         routes: [{{sni: {NAME}, terminate: {{certificates: [{{certificate: {}, key: {}}}], client_ca: clients, \
         http: [{{direct_response: {{status: 200}}}}]}}}}]\n",
        directory.display(),
        server.certificate.display(),
        server.key.display()
    );
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let config = |leaf| lab.ca.client_with(&[&TLS13], leaf);
    let leaf = bad;
    let (good, bad) = (config(&good)?, config(&leaf)?);
    exchange(lab, &good)?;
    exchange(lab, &bad)?;
    put(&lab.ca.revoke(&[&leaf])?)?;
    daemon.wait_log("certificates and keys have changed and are taken")?;
    // The client's session is not resumed either.
    ensure!(exchange(lab, &bad).is_err(), "it is let in");
    exchange(lab, &good)?;
    daemon.wait_metrics("it has a reason of its own", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "client_certificate_revoked")]) == 1
    })?;
    put("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")?;
    daemon.wait_log("changed certificates or keys are refused")?;
    exchange(lab, &good)?;
    ensure!(exchange(lab, &bad).is_err(), "it is let in again");
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("a reload is refused", |metrics| {
        metrics.sum("snisplice_config_rejected_total", &[]) == 1
    })?;
    let said = check(lab, &lab.dir().join("snisplice.yaml"))?;
    ensure!(said.contains("clients-cacert.crl: certificate revocation list 1 does not parse"), "{said}");
    Ok(())
}

fn check(lab: &Lab, file: &Path) -> Result<String> {
    Ok(cli_with(lab, "check", file, &[])?.stdout)
}
