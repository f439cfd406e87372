use std::{cell::RefCell, collections::BTreeMap};

use proptest::prelude::*;
use snisplice_config::model::balancing::SlowStart;

use super::*;

/// The endpoints of a test.
struct Pool {
    active: RefCell<Vec<u32>>,
    eligible: Vec<bool>,
    failed: Vec<bool>,
    parts: Vec<u32>,
}

impl Pool {
    fn of(count: usize) -> Self {
        Self {
            active: RefCell::new(vec![0; count]),
            eligible: vec![true; count],
            failed: vec![false; count],
            parts: vec![FULL; count],
        }
    }

    fn without(count: usize, dead: usize) -> Self {
        let mut pool = Self::of(count);
        pool.eligible[dead] = false;
        pool
    }

    fn is_available(&self, member: usize) -> bool {
        self.eligible[member] && !self.failed[member]
    }
}

impl Group for Pool {
    fn active(&self, member: usize) -> u32 {
        self.active.borrow()[member]
    }

    fn is_eligible(&self, member: usize) -> bool {
        self.eligible[member]
    }

    fn has_failed(&self, member: usize) -> bool {
        self.failed[member]
    }

    fn part(&self, member: usize) -> u32 {
        self.parts[member]
    }
}

fn set(weights: &[u32]) -> Vec<Weighted> {
    let hash = |at: usize| hash::mix(at as u64);
    weights.iter().enumerate().map(|(at, &weight)| Weighted { hash: hash(at), weight, priority: 0 }).collect()
}

fn table(members: &[Weighted]) -> Option<Arc<Table>> {
    Table::new(&members.iter().map(|member| (member.hash, member.weight)).collect::<Vec<_>>()).map(Arc::new)
}

fn balancer_of(how: &LoadBalancing, weights: &[u32]) -> Balancer {
    Balancer::new(&set(weights), how, 0, table)
}

fn balancer(algorithm: Algorithm, weights: &[u32]) -> Balancer {
    balancer_of(&LoadBalancing { algorithm, ..LoadBalancing::default() }, weights)
}

const AVAILABLE: Among = Among { ineligible: false, failed: false };
const ELIGIBLE: Among = Among { ineligible: false, failed: true };
const ALL_FRESH: Among = Among { ineligible: true, failed: false };
const ANY: Among = Among { ineligible: true, failed: true };

/// The first available endpoint, as a connection chooses it.
fn choose(balancer: &Balancer, key: u64, pool: &Pool) -> usize {
    let first = balancer.first(key, pool).unwrap();
    if pool.is_available(first) {
        return first;
    }
    let mut key = balancer.after_first(key);
    balancer.next(&mut key, pool, &[u32::try_from(first).unwrap()], AVAILABLE).unwrap_or(first)
}

/// The key of the `n`th connection.
fn key(algorithm: Algorithm, n: u64) -> u64 {
    if algorithm == Algorithm::RoundRobin { n } else { hash::mix(n) }
}

/// The number of choices of each endpoint, for connections that end at once.
fn shares(balancer: &Balancer, pool: &Pool, connections: u64) -> Vec<u64> {
    let mut counts = vec![0; pool.eligible.len()];
    for n in 0..connections {
        counts[choose(balancer, key(balancer.algorithm, n), pool)] += 1;
    }
    counts
}

fn assert_near(counts: &[u64], weights: &[u32], percent: u64, what: &str) {
    let (all, sum) = (counts.iter().sum::<u64>(), u64::from(weights.iter().sum::<u32>()));
    for (count, weight) in counts.iter().zip(weights) {
        let fair = all * u64::from(*weight) / sum;
        assert!(count.abs_diff(fair) * 100 <= fair * percent, "{what}: {counts:?} for {weights:?}");
    }
}

const ALL: [Algorithm; 5] = [
    Algorithm::RoundRobin,
    Algorithm::RandomTwoChoices,
    Algorithm::LeastConnections,
    Algorithm::SourceHash,
    Algorithm::Maglev,
];

#[test]
fn idle_endpoints_are_chosen_by_weight() {
    for algorithm in ALL {
        for weights in [&[1, 1, 1][..], &[5, 3, 2], &[1, 10], &[7]] {
            let counts = shares(&balancer(algorithm, weights), &Pool::of(weights.len()), 60_000);
            assert_near(&counts, weights, 6, &format!("{algorithm:?}"));
        }
    }
}

#[test]
fn the_share_of_an_endpoint_that_is_not_available_is_spread_by_weight() {
    for algorithm in ALL {
        let weights = [4, 3, 2, 1];
        for dead in 0..4 {
            let counts = shares(&balancer(algorithm, &weights), &Pool::without(4, dead), 60_000);
            let mut left = weights;
            left[dead] = 0;
            assert_near(&counts, &left, 6, &format!("{algorithm:?} without {dead}"));
        }
    }
}

/// Keys of other endpoints do not move: hashing without the endpoint equals hashing with it, except for its own keys.
#[test]
fn an_endpoint_that_is_not_available_moves_its_own_keys_alone() {
    for algorithm in [Algorithm::SourceHash, Algorithm::Maglev] {
        let balancer = balancer(algorithm, &[3, 1, 2, 1, 5]);
        let (all, without) = (Pool::of(5), Pool::without(5, 2));
        for key in (0..20_000).map(hash::mix) {
            let before = choose(&balancer, key, &all);
            let now = choose(&balancer, key, &without);
            assert!(if before == 2 { now != 2 } else { now == before }, "{algorithm:?}: {before} to {now}");
        }
    }
}

/// With rendezvous hashing this also holds for a configuration without the endpoint. A Maglev table moves a few more
/// keys.
#[test]
fn an_endpoint_that_is_added_takes_its_share_and_moves_little_else() {
    for (algorithm, most) in [(Algorithm::SourceHash, 0), (Algorithm::Maglev, 1)] {
        let (four, five) = (balancer(algorithm, &[1; 4]), balancer(algorithm, &[1; 5]));
        let (of_four, of_five) = (Pool::of(4), Pool::of(5));
        let (mut taken, mut moved) = (0, 0);
        for key in (0..50_000).map(hash::mix) {
            let (before, now) = (choose(&four, key, &of_four), choose(&five, key, &of_five));
            taken += u32::from(now == 4);
            moved += u32::from(now != 4 && now != before);
        }
        assert!((9_500..10_500).contains(&taken), "{algorithm:?} takes {taken}");
        assert!(moved * 100 <= 50_000 * most, "{algorithm:?} moves {moved}");
    }
}

#[test]
fn a_weight_that_grows_moves_keys_to_its_endpoint_alone() {
    let (before, after) =
        (balancer(Algorithm::SourceHash, &[2, 2, 2]), balancer(Algorithm::SourceHash, &[2, 3, 2]));
    let pool = Pool::of(3);
    for key in (0..20_000).map(hash::mix) {
        let (old, new) = (choose(&before, key, &pool), choose(&after, key, &pool));
        assert!(old == new || new == 1, "{old} to {new}");
    }
}

/// Connections that stay open are distributed exactly by weight.
#[test]
fn least_connections_is_exact_for_connections_that_stay() {
    let weights = [3, 1, 2];
    let balancer = balancer(Algorithm::LeastConnections, &weights);
    let pool = Pool::of(3);
    for n in 0..6_000 {
        let chosen = choose(&balancer, hash::mix(n), &pool);
        pool.active.borrow_mut()[chosen] += 1;
    }
    assert_eq!(*pool.active.borrow(), [3_000, 1_000, 2_000]);
}

/// An endpoint that returns without connections gets the next ones, until it has as many as the others.
#[test]
fn least_connections_fills_the_endpoint_that_returns() {
    let balancer = balancer(Algorithm::LeastConnections, &[1; 3]);
    let mut pool = Pool::without(3, 0);
    let open = |pool: &Pool, n| {
        let chosen = choose(&balancer, hash::mix(n), pool);
        pool.active.borrow_mut()[chosen] += 1;
        chosen
    };
    for n in 0..100 {
        assert_ne!(open(&pool, n), 0);
    }
    pool.eligible[0] = true;
    assert!((0..50).all(|n| open(&pool, n) == 0));
    assert_eq!(*pool.active.borrow(), [50, 50, 50]);
}

/// Among many endpoints with long connections, two choices keep the maximum near the mean, and one choice does not
/// (Mitzenmacher, "The power of two choices in randomized load balancing", 2001).
#[test]
fn two_choices_keep_the_fullest_near_the_mean() {
    let balancer = balancer(Algorithm::RandomTwoChoices, &[1; 100]);
    let pool = Pool::of(100);
    for n in 0..10_000 {
        let chosen = choose(&balancer, hash::mix(n), &pool);
        pool.active.borrow_mut()[chosen] += 1;
    }
    let most = *pool.active.borrow().iter().max().unwrap();
    assert!(most <= 105, "{most} on one, of 100 in the mean");
}

#[test]
fn two_choices_fill_by_weight() {
    let weights = [6, 3, 1];
    let balancer = balancer(Algorithm::RandomTwoChoices, &weights);
    let pool = Pool::of(3);
    for n in 0..10_000 {
        let chosen = choose(&balancer, hash::mix(n), &pool);
        pool.active.borrow_mut()[chosen] += 1;
    }
    let counts: Vec<_> = pool.active.borrow().iter().map(|count| u64::from(*count)).collect();
    assert_near(&counts, &weights, 2, "two choices");
}

#[test]
fn a_bounded_load_is_never_exceeded_and_moves_only_what_is_beyond() {
    for algorithm in [Algorithm::SourceHash, Algorithm::Maglev] {
        let how = LoadBalancing { algorithm, hash_balance_factor: Some(150), ..LoadBalancing::default() };
        let (bounded, free) = (balancer_of(&how, &[1; 4]), balancer(algorithm, &[1; 4]));
        let pool = Pool::of(4);
        // One key only: without a bound, one endpoint gets all connections.
        let mine = hash::mix(7);
        let own = choose(&free, mine, &Pool::of(4));
        for all in 1..=1_000_u32 {
            let chosen = choose(&bounded, mine, &pool);
            pool.active.borrow_mut()[chosen] += 1;
            let most = *pool.active.borrow().iter().max().unwrap();
            assert!(most <= (all * 150).div_ceil(400), "{most} of {all}");
        }
        let counts = pool.active.borrow().clone();
        assert_eq!(counts[own], 375, "its own takes what it may: {counts:?}");
        assert_eq!(counts.iter().filter(|count| **count == 0).count(), 1, "{counts:?}");
        pool.active.borrow_mut().fill(0);
        assert_eq!(choose(&bounded, mine, &pool), own, "it returns when there is room");
    }
}

fn slow(algorithm: Algorithm) -> LoadBalancing {
    let window = std::time::Duration::from_secs(10);
    let slow_start = Some(SlowStart { window, aggression: "1".parse().unwrap(), min_weight_percent: 10 });
    LoadBalancing { algorithm, slow_start, ..LoadBalancing::default() }
}

#[test]
fn an_endpoint_in_slow_start_has_that_part_of_its_weight() {
    for algorithm in [Algorithm::RoundRobin, Algorithm::RandomTwoChoices, Algorithm::LeastConnections] {
        let balancer = balancer_of(&slow(algorithm), &[1, 1, 2]);
        for percent in [10, 25, 50, 100] {
            let mut pool = Pool::of(3);
            pool.parts[1] = FULL * percent / 100;
            let counts = shares(&balancer, &pool, 100_000);
            assert_near(&counts, &[100, percent, 200], 8, &format!("{algorithm:?} at {percent} %"));
        }
    }
}

#[test]
fn a_new_endpoint_is_not_flooded_because_it_is_empty() {
    for algorithm in [Algorithm::RandomTwoChoices, Algorithm::LeastConnections] {
        let balancer = balancer_of(&slow(algorithm), &[1; 3]);
        let mut pool = Pool::of(3);
        *pool.active.borrow_mut() = vec![0, 100, 100];
        pool.parts[0] = FULL / 10;
        for n in 0..30 {
            let chosen = choose(&balancer, hash::mix(n), &pool);
            pool.active.borrow_mut()[chosen] += 1;
        }
        let new = pool.active.borrow()[0];
        assert!(new <= 12, "{algorithm:?}: {new} of 30, with a tenth of the weight and a tenth of the load");
    }
}

#[test]
fn below_the_panic_threshold_the_next_priority_serves_else_all() {
    let mut members = set(&[1; 4]);
    let how = LoadBalancing::default();
    let mut pool = Pool::of(4);
    (pool.eligible[0], pool.eligible[1]) = (false, false);
    let next = |balancer: &Balancer, pool: &Pool, among| balancer.next(&mut 1, pool, &[0], among);
    let alone = Balancer::new(&members, &how, 51, table);
    assert!(alone.panics(&pool));
    assert!(matches!(next(&alone, &pool, ALL_FRESH), Some(1..=3)));
    let half = Balancer::new(&members, &how, 50, table);
    assert!(!half.panics(&pool));
    assert!(matches!(next(&half, &pool, AVAILABLE), Some(2 | 3)));
    (members[2].priority, members[3].priority) = (1, 1);
    let with_backups = Balancer::new(&members, &how, 51, table);
    assert!(!with_backups.panics(&pool));
    assert!(matches!(next(&with_backups, &pool, AVAILABLE), Some(2 | 3)));
    pool.eligible = vec![false; 4];
    assert!(with_backups.panics(&pool));
    assert_eq!(next(&with_backups, &pool, ALL_FRESH), Some(1));
    let never = Balancer::new(&members, &how, 0, table);
    assert!(!never.panics(&pool));
    assert_eq!(next(&never, &pool, AVAILABLE), None);
    assert_eq!(next(&never, &pool, ELIGIBLE), None);
}

/// The rest of a priority below the threshold still comes before endpoints with failures.
#[test]
fn a_priority_below_the_threshold_is_used_after_the_others() {
    let mut members = set(&[1; 4]);
    (members[2].priority, members[3].priority) = (1, 1);
    let balancer = Balancer::new(&members, &LoadBalancing::default(), 60, table);
    let mut pool = Pool::of(4);
    pool.eligible[0] = false;
    let mut key = 1;
    let mut order = vec![0_u32];
    for _ in 0..3 {
        let next = balancer.next(&mut key, &pool, &order, AVAILABLE).unwrap();
        order.push(u32::try_from(next).unwrap());
    }
    assert_eq!(order.pop(), Some(1), "{order:?}");
    pool.failed[2] = true;
    assert_eq!(balancer.next(&mut key, &pool, &[0, 3], AVAILABLE), Some(1));
    assert_eq!(balancer.next(&mut key, &pool, &[0, 3, 1], AVAILABLE), None);
    assert_eq!(balancer.next(&mut key, &pool, &[0, 3, 1], ELIGIBLE), Some(2));
}

/// In panic, each endpoint keeps its share with every algorithm: the eligible ones alone could not bear the load of
/// all.
#[test]
fn in_panic_no_algorithm_prefers_the_few_that_are_eligible() {
    for algorithm in ALL {
        for factor in [None, Some(1_000)] {
            let hash_balance_factor = factor.filter(|_| algorithm.hashes());
            let how = LoadBalancing { algorithm, hash_balance_factor, ..LoadBalancing::default() };
            let balancer = Balancer::new(&set(&[1; 4]), &how, 50, table);
            let mut pool = Pool::of(4);
            pool.eligible = vec![false, false, true, false];
            let mut counts = vec![0; 4];
            for n in 0..60_000 {
                counts[balancer.first(key(algorithm, n), &pool).unwrap()] += 1;
            }
            assert_near(&counts, &[1; 4], 6, &format!("{algorithm:?}"));
        }
    }
}

/// With any load of the eligible endpoint, and of the ineligible ones.
#[test]
fn below_the_threshold_the_share_of_the_ineligible_goes_to_the_next_priority() {
    for algorithm in ALL {
        let how = LoadBalancing { algorithm, ..LoadBalancing::default() };
        let mut members = set(&[1; 4]);
        members[3].priority = 1;
        let balancer = Balancer::new(&members, &how, 50, table);
        let mut pool = Pool::of(4);
        *pool.active.borrow_mut() = vec![0, 0, 1_000, 1_000];
        (pool.eligible[0], pool.eligible[1]) = (false, false);
        let counts = shares(&balancer, &pool, 60_000);
        assert_near(&counts[2..], &[1, 2], 6, &format!("{algorithm:?}"));
        assert_eq!(counts[..2], [0, 0], "{algorithm:?}");
    }
}

proptest! {
    /// For any set of available and tried endpoints: the next one is neither tried nor unavailable, and all come in
    /// the end. Ineligible ones come only on request.
    #[test]
    fn every_endpoint_comes_once(
        algorithm in prop::sample::select(&ALL[..]),
        weights in prop::collection::vec(
            (1_u32..1_000_000, 0_u8..3, any::<bool>(), any::<bool>(), 0_u32..50), 1..12),
        key in any::<u64>(),
        factor in prop::option::of(100_u32..300),
        threshold in 0_u8..=100,
    ) {
        let mut members: Vec<_> = weights.iter().enumerate().map(|(at, (weight, priority, ..))| {
            Weighted { hash: hash::mix(at as u64), weight: *weight, priority: *priority }
        }).collect();
        members.sort_by_key(|member| member.priority);
        let pool = Pool {
            active: RefCell::new(weights.iter().map(|(.., active)| *active).collect()),
            eligible: weights.iter().map(|(_, _, eligible, ..)| *eligible).collect(),
            failed: weights.iter().map(|(_, _, _, failed, _)| *failed).collect(),
            parts: vec![FULL; weights.len()],
        };
        let hash_balance_factor = factor.filter(|_| algorithm.hashes());
        let how = LoadBalancing { algorithm, hash_balance_factor, ..LoadBalancing::default() };
        let balancer = Balancer::new(&members, &how, threshold, table);
        let first = balancer.first(key, &pool).unwrap();
        prop_assert!(members[first].priority == members[0].priority);
        let mut key = balancer.after_first(key);
        let mut passed = vec![u32::try_from(first).unwrap()];
        for among in [AVAILABLE, ELIGIBLE, ALL_FRESH, ANY] {
            while let Some(member) = balancer.next(&mut key, &pool, &passed, among) {
                prop_assert!(among.ineligible || pool.eligible[member]);
                prop_assert!(among.failed || !pool.failed[member]);
                prop_assert!(!contains(&passed, member));
                passed.push(u32::try_from(member).unwrap());
            }
        }
        prop_assert_eq!(passed.len(), weights.len());
    }
}

#[test]
fn nothing_is_chosen_of_nothing() {
    for algorithm in ALL {
        let balancer = balancer(algorithm, &[]);
        let pool = Pool::of(0);
        assert_eq!(balancer.first(1, &pool), None);
        assert_eq!(balancer.next(&mut 1, &pool, &[], ANY), None);
        assert!(!balancer.panics(&pool));
    }
}

/// The choice of a node with this configuration must never change, and must be equal on every node.
#[test]
fn the_choice_of_a_key_never_changes() {
    let addresses = ["192.0.2.1:443", "192.0.2.2:443", "[2001:db8::1]:443", "192.0.2.1:8443"];
    let members: Vec<_> = addresses
        .map(|address| Weighted { hash: hash::endpoint(address.parse().unwrap()), weight: 1, priority: 0 })
        .into();
    let chosen = |algorithm| {
        let how = LoadBalancing { algorithm, ..LoadBalancing::default() };
        let balancer = Balancer::new(&members, &how, 0, table);
        let key = |last: u8| hash::ip([203, 0, 113, last].into());
        (0..16).map(|last| balancer.first(key(last), &Pool::of(4)).unwrap()).collect::<Vec<_>>()
    };
    let found: BTreeMap<_, _> = [Algorithm::SourceHash, Algorithm::Maglev]
        .map(|algorithm| (Into::<&str>::into(algorithm), chosen(algorithm)))
        .into();
    assert_eq!(found["maglev"], MAGLEV, "{found:?}");
    assert_eq!(found["source_hash"], SOURCE_HASH, "{found:?}");
}

const MAGLEV: [usize; 16] = [1, 1, 3, 0, 0, 0, 2, 1, 1, 2, 1, 2, 0, 3, 2, 3];
const SOURCE_HASH: [usize; 16] = [1, 3, 1, 2, 0, 3, 2, 2, 1, 0, 3, 3, 0, 3, 1, 0];
