//! Passes the log of the eBPF programs (aya-log) to the daemon's log.
//!
//! The level is fixed when an object is loaded. It is then a constant for the verifier, which removes the code of all other
//! events.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use clap::ValueEnum;
use log::{Level, Log, Metadata, Record};

use super::{
    events::{Drain, DrainThread},
    load::LoadError,
};
use crate::log::Budget;

/// The level of the eBPF programs' log: events of this level and of more severe ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum EbpfLog {
    /// No events, at no cost.
    #[default]
    Off,
    /// A connection is lost.
    Error,
    /// A redirection or translation has failed, or a budget is exceeded.
    Warn,
    /// A reset is made for a flow, or a receiver does not keep up.
    Info,
}

/// The levels as the programs compare them, by [`EbpfLog`].
static LEVELS: [u8; 4] = [0, 1, 2, 3];

/// The level of the objects that this process loads from now on, as an index of [`LEVELS`].
static LEVEL: AtomicUsize = AtomicUsize::new(0);

/// The ring that the programs log into.
const RING: &str = "AYA_LOGS";

/// Lines of one level in a minute: the traffic of one client can cause an event for each packet.
const LINES: u32 = 60;

/// A budget for each level, so that frequent events do not hide a more severe one.
static BUDGETS: [Mutex<Budget>; 3] = [const { Mutex::new(Budget::new(LINES)) }; 3];

/// Sets the level of the objects that this process loads from now on.
pub fn set_level(level: EbpfLog) {
    LEVEL.store(level as usize, Relaxed);
}

/// Fixes the level of an object that is about to be loaded.
pub(super) fn apply(loader: &mut EbpfLoader<'_>) {
    let level = &LEVELS[LEVEL.load(Relaxed)];
    loader.override_global(aya_log::LEVEL, level, true);
    if *level == 0 {
        // The smallest size that the kernel accepts: one page.
        loader.map_max_entries(RING, u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX));
    }
}

/// Starts the thread that reads the programs' log. `None` if the log is off.
pub(super) fn reader(ebpf: &mut Ebpf) -> Result<Option<DrainThread>, LoadError> {
    if LEVEL.load(Relaxed) == EbpfLog::Off as usize {
        return Ok(None);
    }
    let logger = EbpfLogger::init_with_logger(ebpf, ToTracing).map_err(|_| LoadError::Missing(RING))?;
    DrainThread::start("ebpf-log", Records(logger)).map(Some).map_err(LoadError::Listen)
}

struct Records(EbpfLogger<ToTracing>);

impl AsFd for Records {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drain for Records {
    fn drain(&mut self) {
        self.0.flush();
    }
}

/// Logs a record as a line of the daemon's log, within the budget of its level.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let budget = match record.level() {
            Level::Error => &BUDGETS[0],
            Level::Warn => &BUDGETS[1],
            _ => &BUDGETS[2],
        };
        let admitted = budget.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        let Some(suppressed) = admitted else { return };
        let suppressed = (suppressed > 0).then_some(suppressed);
        let text = unmapped(&record.args().to_string());
        let (message, addresses) = text.split_once(": peer ").unwrap_or((&text, ""));
        let (peer, balancer) = addresses.split_once(" balancer ").unwrap_or_default();
        match record.level() {
            Level::Error => {
                tracing::error!(target: "snisplice::ebpf", suppressed, peer, balancer, "{message}");
            }
            Level::Warn => tracing::warn!(target: "snisplice::ebpf", suppressed, peer, balancer, "{message}"),
            _ => tracing::info!(target: "snisplice::ebpf", suppressed, peer, balancer, "{message}"),
        }
    }

    fn flush(&self) {}
}

/// Shows IPv4-mapped IPv6 addresses as IPv4 addresses.
fn unmapped(text: &str) -> String {
    const MAPPED: &str = "[::ffff:";
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, mapped)) = rest.split_once(MAPPED) {
        plain.push_str(before);
        let (address, after) = mapped.split_once(']').unwrap_or((mapped, ""));
        plain.push_str(address);
        rest = after;
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        assert_eq!(
            unmapped("torn: peer [::ffff:10.0.0.1]:443 balancer [::ffff:10.0.0.2]:5"),
            "torn: peer 10.0.0.1:443 balancer 10.0.0.2:5"
        );
        assert_eq!(unmapped("torn: peer [fd00::1]:443"), "torn: peer [fd00::1]:443");
    }
}
