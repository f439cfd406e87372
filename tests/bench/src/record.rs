//! The record of a run: the JSON file, and the selections that tables, charts and comparisons share.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    contestants::Role,
    pace::Pace,
    stats::{Summary, ratios},
    work::{Better, Extent, Kind, Metric},
};

/// Changes whenever an older reader would misread a file.
pub(crate) const SCHEMA: u32 = 1;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// The start, in seconds since 1970.
    pub started_unix: u64,
    /// The duration in seconds.
    pub took_seconds: f64,
    /// False if it was interrupted.
    pub complete: bool,
    /// The machine of the run.
    pub machine: Machine,
    /// The settings of the run.
    pub settings: Settings,
    /// The contestants, present or missing, in the order of tables.
    pub contestants: Vec<Entrant>,
    /// All measurements, in order.
    pub samples: Vec<Sample>,
    /// The used data paths, for contestants that report them.
    pub paths: Vec<PathsTaken>,
    /// The given rates. Files of earlier versions have none.
    #[serde(default)]
    pub paces: Vec<Pace>,
}

/// Connections of one contestant, kind of work and round, by data path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PathsTaken {
    /// Kind of work.
    pub kind: Kind,
    /// The contestant's id.
    pub contestant: String,
    /// From 0.
    pub round: u32,
    /// Connections by the contestant's own name of the path, including those that check whether it serves.
    pub connections: BTreeMap<String, u64>,
}

/// The machine of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `uname -srvm`.
    pub kernel: String,
    /// Model name of the first processor.
    pub processor: String,
    /// Number of online processors.
    pub processors: usize,
    /// In bytes.
    pub memory: u64,
    /// The kernel's clock source.
    pub clock_source: String,
    /// One-minute load average before the run. An idle machine is near 0.
    pub load_average: f64,
    /// Settings of the namespaces, and host settings that affect the figures.
    pub sysctls: BTreeMap<String, String>,
    /// Versions of the cross-check tools.
    pub tools: BTreeMap<String, String>,
}

/// The settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The extent of the measurements.
    pub extent: Extent,
    /// The configured number of rounds.
    pub rounds: u32,
    /// The duration of load before each window, in seconds.
    pub warm_up_seconds: f64,
    /// The duration of the window, in seconds.
    pub window_seconds: f64,
    /// Threads or processes of each contestant.
    pub workers: usize,
    /// Client threads. The backend has the same number.
    pub load_threads: usize,
    /// Client threads for bulk work. `None` in records of versions without a difference.
    #[serde(default)]
    pub bulk_threads: Option<usize>,
    /// Client and backend namespaces.
    pub clients: u8,
    /// Client and backend namespaces.
    pub backends: u8,
    /// The seed of the order of contestants.
    pub seed: u64,
}

/// A contestant of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entrant {
    /// The id.
    pub id: String,
    /// The role.
    pub role: Role,
    /// The reported version. `None` if it did not take part.
    pub version: Option<String>,
    /// A description of its configuration.
    pub note: String,
    /// The reason for its absence.
    pub missing: Option<String>,
}

/// One cell, one contestant, one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Kind of work.
    pub kind: Kind,
    /// Cell within the kind.
    pub cell: String,
    /// The contestant's id.
    pub contestant: String,
    /// From 0.
    pub round: u32,
    /// Figures by metric key. Empty if void.
    pub metrics: BTreeMap<String, f64>,
    /// The reason for a void sample.
    pub void: Option<String>,
}

/// The result of one metric for one cell and contestant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Figure {
    /// Not measured: the metric does not apply to this contestant, or the run was interrupted.
    Absent,
    /// A fault in at least one round.
    Void(String),
    /// The figures of all rounds.
    Measured(Summary),
}

/// A ratio within rounds, then over rounds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ratio {
    /// The other contestant. For the best peer, the one that was best in most rounds.
    pub against: String,
    /// The ratios of all rounds. Above 1 is better for the contestant, for either direction of the metric.
    pub summary: Summary,
}

impl Record {
    /// Reads a file of [`Record::write`].
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a file that this benchmark wrote", path.display()))?;
        ensure!(
            record.schema == SCHEMA,
            "{} has schema {}, this program reads {SCHEMA}: use the version that wrote it",
            path.display(),
            record.schema
        );
        Ok(record)
    }

    /// Writes the record.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("turn the record into JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// Kinds with samples, in the order of their first measurement.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for sample in &self.samples {
            if !kinds.contains(&sample.kind) {
                kinds.push(sample.kind);
            }
        }
        kinds.sort();
        kinds
    }

    /// The given rate of a cell, if any.
    pub(crate) fn pace(&self, kind: Kind, cell: &str) -> Option<&Pace> {
        self.paces.iter().find(|pace| kind == Kind::Paced && pace.cell == cell)
    }

    /// Cells of a kind, in the order of measurement.
    pub(crate) fn cells(&self, kind: Kind) -> Vec<&str> {
        let mut cells = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.kind == kind) {
            if !cells.contains(&sample.cell.as_str()) {
                cells.push(sample.cell.as_str());
            }
        }
        cells
    }

    /// Cells of a kind with figures of this metric: cells of one kind may have different metrics. A cell without any
    /// figure belongs to the kind's first metric.
    pub(crate) fn rows(&self, kind: Kind, metric: Metric) -> Vec<&str> {
        let measured = |cell: &str, metric: Metric| {
            let figure = |entrant: &Entrant| self.figure(kind, cell, &entrant.id, metric);
            self.present().any(|entrant| matches!(figure(entrant), Figure::Measured(_)))
        };
        let first = kind.metrics().first().is_some_and(|first| *first == metric);
        let nothing = |cell: &str| kind.metrics().iter().all(|metric| !measured(cell, *metric));
        let mut cells = self.cells(kind);
        cells.retain(|cell| measured(cell, metric) || (first && nothing(cell)));
        cells
    }

    /// The contestants of a kind.
    pub(crate) fn entrants(&self, kind: Kind) -> impl Iterator<Item = &Entrant> {
        self.present().filter(move |entrant| {
            self.samples.iter().any(|sample| sample.kind == kind && sample.contestant == entrant.id)
        })
    }

    /// Connections of a contestant in all rounds of a kind, by data path. Empty if it does not report them.
    pub(crate) fn paths_taken(&self, kind: Kind, contestant: &str) -> BTreeMap<&str, u64> {
        let mut total: BTreeMap<&str, u64> = BTreeMap::new();
        let taken = self.paths.iter().filter(|taken| taken.kind == kind && taken.contestant == contestant);
        for (path, count) in taken.flat_map(|taken| &taken.connections) {
            *total.entry(path).or_default() += count;
        }
        total
    }

    /// The contestants that took part.
    pub(crate) fn present(&self) -> impl Iterator<Item = &Entrant> {
        self.contestants.iter().filter(|entrant| entrant.missing.is_none())
    }

    fn samples_of<'a>(
        &'a self,
        kind: Kind,
        cell: &'a str,
        contestant: &'a str,
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.kind == kind && sample.cell == cell && sample.contestant == contestant
        })
    }

    /// One metric of one cell and contestant over all rounds. A single void round voids it.
    pub(crate) fn figure(&self, kind: Kind, cell: &str, contestant: &str, metric: Metric) -> Figure {
        let mut values = Vec::new();
        for sample in self.samples_of(kind, cell, contestant) {
            if let Some(reason) = &sample.void {
                return Figure::Void(reason.clone());
            }
            values.extend(sample.metrics.get(metric.key));
        }
        Summary::of(&values).map_or(Figure::Absent, Figure::Measured)
    }

    /// The metric by round; `None` for rounds without it.
    fn by_round(&self, kind: Kind, cell: &str, contestant: &str, metric: Metric) -> Vec<Option<f64>> {
        let mut rounds = Vec::new();
        for sample in self.samples_of(kind, cell, contestant) {
            let round = sample.round as usize;
            rounds.resize(rounds.len().max(round + 1), None);
            rounds[round] = sample.metrics.get(metric.key).copied();
        }
        rounds
    }

    /// The ratio of `contestant` to `other`.
    pub(crate) fn ratio(
        &self,
        kind: Kind,
        cell: &str,
        contestant: &str,
        other: &str,
        metric: Metric,
    ) -> Option<Ratio> {
        for id in [contestant, other] {
            if !matches!(self.figure(kind, cell, id, metric), Figure::Measured(_)) {
                return None;
            }
        }
        let figures = self.by_round(kind, cell, contestant, metric);
        let divisors = self.by_round(kind, cell, other, metric);
        ratio_of(other.to_owned(), &figures, &divisors, metric.better)
    }

    /// The additional cost of `contestant` over `reference`, in the metric's unit: the differences of all rounds. May
    /// be negative through noise.
    pub(crate) fn added(
        &self,
        kind: Kind,
        cell: &str,
        contestant: &str,
        reference: &str,
        metric: Metric,
    ) -> Option<Summary> {
        for id in [contestant, reference] {
            if !matches!(self.figure(kind, cell, id, metric), Figure::Measured(_)) {
                return None;
            }
        }
        let figures = self.by_round(kind, cell, contestant, metric);
        let without = self.by_round(kind, cell, reference, metric);
        let differences: Vec<f64> =
            figures.iter().zip(&without).filter_map(|(with, without)| Some((*with)? - (*without)?)).collect();
        Summary::of(&differences)
    }

    /// The ratio of `contestant` to the best peer of each round.
    pub(crate) fn ratio_to_best_peer(
        &self,
        kind: Kind,
        cell: &str,
        contestant: &str,
        metric: Metric,
    ) -> Option<Ratio> {
        if !matches!(self.figure(kind, cell, contestant, metric), Figure::Measured(_)) {
            return None;
        }
        let peers: Vec<(&str, Vec<Option<f64>>)> = self
            .present()
            .filter(|entrant| entrant.role == Role::Peer && entrant.id != contestant)
            .filter(|entrant| matches!(self.figure(kind, cell, &entrant.id, metric), Figure::Measured(_)))
            .map(|entrant| (entrant.id.as_str(), self.by_round(kind, cell, &entrant.id, metric)))
            .collect();
        let figures = self.by_round(kind, cell, contestant, metric);
        let mut wins: BTreeMap<&str, usize> = BTreeMap::new();
        let divisors: Vec<Option<f64>> = (0..figures.len())
            .map(|round| {
                let candidates = peers.iter().filter_map(|(id, values)| Some((*id, (*values.get(round)?)?)));
                let (id, value) = match metric.better {
                    Better::Higher => candidates.max_by(|one, two| one.1.total_cmp(&two.1)),
                    Better::Lower => candidates.min_by(|one, two| one.1.total_cmp(&two.1)),
                }?;
                *wins.entry(id).or_default() += 1;
                Some(value)
            })
            .collect();
        let best = wins.into_iter().max_by_key(|(_, count)| *count).map(|(id, _)| id.to_owned())?;
        ratio_of(best, &figures, &divisors, metric.better)
    }
}

fn ratio_of(
    against: String,
    figures: &[Option<f64>],
    divisors: &[Option<f64>],
    better: Better,
) -> Option<Ratio> {
    let values = match better {
        Better::Higher => ratios(figures, divisors),
        Better::Lower => ratios(divisors, figures),
    };
    Some(Ratio { against, summary: Summary::of(&values)? })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::work::{CONNECTIONS, CPU_MACHINE_CONN, P99};

    /// Rounds of connection rates: (contestant, role, rates). A rate of 0 is void.
    pub(crate) fn record(entrants: &[(&str, Role, &[f64])]) -> Record {
        let samples = entrants
            .iter()
            .flat_map(|(id, _, rates)| {
                rates.iter().zip(0..).map(|(rate, round)| Sample {
                    kind: Kind::Conn,
                    cell: "32 at once".to_owned(),
                    contestant: (*id).to_owned(),
                    round,
                    metrics: [("rate", *rate), ("p99_us", 1e6 / rate)]
                        .into_iter()
                        .filter(|_| *rate > 0.0)
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                    void: (*rate == 0.0).then(|| "reset (1x)".to_owned()),
                })
            })
            .collect();
        Record {
            schema: SCHEMA,
            started_unix: 0,
            took_seconds: 1.0,
            complete: true,
            machine: Machine::default(),
            settings: Settings {
                extent: Extent::Full,
                rounds: 3,
                warm_up_seconds: 0.1,
                window_seconds: 1.0,
                workers: 2,
                load_threads: 1,
                bulk_threads: Some(2),
                clients: 1,
                backends: 1,
                seed: 1,
            },
            contestants: entrants
                .iter()
                .map(|(id, role, _)| Entrant {
                    id: (*id).to_owned(),
                    role: *role,
                    version: Some("1".to_owned()),
                    note: String::new(),
                    missing: None,
                })
                .collect(),
            samples,
            paths: Vec::new(),
            paces: Vec::new(),
        }
    }

    const CELL: &str = "32 at once";

    #[test]
    fn a_single_void_round_voids_the_figure() {
        let record = record(&[("haproxy-copy", Role::Peer, &[100.0, 0.0, 100.0])]);
        let figure = record.figure(Kind::Conn, CELL, "haproxy-copy", CONNECTIONS);
        assert_eq!(figure, Figure::Void("reset (1x)".to_owned()));
        assert_eq!(record.figure(Kind::Conn, CELL, "nginx", CONNECTIONS), Figure::Absent);
    }

    #[test]
    fn ratios_are_taken_within_rounds_before_the_median() {
        // The machine becomes three times faster from round to round, and the ratio does not change.
        let record = record(&[
            ("direct", Role::Reference, &[400.0, 1200.0, 3600.0]),
            ("snisplice-auto", Role::Own, &[200.0, 600.0, 1800.0]),
            ("nginx", Role::Peer, &[100.0, 300.0, 900.0]),
        ]);
        let ratio = record.ratio(Kind::Conn, CELL, "snisplice-auto", "direct", CONNECTIONS).unwrap();
        assert!((ratio.summary.median - 0.5).abs() < 1e-9 && ratio.summary.spread() < 1e-9);
        let ratio = record.ratio_to_best_peer(Kind::Conn, CELL, "snisplice-auto", CONNECTIONS).unwrap();
        assert_eq!(ratio.against, "nginx");
        assert!((ratio.summary.median - 2.0).abs() < 1e-9);
    }

    #[test]
    fn what_a_balancer_adds_is_taken_within_rounds() {
        // The machine becomes slower from round to round. So does the added cost, but far less.
        let mut record = record(&[
            ("direct", Role::Reference, &[1.0, 1.0, 1.0]),
            ("nginx", Role::Peer, &[1.0, 1.0, 1.0]),
            ("envoy", Role::Peer, &[1.0, 0.0, 1.0]),
        ]);
        let costs = [[100.0, 200.0, 300.0], [150.0, 260.0, 340.0], [90.0, 0.0, 310.0]];
        for (samples, costs) in record.samples.chunks_mut(3).zip(costs) {
            for (sample, cost) in samples.iter_mut().zip(costs) {
                sample.metrics.insert(CPU_MACHINE_CONN.key.to_owned(), cost);
            }
        }
        let added = |id| record.added(Kind::Conn, CELL, id, "direct", CPU_MACHINE_CONN);
        let nginx = added("nginx").unwrap();
        assert!((nginx.median - 50.0).abs() < 1e-9, "of 50, 60 and 40: {nginx:?}");
        assert!((nginx.min - 40.0).abs() < 1e-9 && (nginx.max - 60.0).abs() < 1e-9, "{nginx:?}");
        assert_eq!(added("envoy"), None, "a void round voids the difference");
        assert_eq!(added("haproxy-copy"), None);
        assert_eq!(record.added(Kind::Conn, CELL, "nginx", "nobody", CPU_MACHINE_CONN), None);
    }

    #[test]
    fn the_best_peer_is_chosen_round_by_round() {
        let record = record(&[
            ("snisplice-auto", Role::Own, &[100.0, 100.0, 100.0]),
            ("nginx", Role::Peer, &[50.0, 200.0, 200.0]),
            ("envoy", Role::Peer, &[100.0, 10.0, 10.0]),
        ]);
        let ratio = record.ratio_to_best_peer(Kind::Conn, CELL, "snisplice-auto", CONNECTIONS).unwrap();
        assert_eq!(ratio.against, "nginx");
        assert!((ratio.summary.max - 1.0).abs() < 1e-9 && (ratio.summary.min - 0.5).abs() < 1e-9);
    }

    #[test]
    fn above_one_is_better_also_where_less_is_better() {
        let record = record(&[("snisplice-auto", Role::Own, &[200.0]), ("nginx", Role::Peer, &[100.0])]);
        let ratio = record.ratio_to_best_peer(Kind::Conn, CELL, "snisplice-auto", P99).unwrap();
        assert!((ratio.summary.median - 2.0).abs() < 1e-9, "half the latency is twice as good");
    }

    #[test]
    fn a_void_peer_is_nobodys_best() {
        let record = record(&[
            ("snisplice-auto", Role::Own, &[100.0, 100.0]),
            ("nginx", Role::Peer, &[0.0, 900.0]),
            ("envoy", Role::Peer, &[50.0, 50.0]),
        ]);
        let ratio = record.ratio_to_best_peer(Kind::Conn, CELL, "snisplice-auto", CONNECTIONS).unwrap();
        assert_eq!(ratio.against, "envoy");
    }

    #[test]
    fn a_metric_has_the_rows_that_were_measured_with_it() {
        let mut record = record(&[("direct", Role::Reference, &[1.0]), ("nginx", Role::Peer, &[0.0])]);
        assert_eq!(record.rows(Kind::Conn, CONNECTIONS), [CELL]);
        assert!(record.rows(Kind::Conn, CPU_MACHINE_CONN).is_empty());
        record.samples.remove(0);
        assert_eq!(record.rows(Kind::Conn, CONNECTIONS), [CELL], "a void cell is shown once");
        assert!(record.rows(Kind::Conn, P99).is_empty());
        let ids: Vec<&str> = record.entrants(Kind::Conn).map(|entrant| entrant.id.as_str()).collect();
        assert_eq!(ids, ["nginx"]);
    }

    #[test]
    fn a_record_survives_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        let record = record(&[("direct", Role::Reference, &[1.0, 2.5])]);
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        // A record of a version without paces.
        let mut old = serde_json::to_value(&record).unwrap();
        old.as_object_mut().unwrap().remove("paces");
        fs::write(&path, old.to_string()).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        fs::write(&path, "{}").unwrap();
        assert!(Record::read(&path).is_err());
    }
}
