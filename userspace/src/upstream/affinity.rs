//! Client affinity: the endpoint of a client's connection, so that further connections go to the same endpoint.
//!
//! All workers share the table of a backend, and the table outlives a reload. The table is bounded: a new client
//! replaces the one that was silent for longest. Time is an argument.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use slab::Slab;
use snisplice_config::model::balancing::SourceAffinity;

/// The first address of the client's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

/// Several shards, so that workers seldom wait for each other.
const SHARDS: usize = 16;

/// A smaller table has one shard, so that its bound is exact.
const SMALLEST_SHARD: usize = 64;

/// The clients of one backend.
#[derive(Debug)]
pub struct Affinity {
    rule: SourceAffinity,
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

/// A shard of the clients. Every entry expires the same time after its last use, so the order of use is the order of
/// expiry.
#[derive(Debug, Default)]
struct Shard {
    by_client: HashMap<Client, usize>,
    entries: Slab<Entry>,
    /// The most and the least recently used entries.
    newest: Option<usize>,
    oldest: Option<usize>,
}

#[derive(Debug)]
struct Entry {
    client: Client,
    endpoint: SocketAddr,
    used: Duration,
    newer: Option<usize>,
    older: Option<usize>,
}

impl Affinity {
    /// Creates an empty table.
    #[must_use]
    pub fn new(rule: SourceAffinity) -> Self {
        let shards = (rule.max_entries / SMALLEST_SHARD).clamp(1, SHARDS);
        let shards = (0..shards).map(|_| Mutex::default()).collect();
        Self { rule, shards, hasher: RandomState::default() }
    }

    /// The configuration of the table.
    #[must_use]
    pub fn rule(&self) -> &SourceAffinity {
        &self.rule
    }

    /// The client of an address.
    #[must_use]
    pub fn client(&self, address: IpAddr) -> Client {
        Client(match address.to_canonical() {
            IpAddr::V4(address) => {
                // A shift by all bits would overflow.
                let mask = u32::MAX.checked_shl(32 - u32::from(self.rule.prefix_ipv4.min(32))).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask =
                    u128::MAX.checked_shl(128 - u32::from(self.rule.prefix_ipv6.min(128))).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        })
    }

    fn shard(&self, client: &Client) -> std::sync::MutexGuard<'_, Shard> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits are good")]
        let at = self.hasher.hash_one(client) as usize % self.shards.len();
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoint of a client, unless the entry has expired.
    #[must_use]
    pub fn endpoint(&self, client: &Client, now: Duration) -> Option<SocketAddr> {
        let shard = self.shard(client);
        let entry = shard.entries.get(*shard.by_client.get(client)?)?;
        (now.saturating_sub(entry.used) < self.rule.timeout).then_some(entry.endpoint)
    }

    /// Records the endpoint of a client.
    pub fn connected(&self, client: Client, endpoint: SocketAddr, now: Duration) {
        let room = self.rule.max_entries / self.shards.len();
        let mut shard = self.shard(&client);
        if let Some(&at) = shard.by_client.get(&client) {
            shard.unlink(at);
            let entry = &mut shard.entries[at];
            (entry.endpoint, entry.used) = (endpoint, now);
            shard.link(at);
            return;
        }
        while let Some(oldest) = shard.oldest
            && (shard.entries.len() >= room
                || now.saturating_sub(shard.entries[oldest].used) >= self.rule.timeout)
        {
            shard.unlink(oldest);
            let entry = shard.entries.remove(oldest);
            shard.by_client.remove(&entry.client);
        }
        let at = shard.entries.insert(Entry { client, endpoint, used: now, newer: None, older: None });
        shard.by_client.insert(client, at);
        shard.link(at);
    }

    /// The number of stored clients, including expired ones.
    #[cfg(test)]
    fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).entries.len();
        self.shards.iter().map(len).sum()
    }
}

impl Shard {
    fn unlink(&mut self, at: usize) {
        let Entry { newer, older, .. } = self.entries[at];
        match newer {
            Some(newer) => self.entries[newer].older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => self.entries[older].newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Inserts an entry as the newest one.
    fn link(&mut self, at: usize) {
        let former = self.newest.replace(at);
        (self.entries[at].newer, self.entries[at].older) = (None, former);
        match former {
            Some(former) => self.entries[former].newer = Some(at),
            None => self.oldest = Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(max_entries: usize) -> Affinity {
        Affinity::new(SourceAffinity { max_entries, ..SourceAffinity::default() })
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn endpoint(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_client_is_remembered_until_it_is_silent_for_too_long() {
        let table = table(10);
        let client = table.client(address(1));
        assert_eq!(table.endpoint(&client, at(0)), None);
        table.connected(client, endpoint(1), at(0));
        assert_eq!(table.endpoint(&client, at(10_799)), Some(endpoint(1)));
        assert_eq!(table.endpoint(&client, at(10_800)), None);
        table.connected(client, endpoint(2), at(10_000));
        assert_eq!(table.endpoint(&client, at(20_799)), Some(endpoint(2)), "each connection renews it");
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn the_client_that_was_silent_for_longest_makes_room() {
        let table = table(3);
        let client = |number| table.client(address(number));
        for number in 0..3 {
            table.connected(client(number), endpoint(1), at(number.into()));
        }
        table.connected(client(0), endpoint(1), at(3));
        table.connected(client(3), endpoint(1), at(4));
        let known: Vec<_> = (0..4).filter(|n| table.endpoint(&client(*n), at(5)).is_some()).collect();
        assert_eq!(known, [0, 2, 3]);
    }

    #[test]
    fn a_table_never_holds_more_than_its_entries() {
        for most in [1, 7, 64, 1_000, 5_000] {
            let table = table(most);
            for number in 0..20_000 {
                table.connected(table.client(address(number)), endpoint(1), at(number.into()));
            }
            assert!(table.len() <= most && table.len() * 2 > most.min(10_800), "{most}: {}", table.len());
        }
    }

    #[test]
    fn what_has_expired_makes_room_before_the_table_is_full() {
        let table = table(1_000);
        for number in 0..500 {
            table.connected(table.client(address(number)), endpoint(1), at(0));
        }
        for number in 1_000..1_500 {
            table.connected(table.client(address(number)), endpoint(1), at(20_000));
        }
        assert!(table.len() < 510, "{}", table.len());
    }

    #[test]
    fn addresses_of_one_prefix_are_one_client() {
        let table = table(10);
        let client = |text: &str| table.client(text.parse().unwrap());
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
    }
}
