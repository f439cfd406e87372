//! The order in which one connection tries the endpoints of a backend.

use std::sync::Arc;

use super::{balance::Wheel, endpoint::Endpoint, lease::Lease};

/// The endpoints that a backend has right now, with their weights. Replaced as a whole when a name gets other addresses.
#[derive(Debug)]
pub struct Members {
    endpoints: Vec<Arc<Endpoint>>,
    wheel: Wheel,
    /// Percent; see [`Members::with_panic_threshold`].
    panic_threshold: u8,
}

impl Members {
    /// Endpoints with their weights; those of weight 0 are left out.
    #[must_use]
    pub fn new(weighted: impl IntoIterator<Item = (Arc<Endpoint>, u32)>) -> Self {
        let (endpoints, weights): (Vec<_>, Vec<_>) =
            weighted.into_iter().filter(|(_, weight)| *weight > 0).unzip();
        Self { endpoints, wheel: Wheel::new(weights), panic_threshold: 0 }
    }

    /// While fewer endpoints than this are available, in percent, the choice takes no notice of what is available
    /// (Envoy's `healthy_panic_threshold`): a few endpoints could not bear the load of all. 0 is never.
    #[must_use]
    pub fn with_panic_threshold(self, percent: u8) -> Self {
        Self { panic_threshold: percent, ..self }
    }

    /// Whether fewer endpoints than the panic threshold are available. Only a connection that has met one which is not
    /// available needs to ask.
    #[must_use]
    pub fn panics(&self) -> bool {
        self.panic_threshold > 0 && {
            let available = self.endpoints.iter().filter(|endpoint| endpoint.available()).count();
            available * 100 < self.endpoints.len() * usize::from(self.panic_threshold)
        }
    }

    /// The endpoints, each at its place.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }
}

/// The endpoints to try for one connection, best first: the one whose turn it is, then its siblings. Those that have lately
/// failed come last.
#[derive(Debug, Clone)]
pub struct Candidates {
    members: Arc<Members>,
    /// The one whose turn it is.
    first: usize,
    /// Where among its siblings the second one is. Consecutive turns differ, so that the share of an endpoint that fails
    /// is spread over all others.
    offset: usize,
    /// How many have been looked at.
    position: usize,
    /// Those that were passed over, in the order in which they were.
    avoided: Vec<usize>,
    retried: usize,
}

impl Candidates {
    /// For the connection whose turn this is.
    #[must_use]
    pub fn new(members: Arc<Members>, turn: u64) -> Self {
        let count = members.endpoints.len() as u64;
        let first = members.wheel.pick(turn).unwrap_or_default();
        let offset = (turn / count.max(1)) % count.saturating_sub(1).max(1);
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of members")]
        let offset = offset as usize;
        Self { members, first, offset, position: 0, avoided: Vec::new(), retried: 0 }
    }

    /// How many are left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.members.endpoints.len() - self.position + self.avoided.len() - self.retried
    }

    /// The member at a position of this connection's order.
    fn member(&self, position: usize) -> usize {
        let count = self.members.endpoints.len();
        match position {
            0 => self.first,
            _ => (self.first + 1 + (position - 1 + self.offset) % (count - 1)) % count,
        }
    }
}

impl Iterator for Candidates {
    type Item = Lease;

    fn next(&mut self) -> Option<Lease> {
        let count = self.members.endpoints.len();
        while self.position < count {
            let member = self.member(self.position);
            self.position += 1;
            let endpoint = &self.members.endpoints[member];
            // Without a sibling there is no choice.
            if count == 1 || endpoint.is_preferred() || self.members.panics() {
                return Some(Lease::of(endpoint.clone()));
            }
            self.avoided.push(member);
        }
        let &member = self.avoided.get(self.retried)?;
        self.retried += 1;
        Some(Lease::of(self.members.endpoints[member].clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr};

    use super::*;
    use crate::upstream::endpoint::Endpoints;

    fn members(weights: &[u32]) -> Arc<Members> {
        let endpoints = Endpoints::default();
        let endpoint = |(index, &weight)| {
            let port = u16::try_from(index).unwrap() + 1;
            (endpoints.at(SocketAddr::from(([10, 0, 0, 1], port))), weight)
        };
        Arc::new(Members::new(weights.iter().enumerate().map(endpoint)))
    }

    fn ports(candidates: Candidates) -> Vec<u16> {
        candidates.map(|lease| lease.address().port()).collect()
    }

    #[test]
    fn each_candidate_comes_once() {
        for count in 1..8 {
            let members = members(&vec![1; count]);
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
        let all: Vec<_> = (1..=4).map(|port| endpoints.at(SocketAddr::from(([10, 0, 0, 1], port)))).collect();
        let members = Members::new(all.iter().map(|endpoint| (endpoint.clone(), 1)));
        let members = Arc::new(members.with_panic_threshold(50));
        let firsts = || {
            let first = |turn| ports(Candidates::new(members.clone(), turn))[0];
            (0..400).map(first).collect::<std::collections::BTreeSet<_>>()
        };
        for (unavailable, expected) in [(1, 3), (2, 2), (3, 4), (4, 4)] {
            all[unavailable - 1].set_eligible(false);
            assert_eq!(firsts().len(), expected, "{unavailable} of 4 are not available");
        }
    }

    #[test]
    fn an_endpoint_without_weight_is_never_tried() {
        assert_eq!(ports(Candidates::new(members(&[0, 1]), 5)), [2]);
        assert_eq!(ports(Candidates::new(members(&[0]), 5)), [0; 0]);
    }
}
