//! Load balancing among the endpoints of a backend.
//!
//! Pure: counters, random numbers, hashes, loads and availability are arguments, so that a distribution can be tested
//! exactly. [`Balancer::first`] is the choice of a normal connection. It allocates nothing, and only
//! `least_connections` and `source_hash` inspect each endpoint. [`Balancer::next`] chooses among the rest, if the
//! first choice is unavailable or its attempt failed.
//!
//! An endpoint is available if it is eligible and has had no recent failure. Health checks and outlier detection
//! decide whether it is eligible.

use std::{ops::Range, sync::Arc};

use snisplice_config::model::balancing::{Algorithm, LoadBalancing};

use self::{maglev::Table, round_robin::Wheel, slow_start::FULL};
use super::health;

pub mod hash;
pub mod maglev;
pub mod rendezvous;
pub mod round_robin;
pub mod slow_start;

/// The state of the endpoints, by their number.
pub trait Group {
    /// Attempts and connections in progress.
    fn active(&self, member: usize) -> u32;

    /// Whether health checks and outlier detection admit connections to the endpoint.
    fn is_eligible(&self, member: usize) -> bool;

    /// Whether a recent attempt failed.
    fn has_failed(&self, member: usize) -> bool;

    /// The share of its weight during slow start, as a part of [`FULL`].
    fn part(&self, member: usize) -> u32;
}

/// The members that a choice includes beside the available ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Among {
    /// Ineligible members as well; see [`Balancer::panics`].
    pub ineligible: bool,
    /// Members with recent failures as well.
    pub failed: bool,
}

/// A set of endpoints, prepared for choices.
#[derive(Debug)]
pub struct Balancer {
    algorithm: Algorithm,
    /// Percent.
    hash_balance_factor: Option<u32>,
    slow_start: bool,
    /// Percent; 0 if the members' health is not watched.
    panic_threshold: u8,
    /// The wheel of all members.
    wheel: Wheel,
    /// The wheel of the members with the first priority, if there are other priorities.
    first_wheel: Option<Wheel>,
    /// The members of each priority, the first priority first.
    tiers: Box<[Range<usize>]>,
    /// The hashes of the members, for the hashing algorithms.
    hashes: Box<[u64]>,
    /// The Maglev table of the first priority.
    table: Option<Arc<Table>>,
}

/// A member of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighted {
    /// [`hash::endpoint`] of the member's address.
    pub hash: u64,
    /// The member's weight, not 0.
    pub weight: u32,
    /// The priority. Members of a higher number are used if none of a lower one is available.
    pub priority: u8,
}

impl Balancer {
    /// Prepares members, sorted by priority. `table` returns the Maglev table of a set, which may be an existing one.
    #[must_use]
    pub fn new(
        members: &[Weighted],
        how: &LoadBalancing,
        panic_threshold: u8,
        table: impl FnOnce(&[Weighted]) -> Option<Arc<Table>>,
    ) -> Self {
        let mut tiers: Vec<Range<usize>> = Vec::new();
        for (at, member) in members.iter().enumerate() {
            match tiers.last_mut() {
                Some(tier) if members[tier.start].priority == member.priority => tier.end = at + 1,
                _ => tiers.push(at..at + 1),
            }
        }
        let first = tiers.first().map_or(&[][..], |tier| &members[tier.clone()]);
        let wheel = |members: &[Weighted]| Wheel::new(members.iter().map(|member| member.weight));
        let hashes = members.iter().map(|member| member.hash).filter(|_| how.algorithm.hashes());
        Self {
            algorithm: how.algorithm,
            hash_balance_factor: how.hash_balance_factor,
            slow_start: how.slow_start.is_some(),
            panic_threshold,
            wheel: wheel(members),
            first_wheel: (tiers.len() > 1).then(|| wheel(first)),
            hashes: hashes.collect(),
            table: if how.algorithm == Algorithm::Maglev { table(first) } else { None },
            tiers: tiers.into(),
        }
    }

    /// The Maglev table.
    #[must_use]
    pub fn table(&self) -> Option<&Arc<Table>> {
        self.table.as_ref()
    }

    fn first_wheel(&self) -> &Wheel {
        self.first_wheel.as_ref().unwrap_or(&self.wheel)
    }

    fn weight(&self, member: usize) -> u64 {
        let slots = self.wheel.slots(member);
        slots.end - slots.start
    }

    /// The current weight of a member.
    fn effective(&self, member: usize, group: &impl Group) -> u64 {
        let part = if self.slow_start { group.part(member) } else { FULL };
        self.weight(member) * u64::from(part)
    }

    /// The choice for a connection with this key. The key is a counter for `round_robin`, the hash of the configured
    /// property for `source_hash` and `maglev`, and otherwise a random number. `None` if the set is empty. The chosen
    /// member may be unavailable.
    #[must_use]
    pub fn first(&self, key: u64, group: &impl Group) -> Option<usize> {
        let tier = self.tiers.first()?;
        if tier.len() == 1 {
            return Some(tier.start);
        }
        let is_available = |member| group.is_eligible(member) && !group.has_failed(member);
        match self.algorithm {
            Algorithm::RoundRobin if !self.slow_start => self.first_wheel().pick(key),
            Algorithm::RoundRobin => {
                let first = self.first_wheel().pick(key)?;
                let dice = hash::mix(key);
                let is_taken = hash::scale(dice, FULL.into()) < u64::from(group.part(first));
                // The number that has decided cannot be used for a second draw.
                Some(if is_taken { first } else { self.draw(hash::mix(dice), None, group) })
            }
            Algorithm::RandomTwoChoices => {
                let one = self.draw(key, None, group);
                if self.keeps_its_share(one, tier, group) {
                    return Some(one);
                }
                let other = self.draw(hash::mix(key), Some(one), group);
                Some(match (is_available(one), is_available(other)) {
                    (true, false) => one,
                    (false, true) => other,
                    _ => self.lighter(one, other, group),
                })
            }
            Algorithm::LeastConnections => {
                let by_weight = self.first_wheel().pick(key)?;
                if self.keeps_its_share(by_weight, tier, group) {
                    return Some(by_weight);
                }
                self.least(key, tier.clone(), group, is_available).or(Some(by_weight))
            }
            Algorithm::SourceHash | Algorithm::Maglev => {
                let first = match &self.table {
                    Some(table) => table.pick(key),
                    None => self.best(key, tier.clone(), |_| true)?,
                };
                if self.hash_balance_factor.is_some() && !self.keeps_its_share(first, tier, group) {
                    let bounds = self.bounds(tier.clone(), group, is_available);
                    if !bounds.admit(self, first, group) {
                        let admits = |member| is_available(member) && bounds.admit(self, member, group);
                        return self.best(key, tier.clone(), admits).or(Some(first));
                    }
                }
                Some(first)
            }
        }
    }

    /// The key for [`Self::next`] after [`Self::first`].
    #[must_use]
    pub fn after_first(&self, key: u64) -> u64 {
        match self.algorithm {
            Algorithm::RoundRobin => self.first_wheel().rest_of(key),
            Algorithm::RandomTwoChoices | Algorithm::LeastConnections => hash::mix(key),
            Algorithm::SourceHash | Algorithm::Maglev => key,
        }
    }

    /// Whether an ineligible member stays chosen by its weight or hash alone. Below the panic threshold, its share
    /// goes to the next priority, or in panic to the member itself. The other members do not receive it.
    fn keeps_its_share(&self, member: usize, tier: &Range<usize>, group: &impl Group) -> bool {
        !group.is_eligible(member) && self.is_below(tier, group)
    }

    /// The number of eligible members of a priority, and the number of all.
    fn eligible(tier: &Range<usize>, group: &impl Group) -> (usize, usize) {
        (tier.clone().filter(|member| group.is_eligible(*member)).count(), tier.len())
    }

    fn is_below(&self, tier: &Range<usize>, group: &impl Group) -> bool {
        self.panic_threshold > 0 && health::is_below(Self::eligible(tier, group), self.panic_threshold)
    }

    /// Whether so few members are eligible that the choice includes all.
    #[must_use]
    pub fn panics(&self, group: &impl Group) -> bool {
        let tiers = self.tiers.iter().map(|tier| Self::eligible(tier, group));
        self.panic_threshold > 0 && health::panics(tiers, self.panic_threshold)
    }

    /// The next choice, without the `passed` members. The member is of the first priority with a member left that is
    /// not below the panic threshold. If there is none, the member is of the first priority with a member left. `key`
    /// becomes the key of the following choice.
    #[must_use]
    pub fn next(&self, key: &mut u64, group: &impl Group, passed: &[u32], among: Among) -> Option<usize> {
        let admits = |member: usize| {
            (among.ineligible || group.is_eligible(member))
                && (among.failed || !group.has_failed(member))
                && !contains(passed, member)
        };
        [false, true].into_iter().find_map(|below| {
            let mut tiers = self.tiers.iter().filter(|tier| self.is_below(tier, group) == below);
            tiers.find_map(|tier| self.among(key, tier, group, admits))
        })
    }

    fn among(
        &self,
        key: &mut u64,
        tier: &Range<usize>,
        group: &impl Group,
        admits: impl Fn(usize) -> bool + Copy,
    ) -> Option<usize> {
        match self.algorithm {
            Algorithm::RoundRobin => {
                let (member, rest) = self.wheel.pick_among(*key, tier.clone(), admits)?;
                *key = rest;
                Some(member)
            }
            Algorithm::RandomTwoChoices => {
                *key = hash::mix(*key);
                let one = self.draw_among(*key, tier.clone(), group, admits)?;
                *key = hash::mix(*key);
                let other =
                    self.draw_among(*key, tier.clone(), group, |member| member != one && admits(member));
                Some(other.map_or(one, |other| self.lighter(one, other, group)))
            }
            Algorithm::LeastConnections => {
                *key = hash::mix(*key);
                self.least(*key, tier.clone(), group, admits)
            }
            Algorithm::SourceHash | Algorithm::Maglev => {
                if self.hash_balance_factor.is_some() {
                    let bounds = self.bounds(tier.clone(), group, admits);
                    let bounded = |member| admits(member) && bounds.admit(self, member, group);
                    if let Some(member) = self.best(*key, tier.clone(), bounded) {
                        return Some(member);
                    }
                }
                self.best(*key, tier.clone(), admits)
            }
        }
    }

    /// Draws a member of the first priority by weight and a random number, except `but`.
    fn draw(&self, random: u64, but: Option<usize>, group: &impl Group) -> usize {
        /// With the least weight of Envoy's default, a tenth, all tries fail in one of five cases.
        const TRIES: u32 = 16;
        let wheel = self.first_wheel();
        let (mut random, mut tries) = (random, 0);
        loop {
            let without = but.map_or(0..0, |member| wheel.slots(member));
            let mut slot = hash::scale(random, wheel.total() - (without.end - without.start));
            if slot >= without.start {
                slot += without.end - without.start;
            }
            let member = wheel.at(slot);
            tries += 1;
            random = hash::mix(random);
            // A failed draw does not change the ratio of the others' shares.
            let is_taken = !self.slow_start
                || tries == TRIES
                || hash::scale(random, FULL.into()) < u64::from(group.part(member));
            if is_taken {
                return member;
            }
            random = hash::mix(random);
        }
    }

    /// Draws an admitted member by weight and a random number.
    fn draw_among(
        &self,
        random: u64,
        members: Range<usize>,
        group: &impl Group,
        admits: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let admitted = || members.clone().filter(|member| admits(*member));
        let total: u64 = admitted().map(|member| self.effective(member, group)).sum();
        let mut slot = hash::scale(random, total);
        admitted().find(|member| {
            let weight = self.effective(*member, group);
            let is_found = slot < weight;
            slot = slot.saturating_sub(weight);
            is_found
        })
    }

    /// The member with fewer connections for its weight. Of two equal ones the first, so that the weights alone
    /// decide without load.
    fn lighter(&self, one: usize, other: usize, group: &impl Group) -> usize {
        if self.is_lighter(other, one, group) { other } else { one }
    }

    fn is_lighter(&self, one: usize, than: usize, group: &impl Group) -> bool {
        let load = |active, weight| u128::from(active) * u128::from(weight);
        load(group.active(one), self.effective(than, group))
            < load(group.active(than), self.effective(one, group))
    }

    /// The member with the fewest connections for its weight. Among equal ones, a draw by weight and a random number.
    fn least(
        &self,
        random: u64,
        members: Range<usize>,
        group: &impl Group,
        admits: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut random = random;
        // The load and weight of the best member, and the sum of the weights of all equally good ones.
        let mut best: Option<(usize, u32, u64, u64)> = None;
        for member in members.filter(|member| admits(*member)) {
            let (active, weight) = (group.active(member), self.effective(member, group));
            let Some((_, least, of, ties)) = &mut best else {
                best = Some((member, active, weight, weight));
                continue;
            };
            let (load, known) =
                (u128::from(active) * u128::from(*of), u128::from(*least) * u128::from(weight));
            if load < known {
                best = Some((member, active, weight, weight));
            } else if load == known {
                *ties += weight;
                random = hash::mix(random);
                if hash::scale(random, *ties) < weight {
                    best = Some((member, active, weight, *ties));
                }
            }
        }
        best.map(|(member, ..)| member)
    }

    /// The member with the best score for the key.
    fn best(&self, key: u64, members: Range<usize>, admits: impl Fn(usize) -> bool) -> Option<usize> {
        #[expect(clippy::cast_precision_loss, reason = "weights are below 2^20, or a sum of such")]
        let score = |member: usize| rendezvous::score(self.hashes[member], key, self.weight(member) as f64);
        members
            .filter(|member| admits(*member))
            .map(|member| (member, score(member)))
            .max_by(|(_, one), (_, other)| one.total_cmp(other))
            .map(|(member, _)| member)
    }

    fn bounds(&self, members: Range<usize>, group: &impl Group, admits: impl Fn(usize) -> bool) -> Bounds {
        let mut bounds = Bounds { active: 1, weights: 0 };
        for member in members.filter(|member| admits(*member)) {
            bounds.active += u64::from(group.active(member));
            bounds.weights += self.weight(member);
        }
        bounds
    }
}

/// The bounds of each member's connections: the sum of all connections, including the next one, and the sum of all
/// weights.
struct Bounds {
    active: u64,
    weights: u64,
}

impl Bounds {
    /// Whether the member has less than its fair share times the factor (Mirrokni, Thorup and Zadimoghaddam,
    /// "Consistent hashing with bounded loads", 2016).
    fn admit(&self, balancer: &Balancer, member: usize, group: &impl Group) -> bool {
        let Some(factor) = balancer.hash_balance_factor else { return true };
        let share = u128::from(self.active) * u128::from(balancer.weight(member)) * u128::from(factor);
        let most = share.div_ceil((u128::from(self.weights) * 100).max(1));
        u128::from(group.active(member)) < most
    }
}

fn contains(passed: &[u32], member: usize) -> bool {
    passed.iter().any(|passed| usize::try_from(*passed) == Ok(member))
}

#[cfg(test)]
mod tests;
