//! Load balancing: each algorithm over real sockets, while an endpoint dies and returns; priorities, affinity and
//! splits.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::{
    daemon::{Daemon, Options},
    hello,
    lab::Lab,
    metrics::Metrics,
    netns::{BACKEND, BACKEND_2, BACKEND_3, Netns},
    process::run,
    suite::Case,
    tcp::{self, Ending},
    wait,
};
use socket2::{Domain, SockRef, Socket, Type};

use crate::flow::front;

pub(crate) const CASES: &[Case] = &[
    Case::each("balance::round_robin_is_exact_and_spreads_what_a_dead_endpoint_leaves", round_robin),
    Case::once("balance::least_connections_fills_the_emptiest", least_connections),
    Case::each("balance::two_choices_keep_the_endpoints_level", two_choices),
    Case::once("balance::maglev_keeps_keys_over_death_return_and_restart", |lab| keys_stay(lab, "maglev")),
    Case::once("balance::source_hash_keeps_keys_over_death_return_and_restart", |lab| {
        keys_stay(lab, "source_hash")
    }),
    Case::once("balance::a_hashed_source_stays_within_its_bound", a_hashed_source_stays_within_its_bound),
    Case::once("balance::backups_serve_while_the_others_are_dead", backups),
    Case::each("balance::affinity_outlives_a_reload", affinity_outlives_a_reload),
    Case::once("balance::affinity_is_for_each_source_and_bounded", affinity_is_for_each_source_and_bounded),
    Case::once("balance::a_split_rejects_the_share_without_endpoints", splits),
    Case::once("balance::an_endpoint_of_weight_0_drains", an_endpoint_of_weight_0_drains),
    Case::once("balance::a_backend_has_a_connect_timeout_of_its_own", connect_timeout),
];

const ADDRESSES: [&str; 3] = [BACKEND, BACKEND_2, BACKEND_3];
const PORT: u16 = 9000;

/// A backend that sends its number on each connection, and keeps the connection open.
struct Backend {
    listener: TcpListener,
    held: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(lab: &Lab, number: usize) -> Result<Self> {
        let listener = tcp::listen(&lab.backend, &format!("{}:{PORT}", ADDRESSES[number]))?;
        // It waits without a limit, and ends when the listener is shut down.
        SockRef::from(&listener).set_read_timeout(None)?;
        let held = Arc::new(Mutex::new(Vec::new()));
        let (accepting, into) = (listener.try_clone()?, Arc::clone(&held));
        let greeting = [b'0' + u8::try_from(number)?];
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                // A disconnected client is no error.
                let _ = stream.write_all(&greeting);
                into.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            }
        });
        Ok(Self { listener, held, thread: Some(thread) })
    }
}

impl Drop for Backend {
    /// Dies: closes the listener and all connections.
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn backends(lab: &Lab) -> Result<[Backend; 3]> {
    Ok([Backend::start(lab, 0)?, Backend::start(lab, 1)?, Backend::start(lab, 2)?])
}

/// All names are routed to the three endpoints.
fn yaml(more: &str) -> String {
    yaml_of(&ADDRESSES.map(|address| format!("{address}:{PORT}")), more)
}

/// The configuration with other endpoints. `more` are keys of the backend.
fn yaml_of(endpoints: &[String], more: &str) -> String {
    format!(
        "listeners: [{{name: front, bind: '{}'}}]\n\
         routes: [{{name: all, sni: ['*'], backends: [{{name: pool}}]}}]\n\
         backends:\n- name: pool\n  endpoints: [{}]\n  {more}\n",
        front().replace("10.0.1.1", "0.0.0.0"),
        endpoints.join(", ")
    )
}

fn start<'lab>(lab: &'lab Lab, yaml: &str) -> Result<Daemon<'lab>> {
    Daemon::start(lab, &Options::yaml(lab, yaml)?)
}

/// Reads the greeting of a client. Returns the client and the number of its backend.
fn greeted(mut client: TcpStream, name: &str) -> Result<(TcpStream, usize)> {
    client.write_all(&hello::naming(name)?)?;
    let greeting = tcp::read_exact(&mut client, 1)?;
    let number = greeting.first().and_then(|digit| digit.checked_sub(b'0')).context("no greeting")?;
    Ok((client, number.into()))
}

fn open(lab: &Lab, name: &str) -> Result<(TcpStream, usize)> {
    greeted(tcp::connect(&lab.client, &front())?, name).with_context(|| format!("{name} is not served"))
}

/// Opens a connection from another address of the client's host.
fn open_from(netns: &Netns, source: &str) -> Result<(TcpStream, usize)> {
    let (source, to): (SocketAddr, SocketAddr) = (format!("{source}:0").parse()?, front().parse()?);
    let stream = netns.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&source.into())?;
        socket.connect_timeout(&to.into(), wait::DEADLINE)?;
        Ok(TcpStream::from(socket))
    })?;
    stream.set_read_timeout(Some(wait::DEADLINE))?;
    greeted(stream, "www.example.com")
}

/// Opens `connections` connections, which stay open. Returns the number of each endpoint.
fn spread(lab: &Lab, connections: usize) -> Result<(Vec<TcpStream>, [usize; 3])> {
    let (mut clients, mut counts) = (Vec::new(), [0; 3]);
    for _ in 0..connections {
        let (client, number) = open(lab, "www.example.com")?;
        clients.push(client);
        counts[number] += 1;
    }
    Ok((clients, counts))
}

/// Waits until the daemon has this number of connections.
fn wait_active(daemon: &Daemon<'_>, connections: i64) -> Result<()> {
    let active = "snisplice_connections_active";
    daemon.wait_metrics("the connections of the dead endpoint are over", |metrics| {
        metrics.sum(active, &[]) == connections
    })?;
    Ok(())
}

fn round_robin(lab: &Lab) -> Result<()> {
    let [_first, second, _third] = backends(lab)?;
    let _daemon = start(lab, &yaml("load_balancing: round_robin"))?;
    let (_clients, counts) = spread(lab, 30)?;
    ensure!(counts == [10; 3], "{counts:?}");
    drop(second);
    let (_more, counts) = spread(lab, 24)?;
    ensure!(counts[1] == 0 && counts[0].abs_diff(counts[2]) <= 1, "without the second: {counts:?}");
    let _second = Backend::start(lab, 1)?;
    let (_more, counts) = spread(lab, 30)?;
    ensure!(counts == [10; 3], "with it again: {counts:?}");
    Ok(())
}

fn least_connections(lab: &Lab) -> Result<()> {
    let [_first, second, _third] = backends(lab)?;
    let daemon = start(lab, &yaml("load_balancing: {algorithm: least_connections}"))?;
    let (_clients, counts) = spread(lab, 30)?;
    ensure!(counts == [10; 3], "{counts:?}");
    drop(second);
    wait_active(&daemon, 20)?;
    let (_more, counts) = spread(lab, 10)?;
    ensure!(counts == [5, 0, 5], "without the second: {counts:?}");
    let _second = Backend::start(lab, 1)?;
    let (_more, counts) = spread(lab, 15)?;
    ensure!(counts == [0, 15, 0], "the one that returns is filled first: {counts:?}");
    Ok(())
}

/// The default algorithm.
fn two_choices(lab: &Lab) -> Result<()> {
    let [_first, second, _third] = backends(lab)?;
    let daemon = start(lab, &yaml("same_host: false"))?;
    let (_clients, first) = spread(lab, 60)?;
    // The imbalance of two choices does not grow with the connections (Mitzenmacher, 2001).
    ensure!(first.iter().all(|count| (15..=25).contains(count)), "{first:?}");
    drop(second);
    wait_active(&daemon, i64::try_from(60 - first[1])?)?;
    let (_more, then) = spread(lab, 20)?;
    let all = [first[0] + then[0], first[2] + then[2]];
    ensure!(then[1] == 0 && all[0].abs_diff(all[1]) <= 1, "both are compared each time: {first:?}, {then:?}");
    let _second = Backend::start(lab, 1)?;
    let (_more, counts) = spread(lab, 40)?;
    // The endpoint is one of the two in two of three draws. A smaller count occurs once in a million runs.
    ensure!(counts[1] >= 12, "the one that returns is the emptier one: {counts:?}");
    Ok(())
}

/// The endpoint of each of many names.
fn placed(lab: &Lab) -> Result<BTreeMap<String, usize>> {
    let names = (0..48).map(|number| format!("n{number}.example.com"));
    names.map(|name| open(lab, &name).map(|(_, number)| (name, number))).collect()
}

/// The same name maps to the same endpoint, in each process with the same configuration and in any order of the
/// endpoints. If an endpoint dies, only its own names move, and they return with the endpoint.
fn keys_stay(lab: &Lab, algorithm: &str) -> Result<()> {
    let how = format!("load_balancing: {{algorithm: {algorithm}, hash_key: server_name}}");
    let [_first, second, _third] = backends(lab)?;
    let before = {
        let _daemon = start(lab, &yaml(&how))?;
        let before = placed(lab)?;
        ensure!(placed(lab)? == before, "a name has moved");
        let of = |number| before.values().filter(|other| **other == number).count();
        ensure!((0..3).all(|number| (6..=28).contains(&of(number))), "of 48: {before:?}");
        drop(second);
        for (name, number) in placed(lab)? {
            let moved = before[&name] != number;
            ensure!(moved == (before[&name] == 1), "{name} went from {} to {number}", before[&name]);
        }
        before
    };
    let _second = Backend::start(lab, 1)?;
    let turned: Vec<_> = ADDRESSES.iter().rev().map(|address| format!("{address}:{PORT}")).collect();
    let _daemon = start(lab, &yaml_of(&turned, &how))?;
    ensure!(placed(lab)? == before, "another process chooses otherwise");
    Ok(())
}

/// All connections are of one source. Without a bound, one endpoint would get all of them.
fn a_hashed_source_stays_within_its_bound(lab: &Lab) -> Result<()> {
    let _backends = backends(lab)?;
    {
        let _daemon = start(lab, &yaml("load_balancing: {algorithm: maglev}"))?;
        let (_clients, counts) = spread(lab, 12)?;
        ensure!(counts.contains(&12), "{counts:?}");
    }
    let _daemon = start(lab, &yaml("load_balancing: {algorithm: maglev, hash_balance_factor: 150}"))?;
    let (_clients, counts) = spread(lab, 30)?;
    let mut sorted = counts;
    sorted.sort_unstable();
    ensure!(sorted == [0, 15, 15], "at most 150 % of a third each: {counts:?}");
    Ok(())
}

fn backups(lab: &Lab) -> Result<()> {
    let [first, second, _third] = backends(lab)?;
    let endpoints: Vec<_> = (0..3)
        .map(|at| format!("{{address: '{}:{PORT}', priority: {}}}", ADDRESSES[at], usize::from(at == 2)))
        .collect();
    let _daemon = start(lab, &yaml_of(&endpoints, "load_balancing: round_robin"))?;
    let (_clients, counts) = spread(lab, 20)?;
    ensure!(counts == [10, 10, 0], "{counts:?}");
    drop(first);
    let (_clients, counts) = spread(lab, 10)?;
    ensure!(counts == [0, 10, 0], "one of the first priority is enough: {counts:?}");
    drop(second);
    let (_clients, counts) = spread(lab, 10)?;
    ensure!(counts == [0, 0, 10], "{counts:?}");
    let _second = Backend::start(lab, 1)?;
    let (_clients, counts) = spread(lab, 10)?;
    ensure!(counts == [0, 10, 0], "it serves again: {counts:?}");
    Ok(())
}

/// Rewrites the configuration, and waits until it is in service.
fn reload(lab: &Lab, daemon: &Daemon<'_>, yaml: &str) -> Result<()> {
    let generation = |metrics: &Metrics| metrics.sum("snisplice_config_generation", &[]);
    let before = generation(&daemon.metrics()?);
    fs::write(lab.dir().join("snisplice.yaml"), yaml)?;
    daemon.process().signal(Signal::SIGHUP)?;
    daemon.wait_metrics("the configuration is in service", |metrics| generation(metrics) > before)?;
    Ok(())
}

const AFFINITY: &str = "load_balancing: round_robin\n  affinity: {source: {timeout: 1h}}";

fn affinity_outlives_a_reload(lab: &Lab) -> Result<()> {
    let mut all = backends(lab)?.map(Some);
    let daemon = start(lab, &yaml(AFFINITY))?;
    let (_first, own) = open(lab, "www.example.com")?;
    let stays = |at: usize, when: &str| -> Result<()> {
        let (_clients, counts) = spread(lab, 10)?;
        ensure!(counts[at] == 10, "{when}: {counts:?} and not {at}");
        Ok(())
    };
    stays(own, "at first")?;
    let turned: Vec<_> = ADDRESSES.iter().rev().map(|address| format!("{address}:{PORT}")).collect();
    reload(lab, &daemon, &yaml_of(&turned, AFFINITY))?;
    stays(own, "after a reload")?;
    all[own] = None;
    let (_next, other) = open(lab, "www.example.com")?;
    ensure!(other != own, "the endpoint is dead");
    stays(other, "while it is dead")?;
    all[own] = Some(Backend::start(lab, own)?);
    stays(other, "where it went, after the return of the first")
}

fn affinity_is_for_each_source_and_bounded(lab: &Lab) -> Result<()> {
    const SOURCES: [&str; 4] = ["10.0.1.101", "10.0.1.102", "10.0.1.103", "10.0.1.104"];
    for source in SOURCES {
        let address = format!("{source}/24");
        run(&lab.client, Command::new("ip").args(["addr", "add", &address, "dev", "to-lb"]))?.ok()?;
    }
    let _backends = backends(lab)?;
    let how = "load_balancing: round_robin\n  affinity: {source: {max_entries: 3}}";
    let _daemon = start(lab, &yaml(how))?;
    let at = |source| open_from(&lab.client, source).map(|(_, number)| number);
    let first: Vec<_> = SOURCES[..3].iter().map(|source| at(source)).collect::<Result<_>>()?;
    let mut each = first.clone();
    each.sort_unstable();
    ensure!(each == [0, 1, 2], "each source has its turn: {first:?}");
    for _ in 0..3 {
        let again: Vec<_> = SOURCES[..3].iter().map(|source| at(source)).collect::<Result<_>>()?;
        ensure!(again == first, "{again:?} and before {first:?}");
    }
    // A further client evicts the first one, whose next connection then goes to another endpoint.
    let fourth = at(SOURCES[3])?;
    ensure!(fourth == first[0], "it is its turn: {fourth}, {first:?}");
    let forgotten = at(SOURCES[0])?;
    ensure!(forgotten != first[0], "it should be forgotten: {forgotten}, {first:?}");
    Ok(())
}

fn splits(lab: &Lab) -> Result<()> {
    let _backends = backends(lab)?;
    let yaml = yaml("load_balancing: round_robin")
        .replace("backends: [{name: pool}]", "backends: [{name: pool, weight: 2}, {name: gone, weight: 1}]");
    let daemon = start(lab, &format!("{yaml}- {{name: gone, endpoints: []}}\n"))?;
    let (mut served, mut refused) = ([0; 3], 0);
    for _ in 0..36 {
        let mut client = tcp::connect(&lab.client, &front())?;
        client.write_all(&hello::naming("www.example.com")?)?;
        let mut greeting = [0];
        // A FIN without a byte.
        if client.read(&mut greeting)? == 0 {
            refused += 1;
        } else {
            served[usize::from(greeting[0] - b'0')] += 1;
        }
    }
    ensure!((served, refused) == ([8; 3], 12), "{served:?} served, {refused} refused");
    daemon.wait_metrics("the refused ones are counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "no_endpoint")]) == 12
    })?;
    Ok(())
}

fn an_endpoint_of_weight_0_drains(lab: &Lab) -> Result<()> {
    let _backends = backends(lab)?;
    let daemon = start(lab, &yaml("load_balancing: round_robin"))?;
    let (mut clients, counts) = spread(lab, 3)?;
    ensure!(counts == [1; 3], "{counts:?}");
    let weights: Vec<_> = ADDRESSES
        .iter()
        .zip([1, 0, 1])
        .map(|(address, weight)| format!("{{address: '{address}:{PORT}', weight: {weight}}}"))
        .collect();
    reload(lab, &daemon, &yaml_of(&weights, "load_balancing: round_robin"))?;
    let (_more, counts) = spread(lab, 10)?;
    ensure!(counts == [5, 0, 5], "{counts:?}");
    // Its connections continue.
    for client in &mut clients {
        client.write_all(b"still there")?;
    }
    wait_active(&daemon, 13)
}

fn connect_timeout(lab: &Lab) -> Result<()> {
    let silent = [format!("{}:{PORT}", snisplice_tests::netns::BLACKHOLE)];
    let yaml = yaml_of(&silent, "connect_timeout: 300ms");
    let daemon = start(lab, &format!("{yaml}timeouts: {{connect: 1h}}\n"))?;
    let mut client = tcp::connect(&lab.client, &front())?;
    client.write_all(&hello::naming("www.example.com")?)?;
    ensure!(tcp::read_to_end(&mut client)? == (Vec::new(), Ending::Eof));
    daemon.wait_metrics("the connection is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "connect_timeout")]) == 1
    })?;
    Ok(())
}
