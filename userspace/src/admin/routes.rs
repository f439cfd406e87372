//! `/routes`: every name pattern with its rule, produced piece by piece.

use std::sync::Arc;

use hyper::body::Bytes;
use serde::Serialize;
use snisplice_config::model::{Model, route_table::Entry};

use super::body::{Pieces, State};
use crate::snapshot::Snapshot;

/// The number of entries in a piece.
const PIECE: usize = 256;

/// One pattern of one listener.
#[derive(Debug, Serialize)]
struct Shown<'r> {
    listener: &'r str,
    /// The pattern of names, such as `*.example.com`. `*` also stands for a hello without a name.
    name: String,
    route: &'r str,
    /// The file and the line of the rule.
    origin: String,
    /// Whether TLS ends here.
    terminates: bool,
    targets: Vec<Target<'r>>,
}

/// One destination of the rule.
#[derive(Debug, Serialize)]
struct Target<'r> {
    /// Null for a destination that cannot be served.
    backend: Option<&'r str>,
    weight: u32,
}

/// The entries of all listeners, or of one.
pub(super) struct Routes {
    snapshot: Arc<Snapshot>,
    only: Option<String>,
    listener: usize,
    entry: usize,
    state: State,
}

impl Routes {
    /// The routes of the listener with this name, or all.
    pub(super) fn new(snapshot: Arc<Snapshot>, only: Option<String>) -> Self {
        Self { snapshot, only, listener: 0, entry: 0, state: State::Begins }
    }
}

impl Pieces for Routes {
    async fn next(&mut self) -> Option<Bytes> {
        let mut text = match self.state {
            State::Begins => String::from("{\"routes\":["),
            State::GoesOn => String::new(),
            State::Ended => return None,
        };
        let mut is_first = self.state == State::Begins;
        self.state = State::GoesOn;
        let model = &self.snapshot.model;
        for _ in 0..PIECE {
            let Some(listener) = model.listeners.get(self.listener) else {
                self.state = State::Ended;
                text.push_str("]}\n");
                break;
            };
            let is_wanted = self.only.as_ref().is_none_or(|only| *only == listener.name);
            let Some(entry) = listener.routes.entries().get(self.entry).filter(|_| is_wanted) else {
                (self.listener, self.entry) = (self.listener + 1, 0);
                continue;
            };
            self.entry += 1;
            let Ok(shown) = serde_json::to_string(&show(model, &listener.name, entry)) else { continue };
            if !is_first {
                text.push(',');
            }
            is_first = false;
            text.push_str(&shown);
        }
        Some(text.into())
    }
}

fn show<'r>(model: &'r Model, listener: &'r str, entry: &'r Entry) -> Shown<'r> {
    let Entry { pattern, rule } = entry;
    let backend = |id: snisplice_config::model::BackendId| Some(&*model.backends.get(id.0)?.name);
    let targets = rule.targets.iter();
    let targets =
        targets.map(|one| Target { backend: one.backend.and_then(backend), weight: one.weight }).collect();
    Shown {
        listener,
        name: pattern.to_string(),
        route: &rule.name,
        origin: rule.origin.to_string(),
        terminates: rule.termination.is_some(),
        targets,
    }
}
