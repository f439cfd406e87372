//! Thousands of connections leave no resource behind.

use std::{
    io::Write as _,
    net::{Shutdown, TcpListener},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::Daemon,
    hello,
    kernel::Map,
    lab::{Datapath, Lab},
    stream,
    suite::Case,
    tcp, wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] =
    &[Case::each("leak::five_thousand_connections_leave_nothing_behind", five_thousand_connections)];

const CONNECTIONS: usize = 5_000;
const CLIENTS: usize = 4;
/// The resources that a daemon holds for its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) map_entries: usize,
}

impl Held {
    pub(crate) fn by(daemon: &Daemon<'_>) -> Result<Self> {
        let process = daemon.process();
        let (descriptors, threads) = (process.descriptors()?, process.threads()?);
        let maps = Map::held_by(process.pid())?;
        let changing = maps.iter().filter(|map| !map.is_array && !map.is_cache);
        let entries: Result<Vec<_>> = changing.map(|map| Ok(map.elements()?.len())).collect();
        Ok(Self { descriptors, threads, map_entries: entries?.into_iter().sum() })
    }

    /// Whether no resource exceeds those of `before`. These may include a scrape's connection, which a daemon without
    /// a processor closes late.
    pub(crate) fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.map_entries <= before.map_entries
    }
}

/// The resources once they no longer change.
pub(crate) fn held_at_rest(lab: &Lab, daemon: &Daemon<'_>) -> Result<Held> {
    // Closed flows of the packet datapath linger for two seconds, and are checked twice a second.
    let quiet = if matches!(lab.datapath, Datapath::Packet | Datapath::Auto) {
        Duration::from_secs(3)
    } else {
        flow::QUIET
    };
    wait::settled(quiet, || Held::by(daemon))
}

fn five_thousand_connections(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    // The first connection allocates permanent resources, so it comes before the measurement.
    Flow::open(lab, &listener)?.exchange()?;
    idle(&daemon)?;
    // A scrape's own connection closes a moment later.
    let before = held_at_rest(lab, &daemon)?;

    let open = Flow::open(lab, &listener)?;
    let during = Held::by(&daemon)?;
    ensure!(during.descriptors > before.descriptors, "an open connection holds descriptors: {during:?}");
    if lab.datapath == Datapath::Sockmap {
        ensure!(during.map_entries > before.map_entries, "an open connection holds map entries: {during:?}");
    }
    drop(open);

    let next = AtomicUsize::new(0);
    let first = hello::naming(flow::NAME)?;
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= CONNECTIONS {
                            return Ok(());
                        }
                        visit(lab, &first, number).with_context(|| format!("connection {number}"))?;
                    }
                })
            })
            .collect();
        let result: Result<()> =
            clients.into_iter().try_for_each(|client| client.join().expect("no client panics"));
        result?;
        server.join().expect("the server does not panic")
    })?;

    let metrics = idle(&daemon)?;
    let opened = metrics.sum("snisplice_connections_opened_total", &[]);
    let closed = metrics.sum("snisplice_connections_closed_total", &[]);
    ensure!(opened == 5_002 && closed == opened, "{opened} opened, {closed} closed");
    let after = held_at_rest(lab, &daemon)?;
    ensure!(after == before, "before {before:?}, after {after:?}");
    Ok(())
}

/// The first byte after the hello tells the server how to end the connection.
fn visit(lab: &Lab, first: &[u8], number: usize) -> Result<()> {
    let way = b"fbFB"[number % 4];
    let mut client = tcp::connect(&lab.client, &flow::front())?;
    client.write_all(&[first, &[way]].concat())?;
    ensure!(tcp::read_exact(&mut client, 1)? == [way]);
    match way {
        b'f' => {
            client.shutdown(Shutdown::Write)?;
            tcp::read_to_end(&mut client)?;
        }
        b'F' => tcp::reset(client)?,
        _ => {
            tcp::read_to_end(&mut client)?;
        }
    }
    Ok(())
}

/// Echoes the byte that selects the end of the connection: `f` and `b` by FIN of the client or the backend, `F` and
/// `B` by RST.
fn serve(listener: &TcpListener) -> Result<()> {
    let length = hello::naming(flow::NAME)?.len();
    for _ in 0..CONNECTIONS {
        let mut stream = tcp::accept(listener)?;
        let way = tcp::read_exact(&mut stream, length + 1)?[length];
        stream.write_all(&[way])?;
        match way {
            b'b' => {
                stream.shutdown(Shutdown::Write)?;
                tcp::read_to_end(&mut stream)?;
            }
            b'B' => tcp::reset(stream)?,
            _ => {
                // FIN or RST: the client decides.
                let _ = stream::read(&stream, &mut [0]);
            }
        }
    }
    Ok(())
}

fn idle(daemon: &Daemon<'_>) -> Result<snisplice_tests::metrics::Metrics> {
    daemon.wait_metrics("every connection is over", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
    })
}
