//! Series of one family, of which those are forgotten whose listener, route or backend is gone.
//!
//! A name is an `Arc<str>` that the configuration in service and the connections share. Once the configuration that had it
//! is gone and the last of its connections too, nobody else has it: then its series can go.

use std::{
    collections::HashSet,
    fmt,
    hash::Hash,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, family::Family},
};

/// What a label names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Listener,
    Route,
    Backend,
}

/// Labels, some of which are names of the configuration.
pub(super) trait Labels:
    EncodeLabelSet + Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static
{
    /// The same with copies of the names, which nobody shares.
    fn detached(&self) -> Self;

    /// Whether a label of this kind has this name.
    fn has(&self, kind: Kind, name: &str) -> bool;
}

/// The series of one family.
#[derive(Debug, Clone)]
pub(super) struct Series<S, M> {
    family: Family<S, M>,
    /// The labels that there are, which the family does not tell.
    known: Arc<Mutex<HashSet<S>>>,
}

impl<S: Labels, M: Default> Default for Series<S, M> {
    fn default() -> Self {
        Self { family: Family::default(), known: Arc::default() }
    }
}

impl<S: Labels, M: Default> Series<S, M> {
    /// The metric with these labels.
    pub(super) fn get_or_create(&self, labels: &S) -> impl Deref<Target = M> {
        if let Some(found) = self.family.get(labels) {
            return found;
        }
        let labels = labels.detached();
        self.known().insert(labels.clone());
        self.family.get_or_create(&labels)
    }

    /// The same, to be kept.
    pub(super) fn get_or_create_owned(&self, labels: &S) -> M
    where
        M: Clone,
    {
        self.get_or_create(labels).clone()
    }

    /// Forgets those that have this name.
    pub(super) fn forget(&self, kind: Kind, name: &str) {
        self.known().retain(|labels| {
            let goes = labels.has(kind, name);
            if goes {
                self.family.remove(labels);
            }
            !goes
        });
    }

    fn known(&self) -> MutexGuard<'_, HashSet<S>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Labels, M: EncodeMetric + TypedMetric + Default> EncodeMetric for Series<S, M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.family.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.family.metric_type()
    }
}

/// Names that a reload has removed, and that somebody may use still.
#[derive(Debug, Default)]
pub struct Gone {
    /// Names of listeners.
    pub listeners: Vec<Arc<str>>,
    /// Names of rules.
    pub routes: Vec<Arc<str>>,
    /// Names of backends.
    pub backends: Vec<Arc<str>>,
}

/// Names that a configuration has.
#[derive(Debug, Default)]
pub struct Names<'m> {
    /// Of listeners.
    pub listeners: HashSet<&'m str>,
    /// Of rules.
    pub routes: HashSet<&'m str>,
    /// Of backends.
    pub backends: HashSet<&'m str>,
}

impl Gone {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.routes.is_empty() && self.backends.is_empty()
    }

    /// Adds names that are gone now.
    pub(super) fn extend(&mut self, more: Self) {
        self.listeners.extend(more.listeners);
        self.routes.extend(more.routes);
        self.backends.extend(more.backends);
    }

    /// Takes out routes and backends that nobody uses any more, and listeners that are not `active`.
    pub(super) fn unused(&mut self, active: impl Fn(&Arc<str>) -> bool) -> Vec<(Kind, Arc<str>)> {
        let mut unused = Vec::new();
        let used = |name: &Arc<str>| Arc::strong_count(name) > 1;
        let listeners = self.listeners.extract_if(.., |name| !active(name));
        unused.extend(listeners.map(|name| (Kind::Listener, name)));
        unused.extend(self.routes.extract_if(.., |name| !used(name)).map(|name| (Kind::Route, name)));
        unused.extend(self.backends.extract_if(.., |name| !used(name)).map(|name| (Kind::Backend, name)));
        unused
    }
}
