//! The PROXY protocol on both sides: from proxies in front, and to backends. The peers are nginx and `HAProxy`.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    metrics::Metrics,
    netns::{BACKEND, BACKEND_2, CLIENT, LB},
    pki::Leaf,
    process::{Process, run},
    stream::{self, Pace, Pattern},
    suite::{Case, Unable},
    tcp, wait,
};

use crate::flow::{self, NAME};

pub(crate) const CASES: &[Case] = &[
    Case::each("proxy_protocol::headers_of_both_sides_are_byte_exact", byte_exact),
    Case::each("proxy_protocol::nginx_and_haproxy_on_both_sides", peers_on_both_sides),
    Case::sockets("proxy_protocol::bad_headers_are_refused", bad_headers),
    Case::once("proxy_protocol::a_header_may_be_optional", optional),
    Case::once("proxy_protocol::the_named_client_is_the_client", named_client),
    Case::once("proxy_protocol::source_rules_hold_for_the_named_client", source_rules),
    Case::once("proxy_protocol::terminated_requests_carry_the_client", requests),
    Case::once("proxy_protocol::a_header_comes_before_tls_to_the_backend", before_tls),
    Case::once("proxy_protocol::another_endpoint_gets_a_header_too", another_endpoint),
    Case::once("proxy_protocol::health_checks_are_the_balancers_own", health_checks),
];

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The client that the headers of the tests name.
const FROM: &str = "203.0.113.7";
const LINE: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n";
/// Bytes in each direction.
const BYTES: u64 = 3_000_000;

/// The same in version 2, with a field without a meaning.
fn binary() -> Vec<u8> {
    let addresses = [203, 0, 113, 7, 198, 51, 100, 1, 0x12, 0x67, 1, 0xBB];
    [SIGNATURE, &[0x21, 0x11, 0, 17], &addresses, &[4, 0, 2, 0, 0]].concat()
}

/// The plain setting with trusted proxies in the client's namespace, and this header for the backend.
fn yaml(listener: &str, backend: &str, more: &str) -> String {
    let bind = "    bind: [\"0.0.0.0:8443\"]\n";
    let yaml = flow::yaml(more);
    let yaml = yaml.replacen(bind, &format!("{bind}    proxy_protocol: {listener}\n"), 1);
    yaml.replacen("  - name: pool\n", &format!("  - name: pool\n    proxy_protocol: {backend}\n"), 1)
}

fn required() -> String {
    format!("{{from: {CLIENT}}}")
}

fn byte_exact(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml(&required(), "v1", ""))?)?;
    let hello = hello::naming(NAME)?;
    // In single bytes, and in one piece with the hello.
    for (header, in_pieces) in
        [(LINE.to_vec(), true), (binary(), true), (LINE.to_vec(), false), (binary(), false)]
    {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        if in_pieces {
            tcp::write_bytewise(&mut client, &header)?;
            client.write_all(&hello)?;
        } else {
            client.write_all(&[&header[..], &hello].concat())?;
        }
        let backend = receive(&listener, &[LINE, &hello].concat())?;
        both_ways(&client, &backend)?;
    }
    // The proxy's own connections have the proxy's address.
    for own in [&b"PROXY UNKNOWN\r\n"[..], &[SIGNATURE, &[0x20, 0, 0, 0]].concat()] {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        let port = client.local_addr()?.port();
        client.write_all(&[own, &hello].concat())?;
        let line = format!("PROXY TCP4 {CLIENT} {LB} {port} 8443\r\n");
        let backend = receive(&listener, &[line.as_bytes(), &hello].concat())?;
        both_ways(&client, &backend)?;
    }
    // Headers are none of the clients' bytes.
    let bytes = 6 * (BYTES + hello.len() as u64);
    let sum =
        |metrics: &Metrics, direction| metrics.sum("snisplice_bytes_total", &[("direction", direction)]);
    let metrics = daemon.wait_metrics("all connections are finished", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "finished")]) == 6
    })?;
    ensure!(
        u64::try_from(sum(&metrics, "up"))? == bytes,
        "{} bytes up, {bytes} were sent",
        sum(&metrics, "up")
    );
    ensure!(u64::try_from(sum(&metrics, "down"))? == 6 * BYTES);
    for (header, count) in [("v1", 2), ("v2", 2), ("local", 2)] {
        ensure!(metrics.sum("snisplice_proxy_headers_total", &[("header", header)]) == count, "{header}");
    }
    let closed = |by: &&str| metrics.sum("snisplice_connections_closed_total", &[("datapath", by)]);
    ensure!(
        lab.datapath.carriers().iter().map(closed).sum::<i64>() == 6,
        "another datapath has forwarded them"
    );
    Ok(())
}

/// The accepted connection of a backend, which begins with these bytes.
fn receive(listener: &TcpListener, first: &[u8]) -> Result<TcpStream> {
    let mut backend = tcp::accept(listener)?;
    let received = tcp::read_exact(&mut backend, first.len())?;
    ensure!(received == first, "{:?}", String::from_utf8_lossy(&received));
    Ok(backend)
}

/// Sends bytes in both directions at once, and ends both.
fn both_ways(client: &TcpStream, backend: &TcpStream) -> Result<()> {
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    let send = |to: &TcpStream, pattern: &Pattern, seed| -> Result<()> {
        stream::send(to, pattern, BYTES, Pace::uneven(seed))?;
        Ok(to.shutdown(Shutdown::Write)?)
    };
    let take = |from: &TcpStream, pattern: &Pattern| -> Result<()> {
        stream::receive(from, pattern, BYTES)?;
        ensure!(stream::read(from, &mut [0])? == 0, "more bytes than were sent");
        Ok(())
    };
    thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| send(client, &up, 3).context("client sends")),
            scope.spawn(|| take(backend, &up).context("backend receives")),
            scope.spawn(|| send(backend, &down, 4).context("backend sends")),
            scope.spawn(|| take(client, &down).context("client receives")),
        ];
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })
}

/// nginx's module for streams, which is a package of its own.
fn stream_module() -> Result<String> {
    let places = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"];
    let found = places.iter().map(|place| format!("{place}/ngx_stream_module.so"));
    found
        .into_iter()
        .find(|path| Path::new(path).exists())
        .ok_or_else(|| Unable("needs libnginx-mod-stream: `cargo xtask test` installs it".into()).into())
}

/// Starts a peer with a configuration file of its own, and waits until it listens.
fn peer(lab: &Lab, name: &str, program: &str, conf: &str, in_front: bool, address: &str) -> Result<Process> {
    let file = lab.dir().join(format!("{name}.conf"));
    fs::write(&file, conf)?;
    let mut command = Command::new(program);
    match program {
        "nginx" => command.args(["-e", "stderr", "-c"]).arg(&file),
        _ => command.args(["-db", "-f"]).arg(&file),
    };
    let netns = if in_front { &lab.client } else { &lab.backend };
    let mut process = Process::start(netns, lab.dir(), name, &mut command)?;
    process.wait_ready(|| tcp::connect(netns, address).is_ok())?;
    Ok(process)
}

/// A proxy in the client's namespace, which sends a header.
fn front(lab: &Lab, program: &str, port: u16) -> Result<Process> {
    let dir = lab.dir().display();
    let conf = if program == "nginx" {
        format!(
            "load_module {};\nuser root;\ndaemon off;\npid {dir}/front.pid;\nworker_processes 1;\nevents {{}}\n\
             stream {{ server {{ listen 127.0.0.1:{port}; proxy_protocol on; proxy_pass {LB}:8443; }} }}\n",
            stream_module()?
        )
    } else {
        format!(
            "defaults\n  mode tcp\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n\
             listen front\n  bind 127.0.0.1:{port}\n  server lb {LB}:8443 send-proxy-v2 proxy-v2-options crc32c,unique-id\n  \
             unique-id-format front-%pid-%rt\n"
        )
    };
    peer(lab, &format!("front-{program}"), program, &conf, true, &format!("127.0.0.1:{port}"))
}

/// A server that answers with the address and the port in the header, at the port 9000 of `host`.
fn server(lab: &Lab, program: &str, host: &str, leaf: &Leaf) -> Result<Process> {
    let dir = lab.dir().display();
    let (certificate, key) = (leaf.certificate.display(), leaf.key.display());
    let conf = if program == "nginx" {
        format!(
            "user root;\ndaemon off;\npid {dir}/server.pid;\nworker_processes 1;\nevents {{}}\n\
             http {{ access_log off; client_body_temp_path {dir}/body;\n  server {{ listen {host}:9000 ssl proxy_protocol; \
             ssl_certificate {certificate}; ssl_certificate_key {key};\n  \
             location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port\\n\"; }} }} }}\n"
        )
    } else {
        let pem = lab.dir().join("haproxy.pem");
        fs::write(&pem, [fs::read(&leaf.certificate)?, fs::read(&leaf.key)?].concat())?;
        format!(
            "defaults\n  mode http\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n\
             frontend server\n  bind {host}:9000 accept-proxy ssl crt {}\n  \
             http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] \
             %[fc_pp_authority] %[fc_pp_unique_id]\\n\"\n",
            pem.display()
        )
    };
    peer(lab, &format!("server-{program}"), program, &conf, false, &format!("{host}:9000"))
}

fn peers_on_both_sides(lab: &Lab) -> Result<()> {
    let leaf = lab.ca.issue(NAME)?;
    let _servers = [server(lab, "nginx", BACKEND, &leaf)?, server(lab, "haproxy", BACKEND_2, &leaf)?];
    let _fronts = [front(lab, "nginx", 7001)?, front(lab, "haproxy", 7002)?];
    for (version, backend) in [
        ("v1", BACKEND),
        ("v2", BACKEND),
        ("v1", BACKEND_2),
        ("{version: v2, tlvs: [authority, unique_id, crc32c]}", BACKEND_2),
    ] {
        let yaml = yaml(&required(), version, "").replacen(BACKEND, backend, 1);
        let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
        for port in [7001, 7002] {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*", "--cacert"]);
            command.arg(lab.ca.file()).args(["--write-out", "%{local_port}"]);
            command.args([
                "--resolve",
                &format!("{NAME}:{port}:127.0.0.1"),
                &format!("https://{NAME}:{port}/"),
            ]);
            let said = run(&lab.client, &mut command)?.ok()?.stdout;
            let (answer, own) = said.split_once('\n').context("an answer")?;
            let answer = answer.trim_end();
            // Of the client, and not of the proxy in front.
            let mut wanted = format!("127.0.0.1 {own}");
            if version.starts_with('{') {
                wanted = format!("{wanted} {NAME} ");
                // The id of the proxy in front stays, and another one is a UUID.
                let id = answer.strip_prefix(&wanted).unwrap_or_default();
                let expected = if port == 7002 { id.starts_with("front-") } else { id.len() == 36 };
                ensure!(expected, "{version}, port {port}: {answer}");
            } else {
                ensure!(answer == wanted, "{version}, port {port}: '{answer}', not '{wanted}'");
            }
        }
    }
    Ok(())
}

fn bad_headers(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let more = "timeouts: {hello: 2s}\n";
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml(&required(), "v1", more))?)?;
    let large = [SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF]].concat();
    let mut cut = binary();
    cut[15] = 11;
    let sum = [SIGNATURE, &[0x21, 0x11, 0, 19], &[0; 12], &[3, 0, 4, 1, 2, 3, 4]].concat();
    let hello = hello::naming(NAME)?;
    let cases: [(&[u8], &str); 8] = [
        (&hello, "proxy_header_missing"),
        (b"GET / HTTP/1.1\r\n\r\n", "proxy_header_missing"),
        (b"PROXY TCP4 1.2.3.4\r\n", "proxy_header_malformed"),
        (&[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat(), "proxy_header_malformed"),
        (&cut, "proxy_header_malformed"),
        (&sum, "proxy_header_malformed"),
        (&large, "proxy_header_too_large"),
        (&LINE[..20], "proxy_header_timeout"),
    ];
    let mut expected = BTreeMap::new();
    for (bytes, reason) in cases {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(bytes)?;
        *expected.entry(reason).or_insert(0) += 1;
        daemon.wait_metrics(reason, |metrics| {
            metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) == expected[reason]
        })?;
        let ended = client.read(&mut [0; 1]);
        ensure!(ended.is_err(), "{reason}: {ended:?}, not a reset");
    }
    // A client that ends within its header.
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&LINE[..20])?;
    client.shutdown(Shutdown::Write)?;
    daemon.wait_metrics("the client is gone", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "client_gone")]) == 1
    })?;
    // Others are served.
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&[LINE, &hello].concat())?;
    receive(&listener, &[LINE, &hello].concat())?;
    Ok(())
}

fn optional(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let hello = hello::naming(NAME)?;
    for (from, mode, served) in
        [(CLIENT, "optional", true), ("192.0.2.0/24", "optional", true), ("192.0.2.0/24", "required", false)]
    {
        let yaml = yaml(&format!("{{from: [{from}], mode: {mode}}}"), "v1", "");
        let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        let port = client.local_addr()?.port();
        let own = format!("PROXY TCP4 {CLIENT} {LB} {port} 8443\r\n");
        // A connection may be reset before it has sent its hello.
        let sent = client.write_all(&hello);
        if served {
            sent?;
            receive(&listener, &[own.as_bytes(), &hello].concat())?;
        } else {
            daemon.wait_metrics("the client is refused", |metrics| {
                metrics.sum("snisplice_connections_closed_total", &[("reason", "proxy_untrusted")]) == 1
            })?;
            continue;
        }
        // A header counts only if its sender is trusted.
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&[LINE, &hello].concat())?;
        if from == CLIENT {
            receive(&listener, &[LINE, &hello].concat())?;
        } else {
            daemon.wait_metrics("the header is no hello", |metrics| {
                metrics.sum("snisplice_connections_closed_total", &[("reason", "not_tls")]) == 1
            })?;
        }
    }
    Ok(())
}

fn named_client(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let log = lab.dir().join("access.jsonl");
    let more = format!(
        "deny: [203.0.113.99]\nlimits: {{connections_per_source: 2}}\naccess_log: {{path: {}, format: json}}\n",
        log.display()
    );
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml(&required(), "v1", &more))?)?;
    let hello = hello::naming(NAME)?;
    let begin = |client: &str| -> Result<TcpStream> {
        let mut stream = tcp::connect(&lab.client, &flow::front())?;
        let line = format!("PROXY TCP4 {client} 198.51.100.1 4711 443\r\n");
        stream.write_all(&[line.as_bytes(), &hello].concat())?;
        Ok(stream)
    };
    let ended = |reason: &str, count| {
        daemon.wait_metrics(reason, |metrics| {
            metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) == count
        })
    };
    let _denied = begin("203.0.113.99")?;
    ended("denied", 1)?;
    // The limit is that of each client, and not that of the proxy.
    let mut open = Vec::new();
    for client in [FROM, FROM, "203.0.113.8"] {
        let stream = begin(client)?;
        open.push((stream, tcp::accept(&listener)?));
    }
    let _refused = begin(FROM)?;
    ended("source_limit", 1)?;
    let (status, body) = daemon.ask("GET", "/connections?client=203.0.113.8")?;
    let listing: Value = serde_json::from_str(&body)?;
    let shown = &listing["connections"][0];
    ensure!(status == 200 && shown["client"] == "203.0.113.8:4711", "{body}");
    ensure!(shown["proxy"].as_str().is_some_and(|proxy| proxy.starts_with(CLIENT)), "{body}");
    ensure!(listing["connections"].as_array().is_some_and(|all| all.len() == 1), "{body}");
    for (client, backend) in open {
        drop((client, backend));
    }
    ended("source_limit", 1)?;
    daemon.wait_metrics("the connections have ended", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    let mut names = Vec::new();
    wait::until_true("the lines are written", || {
        let text = fs::read_to_string(&log)?;
        names = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect();
        Ok(names.len() == 5)
    })?;
    let client_of = |line: &Value| {
        let remote = line["downstream_remote_address"].as_str().unwrap_or_default();
        remote.starts_with("203.0.113.") && line["downstream_local_address"] == "198.51.100.1:443"
    };
    ensure!(names.iter().all(client_of), "{names:?}");
    Ok(())
}

/// The rules of a listener and of a route are for the named client, and not for the proxy, which they would refuse.
fn source_rules(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let rules = format!("{}\n    deny: [203.0.113.99, {CLIENT}]", required());
    let yaml = yaml(&rules, "v1", "").replacen(
        "    sni:",
        &format!("    deny: [203.0.113.98, {CLIENT}]\n    sni:"),
        1,
    );
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let hello = hello::naming(NAME)?;
    let begin = |header: &str| -> Result<TcpStream> {
        let mut stream = tcp::connect(&lab.client, &flow::front())?;
        stream.write_all(&[header.as_bytes(), &hello].concat())?;
        Ok(stream)
    };
    let line = |client: &str| format!("PROXY TCP4 {client} 198.51.100.1 4711 443\r\n");
    let refused = |header: &str, reason: &str, count| -> Result<()> {
        let mut stream = begin(header)?;
        daemon.wait_metrics(reason, |metrics| {
            metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) == count
        })?;
        let ended = stream.read(&mut [0; 1]);
        ensure!(ended.is_err(), "{reason}: {ended:?}, not a reset");
        Ok(())
    };
    refused(&line("203.0.113.99"), "denied", 1)?;
    refused(&line("203.0.113.98"), "route_denied", 1)?;
    // The proxy is the client of its own connections.
    refused("PROXY UNKNOWN\r\n", "denied", 2)?;
    let _served = begin(&line(FROM))?;
    receive(&listener, &[line(FROM).as_bytes(), &hello].concat())?;
    Ok(())
}

/// Answers each request with its head behind the header of its connection, and reports the number of connections.
fn answer(listener: TcpListener, accepted: mpsc::Sender<String>) {
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let accepted = accepted.clone();
            thread::spawn(move || -> Result<()> {
                let mut reader = BufReader::new(stream.try_clone()?);
                let mut header = String::new();
                reader.read_line(&mut header)?;
                accepted.send(header.clone())?;
                loop {
                    let mut head = header.clone();
                    while !head.ends_with("\r\n\r\n") {
                        if reader.read_line(&mut head)? == 0 {
                            return Ok(());
                        }
                    }
                    let length = head.len();
                    write!(&stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{head}")?;
                }
            });
        }
    });
}

/// Sends a request, and returns the body of the response. The connection stays open.
pub(crate) fn ask(stream: &TcpStream) -> Result<String> {
    (&*stream).write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (mut length, mut line) = (0, String::new());
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            bail!("no response");
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(String::from_utf8(body)?)
}

fn requests(lab: &Lab) -> Result<()> {
    let (accepted, seen) = mpsc::channel();
    answer(flow::backend(lab)?, accepted);
    let yaml = format!(
        "listeners:\n- name: front\n  bind: 0.0.0.0:8443\n  proxy_protocol: {{from: {CLIENT}}}\n  \
         http: [{{backends: pool}}]\n\
         backends: [{{name: pool, proxy_protocol: v1, endpoints: \"{BACKEND}:9000\"}}]\n"
    );
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let mut clients = Vec::new();
    for last in [7, 8] {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        let line = format!("PROXY TCP4 203.0.113.{last} 198.51.100.1 4711 443\r\n");
        client.write_all(line.as_bytes())?;
        for _ in 0..3 {
            let answer = ask(&client)?;
            ensure!(answer.starts_with(&line), "{answer}");
            ensure!(
                answer.to_ascii_lowercase().contains(&format!("x-forwarded-for: 203.0.113.{last}\r\n")),
                "{answer}"
            );
        }
        clients.push(client);
    }
    // One connection for each client, for all of its requests.
    let seen: Vec<String> = seen.try_iter().collect();
    ensure!(seen.len() == 2, "{seen:?}");
    Ok(())
}

/// TLS ends at the balancer, and its content is encrypted again.
fn before_tls(lab: &Lab) -> Result<()> {
    let leaf = lab.ca.issue(NAME)?;
    let _servers = [server(lab, "nginx", BACKEND, &leaf)?, server(lab, "haproxy", BACKEND_2, &leaf)?];
    let (certificate, key) = (leaf.certificate.display(), leaf.key.display());
    for inside in ["backends: pool", "terminate_http"] {
        for (version, backend) in [("v1", BACKEND), ("{version: v2, tlvs: [authority, crc32c]}", BACKEND_2)] {
            let ends = format!("certificates: [{{certificate: {certificate}, key: {key}}}]");
            let route = match inside {
                "terminate_http" => format!("terminate: {{{ends}, http: [{{backends: pool}}]}}"),
                bytes => format!("terminate: {{{ends}}}, {bytes}"),
            };
            let yaml = format!(
                "listeners: [{{name: front, bind: \"0.0.0.0:8443\"}}]\n\
                 routes: [{{name: www, sni: {NAME}, {route}}}]\n\
                 backends:\n- name: pool\n  endpoints: \"{backend}:9000\"\n  \
                 tls: {{insecure_skip_verify: true, sni: {NAME}}}\n  proxy_protocol: {version}\n"
            );
            let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*", "--cacert"]);
            command.arg(lab.ca.file()).args(["--write-out", "%{local_port}"]);
            command.args(["--resolve", &format!("{NAME}:8443:{LB}"), &format!("https://{NAME}:8443/")]);
            let said = run(&lab.client, &mut command)?.ok()?.stdout;
            let (answer, own) = said.split_once('\n').context("an answer")?;
            let name = if backend == BACKEND { String::new() } else { format!(" {NAME}") };
            let wanted = format!("{CLIENT} {own}{name}");
            ensure!(answer.trim_end() == wanted, "{inside}, {version}: '{answer}', not '{wanted}'");
        }
    }
    Ok(())
}

fn another_endpoint(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    // Nobody listens at the first endpoint.
    let yaml = yaml(&required(), "v2", "").replacen(
        &format!("\"{BACKEND}:9000\""),
        &format!("\"{BACKEND_2}:9000\", \"{BACKEND}:9000\""),
        1,
    );
    let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let hello = hello::naming(NAME)?;
    let wanted = [SIGNATURE, &[0x21, 0x11, 0, 12], &binary()[16..28], &hello].concat();
    for _ in 0..4 {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&[LINE, &hello].concat())?;
        receive(&listener, &wanted)?;
    }
    Ok(())
}

fn health_checks(lab: &Lab) -> Result<()> {
    for (version, wanted) in
        [("v1", b"PROXY UNKNOWN\r\n".to_vec()), ("v2", [SIGNATURE, &[0x20, 0, 0, 0]].concat())]
    {
        let listener = flow::backend(lab)?;
        let yaml = yaml(&required(), version, "").replacen(
            "  - name: pool\n",
            "  - name: pool\n    health_check: {interval: 100ms}\n",
            1,
        );
        let _daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
        for _ in 0..2 {
            let mut check = tcp::accept(&listener)?;
            let (bytes, _) = tcp::read_to_end(&mut check)?;
            ensure!(bytes == wanted, "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
    // A real server takes it, in front of the ClientHello of a check.
    let leaf = lab.ca.issue(NAME)?;
    let _server = server(lab, "nginx", BACKEND, &leaf)?;
    let yaml = yaml(&required(), "v2", "").replacen(
        "  - name: pool\n",
        &format!("  - name: pool\n    health_check: {{type: tls, sni: {NAME}, interval: 100ms}}\n"),
        1,
    );
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    daemon.wait_metrics("a check has succeeded", |metrics| {
        metrics.has("snisplice_backend_certificate_expiry_seconds")
    })?;
    Ok(())
}
