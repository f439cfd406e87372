//! From texts to one model.

use crate::{options::Options, report::Translation};

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// As the operator named it; the first part of every position.
    pub name: String,
    /// The content.
    pub text: String,
}

/// Turns all files together into one model.
#[must_use]
pub fn load(sources: &[Source], options: &Options) -> Translation {
    let _ = (sources, options);
    Translation { model: None, diagnostics: Vec::new() }
}
