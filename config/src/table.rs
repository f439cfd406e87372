//! Which rule serves which server name: precedence is decided when the table is built, so a lookup has at most
//! one answer and its cost does not grow with the number of routes.
//!
//! A name is looked up as it is, then as `*.x` for each of its parents from the longest, then as `*`. Patterns of
//! equal names are settled by [`Rank`]; the loser is kept as [`Shadowed`] for `check` and `explain`.

use std::{hash::BuildHasher, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::{
    model::Rule,
    name::{HostPattern, ServerName, labels},
};

/// The rules of one listener by server name.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    /// The most specific first; exact names and suffixes each in alphabetical order.
    entries: Vec<Entry>,
    /// Indexes into `entries` by exact name.
    exact: HashTable<u32>,
    /// Indexes into `entries` by the name after `*.`.
    suffix: HashTable<u32>,
    any: Option<u32>,
    /// Labels of the longest suffix: a name of 127 labels costs no more probes than this.
    deepest: usize,
    shadowed: Vec<Shadowed>,
}

impl RouteTable {
    /// Starts an empty table.
    #[must_use]
    pub fn builder() -> RouteTableBuilder {
        RouteTableBuilder::default()
    }

    /// The rule for a hello that names `name`.
    #[must_use]
    pub fn lookup(&self, name: &ServerName) -> Option<&Arc<Rule>> {
        self.find(name).map(|entry| &entry.rule)
    }

    /// The rule for a hello without a name: only `*` serves it (as in Istio, where `sniHosts: ["*"]` adds no SNI
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

    /// The rules that lost a pattern to another one.
    #[must_use]
    pub fn shadowed(&self) -> &[Shadowed] {
        &self.shadowed
    }

    /// What serves `name` (or a hello without one) and what else would have.
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
        // The whole name is never below itself.
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

/// One pattern and the rule that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The names served.
    pub pattern: HostPattern,
    /// By what.
    pub rule: Arc<Rule>,
}

/// A rule that would serve a pattern if another one of the same pattern did not come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadowed {
    /// The names that both claim.
    pub pattern: HostPattern,
    /// The loser.
    pub rule: Arc<Rule>,
    /// The winner.
    pub by: Arc<Rule>,
    /// What decided.
    pub because: Because,
}

/// What decided between two rules for the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The winner was written with a more specific pattern, before the listener's hosts narrowed both.
    MoreSpecific,
    /// The winner is of the native format, which is the operator's own word.
    Native,
    /// The winner's object has the older `creationTimestamp`.
    Older,
    /// The winner's `namespace/name` comes first.
    NameFirst,
    /// The winner is written first.
    WrittenFirst,
}

impl Because {
    /// As the end of a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MoreSpecific => "which is written more specifically",
            Self::Native => "which is of the native format",
            Self::Older => "whose object is older",
            Self::NameFirst => "whose namespace/name comes first",
            Self::WrittenFirst => "which is written first",
        }
    }
}

/// The answer of [`RouteTable::explain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableExplanation<'t> {
    /// What serves the name.
    pub matched: Option<&'t Entry>,
    /// What would serve it without the match, the most specific first.
    pub less_specific: Vec<&'t Entry>,
    /// What claims it by a pattern that another rule took.
    pub shadowed: Vec<&'t Shadowed>,
}

/// How a rule competes with others for the very same names; the first in order wins, the default before all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rank {
    /// RFC 3339 in UTC to the second, as Kubernetes writes it, which sorts as text; an object without one is
    /// younger than all others.
    pub created: Option<Arc<str>>,
    /// `namespace/name`; empty for our own format, which has no such thing.
    pub object: Arc<str>,
}

impl Rank {
    fn is_native(&self) -> bool {
        self.object.is_empty()
    }
}

/// Collects rules; see [`RouteTable::builder`].
#[derive(Debug, Clone, Default)]
pub struct RouteTableBuilder {
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone)]
struct Candidate {
    pattern: HostPattern,
    rule: Arc<Rule>,
    rank: Arc<Rank>,
    /// Specificity as written, before the listener's hosts narrowed it.
    written: usize,
    order: usize,
}

impl RouteTableBuilder {
    /// Adds one pattern of a rule; order of calls is document order.
    ///
    /// `written` is the pattern before it was narrowed to what the listener admits.
    pub fn insert(
        &mut self,
        pattern: HostPattern,
        written: &HostPattern,
        rule: &Arc<Rule>,
        rank: &Arc<Rank>,
    ) {
        let order = self.candidates.len();
        let written = written.specificity();
        self.candidates.push(Candidate {
            pattern,
            rule: Arc::clone(rule),
            rank: Arc::clone(rank),
            written,
            order,
        });
    }

    /// The patterns added so far.
    pub fn patterns(&self) -> impl Iterator<Item = &HostPattern> {
        self.candidates.iter().map(|candidate| &candidate.pattern)
    }

    /// The rules added so far, once for each pattern.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.candidates.iter().map(|candidate| &*candidate.rule)
    }

    /// Decides precedence.
    #[must_use]
    pub fn build(self) -> RouteTable {
        let Self { mut candidates } = self;
        candidates.sort_by(|a, b| {
            (b.pattern.specificity().cmp(&a.pattern.specificity()))
                .then_with(|| text(&a.pattern).cmp(text(&b.pattern)))
                .then_with(|| a.against(b).0)
        });
        let mut table = RouteTable::default();
        let mut winner: Option<Candidate> = None;
        for candidate in candidates {
            match &winner {
                Some(first) if first.pattern == candidate.pattern => {
                    // One rule may come to the same pattern by two ways, for example through two listener hosts.
                    let told = table.shadowed.last().is_some_and(|last| {
                        last.pattern == candidate.pattern && Arc::ptr_eq(&last.rule, &candidate.rule)
                    });
                    if !told && !Arc::ptr_eq(&first.rule, &candidate.rule) {
                        table.shadowed.push(Shadowed {
                            because: first.against(&candidate).1,
                            pattern: candidate.pattern,
                            rule: candidate.rule,
                            by: Arc::clone(&first.rule),
                        });
                    }
                }
                _ => {
                    table.push(candidate.pattern.clone(), Arc::clone(&candidate.rule));
                    winner = Some(candidate);
                }
            }
        }
        table
    }
}

impl Candidate {
    /// The order of two candidates for the same pattern, and what decides it.
    fn against(&self, other: &Self) -> (std::cmp::Ordering, Because) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let age = match (&self.rank.created, &other.rank.created) {
            (Some(a), Some(b)) => a.cmp(b),
            (Some(_), None) => Less,
            (None, Some(_)) => Greater,
            (None, None) => Equal,
        };
        [
            (other.written.cmp(&self.written), Because::MoreSpecific),
            (other.rank.is_native().cmp(&self.rank.is_native()), Because::Native),
            (age, Because::Older),
            (self.rank.object.cmp(&other.rank.object), Because::NameFirst),
        ]
        .into_iter()
        .find(|(order, _)| order.is_ne())
        .unwrap_or((self.order.cmp(&other.order), Because::WrittenFirst))
    }
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

/// Fixed, since only the operator's names are ever inserted: what clients send is looked up but never stored.
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

/// The last `count` labels of a name, or all of it if it has fewer.
fn last_labels(name: &str, count: usize) -> &str {
    name.rmatch_indices('.').nth(count.saturating_sub(1)).map_or(name, |(dot, _)| &name[dot + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Origin, Target};

    fn rule(name: &str) -> Arc<Rule> {
        Arc::new(Rule {
            id: 0,
            name: name.into(),
            origin: Origin { file: "test".into(), line: 1, column: 1 },
            targets: vec![Target { weight: 1, backend: None }],
        })
    }

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn rank(created: Option<&str>, object: &str) -> Arc<Rank> {
        Arc::new(Rank { created: created.map(Into::into), object: object.into() })
    }

    fn table(patterns: &[&str]) -> RouteTable {
        let mut builder = RouteTable::builder();
        for text in patterns {
            builder.insert(pattern(text), &pattern(text), &rule(text), &Arc::default());
        }
        builder.build()
    }

    fn found<'t>(table: &'t RouteTable, name: &str) -> Option<&'t str> {
        table.lookup(&ServerName::parse(name).unwrap()).map(|rule| &*rule.name)
    }

    #[test]
    fn exact_before_longest_suffix_before_any() {
        let table = table(&["*", "*.com", "*.example.com", "www.example.com", "*.b.example.com"]);
        for (name, expected) in [
            ("www.example.com", "www.example.com"),
            ("WWW.EXAMPLE.COM.", "www.example.com"),
            ("x.example.com", "*.example.com"),
            ("x.www.example.com", "*.example.com"),
            ("b.example.com", "*.example.com"),
            ("a.b.example.com", "*.b.example.com"),
            ("z.a.b.example.com", "*.b.example.com"),
            ("example.com", "*.com"),
            ("com", "*"),
            ("example.org", "*"),
        ] {
            assert_eq!(found(&table, name), Some(expected), "{name}");
        }
        assert_eq!(table.no_sni().map(|rule| &*rule.name), Some("*"));
    }

    #[test]
    fn nothing_without_a_match() {
        let table = table(&["*.example.com", "a.org"]);
        for name in ["example.com", "newexample.com", "com", "b.a.org"] {
            assert_eq!(found(&table, name), None, "{name}");
        }
        assert!(table.no_sni().is_none());
        assert_eq!(found(&RouteTable::default(), "a.b"), None);
    }

    #[test]
    fn lookup_agrees_with_the_definition() {
        let patterns = ["*", "a.b.c", "*.b.c", "*.c", "c", "*.a.b.c", "*.d", "b.c", "*.x.y.z.d"];
        let table = table(&patterns);
        let labels = ["a", "b", "c", "d", "x", "y", "z"];
        let mut names = labels.map(String::from).to_vec();
        for _ in 0..3 {
            names = names
                .iter()
                .flat_map(|name| {
                    labels.iter().map(move |label| format!("{label}.{name}")).chain([name.clone()])
                })
                .collect();
        }
        for text in names {
            let name = ServerName::parse(&text).unwrap();
            let expected = patterns
                .iter()
                .filter(|text| pattern(text).matches(&name))
                .max_by_key(|text| pattern(text).specificity())
                .copied();
            assert_eq!(found(&table, &text), expected, "{text}");
        }
    }

    #[test]
    fn ties_go_to_the_oldest_then_the_first_name_then_the_first_written() {
        let old = rank(Some("2020-01-01T00:00:00Z"), "z/z");
        let young = rank(Some("2021-01-01T00:00:00Z"), "a/a");
        let ageless = rank(None, "a/a");
        let ageless_b = rank(None, "a/b");
        for (first, second, because, winner) in [
            (&young, &old, Because::Older, "second"),
            (&ageless, &young, Because::Older, "second"),
            (&ageless_b, &ageless, Because::NameFirst, "second"),
            (&ageless, &ageless, Because::WrittenFirst, "first"),
            (&old, &Arc::default(), Because::Native, "second"),
        ] {
            let mut builder = RouteTable::builder();
            for (name, rank) in [("first", first), ("second", second)] {
                builder.insert(pattern("a.com"), &pattern("a.com"), &rule(name), rank);
            }
            let table = builder.build();
            assert_eq!(found(&table, "a.com"), Some(winner));
            let [lost] = table.shadowed() else { panic!("one loser") };
            assert_eq!((lost.because, &*lost.by.name), (because, winner));
        }
    }

    #[test]
    fn narrowed_patterns_compete_as_they_were_written() {
        let mut builder = RouteTable::builder();
        builder.insert(pattern("*.a.com"), &pattern("*.com"), &rule("wide"), &Arc::default());
        builder.insert(pattern("*.a.com"), &pattern("*.a.com"), &rule("narrow"), &Arc::default());
        assert_eq!(found(&builder.build(), "x.a.com"), Some("narrow"));
    }

    #[test]
    fn one_rule_twice_shadows_nothing() {
        let mut builder = RouteTable::builder();
        let rule = rule("r");
        for _ in 0..2 {
            builder.insert(pattern("a.com"), &pattern("a.com"), &rule, &Arc::default());
        }
        let table = builder.build();
        assert_eq!((table.entries().len(), table.shadowed().len()), (1, 0));
    }

    #[test]
    fn explains_what_was_beaten() {
        let table = table(&["*", "*.b.c", "a.b.c", "*.x", "a.b.c"]);
        let name = ServerName::parse("a.b.c").unwrap();
        let answer = table.explain(Some(&name));
        assert_eq!(answer.matched.map(|entry| entry.pattern.to_string()).as_deref(), Some("a.b.c"));
        let less: Vec<_> = answer.less_specific.iter().map(|entry| entry.pattern.to_string()).collect();
        assert_eq!(less, ["*.b.c", "*"]);
        assert_eq!(answer.shadowed.len(), 1);
        assert_eq!(table.explain(None).matched.map(|entry| entry.pattern.to_string()).as_deref(), Some("*"));
    }
}
