//! Bytes that show their position, in writes of any size.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

/// A small generator: a test must be reproducible.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("below a usize")
    }
}

/// An endless stream of bytes, different for each seed. Each byte depends on its position.
#[derive(Clone)]
pub(crate) struct Stream {
    seed: u64,
    position: u64,
}

impl Stream {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        let mut chunk = 0;
        while chunk < buffer.len() {
            let word = mixed(self.seed ^ (self.position / 8)).to_le_bytes();
            let within = usize::try_from(self.position % 8).expect("below 8");
            let taken = (8 - within).min(buffer.len() - chunk);
            buffer[chunk..chunk + taken].copy_from_slice(&word[within..within + taken]);
            chunk += taken;
            self.position += taken as u64;
        }
    }

    /// Writes `total` bytes in pieces of up to `piece`, with occasional pauses.
    pub(crate) fn send(
        &mut self,
        to: &TcpStream,
        total: u64,
        piece: usize,
        random: &mut Random,
    ) -> io::Result<()> {
        let mut to = to;
        let mut buffer = vec![0; piece];
        let end = self.position + total;
        while self.position < end {
            let left = usize::try_from(end - self.position).unwrap_or(usize::MAX);
            let size = (random.below(piece) + 1).min(left);
            self.fill(&mut buffer[..size]);
            to.write_all(&buffer[..size])?;
            if random.below(200) == 0 {
                thread::sleep(Duration::from_micros(random.below(3_000) as u64));
            }
        }
        Ok(())
    }

    /// Writes until the socket has accepted nothing for `patience`. Returns the number of accepted bytes.
    pub(crate) fn send_until_blocked(&mut self, to: &TcpStream, patience: Duration) -> u64 {
        to.set_write_timeout(Some(patience)).expect("SO_SNDTIMEO");
        let mut to = to;
        let mut buffer = vec![0; 64 * 1024];
        let (start, mut last) = (self.position, Instant::now());
        loop {
            let before = self.position;
            self.fill(&mut buffer);
            match to.write(&buffer) {
                Ok(written) => {
                    self.position = before + written as u64;
                    last = Instant::now();
                }
                // As in `read`: otherwise each interruption would restart the wait.
                Err(error) if error.kind() == io::ErrorKind::Interrupted && last.elapsed() < patience => {
                    self.position = before;
                }
                Err(error) if is_over(&error) => {
                    self.position = before;
                    to.set_write_timeout(Some(crate::rig::PATIENCE)).expect("SO_SNDTIMEO");
                    return self.position - start;
                }
                Err(error) => panic!("the connection broke: {error}"),
            }
        }
    }

    /// Reads `total` bytes and compares each.
    pub(crate) fn expect(&mut self, from: &TcpStream, total: u64) {
        let mut buffer = vec![0; 256 * 1024];
        let end = self.position + total;
        while self.position < end {
            let left = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(buffer.len());
            let read = match read(from, &mut buffer[..left]) {
                Ok(0) => panic!("EOF at {} of {end}", self.position),
                Ok(read) => read,
                // A read without a limit returns `EAGAIN` only if another event than bytes woke it, as can happen to
                // sockets in a sockmap (`tcp_msg_wait_data`).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && is_unlimited(from) => continue,
                Err(error) => panic!("at {} of {end}: {error}", self.position),
            };
            self.compare(&buffer[..read]);
        }
    }

    /// Compares the next bytes.
    pub(crate) fn compare(&mut self, read: &[u8]) {
        let at = self.position;
        let mut expected = vec![0; read.len()];
        self.fill(&mut expected);
        if read != expected {
            let wrong = (0..read.len()).find(|&i| read[i] != expected[i]).expect("they differ");
            panic!("byte {} is wrong", at + wrong as u64);
        }
    }
}

/// Whether a call has timed out.
fn is_over(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

/// Like [`Read::read`], repeated after an interruption without data. A socket with a time limit returns `EINTR`
/// whenever a debugger or a freezer of cgroups makes its thread run, even if no signal is delivered.
pub(crate) fn read(mut from: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Expects FIN.
pub(crate) fn expect_eof(from: &TcpStream) {
    match read(from, &mut [0]) {
        Ok(0) => {}
        Ok(_) => panic!("a byte instead of EOF"),
        Err(error) => panic!("{error} instead of EOF"),
    }
}

/// Expects RST.
pub(crate) fn expect_reset(from: &TcpStream) {
    let mut buffer = [0; 4096];
    loop {
        match read(from, &mut buffer) {
            Ok(0) => panic!("EOF instead of a reset"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{error} instead of a reset"),
        }
    }
}

fn mixed(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Stream {
    /// Skips bytes.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.position += bytes;
    }
}

fn is_unlimited(stream: &TcpStream) -> bool {
    stream.read_timeout().is_ok_and(|limit| limit.is_none())
}
