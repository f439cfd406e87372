//! Backends on this host, in a namespace of their own: nginx's bytes take the short cut, and other connections are
//! not affected.

use std::{
    fs::{self, File},
    io::{BufReader, Read, Write as _},
    net::TcpStream,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName, version};
use snisplice_tests::{
    daemon::{Daemon, Options},
    kernel::{Held, Map},
    lab::Lab,
    metrics::Metrics,
    netns::{BACKEND, Netns},
    pki::Leaf,
    process::Process,
    stream::{self, Pattern},
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::sockmap("same_host::nginx_serves_100_mb_to_a_slow_reader", slow_reader),
    Case::sockmap("same_host::nginx_serves_200_readers_at_once", many_readers),
    Case::sockmap("same_host::nginx_that_asks_for_ktls", ktls),
    Case::sockmap("same_host::other_clients_of_the_backend_are_left_alone", others),
    Case::sockmap("same_host::a_killed_daemon_leaves_the_backend_alone", killed),
    Case::once("same_host::where_it_cannot_serve_the_backend_is_served_as_any_other", refused),
];

const PORT: u16 = 9000;
const SAME_HOST: &str = "    same_host: true\n";
/// The limit of the bytes that balancer and backend hold for one connection whose client does not read: both send
/// buffers, both receive buffers and bytes in flight, on each side.
const MOST_HELD: u64 = 40 * 1024 * 1024;

fn start(lab: &Lab) -> Result<Daemon<'_>> {
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(SAME_HOST))?)?;
    ensure!(daemon.metrics()?.sum("snisplice_same_host", &[]) == 1, "it does not serve here");
    Ok(daemon)
}

fn moved(metrics: &Metrics) -> i64 {
    metrics.sum("snisplice_same_host_moved_bytes_total", &[])
}

/// nginx in the backend's namespace, which serves `size` bytes of `pattern` as `/file`.
fn nginx(lab: &Lab, leaf: &Leaf, pattern: &Pattern, size: u64, more: &str) -> Result<Process> {
    let dir = lab.dir();
    let served = dir.join("served");
    fs::create_dir_all(&served)?;
    let mut file = File::create(served.join("file"))?;
    let mut position = 0;
    while position < size {
        let left = usize::try_from(size - position)?;
        let bytes = pattern.at(position, left);
        file.write_all(bytes)?;
        position += bytes.len() as u64;
    }
    let conf = format!(
        "user root;\ndaemon off;\npid {dir}/nginx.pid;\nworker_processes 1;\nevents {{ worker_connections 2048; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  ssl_protocols TLSv1.2 TLSv1.3;\n  server {{\n    listen {BACKEND}:{PORT} ssl backlog=1024;\n    \
         ssl_certificate {};\n    ssl_certificate_key {};\n    root {};\n    {more}\n  }}\n}}\n",
        leaf.certificate.display(),
        leaf.key.display(),
        served.display(),
        dir = dir.display(),
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, conf)?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(&path);
    let mut nginx = Process::start(&lab.backend, dir, "nginx", &mut command)?;
    nginx.wait_ready(|| tcp::connect(&lab.backend, &format!("{BACKEND}:{PORT}")).is_ok())?;
    Ok(nginx)
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Requests the file, and reads the response's head.
fn ask(netns: &Netns, at: &str, config: &Arc<ClientConfig>) -> Result<BufReader<Tls>> {
    let name = ServerName::try_from(flow::NAME)?;
    let mut tls = StreamOwned::new(ClientConnection::new(config.clone(), name)?, tcp::connect(netns, at)?);
    write!(tls, "GET /file HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", flow::NAME)?;
    let mut tls = BufReader::new(tls);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tls.read_exact(&mut byte).context("the head of the answer")?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    Ok(tls)
}

/// Reads a megabyte per second for a while.
fn read_slowly(from: &mut impl Read, pattern: &Pattern, bytes: u64) -> Result<()> {
    const PIECE: u64 = 50_000;
    let mut buffer = vec![0; usize::try_from(PIECE)?];
    for piece in 0..bytes / PIECE {
        from.read_exact(&mut buffer)?;
        pattern.check(piece * PIECE, &buffer)?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Reads the rest of the file, and the end of the response.
fn read_rest(from: &mut impl Read, pattern: &Pattern, from_position: u64, size: u64) -> Result<()> {
    let (mut position, mut buffer) = (from_position, vec![0; 128 * 1024]);
    loop {
        let count =
            stream::read(&mut *from, &mut buffer).with_context(|| format!("at {position} of {size}"))?;
        if count == 0 {
            ensure!(position == size, "{position} of {size} bytes");
            return Ok(());
        }
        pattern.check(position, &buffer[..count])?;
        position += count as u64;
    }
}

/// The processor time of nginx's worker so far.
fn computed(lab: &Lab) -> Result<Duration> {
    let master = fs::read_to_string(lab.dir().join("nginx.pid"))?;
    let master = master.trim();
    let worker = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", worker.trim()))?;
    let (_, fields) = stat.rsplit_once(") ").context("no process")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    // USER_HZ is 100 everywhere.
    Ok(Duration::from_millis(10 * ticks))
}

fn slow_reader(lab: &Lab) -> Result<()> {
    const SIZE: u64 = 100_000_000;
    const SLOWLY: u64 = 2_000_000;
    let leaf = lab.ca.issue(flow::NAME)?;
    let pattern = Pattern::new(31);
    let _nginx = nginx(lab, &leaf, &pattern, SIZE, "")?;
    let daemon = start(lab)?;
    let mut body = ask(&lab.client, &flow::front(), &lab.ca.client(&[&version::TLS13])?)?;

    // The buffers fill up. Then nginx only waits.
    wait::settled(Duration::from_millis(500), || Held::inside(&lab.backend))?;
    let (before, since) = (computed(lab)?, Instant::now());
    read_slowly(&mut body, &pattern, SLOWLY)?;
    let (busy, time) = (computed(lab)?.saturating_sub(before), since.elapsed());
    ensure!(busy < time / 4, "nginx computed {busy:?} of {time:?} for a reader of 1 MB each second");
    let held = Held::inside(&lab.lb)?.memory + Held::inside(&lab.backend)?.memory;
    ensure!(held < MOST_HELD, "{held} bytes held");

    read_rest(&mut body, &pattern, SLOWLY, SIZE)?;
    let metrics = daemon.metrics()?;
    ensure!(moved(&metrics) > 0, "nothing took the short cut");
    ensure!(metrics.sum("snisplice_same_host_enrolled_total", &[]) == 1);
    Ok(())
}

fn many_readers(lab: &Lab) -> Result<()> {
    const READERS: i64 = 200;
    const SIZE: u64 = 500_000;
    let leaf = lab.ca.issue(flow::NAME)?;
    let pattern = Pattern::new(32);
    let _nginx = nginx(lab, &leaf, &pattern, SIZE, "")?;
    let daemon = start(lab)?;
    let config = lab.ca.client(&[&version::TLS13])?;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (config, pattern) = (&config, &pattern);
                scope.spawn(move || {
                    let mut body = ask(&lab.client, &flow::front(), config)?;
                    let slowly = if reader % 2 == 0 { 500_000 } else { 0 };
                    read_slowly(&mut body, pattern, slowly)?;
                    read_rest(&mut body, pattern, slowly, SIZE).with_context(|| format!("reader {reader}"))
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("no reader panics"))
    })?;
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_same_host_enrolled_total", &[]) == READERS, "not all were found");
    ensure!(moved(&metrics) > 0, "nothing took the short cut");
    daemon.wait_metrics("all are over", |metrics| metrics.sum("snisplice_connections_active", &[]) == 0)?;
    wait::until_true("no entry is left", || Ok(entries(&daemon, "SNI_SHORTCUTS")? == 0))?;
    wait::until_true("no socket is left", || Ok(entries(&daemon, "SNI_LOCAL")? == 0))
}

/// With kTLS the kernel would have to encrypt nginx's bytes. A kernel with kTLS refuses the combination, so nginx
/// encrypts them itself. Without kTLS nginx always does so.
fn ktls(lab: &Lab) -> Result<()> {
    const SIZE: u64 = 5_000_000;
    let leaf = lab.ca.issue(flow::NAME)?;
    let pattern = Pattern::new(33);
    let _nginx = nginx(lab, &leaf, &pattern, SIZE, "ssl_conf_command Options KTLS;")?;
    let daemon = start(lab)?;
    for version in [&version::TLS13, &version::TLS12] {
        let mut body = ask(&lab.client, &flow::front(), &lab.ca.client(&[version])?)?;
        read_rest(&mut body, &pattern, 0, SIZE)?;
    }
    ensure!(daemon.metrics()?.sum("snisplice_same_host_enrolled_total", &[]) == 2);
    Ok(())
}

/// The number of elements in a map of the daemon.
fn entries(daemon: &Daemon<'_>, name: &str) -> Result<usize> {
    let maps = Map::held_by(daemon.process().pid())?;
    let map = maps.iter().find(|map| map.name == name).with_context(|| format!("no map {name}"))?;
    Ok(map.elements()?.len())
}

fn others(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = start(lab)?;
    let mut ours = Flow::open(lab, &listener)?;
    ours.exchange()?;
    ensure!(entries(&daemon, "SNI_LOCAL")? == 1);
    // From the balancer's own namespace, where its sockets are, and from the backend's.
    for netns in [&lab.lb, &lab.backend] {
        let client = tcp::connect(netns, &format!("{BACKEND}:{PORT}"))?;
        let mut other = Flow { client, backend: tcp::accept(&listener)? };
        for _ in 0..10 {
            other.exchange()?;
        }
        ensure!(entries(&daemon, "SNI_LOCAL")? == 1, "a connection that is not ours was enrolled");
    }
    let before = moved(&daemon.metrics()?);
    for _ in 0..10 {
        ours.exchange()?;
    }
    ensure!(moved(&daemon.metrics()?) > before, "ours does not take the short cut");
    Ok(())
}

fn killed(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let pattern = Pattern::new(34);
    let daemon = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    stream::send(&flow.backend, &pattern, 1_000_000, stream::Pace::uneven(1))?;
    stream::receive(&flow.client, &pattern, 1_000_000)?;
    // The operating system kills the process without a warning.
    drop(daemon);
    let told = |socket: &mut TcpStream| stream::read(socket, &mut [0]).map_or(true, |count| count == 0);
    ensure!(told(&mut flow.client) && told(&mut flow.backend), "a connection outlives its balancer");
    // No program is left that would process the backend's sockets.
    let mut direct = Flow {
        client: tcp::connect(&lab.lb, &format!("{BACKEND}:{PORT}"))?,
        backend: tcp::accept(&listener)?,
    };
    direct.exchange()?;
    // The next daemon starts anew.
    let daemon = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..10 {
        flow.exchange()?;
    }
    ensure!(moved(&daemon.metrics()?) > 0);
    Ok(())
}

fn refused(lab: &Lab) -> Result<()> {
    let listener = flow::backend(lab)?;
    let daemon = Daemon::start(lab, &Options::yaml(lab, &flow::yaml(SAME_HOST))?.datapath("relay"))?;
    ensure!(daemon.metrics()?.sum("snisplice_same_host", &[]) == -1, "the metric does not tell");
    ensure!(daemon.process().log()?.contains("same_host needs the datapath sockmap"), "no warning");
    Flow::open(lab, &listener)?.exchange()
}
