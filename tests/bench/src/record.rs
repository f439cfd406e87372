//! What a run leaves behind: the JSON file, and the selections that tables, charts and comparisons share.

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
    /// Seconds since 1970 when it began.
    pub started_unix: u64,
    /// Seconds it took.
    pub took_seconds: f64,
    /// False if it was interrupted.
    pub complete: bool,
    /// Where it ran.
    pub machine: Machine,
    /// How it ran.
    pub settings: Settings,
    /// Who took part and who could not, in the order of tables.
    pub contestants: Vec<Entrant>,
    /// Everything that was measured, in the order it was.
    pub samples: Vec<Sample>,
    /// Which data paths were really taken, by those who can tell.
    pub paths: Vec<PathsTaken>,
    /// What was asked for where the rate is given; files of earlier versions have none.
    #[serde(default)]
    pub paces: Vec<Pace>,
}

/// Connections of one contestant, kind of work and round, by the data path they went through.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PathsTaken {
    /// Kind of work.
    pub kind: Kind,
    /// Contestant's id.
    pub contestant: String,
    /// From 0.
    pub round: u32,
    /// Connections by the contestant's own name of the path. Those made to see whether it serves are included.
    pub connections: BTreeMap<String, u64>,
}

/// Where a run took place.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `uname -srvm`.
    pub kernel: String,
    /// Model name of the first processor.
    pub processor: String,
    /// Processors that are online.
    pub processors: usize,
    /// Bytes.
    pub memory: u64,
    /// What the kernel takes the time from.
    pub clock_source: String,
    /// One-minute load average before the run; a machine at rest is near 0.
    pub load_average: f64,
    /// Settings of the namespaces, and some of the host that bear on the figures.
    pub sysctls: BTreeMap<String, String>,
    /// Versions of the cross-check tools.
    pub tools: BTreeMap<String, String>,
}

/// How a run was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// How much was measured.
    pub extent: Extent,
    /// Rounds asked for.
    pub rounds: u32,
    /// Load before each window, in seconds.
    pub warm_up_seconds: f64,
    /// Load that counts, in seconds.
    pub window_seconds: f64,
    /// Threads or processes of each contestant.
    pub workers: usize,
    /// Client threads; the backend has as many.
    pub load_threads: usize,
    /// The same where bytes are many; `None` in records of a time when there was no difference.
    #[serde(default)]
    pub bulk_threads: Option<usize>,
    /// Client and backend namespaces.
    pub clients: u8,
    /// Client and backend namespaces.
    pub backends: u8,
    /// What the order of contestants was drawn from.
    pub seed: u64,
}

/// A contestant of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entrant {
    /// Its id.
    pub id: String,
    /// How it stands to the others.
    pub role: Role,
    /// What it says its version is; `None` if it did not take part.
    pub version: Option<String>,
    /// How it is configured.
    pub note: String,
    /// Why it did not take part.
    pub missing: Option<String>,
}

/// One cell, one contestant, one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Kind of work.
    pub kind: Kind,
    /// Cell within the kind.
    pub cell: String,
    /// Contestant's id.
    pub contestant: String,
    /// From 0.
    pub round: u32,
    /// Figures by metric key; empty if void.
    pub metrics: BTreeMap<String, f64>,
    /// Why the sample does not count.
    pub void: Option<String>,
}

/// What is known of one metric of one cell and contestant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Figure {
    /// Not measured: it has no meaning for this contestant, or the run was cut short.
    Absent,
    /// Something went wrong in at least one round.
    Void(String),
    /// The figures of all rounds.
    Measured(Summary),
}

/// A ratio within rounds, then over rounds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ratio {
    /// Against whom; for the best peer, the one that was it in most rounds.
    pub against: String,
    /// The ratios of all rounds; above 1 is better for the contestant, whichever way the metric goes.
    pub summary: Summary,
}

impl Record {
    /// Reads a file that [`Record::write`] has written.
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

    /// Writes it all.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("turn the record into JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// Kinds with samples, in the order they were measured first.
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

    /// What was asked for in a cell, if its rate was given.
    pub(crate) fn pace(&self, kind: Kind, cell: &str) -> Option<&Pace> {
        self.paces.iter().find(|pace| kind == Kind::Paced && pace.cell == cell)
    }

    /// Cells of a kind, in the order they were measured.
    pub(crate) fn cells(&self, kind: Kind) -> Vec<&str> {
        let mut cells = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.kind == kind) {
            if !cells.contains(&sample.cell.as_str()) {
                cells.push(sample.cell.as_str());
            }
        }
        cells
    }

    /// Cells of a kind that have figures of this metric: cells of one kind need not be measured alike. A cell in which
    /// nobody has any figure belongs to the kind's first metric.
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

    /// Those who took part in a kind.
    pub(crate) fn entrants(&self, kind: Kind) -> impl Iterator<Item = &Entrant> {
        self.present().filter(move |entrant| {
            self.samples.iter().any(|sample| sample.kind == kind && sample.contestant == entrant.id)
        })
    }

    /// Connections of a contestant in all rounds of a kind, by data path; empty if it cannot tell.
    pub(crate) fn paths_taken(&self, kind: Kind, contestant: &str) -> BTreeMap<&str, u64> {
        let mut total: BTreeMap<&str, u64> = BTreeMap::new();
        let taken = self.paths.iter().filter(|taken| taken.kind == kind && taken.contestant == contestant);
        for (path, count) in taken.flat_map(|taken| &taken.connections) {
            *total.entry(path).or_default() += count;
        }
        total
    }

    /// Those who took part.
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

    /// `contestant` against `other`.
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

    /// What `contestant` costs beyond `reference`, in the metric's own unit: the differences of all rounds. Negative where it
    /// costs less, as noise does now and then.
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

    /// `contestant` against the peer that was best in each round.
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
        // The machine gets three times faster from round to round; the ratio stays.
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
        // The machine gets slower from round to round; what is added to it does as well, but far less.
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
        // One of before there were paces.
        let mut old = serde_json::to_value(&record).unwrap();
        old.as_object_mut().unwrap().remove("paces");
        fs::write(&path, old.to_string()).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        fs::write(&path, "{}").unwrap();
        assert!(Record::read(&path).is_err());
    }
}
