//! The series of one metric family. Series of removed listeners, routes and backends are deleted.
//!
//! A name is an `Arc<str>` that the configuration in service and its connections share. If no configuration and no
//! connection holds the name any more, its series can be deleted.

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

/// The kind of object that a label names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Listener,
    Route,
    Backend,
}

/// Labels, some of which are names from the configuration.
pub(super) trait Labels:
    EncodeLabelSet + Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static
{
    /// The same labels with unshared copies of the names.
    fn detached(&self) -> Self;

    /// Whether a label of this kind has this name.
    fn has(&self, kind: Kind, name: &str) -> bool;
}

/// The series of one family.
#[derive(Debug, Clone)]
pub(super) struct Series<S, M> {
    family: Family<S, M>,
    /// The existing labels, which the family does not list.
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

    /// The metric with these labels, as an owned value.
    pub(super) fn get_or_create_owned(&self, labels: &S) -> M
    where
        M: Clone,
    {
        self.get_or_create(labels).clone()
    }

    /// Deletes the series with this name.
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

/// Names that a reload has removed, and that connections may still use.
#[derive(Debug, Default)]
pub struct Gone {
    /// The names of listeners.
    pub listeners: Vec<Arc<str>>,
    /// The names of rules.
    pub routes: Vec<Arc<str>>,
    /// The names of backends.
    pub backends: Vec<Arc<str>>,
}

/// The names in a configuration.
#[derive(Debug, Default)]
pub struct Names<'m> {
    /// The names of listeners.
    pub listeners: HashSet<&'m str>,
    /// The names of rules.
    pub routes: HashSet<&'m str>,
    /// The names of backends.
    pub backends: HashSet<&'m str>,
}

impl Gone {
    /// Whether there is no name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listeners.is_empty() && self.routes.is_empty() && self.backends.is_empty()
    }

    /// Adds removed names.
    pub(super) fn extend(&mut self, more: Self) {
        self.listeners.extend(more.listeners);
        self.routes.extend(more.routes);
        self.backends.extend(more.backends);
    }

    /// Removes and returns the routes and backends that are not used any more, and the listeners that are not
    /// `active`.
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
