//! Builds a route table from rules in any order.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::Arc,
};

use super::{RouteTable, Shadowed, text};
use crate::{
    model::{
        rank::{Because, Rank, ServerRank},
        rule::Rule,
        termination::{Inside, Termination},
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
    /// Specificity of the pattern before the listener's hosts narrowed it.
    written: usize,
    /// Specificity of the listener's host that admitted the pattern.
    host: usize,
    order: usize,
}

/// Names of a server, independent of its routes.
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
    /// Adds one pattern of a rule, in document order.
    ///
    /// `written` is the pattern before the listener's hosts narrowed it. `host` is the host that admitted it.
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

    /// Adds names of a server. They belong to `rule`, which terminates TLS or refuses connections, and not to a wider
    /// pattern.
    ///
    /// A route for the same names that a wider host admitted loses, since the server with the more specific host
    /// wins. Between equal hosts, the first server wins. A rule that refuses claims `*` only against routes for `*`.
    pub fn claim(&mut self, pattern: HostPattern, rule: &Arc<Rule>, server: &Arc<ServerRank>) {
        self.claims.push(Claim { pattern, rule: Arc::clone(rule), server: Arc::clone(server) });
    }

    /// Appends the rules of another builder.
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

    /// Whether any rule so far has a backend, or serves HTTP itself.
    #[must_use]
    pub fn serves_any(&self) -> bool {
        let serves = |rule: &Rule| {
            rule.targets.iter().any(|target| target.backend.is_some())
                || rule.termination.as_ref().is_some_and(|ends| matches!(ends.inside, Inside::Http(_)))
        };
        self.candidates.iter().any(|candidate| serves(&candidate.rule))
            || self.claims.iter().any(|claim| serves(&claim.rule))
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
                    // One rule may have the same pattern twice, for example through two listener hosts.
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

/// Resolves claims and routes with equal patterns: losing routes are removed, and the remaining claims become
/// candidates.
fn settle(
    mut claims: Vec<Claim>,
    candidates: &mut Vec<Candidate>,
    shadowed: &mut Vec<Shadowed>,
) -> Vec<Candidate> {
    // Only the first server's claim to a pattern counts.
    claims.sort_by(|a, b| a.server.of_hosts().cmp(&b.server.of_hosts()));
    let mut first: HashMap<HostPattern, Claim> = HashMap::new();
    for claim in claims {
        match first.entry(claim.pattern.clone()) {
            Entry::Vacant(place) => {
                place.insert(claim);
            }
            Entry::Occupied(winner) => {
                let by = &winner.get().rule;
                if claim.rule.termination.is_some() && !Arc::ptr_eq(by, &claim.rule) {
                    shadowed.push(claim.shadowed(by, Because::ServerFirst));
                }
            }
        }
    }
    let mut served = HashSet::new();
    let mut routed_by: Vec<Shadowed> = Vec::new();
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
                // A server's own route does not take names from the server.
                let own = |ends: &Arc<Termination>| {
                    candidate.rule.termination.as_ref().is_some_and(|other| other.id == ends.id)
                };
                if claim.rule.termination.as_ref().is_some_and(|ends| !own(ends)) {
                    let native = *candidate.rank == Rank::Native;
                    let because = if native { Because::Native } else { Because::ServerFirst };
                    routed_by.push(claim.shadowed(&candidate.rule, because));
                }
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
    // One rule may have a pattern through several hosts. It has lost the pattern only if it has lost all of them.
    shadowed.retain(|lost| !served.contains(&(lost.pattern.clone(), lost.rule.id)));
    routed_by.dedup_by(|a, b| a.pattern == b.pattern && Arc::ptr_eq(&a.rule, &b.rule));
    shadowed.extend(routed_by);
    shadowed.dedup();
    let routed: HashSet<_> = served.into_iter().map(|(pattern, _)| pattern).collect();
    let beaten_any = shadowed.iter().any(|lost| lost.pattern == HostPattern::Any);
    let mut left: Vec<_> = first
        .into_values()
        .filter(|claim| {
            let any = claim.pattern == HostPattern::Any && claim.rule.termination.is_none();
            !routed.contains(&claim.pattern) && (!any || beaten_any)
        })
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

impl Claim {
    fn shadowed(&self, by: &Arc<Rule>, because: Because) -> Shadowed {
        Shadowed { pattern: self.pattern.clone(), rule: Arc::clone(&self.rule), by: Arc::clone(by), because }
    }
}

impl Candidate {
    /// The order of two candidates for the same pattern, and the reason.
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
