//! What `check` prints.

use crate::report::Translation;

/// The route table, shadowed rules and every finding.
#[must_use]
pub fn render_check(translation: &Translation) -> String {
    translation.diagnostics.iter().map(|diagnostic| format!("{diagnostic}\n")).collect()
}
