//! Every byte arrives, once and in order, with any segmentation and any traffic in the other direction.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustls::{SupportedProtocolVersion, pki_types::ServerName, version};
use snisplice_tests::{
    daemon::Daemon,
    hello,
    lab::Lab,
    metrics::Metrics,
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("integrity::both_ways_at_once", both_ways_at_once),
    Case::each("integrity::both_ways_at_once_over_tls_1_2", |lab| over_tls(lab, &version::TLS12)),
    Case::each("integrity::both_ways_at_once_over_tls_1_3", |lab| over_tls(lab, &version::TLS13)),
    Case::each("integrity::many_small_messages", many_small_messages),
    Case::each("integrity::hello_in_segments_of_one_byte", hello_in_segments_of_one_byte),
    Case::each("integrity::hello_in_three_records", hello_in_three_records),
    Case::each("integrity::hello_with_the_first_data_behind_it", hello_with_the_first_data_behind_it),
    Case::each("integrity::largest_accepted_hello", largest_accepted_hello),
];

/// 200 MB in each direction.
const BYTES: u64 = 200_000_000;

fn both_ways_at_once(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    let Flow { client, backend } = Flow::open(lab, &listener)?;
    let (up, down) = (Pattern::new(1), Pattern::new(2));
    thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| send_all(&client, &up, 3).context("client sends")),
            scope.spawn(|| receive_all(&backend, &up).context("backend receives")),
            scope.spawn(|| send_all(&backend, &down, 4).context("backend sends")),
            scope.spawn(|| receive_all(&client, &down).context("client receives")),
        ];
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })?;
    let hello = hello::naming(flow::NAME)?.len() as u64;
    carried(lab, &daemon, BYTES + hello, BYTES)
}

fn send_all(mut to: impl Write + AsShutdown, pattern: &Pattern, seed: u64) -> Result<()> {
    stream::send(&mut to, pattern, BYTES, Pace::uneven(seed))?;
    to.end()
}

fn receive_all(mut from: impl Read, pattern: &Pattern) -> Result<()> {
    stream::receive(&mut from, pattern, BYTES)?;
    ensure!(stream::read(&mut from, &mut [0])? == 0, "more bytes than were sent");
    Ok(())
}

trait AsShutdown {
    fn end(&self) -> Result<()>;
}

impl AsShutdown for &std::net::TcpStream {
    fn end(&self) -> Result<()> {
        Ok(self.shutdown(Shutdown::Write)?)
    }
}

/// Checks the metrics: the datapath of this run forwarded the connection, and exactly these bytes.
fn carried(lab: &Lab, daemon: &Daemon<'_>, up: u64, down: u64) -> Result<()> {
    let finished = |metrics: &Metrics| {
        let closed = |by: &&str| {
            metrics.sum("snisplice_connections_closed_total", &[("datapath", by), ("reason", "finished")])
        };
        lab.datapath.carriers().iter().map(closed).sum::<i64>() == 1
    };
    let metrics = daemon.wait_metrics("the connection is counted as finished", finished)?;
    for (direction, bytes) in [("up", up), ("down", down)] {
        let moved =
            |by: &&str| metrics.sum("snisplice_bytes_total", &[("datapath", by), ("direction", direction)]);
        let counted: i64 = lab.datapath.carriers().iter().map(moved).sum();
        ensure!(u64::try_from(counted)? == bytes, "{counted} bytes counted {direction}, {bytes} were sent");
    }
    Ok(())
}

/// The same within TLS, whose records the peers verify as well.
fn over_tls(lab: &Lab, version: &'static SupportedProtocolVersion) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "")?;
    let connector = TlsConnector::from(lab.ca.client(&[version])?);
    let acceptor = TlsAcceptor::from(lab.ca.issue(flow::NAME)?.server(&[version])?);
    let name = ServerName::try_from(flow::NAME)?;
    let client = tcp::connect(&lab.client, &flow::front())?;
    client.set_nonblocking(true)?;
    let server = thread::spawn(move || {
        run_async(async move {
            let accepted = tcp::accept(&listener)?;
            accepted.set_nonblocking(true)?;
            let tls =
                acceptor.accept(tokio::net::TcpStream::from_std(accepted)?).await.context("handshake")?;
            transfer(tls, Pattern::new(6), Pattern::new(5), 7).await
        })
    });
    run_async(async move {
        let tls =
            connector.connect(name, tokio::net::TcpStream::from_std(client)?).await.context("handshake")?;
        ensure!(tls.get_ref().1.protocol_version() == Some(version.version));
        transfer(tls, Pattern::new(5), Pattern::new(6), 8).await
    })
    .context("client")?;
    server.join().expect("the server does not panic").context("server")
}

fn run_async<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn transfer(
    tls: impl AsyncRead + AsyncWrite,
    sent: Pattern,
    received: Pattern,
    seed: u64,
) -> Result<()> {
    let (mut from, mut to) = tokio::io::split(tls);
    let sending = async {
        let (mut position, mut pace) = (0, Pace::uneven(seed));
        while position < BYTES {
            let (size, pause) = pace.next_write(BYTES - position);
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            let bytes = sent.at(position, size);
            to.write_all(bytes).await.with_context(|| format!("sending at {position}"))?;
            position += bytes.len() as u64;
        }
        to.shutdown().await.context("close_notify")
    };
    let receiving = async {
        let (mut position, mut buffer) = (0, vec![0; 128 * 1024]);
        loop {
            let count = from.read(&mut buffer).await.with_context(|| format!("receiving at {position}"))?;
            if count == 0 {
                ensure!(position == BYTES, "{position} of {BYTES} bytes");
                return Ok(());
            }
            received.check(position, &buffer[..count])?;
            position += count as u64;
        }
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

fn many_small_messages(lab: &Lab) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..2_000 {
        flow.exchange()?;
    }
    Ok(())
}

fn hello_in_segments_of_one_byte(lab: &Lab) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "")?;
    let hello = hello::naming(flow::NAME)?;
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    tcp::write_bytewise(&mut client, &hello)?;
    let mut backend = tcp::accept(&listener)?;
    ensure!(tcp::read_exact(&mut backend, hello.len())? == hello);
    Flow { client, backend }.exchange()
}

fn hello_in_three_records(lab: &Lab) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "")?;
    let hello = hello::in_records(&hello::naming(flow::NAME)?, 3);
    Flow::open_with(lab, &listener, &hello)?.exchange()
}

fn hello_with_the_first_data_behind_it(lab: &Lab) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "")?;
    let pattern = Pattern::new(9);
    let first = [hello::naming(flow::NAME)?.as_slice(), pattern.at(0, 40_000)].concat();
    Flow::open_with(lab, &listener, &first)?.exchange()
}

fn largest_accepted_hello(lab: &Lab) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "limits: {hello_bytes: 65536}\n")?;
    let hello = hello::of_size(flow::NAME, 60_000)?;
    Flow::open_with(lab, &listener, &hello)?.exchange()
}
