//! The measurements: kinds of work, their cells, and the figures of each cell.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::load::frame::Task;

mod metric;
pub(crate) mod terminate;

pub(crate) use metric::*;
use terminate::Terminate;

/// A kind of work; one table and one chart each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Idle connections held: memory for each
    Idle,
    /// New connections: hello, short answer, close
    Conn,
    /// Request and response of one size on persistent connections
    Rr,
    /// The same at an equal rate for all
    Paced,
    /// Bulk upload, download and both at once
    Bulk,
    /// Complete TLS handshakes
    Tls,
    /// TLS terminated by the contestant: handshakes, requests, bulk data and memory
    Terminate,
    /// New connections with 1 to 100,000 routes configured
    Routes,
    /// Start with 1,000 and 100,000 names, and a reload with one more: time and memory
    Start,
    /// Connections with a server name without a route
    Miss,
    /// Cross-check of bulk with iperf3
    Iperf,
    /// Cross-check of requests with wrk over TLS against nginx
    Wrk,
    /// New connections for two minutes; only on request
    Hold,
}

/// The work of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Hello, short answer, close, with this number of concurrent connections.
    Connect { at_once: usize },
    /// The same with this number of routes, each of which is requested.
    Routed { routes: usize, at_once: usize },
    /// The start with this number of routes, and a reload with one more.
    Start { routes: usize },
    /// New connections with a name without a route.
    Refused { at_once: usize },
    /// Messages of `size` bytes and their answers.
    Request { size: u32, connections: usize },
    /// The same, with requests at `rate` per second over all connections. 0 before the rate is known.
    Paced { size: u32, connections: usize, rate: u32 },
    /// Blocks on this number of streams.
    Bulk { task: Task, streams: usize },
    /// TLS handshakes with this concurrency.
    Handshake { at_once: usize },
    /// TLS terminated by the contestant.
    Terminate(Terminate),
    /// Held connections.
    Idle { connections: usize },
    /// iperf3 with this number of streams.
    Iperf { down: bool, streams: usize },
    /// wrk with this number of connections.
    Wrk { connections: usize },
}

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// The name of the row, unique within its kind.
    pub name: String,
    /// The work.
    pub work: Work,
}

impl Cell {
    fn new(name: impl Into<String>, work: Work) -> Self {
        Self { name: name.into(), work }
    }

    /// The number of routes beyond those of all cells.
    pub(crate) fn extra_routes(&self) -> usize {
        match self.work {
            Work::Routed { routes, .. } | Work::Start { routes } => routes,
            _ => 0,
        }
    }
}

/// The extent of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Extent {
    /// All cells.
    Full,
    /// A few significant cells.
    Quick,
    /// Tiny cells that show that everything works. Their figures have no meaning.
    Smoke,
}

impl Kind {
    /// All kinds except those that only run on request.
    pub(crate) fn usual(extent: Extent) -> Vec<Self> {
        match extent {
            Extent::Full => vec![
                Self::Idle,
                Self::Conn,
                Self::Rr,
                Self::Paced,
                Self::Bulk,
                Self::Tls,
                Self::Terminate,
                Self::Routes,
                Self::Start,
                Self::Miss,
                Self::Iperf,
                Self::Wrk,
            ],
            Extent::Quick => vec![Self::Idle, Self::Conn, Self::Rr, Self::Bulk],
            Extent::Smoke => vec![
                Self::Idle,
                Self::Conn,
                Self::Rr,
                Self::Paced,
                Self::Bulk,
                Self::Tls,
                Self::Terminate,
                Self::Routes,
                Self::Start,
                Self::Miss,
                Self::Wrk,
            ],
        }
    }

    /// The id in options and files.
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Conn => "conn",
            Self::Rr => "rr",
            Self::Paced => "paced",
            Self::Bulk => "bulk",
            Self::Tls => "tls",
            Self::Terminate => "terminate",
            Self::Routes => "routes",
            Self::Start => "start",
            Self::Miss => "miss",
            Self::Iperf => "iperf",
            Self::Wrk => "wrk",
            Self::Hold => "hold",
        }
    }

    /// The heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Idle => "Idle connections held",
            Self::Conn => "New connections (hello, short answer, close)",
            Self::Rr => "Request/response on kept connections",
            Self::Paced => "Request/response at a given rate",
            Self::Bulk => "Bulk transfer",
            Self::Tls => "Complete TLS handshakes",
            Self::Terminate => "TLS that ends at the contestant, requests in clear behind it",
            Self::Routes => "New connections by number of routes",
            Self::Start => "Start and reload",
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
            Self::Rr => requests(extent)
                .iter()
                .flat_map(|&(size, counts)| counts.iter().map(move |&count| (size, count)))
                .map(|(size, connections)| {
                    Cell::new(requests_name(size, connections), Work::Request { size, connections })
                })
                .collect(),
            Self::Paced => {
                let all: &[(u32, usize)] = match extent {
                    Extent::Full => &[(64, 32), (1 << 10, 32), (1 << 10, 128)],
                    Extent::Quick => &[(1 << 10, 32)],
                    Extent::Smoke => &[(1 << 10, 4)],
                };
                all.iter()
                    .map(|&(size, connections)| {
                        let work = Work::Paced { size, connections, rate: 0 };
                        Cell::new(requests_name(size, connections), work)
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
            Self::Terminate => terminate::cells(extent),
            Self::Routes => {
                let all: &[usize] = if extent == Extent::Smoke { &[1000] } else { &[1, 1000, 100_000] };
                let at_once = if extent == Extent::Smoke { 4 } else { 32 };
                all.iter()
                    .map(|&routes| Cell::new(routes_name(routes), Work::Routed { routes, at_once }))
                    .collect()
            }
            Self::Start => {
                let all: &[usize] = if extent == Extent::Smoke { &[1000] } else { &[1000, 100_000] };
                all.iter().map(|&routes| Cell::new(routes_name(routes), Work::Start { routes })).collect()
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
            Self::Rr => &[REQUESTS, P50, P99, P999, CPU_OWN_REQ, CPU_IRQ_REQ, CPU_MACHINE_REQ],
            Self::Paced => &[P99, P50, P999, ACHIEVED, DELAY, CPU_OWN_REQ, CPU_IRQ_REQ, CPU_MACHINE_REQ],
            Self::Bulk => &[THROUGHPUT, CPU_OWN_GB, CPU_IRQ_GB, CPU_MACHINE_GB],
            Self::Tls => &[HANDSHAKES, P50, P99],
            Self::Terminate => &[
                TLS_HANDSHAKES,
                TLS_REQUESTS,
                THROUGHPUT,
                USER_MEMORY,
                KERNEL_MEMORY,
                KERNEL_MACHINE,
                P50,
                P99,
                CPU_OWN_SHAKE,
                CPU_IRQ_SHAKE,
                CPU_MACHINE_SHAKE,
                CPU_OWN_REQ,
                CPU_IRQ_REQ,
                CPU_MACHINE_REQ,
                CPU_OWN_GB,
                CPU_IRQ_GB,
                CPU_MACHINE_GB,
            ],
            Self::Routes => &[CONNECTIONS, START_UP, RESIDENT],
            Self::Start => &[RELOAD, START_UP, RESIDENT, RELOAD_PEAK, RESIDENT_RELOADED],
            Self::Miss => &[REJECTIONS, P50, P99],
            Self::Iperf => &[THROUGHPUT],
            Self::Wrk => &[REQUESTS],
            Self::Hold => &[CONNECTIONS, SLOWEST_SLICE, P50, P99],
        }
    }
}

/// Sizes of messages, each with its numbers of connections. With large messages few connections keep the machine
/// busy, and more would only wait.
fn requests(extent: Extent) -> &'static [(u32, &'static [usize])] {
    match extent {
        Extent::Full => &[
            (64, &[1, 32, 128, 256]),
            (1 << 10, &[1, 32, 128, 256]),
            (16 << 10, &[1, 32, 128]),
            (256 << 10, &[1, 32]),
        ],
        Extent::Quick => &[(1 << 10, &[32]), (16 << 10, &[32])],
        Extent::Smoke => &[(64, &[4]), (16 << 10, &[4]), (256 << 10, &[4])],
    }
}

fn requests_name(size: u32, connections: usize) -> String {
    format!("{} x {connections}", size_name(size))
}

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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ALL: [Kind; 13] = [
        Kind::Idle,
        Kind::Conn,
        Kind::Rr,
        Kind::Paced,
        Kind::Bulk,
        Kind::Tls,
        Kind::Terminate,
        Kind::Routes,
        Kind::Start,
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
        assert_eq!(Kind::Rr.cells(Extent::Full).len(), 13);
        assert_eq!(Kind::Paced.cells(Extent::Full).len(), 3);
        assert_eq!(Kind::Bulk.cells(Extent::Full).len(), 9);
        assert_eq!(Kind::Terminate.cells(Extent::Full).len(), 15);
        assert_eq!(Kind::Routes.cells(Extent::Full)[2].name, "100,000 routes");
        assert_eq!(Kind::Routes.cells(Extent::Full)[2].extra_routes(), 100_000);
    }
}
