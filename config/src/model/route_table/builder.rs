//! From rules in any order to a table that answers with one of them.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{RouteTable, Shadowed, text};
use crate::{
    model::{
        rank::{Because, Rank, ServerRank},
        rule::Rule,
    },
    name::HostPattern,
};

/// Collects rules; see [`RouteTable::builder`].
#[derive(Debug, Clone, Default)]
pub struct RouteTableBuilder {
    candidates: Vec<Candidate>,
    claims: Vec<Claim>,
}

#[derive(Debug, Clone)]
struct Candidate {
    pattern: HostPattern,
    rule: Arc<Rule>,
    rank: Arc<Rank>,
    /// Specificity as written, before the listener's hosts narrowed it.
    written: usize,
    /// Specificity of the host of the listener by which it came.
    host: usize,
    order: usize,
}

/// Names that a server has which is not served.
#[derive(Debug, Clone)]
struct Claim {
    pattern: HostPattern,
    rule: Arc<Rule>,
    server: Arc<ServerRank>,
}

impl RouteTable {
    /// Starts an empty table.
    #[must_use]
    pub fn builder() -> RouteTableBuilder {
        RouteTableBuilder::default()
    }
}

impl RouteTableBuilder {
    /// Adds one pattern of a rule; order of calls is document order.
    ///
    /// `written` is the pattern before it was narrowed to what the listener admits, `host` what admitted it.
    pub fn insert(
        &mut self,
        pattern: HostPattern,
        written: &HostPattern,
        host: &HostPattern,
        rule: &Arc<Rule>,
        rank: &Arc<Rank>,
    ) {
        let order = self.candidates.len();
        self.candidates.push(Candidate {
            pattern,
            rule: Arc::clone(rule),
            rank: Arc::clone(rank),
            written: written.specificity(),
            host: host.specificity(),
            order,
        });
    }

    /// Adds names of a server that is not served: they go to `rule`, which refuses them, and not to a wider pattern.
    ///
    /// A route to the very same names that came by a wider host gives way, since the server that names the host
    /// more specifically has it; of equal hosts the first server's has it. `*` is only claimed against routes to `*`.
    pub fn claim(&mut self, pattern: HostPattern, rule: &Arc<Rule>, server: &Arc<ServerRank>) {
        self.claims.push(Claim { pattern, rule: Arc::clone(rule), server: Arc::clone(server) });
    }

    /// Takes what another table would have been made of, behind what is here.
    pub fn append(&mut self, other: Self) {
        let before = self.candidates.len();
        self.candidates.extend(other.candidates.into_iter().map(|mut candidate| {
            candidate.order += before;
            candidate
        }));
        self.claims.extend(other.claims);
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
        let Self { mut candidates, claims } = self;
        let mut shadowed = Vec::new();
        let claims = settle(claims, &mut candidates, &mut shadowed);
        candidates.extend(claims);
        candidates.sort_by(|a, b| {
            (b.pattern.specificity().cmp(&a.pattern.specificity()))
                .then_with(|| text(&a.pattern).cmp(text(&b.pattern)))
                .then_with(|| a.against(b).0)
        });
        let mut table = RouteTable { shadowed, ..RouteTable::default() };
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

/// Lets claims meet routes of the very same patterns: the routes that give way are taken out, and the claims that are
/// left become candidates.
fn settle(
    mut claims: Vec<Claim>,
    candidates: &mut Vec<Candidate>,
    shadowed: &mut Vec<Shadowed>,
) -> Vec<Candidate> {
    // The first server's claim to a pattern is the one that counts.
    claims.sort_by(|a, b| a.server.of_hosts().cmp(&b.server.of_hosts()));
    let mut first: HashMap<HostPattern, Claim> = HashMap::new();
    for claim in claims {
        first.entry(claim.pattern.clone()).or_insert(claim);
    }
    let mut served = HashSet::new();
    candidates.retain(|candidate| {
        let Some(claim) = first.get(&candidate.pattern) else { return true };
        let because = if *candidate.rank == Rank::Native {
            None
        } else if candidate.host < claim.pattern.specificity() {
            Some(Because::HostMoreSpecific)
        } else {
            match &*candidate.rank {
                Rank::Object { server, .. } if claim.server.of_hosts() < server.of_hosts() => {
                    Some(Because::ServerFirst)
                }
                _ => None,
            }
        };
        match because {
            None => {
                served.insert((candidate.pattern.clone(), candidate.rule.id));
                true
            }
            Some(because) => {
                shadowed.push(Shadowed {
                    pattern: candidate.pattern.clone(),
                    rule: Arc::clone(&candidate.rule),
                    by: Arc::clone(&claim.rule),
                    because,
                });
                false
            }
        }
    });
    // One rule may come to a pattern by several hosts: it has lost the pattern if it has lost all of them.
    shadowed.retain(|lost| !served.contains(&(lost.pattern.clone(), lost.rule.id)));
    shadowed.dedup();
    let routed: HashSet<_> = served.into_iter().map(|(pattern, _)| pattern).collect();
    let beaten_any = shadowed.iter().any(|lost| lost.pattern == HostPattern::Any);
    let mut left: Vec<_> = first
        .into_values()
        .filter(|claim| !routed.contains(&claim.pattern) && (claim.pattern != HostPattern::Any || beaten_any))
        .map(|Claim { pattern, rule, server }| Candidate {
            written: pattern.specificity(),
            host: pattern.specificity(),
            pattern,
            rule,
            rank: Arc::new(Rank::Object { server, exported: 0, object: Arc::default() }),
            order: 0,
        })
        .collect();
    left.sort_by_key(|candidate| candidate.rule.id);
    left
}

impl Candidate {
    /// The order of two candidates for the same pattern, and what decides it.
    fn against(&self, other: &Self) -> (Ordering, Because) {
        match other.written.cmp(&self.written) {
            Ordering::Equal => self
                .rank
                .against(&other.rank)
                .unwrap_or((self.order.cmp(&other.order), Because::WrittenFirst)),
            order => (order, Because::MoreSpecific),
        }
    }
}
