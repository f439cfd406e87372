//! The targets of connections, and their location in the configuration.

use std::{fmt, sync::Arc};

/// Index into [`Model::backends`](super::Model::backends).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub usize);

/// The destination of a rule's connections or requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Dense index over all routes of one model, from 0 to [`Model::rules`](super::Model::rules). State that changes
    /// in service (counters, the position of round robin) is kept outside the model under this index.
    pub id: usize,
    /// The name for people: `route NAME` or `VirtualService namespace/name tls[0]`. A metric label.
    pub name: String,
    /// The location in the configuration.
    pub origin: Origin,
    /// The destinations, in proportion to their weights. Empty only if HTTP requests have rules of their own.
    pub targets: Vec<Target>,
}

/// One weighted destination of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The weight among its siblings. A rule with a sum of 0 rejects its connections.
    pub weight: u32,
    /// The backend. `None` is an invalid destination, which rejects its share of connections.
    pub backend: Option<BackendId>,
}

impl Target {
    /// The largest weight in a configuration, the same as in the Gateway API. Sums stay far from an overflow.
    pub const MAX_WEIGHT: u32 = 1_000_000;
}

/// A location in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// The line, from 1. 0 in an object without a text.
    pub line: usize,
    /// The column, from 1, in characters. 0 without a line.
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
