//! Tables on the terminal.

use std::{collections::BTreeSet, fmt::Write as _, io::Write as _};

use comfy_table::{Cell as TableCell, CellAlignment, ContentArrangement, Table, presets};

use crate::{
    contestants::Role,
    pace::{PART, Pace},
    progress::clock,
    record::{Figure, Ratio, Record},
    stats::{Summary, WIDE},
    work::{Added, Kind, Metric, Unit, digits},
};

const REFERENCE: &str = "direct";

/// Writes to stdout. A closed reader, such as `head`, is no reason to lose a run.
pub(crate) fn say(text: &str) {
    let _: std::io::Result<()> = std::io::stdout().write_all(text.as_bytes());
}

/// Machine, settings and contestants, before the first measurement.
pub(crate) fn head(record: &Record, estimate: f64) -> String {
    let (machine, settings) = (&record.machine, &record.settings);
    let mut lines = vec![
        machine.kernel.clone(),
        format!(
            "{} x {}, {:.1} GiB, clock {}, load average {:.2}",
            machine.processors,
            machine.processor,
            gibibytes(machine.memory),
            machine.clock_source,
            machine.load_average
        ),
        format!(
            "{} round(s) of {} s after {} s of warm-up; {} workers a contestant, {} load thread(s), {} for bulk; {} client \
             and {} backend namespace(s); {}; order from seed {}",
            settings.rounds,
            settings.window_seconds,
            settings.warm_up_seconds,
            settings.workers,
            settings.load_threads,
            settings.bulk_threads.unwrap_or(settings.load_threads),
            settings.clients,
            settings.backends,
            machine.sysctls.get("net.ipv4.tcp_congestion_control").map_or("", String::as_str),
            settings.seed,
        ),
    ];
    for entrant in &record.contestants {
        lines.push(match (&entrant.missing, &entrant.version) {
            (Some(reason), _) => format!("  {:<18} MISSING, {reason}", entrant.id),
            (None, version) => {
                format!("  {:<18} {} ({})", entrant.id, version.as_deref().unwrap_or(""), entrant.note)
            }
        });
    }
    if machine.load_average > 0.5 {
        lines.push(
            "The machine is not at rest: figures will be lower and wider than they could be.".to_owned(),
        );
    }
    lines.push(format!("This takes about {} minutes.\n\n", clock(estimate)));
    lines.join("\n")
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// All measurements.
pub(crate) fn results(record: &Record) -> String {
    let tables: String = record.kinds().into_iter().map(|kind| kind_tables(record, kind)).collect();
    tables + &legend(record) + "\n"
}

fn legend(record: &Record) -> String {
    let void: usize = record.samples.iter().filter(|sample| sample.void.is_some()).count();
    let reasons: BTreeSet<String> = record
        .samples
        .iter()
        .filter_map(|sample| {
            let reason = sample.void.as_ref()?.lines().next()?;
            Some(format!("void: {} {} {}: {reason}\n", sample.contestant, sample.kind.id(), sample.cell))
        })
        .collect();
    let reasons: String = reasons.into_iter().collect();
    format!(
        "{reasons}Median of {} round(s) (interquartile range as a part of it). ~ marks a range beyond {:.0} %: do not rely on it. \
         Ratios are taken within each round, then the median: above 1 is better than the other, [least to greatest]; \
         = marks ratios that lie on both sides of 1. void: {void} samples had errors. Took {} minutes{}.",
        record.settings.rounds,
        WIDE * 100.0,
        clock(record.took_seconds),
        if record.complete { "" } else { " and was cut short" },
    )
}

/// Figures of every metric, then ratios of the compared ones.
pub(crate) fn kind_tables(record: &Record, kind: Kind) -> String {
    let mut out = format!("== {} ==\n", kind.title());
    let entrants: Vec<&str> = record.entrants(kind).map(|entrant| entrant.id.as_str()).collect();
    for pace in record.cells(kind).iter().filter_map(|cell| record.pace(kind, cell)) {
        let Pace { cell, rate, best, by } = pace;
        let [rate, best] = [f64::from(*rate), *best].map(|rate| Unit::PerSecond.format(rate));
        let _: std::fmt::Result = writeln!(
            out,
            "{cell}: {rate} requests/s are due, {:.0} % of the {best} that {by} reached",
            PART * 100.0
        );
    }
    for metric in kind.metrics() {
        let mut table = new_table(metric.title, &entrants);
        let mut any = false;
        for cell in record.rows(kind, *metric) {
            let mut row = vec![TableCell::new(cell)];
            for entrant in &entrants {
                let figure = record.figure(kind, cell, entrant, *metric);
                any |= figure != Figure::Absent;
                row.push(TableCell::new(show(&figure, metric.unit)).set_alignment(CellAlignment::Right));
            }
            table.add_row(row);
        }
        if any {
            out += &table.to_string();
            out.push('\n');
        }
    }
    for metric in kind.metrics() {
        out.push_str(&added_table(record, kind, *metric, &entrants));
    }
    for metric in kind.metrics().iter().filter(|metric| metric.compared) {
        out.push_str(&ratio_table(record, kind, *metric));
    }
    for entrant in &entrants {
        let paths = record.paths_taken(kind, entrant);
        if !paths.is_empty() {
            let list: Vec<String> = paths.iter().map(|(path, count)| format!("{count} {path}")).collect();
            // Writing to a String cannot fail.
            let _: std::fmt::Result =
                writeln!(out, "{entrant}: connections by data path: {}", list.join(", "));
        }
    }
    out.push('\n');
    out
}

/// The cost of each contestant beyond that of no balancer.
fn added_table(record: &Record, kind: Kind, metric: Metric, entrants: &[&str]) -> String {
    let Some(added) = metric.added() else { return String::new() };
    let others: Vec<&str> = entrants.iter().copied().filter(|id| *id != REFERENCE).collect();
    let mut table = new_table(added.title, &others);
    let mut any = false;
    for cell in record.rows(kind, metric) {
        let mut row = vec![TableCell::new(cell)];
        for id in &others {
            let summary = record.added(kind, cell, id, REFERENCE, metric);
            any |= summary.is_some();
            row.push(TableCell::new(show_added(summary.as_ref(), added)).set_alignment(CellAlignment::Right));
        }
        table.add_row(row);
    }
    if any { format!("{table}\n") } else { String::new() }
}

/// With minimum and maximum: a part of the median has no meaning if the median may be 0.
fn show_added(summary: Option<&Summary>, added: Added) -> String {
    let Some(summary) = summary else { return "n/a".to_owned() };
    let show = |value: f64| added.unit.format(value * added.factor);
    let range = if summary.count > 1 {
        format!(" [{} to {}]", show(summary.min), show(summary.max))
    } else {
        String::new()
    };
    format!("{}{range}", show(summary.median))
}

fn ratio_table(record: &Record, kind: Kind, metric: Metric) -> String {
    let own: Vec<&str> = record
        .entrants(kind)
        .filter(|entrant| entrant.role == Role::Own)
        .map(|entrant| entrant.id.as_str())
        .collect();
    let peers = record.entrants(kind).any(|entrant| entrant.role == Role::Peer);
    if own.is_empty() {
        return String::new();
    }
    let headings: Vec<String> =
        own.iter().flat_map(|id| [format!("{id}\nto the best peer"), format!("{id}\nto direct")]).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut table = new_table(&format!("ratio of {}", metric.title), &headings);
    let mut any = false;
    for cell in record.rows(kind, metric) {
        let mut row = vec![TableCell::new(cell)];
        for id in &own {
            let to_peer = if peers { record.ratio_to_best_peer(kind, cell, id, metric) } else { None };
            let to_direct = record.ratio(kind, cell, id, REFERENCE, metric);
            any |= to_peer.is_some() || to_direct.is_some();
            row.push(TableCell::new(show_ratio(to_peer.as_ref(), true)).set_alignment(CellAlignment::Right));
            row.push(
                TableCell::new(show_ratio(to_direct.as_ref(), false)).set_alignment(CellAlignment::Right),
            );
        }
        table.add_row(row);
    }
    if any { format!("{table}\n") } else { String::new() }
}

fn new_table(corner: &str, headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec![TableCell::new(corner)];
    header.extend(headings.iter().map(|heading| TableCell::new(heading).set_alignment(CellAlignment::Right)));
    table.set_header(header);
    table
}

fn show(figure: &Figure, unit: Unit) -> String {
    match figure {
        Figure::Absent => "n/a".to_owned(),
        Figure::Void(_) => "void".to_owned(),
        Figure::Measured(summary) => {
            let mark = if summary.is_wide() { "~" } else { "" };
            format!("{mark}{}{}", unit.format(summary.median), spread(summary))
        }
    }
}

/// In percent, if there are enough rounds.
fn spread(summary: &Summary) -> String {
    if summary.count < 2 { String::new() } else { format!(" ({:.0} %)", summary.spread() * 100.0) }
}

fn show_ratio(ratio: Option<&Ratio>, named: bool) -> String {
    let Some(Ratio { against, summary }) = ratio else { return "n/a".to_owned() };
    let mark = if summary.count > 1 && summary.contains(1.0) { "=" } else { "" };
    let name = if named { format!(" {against}") } else { String::new() };
    let range = if summary.count > 1 {
        format!(" [{} to {}]", digits(summary.min), digits(summary.max))
    } else {
        String::new()
    };
    format!("{mark}{}{name}{range}", digits(summary.median))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    #[test]
    fn tables_show_medians_marks_and_ratios() {
        let record = record(&[
            ("direct", Role::Reference, &[20_000.0, 20_100.0, 19_900.0]),
            ("snisplice-auto", Role::Own, &[10_000.0, 15_000.0, 10_200.0]),
            ("nginx", Role::Peer, &[11_000.0, 11_000.0, 11_000.0]),
            ("envoy", Role::Peer, &[9_000.0, 0.0, 9_000.0]),
        ]);
        let text = kind_tables(&record, Kind::Conn);
        assert!(text.contains("20.0k (0 %)"), "{text}");
        assert!(text.contains("~10.2k"), "a wide spread is marked: {text}");
        assert!(text.contains("void"), "{text}");
        assert!(text.contains("=0.93 nginx [0.91 to 1.36]"), "{text}");
        assert!(text.contains("0.51 [0.50 to 0.75]"), "{text}");
    }

    #[test]
    fn a_given_rate_is_told_with_where_it_comes_from() {
        let mut record = record(&[("nginx", Role::Peer, &[20_000.0])]);
        record.samples[0].kind = Kind::Paced;
        record.paces = vec![Pace {
            cell: "32 at once".to_owned(),
            rate: 24_000,
            best: 40_000.0,
            by: "envoy".to_owned(),
        }];
        let text = kind_tables(&record, Kind::Paced);
        let line = "32 at once: 24.0k requests/s are due, 60 % of the 40.0k that envoy reached\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn what_a_balancer_adds_is_told_for_each_connection() {
        let mut record =
            record(&[("direct", Role::Reference, &[1.0, 1.0]), ("nginx", Role::Peer, &[1.0, 1.0])]);
        for (sample, cost) in record.samples.iter_mut().zip([80.0, 81.0, 140.0, 121.0]) {
            sample.metrics.insert(crate::work::CPU_MACHINE_CONN.key.to_owned(), cost);
        }
        let text = kind_tables(&record, Kind::Conn);
        let lines: Vec<&str> = text.lines().collect();
        let head = lines.iter().position(|line| line.contains("CPU added to direct")).unwrap();
        assert!(lines[head].contains("nginx") && !lines[head].contains("| direct"), "{text}");
        // 60 and 40 ms for 1,000 connections.
        assert!(lines[head + 2].contains("50.0 us [40.0 us to 60.0 us]"), "{text}");
    }

    #[test]
    fn one_request_is_a_millionth_of_a_million() {
        let added = crate::work::CPU_MACHINE_REQ.added().unwrap();
        let summary = Summary::of(&[7_500.0]).unwrap();
        assert_eq!(show_added(Some(&summary), added), "7.50 us");
        assert_eq!(show_added(None, added), "n/a");
        assert!(crate::work::P99.added().is_none());
    }

    #[test]
    fn one_round_has_no_spread_to_show() {
        let record = record(&[("direct", Role::Reference, &[20_000.0])]);
        let text = kind_tables(&record, Kind::Conn);
        assert!(text.contains("20.0k") && !text.contains('%'), "{text}");
        assert!(!text.contains("ratio of"), "nobody of our own took part: {text}");
    }
}
