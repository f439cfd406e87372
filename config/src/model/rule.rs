//! What a server name leads to.

use std::{ops::Deref, sync::Arc};

use super::{route::Route, termination::Termination};

/// What a matched server name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where its connections go.
    pub route: Route,
    /// How TLS ends here; `None` passes it through.
    pub termination: Option<Arc<Termination>>,
}

impl Deref for Rule {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.route
    }
}
