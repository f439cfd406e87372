//! Very many concurrent connections whose receivers do not read.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    net::TcpStream,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::{
    daemon::Daemon,
    lab::Lab,
    limits,
    stream::{self, Pattern},
    suite::Case,
    wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] =
    &[Case::sockmap("crowd::two_thousand_readers_that_do_not_read", two_thousand)];

const FLOWS: usize = 2_000;
/// Bytes of each sender: more than a direction may hold without a share of the total budget, and few enough for the
/// machine's memory.
const EACH: u64 = 256 * 1024;
const TOTAL: u64 = 1024 * 1024;
const LIMITS: &str = "limits: {total_in_flight_bytes: 1MiB}\n";
/// The largest packet. Each processor may let one pass at the same time as the others.
const PACKET: u64 = 64 * 1024;

fn two_thousand(lab: &Lab) -> Result<()> {
    limits::raise_open_files()?;
    let (daemon, listener) = flow::start(lab, LIMITS)?;
    let flows: Result<Vec<_>> = (0..FLOWS).map(|_| Flow::open(lab, &listener)).collect();
    let mut flows = flows?;
    let pattern = Pattern::new(1);
    let before = tcp_memory()?;

    // All senders write at once, and no receiver reads.
    let (largest, held) = thread::scope(|scope| {
        let pushing = scope.spawn(|| push(&mut flows, &pattern));
        let mut largest = 0;
        while !pushing.is_finished() {
            largest = largest.max(in_flight(&daemon)?);
        }
        pushing.join().expect("the senders do not panic")?;
        anyhow::Ok((largest, tcp_memory()?.saturating_sub(before)))
    })?;
    let processors = thread::available_parallelism()?.get() as u64;
    ensure!(largest <= TOTAL + processors * PACKET, "{largest} bytes waited between the sockets");
    // A stream is in the sockets of its sender, the balancer and the receiver: once, with bookkeeping.
    let sent = FLOWS as u64 * EACH;
    ensure!(held < 4 * sent, "{held} bytes of memory for {sent} in the streams");

    for Flow { client, backend } in &mut flows {
        stream::receive(&mut *backend, &pattern, EACH)?;
        client.shutdown(std::net::Shutdown::Both)?;
    }
    drop(flows);
    daemon.wait_metrics("every connection is over, and nothing waits", |metrics| {
        metrics.sum("snisplice_connections_active", &[]) == 0
            && metrics.sum("snisplice_sockmap_in_flight_bytes", &[]) == 0
    })?;
    Ok(())
}

/// Writes [`EACH`] to every flow, in pieces, while some flows may be full.
fn push(flows: &mut [Flow], pattern: &Pattern) -> Result<()> {
    let mut written = vec![0; flows.len()];
    for flow in &mut *flows {
        flow.client.set_nonblocking(true)?;
    }
    wait::until_true("everything fits somewhere", || {
        for (flow, position) in flows.iter_mut().zip(&mut written) {
            push_one(&mut flow.client, pattern, position)?;
        }
        Ok(written.iter().all(|position| *position == EACH))
    })
}

fn push_one(sender: &mut TcpStream, pattern: &Pattern, position: &mut u64) -> Result<()> {
    while *position < EACH {
        let left = usize::try_from(EACH - *position)?;
        match sender.write(pattern.at(*position, left)) {
            Ok(count) => *position += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn in_flight(daemon: &Daemon<'_>) -> Result<u64> {
    let metrics = daemon.metrics()?;
    ensure!(metrics.has("snisplice_sockmap_in_flight_bytes"), "the gauge is missing");
    Ok(u64::try_from(metrics.sum("snisplice_sockmap_in_flight_bytes", &[]))?)
}

/// Memory of all TCP sockets of the machine, in bytes.
fn tcp_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let pages = text
        .lines()
        .find_map(|line| line.strip_prefix("TCP:")?.rsplit_once(" mem "))
        .context("no memory of TCP in sockstat")?
        .1;
    Ok(pages.trim().parse::<u64>()? * 4096)
}
