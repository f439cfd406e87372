//! The boundaries of documents in a text, as kubectl finds them: at every line that starts with `---`, or with the
//! directives before it.

/// A part of a text that is parsed separately, so that an error in one document does not hide errors of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'t> {
    pub(crate) text: &'t str,
    /// Number of lines before this part.
    pub(crate) lines_before: u32,
}

impl Chunk<'_> {
    /// Whether this looks like a single Kubernetes object of a kind, without parsing.
    pub(crate) fn is_of_kind(&self, kind: &str) -> bool {
        let mut kinds = self.text.lines().filter_map(|line| line.strip_prefix("kind:"));
        kinds.next().is_some_and(|written| written.trim() == kind) && kinds.next().is_none()
    }
}

/// Splits a text before each line that starts with `---`. Directives stay with their document.
pub(crate) fn chunks(text: &str) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines_before = 0;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (length, lines) = first(rest);
        let chunk = Chunk { text: &rest[..length], lines_before };
        rest = &rest[length..];
        lines_before = lines_before.saturating_add(lines);
        Some(chunk)
    })
}

/// The length of the first part in bytes and in lines.
fn first(text: &str) -> (usize, u32) {
    let (mut length, mut lines) = (0, 0);
    // Whether there were only comments and directives since the start.
    let mut preamble = true;
    for line in text.split_inclusive('\n') {
        let marker = is_marker(line);
        if (marker || is_directive(line)) && !preamble {
            break;
        }
        preamble &= !marker && matches!(line.trim_start().chars().next(), None | Some('#' | '%'));
        length += line.len();
        lines += 1;
    }
    (length, lines)
}

fn is_directive(line: &str) -> bool {
    line.starts_with("%YAML ") || line.starts_with("%TAG ")
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}
