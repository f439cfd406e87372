//! Signals, from the first moment of the process to its last.
//!
//! A thread of its own hears them, since the main thread cannot while it starts, reads a configuration or looks names up.
//! SIGHUP asks for a reload, SIGTERM and SIGINT ask for a stop; what comes meanwhile is remembered, each kind once. While
//! the process starts, a stop ends it at once. While it drains, only another stop counts. All other signals that would
//! end the process and that are no fault of its own (SIGUSR1 and the like) are noted and ignored; SIGQUIT still makes a core
//! dump.

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

/// Stops that come closer together are one: supervisors and wrappers send a signal to the process and to its group.
const SAME: Duration = Duration::from_millis(20);

/// How long the end of a start waits for the last lines of the log.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Numbers of signals that mean nothing here and whose default would end the process. SIGXFSZ comes when the file that
/// standard error is has grown to its limit.
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

/// What the process is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Read the configuration again.
    Reload,
    /// Accept nothing more and drain; once more: do not wait for the open connections.
    Stop,
}

/// What was asked for and has not been begun.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pending {
    /// Connections are accepted, or were.
    serving: bool,
    reload: bool,
    stops: u32,
    last_stop: Option<Instant>,
}

impl Pending {
    /// Notes a signal that came at this moment.
    fn note(&mut self, asked: Asked, now: Instant) {
        match asked {
            Asked::Reload => self.reload = true,
            Asked::Stop => {
                if self.last_stop.is_none_or(|last| now.duration_since(last) >= SAME) {
                    self.stops += 1;
                    // Only a stop that counts: signals in quick succession would otherwise hide one another for ever.
                    self.last_stop = Some(now);
                }
            }
        }
    }

    /// What is to be done next. A stop goes before a reload, which is then of no use.
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
            // With the lock held, so that the main thread begins to serve either before this or never.
            tracing::info!("stopped during start");
            let _ = log::flush(LAST_LINES);
            exit(0);
        }
        pending.note(asked, Instant::now());
        drop(pending);
        self.changed.notify_one();
    }
}

/// What signals ask of this process.
#[derive(Debug)]
pub struct Signals(Arc<Shared>);

impl Signals {
    /// From now on no signal ends the process, but a stop while it starts and what cannot be caught. To be called before
    /// anything that takes time.
    ///
    /// # Errors
    ///
    /// Where a thread, or what it waits with, cannot be had.
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

    /// The process accepts connections from now on: a stop drains.
    pub(super) fn serving(&self) {
        self.0.lock().serving = true;
    }

    /// Waits for what is asked next.
    pub(super) async fn next(&self) -> Asked {
        loop {
            if let Some(asked) = self.0.lock().next() {
                return asked;
            }
            self.0.changed.notified().await;
        }
    }
}

/// Leaves signals to the thread that hears them: this one, and those that it starts from now on, are never interrupted. The
/// kernel gives the verification of a program up (`EAGAIN`) when a signal comes to the thread that asks for it.
fn block() -> io::Result<()> {
    let heard = [libc::SIGHUP, libc::SIGTERM, libc::SIGINT];
    let all = heard.into_iter().chain(IGNORED).map(Number::try_from);
    all.collect::<nix::Result<SigSet>>()?.thread_block()?;
    Ok(())
}

/// Where tokio tells of signals.
struct Streams {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    ignored: Vec<(i32, Signal)>,
}

impl Streams {
    fn new() -> io::Result<Self> {
        // Those that the C library keeps for itself cannot be had.
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
