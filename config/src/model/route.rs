//! Where connections go, and where that was written.

use std::{fmt, sync::Arc};

/// Index into [`Model::backends`](super::Model::backends).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub usize);

/// Where connections or requests go that a rule takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Dense index over all routes of one model, from 0 to [`Model::rules`](super::Model::rules); what changes while the configuration
    /// serves (counters, the turn of the round robin) is kept beside the model under it.
    pub id: usize,
    /// What people call it: `route NAME` or `VirtualService namespace/name tls[0]`; a metric label.
    pub name: String,
    /// Where it was written.
    pub origin: Origin,
    /// The destinations, in proportion to their weights; empty only where HTTP requests have rules of their own.
    pub targets: Vec<Target>,
}

/// One weighted destination of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Share among its siblings. A sum of 0 over a rule rejects its connections.
    pub weight: u32,
    /// Where to go; `None` is a destination that cannot be served, which rejects its share of connections.
    pub backend: Option<BackendId>,
}

impl Target {
    /// The largest weight in a configuration, the one that the Gateway API allows: sums stay far from overflow.
    pub const MAX_WEIGHT: u32 = 1_000_000;
}

/// The place in a file that something came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// From 1; 0 in an object that is in no text.
    pub line: usize,
    /// From 1, in characters; 0 where there is no line.
    pub column: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}
