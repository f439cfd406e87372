//! Messages for a text that is not valid YAML: the standard term, and the probable remedy.

use libyaml_safer::{Error, Mark};

use super::chunks::Chunk;
use crate::document::{At, Problem};

const TEMPLATE: &str = "the file is a template: render it first, for example with helm template";
/// The message for a key that is a mapping or a list.
pub(super) const BRACES: &str =
    "a text that begins with a brace or bracket needs quotes, and a template has to be rendered first";

/// The position of a mark within the whole text.
pub(super) fn at(mark: Mark, chunk: Chunk<'_>) -> At {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).saturating_add(1);
    At { line: small(mark.line).saturating_add(chunk.lines_before), column: small(mark.column) }
}

/// The problem of a parser's error.
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
    // Also checks the line before, since an unclosed key is only detected on the next line.
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

/// An error without a position: a character that YAML never allows.
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

/// The position of a line that contains only an indented `---`.
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

/// A placeholder that was not replaced.
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

/// A copy with a space between a tag and the following comma. libyaml accepts such a tag, and its port panics.
///
/// A similar text in quotes gets the space as well. No setting contains such a text.
pub(super) fn part_tags(text: &str) -> Option<String> {
    // A comma ends a tag only within brackets.
    let opened = text.find(['[', '{'])?;
    let mut parted = String::new();
    let mut copied = 0;
    for (start, _) in text[opened..].match_indices('!').map(|(at, tag)| (opened + at, tag)) {
        if !may_start_tag(&text[..start]) {
            continue;
        }
        let tag = &text[start..];
        // A verbatim tag may contain commas: !<tag:yaml.org,2002:str>
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

/// Whether a token, and so a tag, can start after this text: some tokens end without a space.
fn may_start_tag(before: &str) -> bool {
    let ends_token = |end: char| end.is_whitespace() || "\"'[]{},".contains(end);
    let without_indicators = before.trim_end_matches(['?', ':']);
    match without_indicators.chars().next_back() {
        None => true,
        Some(end) if without_indicators.len() == before.len() => ends_token(end),
        // An anchor or alias ends at an indicator: `*name:!tag`.
        Some(end) => ends_token(end) || end.is_alphanumeric() || "-_".contains(end),
    }
}
