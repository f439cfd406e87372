//! The trials: each is a way in which some kernel was seen to lose, double, reorder or hoard bytes.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::stage::{Link, Stage};
use crate::{datapath::sockmap::SEND_BUFFER, kernel::Kernel};

/// Bytes that may wait between two sockets during the trials: little, so that passing and returning happen often.
pub(super) const HIGH_WATER: u32 = 256 * 1024;

/// What a deaf receiver may make the kernel hold, the sender's and the receiver's own buffers included.
const DEAF_LIMIT: usize = 64 * 1024 * 1024;

type Trial = fn(&Arc<Kernel>) -> anyhow::Result<String>;

/// Every trial with its name.
pub(super) const ALL: [(&str, Trial); 5] = [
    ("queued-bytes", queued_bytes),
    ("half-close", half_close),
    ("small-buffers", small_buffers),
    ("pass-return", pass_and_return),
    ("deaf-receiver", deaf_receiver),
];

/// Bytes that were queued before the socket was taken over arrive once, and before those that follow.
fn queued_bytes(kernel: &Arc<Kernel>) -> anyhow::Result<String> {
    let sent = pattern(30_000, 1);
    let (early, late) = sent.split_at(10_000);
    let mut link = Stage::new(kernel, SEND_BUFFER).link(|mut client| Ok(client.write_all(early)?))?;
    read_exactly(&mut link.backend, early).context("bytes queued before the hand-over")?;
    link.client.write_all(late)?;
    link.client.shutdown(Shutdown::Write)?;
    expect(&mut link.backend, late).context("bytes after those queued before the hand-over")?;
    link.backend.shutdown(Shutdown::Write)?;
    expect(&mut link.client, &[])?;
    link.finished(sent.len() as u64, 0)?;
    Ok("what was queued at the hand-over arrives once and in order".into())
}

/// A FIN closes one direction and leaves the other as it is.
fn half_close(kernel: &Arc<Kernel>) -> anyhow::Result<String> {
    let mut link = Stage::new(kernel, SEND_BUFFER).link(|_| Ok(()))?;
    greet(&mut link)?;
    link.client.write_all(b"question")?;
    link.client.shutdown(Shutdown::Write)?;
    expect(&mut link.backend, b"question").context("a FIN with data before it")?;
    let answer = pattern(100_000, 2);
    link.backend.write_all(&answer).context("the other direction after a FIN")?;
    link.backend.shutdown(Shutdown::Write)?;
    expect(&mut link.client, &answer).context("the other direction after a FIN")?;
    link.finished(1 + 8, answer.len() as u64)?;
    Ok("a FIN closes its own direction only".into())
}

/// Full send buffers and slow readers on both sides neither lose nor double a byte.
fn small_buffers(kernel: &Arc<Kernel>) -> anyhow::Result<String> {
    let bytes = both_ways(kernel, 16 * 1024, 1 << 20, Some(Duration::from_micros(100)))?;
    Ok(format!("{} MiB through full send buffers, byte for byte", bytes >> 20))
}

/// A direction that is handed to userspace comes back to the kernel, in order.
fn pass_and_return(kernel: &Arc<Kernel>) -> anyhow::Result<String> {
    let before = kernel.counters()?;
    let bytes = both_ways(kernel, 512 * 1024, 8 << 20, None)?;
    // One more connection in both modes for certain: the reader sleeps until its sender is stopped.
    resume_after_block(kernel)?;
    let after = kernel.counters()?;
    let returns = after.returns - before.returns;
    ensure!(after.redirected_bytes > before.redirected_bytes, "nothing was redirected");
    ensure!(after.passed_bytes > before.passed_bytes, "nothing was passed to userspace");
    ensure!(returns > 0, "no direction came back to the kernel");
    Ok(format!("{} MiB in order, back in the kernel {returns} times", bytes >> 20))
}

/// A receiver that does not read stops its sender.
fn deaf_receiver(kernel: &Arc<Kernel>) -> anyhow::Result<String> {
    let held = resume_after_block(kernel)?;
    Ok(format!("a sender is stopped after {} MiB, and nothing is lost", held >> 20))
}

/// Sends until the sender is stopped by a receiver that does not read; then the receiver reads everything, and a
/// few more bytes follow. Returns how much was held at most.
fn resume_after_block(kernel: &Arc<Kernel>) -> anyhow::Result<usize> {
    let mut link = Stage::new(kernel, 512 * 1024).link(|_| Ok(()))?;
    let chunk = pattern(256 * 1024, 3);
    link.client.set_write_timeout(Some(Duration::from_millis(60)))?;
    let mut held = 0;
    loop {
        // A short write tells how far into the chunk the stream is.
        match link.client.write(&chunk[held % chunk.len()..]) {
            Ok(written) => held += written,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => return Err(error).context("a sender whose receiver does not read"),
        }
        ensure!(held <= DEAF_LIMIT, "the sender is never stopped: memory is not bounded");
    }
    let expected = |from: usize, length: usize| {
        chunk.iter().cycle().skip(from % chunk.len()).take(length).copied().collect::<Vec<u8>>()
    };
    read_exactly(&mut link.backend, &expected(0, held))
        .context("bytes held for a receiver that did not read")?;
    // Small ones one after the other, each of which finds everything delivered: the kernel's turn again.
    let mut sent = held;
    for _ in 0..8 {
        let next = expected(sent, 1000);
        link.client.write_all(&next)?;
        read_exactly(&mut link.backend, &next).context("bytes after a receiver has caught up")?;
        sent += next.len();
    }
    link.client.shutdown(Shutdown::Write)?;
    link.backend.shutdown(Shutdown::Write)?;
    expect(&mut link.backend, &[])?;
    expect(&mut link.client, &[])?;
    link.finished(sent as u64, 0)?;
    Ok(held)
}

/// Carries `length` bytes each way at once and compares every one of them. Returns the sum.
fn both_ways(
    kernel: &Arc<Kernel>,
    send_buffer: u32,
    length: usize,
    pause: Option<Duration>,
) -> anyhow::Result<usize> {
    let mut link = Stage::new(kernel, send_buffer).link(|_| Ok(()))?;
    greet(&mut link)?;
    let (up, down) = (pattern(length, 4), pattern(length, 5));
    thread::scope(|scope| {
        let senders = [(&link.client, &up), (&link.backend, &down)].map(|(mut socket, bytes)| {
            scope.spawn(move || {
                socket.write_all(bytes)?;
                socket.shutdown(Shutdown::Write)
            })
        });
        let receivers = [(&link.backend, &up), (&link.client, &down)]
            .map(|(socket, bytes)| scope.spawn(move || receive(socket, bytes, pause)));
        for sender in senders {
            sender.join().ok().context("a sender panicked")??;
        }
        for receiver in receivers {
            receiver.join().ok().context("a receiver panicked")??;
        }
        anyhow::Ok(())
    })?;
    link.finished(1 + up.len() as u64, down.len() as u64)?;
    Ok(up.len() + down.len())
}

/// Waits until the connection is carried: a socket whose peer has already sent FIN would not be taken.
fn greet(link: &mut Link) -> anyhow::Result<()> {
    link.client.write_all(b"!")?;
    read_exactly(&mut link.backend, b"!").context("the first byte of a connection")
}

/// Reads to the end, with a pause after each piece, and compares.
fn receive(mut socket: &TcpStream, expected: &[u8], pause: Option<Duration>) -> anyhow::Result<()> {
    let mut piece = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        let length =
            socket.read(&mut piece).with_context(|| format!("after {at} of {} bytes", expected.len()))?;
        if length == 0 {
            ensure!(at == expected.len(), "the stream ends after {at} of {} bytes", expected.len());
            return Ok(());
        }
        ensure!(
            expected.get(at..at + length) == Some(&piece[..length]),
            "other bytes than were sent, between {at} and {}",
            at + length
        );
        at += length;
        if let Some(pause) = pause {
            thread::sleep(pause);
        }
    }
}

/// Reads to the end and compares.
fn expect(socket: &mut TcpStream, expected: &[u8]) -> anyhow::Result<()> {
    receive(socket, expected, None)
}

fn read_exactly(socket: &mut TcpStream, expected: &[u8]) -> anyhow::Result<()> {
    let mut received = vec![0; expected.len()];
    socket.read_exact(&mut received)?;
    ensure!(received == expected, "other bytes than were sent");
    Ok(())
}

/// Bytes without a short period, different for each seed.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}
