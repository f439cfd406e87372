//! `auto` with redirection in the kernel: a connection is copied first, and each direction is offloaded separately.

use std::{io::Write as _, net::Shutdown, thread};

use anyhow::{Result, ensure};
use snisplice_tests::{
    daemon::{Daemon, Options},
    lab::Lab,
    metrics::Metrics,
    stream::{self, Pace, Pattern, Random},
    suite::Case,
    tcp::{self, Ending},
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::adaptive("offload::a_short_connection_never_reaches_the_maps", short_connection),
    Case::adaptive("offload::a_direction_goes_over_alone", one_direction),
    Case::adaptive("offload::both_directions_go_over_while_bytes_flow", while_bytes_flow),
    Case::adaptive("offload::a_half_closed_connection_stays", half_closed),
];

/// With the product's default thresholds.
fn start(lab: &Lab) -> Result<(Daemon<'_>, std::net::TcpListener)> {
    let listener = flow::backend(lab)?;
    let options = Options::yaml(lab, &flow::yaml("offload: {packet: false}\n"))?.datapath("auto");
    Ok((Daemon::start(lab, &options)?, listener))
}

fn closed_by(metrics: &Metrics, carrier: &str) -> i64 {
    metrics.sum("snisplice_connections_closed_total", &[("datapath", carrier)])
}

fn redirected(metrics: &Metrics) -> i64 {
    metrics.sum("snisplice_sockmap_redirected_bytes_total", &[])
}

fn short_connection(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    for _ in 0..10 {
        flow.exchange()?;
    }
    drop(flow);
    let metrics = daemon.wait_metrics("it is counted", |metrics| closed_by(metrics, "relay") == 1)?;
    ensure!(metrics.sum("snisplice_sockmap_enrolled_total", &[]) == 0, "{metrics:?}");
    Ok(())
}

/// The client sends many bytes, and the backend a few.
fn one_direction(lab: &Lab) -> Result<()> {
    const MESSAGES: usize = 100;
    let (daemon, listener) = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    for number in 0..MESSAGES {
        let message = format!("message {number:6}");
        flow.client.write_all(message.as_bytes())?;
        ensure!(tcp::read_exact(&mut flow.backend, message.len())? == message.as_bytes());
    }
    flow.exchange()?;
    let metrics = daemon.metrics()?;
    ensure!(metrics.sum("snisplice_sockmap_enrolled_total", &[]) == 1, "{metrics:?}");
    let kernel = redirected(&metrics);
    ensure!(kernel > 0, "{metrics:?}");
    // The relay copies the reply, so that only userspace counts it.
    flow.backend.write_all(b"one more word")?;
    ensure!(tcp::read_exact(&mut flow.client, 13)? == b"one more word");
    ensure!(redirected(&daemon.metrics()?) == kernel, "the other direction went over too");
    for _ in 0..20 {
        flow.exchange()?;
    }
    let before = redirected(&daemon.metrics()?);
    flow.backend.write_all(b"many words")?;
    ensure!(tcp::read_exact(&mut flow.client, 10)? == b"many words");
    ensure!(redirected(&daemon.metrics()?) == before + 10, "it did not follow");
    drop(flow);
    daemon.wait_metrics("it is counted", |metrics| closed_by(metrics, "sockmap") == 1)?;
    Ok(())
}

/// The thresholds of the suite are so low that every connection is offloaded under load, each at another moment.
fn while_bytes_flow(lab: &Lab) -> Result<()> {
    const CONNECTIONS: u64 = 40;
    const BYTES: u64 = 2_000_000;
    let (daemon, listener) = flow::start(lab, "")?;
    let flows: Result<Vec<_>> = (0..CONNECTIONS).map(|_| Flow::open(lab, &listener)).collect();
    thread::scope(|scope| {
        let ends: Vec<_> = flows?
            .into_iter()
            .zip(0..)
            .flat_map(|(Flow { client, backend }, seed)| {
                let (client_in, backend_in) = (client.try_clone(), backend.try_clone());
                [
                    scope.spawn(move || send(&client, 2 * seed, BYTES)),
                    scope.spawn(move || send(&backend, 2 * seed + 1, BYTES)),
                    scope.spawn(move || receive(backend_in?, 2 * seed, BYTES)),
                    scope.spawn(move || receive(client_in?, 2 * seed + 1, BYTES)),
                ]
            })
            .collect();
        ends.into_iter().try_for_each(|end| end.join().expect("no end panics"))
    })?;
    let metrics = daemon.wait_metrics("they are counted", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "finished")])
            == CONNECTIONS.cast_signed()
    })?;
    ensure!(closed_by(&metrics, "sockmap") > 0, "none went over: {metrics:?}");
    Ok(())
}

fn send(to: &std::net::TcpStream, seed: u64, bytes: u64) -> Result<()> {
    // Small writes and frequent pauses: there are many moments at which a direction can be offloaded.
    let pace = Pace { largest_write: 8 * 1024, pause_every: 20, random: Random::new(seed) };
    stream::send(to, &Pattern::new(seed), bytes, pace)?;
    Ok(to.shutdown(Shutdown::Write)?)
}

fn receive(mut from: std::net::TcpStream, seed: u64, bytes: u64) -> Result<()> {
    stream::receive(&mut from, &Pattern::new(seed), bytes)?;
    ends(&mut from)
}

/// Only the end of the stream is left.
fn ends(from: &mut std::net::TcpStream) -> Result<()> {
    let (rest, ending) = tcp::read_to_end(from)?;
    ensure!(rest.is_empty() && ending == Ending::Eof, "{} bytes, then {ending:?}", rest.len());
    Ok(())
}

/// The kernel accepts only sockets without a FIN of either side.
fn half_closed(lab: &Lab) -> Result<()> {
    let (daemon, listener) = start(lab)?;
    let mut flow = Flow::open(lab, &listener)?;
    flow.client.shutdown(Shutdown::Write)?;
    ends(&mut flow.backend)?;
    for number in 0..100 {
        let message = format!("message {number:6}");
        flow.backend.write_all(message.as_bytes())?;
        ensure!(tcp::read_exact(&mut flow.client, message.len())? == message.as_bytes());
    }
    drop(flow);
    daemon.wait_metrics("it is counted", |metrics| closed_by(metrics, "relay") == 1)?;
    Ok(())
}
