//! What is measured: kinds of work, their cells, and the figures that each cell yields.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::load::frame::Task;

/// A kind of work; one table and one chart each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Idle connections held: memory for each
    Idle,
    /// New connections: hello, short answer, close
    Conn,
    /// Request and response of one size on kept connections
    Rr,
    /// Bulk upload, download and both at once
    Bulk,
    /// Complete TLS handshakes
    Tls,
    /// New connections with 1 to 100,000 routes configured
    Routes,
    /// Connections with a server name that no route serves
    Miss,
    /// Cross-check of bulk with iperf3
    Iperf,
    /// Cross-check of requests with wrk over TLS against nginx
    Wrk,
    /// New connections for two minutes; only when asked for
    Hold,
}

/// What is done in one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Hello, short answer, close; so many at once.
    Connect { at_once: usize },
    /// The same with so many routes, any of which is asked for.
    Routed { routes: usize, at_once: usize },
    /// The same with a name that nobody serves.
    Refused { at_once: usize },
    /// Messages of `size` bytes there and back.
    Request { size: u32, connections: usize },
    /// Blocks on so many streams.
    Bulk { task: Task, streams: usize },
    /// TLS handshakes, so many at once.
    Handshake { at_once: usize },
    /// Held connections.
    Idle { connections: usize },
    /// iperf3 with so many streams.
    Iperf { down: bool, streams: usize },
    /// wrk with so many connections.
    Wrk { connections: usize },
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// What the row is called, unique within its kind.
    pub name: String,
    /// What is done.
    pub work: Work,
}

impl Cell {
    fn new(name: impl Into<String>, work: Work) -> Self {
        Self { name: name.into(), work }
    }

    /// How many routes the balancer has to know beyond those all cells use.
    pub(crate) fn extra_routes(&self) -> usize {
        match self.work {
            Work::Routed { routes, .. } => routes,
            _ => 0,
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Extent {
    /// Everything.
    Full,
    /// A few telling cells.
    Quick,
    /// Tiny cells that show that everything works; no figures to quote.
    Smoke,
}

impl Kind {
    /// All but those that run only when asked for.
    pub(crate) fn usual(extent: Extent) -> Vec<Self> {
        match extent {
            Extent::Full => vec![
                Self::Idle,
                Self::Conn,
                Self::Rr,
                Self::Bulk,
                Self::Tls,
                Self::Routes,
                Self::Miss,
                Self::Iperf,
                Self::Wrk,
            ],
            Extent::Quick => vec![Self::Idle, Self::Conn, Self::Rr, Self::Bulk],
            Extent::Smoke => vec![
                Self::Idle,
                Self::Conn,
                Self::Rr,
                Self::Bulk,
                Self::Tls,
                Self::Routes,
                Self::Miss,
                Self::Wrk,
            ],
        }
    }

    /// For options and files.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Conn => "conn",
            Self::Rr => "rr",
            Self::Bulk => "bulk",
            Self::Tls => "tls",
            Self::Routes => "routes",
            Self::Miss => "miss",
            Self::Iperf => "iperf",
            Self::Wrk => "wrk",
            Self::Hold => "hold",
        }
    }

    /// A heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Idle => "Idle connections held",
            Self::Conn => "New connections (hello, short answer, close)",
            Self::Rr => "Request/response on kept connections",
            Self::Bulk => "Bulk transfer",
            Self::Tls => "Complete TLS handshakes",
            Self::Routes => "New connections by number of routes",
            Self::Miss => "Rejection of unknown server names",
            Self::Iperf => "Cross-check: iperf3",
            Self::Wrk => "Cross-check: wrk over TLS against nginx",
            Self::Hold => "New connections for two minutes",
        }
    }

    /// The rows.
    pub(crate) fn cells(self, extent: Extent) -> Vec<Cell> {
        match self {
            Self::Idle => {
                let connections = match extent {
                    Extent::Full => 4000,
                    Extent::Quick => 1000,
                    Extent::Smoke => 50,
                };
                vec![Cell::new(format!("{connections} idle"), Work::Idle { connections })]
            }
            Self::Conn => {
                let all: &[usize] = match extent {
                    Extent::Full => &[1, 32, 256],
                    Extent::Quick => &[32],
                    Extent::Smoke => &[4],
                };
                all.iter()
                    .map(|&at_once| Cell::new(format!("{at_once} at once"), Work::Connect { at_once }))
                    .collect()
            }
            Self::Rr => {
                let (sizes, counts): (&[u32], &[usize]) = match extent {
                    Extent::Full => (&[64, 1 << 10, 16 << 10, 256 << 10], &[1, 32, 256]),
                    Extent::Quick => (&[1 << 10, 16 << 10], &[32]),
                    Extent::Smoke => (&[64, 16 << 10, 256 << 10], &[4]),
                };
                let pairs = sizes.iter().flat_map(|&size| counts.iter().map(move |&count| (size, count)));
                pairs
                    .map(|(size, connections)| {
                        let name = format!("{} x {connections}", size_name(size));
                        Cell::new(name, Work::Request { size, connections })
                    })
                    .collect()
            }
            Self::Bulk => {
                let (tasks, counts): (&[Task], &[usize]) = match extent {
                    Extent::Full => (&[Task::Upload, Task::Download, Task::Both], &[1, 8, 32]),
                    Extent::Quick => (&[Task::Upload, Task::Download], &[8]),
                    Extent::Smoke => (&[Task::Upload, Task::Download, Task::Both], &[2]),
                };
                let pairs = tasks.iter().flat_map(|&task| counts.iter().map(move |&count| (task, count)));
                pairs
                    .map(|(task, streams)| {
                        let way = match task {
                            Task::Upload => "up",
                            Task::Download => "down",
                            _ => "both",
                        };
                        Cell::new(format!("{way} x {streams}"), Work::Bulk { task, streams })
                    })
                    .collect()
            }
            Self::Tls => {
                let at_once = if extent == Extent::Smoke { 4 } else { 32 };
                vec![Cell::new(format!("{at_once} at once"), Work::Handshake { at_once })]
            }
            Self::Routes => {
                let all: &[usize] = if extent == Extent::Smoke { &[1000] } else { &[1, 1000, 100_000] };
                let at_once = if extent == Extent::Smoke { 4 } else { 32 };
                all.iter()
                    .map(|&routes| Cell::new(routes_name(routes), Work::Routed { routes, at_once }))
                    .collect()
            }
            Self::Miss => {
                let at_once = if extent == Extent::Smoke { 4 } else { 32 };
                vec![Cell::new(format!("{at_once} at once"), Work::Refused { at_once })]
            }
            Self::Iperf => [("up x 8", false), ("down x 8", true)]
                .map(|(name, down)| Cell::new(name, Work::Iperf { down, streams: 8 }))
                .into(),
            Self::Wrk => {
                let connections = if extent == Extent::Smoke { 4 } else { 32 };
                vec![Cell::new(format!("1 KB x {connections}"), Work::Wrk { connections })]
            }
            Self::Hold => vec![Cell::new("32 at once", Work::Connect { at_once: 32 })],
        }
    }

    /// The figures of this kind's cells, the most important one first.
    pub(crate) fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Idle => &[USER_MEMORY, KERNEL_MEMORY, KERNEL_MACHINE],
            Self::Conn => &[CONNECTIONS, P50, P99, CPU_OWN_CONN, CPU_IRQ_CONN, CPU_MACHINE_CONN],
            Self::Rr => &[REQUESTS, P50, P99, P999],
            Self::Bulk => &[THROUGHPUT, CPU_OWN_GB, CPU_IRQ_GB, CPU_MACHINE_GB],
            Self::Tls => &[HANDSHAKES, P50, P99],
            Self::Routes => &[CONNECTIONS, START_UP, RESIDENT],
            Self::Miss => &[REJECTIONS, P50, P99],
            Self::Iperf => &[THROUGHPUT],
            Self::Wrk => &[REQUESTS],
            Self::Hold => &[CONNECTIONS, SLOWEST_SLICE, P50, P99],
        }
    }
}

/// Which way a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// How a figure is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A count in a second.
    PerSecond,
    /// Payload bits delivered in a second, in units of 10^9.
    Gigabits,
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
    /// Bytes.
    Bytes,
}

impl Unit {
    /// With three significant digits.
    pub(crate) fn format(self, value: f64) -> String {
        match self {
            Self::PerSecond => scaled(value, 1000.0, ["", "k", "M"]),
            Self::Gigabits => digits(value),
            Self::Micros => scaled(value, 1000.0, [" us", " ms", " s"]),
            Self::Millis => scaled(value * 1000.0, 1000.0, [" us", " ms", " s"]),
            Self::Bytes => scaled(value, 1024.0, [" B", " KiB", " MiB"]),
        }
    }
}

/// One figure of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metric {
    /// For files.
    pub key: &'static str,
    /// For tables.
    pub title: &'static str,
    /// How it is written.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// Whether ratios of it are reported.
    pub compared: bool,
}

const fn metric(
    key: &'static str,
    title: &'static str,
    unit: Unit,
    better: Better,
    compared: bool,
) -> Metric {
    Metric { key, title, unit, better, compared }
}

/// New connections in a second.
pub(crate) const CONNECTIONS: Metric = metric("rate", "connections/s", Unit::PerSecond, Better::Higher, true);
/// The slowest of the parts that a long window is cut into.
pub(crate) const SLOWEST_SLICE: Metric =
    metric("slowest_slice", "slowest 10 s, connections/s", Unit::PerSecond, Better::Higher, false);
/// Answered requests in a second.
pub(crate) const REQUESTS: Metric = metric("rate", "requests/s", Unit::PerSecond, Better::Higher, true);
/// Complete handshakes in a second.
pub(crate) const HANDSHAKES: Metric = metric("rate", "handshakes/s", Unit::PerSecond, Better::Higher, true);
/// Refused connections in a second.
pub(crate) const REJECTIONS: Metric = metric("rate", "rejections/s", Unit::PerSecond, Better::Higher, true);
/// Payload received, both directions together.
pub(crate) const THROUGHPUT: Metric = metric("gbps", "Gb/s", Unit::Gigabits, Better::Higher, true);
/// Half of all were faster.
pub(crate) const P50: Metric = metric("p50_us", "p50 latency", Unit::Micros, Better::Lower, false);
/// 99 of 100 were faster.
pub(crate) const P99: Metric = metric("p99_us", "p99 latency", Unit::Micros, Better::Lower, true);
/// 999 of 1,000 were faster.
pub(crate) const P999: Metric = metric("p999_us", "p99.9 latency", Unit::Micros, Better::Lower, false);
/// Of the contestant's control group.
pub(crate) const CPU_OWN_CONN: Metric =
    metric("cpu_own_ms_per_1000", "CPU of its own per 1,000 connections", Unit::Millis, Better::Lower, false);
/// Interrupts of the whole machine.
pub(crate) const CPU_IRQ_CONN: Metric =
    metric("cpu_interrupts_ms_per_1000", "softirq per 1,000 connections", Unit::Millis, Better::Lower, false);
/// Everything, the load included.
pub(crate) const CPU_MACHINE_CONN: Metric = metric(
    "cpu_machine_ms_per_1000",
    "whole machine's CPU per 1,000 connections",
    Unit::Millis,
    Better::Lower,
    true,
);
/// Of the contestant's control group.
pub(crate) const CPU_OWN_GB: Metric =
    metric("cpu_own_ms_per_gb", "CPU of its own per GB", Unit::Millis, Better::Lower, false);
/// Interrupts of the whole machine.
pub(crate) const CPU_IRQ_GB: Metric =
    metric("cpu_interrupts_ms_per_gb", "softirq per GB", Unit::Millis, Better::Lower, false);
/// Everything, the load included.
pub(crate) const CPU_MACHINE_GB: Metric =
    metric("cpu_machine_ms_per_gb", "whole machine's CPU per GB", Unit::Millis, Better::Lower, true);
/// Growth of the memory that the processes have written to, for each connection.
pub(crate) const USER_MEMORY: Metric =
    metric("user_bytes", "userspace per connection", Unit::Bytes, Better::Lower, true);
/// Growth of the control group's kernel memory for each connection.
pub(crate) const KERNEL_MEMORY: Metric = metric(
    "kernel_group_bytes",
    "kernel per connection, its control group",
    Unit::Bytes,
    Better::Lower,
    false,
);
/// Growth of the machine's socket memory for each connection, client and backend included.
pub(crate) const KERNEL_MACHINE: Metric =
    metric("kernel_machine_bytes", "kernel per connection, whole machine", Unit::Bytes, Better::Lower, true);
/// From start to the first answer through the balancer.
pub(crate) const START_UP: Metric =
    metric("start_ms", "from start to first answer", Unit::Millis, Better::Lower, false);
/// Memory that the processes have written to after start.
pub(crate) const RESIDENT: Metric =
    metric("resident_bytes", "memory after start", Unit::Bytes, Better::Lower, false);

fn size_name(bytes: u32) -> String {
    if bytes >= 1024 { format!("{} KB", bytes / 1024) } else { format!("{bytes} B") }
}

fn routes_name(count: usize) -> String {
    if count == 1 { "1 route".to_owned() } else { format!("{} routes", thousands(count)) }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn scaled(value: f64, step: f64, units: [&str; 3]) -> String {
    let mut value = value;
    let mut unit = 0;
    while value.abs() >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    format!("{}{}", digits(value), units[unit])
}

/// Three significant digits, and never a digit that was not measured.
pub(crate) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ALL: [Kind; 10] = [
        Kind::Idle,
        Kind::Conn,
        Kind::Rr,
        Kind::Bulk,
        Kind::Tls,
        Kind::Routes,
        Kind::Miss,
        Kind::Iperf,
        Kind::Wrk,
        Kind::Hold,
    ];

    #[test]
    fn cell_names_and_metric_keys_are_unique_within_a_kind() {
        for kind in ALL {
            for extent in [Extent::Full, Extent::Quick, Extent::Smoke] {
                let cells = kind.cells(extent);
                let names: HashSet<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
                assert_eq!(names.len(), cells.len(), "{kind:?} {extent:?}");
            }
            let keys: HashSet<&str> = kind.metrics().iter().map(|metric| metric.key).collect();
            assert_eq!(keys.len(), kind.metrics().len());
            assert!(kind.metrics()[0].compared, "{kind:?}: the first metric is the one that is compared");
        }
    }

    #[test]
    fn the_full_extent_has_every_combination() {
        assert_eq!(Kind::Rr.cells(Extent::Full).len(), 12);
        assert_eq!(Kind::Bulk.cells(Extent::Full).len(), 9);
        assert_eq!(Kind::Routes.cells(Extent::Full)[2].name, "100,000 routes");
        assert_eq!(Kind::Routes.cells(Extent::Full)[2].extra_routes(), 100_000);
    }

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        assert_eq!(Unit::PerSecond.format(84_123.0), "84.1k");
        assert_eq!(Unit::PerSecond.format(999.4), "999");
        assert_eq!(Unit::Gigabits.format(9.3), "9.30");
        assert_eq!(Unit::Gigabits.format(42.06), "42.1");
        assert_eq!(Unit::Micros.format(4204.0), "4.20 ms");
        assert_eq!(Unit::Millis.format(0.5), "500 us");
        assert_eq!(Unit::Bytes.format(112.0), "112 B");
        assert_eq!(Unit::Bytes.format(15_431.0), "15.1 KiB");
        assert_eq!(digits(99.96), "100");
    }
}
