//! A network outage: TCP retransmits for minutes, so a connection continues after the outage. Connections in packets
//! survive the same outages as relayed ones.

use std::{
    io::Write as _,
    net::{Shutdown, TcpStream},
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::Daemon,
    hello,
    lab::{Datapath, Lab},
    netns::{Link, router::Router},
    stream::{self, Pace, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::{
    flow::{self, Flow},
    packet::nft,
    route::both,
};

pub(crate) const CASES: &[Case] = &[
    both("outage::between_client_and_balancer", |lab| between(lab, Link::Client, "", &ALL)),
    both("outage::between_balancer_and_backend", |lab| between(lab, Link::Backend, "", &ALL)),
    both("outage::longer_than_a_silent_client_is_borne", |lab| {
        between(lab, Link::Client, IMPATIENT, &[Open::Both, Open::Down])
    }),
    both("outage::longer_than_a_silent_backend_is_borne", |lab| {
        between(lab, Link::Backend, IMPATIENT, &[Open::Both, Open::Up])
    }),
    both("outage::while_a_connection_begins", while_a_connection_begins),
];

/// Longer than the time after which a stalled flow is checked, and far shorter than TCP's retransmissions.
const OUTAGE: Duration = Duration::from_secs(15);

/// Bytes in flight during an outage, more than a window holds.
const BYTES: u64 = 1_000_000;

/// An idle peer that does not reply is lost after some nine seconds. A peer with bytes in flight is not.
const IMPATIENT: &str = "timeouts: {keepalive: 3s}\n";

/// The directions of a connection that are still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Both,
    Up,
    Down,
}

const ALL: [Open; 3] = [Open::Both, Open::Up, Open::Down];

/// Connections in these states have bytes in flight while one link of the lab swallows every packet.
fn between(lab: &Lab, link: Link, settings: &str, states: &[Open]) -> Result<()> {
    let router = Router::new(lab, link)?;
    let (daemon, listener) = flow::start(lab, settings)?;
    let mut flows =
        states.iter().map(|state| Ok((Flow::open(lab, &listener)?, *state))).collect::<Result<Vec<_>>>()?;
    settled(lab, &daemon, &mut flows)?;
    for (flow, state) in &mut flows {
        match state {
            Open::Both => {}
            Open::Up => finish(&flow.backend, &mut flow.client)?,
            Open::Down => finish(&flow.client, &mut flow.backend)?,
        }
    }
    // A connection that has just begun.
    flows.push((Flow::open(lab, &listener)?, Open::Both));
    router.cut()?;
    streams(&flows, || {
        thread::sleep(OUTAGE);
        router.restore()
    })?;
    for (mut flow, state) in flows {
        if state != Open::Down {
            finish(&flow.client, &mut flow.backend)?;
        }
        if state != Open::Up {
            finish(&flow.backend, &mut flow.client)?;
        }
    }
    all_went_on(&daemon, i64::try_from(states.len())? + 1)
}

/// The backend's host receives only packets of the handshake, so the bytes of the balancer's sockets are in flight.
fn while_a_connection_begins(lab: &Lab) -> Result<()> {
    let (daemon, listener) = flow::start(lab, "")?;
    nft(
        &lab.backend,
        "table inet outage {\n chain in {\n type filter hook prerouting priority 0;\n \
         tcp flags & syn == 0 drop\n }\n }",
    )?;
    let hello = hello::naming(flow::NAME)?;
    let client = tcp::connect(&lab.client, &flow::front())?;
    let up = Pattern::new(1);
    let mut flow = thread::scope(|scope| {
        let mut sender = client.try_clone()?;
        let sends = scope.spawn(|| -> Result<()> {
            sender.write_all(&hello)?;
            stream::send(sender, &up, BYTES, Pace::uneven(3))
        });
        thread::sleep(OUTAGE);
        nft(&lab.backend, "delete table inet outage")?;
        let mut backend = tcp::accept(&listener)?;
        ensure!(tcp::read_exact(&mut backend, hello.len())? == hello, "the hello was changed");
        stream::receive(&backend, &up, BYTES).context("backend receives")?;
        sends.join().expect("no task panics").context("client sends")?;
        anyhow::Ok(Flow { client, backend })
    })?;
    flow.exchange()?;
    finish(&flow.client, &mut flow.backend)?;
    finish(&flow.backend, &mut flow.client)?;
    all_went_on(&daemon, 1)
}

/// Waits until the datapath forwards all connections, and in packets until the balancer's sockets are at rest.
fn settled(lab: &Lab, daemon: &Daemon<'_>, flows: &mut [(Flow, Open)]) -> Result<()> {
    let count = i64::try_from(flows.len())?;
    wait::until_true("all are settled", || {
        for (flow, _) in &mut *flows {
            flow.exchange()?;
        }
        let settled = daemon.metrics()?.sum("snisplice_packet_settled_total", &[]);
        Ok(lab.datapath == Datapath::Relay || settled == count)
    })
}

fn finish(from: &TcpStream, to: &mut TcpStream) -> Result<()> {
    from.shutdown(Shutdown::Write)?;
    ensure!(tcp::read_to_end(to)? == (Vec::new(), Ending::Eof));
    Ok(())
}

/// Sends bytes in each open direction while `happens` runs. All of them arrive.
fn streams(flows: &[(Flow, Open)], happens: impl FnOnce() -> Result<()>) -> Result<()> {
    let patterns = [Pattern::new(1), Pattern::new(2)];
    thread::scope(|scope| {
        let mut tasks: Vec<ScopedJoinHandle<'_, Result<()>>> = Vec::new();
        for (at, (Flow { client, backend }, state)) in flows.iter().enumerate() {
            for (way, from, to) in [(Open::Up, client, backend), (Open::Down, backend, client)] {
                if *state != Open::Both && *state != way {
                    continue;
                }
                let pattern = &patterns[usize::from(way == Open::Down)];
                let of = move |what| format!("flow {at}, open {state:?}, {way:?}: {what}");
                tasks.push(scope.spawn(move || {
                    stream::send(from, pattern, BYTES, Pace::uneven(3)).with_context(|| of("send"))
                }));
                tasks.push(
                    scope.spawn(move || stream::receive(to, pattern, BYTES).with_context(|| of("receive"))),
                );
            }
        }
        happens()?;
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })
}

/// Checks that `count` connections ended in order, and none as stalled.
fn all_went_on(daemon: &Daemon<'_>, count: i64) -> Result<()> {
    let metrics = daemon.wait_metrics("they are over in good order", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "finished")]) == count
    })?;
    let stalled = metrics.sum("snisplice_packet_taken_back_total", &[("reason", "stalled")]);
    ensure!(stalled == 0, "{stalled} were taken back");
    Ok(())
}
