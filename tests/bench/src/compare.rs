//! The effect of a change: two records side by side.

use comfy_table::{Cell as TableCell, CellAlignment, ContentArrangement, Table, presets};

use crate::{
    record::{Figure, Record},
    stats::Summary,
    work::{Better, Kind, Metric},
};

/// The comparison of one figure in the two sets of rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Every round after is better than every round before.
    Better,
    /// Every round after is worse than every round before.
    Worse,
    /// The rounds overlap.
    Noise,
}

impl Verdict {
    fn of(before: &Summary, after: &Summary, better: Better) -> Self {
        if !before.is_apart(after) {
            return Self::Noise;
        }
        if (after.median > before.median) == (better == Better::Higher) { Self::Better } else { Self::Worse }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Noise => "within the spread",
        }
    }
}

/// Compares all figures that both records have.
pub(crate) fn report(before: &Record, after: &Record) -> String {
    let mut parts: Vec<String> = Vec::new();
    for difference in differences(before, after) {
        parts.push(format!("note: {difference}\n"));
    }
    for kind in after.kinds() {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["cell", "contestant", "figure", "before", "after", "change", ""]);
        let mut any = false;
        for cell in after.cells(kind) {
            for entrant in after.present() {
                for metric in kind.metrics().iter().filter(|metric| metric.compared) {
                    if let Some(row) = row(before, after, kind, cell, &entrant.id, *metric) {
                        table.add_row(row);
                        any = true;
                    }
                }
            }
        }
        if any {
            parts.push(format!("== {} ==\n{table}\n\n", kind.title()));
        }
    }
    parts.push(
        "Medians. Better and WORSE: no round of one overlaps with any round of the other.\n".to_owned(),
    );
    parts.concat()
}

/// Differences that make a comparison difficult.
fn differences(before: &Record, after: &Record) -> Vec<String> {
    let mut notes = Vec::new();
    let mut differ = |what: &str, before: &str, after: &str| {
        if before != after {
            notes.push(format!("{what} differs: {before} before, {after} after"));
        }
    };
    differ("the kernel", &before.machine.kernel, &after.machine.kernel);
    differ("the processor", &before.machine.processor, &after.machine.processor);
    differ(
        "the window",
        &before.settings.window_seconds.to_string(),
        &after.settings.window_seconds.to_string(),
    );
    differ(
        "the number of workers",
        &before.settings.workers.to_string(),
        &after.settings.workers.to_string(),
    );
    for pace in &after.paces {
        if let Some(earlier) = before.paces.iter().find(|other| other.cell == pace.cell) {
            let what = format!("the rate of {} {}", Kind::Paced.id(), pace.cell);
            differ(&what, &earlier.rate.to_string(), &pace.rate.to_string());
        }
    }
    let shape = |record: &Record| format!("{}x{}", record.settings.clients, record.settings.backends);
    differ("the topology", &shape(before), &shape(after));
    for entrant in after.present() {
        let earlier = before.present().find(|other| other.id == entrant.id);
        if let Some(earlier) = earlier {
            differ(
                &format!("the version of {}", entrant.id),
                earlier.version.as_deref().unwrap_or(""),
                entrant.version.as_deref().unwrap_or(""),
            );
        }
    }
    notes
}

fn row(
    before: &Record,
    after: &Record,
    kind: Kind,
    cell: &str,
    contestant: &str,
    metric: Metric,
) -> Option<Vec<TableCell>> {
    let right = |text: String| TableCell::new(text).set_alignment(CellAlignment::Right);
    let figures = [before, after].map(|record| record.figure(kind, cell, contestant, metric));
    let text = |figure: &Figure| match figure {
        Figure::Measured(summary) => metric.unit.format(summary.median),
        Figure::Void(_) => "void".to_owned(),
        Figure::Absent => "n/a".to_owned(),
    };
    let (change, verdict) = match &figures {
        [Figure::Absent, _] | [_, Figure::Absent] => return None,
        [Figure::Measured(old), Figure::Measured(new)] => {
            (change(old.median, new.median), Verdict::of(old, new, metric.better).text())
        }
        [Figure::Measured(_), Figure::Void(_)] => (String::new(), "WORSE: errors"),
        _ => (String::new(), ""),
    };
    Some(vec![
        TableCell::new(cell),
        TableCell::new(contestant),
        TableCell::new(metric.title),
        right(text(&figures[0])),
        right(text(&figures[1])),
        right(change),
        TableCell::new(verdict),
    ])
}

/// The change in percent of the former value, if that is not zero.
fn change(before: f64, after: f64) -> String {
    if before == 0.0 { String::new() } else { format!("{:+.1} %", (after / before - 1.0) * 100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contestants::Role, record::tests::record};

    #[test]
    fn only_rounds_that_do_not_overlap_are_a_verdict() {
        let low = Summary::of(&[100.0, 101.0, 102.0]).unwrap();
        let high = Summary::of(&[110.0, 111.0]).unwrap();
        let across = Summary::of(&[101.0, 120.0]).unwrap();
        assert_eq!(Verdict::of(&low, &high, Better::Higher), Verdict::Better);
        assert_eq!(Verdict::of(&low, &high, Better::Lower), Verdict::Worse);
        assert_eq!(Verdict::of(&high, &low, Better::Higher), Verdict::Worse);
        assert_eq!(Verdict::of(&low, &across, Better::Higher), Verdict::Noise);
    }

    #[test]
    fn changes_are_in_percent_of_before() {
        assert_eq!(change(200.0, 150.0), "-25.0 %");
        assert_eq!(change(0.0, 150.0), "");
    }

    #[test]
    fn the_report_has_what_both_have() {
        let before = record(&[("nginx", Role::Peer, &[100.0, 101.0])]);
        let after = record(&[("nginx", Role::Peer, &[150.0, 0.0]), ("envoy", Role::Peer, &[1.0, 1.0])]);
        let text = report(&before, &after);
        assert!(text.contains("WORSE: errors"), "a void round is a change for the worse: {text}");
        assert!(!text.contains("envoy"), "{text}");
    }

    #[test]
    fn different_conditions_are_named() {
        let before = record(&[("nginx", Role::Peer, &[1.0])]);
        let mut after = before.clone();
        assert_eq!(differences(&before, &after), Vec::<String>::new());
        after.contestants[0].version = Some("2".to_owned());
        after.settings.workers = 4;
        let notes = differences(&before, &after);
        assert_eq!(notes.len(), 2);
        assert!(notes.iter().any(|note| note.contains("version of nginx")), "{notes:?}");
    }
}
