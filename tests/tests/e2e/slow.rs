//! Peers that do not read: the sender is made to wait, memory stays bounded, and nothing is lost meanwhile.

use std::{
    io::{ErrorKind, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use snisplice_tests::{
    kernel,
    lab::Lab,
    stream::{self, Pattern},
    suite::Case,
    tcp::{self, Ending},
    wait,
};

use crate::flow::{self, Flow};

pub(crate) const CASES: &[Case] = &[
    Case::each("slow::backend_that_never_reads", |lab| deaf(lab, |flow| (flow.client, flow.backend))).alone(),
    Case::each("slow::client_that_never_reads", |lab| deaf(lab, |flow| (flow.backend, flow.client))).alone(),
];

const FLOWS: usize = 8;
/// What one connection may hold in the kernel.
const MOST_HELD: u64 = 16 * 1024 * 1024;
/// Least, initial and largest buffer of a peer's socket.
const SMALL: &str = "4096 65536 131072";
/// A sender that has been refused for so long is blocked.
const BLOCKED: Duration = Duration::from_secs(1);

fn deaf(lab: &Lab, roles: fn(Flow) -> (TcpStream, TcpStream)) -> Result<()> {
    // The peers are on this machine too: their buffers are kept small, so that what is measured is the balancer's.
    for peer in [&lab.client, &lab.backend] {
        peer.sysctl("net/ipv4/tcp_rmem", SMALL)?;
        peer.sysctl("net/ipv4/tcp_wmem", SMALL)?;
    }
    let (_daemon, listener) = flow::start(lab, "")?;
    let flows: Result<Vec<_>> = (0..FLOWS).map(|_| Ok(roles(Flow::open(lab, &listener)?))).collect();
    let mut flows = flows?;
    let pattern = Pattern::new(10);
    let before = kernel::held_memory()?;

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
    let held = kernel::held_memory()?.saturating_sub(before);
    ensure!(written.iter().all(|position| *position < MOST_HELD), "taken from the senders: {written:?}");
    ensure!(held < MOST_HELD * FLOWS as u64, "{held} bytes held for {FLOWS} connections after {total} sent");

    for ((sender, reader), position) in flows.iter_mut().zip(written) {
        sender.set_nonblocking(false)?;
        sender.shutdown(Shutdown::Write)?;
        stream::receive(&mut *reader, &pattern, position)?;
        ensure!(tcp::read_to_end(reader)? == (Vec::new(), Ending::Eof), "more came than was sent");
    }
    Ok(())
}

/// Writes until the kernel takes no more.
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
