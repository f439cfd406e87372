//! A file of lines whose writers never wait.
//!
//! Lines gather in a bounded buffer, and one thread writes them, many at a time. If the file accepts nothing (its
//! reader hangs or has gone, its disk is full), the buffer fills. Further lines are dropped and counted.

use std::{
    fmt,
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use rustix::fs::OFlags;
use snisplice_config::log_file::LogFile;

use super::{
    log_limit,
    writer::{Unwritten, write},
};

/// The greatest number of buffered bytes.
const ROOM: usize = 1 << 20;

/// The number of bytes that are written without waiting for more.
const FULL: usize = 64 * 1024;

/// The time for which lines gather before they are written. A wake-up of the thread for each line would cost more than
/// the line.
const GATHERING: Duration = Duration::from_millis(20);

/// Bytes of whole lines in one write(2) to a file that is not regular: up to `PIPE_BUF` (pipe(7)), lines of several
/// processes do not mix.
const PIECE: usize = 4_096;

/// Mode of a file that is made: clients' addresses are not for every user.
const MODE: u32 = 0o640;

/// Takes lines for one file, until it is dropped; the lines of before are still written then.
#[derive(Debug)]
pub struct LineFile(Arc<Shared>);

struct Shared {
    file: LogFile,
    state: Mutex<State>,
    /// There is something to do.
    wake: Condvar,
    /// All is written.
    idle: Condvar,
    /// Lines that were dropped, of this file and of its predecessors.
    dropped: Arc<AtomicU64>,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is asked for by itself")]
struct State {
    /// Whole lines.
    waiting: Vec<u8>,
    /// Whether lines are being written.
    writing: bool,
    /// Whether nothing is to be waited for.
    urgent: bool,
    /// Whether the file is to be opened anew.
    reopen: bool,
    /// Whether no line will follow.
    ended: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("file", &self.file).finish_non_exhaustive()
    }
}

impl LineFile {
    /// Opens the file for appending, and makes it where it is not there. `dropped` counts the lines that are dropped.
    ///
    /// # Errors
    /// If the file cannot be opened, or the thread cannot be started.
    pub fn open(file: LogFile, dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let sink = Sink::open(&file)?;
        let shared =
            Shared { file, state: Mutex::default(), wake: Condvar::new(), idle: Condvar::new(), dropped };
        let shared = Arc::new(shared);
        let writing = shared.clone();
        thread::Builder::new().name("access-log".to_owned()).spawn(move || writing.write_all(sink))?;
        Ok(Self(shared))
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &LogFile {
        &self.0.file
    }

    /// Takes a line with its end, or drops it where too many wait.
    pub fn put(&self, line: &[u8]) {
        let mut state = self.0.lock();
        let before = state.waiting.len();
        // A line that is too large for the limit is still written.
        if before > 0 && before + line.len() > ROOM {
            drop(state);
            self.0.dropped.fetch_add(1, Relaxed);
            log_limit!(
                warn,
                file = %self.0.file,
                "the access log does not keep up, and lines are dropped: check the file's disk or reader"
            );
            return;
        }
        state.waiting.extend_from_slice(line);
        if before == 0 || (before < FULL && state.waiting.len() >= FULL) {
            self.0.wake.notify_one();
        }
    }

    /// Opens the file again, by its path, before the next lines are written: after a rename, they go to a new file. On
    /// failure, they go to the old one.
    pub fn reopen(&self) {
        self.0.lock().reopen = true;
        self.0.wake.notify_one();
    }

    /// Waits until all is written or dropped, at most for `limit`. False if that was too short.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let mut state = self.0.lock();
        state.urgent = true;
        self.0.wake.notify_one();
        let busy = |state: &mut State| state.writing || state.reopen || !state.waiting.is_empty();
        match self.0.idle.wait_timeout_while(state, limit, busy) {
            Ok((_, timeout)) => !timeout.timed_out(),
            Err(_) => false,
        }
    }
}

impl Drop for LineFile {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs with the lock held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until no line will follow. Requests wait for the file meanwhile, and no other thread waits for them.
    fn write_all(&self, mut sink: Sink) {
        let mut batch = Vec::new();
        // Whether the last line was written but for its end.
        let mut torn = false;
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() && !state.reopen {
                state.writing = false;
                state.urgent = false;
                self.idle.notify_all();
                if state.ended {
                    return;
                }
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.writing = true;
            if std::mem::take(&mut state.reopen) {
                drop(state);
                match Sink::open(&self.file) {
                    Ok(opened) => (sink, torn) = (opened, false),
                    Err(error) => {
                        tracing::warn!(file = %self.file, %error, "the access log cannot be opened anew: the old file is written on");
                    }
                }
                continue;
            }
            let gathers = |state: &mut State| {
                state.waiting.len() < FULL && !state.urgent && !state.reopen && !state.ended
            };
            let waited = self.wake.wait_timeout_while(state, GATHERING, gathers);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut state.waiting, &mut batch);
            drop(state);
            self.write(&sink, &batch, &mut torn);
            batch.clear();
        }
    }

    /// Writes whole lines; those that cannot be written are dropped.
    fn write(&self, sink: &Sink, lines: &[u8], torn: &mut bool) {
        let mut rest = lines;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(end_of_piece(rest, sink.piece()));
            rest = after;
            if std::mem::take(torn) && write(&sink, b"\n").is_err() {
                *torn = true;
                self.drop_lines(piece);
                continue;
            }
            if let Err(Unwritten { written }) = write(&sink, piece) {
                let unwritten = &piece[written..];
                *torn = written > 0 && piece[written - 1] != b'\n';
                self.drop_lines(unwritten);
            }
        }
    }

    fn drop_lines(&self, lines: &[u8]) {
        let count = lines.split(|byte| *byte == b'\n').count() - 1;
        self.dropped.fetch_add(count as u64, Relaxed);
        log_limit!(
            warn,
            file = %self.file,
            "the access log cannot be written, and lines are dropped: check the file's disk or reader"
        );
    }
}

/// The end of the last whole line within `most` bytes. A longer line is not divided.
fn end_of_piece(lines: &[u8], most: usize) -> usize {
    if lines.len() <= most {
        return lines.len();
    }
    let line_end = |at: usize| at + 1;
    lines[..most]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .or_else(|| lines.iter().position(|byte| *byte == b'\n'))
        .map_or(lines.len(), line_end)
}

/// The open file.
enum Sink {
    Stdout(io::Stdout),
    Stderr(io::Stderr),
    File {
        file: OwnedFd,
        /// Whether it is a regular file, in which writes of any length do not mix.
        regular: bool,
    },
}

impl Sink {
    fn open(file: &LogFile) -> io::Result<Self> {
        let path = match file {
            LogFile::Stdout => return Ok(Self::Stdout(io::stdout())),
            LogFile::Stderr => return Ok(Self::Stderr(io::stderr())),
            LogFile::Path(path) => path,
        };
        // A FIFO without a reader is an error then and nothing to wait for (fifo(7)).
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(path)?;
        let kind = file.metadata()?.file_type();
        // Nothing is ever written to it.
        if kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a block device is no log"));
        }
        Ok(Self::File { file: file.into(), regular: kind.is_file() })
    }

    fn piece(&self) -> usize {
        if matches!(self, Self::File { regular: true, .. }) { FULL } else { PIECE }
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(stdout) => stdout.as_fd(),
            Self::Stderr(stderr) => stderr.as_fd(),
            Self::File { file, .. } => file.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read as _, Write as _},
        path::Path,
    };

    use rustix::fs::{Mode, mkfifoat};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn open(path: &Path) -> LineFile {
        LineFile::open(LogFile::Path(path.into()), Arc::default()).unwrap()
    }

    fn dropped(file: &LineFile) -> u64 {
        file.0.dropped.load(Relaxed)
    }

    #[test]
    fn lines_are_appended_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        fs::write(&path, "before\n").unwrap();
        let file = open(&path);
        for number in 0..10_000 {
            file.put(format!("{number}\n").as_bytes());
        }
        assert!(file.flush(LONG));
        let text = fs::read_to_string(&path).unwrap();
        let numbers: Vec<_> = text.lines().skip(1).map(|line| line.parse::<u32>().unwrap()).collect();
        assert!(numbers.into_iter().eq(0..10_000), "in their order");
        assert_eq!(dropped(&file), 0);
    }

    #[test]
    fn a_renamed_file_is_followed_by_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let file = open(&path);
        file.put(b"one\n");
        assert!(file.flush(LONG));
        fs::rename(&path, &old).unwrap();
        file.put(b"two\n");
        assert!(file.flush(LONG));
        file.reopen();
        assert!(file.flush(LONG));
        file.put(b"three\n");
        assert!(file.flush(LONG));
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // Without room for a new file, the old one stays.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        file.reopen();
        file.put(b"four\n");
        assert!(file.flush(LONG));
        assert_eq!(dropped(&file), 0);
    }

    #[test]
    fn a_reader_that_hangs_costs_lines_and_no_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(
            LineFile::open(LogFile::Path(path.clone()), Arc::default()).is_err(),
            "nobody reads, and nothing waits for that"
        );
        let mut reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let file = open(&path);
        let line = [[b'x'; 999].as_slice(), b"\n"].concat();
        let mut lines = 0_u64;
        while dropped(&file) == 0 {
            file.put(&line);
            lines += 1;
        }
        assert!(!file.flush(Duration::from_millis(1)));
        // Accepted bytes arrive complete once they are read.
        let taken = lines - dropped(&file);
        let mut got = vec![0; usize::try_from(taken).unwrap() * line.len()];
        reader.read_exact(&mut got).unwrap();
        assert!(got.chunks(line.len()).all(|one| one == line));
        assert!(file.flush(LONG));
        assert_eq!(dropped(&file), 1);
        reader.write_all(b"").unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let file = open(Path::new("/dev/full"));
        file.put(b"one\ntwo\n");
        assert!(file.flush(LONG));
        file.put(b"three\n");
        assert!(file.flush(LONG));
        assert_eq!(dropped(&file), 3);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let file = open(&path);
        drop(reader);
        file.put(b"lost\n");
        assert!(file.flush(LONG));
        assert_eq!(dropped(&file), 1);
    }

    #[test]
    fn the_thread_writes_what_is_left_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let file = open(&path);
        let shared = Arc::downgrade(&file.0);
        file.put(b"last\n");
        drop(file);
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "last\n");
    }

    #[test]
    fn pieces_end_with_lines() {
        assert_eq!(end_of_piece(b"a\nb\n", 4), 4);
        assert_eq!(end_of_piece(b"a\nb\nc\n", 5), 4);
        assert_eq!(end_of_piece(b"long\nb\n", 2), 5);
        assert_eq!(end_of_piece(b"no end", 2), 6);
    }
}
