//! The log: lines on standard error that cannot stop, delay or end any other function.
//!
//! Log calls put lines into a bounded queue, and one thread writes the queue. If standard error accepts nothing (its
//! reader hangs, its disk is full, its pipe is closed), the queue fills and further lines are dropped. The next
//! written line is followed by one with their number. `tracing-subscriber` alone would write in the calling thread
//! and block there. It would panic if neither the line nor the error about the line can be written.
//!
//! [`log_limit`] limits lines that clients or other processes can repeat at will.

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

/// The format of log lines.
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

/// Sends all log lines and panics from now on to standard error, through a thread of its own.
///
/// # Errors
///
/// Returns an error if the filter is invalid, the thread cannot be started, or the process already logs.
pub fn init(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // The HTTP libraries log warnings that any client can cause, without a limit. A filter that names these libraries
    // still shows them.
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
        // `tracing-subscriber` prints its own errors to standard error by a macro that panics.
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

/// Waits until all lines are written, for at most `limit`. Returns false if the time was too short.
#[must_use]
pub fn flush(limit: Duration) -> bool {
    WRITER.get().is_none_or(|writer| writer.flush(limit))
}

/// Prints a text to standard error that is no log line, such as the reason of the process's end. The text is lost if
/// it cannot be written.
pub fn say(text: &str) {
    use std::io::Write as _;
    match WRITER.get() {
        Some(writer) => writer.put(text.as_bytes()),
        // The process does not serve yet, so a blocking write is harmless.
        None => drop(std::io::stderr().write_all(text.as_bytes())),
    }
}

/// The standard hook would write to standard error itself, and block there.
fn report_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("of a kind that has no text");
    let place = panic.location().map(ToString::to_string);
    // A client that can cause a panic once can repeat it.
    log_limit!(error, thread = thread.name(), place, "panic, which is a fault of this program: {message}");
}

/// The number of dropped lines, read at each scrape.
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
