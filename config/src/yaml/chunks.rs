//! Where one document of a text ends and the next begins, as kubectl looks for it: at every line that starts with `---`, or
//! with the directives before it.

/// A part of a text that is parsed by itself, so that a fault in one document hides none of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'t> {
    pub(crate) text: &'t str,
    /// Lines of the whole text before this part.
    pub(crate) lines_before: u32,
}

impl Chunk<'_> {
    /// Whether this looks like one Kubernetes object of a kind, without parsing it.
    pub(crate) fn is_of_kind(&self, kind: &str) -> bool {
        let mut kinds = self.text.lines().filter_map(|line| line.strip_prefix("kind:"));
        kinds.next().is_some_and(|written| written.trim() == kind) && kinds.next().is_none()
    }
}

/// Cuts a text before each line that starts with `---`. Directives stay with the document that they are for.
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
    // Whether there has been nothing but comments and directives since the start.
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
