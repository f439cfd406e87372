//! The ejection of failing endpoints, and its duration (Envoy's `outlier_detection`).

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use snisplice_config::model::health::OutlierDetection;

/// The state of an endpoint.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// The time of the ejection, if it is ejected.
    since: Option<Instant>,
    /// The multiplier of an ejection's time: each ejection adds one, and each interval without ejection subtracts
    /// one.
    multiplier: u32,
}

/// The endpoints of one backend.
#[derive(Debug, Default)]
pub struct Ejections(BTreeMap<SocketAddr, Record>);

/// The number of `total` endpoints that may be ejected at once: the share, but always one that has a sibling.
#[must_use]
pub fn most(total: usize, percent: u8) -> usize {
    (total * usize::from(percent.min(100)) / 100).max(1).min(if total > 1 { total } else { 0 })
}

impl Ejections {
    /// The number of ejected endpoints.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.values().filter(|record| record.since.is_some()).count()
    }

    /// Whether this endpoint is ejected.
    #[must_use]
    pub fn has(&self, address: SocketAddr) -> bool {
        self.0.get(&address).is_some_and(|record| record.since.is_some())
    }

    /// Whether no state depends on the time.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.0.values().all(|record| record.since.is_none() && record.multiplier == 0)
    }

    /// Sets the backend's endpoints. Returns endpoints that must return because the limit of ejections is exceeded.
    pub fn follow(
        &mut self,
        members: impl Iterator<Item = SocketAddr>,
        rules: &OutlierDetection,
    ) -> Vec<SocketAddr> {
        let former = std::mem::take(&mut self.0);
        self.0 =
            members.map(|address| (address, former.get(&address).copied().unwrap_or_default())).collect();
        let mut ejected: Vec<_> =
            self.0.iter().filter_map(|(address, record)| Some((record.since?, *address))).collect();
        // The oldest ejections end first.
        ejected.sort_unstable();
        ejected.truncate(ejected.len().saturating_sub(most(self.0.len(), rules.max_ejection_percent)));
        ejected.into_iter().map(|(_, address)| address).inspect(|address| self.end(*address)).collect()
    }

    /// Ejects an endpoint with too many failures. Returns the duration. `None` if it is already ejected or unknown,
    /// or if the limit of ejections is reached.
    pub fn eject(&mut self, address: SocketAddr, rules: &OutlierDetection, now: Instant) -> Option<Duration> {
        if self.count() >= most(self.0.len(), rules.max_ejection_percent) {
            return None;
        }
        let record = self.0.get_mut(&address).filter(|record| record.since.is_none())?;
        record.since = Some(now);
        record.multiplier = record.multiplier.saturating_add(1);
        Some(lasts(record.multiplier, rules))
    }

    /// The step at the end of each interval: endpoints whose time is over return.
    pub fn look(&mut self, rules: &OutlierDetection, now: Instant) -> Vec<SocketAddr> {
        let mut returned = Vec::new();
        for (address, record) in &mut self.0 {
            match record.since {
                Some(since) if now.saturating_duration_since(since) >= lasts(record.multiplier, rules) => {
                    record.since = None;
                    returned.push(*address);
                }
                Some(_) => {}
                None => record.multiplier = record.multiplier.saturating_sub(1),
            }
        }
        returned
    }

    fn end(&mut self, address: SocketAddr) {
        if let Some(record) = self.0.get_mut(&address) {
            record.since = None;
        }
    }
}

fn lasts(multiplier: u32, rules: &OutlierDetection) -> Duration {
    let longest = rules.max_ejection_time.max(rules.base_ejection_time);
    rules.base_ejection_time.saturating_mul(multiplier.max(1)).min(longest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], u16::try_from(number).unwrap() + 1))
    }

    fn of(count: usize, rules: &OutlierDetection) -> Ejections {
        let mut ejections = Ejections::default();
        ejections.follow((0..count).map(address), rules);
        ejections
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_of_a_few_may_always_be_ejected_but_not_one_alone() {
        let shares: Vec<_> = [0, 1, 2, 3, 9, 10, 19, 20, 100].map(|total| most(total, 10)).into();
        assert_eq!(shares, [0, 0, 1, 1, 1, 1, 1, 2, 10]);
        assert_eq!((most(4, 0), most(4, 100), most(2, 100)), (1, 4, 2));
    }

    #[test]
    fn each_ejection_lasts_longer_and_good_conduct_is_remembered() {
        let rules = OutlierDetection::default();
        let (mut ejections, start) = (of(3, &rules), Instant::now());
        let mut now = start;
        let mut times = Vec::new();
        for _ in 0..12 {
            let time = ejections.eject(address(0), &rules, now).unwrap();
            assert_eq!(ejections.eject(address(0), &rules, now), None, "it is ejected");
            assert!(ejections.look(&rules, now + time.saturating_sub(SECOND)).is_empty());
            now += time;
            assert_eq!(ejections.look(&rules, now), [address(0)]);
            times.push(time.as_secs());
        }
        assert_eq!(times, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
        for _ in 0..12 {
            ejections.look(&rules, now);
        }
        assert!(ejections.is_at_rest());
        assert_eq!(ejections.eject(address(0), &rules, now), Some(30 * SECOND));
    }

    #[test]
    fn no_more_than_the_share_at_once() {
        let rules = OutlierDetection { max_ejection_percent: 20, ..OutlierDetection::default() };
        let (mut ejections, now) = (of(10, &rules), Instant::now());
        let ejected = (0..10).filter(|number| ejections.eject(address(*number), &rules, now).is_some());
        assert_eq!(ejected.count(), 2);
    }

    #[test]
    fn where_siblings_go_the_oldest_ejections_end() {
        let rules = OutlierDetection { max_ejection_percent: 50, ..OutlierDetection::default() };
        let (mut ejections, start) = (of(6, &rules), Instant::now());
        for number in 0..3 {
            ejections.eject(address(number), &rules, start + SECOND * u32::try_from(number).unwrap());
        }
        assert_eq!(ejections.follow((0..4).map(address), &rules), [address(0)]);
        assert!(ejections.has(address(1)) && ejections.has(address(2)));
        assert_eq!(ejections.follow([address(2)].into_iter(), &rules), [address(2)], "none that is alone");
    }

    /// An event of the endpoints of a backend.
    #[derive(Debug, Clone)]
    enum Step {
        Fails(usize),
        Look(u64),
        Members(usize),
        Percent(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_usize..24).prop_map(Step::Fails),
            2 => (0_u64..100).prop_map(Step::Look),
            1 => (0_usize..24).prop_map(Step::Members),
            1 => (0_u8..=100).prop_map(Step::Percent),
        ]
    }

    proptest! {
        /// The ejected share never exceeds its bound, for any events in any order.
        #[test]
        fn the_ejected_share_is_bounded(steps in prop::collection::vec(step(), 0..300)) {
            let (mut rules, mut total, mut now) = (OutlierDetection::default(), 10, Instant::now());
            let mut ejections = of(total, &rules);
            for step in steps {
                match step {
                    Step::Fails(number) => {
                        let before = ejections.count();
                        let ejected = ejections.eject(address(number), &rules, now).is_some();
                        prop_assert_eq!(ejections.count(), before + usize::from(ejected));
                        prop_assert!(!ejected || number < total);
                    }
                    Step::Look(seconds) => {
                        now += Duration::from_secs(seconds);
                        ejections.look(&rules, now);
                    }
                    Step::Members(count) => {
                        total = count;
                        ejections.follow((0..total).map(address), &rules);
                    }
                    Step::Percent(percent) => {
                        rules.max_ejection_percent = percent;
                        ejections.follow((0..total).map(address), &rules);
                    }
                }
                let bound = if total > 1 { (total * usize::from(rules.max_ejection_percent) / 100).max(1) } else { 0 };
                prop_assert!(ejections.count() <= bound, "{} of {}", ejections.count(), total);
            }
        }

        /// Without further failures, every endpoint has returned after the longest time.
        #[test]
        fn every_ejection_ends(failures in prop::collection::vec(0_usize..10, 0..100)) {
            let rules = OutlierDetection { max_ejection_percent: 100, ..OutlierDetection::default() };
            let (mut ejections, mut now) = (of(10, &rules), Instant::now());
            for number in failures {
                ejections.eject(address(number), &rules, now);
                now += SECOND * 7;
                ejections.look(&rules, now);
            }
            ejections.look(&rules, now + rules.max_ejection_time);
            prop_assert_eq!(ejections.count(), 0);
        }
    }
}
