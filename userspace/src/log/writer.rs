//! The thread that writes lines out.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::queue::Queue;

/// The pause before another attempt at a descriptor that accepts nothing and does not block, if poll(2) reports
/// nothing.
const AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Takes lines without ever waiting, and has them written.
#[derive(Debug, Clone)]
pub(super) struct Writer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a line.
    wake: Condvar,
    /// All is written.
    idle: Condvar,
    /// Lines dropped since the start.
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    /// A line is being written.
    writing: bool,
    /// Dropped lines that no line has reported.
    untold: u64,
}

impl Writer {
    /// Starts a thread that writes to `sink`.
    pub(super) fn start(sink: impl AsFd + Send + 'static) -> io::Result<Self> {
        let writer = Self(Arc::default());
        let shared = writer.0.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_all(&sink))?;
        Ok(writer)
    }

    /// Takes one line, or drops it where too many wait.
    pub(super) fn put(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.queue.push(line) {
            self.0.wake.notify_one();
        } else {
            self.0.lose(&mut state);
        }
    }

    /// Lines dropped since the start.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }

    /// Waits until all is written, or dropped, at most for `limit`. False if that was too short.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let state = self.0.lock();
        let busy = |state: &mut State| state.writing || !state.queue.is_empty();
        match self.0.idle.wait_timeout_while(state, limit, busy) {
            Ok((_, timeout)) => !timeout.timed_out(),
            Err(_) => false,
        }
    }

    /// The sink for one line of `tracing-subscriber`.
    pub(super) fn line(&self) -> Line<'_> {
        Line(self)
    }
}

/// Takes each line at once, as `tracing-subscriber` gives it.
pub(super) struct Line<'w>(&'w Writer);

impl io::Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs with the lock held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, state: &mut State) {
        state.untold += 1;
        self.lost.fetch_add(1, Relaxed);
    }

    fn write_all(&self, sink: &impl AsFd) {
        // Whether the last line was written but for its end.
        let mut torn = false;
        loop {
            let mut state = self.lock();
            let line = loop {
                if let Some(line) = state.queue.pop() {
                    break line;
                }
                state.writing = false;
                self.idle.notify_all();
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            state.writing = true;
            drop(state);

            let written =
                if torn { write(sink, b"\n").and_then(|()| write(sink, &line)) } else { write(sink, &line) };
            let mut state = self.lock();
            match written {
                Ok(()) => {
                    torn = false;
                    // Only once it keeps up: a reader that is merely slow would get one such line after the other.
                    if state.queue.is_empty() && state.untold > 0 {
                        let lines = std::mem::take(&mut state.untold);
                        drop(state);
                        tracing::warn!(
                            lines,
                            "log lines were lost because standard error did not accept them"
                        );
                    }
                }
                Err(Unwritten { written }) => {
                    torn |= written > 0;
                    self.lose(&mut state);
                }
            }
        }
    }
}

/// Bytes that were not written to their end.
pub(super) struct Unwritten {
    /// The number of written lines.
    pub(super) written: usize,
}

/// Writes all bytes, for any time that the other end takes.
pub(super) fn write(sink: &impl AsFd, line: &[u8]) -> Result<(), Unwritten> {
    let mut rest = line;
    while !rest.is_empty() {
        match rustix::io::write(sink, rest) {
            Ok(count) if count > 0 => rest = &rest[count..],
            Err(Errno::INTR) => {}
            // The process that opened the descriptor has made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(sink, PollFlags::OUT)], Some(&AGAIN));
            }
            Ok(_) | Err(_) => return Err(Unwritten { written: line.len() - rest.len() }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, pipe},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_written_in_their_order() {
        let (mut reader, sink) = pipe().unwrap();
        let writer = Writer::start(sink).unwrap();
        writer.put(b"one\n");
        writer.put(b"two\n");
        assert!(writer.flush(LONG));
        let mut got = [0; 8];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"one\ntwo\n");
    }

    #[test]
    fn nobody_waits_for_a_reader_that_hangs() {
        let (mut reader, sink) = pipe().unwrap();
        let writer = Writer::start(sink).unwrap();
        let line = vec![b'x'; 1_000];
        let mut lines = 0;
        while writer.lost() == 0 {
            writer.put(&line);
            lines += 1;
        }
        assert!(!writer.flush(Duration::from_millis(1)));
        // Accepted bytes arrive complete once they are read.
        let mut got = vec![0; (lines - 1) * line.len()];
        reader.read_exact(&mut got).unwrap();
        assert!(got.iter().all(|byte| *byte == b'x'));
        assert!(writer.flush(LONG));
        assert_eq!(writer.lost(), 1);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let writer = Writer::start(full).unwrap();
        writer.put(b"lost\n");
        assert!(writer.flush(LONG));
        assert_eq!(writer.lost(), 1);

        let (reader, sink) = pipe().unwrap();
        drop(reader);
        let writer = Writer::start(sink).unwrap();
        writer.put(b"lost\n");
        writer.put(b"lost\n");
        assert!(writer.flush(LONG));
        assert_eq!(writer.lost(), 2);
    }

    #[test]
    fn a_descriptor_that_does_not_block_gets_every_line() {
        let (mut reader, sink) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&sink, true).unwrap();
        let writer = Writer::start(sink).unwrap();
        let line = vec![b'y'; 200_000];
        writer.put(&line);
        let mut got = vec![0; line.len()];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(got, line);
        assert!(writer.flush(LONG));
        assert_eq!(writer.lost(), 0);
    }
}
