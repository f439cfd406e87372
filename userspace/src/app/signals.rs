//! Signal handling, from the start of the process to its end.
//!
//! A separate thread receives the signals, since the main thread is busy during the start, a reload and name
//! resolution. SIGHUP requests a reload, SIGTERM and SIGINT request a stop. Further signals are stored, one of each
//! kind. During the start, a stop ends the process at once. During a drain, only another stop counts. All other
//! signals that would end the process without a fault of its own (such as SIGUSR1) are logged and ignored. SIGQUIT
//! still makes a core dump.

use std::{
    future::poll_fn,
    io,
    process::exit,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal as Number};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

use crate::log::{self, log_limit};

/// Stops within this interval count as one: supervisors and wrappers send a signal to the process and to its group.
const SAME: Duration = Duration::from_millis(20);

/// The time limit of the last log lines when a start is stopped.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Signals without a meaning here whose default action would end the process. The kernel sends SIGXFSZ when the file
/// behind standard error has grown to its limit.
const IGNORED: [i32; 9] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXFSZ,
];

/// A request to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Read the configuration again.
    Reload,
    /// Accept nothing more and drain. A second stop does not wait for the open connections.
    Stop,
}

/// Requests that are not yet begun.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pending {
    /// Whether the process accepts connections, or has accepted some.
    serving: bool,
    reload: bool,
    stops: u32,
    last_stop: Option<Instant>,
}

impl Pending {
    /// Stores a request that arrived at `now`.
    fn note(&mut self, asked: Asked, now: Instant) {
        match asked {
            Asked::Reload => self.reload = true,
            Asked::Stop => {
                if self.last_stop.is_none_or(|last| now.duration_since(last) >= SAME) {
                    self.stops += 1;
                    // Set only by a stop that counts. Otherwise signals in quick succession would suppress each other
                    // forever.
                    self.last_stop = Some(now);
                }
            }
        }
    }

    /// The next request. A stop comes before a reload, which then has no effect.
    fn next(&mut self) -> Option<Asked> {
        if self.stops > 0 {
            self.stops -= 1;
            self.reload = false;
            return Some(Asked::Stop);
        }
        std::mem::take(&mut self.reload).then_some(Asked::Reload)
    }
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Nothing that can panic runs with the lock held.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, asked: Asked) {
        let mut pending = self.lock();
        if asked == Asked::Stop && !pending.serving {
            // With the lock held, so that the main thread begins to serve either before this step or never.
            tracing::info!("stopped during start");
            let _ = log::flush(LAST_LINES);
            exit(0);
        }
        pending.note(asked, Instant::now());
        drop(pending);
        self.changed.notify_one();
    }
}

/// The requests that signals make to this process.
#[derive(Debug)]
pub struct Signals(Arc<Shared>);

impl Signals {
    /// Installs the handling. Afterwards only a stop during the start, or a signal that cannot be caught, ends the
    /// process. Call it before anything that takes time.
    ///
    /// # Errors
    ///
    /// Returns an error if a thread or its resources cannot be created.
    pub fn install() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (installed, heard) = mpsc::channel();
        let noted = shared.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let runtime = match runtime::Builder::new_current_thread().enable_io().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(installed.send(Err(error))),
            };
            runtime.block_on(async {
                match Streams::new() {
                    Ok(streams) => {
                        let _ = installed.send(Ok(()));
                        streams.listen(&noted).await;
                    }
                    Err(error) => drop(installed.send(Err(error))),
                }
            });
        })?;
        heard.recv().map_err(io::Error::other)??;
        block()?;
        Ok(Self(shared))
    }

    /// Marks that the process accepts connections: a stop now drains.
    pub(super) fn serving(&self) {
        self.0.lock().serving = true;
    }

    /// Waits for the next request.
    pub(super) async fn next(&self) -> Asked {
        loop {
            if let Some(asked) = self.0.lock().next() {
                return asked;
            }
            self.0.changed.notified().await;
        }
    }
}

/// Blocks signals in this thread and in threads that it starts later, so that only the signal thread receives them.
/// The kernel aborts the verification of a program (`EAGAIN`) when its thread receives a signal.
fn block() -> io::Result<()> {
    let heard = [libc::SIGHUP, libc::SIGTERM, libc::SIGINT];
    let all = heard.into_iter().chain(IGNORED).map(Number::try_from);
    all.collect::<nix::Result<SigSet>>()?.thread_block()?;
    Ok(())
}

/// The signal streams of tokio.
struct Streams {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    ignored: Vec<(i32, Signal)>,
}

impl Streams {
    fn new() -> io::Result<Self> {
        // The C library reserves some signals, which cannot be handled.
        let ignored = IGNORED
            .into_iter()
            .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
            .filter_map(|number| Some((number, signal(SignalKind::from_raw(number)).ok()?)));
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            ignored: ignored.collect(),
        })
    }

    async fn listen(self, shared: &Shared) {
        let Self { mut terminate, mut interrupt, mut hangup, mut ignored } = self;
        loop {
            let other = poll_fn(|context| {
                for (number, signal) in &mut ignored {
                    if signal.poll_recv(context).is_ready() {
                        return Poll::Ready(*number);
                    }
                }
                Poll::Pending
            });
            tokio::select! {
                _ = terminate.recv() => shared.note(Asked::Stop),
                _ = interrupt.recv() => shared.note(Asked::Stop),
                _ = hangup.recv() => shared.note(Asked::Reload),
                signal = other => {
                    log_limit!(info, signal, "a signal that means nothing here is ignored");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut pending: Pending) -> Vec<Asked> {
        std::iter::from_fn(|| pending.next()).collect()
    }

    #[test]
    fn a_reload_and_a_stop_at_once_are_one_stop() {
        let now = Instant::now();
        for order in [[Asked::Reload, Asked::Stop], [Asked::Stop, Asked::Reload]] {
            let mut pending = Pending::default();
            for asked in order {
                pending.note(asked, now);
            }
            assert_eq!(all(pending), [Asked::Stop]);
        }
    }

    #[test]
    fn reloads_that_nobody_has_begun_are_one() {
        let mut pending = Pending::default();
        for _ in 0..3 {
            pending.note(Asked::Reload, Instant::now());
        }
        assert_eq!(all(pending), [Asked::Reload]);
    }

    #[test]
    fn a_stop_that_is_sent_twice_is_one_and_a_later_one_another() {
        let now = Instant::now();
        let mut pending = Pending::default();
        pending.note(Asked::Stop, now);
        pending.note(Asked::Stop, now + SAME / 2);
        assert_eq!(pending.stops, 1);
        pending.note(Asked::Stop, now + Duration::from_secs(1));
        assert_eq!(all(pending), [Asked::Stop, Asked::Stop]);
    }

    #[test]
    fn stops_in_quick_succession_do_not_hide_each_other() {
        let now = Instant::now();
        let mut pending = Pending::default();
        for moment in 0..4 {
            pending.note(Asked::Stop, now + moment * (SAME / 2));
        }
        assert_eq!(all(pending), [Asked::Stop, Asked::Stop]);
    }
}
