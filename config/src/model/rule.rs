//! The rule of a server name.

use std::{ops::Deref, sync::Arc};

use super::{access::Access, route::Route, scope::ScopedTimeouts, termination::Termination};

/// The rule of a matched server name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The destination of its connections.
    pub route: Route,
    /// The termination of TLS. `None` passes TLS through.
    pub termination: Option<Arc<Termination>>,
    /// The clients that are served, and how many. `None` is all.
    pub access: Option<Box<Access>>,
    /// Time limits of its connections, if they differ from those of the listener.
    pub timeouts: Option<Arc<ScopedTimeouts>>,
}

impl Deref for Rule {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.route
    }
}
