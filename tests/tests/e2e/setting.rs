//! Peers and hosts of other kinds, which must make no difference, and costs that a connection must not have.

use std::{
    fs,
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    hello,
    lab::{Datapath, Lab},
    netns::Netns,
    process,
    stream::{self, Pace, Pattern},
    suite::{Case, Unable},
    tcp, wait,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("setting::multipath_client", multipath_client),
    Case::each("setting::packets_steered_to_all_processors", packets_steered),
    Case::sockets("setting::probed_while_idle", probed_while_idle),
    Case::sockmap("setting::the_daemon_sleeps_while_the_kernel_carries", the_daemon_sleeps),
];

const MEGABYTE: u64 = 1_000_000;

/// Sends this number of bytes in both directions concurrently, then FIN.
fn exchange(client: &TcpStream, backend: &TcpStream, bytes: u64) -> Result<()> {
    let patterns = [Pattern::new(1), Pattern::new(2)];
    let ways = [(client, backend, &patterns[0]), (backend, client, &patterns[1])];
    thread::scope(|scope| {
        let tasks = ways.map(|(mut from, mut to, pattern)| {
            let sending = scope.spawn(move || {
                stream::send(&mut from, pattern, bytes, Pace::uneven(bytes))?;
                anyhow::Ok(from.shutdown(Shutdown::Write)?)
            });
            [sending, scope.spawn(move || stream::receive(&mut to, pattern, bytes))]
        });
        tasks.into_iter().flatten().try_for_each(|task| task.join().expect("no task panics"))
    })
}

/// A client with Multipath TCP is served over a single path.
fn multipath_client(lab: &Lab) -> Result<()> {
    const MULTIPATH: i32 = 262;
    let (daemon, listener) = flow::start(lab, "")?;
    let front: SocketAddr = flow::front().parse()?;
    let client = lab.client.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MULTIPATH)))
            .map_err(|error| Unable(format!("needs MPTCP: {error}")))?;
        socket.connect_timeout(&front.into(), wait::DEADLINE)?;
        Ok(TcpStream::from(socket))
    })?;
    let hello = hello::naming(flow::NAME)?;
    std::io::Write::write_all(&mut &client, &hello)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, hello.len())? == hello);
    exchange(&client, &backend, 10 * MEGABYTE)?;
    daemon.wait_metrics("the connection ends as any other", |metrics| {
        let ended = |&by: &&str| {
            metrics.sum("snisplice_connections_closed_total", &[("datapath", by), ("reason", "finished")])
        };
        lab.datapath.carriers().iter().map(ended).sum::<i64>() == 1
    })?;
    Ok(())
}

/// The two directions of a connection are received on several processors concurrently.
fn packets_steered(lab: &Lab) -> Result<()> {
    for device in ["to-client", "to-backend"] {
        let file = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
        // The file system shows the devices of the namespace in which it was mounted.
        let script = format!("echo 3 > {file} && cat {file}");
        let name = lab.lb.to_string();
        let said = Command::new("ip").args(["netns", "exec", &name, "sh", "-c", &script]).output()?;
        if !said.status.success() {
            let why = String::from_utf8_lossy(&said.stderr).trim().to_owned();
            return Err(Unable(format!("needs RPS and a second processor: {why}")).into());
        }
    }
    let (_daemon, listener) = flow::start(lab, "")?;
    let flows: Result<Vec<_>> = (0..4).map(|_| Flow::open(lab, &listener)).collect();
    thread::scope(|scope| {
        let tasks: Vec<_> = flows?
            .into_iter()
            .map(|flow| scope.spawn(move || exchange(&flow.client, &flow.backend, 10 * MEGABYTE)))
            .collect();
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })
}

/// An idle connection is probed now and then, and stays open.
fn probed_while_idle(lab: &Lab) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "timeouts: {keepalive: 1s, tcp_user_timeout: 2s}\n")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let before = probes(&lab.lb)?;
    wait::until_true("both peers were probed, and would have been given up", || {
        Ok(probes(&lab.lb)? >= before + 6)
    })?;
    flow.exchange()?;
    exchange(&flow.client, &flow.backend, MEGABYTE)
}

/// Probes that the sockets of a namespace have sent.
fn probes(netns: &Netns) -> Result<u64> {
    let text = netns.enter(|| Ok(fs::read_to_string("/proc/thread-self/net/netstat")?))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "TCPKeepAlive");
    Ok(found.context("no such counter")?.1.parse()?)
}

/// Requests and responses pass through the kernel without waking the daemon. If the daemon watched for readable
/// sockets, the kernel would wake it for each of them.
fn the_daemon_sleeps(lab: &Lab) -> Result<()> {
    const MESSAGES: u64 = 2_000;
    ensure!(lab.datapath == Datapath::Sockmap);
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.exchange()?;
    let process: &process::Process = daemon.process();
    // A scrape's own connection closes a moment later.
    let before = wait::settled(flow::QUIET, || process.sleeps())?;
    for _ in 0..MESSAGES {
        flow.exchange()?;
    }
    let woken = process.sleeps()? - before;
    ensure!(woken < MESSAGES / 10, "woken {woken} times for {MESSAGES} requests and responses");
    Ok(())
}
