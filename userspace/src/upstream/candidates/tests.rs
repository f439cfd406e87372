use std::{collections::BTreeMap, net::IpAddr};

use snisplice_config::model::balancing::{Algorithm, SourceAffinity};
use strum::VariantArray as _;

use super::*;
use crate::upstream::endpoint::Endpoints;

fn by(algorithm: Algorithm) -> LoadBalancing {
    LoadBalancing { algorithm, ..LoadBalancing::default() }
}

/// Endpoints at the ports from 1 on.
fn places<'p>(endpoints: &'p Endpoints, weights: &'p [u32]) -> impl Iterator<Item = Place> + 'p {
    (1..).zip(weights).map(|(port, &weight)| Place {
        endpoint: endpoints.at(SocketAddr::from(([10, 0, 0, 1], port))),
        weight,
        priority: 0,
    })
}

fn members_by(algorithm: Algorithm, weights: &[u32]) -> Arc<Members> {
    let endpoints = Endpoints::default();
    Arc::new(Members::new(places(&endpoints, weights), &by(algorithm), 0, None))
}

fn members(weights: &[u32]) -> Arc<Members> {
    members_by(Algorithm::RoundRobin, weights)
}

fn ports(candidates: Candidates) -> Vec<u16> {
    candidates.map(|lease| lease.address().port()).collect()
}

#[test]
fn each_candidate_comes_once() {
    for (&algorithm, count) in
        Algorithm::VARIANTS.iter().flat_map(|one| (1..8).map(move |count| (one, count)))
    {
        let members = members_by(algorithm, &vec![1; count]);
        for turn in 0..100 {
            let mut candidates = Candidates::new(members.clone(), turn);
            for left in (0..count).rev() {
                assert!(candidates.next().is_some());
                assert_eq!(candidates.remaining(), left);
            }
            let mut seen = ports(Candidates::new(members.clone(), turn));
            seen.sort_unstable();
            assert_eq!(seen, (1..=u16::try_from(count).unwrap()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn one_that_failed_comes_last_and_the_others_share_its_part() {
    let members = members(&[1; 4]);
    members.endpoints()[2].failed();
    let mut shares = BTreeMap::new();
    for turn in 0..1_200 {
        let order = ports(Candidates::new(members.clone(), turn));
        assert_eq!(order.len(), 4);
        assert_eq!(order[3], 3, "turn {turn}: {order:?}");
        *shares.entry(order[0]).or_insert(0) += 1;
    }
    assert!(shares.values().all(|&share| share == 400), "{shares:?}");
}

#[test]
fn where_all_have_failed_all_are_tried() {
    let members = members(&[1; 3]);
    members.endpoints().iter().for_each(|endpoint| endpoint.failed());
    assert_eq!(ports(Candidates::new(members.clone(), 0)).len(), 3);
}

#[test]
fn below_the_panic_threshold_each_endpoint_has_its_turn() {
    let endpoints = Endpoints::default();
    let all: Vec<_> = places(&endpoints, &[1; 4]).collect();
    let members = Arc::new(Members::new(all.clone(), &by(Algorithm::RoundRobin), 50, None));
    let firsts = || {
        let first = |turn| ports(Candidates::new(members.clone(), turn))[0];
        (0..400).map(first).collect::<std::collections::BTreeSet<_>>()
    };
    for (unavailable, expected) in [(1, 3), (2, 2), (3, 4), (4, 4)] {
        all[unavailable - 1].endpoint.set_eligible(false);
        assert_eq!(firsts().len(), expected, "{unavailable} of 4 are not available");
    }
}

#[test]
fn one_that_is_not_eligible_is_never_tried_but_in_panic() {
    let endpoints = Endpoints::default();
    let all: Vec<_> = places(&endpoints, &[1; 3]).collect();
    for &algorithm in Algorithm::VARIANTS {
        let of = |count: usize, threshold| {
            Arc::new(Members::new(all[..count].to_vec(), &by(algorithm), threshold, None))
        };
        let [three, three_never, one, one_never] = [of(3, 50), of(3, 0), of(1, 1), of(1, 0)];
        let order = |members: &Arc<Members>, key| ports(Candidates::new(members.clone(), key));
        all[0].endpoint.set_eligible(false);
        for key in (0..100).map(hash::mix) {
            let mut found = order(&three, key);
            found.sort_unstable();
            assert_eq!(found, [2, 3], "{algorithm:?}");
            assert!(Candidates::new(one_never.clone(), key).is_exhausted(), "{algorithm:?}");
            assert_eq!(order(&one_never, key), [0; 0], "{algorithm:?}");
            assert_eq!(order(&one, key), [1], "{algorithm:?}");
        }
        for place in &all {
            place.endpoint.set_eligible(false);
        }
        for key in (0..100).map(hash::mix) {
            assert_eq!(order(&three_never, key), [0; 0], "{algorithm:?}");
            assert_eq!(order(&three, key).len(), 3, "{algorithm:?}");
        }
        for place in &all {
            place.endpoint.set_eligible(true);
        }
    }
}

#[test]
fn in_panic_what_has_lately_failed_still_comes_last() {
    let endpoints = Endpoints::default();
    let all: Vec<_> = places(&endpoints, &[1; 4]).collect();
    let members = Arc::new(Members::new(all.clone(), &by(Algorithm::RoundRobin), 50, None));
    all[..3].iter().for_each(|place| place.endpoint.set_eligible(false));
    all[1].endpoint.failed();
    for turn in 0..40 {
        let order = ports(Candidates::new(members.clone(), turn));
        assert_eq!((order.len(), order[3]), (4, 2), "turn {turn}: {order:?}");
        assert!(order[..2].contains(&4), "after a failure the eligible one is next: {order:?}");
    }
}

/// The number of remaining candidates is exact, for any state of the endpoints.
#[test]
fn what_is_left_comes() {
    let affinity = Arc::new(Affinity::new(SourceAffinity::default()));
    let client = affinity.client(IpAddr::from([192, 0, 2, 1]));
    affinity.connected(client, SocketAddr::from(([10, 0, 0, 1], 1)), uptime());
    for (&algorithm, threshold) in Algorithm::VARIANTS.iter().flat_map(|one| [(one, 0), (one, 60)]) {
        // A Maglev table is built once.
        let base = Members::new(places(&Endpoints::default(), &[1; 4]), &by(algorithm), threshold, None);
        for state in 0_u32..256 {
            let endpoints = Endpoints::default();
            let all: Vec<_> = places(&endpoints, &[1; 4]).collect();
            for (at, place) in all.iter().enumerate() {
                place.endpoint.set_eligible((state >> at) & 1 == 0);
                if (state >> (at + 4)) & 1 == 1 {
                    place.endpoint.failed();
                }
            }
            let members = Arc::new(Members::new(all, &by(algorithm), threshold, Some(&base)));
            let mut candidates = Candidates::new(members, hash::mix(state.into())).sticky(&affinity, client);
            loop {
                let left = candidates.remaining();
                assert_eq!(ports(candidates.clone()).len(), left, "{algorithm:?} {threshold} {state:b}");
                assert_eq!(candidates.is_exhausted(), left == 0);
                if candidates.next().is_none() {
                    break;
                }
                assert_eq!(candidates.remaining(), left - 1);
            }
        }
    }
}

#[test]
fn an_endpoint_without_weight_is_never_tried() {
    assert_eq!(ports(Candidates::new(members(&[0, 1]), 5)), [2]);
    assert_eq!(ports(Candidates::new(members(&[0]), 5)), [0; 0]);
}

#[test]
fn an_endpoint_that_failed_is_last_for_every_algorithm() {
    for &algorithm in Algorithm::VARIANTS {
        let members = members_by(algorithm, &[3, 1, 2, 1]);
        members.endpoints()[1].failed();
        for key in (0..500).map(hash::mix) {
            let order = ports(Candidates::new(members.clone(), key));
            assert_eq!((order.len(), order[3]), (4, 2), "{algorithm:?} {key}: {order:?}");
        }
    }
}

#[test]
fn backups_come_after_the_others_and_serve_while_none_of_these_is_available() {
    let endpoints = Endpoints::default();
    let tiers = |priorities: [u8; 4]| {
        let places = places(&endpoints, &[1; 4]).zip(priorities);
        places.map(|(place, priority)| Place { priority, ..place })
    };
    for &algorithm in Algorithm::VARIANTS {
        let members = Arc::new(Members::new(tiers([1, 0, 0, 2]), &by(algorithm), 0, None));
        let at = |port: u16| {
            let own = |endpoint: &&Arc<Endpoint>| endpoint.address().port() == port;
            members.endpoints().iter().find(own).unwrap().clone()
        };
        let orders = || (0..50).map(|key| ports(Candidates::new(members.clone(), hash::mix(key))));
        assert!(
            orders().all(|order| order[..2].iter().all(|port| [2, 3].contains(port)) && order[2..] == [1, 4])
        );
        at(2).set_eligible(false);
        assert!(orders().all(|order| order == [3, 1, 4]), "{algorithm:?}");
        at(3).set_eligible(false);
        assert!(orders().all(|order| order == [1, 4]), "{algorithm:?}");
        at(1).set_eligible(false);
        assert!(orders().all(|order| order == [4]), "{algorithm:?}");
        for port in 1..=3 {
            at(port).set_eligible(true);
        }
    }
}

#[test]
fn an_address_that_comes_twice_is_one_endpoint_with_both_weights() {
    let endpoints = Endpoints::default();
    let twice: Vec<_> = places(&endpoints, &[1, 2]).chain(places(&endpoints, &[3])).collect();
    let members = Arc::new(Members::new(twice, &by(Algorithm::RoundRobin), 0, None));
    let firsts = (0..600).map(|turn| ports(Candidates::new(members.clone(), turn))[0]);
    assert_eq!(firsts.filter(|port| *port == 1).count(), 400);
    assert_eq!(members.endpoints().len(), 2);
}

#[test]
fn the_table_of_a_set_that_stays_is_used_again() {
    let endpoints = Endpoints::default();
    let how = by(Algorithm::Maglev);
    let first = Members::new(places(&endpoints, &[1, 2]), &how, 0, None);
    let same = Members::new(places(&endpoints, &[1, 2]), &how, 0, Some(&first));
    assert!(Arc::ptr_eq(first.table().unwrap(), same.table().unwrap()));
    for other in [&[1, 3][..], &[1, 2, 1], &[1]] {
        let other = Members::new(places(&endpoints, other), &how, 0, Some(&first));
        assert_ne!(first.table().unwrap(), other.table().unwrap());
    }
}

#[test]
fn a_client_goes_where_it_was_while_that_endpoint_is_available() {
    let members = members(&[1; 4]);
    let affinity = Arc::new(Affinity::new(SourceAffinity::default()));
    let client = affinity.client(IpAddr::from([192, 0, 2, 1]));
    let candidates = |turn| Candidates::new(members.clone(), turn).sticky(&affinity, client);
    let connect = |turn| {
        let mut candidates = candidates(turn);
        let lease = candidates.next().unwrap();
        candidates.connected(&lease);
        lease.address()
    };
    let first = connect(0);
    assert!((1..20).all(|turn| connect(turn) == first));
    for turn in 0..20 {
        let mut order = ports(candidates(turn));
        assert_eq!(order[0], first.port());
        order.sort_unstable();
        assert_eq!(order, [1, 2, 3, 4], "each once");
    }
    let own = members.endpoints().iter().find(|endpoint| endpoint.address() == first).unwrap();
    own.set_eligible(false);
    assert!(!ports(candidates(3)).contains(&first.port()), "it is not used");
    let second = connect(7);
    assert_ne!(second, first);
    own.set_eligible(true);
    assert!((1..20).all(|turn| connect(turn) == second), "it stays where it went");
}

#[test]
fn one_that_is_put_back_comes_again_and_nothing_is_left_out() {
    let members = members(&[1; 3]);
    members.endpoints()[1].failed();
    for turn in 0..12 {
        let expected = ports(Candidates::new(members.clone(), turn));
        for times in 1..=3 {
            let mut candidates = Candidates::new(members.clone(), turn);
            candidates.put_back();
            let mut found: Vec<_> = (0..times).map(|_| candidates.next().unwrap().address().port()).collect();
            candidates.put_back();
            found.pop();
            found.extend(ports(candidates));
            assert_eq!(found, expected, "turn {turn}, put back after {times}");
        }
    }
}

#[test]
fn a_candidate_is_small_while_a_session_holds_it() {
    assert!(size_of::<Candidates>() <= 64, "{}", size_of::<Candidates>());
}
