//! One SVG for each kind of work and compared metric: a panel per cell, a bar per contestant.
//!
//! Each panel has its own scale. A chart compares the contestants within a cell, and cells differ by orders of
//! magnitude.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    contestants::Role,
    record::{Entrant, Figure, Record},
    work::{Better, Kind, Metric, Unit},
};

const COLUMNS: usize = 3;
const PANEL_WIDTH: i32 = 400;
const LABEL_WIDTH: i32 = 135;
const VALUE_WIDTH: i32 = 75;
const BAR: i32 = 16;
const BAR_STEP: i32 = 22;
const HEAD: i32 = 70;
const PANEL_HEAD: i32 = 30;
const MARGIN: i32 = 14;

const INK: RGBColor = RGBColor(30, 34, 40);
const FAINT: RGBColor = RGBColor(110, 116, 124);
const REFERENCE: RGBColor = RGBColor(176, 181, 188);
const OWN: RGBColor = RGBColor(31, 111, 178);
const PEER: RGBColor = RGBColor(222, 143, 54);

/// Draws all charts of a record into `directory`. Returns the files.
pub(crate) fn draw_all(record: &Record, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let mut files = Vec::new();
    for kind in record.kinds() {
        for (index, metric) in kind.metrics().iter().filter(|metric| metric.compared).enumerate() {
            if !has_figures(record, kind, *metric) {
                continue;
            }
            let name = if index == 0 {
                format!("{}.svg", kind.id())
            } else {
                format!("{}-{}.svg", kind.id(), metric.key)
            };
            let path = directory.join(name);
            let svg = draw(record, kind, *metric).with_context(|| format!("draw {}", path.display()))?;
            fs::write(&path, svg).with_context(|| format!("write {}", path.display()))?;
            files.push(path);
        }
    }
    Ok(files)
}

fn has_figures(record: &Record, kind: Kind, metric: Metric) -> bool {
    !record.rows(kind, metric).is_empty()
}

/// One chart as SVG text.
pub(crate) fn draw(record: &Record, kind: Kind, metric: Metric) -> anyhow::Result<String> {
    let cells = record.rows(kind, metric);
    let entrants: Vec<&Entrant> = record.entrants(kind).collect();
    let columns = cells.len().clamp(1, COLUMNS);
    let rows = cells.len().div_ceil(columns);
    let panel_height = PANEL_HEAD + BAR_STEP * as_i32(entrants.len()) + MARGIN;
    let width = PANEL_WIDTH * as_i32(columns.max(2));
    let height = HEAD + panel_height * as_i32(rows);

    let mut svg = String::new();
    {
        let size = (width.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(text_error)?;
        let write = |text: &str, at: (i32, i32), size: i32, color: &RGBColor, anchor: HPos| {
            let style = ("sans-serif", size).into_font().color(color).pos(Pos::new(anchor, VPos::Center));
            area.draw(&Text::new(text.to_owned(), at, style)).map_err(text_error)
        };
        write(&format!("{}: {}", kind.title(), metric.title), (MARGIN, 22), 22, &INK, HPos::Left)?;
        write(&subtitle(record, metric), (MARGIN, 48), 14, &FAINT, HPos::Left)?;

        for (index, cell) in cells.iter().enumerate() {
            let left = PANEL_WIDTH * as_i32(index % columns);
            let top = HEAD + panel_height * as_i32(index / columns);
            let title = match record.pace(kind, cell) {
                Some(pace) => format!("{cell} at {}/s", Unit::PerSecond.format(pace.rate.into())),
                None => (*cell).to_owned(),
            };
            write(&title, (left + MARGIN, top + PANEL_HEAD / 2), 16, &INK, HPos::Left)?;
            let figures: Vec<Figure> =
                entrants.iter().map(|entrant| record.figure(kind, cell, &entrant.id, metric)).collect();
            let greatest = figures.iter().map(greatest).fold(0.0, f64::max);
            let bars_at = left + MARGIN + LABEL_WIDTH;
            let room = PANEL_WIDTH - 2 * MARGIN - LABEL_WIDTH - VALUE_WIDTH;
            for (row, (entrant, figure)) in entrants.iter().zip(&figures).enumerate() {
                let middle = top + PANEL_HEAD + BAR_STEP * as_i32(row) + BAR / 2;
                write(&entrant.id, (bars_at - 6, middle), 14, &INK, HPos::Right)?;
                let Figure::Measured(summary) = figure else {
                    let word = if *figure == Figure::Absent { "n/a" } else { "void" };
                    write(word, (bars_at + 4, middle), 14, &FAINT, HPos::Left)?;
                    continue;
                };
                let x = |value: f64| bars_at + scale(value, greatest, room);
                let bar = Rectangle::new(
                    [(bars_at, middle - BAR / 2), (x(summary.median), middle + BAR / 2)],
                    color(entrant.role).filled(),
                );
                area.draw(&bar).map_err(text_error)?;
                let whisker = PathElement::new(vec![(x(summary.min), middle), (x(summary.max), middle)], INK);
                area.draw(&whisker).map_err(text_error)?;
                let mark = if summary.is_wide() { "~" } else { "" };
                let value = format!("{mark}{}", metric.unit.format(summary.median));
                write(&value, (x(summary.max) + 6, middle), 14, &INK, HPos::Left)?;
            }
        }
        area.present().map_err(text_error)?;
    }
    Ok(svg)
}

fn subtitle(record: &Record, metric: Metric) -> String {
    let better = match metric.better {
        Better::Higher => "More is better",
        Better::Lower => "Less is better",
    };
    format!(
        "{better}. Median of {} rounds, line from least to greatest. {} workers each, {} processors, Linux {}.",
        record.settings.rounds,
        record.settings.workers,
        record.machine.processors,
        record.machine.kernel.split(' ').nth(1).unwrap_or("of unknown version"),
    )
}

fn greatest(figure: &Figure) -> f64 {
    match figure {
        Figure::Measured(summary) => summary.max,
        Figure::Absent | Figure::Void(_) => 0.0,
    }
}

fn color(role: Role) -> RGBColor {
    match role {
        Role::Reference => REFERENCE,
        Role::Own => OWN,
        Role::Peer => PEER,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a position inside a panel")]
fn scale(value: f64, greatest: f64, room: i32) -> i32 {
    if greatest > 0.0 { (value / greatest * f64::from(room)).round() as i32 } else { 0 }
}

fn as_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Drawing into a String fails only if plotters fails. The error borrows, so only its text is kept.
#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn text_error<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::tests::record, work::CONNECTIONS};

    #[test]
    fn a_chart_names_everyone_and_marks_what_is_void() {
        let record = record(&[
            ("direct", Role::Reference, &[20_000.0, 20_100.0]),
            ("snisplice-auto", Role::Own, &[10_000.0, 10_200.0]),
            ("envoy", Role::Peer, &[9_000.0, 0.0]),
        ]);
        let svg = draw(&record, Kind::Conn, CONNECTIONS).unwrap();
        for text in ["direct", "snisplice-auto", "envoy", "void", "20.1k", "32 at once", "More is better"] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
        // The background, and a bar for each of the two contestants with figures.
        assert_eq!(svg.matches("<rect").count(), 3, "{svg}");
    }

    #[test]
    fn files_are_named_by_kind_and_metric() {
        let directory = tempfile::tempdir().unwrap();
        let record = record(&[("direct", Role::Reference, &[1.0])]);
        let files = draw_all(&record, directory.path()).unwrap();
        let names: Vec<String> =
            files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["conn.svg", "conn-p99_us.svg"]);
    }
}
