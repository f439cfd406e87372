//! The log: lines on standard error that can stop, delay or end nothing else.
//!
//! A line is put into a bounded queue, and one thread writes the queue out. Where standard error takes nothing (its reader
//! hangs, its disk is full, its pipe is closed), the queue fills and further lines are dropped; the next line that can be
//! written is followed by one that tells how many were. `tracing-subscriber` alone would write in the thread that logs,
//! wait there, and panic when both the line and its complaint about the line cannot be written.
//!
//! Lines that others can cause at will are limited by [`log_limit`].

use std::{
    io::IsTerminal as _,
    panic::{self, PanicHookInfo},
    sync::OnceLock,
    thread,
    time::Duration,
};

use clap::ValueEnum;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::counter::ConstCounter,
};
use tracing_subscriber::EnvFilter;

pub(crate) use self::limit::log_limit;
pub use self::limit::{Budget, Limit};
use self::writer::Writer;

mod limit;
pub mod line_file;
mod queue;
mod writer;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// The writer of this process, once [`init`] has started it.
static WRITER: OnceLock<Writer> = OnceLock::new();

/// Sends everything that is logged from now on to standard error, through a thread of its own, and panics as well.
///
/// # Errors
///
/// Where the filter is none, the thread cannot be started, or the process logs already.
pub fn init(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // The libraries of HTTP warn of what any client can cause, without a limit. A filter that names them still shows it.
    let mut directives = EnvFilter::try_new(filter)?;
    for library in ["h2", "hyper"] {
        if !filter.contains(library) {
            directives = directives.add_directive(format!("{library}=error").parse()?);
        }
    }
    let terminal = std::io::stderr().is_terminal();
    let writer = Writer::start(std::io::stderr())?;
    let writer = WRITER.get_or_init(|| writer);
    let log = tracing_subscriber::fmt()
        .with_env_filter(directives)
        // Its own complaints go to standard error by a macro that panics.
        .log_internal_errors(false)
        .with_writer(move || writer.line());
    let started = match format {
        LogFormat::Text => log.with_ansi(terminal).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot log: {error}"))?;
    panic::set_hook(Box::new(report_panic));
    Ok(())
}

/// Waits until everything that was logged is written, at most for `limit`. False if that was too short.
#[must_use]
pub fn flush(limit: Duration) -> bool {
    WRITER.get().is_none_or(|writer| writer.flush(limit))
}

/// Says something on standard error that is no log line, such as why the process ends. Lost where it cannot be written.
pub fn say(text: &str) {
    use std::io::Write as _;
    match WRITER.get() {
        Some(writer) => writer.put(text.as_bytes()),
        // Nothing serves yet that could be held up.
        None => drop(std::io::stderr().write_all(text.as_bytes())),
    }
}

/// The standard hook would write to standard error itself, and wait there.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("of a kind that has no text");
    let place = panic.location().map(ToString::to_string);
    // What a client can cause once, it can cause again.
    log_limit!(error, thread = thread.name(), place, "panic, which is a fault of this program: {message}");
}

/// How many lines were not written, at each scrape.
#[derive(Debug)]
pub struct Counters;

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let lost = WRITER.get().map_or(0, Writer::lost);
        let totals = [
            ("log_lines_lost", "Log lines dropped because standard error did not take them", lost),
            ("log_lines_limited", "Log lines left out because many of their kind came", limit::left_out()),
        ];
        for (name, help, value) in totals {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
