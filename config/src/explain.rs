//! What `explain` prints.

use std::fmt;

use crate::model::Model;

/// Which listener, rule and endpoints serve a name, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    text: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Answers for a hello that names `sni` (or none) on the listeners of `port`, or on all of them.
#[must_use]
pub fn explain(model: &Model, sni: Option<&str>, port: Option<u16>) -> Explanation {
    let _ = (model, sni, port);
    Explanation { text: String::new() }
}
