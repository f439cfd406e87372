//! The route table: server names and their rules. The table decides precedence when it is built. So a lookup has at
//! most one result, and its cost does not depend on the number of routes.
//!
//! A name is looked up as it is, then as `*.x` for each of its parents from the longest, then as `*`.
//! [`Rank`](super::rank::Rank) decides between equal patterns. The loser is kept as [`Shadowed`] for `check` and
//! `explain`.

use std::{hash::BuildHasher, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::{rank::Because, rule::Rule};
use crate::name::{HostPattern, ServerName, labels};

pub mod builder;

/// The rules of one listener by server name.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    /// Sorted, the most specific first. Exact names and suffixes are each in alphabetical order.
    entries: Vec<Entry>,
    /// Indices into `entries` by exact name.
    exact: HashTable<u32>,
    /// Indices into `entries` by the name after `*.`.
    suffix: HashTable<u32>,
    any: Option<u32>,
    /// Labels of the longest suffix. It bounds the probes for a name of up to 127 labels.
    deepest: usize,
    shadowed: Vec<Shadowed>,
}

impl RouteTable {
    /// The rule for a hello with this `name`.
    #[must_use]
    pub fn lookup(&self, name: &ServerName) -> Option<&Arc<Rule>> {
        self.find(name).map(|entry| &entry.rule)
    }

    /// The rule for a hello without a name. Only `*` serves it (as in Istio, where `sniHosts: ["*"]` adds no SNI
    /// condition at all).
    #[must_use]
    pub fn no_sni(&self) -> Option<&Arc<Rule>> {
        self.any().map(|entry| &entry.rule)
    }

    /// Every pattern with its rule, the most specific first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The shadowed rules: another rule has the same pattern.
    #[must_use]
    pub fn shadowed(&self) -> &[Shadowed] {
        &self.shadowed
    }

    /// The rule that serves `name` (or a hello without one), and the other candidates.
    #[must_use]
    pub fn explain(&self, name: Option<&ServerName>) -> TableExplanation<'_> {
        let mut matching = match name {
            Some(name) => self
                .exact(name.as_str())
                .into_iter()
                .chain(self.suffixes(name.as_str()))
                .chain(self.any())
                .collect(),
            None => self.any().into_iter().collect::<Vec<_>>(),
        };
        let shadowed = self
            .shadowed
            .iter()
            .filter(|lost| match name {
                Some(name) => lost.pattern.matches(name),
                None => lost.pattern == HostPattern::Any,
            })
            .collect();
        let matched = if matching.is_empty() { None } else { Some(matching.remove(0)) };
        TableExplanation { matched, less_specific: matching, shadowed }
    }

    fn find(&self, name: &ServerName) -> Option<&Entry> {
        let name = name.as_str();
        self.exact(name).or_else(|| self.suffixes(name).next()).or_else(|| self.any())
    }

    fn exact(&self, name: &str) -> Option<&Entry> {
        let index = self.exact.find(hash(name), |&index| self.text(index) == name)?;
        self.entry(*index)
    }

    /// The entries `*.x` that match `name`, the longest first.
    fn suffixes<'t, 'n>(&'t self, name: &'n str) -> impl Iterator<Item = &'t Entry> + use<'t, 'n> {
        let mut rest = if self.deepest == 0 { None } else { Some(last_labels(name, self.deepest)) };
        // The complete name is not below itself.
        if rest == Some(name) {
            rest = parent(name);
        }
        std::iter::from_fn(move || {
            while let Some(suffix) = rest {
                rest = parent(suffix);
                if let Some(&index) = self.suffix.find(hash(suffix), |&index| self.text(index) == suffix) {
                    return self.entry(index);
                }
            }
            None
        })
    }

    fn any(&self) -> Option<&Entry> {
        self.any.and_then(|index| self.entry(index))
    }

    fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)
    }

    fn text(&self, index: u32) -> &str {
        match self.entry(index).map(|entry| &entry.pattern) {
            Some(HostPattern::Exact(name) | HostPattern::Suffix(name)) => name.as_str(),
            Some(HostPattern::Any) | None => "",
        }
    }
}

/// One pattern and its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The matched names.
    pub pattern: HostPattern,
    /// The rule.
    pub rule: Arc<Rule>,
}

/// A rule that serves no connection, since another one with the same pattern comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadowed {
    /// The names that both claim.
    pub pattern: HostPattern,
    /// The loser.
    pub rule: Arc<Rule>,
    /// The winner.
    pub by: Arc<Rule>,
    /// The reason.
    pub because: Because,
}

/// The result of [`RouteTable::explain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableExplanation<'t> {
    /// The entry that serves the name.
    pub matched: Option<&'t Entry>,
    /// Entries that would serve the name without the match, the most specific first.
    pub less_specific: Vec<&'t Entry>,
    /// Rules that claim the name by a pattern of another rule.
    pub shadowed: Vec<&'t Shadowed>,
}

impl RouteTable {
    fn push(&mut self, pattern: HostPattern, rule: Arc<Rule>) {
        let Ok(index) = u32::try_from(self.entries.len()) else {
            return; // Four billion patterns do not fit into memory.
        };
        self.entries.push(Entry { pattern, rule });
        let entries = &self.entries;
        let rehash =
            |&index: &u32| hash(entries.get(index as usize).map_or("", |entry| text(&entry.pattern)));
        match &entries[index as usize].pattern {
            HostPattern::Exact(name) => {
                self.exact.insert_unique(hash(name.as_str()), index, rehash);
            }
            HostPattern::Suffix(suffix) => {
                self.deepest = self.deepest.max(labels(suffix.as_str()));
                self.suffix.insert_unique(hash(suffix.as_str()), index, rehash);
            }
            HostPattern::Any => self.any = Some(index),
        }
    }
}

/// A fixed hash, since only the operator's names are inserted. Names from clients are looked up but never stored.
fn hash(name: &str) -> u64 {
    FixedState::default().hash_one(name)
}

fn text(pattern: &HostPattern) -> &str {
    match pattern {
        HostPattern::Exact(name) | HostPattern::Suffix(name) => name.as_str(),
        HostPattern::Any => "",
    }
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}

/// The last `count` labels of a name, or all labels if it has fewer.
fn last_labels(name: &str, count: usize) -> &str {
    name.rmatch_indices('.').nth(count.saturating_sub(1)).map_or(name, |(dot, _)| &name[dot + 1..])
}

#[cfg(test)]
mod tests;
