//! The order in which one connection tries the endpoints of a backend.

use std::{cell::OnceCell, collections::HashMap, net::SocketAddr, slice, sync::Arc};

use snisplice_config::model::balancing::{LoadBalancing, SlowStart};

use super::{
    affinity::{Affinity, Client},
    balance::{Among, Balancer, Group, Weighted, hash, maglev::Table, slow_start::FULL},
    endpoint::{Endpoint, uptime},
    lease::Lease,
};

/// A configured endpoint of a backend.
#[derive(Debug, Clone)]
pub struct Place {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// The weight. With 0 the endpoint gets no connection.
    pub weight: u32,
    /// The priority. Endpoints of a higher number are used if none of a lower one is available.
    pub priority: u8,
}

/// The current endpoints of a backend with their weights. Replaced as a whole when the addresses of a name change.
#[derive(Debug)]
pub struct Members {
    /// Sorted by priority.
    endpoints: Vec<Arc<Endpoint>>,
    /// The input of the balancer.
    weighted: Vec<Weighted>,
    balancer: Balancer,
    slow_start: Option<SlowStart>,
}

impl Members {
    /// Creates a set of endpoints with their weights, without those of weight 0. A repeated address has the sum of
    /// its weights and the first of its priorities. Equal parts of the `former` set are reused.
    #[must_use]
    pub fn new(
        places: impl IntoIterator<Item = Place>,
        how: &LoadBalancing,
        panic_threshold: u8,
        former: Option<&Self>,
    ) -> Self {
        let mut all: Vec<Place> = Vec::new();
        let mut known: HashMap<SocketAddr, usize> = HashMap::new();
        for place in places.into_iter().filter(|place| place.weight > 0) {
            if let Some(&at) = known.get(&place.endpoint.address()) {
                let first = &mut all[at];
                first.weight = first.weight.saturating_add(place.weight);
                first.priority = first.priority.min(place.priority);
            } else {
                known.insert(place.endpoint.address(), all.len());
                all.push(place);
            }
        }
        all.sort_by_key(|place| place.priority);
        let weighted: Vec<_> = (all.iter())
            .map(|Place { endpoint, weight, priority }| Weighted {
                hash: hash::endpoint(endpoint.address()),
                weight: *weight,
                priority: *priority,
            })
            .collect();
        let table = |first: &[Weighted]| {
            let former = former.filter(|former| former.weighted.get(..first.len()) == Some(first));
            let same = former.filter(|former| {
                former.weighted.get(first.len()).is_none_or(|next| next.priority != first[0].priority)
            });
            same.and_then(|former| former.balancer.table().cloned()).or_else(|| {
                let first: Vec<_> = first.iter().map(|member| (member.hash, member.weight)).collect();
                Table::new(&first).map(Arc::new)
            })
        };
        Self {
            balancer: Balancer::new(&weighted, how, panic_threshold, table),
            endpoints: all.into_iter().map(|place| place.endpoint).collect(),
            weighted,
            slow_start: how.slow_start,
        }
    }

    /// The endpoints, by their number.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The endpoints with their priorities.
    pub fn with_priorities(&self) -> impl Iterator<Item = (&Arc<Endpoint>, u8)> {
        self.endpoints.iter().zip(self.weighted.iter().map(|member| member.priority))
    }

    /// The Maglev table.
    #[cfg(test)]
    pub(super) fn table(&self) -> Option<&Arc<Table>> {
        self.balancer.table()
    }
}

impl Group for Members {
    fn active(&self, member: usize) -> u32 {
        self.endpoints[member].active()
    }

    fn is_eligible(&self, member: usize) -> bool {
        self.endpoints[member].is_eligible()
    }

    fn has_failed(&self, member: usize) -> bool {
        self.endpoints[member].has_failed()
    }

    fn part(&self, member: usize) -> u32 {
        self.slow_start.as_ref().map_or(FULL, |rule| self.endpoints[member].part(rule))
    }
}

/// The affinity of a client's connections.
#[derive(Debug, Clone)]
struct Sticky {
    affinity: Arc<Affinity>,
    client: Client,
}

/// The endpoints to try for one connection, best first: the choice of the backend's algorithm, then further choices
/// among the others. Endpoints with recent failures come last. Ineligible endpoints never come, except in panic.
#[derive(Debug, Clone)]
pub struct Candidates {
    members: Arc<Members>,
    /// See [`Balancer::first`] and [`Balancer::next`].
    key: u64,
    /// The inspected members: first those that were returned, then those that were skipped. Empty before the second
    /// one, so that a normal connection allocates nothing.
    passed: Vec<u32>,
    given: u32,
    stage: Stage,
    /// See [`Balancer::panics`]: one result for the whole connection, computed at the first ineligible member.
    panics: OnceCell<bool>,
    sticky: Option<Box<Sticky>>,
}

/// The progress of the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Nothing,
    /// One member was returned, which is not in `passed` yet.
    One(u32),
    /// The last returned member is to be returned again.
    Again(u32),
    /// Several members were returned.
    Available,
    /// All available members were returned: those with recent failures follow.
    Failed,
}

impl Candidates {
    /// The candidates of a connection with this key.
    #[must_use]
    pub fn new(members: Arc<Members>, key: u64) -> Self {
        Self {
            members,
            key,
            passed: Vec::new(),
            given: 0,
            stage: Stage::Nothing,
            panics: OnceCell::new(),
            sticky: None,
        }
    }

    /// Starts over for the same connection with other endpoints.
    pub(super) fn among(self, members: Arc<Members>) -> Self {
        Self { sticky: self.sticky, ..Self::new(members, self.key) }
    }

    /// Puts the client's former endpoint first, and records the new one later.
    pub(super) fn sticky(mut self, affinity: &Arc<Affinity>, client: Client) -> Self {
        self.sticky = Some(Box::new(Sticky { affinity: affinity.clone(), client }));
        self
    }

    /// The number of candidates that are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.left().count()
    }

    /// Whether no candidate is left.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.left().next().is_none()
    }

    fn left(&self) -> impl Iterator<Item = u32> {
        let count = u32::try_from(self.members.endpoints.len()).unwrap_or(u32::MAX);
        let given = self.given();
        (0..count).filter(move |member| !given.contains(member) && self.is_usable(*member))
    }

    /// The members that were returned.
    fn given(&self) -> &[u32] {
        let passed = &self.passed[..self.passed.len().min(self.given as usize)];
        match &self.stage {
            Stage::One(first) => slice::from_ref(first),
            Stage::Again(last) if !passed.contains(last) => slice::from_ref(last),
            _ => passed,
        }
    }

    fn panics(&self) -> bool {
        *self.panics.get_or_init(|| self.members.balancer.panics(&*self.members))
    }

    /// Whether a member may get connections at all.
    fn is_usable(&self, member: u32) -> bool {
        self.members.endpoints[member as usize].is_eligible() || self.panics()
    }

    /// Makes the last returned candidate come again, since it was not tried.
    pub fn put_back(&mut self) {
        let last = match self.stage {
            Stage::Nothing => return,
            Stage::One(first) | Stage::Again(first) => first,
            Stage::Available | Stage::Failed => {
                match self.passed.get((self.given as usize).wrapping_sub(1)) {
                    Some(last) => *last,
                    None => return,
                }
            }
        };
        self.stage = Stage::Again(last);
    }

    /// Records that the connection uses this candidate.
    pub fn connected(&self, lease: &Lease) {
        if let Some(sticky) = &self.sticky {
            sticky.affinity.connected(sticky.client, lease.address(), uptime());
        }
    }

    /// The client's former endpoint.
    fn former(&self) -> Option<u32> {
        let Sticky { affinity, client } = &**self.sticky.as_ref()?;
        let address = affinity.endpoint(client, uptime())?;
        let at = self.members.endpoints.iter().position(|endpoint| endpoint.address() == address)?;
        u32::try_from(at).ok()
    }

    /// The first choice, if it may be tried.
    fn first(&mut self) -> Option<u32> {
        if let Some(former) = self.former() {
            if self.may_try(former) {
                return Some(former);
            }
            self.passed.push(former);
        }
        let members = &*self.members;
        let first = u32::try_from(members.balancer.first(self.key, members)?).ok()?;
        if self.may_try(first) && !self.passed.contains(&first) {
            return Some(first);
        }
        self.key = members.balancer.after_first(self.key);
        if !self.passed.contains(&first) {
            self.passed.push(first);
        }
        None
    }

    /// Whether a member is tried before the others.
    fn may_try(&self, member: u32) -> bool {
        let endpoints = &self.members.endpoints;
        // Without a sibling there is no choice.
        self.is_usable(member) && (endpoints.len() == 1 || endpoints[member as usize].is_preferred())
    }

    /// The next choice among members that were not inspected yet.
    fn following(&mut self) -> Option<u32> {
        while self.stage == Stage::Available {
            if let Some(member) = self.choose(false) {
                if self.may_try(member) {
                    self.give_last();
                    return Some(member);
                }
                continue;
            }
            self.stage = Stage::Failed;
            // The first choice keeps its turn.
            let given = self.given as usize;
            let first = self.passed.get(given).copied();
            self.passed.truncate(given);
            if let Some(first) = first.filter(|first| self.is_usable(*first)) {
                self.passed.push(first);
                self.given += 1;
                return Some(first);
            }
        }
        let member = self.choose(true)?;
        self.give_last();
        Some(member)
    }

    /// The next choice of the algorithm, which is then passed. `failed` includes members with recent failures. In
    /// panic, ineligible members got their share by the first choice, so they come last here.
    fn choose(&mut self, failed: bool) -> Option<u32> {
        let Self { members, key, passed, .. } = self;
        let mut chosen = members.balancer.next(key, &**members, passed, Among { ineligible: false, failed });
        if chosen.is_none() && self.panics() {
            let Self { members, key, passed, .. } = self;
            chosen = members.balancer.next(key, &**members, passed, Among { ineligible: true, failed });
        }
        let member = u32::try_from(chosen?).ok()?;
        self.passed.push(member);
        Some(member)
    }

    /// Moves the last inspected member to the returned ones.
    fn give_last(&mut self) {
        let last = self.passed.len() - 1;
        self.passed.swap(self.given as usize, last);
        self.given += 1;
    }
}

impl Iterator for Candidates {
    type Item = Lease;

    fn next(&mut self) -> Option<Lease> {
        let member = match self.stage {
            Stage::Nothing => {
                if let Some(first) = self.first() {
                    self.stage = Stage::One(first);
                    self.given = 1;
                    first
                } else {
                    self.stage = Stage::Available;
                    self.following()?
                }
            }
            Stage::One(first) => {
                self.stage = Stage::Available;
                self.key = self.members.balancer.after_first(self.key);
                self.passed.insert(0, first);
                self.following()?
            }
            Stage::Again(last) => {
                let is_passed = self.passed.iter().take(self.given as usize).any(|one| *one == last);
                self.stage = if is_passed { Stage::Available } else { Stage::One(last) };
                last
            }
            Stage::Available | Stage::Failed => self.following()?,
        };
        Some(Lease::of(self.members.endpoints[member as usize].clone()))
    }
}

#[cfg(test)]
mod tests;
