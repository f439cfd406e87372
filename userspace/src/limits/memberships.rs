//! The connections of each listener and each route.

use std::{collections::HashMap, sync::Arc};

use slab::Slab;

/// No listener, no route, no backend, or none of them.
pub const NONE: u32 = (1 << 31) - 1;

/// The listener, route and backend of each connection, and the number of connections of each listener and route.
///
/// A connection has one key for all three. Connections with the same three share it, so a connection takes no memory of
/// its own.
#[derive(Debug, Default)]
pub struct Memberships {
    listeners: Groups,
    routes: Groups,
    shared: Slab<Shared>,
    by_membership: HashMap<Membership, u32>,
}

/// What a connection belongs to. Each is a key or [`NONE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Membership {
    listener: u32,
    route: u32,
    backend: u32,
}

#[derive(Debug)]
struct Shared {
    membership: Membership,
    connections: usize,
}

/// The connections of each name. It has an entry for each name with a connection.
#[derive(Debug, Default)]
struct Groups {
    by_name: HashMap<Arc<str>, u32>,
    counts: Slab<Group>,
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    connections: usize,
}

impl Groups {
    /// Counts a connection, unless the name has `most` already.
    fn enter(&mut self, name: &str, most: Option<usize>) -> Option<u32> {
        if let Some(&key) = self.by_name.get(name) {
            let connections = &mut self.counts.get_mut(key as usize)?.connections;
            if most.is_some_and(|most| *connections >= most) {
                return None;
            }
            *connections += 1;
            return Some(key);
        }
        if most == Some(0) {
            return None;
        }
        let name: Arc<str> = name.into();
        let key = short(self.counts.insert(Group { name: name.clone(), connections: 1 }));
        self.by_name.insert(name, key);
        Some(key)
    }

    fn leave(&mut self, key: u32) {
        let Some(group) = self.counts.get_mut(key as usize) else { return };
        group.connections -= 1;
        if group.connections == 0 {
            let Group { name, .. } = self.counts.remove(key as usize);
            self.by_name.remove(&name);
        }
    }
}

impl Memberships {
    /// Counts a new connection of a listener, unless the listener has `most` already. The other functions take the
    /// returned key.
    pub fn enter(&mut self, listener: &str, most: Option<usize>) -> Option<u32> {
        let listener = self.listeners.enter(listener, most)?;
        Some(self.share(Membership { listener, route: NONE, backend: NONE }))
    }

    /// Counts the connection with this key for a route, unless the route has `most` already. Returns the new key. Called
    /// at most once for each connection.
    pub fn join_route(&mut self, key: u32, route: &str, most: Option<usize>) -> Option<u32> {
        let route = self.routes.enter(route, most)?;
        Some(self.change(key, |membership| Membership { route, ..membership }))
    }

    /// Records the key of the connection's backend. Returns the new key of the connection.
    pub fn join_backend(&mut self, key: u32, backend: u32) -> u32 {
        self.change(key, |membership| Membership { backend, ..membership })
    }

    /// The connection has ended. Returns the key of its backend, or [`NONE`].
    pub fn leave(&mut self, key: u32) -> u32 {
        let Some(Membership { listener, route, backend }) = self.release(key) else { return NONE };
        self.listeners.leave(listener);
        self.routes.leave(route);
        backend
    }

    fn change(&mut self, key: u32, change: impl FnOnce(Membership) -> Membership) -> u32 {
        let alone = Membership { listener: NONE, route: NONE, backend: NONE };
        let membership = self.release(key).unwrap_or(alone);
        self.share(change(membership))
    }

    fn share(&mut self, membership: Membership) -> u32 {
        let key = *self
            .by_membership
            .entry(membership)
            .or_insert_with(|| short(self.shared.insert(Shared { membership, connections: 0 })));
        if let Some(shared) = self.shared.get_mut(key as usize) {
            shared.connections += 1;
        }
        key
    }

    fn release(&mut self, key: u32) -> Option<Membership> {
        let shared = self.shared.get_mut(key as usize)?;
        let membership = shared.membership;
        shared.connections -= 1;
        if shared.connections == 0 {
            self.shared.remove(key as usize);
            self.by_membership.remove(&membership);
        }
        Some(membership)
    }
}

/// A slab has fewer entries than there are descriptors.
fn short(key: usize) -> u32 {
    u32::try_from(key).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_and_a_route_are_bounded_by_name() {
        let mut all = Memberships::default();
        let first = all.enter("a", Some(2)).unwrap();
        let second = all.enter("a", Some(2)).unwrap();
        assert_eq!(all.enter("a", Some(2)), None);
        let other = all.enter("b", Some(2)).unwrap();
        let first = all.join_route(first, "shop", Some(1)).unwrap();
        assert_eq!(all.join_route(other, "shop", Some(1)), None, "a route counts over all listeners");
        assert_eq!(all.leave(first), NONE);
        assert!(all.join_route(other, "shop", Some(1)).is_some());
        assert!(all.enter("a", Some(2)).is_some());
        assert_eq!(all.enter("a", Some(2)), None);
        assert_eq!(all.leave(second), NONE);
    }

    #[test]
    fn connections_without_a_limit_count_for_a_later_one() {
        let mut all = Memberships::default();
        let keys: Vec<_> = (0..5).map(|_| all.enter("a", None).unwrap()).collect();
        assert_eq!(all.enter("a", Some(5)), None);
        all.leave(keys[0]);
        assert!(all.enter("a", Some(5)).is_some());
    }

    #[test]
    fn the_backend_comes_back_at_the_end() {
        let mut all = Memberships::default();
        let key = all.enter("a", None).unwrap();
        let key = all.join_route(key, "shop", None).unwrap();
        let key = all.join_backend(key, 7);
        assert_eq!(all.leave(key), 7);
    }

    #[test]
    fn connections_that_belong_to_the_same_share_an_entry_and_leave_nothing() {
        let mut all = Memberships::default();
        let keys: Vec<_> = (0..1_000)
            .map(|turn| {
                let key = all.enter("a", None).unwrap();
                let key = all.join_route(key, if turn % 2 == 0 { "x" } else { "y" }, None).unwrap();
                all.join_backend(key, turn % 2)
            })
            .collect();
        assert_eq!(all.shared.len(), 2);
        for key in keys {
            all.leave(key);
        }
        assert!(all.shared.is_empty() && all.by_membership.is_empty());
        for groups in [&all.listeners, &all.routes] {
            assert!(groups.by_name.is_empty() && groups.counts.is_empty());
        }
        assert_eq!(all.enter("a", Some(0)), None);
    }
}
