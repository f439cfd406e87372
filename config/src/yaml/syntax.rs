//! What is said about a text that is no YAML: the field's own words, and what the writer probably has to do.

use libyaml_safer::{Error, Mark};

use super::chunks::Chunk;
use crate::document::{At, Problem};

const TEMPLATE: &str = "the file is a template: render it first, for example with helm template";
/// Where a key is a mapping or a list.
pub(super) const BRACES: &str =
    "a text that begins with a brace or bracket needs quotes, and a template has to be rendered first";

/// The place of a mark within the whole text.
pub(super) fn at(mark: Mark, chunk: Chunk<'_>) -> At {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1);
    At { line: small(mark.line).saturating_add(chunk.lines_before), column: small(mark.column) }
}

/// The problem behind an error of the parser.
pub(super) fn problem(error: &Error, chunk: Chunk<'_>) -> Problem {
    let Some(mark) = error.problem_mark() else { return unreadable(error, chunk) };
    let mut found = Problem::new(at(mark, chunk), message(error));
    if let Some(marker) = indented_marker(chunk) {
        found = Problem::new(
            marker,
            "not valid YAML: the document marker '---' is indented, and so separates nothing",
        )
        .remedy("take the indentation off every line, or start the line with ---");
        return found;
    }
    // The line before, too, since an open key is only missed on the line after it.
    found.remedy = mark.line.checked_sub(1).and_then(|before| left_out(line(chunk, before))).or_else(|| {
        let lines = [error.context_mark().map(|mark| mark.line), Some(mark.line)];
        lines.into_iter().flatten().find_map(|number| remedy(line(chunk, number), error.problem()))
    });
    found
}

fn message(error: &Error) -> String {
    match error.context() {
        Some(context) => format!("not valid YAML: {context}, {}", error.problem()),
        None => format!("not valid YAML: {}", error.problem()),
    }
}

/// An error without a place: a character that YAML does not allow anywhere.
fn unreadable(error: &Error, chunk: Chunk<'_>) -> Problem {
    let (mut line, mut column) = (0, 0);
    for found in chunk.text.chars() {
        if !is_printable(found) {
            let at = At { line: chunk.lines_before.saturating_add(line + 1), column: column + 1 };
            let code = u32::from(found);
            return Problem::new(
                at,
                format!("not valid YAML: the control character U+{code:04X} is not allowed"),
            )
            .remedy("remove it, or write it as an escape in a text in double quotes");
        }
        if found == '\n' {
            (line, column) = (line + 1, 0);
        } else {
            column += 1;
        }
    }
    let at = At { line: chunk.lines_before.saturating_add(1), column: 1 };
    Problem::new(at, format!("not valid YAML: {}", error.problem()))
}

/// YAML 1.2.2, production 1 (`c-printable`).
fn is_printable(found: char) -> bool {
    matches!(found, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Where a line holds nothing but `---` behind spaces.
fn indented_marker(Chunk { text, lines_before }: Chunk<'_>) -> Option<At> {
    let (index, line) =
        text.lines().enumerate().find(|(_, line)| line.starts_with([' ', '\t']) && line.trim() == "---")?;
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1);
    Some(At {
        line: number(index).saturating_add(lines_before),
        column: number(line.len() - line.trim_start().len()),
    })
}

/// A line of the part, from 0.
fn line(chunk: Chunk<'_>, number: u64) -> &str {
    chunk.text.lines().nth(usize::try_from(number).unwrap_or(usize::MAX)).unwrap_or_default()
}

/// What somebody or some program was to fill in.
fn left_out(line: &str) -> Option<&'static str> {
    if line.contains("{{") || line.contains("{%") {
        Some(TEMPLATE)
    } else if line.trim() == "..." {
        Some("'...' ends a document: write the lines that it stands for, or remove it")
    } else {
        None
    }
}

fn remedy(line: &str, problem: &str) -> Option<&'static str> {
    if let Some(remedy) = left_out(line) {
        return Some(remedy);
    }
    let trimmed = line.trim();
    let value = trimmed
        .rsplit_once(": ")
        .map_or(trimmed, |(_, value)| value)
        .trim_start_matches("- ")
        .trim_start_matches(['[', ' ']);
    if value.starts_with('*') {
        Some("a text that begins with '*' needs quotes: \"*.example.com\"")
    } else if line.starts_with('\t') || (problem.contains("cannot start any token") && line.contains('\t')) {
        Some("indent with spaces: YAML takes no tabs there")
    } else if value.starts_with(['@', '`', '%']) {
        Some("put the text in quotes")
    } else if problem.starts_with("mapping values are not allowed") {
        Some("check the indentation; a text that holds ': ' needs quotes")
    } else {
        None
    }
}

/// A copy with a space between a tag and a comma right after it, which libyaml takes and its port does not.
///
/// The port would panic. No text that means anything to us holds a `!`, so it does not matter if it was none of a tag.
pub(super) fn part_tags(text: &str) -> Option<String> {
    let mut parted = String::new();
    let mut copied = 0;
    let bytes = text.as_bytes();
    for (start, _) in text.match_indices('!') {
        if start.checked_sub(1).is_some_and(|before| !b" \t\r\n[{,:-?&".contains(&bytes[before])) {
            continue;
        }
        let tag = &text[start..];
        // A verbatim tag may hold commas: !<tag:yaml.org,2002:str>
        let from = if tag.starts_with("!<") { tag.find('>').unwrap_or_default() } else { 0 };
        let comma =
            tag.char_indices().skip_while(|(at, _)| *at < from).find(|(_, c)| c.is_whitespace() || *c == ',');
        if let Some((at, ',')) = comma
            && start + at >= copied
        {
            parted.push_str(&text[copied..start + at]);
            parted.push(' ');
            copied = start + at;
        }
    }
    (copied > 0).then(|| {
        parted.push_str(&text[copied..]);
        parted
    })
}
