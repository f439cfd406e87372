//! Many concurrent connections, each replaced by another one after a while. Every byte is checked, and finally no
//! resource is left. `cargo xtask soak` runs it longer and with more connections.

use std::{
    cell::Cell,
    env,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello, kernel,
    lab::{Datapath, Lab},
    limits,
    metrics::Metrics,
    netns::{BACKEND, Netns},
    stream::{Pattern, Random},
    suite::Case,
    wait,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, LocalSet},
};

use self::rest::Rest;
use crate::flow;

mod rest;

pub(crate) const CASES: &[Case] = &[Case::each("soak::many_connections_for_a_while", soak)];

/// The number of concurrent connections, and the time for which ended ones are replaced.
struct Plan {
    flows: usize,
    lasting: Duration,
}

impl Plan {
    /// `SNISPLICE_SOAK=FLOWS,SECONDS`, or a short plan.
    fn from_environment() -> Result<Self> {
        let Some(text) = env::var_os("SNISPLICE_SOAK") else {
            return Ok(Self { flows: 300, lasting: Duration::from_secs(6) });
        };
        let text = text.to_str().context("SNISPLICE_SOAK is no text")?;
        let (flows, seconds) = text.split_once(',').context("SNISPLICE_SOAK is not FLOWS,SECONDS")?;
        Ok(Self { flows: flows.parse()?, lasting: Duration::from_secs(seconds.parse()?) })
    }
}

/// The task of one connection, sent after the hello: a seed, and the numbers of bytes up and down.
#[derive(Clone, Copy)]
struct Task {
    seed: u64,
    up: u64,
    down: u64,
}

const TASK_BYTES: usize = 24;
/// The pieces of each direction, with a pause after each.
const PIECES: u64 = 4;

impl Task {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Most sizes are small, some are not.
        let mut size = || random.bits() % if random.up_to(10) == 1 { 1_000_000 } else { 20_000 };
        Self { seed, up: size(), down: size() }
    }

    fn to_bytes(self) -> Vec<u8> {
        [self.seed, self.up, self.down].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn from_bytes(bytes: [u8; TASK_BYTES]) -> Self {
        let number = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..][..8]);
            u64::from_le_bytes(word)
        };
        Self { seed: number(0), up: number(1), down: number(2) }
    }

    /// The pause after a piece: mostly short, and up to seconds.
    fn pause(random: &mut Random) -> Duration {
        Duration::from_millis(random.bits() % if random.up_to(4) == 1 { 4_000 } else { 400 })
    }
}

fn soak(lab: &Lab) -> Result<()> {
    let Plan { flows, lasting } = Plan::from_environment()?;
    limits::raise_open_files()?;
    for netns in [&lab.client, &lab.lb] {
        // Thousands of connections per minute leave as many ports in TIME-WAIT.
        netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    }
    let more = format!("limits: {{connections: {}, connections_per_source: none}}\n", flows + 100);
    // All connections begin at once, at one address and for one backend.
    let yaml = flow::yaml(&more).replace("  - name: pool\n", "  - name: pool\n    max_pending: 0\n");
    let options = Options::yaml(lab, &yaml)?;
    let daemon = Daemon::start(lab, &options)?;
    let before = Rest::of(lab, &daemon)?;
    let process = daemon.process();

    let server = Server::start(&lab.backend)?;
    let mut memory = Vec::new();
    let started = Instant::now();
    let outcome = thread::scope(|scope| {
        let clients = scope.spawn(|| lab.client.enter(|| clients(flows, lasting)));
        while !clients.is_finished() {
            thread::sleep(Duration::from_millis(200));
            memory.push((started.elapsed(), process.resident_bytes()?));
        }
        clients.join().expect("the clients do not panic")
    });
    if outcome.is_err() {
        // The daemon's metrics end with the test.
        show(&daemon.metrics()?);
    }
    let (visits, checked) = match (outcome, server.stop()) {
        (Ok(done), Ok(())) => done,
        (Ok(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
        // The server ends with the first failed visit, and then all others fail.
        (Err(clients), Err(server)) => bail!("{server:#}; the clients: {clients:#}"),
    };
    let took = started.elapsed().as_secs();
    ensure!(visits >= flows, "only {visits} connections");

    let metrics = daemon.wait_metrics("every connection is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })?;
    println!("{visits} connections in {took} s, {flows} at a time, {checked} bytes checked");
    show(&metrics);
    let finished = metrics.sum("snisplice_connections_closed_total", &[("reason", "finished")]);
    ensure!(finished == i64::try_from(visits)?, "{visits} connections, {finished} finished");
    let counted = u64::try_from(metrics.sum("snisplice_bytes_total", &[]))?;
    let moved = checked + (hello::naming(flow::NAME)?.len() + TASK_BYTES) as u64 * visits as u64;
    ensure!(counted == moved, "{moved} bytes moved, {counted} counted");
    ensure!(metrics.sum("snisplice_sockmap_in_flight_bytes", &[]) == 0, "something is said to wait still");
    really_carried(lab.datapath, &metrics, visits)?;

    for netns in [&lab.client, &lab.lb, &lab.backend] {
        wait::until_true("no socket is open", || Ok(OPEN.iter().all(|state| nothing_in(netns, *state))))?;
    }
    let after = Rest::of(lab, &daemon)?;
    println!("at rest: {after}");
    ensure!(after == before, "before: {before}\nafter: {after}");
    // Objects with the process's lifetime are in arrays. All others belong to a connection.
    ensure!(after.entries.values().all(|count| *count == 0), "entries are left: {after}");
    let growth = growth(&memory, lasting);
    let [first, last] = [memory.first(), memory.last()].map(|sample| sample.map_or(0, |(_, bytes)| *bytes));
    let most = memory.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    println!("resident memory: {first} bytes at first, {most} at most, {last} in the end, grew by {growth}");
    // Each thread's heap keeps its former maximum. A leak of one small block per connection is detected.
    ensure!(growth < 16 * 1024 * 1024 + 64 * visits as u64, "memory grew by {growth} bytes: {memory:?}");
    Ok(())
}

/// TCP states of a socket that its owner has not closed: `ESTABLISHED` and `CLOSE_WAIT`.
const OPEN: [u8; 2] = [1, 8];

fn nothing_in(netns: &Netns, state: u8) -> bool {
    kernel::sockets(netns, state).is_ok_and(|count| count == 0)
}

/// Checks that the kernel has forwarded the connections of this test, and not the relay in its place.
fn really_carried(datapath: Datapath, metrics: &Metrics, visits: usize) -> Result<()> {
    const REFUSED: &str = "snisplice_packet_refused_total";
    // The only permitted reason for a relay of a healthy connection: its peer closed before the offload.
    const FAST: &str = "peer_closed";
    /// Percent. The number of peers that close before the offload depends on the load of the processors. 1 percent
    /// was exceeded at a load of 26. All relayed connections must have this one reason, which is checked without
    /// tolerance.
    const MOSTLY: i64 = 90;
    let closed = |carrier| metrics.sum("snisplice_connections_closed_total", &[("datapath", carrier)]);
    let [packet, sockmap, relay] = ["packet", "sockmap", "relay"].map(closed);
    let visits = i64::try_from(visits)?;
    let [refused, fast] = [&[][..], &[("reason", FAST)]].map(|of| metrics.sum(REFUSED, of));
    let only_fast = || {
        let why: Vec<_> = metrics.describe(REFUSED).collect();
        ensure!(refused == fast, "refused, not only because a peer had finished: {}", why.join(", "));
        Ok(())
    };
    match datapath {
        Datapath::Packet => {
            ensure!(packet + refused == visits, "{packet} in packets, {refused} refused, of {visits}");
            only_fast()?;
            ensure!(packet * 100 >= visits * MOSTLY, "only {packet} of {visits} were carried in packets");
        }
        Datapath::Auto => {
            only_fast()?;
            ensure!(packet * 100 >= visits * MOSTLY, "only {packet} of {visits} were carried in packets");
        }
        Datapath::Sockmap => ensure!(sockmap * 100 >= visits * 99, "only {sockmap} of {visits} redirected"),
        Datapath::Adaptive => {
            ensure!(sockmap * 100 >= visits * MOSTLY, "only {sockmap} of {visits} redirected");
        }
        Datapath::Relay => ensure!(relay == visits, "{relay} of {visits} relayed"),
    }
    Ok(())
}

/// Prints the carriers, close reasons and reasons of relay of all connections.
fn show(metrics: &Metrics) {
    for name in [
        "snisplice_connections_opened_total",
        "snisplice_connections_closed_total",
        "snisplice_packet_refused_total",
        "snisplice_fallback_total",
        "snisplice_connect_failures_total",
        "snisplice_unrouted_total",
    ] {
        metrics.describe(name).for_each(|sample| println!("{sample}"));
    }
}

/// The growth of the maximum from the second third to the last: in the first third the memory fills.
fn growth(memory: &[(Duration, u64)], lasting: Duration) -> u64 {
    let most = |third: u32| {
        let bounds = lasting / 3 * third..lasting / 3 * (third + 1);
        memory.iter().filter(|(at, _)| bounds.contains(at)).map(|(_, bytes)| *bytes).max().unwrap_or(0)
    };
    most(2).saturating_sub(most(1))
}

/// Runs `flows` concurrent connections. Returns their total number, and their bytes.
fn clients(flows: usize, lasting: Duration) -> Result<(usize, u64)> {
    run(async move {
        let front: SocketAddr = flow::front().parse()?;
        let hello = Rc::new(hello::naming(flow::NAME)?);
        let pattern = Rc::new(Pattern::new(77));
        let deadline = Instant::now() + lasting;
        let next = Rc::new(Cell::new(0_u64));
        let checked = Rc::new(Cell::new(0_u64));
        let lanes: Vec<_> = (0..flows)
            .map(|lane| {
                let (hello, pattern) = (hello.clone(), pattern.clone());
                let (next, checked) = (next.clone(), checked.clone());
                tokio::task::spawn_local(async move {
                    // The starts are spread.
                    tokio::time::sleep(Duration::from_micros(lane as u64 * 300)).await;
                    while next.get() < flows as u64 || Instant::now() < deadline {
                        let seed = next.replace(next.get() + 1);
                        let task = Task::new(seed);
                        visit(front, &hello, task, &pattern).await.with_context(|| format!("seed {seed}"))?;
                        checked.set(checked.get() + task.up + task.down);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for lane in lanes {
            lane.await.context("a client panicked")??;
        }
        Ok((usize::try_from(next.get())?, checked.get()))
    })
}

async fn visit(front: SocketAddr, hello: &[u8], task: Task, pattern: &Pattern) -> Result<()> {
    let mut stream = TcpStream::connect(front).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[hello, &task.to_bytes()].concat()).await?;
    let (mut from, mut to) = stream.split();
    tokio::try_join!(
        async {
            speak(&mut to, pattern, task.seed, task.up).await.context("sending")?;
            to.shutdown().await.context("FIN")
        },
        async { hear(&mut from, pattern, task.seed + 1, task.down).await.context("receiving") },
    )?;
    Ok(())
}

async fn serve(mut stream: TcpStream, hello: usize, pattern: &Pattern) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.read_exact(&mut vec![0; hello]).await?;
    let mut bytes = [0; TASK_BYTES];
    stream.read_exact(&mut bytes).await?;
    let task = Task::from_bytes(bytes);
    let (mut from, mut to) = stream.split();
    tokio::try_join!(
        async {
            speak(&mut to, pattern, task.seed + 1, task.down).await?;
            Ok(to.shutdown().await?)
        },
        hear(&mut from, pattern, task.seed, task.up),
    )?;
    Ok(())
}

/// Sends `bytes` of the pattern from a position that depends on the seed, in pieces with pauses.
async fn speak(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    pattern: &Pattern,
    seed: u64,
    bytes: u64,
) -> Result<()> {
    let (start, mut random, mut sent) = (seed * 7_919, Random::new(!seed), 0);
    for piece in 1..=PIECES {
        let end = bytes * piece / PIECES;
        while sent < end {
            let part = pattern.at(start + sent, usize::try_from(end - sent)?);
            to.write_all(part).await?;
            sent += part.len() as u64;
        }
        tokio::time::sleep(Task::pause(&mut random)).await;
    }
    Ok(())
}

/// Receives exactly these bytes, and FIN.
async fn hear(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    pattern: &Pattern,
    seed: u64,
    bytes: u64,
) -> Result<()> {
    let (start, mut heard) = (seed * 7_919, 0);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match from.read(&mut buffer).await? {
            0 => break,
            count => {
                pattern.check(start + heard, &buffer[..count])?;
                heard += count as u64;
            }
        }
    }
    ensure!(heard == bytes, "{heard} of {bytes} bytes, then FIN");
    Ok(())
}

/// Serves in a thread of its own until stopped.
struct Server {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Server {
    fn start(netns: &Netns) -> Result<Self> {
        let listener = netns.enter(|| Ok(listen(&format!("{BACKEND}:9000"))?))?;
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let thread = thread::spawn(move || {
            run(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let hello = hello::naming(flow::NAME)?.len();
                let pattern = Rc::new(Pattern::new(77));
                let mut visits = JoinSet::new();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let (stream, _) = accepted?;
                            let pattern = pattern.clone();
                            visits.spawn_local(async move { serve(stream, hello, &pattern).await });
                        }
                        Some(visit) = visits.join_next() => visit?.context("the server")?,
                        _ = &mut stopped => break,
                    }
                }
                // Clients close when they have received all bytes, while their own bytes may still be in flight.
                let rest = async {
                    while let Some(visit) = visits.join_next().await {
                        visit?.context("the server")?;
                    }
                    anyhow::Ok(())
                };
                match tokio::time::timeout(wait::DEADLINE, rest).await {
                    Ok(heard) => heard,
                    Err(_) => bail!("{} visits were not heard to their end", visits.len()),
                }
            })
        });
        Ok(Self { stop, thread })
    }

    fn stop(self) -> Result<()> {
        // After a failure the thread has ended already.
        let _ = self.stop.send(());
        self.thread.join().expect("the server does not panic")
    }
}

/// With a backlog for all concurrent connections.
fn listen(address: &str) -> io::Result<TcpListener> {
    let address: SocketAddr = address.parse().map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(4_096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}
