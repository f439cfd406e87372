//! Peers that do not read: the sender waits, memory stays bounded, and no byte is lost meanwhile.

use std::{
    io::{ErrorKind, Write as _},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use snisplice_tests::{
    kernel::Held,
    lab::{Datapath, Lab},
    stream::{self, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("slow::backend_that_never_reads", |lab| deaf(lab, |flow| (flow.client, flow.backend))),
    Case::each("slow::client_that_never_reads", |lab| deaf(lab, |flow| (flow.backend, flow.client))),
    Case::each("slow::a_reset_ends_who_never_reads", reset_with_full_buffers),
];

const FLOWS: usize = 8;
/// The limit of the memory of the balancer's sockets for one connection, in bytes.
const MOST_HELD: u64 = 16 * 1024 * 1024;
/// The memory that the kernel charges for a sent hello, in bytes.
const MOST_OF_A_HELLO: u64 = 8 * 1024;
/// A sender is blocked after this time without progress.
const BLOCKED: Duration = Duration::from_secs(1);

fn deaf(lab: &Lab, roles: fn(Flow) -> (TcpStream, TcpStream)) -> Result<()> {
    let (_daemon, listener) = flow::start(lab, "")?;
    let flows: Result<Vec<_>> = (0..FLOWS).map(|_| Ok(roles(Flow::open(lab, &listener)?))).collect();
    let mut flows = flows?;
    let pattern = Pattern::new(10);

    let mut written = [0; FLOWS];
    for (sender, _) in &flows {
        sender.set_nonblocking(true)?;
    }
    let total = wait::settled(BLOCKED, || {
        for ((sender, _), position) in flows.iter_mut().zip(&mut written) {
            push(sender, &pattern, position)?;
        }
        Ok(written.iter().sum::<u64>())
    })?;
    // Bytes that the senders have sent, and that are in none of the peers' sockets, are in the balancer. Its sockets'
    // bytes are charged to them. Bytes between its sockets are charged to no socket.
    let [client, lb, backend] = [&lab.client, &lab.lb, &lab.backend].map(Held::inside);
    let lb = lb?;
    let with_balancer = total.saturating_sub(client?.stream + backend?.stream);
    let held = lb.memory + with_balancer.saturating_sub(lb.stream);
    match lab.datapath {
        // The sender's own kernel waits for the reader's. Only the hello is held in between, for a moment.
        Datapath::Packet => {
            ensure!(held < MOST_OF_A_HELLO * FLOWS as u64, "{held} bytes held, {total} sent: {lb:?}");
        }
        // Bytes copied before the offload stay as well.
        Datapath::Auto => {}
        _ => ensure!(held > 0, "nothing is held, so nothing was measured"),
    }
    ensure!(
        held < MOST_HELD * FLOWS as u64,
        "{held} bytes held for {FLOWS} connections, {total} sent: {lb:?}"
    );

    for ((sender, reader), position) in flows.iter_mut().zip(written) {
        sender.set_nonblocking(false)?;
        sender.shutdown(Shutdown::Write)?;
        stream::receive(&mut *reader, &pattern, position)?;
        ensure!(tcp::read_to_end(reader)? == (Vec::new(), Ending::Eof), "more came than was sent");
    }
    Ok(())
}

/// The bytes that the backend sent before its reset cannot be delivered. The daemon does not wait for this client as
/// for one that still reads.
fn reset_with_full_buffers(lab: &Lab) -> Result<()> {
    /// The limit for a client that reads is 30 s.
    const SOON: Duration = Duration::from_secs(20);
    let (daemon, listener) = flow::start(lab, "")?;
    let mut flow = Flow::open(lab, &listener)?;
    let (pattern, mut written) = (Pattern::new(10), 0);
    flow.backend.set_nonblocking(true)?;
    wait::settled(BLOCKED, || {
        push(&mut flow.backend, &pattern, &mut written)?;
        Ok(written)
    })?;
    let before = Instant::now();
    tcp::reset(flow.backend)?;
    let metrics = daemon.wait_metrics("the connection is over", |metrics| {
        metrics.sum("snisplice_connections_closed_total", &[("reason", "backend_reset")]) == 1
    })?;
    ensure!(before.elapsed() < SOON, "over after {:?}: {metrics:?}", before.elapsed());
    Ok(())
}

/// Writes until the kernel accepts no more.
fn push(sender: &mut TcpStream, pattern: &Pattern, position: &mut u64) -> Result<()> {
    while *position < 4 * MOST_HELD {
        match sender.write(pattern.at(*position, 64 * 1024)) {
            Ok(count) => *position += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
