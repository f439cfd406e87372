//! The order in which one connection tries the endpoints of a backend.

use std::{cell::OnceCell, collections::HashMap, net::SocketAddr, slice, sync::Arc};

use snisplice_config::model::balancing::{LoadBalancing, SlowStart};

use super::{
    affinity::{Affinity, Client},
    balance::{Among, Balancer, Group, Weighted, hash, maglev::Table, slow_start::FULL},
    endpoint::{Endpoint, uptime},
    lease::Lease,
};

/// An endpoint of a backend, as it is configured.
#[derive(Debug, Clone)]
pub struct Place {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its share; 0 receives nothing.
    pub weight: u32,
    /// Endpoints of a higher number are for when none of a lower one is available.
    pub priority: u8,
}

/// The endpoints that a backend has right now, with their weights. Replaced as a whole when a name gets other addresses.
#[derive(Debug)]
pub struct Members {
    /// In the order of their priority.
    endpoints: Vec<Arc<Endpoint>>,
    /// What the balancer was made from.
    weighted: Vec<Weighted>,
    balancer: Balancer,
    slow_start: Option<SlowStart>,
}

impl Members {
    /// Endpoints with their weights; those of weight 0 are left out. An address that comes twice has the sum of its weights
    /// and the first of its priorities. What is known of the `former` set is used again where it is the same.
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

    /// The endpoints, each at its place.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The endpoints with their priorities.
    pub fn with_priorities(&self) -> impl Iterator<Item = (&Arc<Endpoint>, u8)> {
        self.endpoints.iter().zip(self.weighted.iter().map(|member| member.priority))
    }

    /// The table for Maglev hashing.
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

/// What makes a client's connections go to one endpoint.
#[derive(Debug, Clone)]
struct Sticky {
    affinity: Arc<Affinity>,
    client: Client,
}

/// The endpoints to try for one connection, best first: the choice of the backend's algorithm, then what it chooses among the
/// others. Those that have lately failed come last, and those that are not eligible never, except in panic.
#[derive(Debug, Clone)]
pub struct Candidates {
    members: Arc<Members>,
    /// See [`Balancer::first`] and [`Balancer::next`].
    key: u64,
    /// Those that have been looked at: first those that were given out, then those that were passed over. Nothing before the
    /// second one, so that the ordinary connection allocates nothing.
    passed: Vec<u32>,
    given: u32,
    stage: Stage,
    /// See [`Balancer::panics`]: one answer for the whole connection, asked for when the first ineligible one is met.
    panics: OnceCell<bool>,
    sticky: Option<Box<Sticky>>,
}

/// What has been looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Nothing,
    /// One that was given out, which is not among the `passed` ones yet.
    One(u32),
    /// The one that was given out last is to be given out again.
    Again(u32),
    /// Several.
    Available,
    /// All that are available: now those that have lately failed.
    Failed,
}

impl Candidates {
    /// For a connection with this key.
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

    /// For the same connection among other endpoints, from the beginning.
    pub(super) fn among(self, members: Arc<Members>) -> Self {
        Self { sticky: self.sticky, ..Self::new(members, self.key) }
    }

    /// With the endpoint first that the client was connected to before, and to be noted which one it is connected to now.
    pub(super) fn sticky(mut self, affinity: &Arc<Affinity>, client: Client) -> Self {
        self.sticky = Some(Box::new(Sticky { affinity: affinity.clone(), client }));
        self
    }

    /// How many are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.left().count()
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.left().next().is_none()
    }

    fn left(&self) -> impl Iterator<Item = u32> {
        let count = u32::try_from(self.members.endpoints.len()).unwrap_or(u32::MAX);
        let given = self.given();
        (0..count).filter(move |member| !given.contains(member) && self.is_usable(*member))
    }

    /// Those that were given out.
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

    /// Whether connections may go to a member at all.
    fn is_usable(&self, member: u32) -> bool {
        self.members.endpoints[member as usize].is_eligible() || self.panics()
    }

    /// Has the one that was given out last come again, since nothing was tried with it.
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

    /// Notes that the connection has gone to this one of them.
    pub fn connected(&self, lease: &Lease) {
        if let Some(sticky) = &self.sticky {
            sticky.affinity.connected(sticky.client, lease.address(), uptime());
        }
    }

    /// The endpoint that the client was connected to before.
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

    /// The choice among those that were not looked at yet.
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
            // The one that was chosen first keeps its turn.
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

    /// The next one that the algorithm chooses, which is then passed; with those that have `failed` too. In panic those that
    /// are not eligible have had their share by the first choice, so that they come after the others here.
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

    /// Counts the one that was looked at last among those that were given out.
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
