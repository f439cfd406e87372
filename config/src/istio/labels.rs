//! Labels of workloads, and selectors.

use std::fmt;

use crate::{
    decode::{Diagnostics, View},
    options::Label,
};

/// Labels, or a selector for labels.
#[derive(Debug, Clone, Default)]
pub(super) struct Labels<'n>(Vec<(&'n str, &'n str)>);

impl<'n> Labels<'n> {
    pub(super) fn read(view: &View<'n>, diagnostics: &mut Diagnostics) -> Self {
        let entries = view.entries("a mapping of labels", diagnostics);
        Self(
            entries
                .into_iter()
                .filter_map(|(key, view)| Some((key, view.text("the value of a label", diagnostics)?)))
                .collect(),
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, key: &str) -> Option<&'n str> {
        self.0.iter().find(|(other, _)| *other == key).map(|(_, value)| *value)
    }

    /// Whether `labels` has all of these.
    pub(super) fn select(&self, labels: &Self) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether a workload with `labels` may have all of these.
    pub(super) fn may_select(&self, labels: &Self) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key).is_none_or(|other| other == *value))
    }

    /// Whether `labels` of the command line has all of these.
    pub(super) fn selected_by(&self, labels: &[Label]) -> bool {
        self.0
            .iter()
            .all(|(key, value)| labels.iter().any(|label| label.key == *key && label.value == *value))
    }

    /// Merges these with `other`, which takes precedence.
    pub(super) fn merged(mut self, other: Self) -> Self {
        self.0.retain(|(key, _)| other.get(key).is_none());
        self.0.extend(other.0);
        self
    }

    /// Whether both have the same labels, in any order.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.select(other)
    }
}

impl fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}
