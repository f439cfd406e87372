//! The number of connections of each source.

use std::{collections::HashMap, net::IpAddr};

use slab::Slab;

use super::cidr::Cidr;

/// The connections of each source. It has an entry for each source with a connection.
#[derive(Debug, Default)]
pub struct Sources {
    by_prefix: HashMap<Cidr, usize>,
    counts: Slab<Source>,
}

#[derive(Debug)]
struct Source {
    prefix: Cidr,
    connections: usize,
}

/// The definition of a source, and its limit of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRule {
    /// Connections at once; `None` is no limit.
    pub most: Option<usize>,
    /// Significant leading bits of an IPv4 address.
    pub ipv4: u8,
    /// Significant leading bits of an IPv6 address.
    pub ipv6: u8,
}

impl SourceRule {
    /// The source of an address.
    #[must_use]
    pub fn source(&self, peer: IpAddr) -> Cidr {
        let peer = peer.to_canonical();
        Cidr::of(peer, if peer.is_ipv4() { self.ipv4 } else { self.ipv6 })
    }
}

impl Sources {
    /// Counts a connection of `source`, unless it has `most` already. [`Sources::leave`] takes the returned key.
    pub fn enter(&mut self, source: Cidr, most: usize) -> Option<usize> {
        let Self { by_prefix, counts } = self;
        if let Some(&key) = by_prefix.get(&source) {
            let connections = &mut counts.get_mut(key)?.connections;
            if *connections >= most {
                return None;
            }
            *connections += 1;
            return Some(key);
        }
        if most == 0 {
            return None;
        }
        let key = counts.insert(Source { prefix: source, connections: 1 });
        by_prefix.insert(source, key);
        Some(key)
    }

    /// A counted connection has ended.
    pub fn leave(&mut self, key: usize) {
        let Some(source) = self.counts.get_mut(key) else { return };
        source.connections -= 1;
        if source.connections == 0 {
            let Source { prefix, .. } = self.counts.remove(key);
            self.by_prefix.remove(&prefix);
        }
    }

    /// The number of sources with a connection.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Cidr {
        SourceRule { most: None, ipv4: 32, ipv6: 64 }.source(text.parse().unwrap())
    }

    #[test]
    fn one_source_is_bounded_and_others_are_not_touched() {
        let mut sources = Sources::default();
        let first = sources.enter(source("192.0.2.1"), 2).unwrap();
        let second = sources.enter(source("192.0.2.1"), 2).unwrap();
        assert_eq!(first, second);
        assert_eq!(sources.enter(source("192.0.2.1"), 2), None);
        assert!(sources.enter(source("192.0.2.2"), 2).is_some());
        sources.leave(first);
        assert!(sources.enter(source("192.0.2.1"), 2).is_some());
        assert_eq!(sources.enter(source("192.0.2.1"), 2), None);
    }

    #[test]
    fn nothing_is_kept_of_a_source_without_connections() {
        let mut sources = Sources::default();
        for round in 0..3u8 {
            let keys: Vec<_> =
                (0..=255u8).map(|n| sources.enter(source(&format!("10.0.{round}.{n}")), 1)).collect();
            assert_eq!(sources.len(), 256);
            keys.into_iter().flatten().for_each(|key| sources.leave(key));
            assert!(sources.counts.is_empty() && sources.by_prefix.is_empty());
        }
        assert!(sources.counts.capacity() <= 512, "places are used again");
        assert_eq!(sources.enter(source("10.0.0.1"), 0), None);
        assert_eq!(sources.len(), 0);
    }

    #[test]
    fn a_mapped_address_is_the_one_that_it_stands_for() {
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff"), "one network, one source");
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }
}
