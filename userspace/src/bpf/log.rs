//! The log of the eBPF programs (aya-log), passed on to the daemon's.
//!
//! The level is fixed when an object is loaded. It is constant for the verifier then, which leaves out what is not logged.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use clap::ValueEnum;
use log::{Level, Log, Metadata, Record};

use super::{
    events::{Drain, DrainThread},
    load::LoadError,
};

/// What the eBPF programs log: events of this level and worse.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum EbpfLog {
    /// Nothing, at no cost.
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

/// Sets what is logged by the objects that this process loads from now on.
pub fn set_level(level: EbpfLog) {
    LEVEL.store(level as usize, Relaxed);
}

/// Fixes the level of what is about to be loaded.
pub(super) fn apply(loader: &mut EbpfLoader<'_>) {
    let level = &LEVELS[LEVEL.load(Relaxed)];
    loader.override_global(aya_log::LEVEL, level, true);
    if *level == 0 {
        // The least that the kernel takes: one page.
        loader.map_max_entries(RING, u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX));
    }
}

/// Reads what the programs log for as long as it lives; nothing where they log nothing.
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

/// Logs a record as a line of the daemon's own.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = unmapped(&record.args().to_string());
        let (message, addresses) = text.split_once(": peer ").unwrap_or((&text, ""));
        let (peer, balancer) = addresses.split_once(" balancer ").unwrap_or_default();
        match record.level() {
            Level::Error => tracing::error!(target: "snisplice::ebpf", peer, balancer, "{message}"),
            Level::Warn => tracing::warn!(target: "snisplice::ebpf", peer, balancer, "{message}"),
            _ => tracing::info!(target: "snisplice::ebpf", peer, balancer, "{message}"),
        }
    }

    fn flush(&self) {}
}

/// Shows IPv4 addresses that are mapped into IPv6 as what they are.
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
