//! All endpoints whose health is watched: the schedule of checks, and the changes by checks and failures.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_config::model::health::{Health, HealthCheck};

use super::{active::Checked, certificate::Shown, outlier::Ejections, panics};
use crate::upstream::monitor::{Cause, Key};

/// Concurrent checks. Each needs a descriptor.
pub const MOST_AT_ONCE: usize = 64;

/// A change of an endpoint, or of its backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Checks have failed often enough. Contains the error of the last one.
    Unhealthy(String),
    /// Checks have succeeded often enough.
    Healthy,
    /// Too many consecutive failures.
    Ejected {
        /// The kind of the failures.
        cause: Cause,
        /// The duration of the ejection.
        lasts: Duration,
    },
    /// The ejection is over.
    Returned,
    /// The share of available endpoints has fallen below the backend's panic threshold (`true`), or has reached it
    /// again.
    Panic(bool),
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Check this endpoint.
    Check(Key),
    /// Nothing before this time, or before a check ends.
    At(Instant),
    /// Nothing before a check ends, or endpoints are added.
    Wait,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Success, with the endpoint's certificate if there is one.
    Success(Option<Shown>),
    /// Failure, with the reason.
    Failure(String),
    /// This host could not make the check, so the result says nothing about the endpoint.
    Unknown(String),
}

/// The state of one endpoint.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// The state by its checks.
    pub checked: Checked,
    /// Whether a check has ended.
    pub is_known: bool,
    /// Successful and failed checks.
    pub checks: [u64; 2],
    /// The error of the last check, if it failed.
    pub error: Option<String>,
    /// The certificate at the last check.
    pub certificate: Option<Arc<Shown>>,
    /// The number of ejections.
    pub ejections: u64,
    /// As configured.
    priority: u8,
    /// The time of the next check. `None` during a check.
    due: Option<Instant>,
}

/// One backend.
#[derive(Debug, Default)]
pub struct Group {
    /// The rules of the backend.
    pub health: Health,
    /// The endpoints of the backend.
    pub endpoints: BTreeMap<SocketAddr, Watched>,
    /// The ejected endpoints.
    pub ejections: Ejections,
    /// Whether all endpoints are used, since too few are available.
    pub panics: bool,
    /// The time of the next step of outlier detection.
    look: Option<Instant>,
}

impl Group {
    /// Whether checks and failures admit connections to an endpoint.
    #[must_use]
    pub fn is_eligible(&self, address: SocketAddr) -> bool {
        let healthy = self.endpoints.get(&address).is_none_or(|watched| watched.checked.is_healthy());
        healthy && !self.ejections.has(address)
    }

    fn judge(&mut self) -> Option<Change> {
        let mut priorities: BTreeMap<u8, (usize, usize)> = BTreeMap::new();
        for (address, watched) in &self.endpoints {
            let (eligible, total) = priorities.entry(watched.priority).or_default();
            *eligible += usize::from(self.is_eligible(*address));
            *total += 1;
        }
        let panics = panics(priorities.into_values(), self.health.panic_threshold);
        (std::mem::replace(&mut self.panics, panics) != panics).then_some(Change::Panic(panics))
    }
}

/// A change and its subject. For [`Change::Panic`] the address is that of the endpoint that caused it.
pub type Event = (Key, Change);

/// All watched backends.
#[derive(Debug, Default)]
pub struct Watchlist {
    groups: BTreeMap<Arc<str>, Group>,
    due: BTreeSet<(Instant, Key)>,
    running: usize,
}

/// A backend to watch.
#[derive(Debug)]
pub struct Wanted<'w> {
    /// The name of the backend.
    pub backend: &'w Arc<str>,
    /// The rules of the backend.
    pub health: &'w Health,
    /// The endpoints with their priorities.
    pub endpoints: Vec<(SocketAddr, u8)>,
}

impl Watchlist {
    /// Sets the backends to watch. Endpoints that stay keep their state, and new ones are checked at once.
    pub fn want(&mut self, wanted: Vec<Wanted<'_>>, now: Instant) -> Vec<Event> {
        let mut former = std::mem::take(&mut self.groups);
        let mut events = Vec::new();
        self.due.clear();
        for Wanted { backend, health, endpoints } in wanted {
            let mut group = former.remove(backend).unwrap_or_default();
            let checks_anew = group.health.check.as_ref().map(|check| &check.probe)
                != health.check.as_ref().map(|check| &check.probe);
            group.health = health.clone();
            let mut known = std::mem::take(&mut group.endpoints);
            for (address, priority) in endpoints {
                let mut watched = known.remove(&address).unwrap_or_else(Watched::begin_at(now));
                if checks_anew {
                    // The check has changed, so earlier results do not apply.
                    watched = Watched { ejections: watched.ejections, ..Watched::begin_at(now)() };
                }
                watched.priority = priority;
                if health.check.is_some()
                    && let Some(due) = watched.due
                {
                    self.due.insert((due, (backend.clone(), address)));
                }
                group.endpoints.insert(address, watched);
            }
            let rules = health.outliers.clone().unwrap_or_default();
            let members: Vec<_> = group.endpoints.keys().copied().collect();
            let mut returned = group.ejections.follow(members.iter().copied(), &rules);
            if health.outliers.is_none() {
                let ejected: Vec<_> = members.into_iter().filter(|one| group.ejections.has(*one)).collect();
                group.ejections = Ejections::default();
                returned.extend(ejected);
            }
            events.extend(returned.iter().map(|one| ((backend.clone(), *one), Change::Returned)));
            if let (Some(change), Some(address)) = (group.judge(), group.endpoints.keys().next()) {
                events.push(((backend.clone(), *address), change));
            }
            self.groups.insert(backend.clone(), group);
        }
        events
    }

    /// Whether no backend is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// All watched backends, by name.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<Arc<str>, Group> {
        &self.groups
    }

    /// The next step. An endpoint to check counts as in progress until [`Self::ended`].
    pub fn next(&mut self, now: Instant) -> Next {
        let look = self.groups.values().filter_map(|group| group.look).min();
        let Some((due, _)) = self.due.first().filter(|_| self.running < MOST_AT_ONCE) else {
            return look.map_or(Next::Wait, Next::At);
        };
        if *due > now {
            return Next::At(look.map_or(*due, |look| look.min(*due)));
        }
        let Some((_, key)) = self.due.pop_first() else { return Next::Wait };
        if let Some(watched) = self.watched(&key) {
            watched.due = None;
        }
        self.running += 1;
        Next::Check(key)
    }

    fn watched(&mut self, (backend, address): &Key) -> Option<&mut Watched> {
        self.groups.get_mut(backend)?.endpoints.get_mut(address)
    }

    /// Applies the result of an endpoint's check under these rules. `dice` is any number.
    pub fn ended(
        &mut self,
        key: &Key,
        rules: &HealthCheck,
        outcome: Outcome,
        now: Instant,
        dice: u32,
    ) -> Vec<Event> {
        self.running = self.running.saturating_sub(1);
        let Some(group) = self.groups.get_mut(&key.0) else { return Vec::new() };
        // A reload may have changed the check, or may have removed the endpoint and added it again. Its next check is
        // then a new one.
        let asks = group.health.check.as_ref().filter(|check| check.probe == rules.probe);
        let (Some(rules), Some(watched)) = (asks, group.endpoints.get_mut(&key.1)) else { return Vec::new() };
        if watched.due.is_some() {
            return Vec::new();
        }
        let before = watched.checked;
        let mut changes = Vec::new();
        match outcome {
            Outcome::Success(certificate) => {
                watched.checks[0] += 1;
                (watched.is_known, watched.error) = (true, None);
                if let Some(certificate) = certificate
                    && watched.certificate.as_deref() != Some(&certificate)
                {
                    watched.certificate = Some(Arc::new(certificate));
                }
                watched.checked = before.after(true, rules);
                if watched.checked.is_healthy() && !before.is_healthy() {
                    changes.push(Change::Healthy);
                }
            }
            Outcome::Failure(error) => {
                watched.checks[1] += 1;
                watched.is_known = true;
                watched.checked = before.after(false, rules);
                if !watched.checked.is_healthy() && before.is_healthy() {
                    changes.push(Change::Unhealthy(error.clone()));
                }
                watched.error = Some(error);
            }
            Outcome::Unknown(error) => watched.error = Some(error),
        }
        let due = now + watched.checked.pause(rules, dice);
        watched.due = Some(due);
        self.due.insert((due, key.clone()));
        changes.extend(group.judge());
        changes.into_iter().map(|change| (key.clone(), change)).collect()
    }

    /// Applies too many consecutive failures of an endpoint.
    pub fn failed(&mut self, key: &Key, cause: Cause, now: Instant) -> Vec<Event> {
        let Some(group) = self.groups.get_mut(&key.0) else { return Vec::new() };
        let Some(rules) = &group.health.outliers else { return Vec::new() };
        let Some(lasts) = group.ejections.eject(key.1, rules, now) else { return Vec::new() };
        group.look.get_or_insert(now + rules.interval);
        if let Some(watched) = group.endpoints.get_mut(&key.1) {
            watched.ejections += 1;
        }
        let changes = [Some(Change::Ejected { cause, lasts }), group.judge()];
        changes.into_iter().flatten().map(|change| (key.clone(), change)).collect()
    }

    /// Makes the step of outlier detection for each backend whose interval is over.
    pub fn look(&mut self, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for (backend, group) in &mut self.groups {
            if group.look.is_none_or(|look| look > now) {
                continue;
            }
            let Some(rules) = &group.health.outliers else {
                group.look = None;
                continue;
            };
            let returned = group.ejections.look(rules, now);
            group.look = (!group.ejections.is_at_rest()).then(|| now + rules.interval);
            let last = returned.last().copied();
            events.extend(returned.into_iter().map(|one| ((backend.clone(), one), Change::Returned)));
            if let (Some(change), Some(address)) = (group.judge(), last) {
                events.push(((backend.clone(), address), change));
            }
        }
        events
    }
}

impl Watched {
    /// A new endpoint, which is checked at once.
    fn begin_at(now: Instant) -> impl FnOnce() -> Self {
        move || Self { due: Some(now), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use snisplice_config::model::health::OutlierDetection;

    use super::*;

    fn address(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    fn rules() -> Health {
        let check = HealthCheck { rise: 2, fall: 2, interval_jitter_percent: 0, ..HealthCheck::default() };
        Health { check: Some(check), outliers: Some(OutlierDetection::default()), ..Health::default() }
    }

    fn want(list: &mut Watchlist, health: &Health, ports: &[u16], now: Instant) -> Vec<Event> {
        let backend = "pool".into();
        let endpoints = ports.iter().map(|port| (address(*port), 0)).collect();
        list.want(vec![Wanted { backend: &backend, health, endpoints }], now)
    }

    fn key(port: u16) -> Key {
        ("pool".into(), address(port))
    }

    /// Makes all checks that are due. The checks of these ports fail.
    fn check(list: &mut Watchlist, health: &Health, dead: &[u16], now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        while let Next::Check(key) = list.next(now) {
            let outcome = if dead.contains(&key.1.port()) {
                Outcome::Failure("refused".into())
            } else {
                Outcome::Success(None)
            };
            events.extend(list.ended(&key, health.check.as_ref().unwrap(), outcome, now, 0));
        }
        events
    }

    #[test]
    fn an_endpoint_falls_and_rises() {
        let (mut list, health, mut now) = (Watchlist::default(), rules(), Instant::now());
        assert_eq!(want(&mut list, &health, &[1, 2], now), []);
        assert_eq!(check(&mut list, &health, &[2], now), []);
        now += Duration::from_secs(1);
        assert_eq!(check(&mut list, &health, &[2], now), [(key(2), Change::Unhealthy("refused".into()))]);
        let group = &list.groups()["pool"];
        assert!(group.is_eligible(address(1)) && !group.is_eligible(address(2)) && !group.panics);
        now += Duration::from_secs(1);
        assert_eq!(check(&mut list, &health, &[], now), []);
        now += Duration::from_secs(1);
        assert_eq!(check(&mut list, &health, &[], now), [(key(2), Change::Healthy)]);
    }

    #[test]
    fn what_is_known_outlives_a_reload_and_other_questions_do_not() {
        let (mut list, mut health, mut now) = (Watchlist::default(), rules(), Instant::now());
        want(&mut list, &health, &[1, 2, 3], now);
        for _ in 0..2 {
            check(&mut list, &health, &[2], now);
            now += Duration::from_secs(1);
        }
        list.failed(&key(3), Cause::Consecutive5xx, now);
        want(&mut list, &health, &[2, 3, 4, 5], now);
        let group = &list.groups()["pool"];
        let eligible = [2, 3, 4, 5].map(|port| group.is_eligible(address(port)));
        assert_eq!(eligible, [false, false, true, true]);
        assert_eq!(list.next(now), Next::Check(key(2)), "what was due is due");
        let check = health.check.as_mut().unwrap();
        check.probe = snisplice_config::model::health::Probe::Tls { sni: None, alpn: Vec::new() };
        want(&mut list, &health, &[2, 3, 4, 5], now);
        let group = &list.groups()["pool"];
        assert!(group.is_eligible(address(2)) && !group.is_eligible(address(3)));
    }

    #[test]
    fn all_down_is_panic() {
        let (mut list, health, mut now) = (Watchlist::default(), rules(), Instant::now());
        want(&mut list, &health, &[1, 2], now);
        check(&mut list, &health, &[1, 2], now);
        now += Duration::from_secs(1);
        let events = check(&mut list, &health, &[1, 2], now);
        assert_eq!(events.last(), Some(&(key(2), Change::Panic(true))));
        for _ in 0..2 {
            now += Duration::from_secs(1);
            check(&mut list, &health, &[2], now);
        }
        assert!(!list.groups()["pool"].panics, "one of two is half");
    }

    #[test]
    fn a_priority_that_serves_is_no_panic() {
        let (mut list, health, mut now) = (Watchlist::default(), rules(), Instant::now());
        let endpoints = vec![(address(1), 0), (address(2), 0), (address(3), 1)];
        list.want(vec![Wanted { backend: &"pool".into(), health: &health, endpoints }], now);
        for _ in 0..2 {
            check(&mut list, &health, &[1, 2], now);
            now += Duration::from_secs(1);
        }
        assert!(!list.groups()["pool"].panics, "the backup serves");
        now += Duration::from_secs(10);
        check(&mut list, &health, &[1, 2, 3], now);
        now += Duration::from_secs(1);
        let events = check(&mut list, &health, &[1, 2, 3], now);
        assert_eq!(events.last(), Some(&(key(3), Change::Panic(true))));
    }

    #[test]
    fn an_ejected_endpoint_returns_at_a_look() {
        let (mut list, health, now) = (Watchlist::default(), rules(), Instant::now());
        let health = Health { check: None, ..health };
        want(&mut list, &health, &[1, 2], now);
        assert_eq!(list.next(now), Next::Wait);
        let events = list.failed(&key(1), Cause::Consecutive5xx, now);
        assert!(matches!(&events[..], [(_, Change::Ejected { .. })]), "{events:?}");
        assert_eq!(list.failed(&key(2), Cause::Consecutive5xx, now), [], "no more than one of two");
        assert_eq!(list.next(now), Next::At(now + Duration::from_secs(10)));
        assert_eq!(list.look(now + Duration::from_secs(29)), []);
        assert_eq!(list.look(now + Duration::from_secs(39)), [(key(1), Change::Returned)]);
    }

    #[test]
    fn where_nothing_is_watched_nothing_is_left() {
        let (mut list, now) = (Watchlist::default(), Instant::now());
        want(&mut list, &rules(), &[1, 2], now);
        list.want(Vec::new(), now);
        assert!(list.is_empty());
        assert_eq!(list.next(now), Next::Wait);
    }

    proptest! {
        /// The number of concurrent checks is bounded, and each endpoint has at most one.
        #[test]
        fn checks_are_bounded(count in 0_u16..300, ends in prop::collection::vec(any::<bool>(), 0..300)) {
            let (mut list, health, now) = (Watchlist::default(), rules(), Instant::now());
            want(&mut list, &health, &(1..=count).collect::<Vec<_>>(), now);
            let mut running = Vec::new();
            for end in ends {
                if end && let Some(key) = running.pop() {
                    let outcome = Outcome::Success(None);
                    list.ended(&key, health.check.as_ref().unwrap(), outcome, now, 0);
                } else if let Next::Check(key) = list.next(now) {
                    prop_assert!(!running.contains(&key));
                    running.push(key);
                }
                prop_assert!(running.len() <= MOST_AT_ONCE);
            }
        }
    }
}
