//! New connections in a second: a token bucket for each source, listener or route.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

use snisplice_config::model::access::Rate;

/// Token buckets. Only those that are not full have an entry.
///
/// A bucket is the moment at which it will be full again (the generic cell rate algorithm, ITU-T I.371). Each token
/// takes the same time to come, so this moment also says how many tokens there are.
#[derive(Debug)]
pub struct Buckets<K> {
    most: usize,
    full_at: HashMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K: Clone + Ord + Hash> Buckets<K> {
    /// At most `most` entries.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, full_at: HashMap::new(), by_time: BTreeSet::new() }
    }

    /// Takes a token from the bucket of `key`. Returns false, and takes nothing, if the bucket is empty.
    ///
    /// If there are too many entries, the bucket that is full first counts as full.
    pub fn take(&mut self, key: K, rate: Rate, now: Instant) -> bool {
        self.forget_full(now);
        let before = self.full_at.get(&key).copied();
        let Some(full_at) = taken(before, rate, now) else { return false };
        match before {
            Some(before) => drop(self.by_time.remove(&(before, key.clone()))),
            None if self.full_at.len() >= self.most => {
                if let Some((_, first)) = self.by_time.pop_first() {
                    self.full_at.remove(&first);
                }
            }
            None => {}
        }
        self.by_time.insert((full_at, key.clone()));
        self.full_at.insert(key, full_at);
        true
    }

    fn forget_full(&mut self, now: Instant) {
        while self.by_time.first().is_some_and(|(full_at, _)| *full_at <= now) {
            if let Some((_, key)) = self.by_time.pop_first() {
                self.full_at.remove(&key);
            }
        }
    }
}

/// Takes a token from the bucket that is full at a moment, or is full now. Returns the moment at which the rest is full.
/// `None` if the bucket is empty.
fn taken(full_at: Option<Instant>, rate: Rate, now: Instant) -> Option<Instant> {
    let token = Duration::from_secs(1) / rate.per_second.max(1);
    // An empty bucket is full at this moment. A bucket of a former, larger rule is not emptier than that.
    let empty = now + token * rate.burst.max(1);
    let full_at = full_at.unwrap_or(now).clamp(now, empty) + token;
    (full_at <= empty).then_some(full_at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    /// The number of connections that are admitted at one moment.
    fn drain(buckets: &mut Buckets<u32>, key: u32, rate: Rate, now: Instant) -> usize {
        (0..10_000).take_while(|_| buckets.take(key, rate, now)).count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (mut buckets, now) = (Buckets::new(8), Instant::now());
        let rate = rate(10, 25);
        assert_eq!(drain(&mut buckets, 1, rate, now), 25);
        assert_eq!(drain(&mut buckets, 1, rate, now + SECOND / 20), 0);
        assert_eq!(drain(&mut buckets, 1, rate, now + SECOND / 10), 1);
        assert_eq!(drain(&mut buckets, 1, rate, now + SECOND * 11 / 10), 10);
        assert_eq!(drain(&mut buckets, 2, rate, now), 25, "another one has a bucket of its own");
        assert_eq!(drain(&mut buckets, 1, rate, now + SECOND * 100), 25, "never more than a burst");
    }

    #[test]
    fn a_smaller_rule_counts_from_an_empty_bucket_at_most() {
        let (mut buckets, now) = (Buckets::new(8), Instant::now());
        assert_eq!(drain(&mut buckets, 1, rate(1, 1_000), now), 1_000);
        assert!(!buckets.take(1, rate(2, 4), now));
        assert_eq!(drain(&mut buckets, 1, rate(2, 4), now + SECOND * 990), 0, "it is the same bucket");
        assert_eq!(drain(&mut buckets, 1, rate(1, 1_000), now + SECOND * 990), 990);
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let (mut buckets, now) = (Buckets::new(1_000), Instant::now());
        for key in 0..500 {
            assert!(buckets.take(key, rate(1, 5), now));
        }
        assert_eq!(buckets.full_at.len(), 500);
        assert!(buckets.take(1_000, rate(1, 5), now + SECOND));
        assert_eq!((buckets.full_at.len(), buckets.by_time.len()), (1, 1));
    }

    #[test]
    fn in_a_full_table_the_emptiest_buckets_stay() {
        let (mut buckets, now) = (Buckets::new(4), Instant::now());
        assert_eq!(drain(&mut buckets, 0, rate(1, 5), now), 5);
        for key in 1..100 {
            assert!(buckets.take(key, rate(1, 5), now));
            assert!(buckets.full_at.len() <= 4);
        }
        assert!(!buckets.take(0, rate(1, 5), now), "many others do not free the greedy one");
    }

    proptest! {
        /// A bucket that counts tokens in nanoseconds decides the same.
        #[test]
        fn as_a_bucket_that_counts_its_tokens(
            per_second in 1_u32..=1_000,
            burst in 1_u32..=50,
            pauses in proptest::collection::vec(0_u64..=40_000_000, 1..200),
        ) {
            let (mut buckets, mut now) = (Buckets::new(1), Instant::now());
            let token = u128::from(1_000_000_000 / per_second);
            let size = token * u128::from(burst);
            let mut tokens = size;
            for pause in pauses {
                now += Duration::from_nanos(pause);
                tokens = size.min(tokens + u128::from(pause));
                let admitted = tokens >= token;
                if admitted {
                    tokens -= token;
                }
                prop_assert_eq!(buckets.take((), rate(per_second, burst), now), admitted);
            }
        }

        #[test]
        fn no_window_has_more_than_a_burst_and_the_rate(
            per_second in 1_u32..=100,
            burst in 1_u32..=20,
            pauses in proptest::collection::vec(0_u64..=50, 1..150),
        ) {
            let (mut buckets, mut now) = (Buckets::new(1), Instant::now());
            let mut admitted = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause);
                if buckets.take((), rate(per_second, burst), now) {
                    admitted.push(now);
                }
            }
            for (first, begin) in admitted.iter().enumerate() {
                for (last, end) in admitted.iter().enumerate().skip(first) {
                    let seconds = (*end - *begin).as_secs_f64();
                    let most = f64::from(burst) + seconds * f64::from(per_second) * 1.000_001 + 1e-6;
                    let count = u32::try_from(last - first + 1).unwrap();
                    prop_assert!(f64::from(count) <= most, "{} in {} s", count, seconds);
                }
            }
        }
    }
}
