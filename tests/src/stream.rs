//! Long byte streams with known bytes at both ends.

use std::{
    io::{self, ErrorKind, Read, Write},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// A small deterministic generator (splitmix64): a failed run can be repeated from its seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 1 to `most`.
    pub fn up_to(&mut self, most: usize) -> usize {
        let most = most as u64;
        usize::try_from(self.bits() % most + 1).unwrap_or(1)
    }
}

/// An endless byte stream, random within a block of a prime length. A loss or repetition whose length is a power of
/// two cannot align with the block.
#[derive(Debug, Clone)]
pub struct Pattern(Vec<u8>);

impl Pattern {
    const LENGTH: usize = 1_048_573;

    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let words = std::iter::repeat_with(|| random.bits().to_le_bytes()).take(Self::LENGTH.div_ceil(8));
        let mut block: Vec<u8> = words.flatten().collect();
        block.truncate(Self::LENGTH);
        Self(block)
    }

    /// Up to `most` bytes from `position` on, fewer at the end of the block.
    #[must_use]
    pub fn at(&self, position: u64, most: usize) -> &[u8] {
        let start = usize::try_from(position % Self::LENGTH as u64).unwrap_or_default();
        &self.0[start..(start + most).min(Self::LENGTH)]
    }

    /// Checks that `bytes` are those at `position`.
    pub fn check(&self, position: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let from = position + done as u64;
            let expected = self.at(from, bytes.len() - done);
            let got = &bytes[done..done + expected.len()];
            if got != expected {
                let wrong = got.iter().zip(expected).take_while(|(got, expected)| got == expected).count();
                bail!("wrong byte at position {}", from + wrong as u64);
            }
            done += expected.len();
        }
        Ok(())
    }
}

/// The sizes and pauses of a sender's writes.
#[derive(Debug, Clone)]
pub struct Pace {
    /// The greatest size of a write; sizes are drawn from 1 to this.
    pub largest_write: usize,
    /// The sender pauses for up to two milliseconds after about one in this number of writes.
    pub pause_every: usize,
    /// The source of sizes and pauses.
    pub random: Random,
}

impl Pace {
    /// Writes of up to 64 KiB with occasional pauses.
    #[must_use]
    pub fn uneven(seed: u64) -> Self {
        Self { largest_write: 64 * 1024, pause_every: 200, random: Random::new(seed) }
    }

    /// The size of the next write, and the pause before it, if any.
    pub fn next_write(&mut self, left: u64) -> (usize, Option<Duration>) {
        let size = self.random.up_to(self.largest_write);
        let pause = (self.random.up_to(self.pause_every) == 1)
            .then(|| Duration::from_micros(self.random.bits() % 2_000));
        (size.min(usize::try_from(left).unwrap_or(usize::MAX)), pause)
    }
}

/// Writes the first `total` bytes of `pattern`.
pub fn send(mut to: impl Write, pattern: &Pattern, total: u64, mut pace: Pace) -> Result<()> {
    let mut position = 0;
    while position < total {
        let (size, pause) = pace.next_write(total - position);
        if let Some(pause) = pause {
            thread::sleep(pause);
        }
        let bytes = pattern.at(position, size);
        to.write_all(bytes).with_context(|| format!("at position {position} of {total}"))?;
        position += bytes.len() as u64;
    }
    Ok(())
}

/// Like [`Read::read`], repeated after an interruption without data. A socket with a time limit returns `EINTR`
/// whenever its thread is made to run, even if no signal is delivered. The cause may be a debugger, a freezer of
/// cgroups, or a kernel that patches itself.
pub fn read(mut from: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Like [`read`], for writes.
pub fn write(mut to: impl Write, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match to.write(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            written => return written,
        }
    }
}

/// Reads the first `total` bytes of `pattern`, and checks each.
pub fn receive(mut from: impl Read, pattern: &Pattern, total: u64) -> Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    let mut position = 0;
    while position < total {
        let most = buffer.len().min(usize::try_from(total - position).unwrap_or(usize::MAX));
        let count = read(&mut from, &mut buffer[..most])
            .with_context(|| format!("at position {position} of {total}"))?;
        if count == 0 {
            bail!("the stream ended after {position} of {total} bytes");
        }
        pattern.check(position, &buffer[..count])?;
        position += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Is interrupted before each byte.
    struct Interrupted<S> {
        inner: S,
        again: bool,
    }

    impl<S> Interrupted<S> {
        fn before_each(inner: S) -> Self {
            Self { inner, again: false }
        }

        fn turn(&mut self) -> io::Result<()> {
            self.again = !self.again;
            if self.again { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
        }
    }

    impl<S: Read> Read for Interrupted<S> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.turn()?;
            self.inner.read(&mut buffer[..1])
        }
    }

    impl<S: Write> Write for Interrupted<S> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turn()?;
            self.inner.write(&bytes[..1])
        }

        fn flush(&mut self) -> io::Result<()> {
            self.inner.flush()
        }
    }

    #[test]
    fn an_interruption_is_no_error() {
        let (pattern, mut sent) = (Pattern::new(1), Vec::new());
        send(Interrupted::before_each(&mut sent), &pattern, 1_000, Pace::uneven(1)).expect("sent");
        receive(Interrupted::before_each(&*sent), &pattern, 1_000).expect("received");
        assert_eq!(write(Interrupted::before_each(&mut sent), b"more").expect("written"), 1);
    }
}
