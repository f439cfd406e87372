//! TLS termination: its content, accepted clients, and certificates that change in service.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ServerConnection, StreamOwned,
    pki_types::CertificateDer,
    version::{TLS12, TLS13},
};
use snisplice_tests::{
    daemon::{Daemon, Options, cli_with},
    hello,
    lab::Lab,
    netns::BACKEND,
    pki::{Ca, Leaf},
    process::run,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp, wait,
};

use crate::flow;

pub(crate) const CASES: &[Case] = &[
    Case::sockets("terminate::bytes_and_a_half_close_go_through_both_ways", bytes_both_ways),
    Case::sockets("terminate::one_port_terminates_and_passes_through", one_port),
    Case::once("terminate::istio_objects_terminate_and_encrypt_again", encrypted_again),
    Case::once("terminate::clients_are_known_by_their_certificates", client_certificates),
    Case::once("terminate::versions_are_those_of_the_configuration", versions),
    Case::once("terminate::a_client_is_shown_the_certificate_that_it_can_verify", certificate_fits),
    Case::once("terminate::a_certificate_changes_under_load", certificate_changes),
    Case::once("terminate::a_bad_change_keeps_the_last_good_certificate", bad_change),
    Case::once("terminate::reloads_under_load_break_nothing", reloads),
    Case::once("terminate::a_session_is_resumed_by_any_worker_and_the_next_process", resumption),
    Case::once("terminate::a_silent_handshake_times_out", silent_handshake),
    Case::once("terminate::a_source_has_its_share_of_handshakes", handshake_limit),
    Case::once("terminate::faults_are_told_before_anything_serves", faults),
    Case::once("terminate::a_key_that_only_the_start_could_read_is_told", unreadable_later),
    Case::once("terminate::secrets_of_connections_are_written_on_demand_only", key_log),
];

const NAME: &str = "www.example.com";

/// The directory of the secrets, with a certificate for this name under the name `web`.
pub(crate) fn secrets(lab: &Lab) -> Result<PathBuf> {
    let directory = lab.dir().join("secrets");
    fs::create_dir(&directory)?;
    put(&directory, &lab.ca.issue("*.example.com")?)?;
    Ok(directory)
}

/// Replaces the certificate `web` as in a mounted Secret: all files at once.
pub(crate) fn put(directory: &Path, leaf: &Leaf) -> Result<()> {
    static VERSION: AtomicUsize = AtomicUsize::new(0);
    let version = format!("..{}", VERSION.fetch_add(1, Relaxed));
    let web = directory.join("web");
    fs::create_dir_all(web.join(&version))?;
    fs::copy(&leaf.certificate, web.join(&version).join("tls.crt"))?;
    fs::copy(&leaf.key, web.join(&version).join("tls.key"))?;
    symlink(&version, web.join("..new"))?;
    fs::rename(web.join("..new"), web.join("..data"))?;
    for file in ["tls.crt", "tls.key"] {
        if !web.join(file).exists() {
            symlink(Path::new("..data").join(file), web.join(file))?;
        }
    }
    Ok(())
}

/// Terminates `*.example.com` with the certificate `web`. `terminate` and `more` are further settings.
fn yaml(directory: &Path, terminate: &str, more: &str) -> String {
    format!(
        "listeners: [{{name: front, bind: \"0.0.0.0:8443\"}}]\nsecrets: {}\n\
         routes:\n- name: inside\n  sni: \"*.example.com\"\n  terminate: {{certificates: web{terminate}}}\n  backends: plain\n\
         - name: through\n  sni: \"*.tls.example.com\"\n  backends: through\n\
         backends:\n- {{name: plain, endpoints: \"{BACKEND}:9000\"}}\n- {{name: through, endpoints: \"{BACKEND}:9001\"}}\n{more}",
        directory.display()
    )
}

fn start<'lab>(lab: &'lab Lab, terminate: &str, more: &str) -> Result<(Daemon<'lab>, TcpListener, PathBuf)> {
    let directory = secrets(lab)?;
    let listener = tcp::listen(&lab.backend, &format!("{BACKEND}:9000"))?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml(&directory, terminate, more))?)?;
    Ok((daemon, listener, directory))
}

pub(crate) type Client = StreamOwned<ClientConnection, TcpStream>;

/// A client after its handshake.
pub(crate) fn connect(lab: &Lab, config: &Arc<ClientConfig>, name: &str) -> Result<Client> {
    let connection = ClientConnection::new(config.clone(), name.to_owned().try_into()?)?;
    let mut client = StreamOwned::new(connection, tcp::connect(&lab.client, &flow::front())?);
    while client.conn.is_handshaking() {
        client.conn.complete_io(&mut client.sock)?;
    }
    Ok(client)
}

/// Echoes the bytes of every connection.
fn echo(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// One message in both directions, and an orderly end.
pub(crate) fn exchange(mut client: Client) -> Result<()> {
    client.write_all(b"hello inside")?;
    let mut back = [0; 12];
    client.read_exact(&mut back)?;
    ensure!(&back == b"hello inside");
    client.conn.send_close_notify();
    client.flush()?;
    client.sock.shutdown(std::net::Shutdown::Write)?;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).context("the end has no close_notify")?;
    ensure!(rest.is_empty());
    Ok(())
}

fn shown(client: &Client) -> Result<CertificateDer<'static>> {
    let certificates = client.conn.peer_certificates().context("no certificate")?;
    Ok(certificates[0].clone().into_owned())
}

fn closed(daemon: &Daemon<'_>, reason: &str, count: i64) -> Result<()> {
    daemon.wait_metrics(reason, |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", reason)]) >= count
    })?;
    Ok(())
}

fn bytes_both_ways(lab: &Lab) -> Result<()> {
    const TOTAL: u64 = 3_000_000;
    let (daemon, listener, _) = start(lab, "", "")?;
    for version in [&TLS12, &TLS13] {
        let mut client = connect(lab, &lab.ca.client(&[version])?, NAME)?;
        let mut backend = tcp::accept(&listener)?;
        let (up, down) = (Pattern::new(1), Pattern::new(2));
        thread::scope(|scope| -> Result<()> {
            let received = scope.spawn(|| -> Result<()> {
                stream::receive(&mut backend, &up, TOTAL)?;
                // The order matters: the client's direction is closed, and this one is not.
                ensure!(backend.read(&mut [0; 1])? == 0, "more than was sent");
                stream::send(&mut backend, &down, TOTAL, Pace::uneven(3))?;
                backend.shutdown(std::net::Shutdown::Write)?;
                Ok(())
            });
            stream::send(&mut client, &up, TOTAL, Pace::uneven(4))?;
            client.conn.send_close_notify();
            client.flush()?;
            client.sock.shutdown(std::net::Shutdown::Write)?;
            stream::receive(&mut client, &down, TOTAL)?;
            // Without a close_notify this is an error.
            ensure!(client.read(&mut [0; 1]).context("no close_notify")? == 0);
            received.join().map_err(|_| anyhow::anyhow!("the backend has failed"))?
        })?;
    }
    let metrics = daemon.wait_metrics("both have ended", |metrics| {
        let labels = [("datapath", "terminate"), ("reason", "finished"), ("route", "route inside")];
        metrics.sum("snisplice_connections_closed_total", &labels) == 2
    })?;
    for direction in ["up", "down"] {
        let moved =
            metrics.sum("snisplice_bytes_total", &[("datapath", "terminate"), ("direction", direction)]);
        ensure!(moved == 2 * i64::try_from(TOTAL)?, "{direction}: {moved}");
    }
    ensure!(metrics.sum("snisplice_certificate_not_after_seconds", &[]) > 0);
    Ok(())
}

/// The more specific name wins, with passthrough or termination.
fn one_port(lab: &Lab) -> Result<()> {
    let own = lab.ca.issue("x.tls.example.com")?;
    let (_daemon, listener, _) = start(lab, "", "")?;
    echo(listener);
    let through = tcp::listen(&lab.backend, &format!("{BACKEND}:9001"))?;
    let config = own.server(&[&TLS13])?;
    let server = thread::spawn(move || -> Result<()> {
        let stream = tcp::accept(&through)?;
        let mut tls = StreamOwned::new(ServerConnection::new(config)?, stream);
        let mut buffer = [0; 12];
        tls.read_exact(&mut buffer)?;
        tls.write_all(&buffer)?;
        tls.conn.send_close_notify();
        tls.flush()?;
        Ok(())
    });
    let config = lab.ca.client(&[&TLS13])?;
    let ended_here = connect(lab, &config, "tls.example.com")?;
    let certificate = shown(&ended_here)?;
    exchange(ended_here)?;
    let mut passed = connect(lab, &config, "x.tls.example.com")?;
    ensure!(shown(&passed)? != certificate, "the backend's own certificate is shown");
    passed.write_all(b"hello inside")?;
    let mut back = [0; 12];
    passed.read_exact(&mut back)?;
    server.join().map_err(|_| anyhow::anyhow!("the server has failed"))?
}

/// A server `SIMPLE` with a Secret of the same files, and a destination with TLS and a client certificate.
fn encrypted_again(lab: &Lab) -> Result<()> {
    let (leaf, own) = (lab.ca.issue("*.example.com")?, lab.ca.issue("balancer.test")?);
    let objects = |authorities: &Path| {
        let indented = |path: &Path| fs::read_to_string(path).map(|text| text.replace('\n', "\n    "));
        Ok::<_, std::io::Error>(format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: web, namespace: default}}\nstringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: front, namespace: default}}\n\
             spec:\n  selector: {{istio: ingressgateway}}\n  servers:\n  - port: {{number: 8443, name: tls, protocol: TLS}}\n    \
             tls: {{mode: SIMPLE, credentialName: web}}\n    hosts: [\"*.example.com\"]\n\
             ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: inside, namespace: default}}\n\
             spec:\n  hosts: [\"*.example.com\"]\n  gateways: [front]\n  tcp:\n  - match: [{{port: 8443}}]\n    \
             route: [{{destination: {{host: inner.test, port: {{number: 9443}}}}}}]\n\
             ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: inner, namespace: default}}\n\
             spec:\n  hosts: [inner.test]\n  resolution: STATIC\n  ports: [{{number: 9443, name: tcp, protocol: TCP}}]\n  \
             endpoints: [{{address: {BACKEND}}}]\n\
             ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: inner, namespace: default}}\n\
             spec:\n  host: inner.test\n  trafficPolicy:\n    \
             tls: {{mode: MUTUAL, sni: inner.test, caCertificates: {}, clientCertificate: {}, privateKey: {}}}\n",
            indented(&leaf.certificate)?,
            indented(&leaf.key)?,
            authorities.display(),
            own.certificate.display(),
            own.key.display(),
        ))
    };
    let config = lab.ca.issue("inner.test")?.server_asking(&lab.ca)?;
    let listener = tcp::listen(&lab.backend, &format!("{BACKEND}:9443"))?;
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let Ok(connection) = ServerConnection::new(config.clone()) else { return };
            let mut stream = StreamOwned::new(connection, stream);
            let mut buffer = [0; 12];
            if stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {
                // Reads to the client's end, then closes.
                let _ = stream.read(&mut [0; 1]);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    let options = Options::yaml(lab, &objects(&lab.ca.file())?)?;
    let daemon = Daemon::start(lab, &options)?;
    let config = lab.ca.client(&[&TLS13])?;
    exchange(connect(lab, &config, NAME)?)?;
    closed(&daemon, "finished", 1)?;
    // A missing file is an error if it existed before.
    fs::rename(lab.dir().join("snisplice.yaml"), lab.dir().join("whole.yaml"))?;
    let whole = fs::read_to_string(lab.dir().join("whole.yaml"))?;
    fs::write(lab.dir().join("snisplice.yaml"), whole.replace("{name: web,", "{name: other,"))?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon
        .wait_metrics("it is refused", |metrics| metrics.sum("snisplice_config_rejected_total", &[]) == 1)?;
    exchange(connect(lab, &config, NAME)?)?;
    // Another authority's certificate is not trusted.
    let other = tempfile::tempdir()?;
    Options::yaml(lab, &objects(&Ca::new(other.path())?.file())?)?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("it is reloaded", |metrics| metrics.sum("snisplice_config_generation", &[]) == 2)?;
    ensure!(exchange(connect(lab, &config, NAME)?).is_err(), "the backend is trusted");
    closed(&daemon, "backend_tls_failed", 1)?;
    // If the certificate never existed, its names are refused, and the others are served.
    drop(daemon);
    fs::write(lab.dir().join("snisplice.yaml"), whole.replace("{name: web,", "{name: other,"))?;
    let daemon = Daemon::start(lab, &options)?;
    ensure!(connect(lab, &config, NAME).is_err(), "it is served without a certificate");
    closed(&daemon, "no_certificate", 1)
}

/// A client that trusts the lab's authority and has this certificate.
fn with_certificate(lab: &Lab, leaf: &Leaf) -> Result<Arc<ClientConfig>> {
    lab.ca.client_with(&[&TLS13], leaf)
}

fn client_certificates(lab: &Lab) -> Result<()> {
    let other = tempfile::tempdir()?;
    let other_ca = Ca::new(other.path())?;
    let terminate = format!(", client_ca: {}, subject_alt_names: [good.client]", lab.ca.file().display());
    let (daemon, listener, _) = start(lab, &terminate, "")?;
    echo(listener);
    let refused = |config: Arc<ClientConfig>| -> Result<()> {
        // In TLS 1.3 the client's handshake ends before the server has verified its certificate.
        let done = connect(lab, &config, NAME).and_then(exchange);
        let alert = format!("{:#}", done.err().context("it is let in")?);
        ensure!(alert.contains("alert"), "no alert: {alert}");
        Ok(())
    };
    exchange(connect(lab, &with_certificate(lab, &lab.ca.issue("good.client")?)?, NAME)?)?;
    refused(lab.ca.client(&[&TLS13])?).context("without a certificate")?;
    refused(with_certificate(lab, &lab.ca.issue("bad.client")?)?).context("with another name")?;
    refused(with_certificate(lab, &other_ca.issue("good.client")?)?).context("of another authority")?;
    closed(&daemon, "client_certificate_refused", 3)
}

fn versions(lab: &Lab) -> Result<()> {
    let (daemon, listener, _) = start(lab, ", min_version: TLSv1.3", "")?;
    echo(listener);
    exchange(connect(lab, &lab.ca.client(&[&TLS13])?, NAME)?)?;
    let older = connect(lab, &lab.ca.client(&[&TLS12])?, NAME);
    let told = older.err().context("TLS 1.2 is spoken")?.to_string();
    ensure!(told.contains("ProtocolVersion"), "{told}");
    closed(&daemon, "handshake_failed", 1)
}

/// The output of `openssl s_client` for the listener.
fn s_client(lab: &Lab, args: &[&str]) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &flow::front(), "-servername", NAME]).args(args);
    let said = run(&lab.client, &mut command)?;
    Ok(said.stdout + &said.stderr)
}

/// An RSA key beside an ECDSA one, an OCSP response, and protocols.
fn certificate_fits(lab: &Lab) -> Result<()> {
    let directory = secrets(lab)?;
    let (key, certificate) = (directory.join("rsa.key"), directory.join("rsa.crt"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=rsa", "-days", "90"]);
    command.args(["-addext", "subjectAltName=DNS:*.example.com", "-keyout"]);
    run(&lab.client, command.arg(&key).arg("-out").arg(&certificate))?.ok()?;
    // The shortest response: "successful" only.
    fs::write(directory.join("rsa.crt.ocsp"), [0x30, 3, 0x0a, 1, 0])?;
    let yaml = yaml(&directory, ", alpn: [h2, http/1.1]", "")
        .replace("certificates: web", "certificates: [web, rsa]");
    let daemon = Daemon::start(lab, &Options::yaml(lab, &yaml)?)?;
    let both = s_client(lab, &["-sigalgs", "RSA-PSS+SHA256:ECDSA+SHA256", "-alpn", "http/1.1"])?;
    ensure!(both.contains("Peer signature type: ECDSA"), "{both}");
    ensure!(both.contains("ALPN protocol: http/1.1"), "{both}");
    let rsa = s_client(lab, &["-sigalgs", "RSA-PSS+SHA256", "-status"])?;
    ensure!(rsa.contains("Peer signature type: RSA-PSS"), "{rsa}");
    ensure!(rsa.contains("OCSP Response Status: successful"), "{rsa}");
    let neither = s_client(lab, &["-sigalgs", "ed25519"])?;
    ensure!(neither.contains("alert handshake failure"), "{neither}");
    closed(&daemon, "no_certificate", 1)?;
    let protocol = s_client(lab, &["-alpn", "smtp"])?;
    // Not all versions of OpenSSL have a text for this alert: number 120 of RFC 7301.
    ensure!(
        protocol.contains("no application protocol") || protocol.contains("alert number 120"),
        "{protocol}"
    );
    Ok(())
}

/// Connections one after another, each with a handshake and an exchange, until `work` has ended. None may fail.
fn under_load(lab: &Lab, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let config = lab.ca.client(&[&TLS13])?;
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !stop.load(Relaxed) {
                        exchange(connect(lab, &config, NAME)?)?;
                        served.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let done =
            wait::until_true("connections are served", || Ok(served.load(Relaxed) > 2)).and_then(|()| work());
        stop.store(true, Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client has failed"))??;
        }
        done
    })
}

fn certificate_changes(lab: &Lab) -> Result<()> {
    let (daemon, listener, directory) = start(lab, "", "")?;
    echo(listener);
    let config = lab.ca.client(&[&TLS13])?;
    let mut kept = connect(lab, &config, NAME)?;
    let first = shown(&kept)?;
    under_load(lab, || {
        for _ in 0..2 {
            let before = shown(&connect(lab, &lab.ca.client(&[&TLS13])?, NAME)?)?;
            put(&directory, &lab.ca.issue("*.example.com")?)?;
            wait::until_true("the new certificate is shown", || {
                Ok(shown(&connect(lab, &lab.ca.client(&[&TLS13])?, NAME)?)? != before)
            })?;
        }
        Ok(())
    })?;
    // The connection was not affected.
    kept.write_all(b"still here")?;
    let mut back = [0; 10];
    kept.read_exact(&mut back)?;
    ensure!(shown(&kept)? == first);
    daemon.wait_log("certificates and keys have changed and are taken")
}

fn bad_change(lab: &Lab) -> Result<()> {
    let (daemon, listener, directory) = start(lab, "", "")?;
    echo(listener);
    let config = lab.ca.client(&[&TLS13])?;
    let key = directory.join("web/..data/tls.key");
    let good = fs::read(&key)?;
    fs::write(&key, fs::read(lab.ca.issue("other.example.com")?.key)?)?;
    daemon.wait_log("the key does not match the certificate")?;
    exchange(connect(lab, &config, NAME)?)?;
    // A reload is rejected for the same reason.
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("the reload is refused", |metrics| {
        metrics.sum("snisplice_config_rejected_total", &[]) == 1
    })?;
    exchange(connect(lab, &config, NAME)?)?;
    let lines = daemon.process().log()?.matches("the last good ones keep serving").count();
    ensure!(lines == 1, "it is told {lines} times");
    fs::write(&key, good)?;
    daemon.wait_log("certificates and keys have changed and are taken")?;
    exchange(connect(lab, &config, NAME)?)
}

fn reloads(lab: &Lab) -> Result<()> {
    let (daemon, listener, _) = start(lab, "", "")?;
    echo(listener);
    under_load(lab, || {
        for generation in 2..22 {
            daemon.process().signal(Signal::SIGHUP)?;
            daemon.wait_metrics("it is reloaded", |metrics| {
                metrics.sum("snisplice_config_generation", &[]) == generation
            })?;
        }
        Ok(())
    })
}

fn resumption(lab: &Lab) -> Result<()> {
    let (daemon, listener, directory) = start(lab, "", "limits: {workers: 4}\n")?;
    echo(listener);
    for version in [&TLS12, &TLS13] {
        let config = lab.ca.client(&[version])?;
        let kind = || -> Result<Option<HandshakeKind>> {
            let client = connect(lab, &config, NAME)?;
            let kind = client.conn.handshake_kind();
            // The tickets of TLS 1.3 follow the handshake.
            exchange(client)?;
            Ok(kind)
        };
        ensure!(kind()? != Some(HandshakeKind::Resumed), "there was no session yet");
        // The kernel distributes them over the workers.
        for _ in 0..16 {
            ensure!(kind()? == Some(HandshakeKind::Resumed), "not resumed");
        }
    }
    let config = lab.ca.client(&[&TLS13])?;
    exchange(connect(lab, &config, NAME)?)?;
    let options = Options::yaml(lab, &yaml(&directory, "", "limits: {workers: 4}\n"))?;
    let _next = Daemon::take_over(lab, &options, "next")?;
    let client = connect(lab, &config, NAME)?;
    ensure!(client.conn.handshake_kind() == Some(HandshakeKind::Resumed), "not resumed by the next process");
    exchange(client)?;
    drop(daemon);
    Ok(())
}

fn silent_handshake(lab: &Lab) -> Result<()> {
    let (daemon, _listener, _) = start(lab, "", "timeouts: {handshake: 1s}\n")?;
    let mut silent = tcp::connect(&lab.client, &flow::front())?;
    silent.write_all(&hello::naming(NAME)?)?;
    // The server's bytes, and then the end.
    let (said, _) = tcp::read_to_end(&mut silent)?;
    ensure!(!said.is_empty());
    closed(&daemon, "handshake_timeout", 1)
}

fn handshake_limit(lab: &Lab) -> Result<()> {
    let (daemon, listener, _) = start(lab, "", "limits: {handshakes_per_source: 2}\n")?;
    echo(listener);
    let begun = || -> Result<TcpStream> {
        let mut client = tcp::connect(&lab.client, &flow::front())?;
        client.write_all(&hello::naming(NAME)?)?;
        Ok(client)
    };
    let mut first = begun()?;
    let _second = begun()?;
    // Both handshakes are in progress.
    daemon.wait_metrics("both are under way", |metrics| {
        metrics.sum("snisplice_limit_used", &[("limit", "handshakes")]) == 2
    })?;
    let mut third = begun()?;
    match third.read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => bail!("not reset: {other:?}"),
    }
    closed(&daemon, "handshake_limit", 1)?;
    // A closed connection frees its slot.
    let _ = first.read(&mut [0; 1])?;
    drop(first);
    daemon.wait_metrics("there is room", |metrics| {
        metrics.sum("snisplice_limit_used", &[("limit", "handshakes")]) == 1
    })?;
    exchange(connect(lab, &lab.ca.client(&[&TLS13])?, NAME)?)
}

fn faults(lab: &Lab) -> Result<()> {
    let directory = secrets(lab)?;
    let file = lab.dir().join("faulty.yaml");
    fs::write(&file, yaml(&directory, "", ""))?;
    let key = directory.join("web/..data/tls.key");
    let good = fs::read(&key)?;
    cli_with(lab, "check", &file, &[])?.ok()?;
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (bytes, words) in [
        (fs::read(lab.ca.issue("other.example.com")?.key)?, "does not match"),
        (Vec::new(), "is empty"),
        (encrypted.into(), "openssl pkey"),
        (b"nonsense".to_vec(), "not PEM"),
    ] {
        fs::write(&key, bytes)?;
        for subcommand in ["check", "run"] {
            let said = cli_with(lab, subcommand, &file, &[])?;
            let text = format!("{}{}", said.stdout, said.stderr);
            ensure!(said.code != Some(0), "{subcommand} goes on: {text}");
            ensure!(text.contains(words) && text.contains("web/tls.key"), "{subcommand}: {text}");
            ensure!(text.contains("faulty.yaml:"), "{subcommand} does not say which route: {text}");
        }
    }
    fs::write(&key, good)?;
    fs::remove_dir_all(directory.join("web"))?;
    let said = cli_with(lab, "check", &file, &[])?;
    for place in ["web/tls.crt", "web/fullchain.pem", "web.crt", "web.pem"] {
        ensure!(said.stdout.contains(place), "{place} was not tried: {}", said.stdout);
    }
    Ok(())
}

/// The daemon's user may not read files that root can read.
fn unreadable_later(lab: &Lab) -> Result<()> {
    let directory = secrets(lab)?;
    let key = directory.join("web/..data/tls.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let listener = tcp::listen(&lab.backend, &format!("{BACKEND}:9000"))?;
    echo(listener);
    let options = Options::yaml(lab, &yaml(&directory, "", ""))?.arg("--user").arg("nobody");
    let daemon = Daemon::start(lab, &options)?;
    daemon.wait_log("can be read with the privileges of the start only")?;
    exchange(connect(lab, &lab.ca.client(&[&TLS13])?, NAME)?)
}

fn key_log(lab: &Lab) -> Result<()> {
    let directory = secrets(lab)?;
    let listener = tcp::listen(&lab.backend, &format!("{BACKEND}:9000"))?;
    echo(listener);
    let log = lab.dir().join("keys.log");
    let options = Options::yaml(lab, &yaml(&directory, "", ""))?.env("SSLKEYLOGFILE", &log);
    let without = Daemon::start(lab, &options)?;
    exchange(connect(lab, &lab.ca.client(&[&TLS13])?, NAME)?)?;
    ensure!(!log.exists(), "written without being asked");
    drop(without);
    let daemon = Daemon::start(lab, &options.arg("--tls-key-log"))?;
    exchange(connect(lab, &lab.ca.client(&[&TLS13])?, NAME)?)?;
    let written = fs::read_to_string(&log)?;
    ensure!(written.contains("CLIENT_TRAFFIC_SECRET_0 "), "{written}");
    daemon.wait_log("--tls-key-log")
}
