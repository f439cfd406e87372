//! How many connections each backend has, and how many wait for it.

use std::{collections::HashMap, sync::Arc};

use slab::Slab;
use snisplice_config::model::Limits;

use super::Overload;

/// The connections of each backend. It holds as many backends as have a connection.
#[derive(Debug, Default)]
pub struct Backends {
    by_name: HashMap<Arc<str>, usize>,
    loads: Slab<Load>,
    /// Connections that wait for an endpoint of any backend.
    pending: usize,
}

#[derive(Debug)]
struct Load {
    name: Arc<str>,
    /// All of them, also those that wait.
    connections: usize,
    pending: usize,
}

/// What one backend is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendRule {
    /// Connections at once; `None` is no limit.
    pub connections: Option<usize>,
    /// Connections that wait for an endpoint.
    pub pending: PendingRule,
}

/// How many connections may wait for an endpoint of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingRule {
    /// So many, as the configuration says.
    Most(usize),
    /// Any number, as the configuration says.
    Any,
    /// So many, and no more than are still free of the `room` for those that wait for all backends together.
    ///
    /// What is left free is as much as each of the greedy ones has (the dynamic threshold of Choudhury and Hahne for queues
    /// that share a memory), so backends that are dead cannot take what a good one needs, however many they are.
    Fair {
        /// For one backend.
        most: usize,
        /// For all of them.
        room: usize,
    },
}

impl Backends {
    /// Counts a connection that waits for an endpoint from now on. What is returned is to be given to the others.
    pub fn enter(&mut self, name: &Arc<str>, rule: BackendRule) -> Result<usize, Overload> {
        let known = self.by_name.get(name).copied();
        let load = known.and_then(|key| self.loads.get(key));
        let (connections, pending) = load.map_or((0, 0), |load| (load.connections, load.pending));
        if rule.connections.is_some_and(|most| connections >= most) {
            return Err(Overload::Backend);
        }
        let most = match rule.pending {
            PendingRule::Any => usize::MAX,
            PendingRule::Most(most) => most,
            PendingRule::Fair { most, room } => most.min(room.saturating_sub(self.pending)).max(Limits::FEW),
        };
        if pending >= most {
            return Err(Overload::Pending);
        }
        let key = known.unwrap_or_else(|| {
            let key = self.loads.insert(Load { name: name.clone(), connections: 0, pending: 0 });
            self.by_name.insert(name.clone(), key);
            key
        });
        let load = &mut self.loads[key];
        load.connections += 1;
        load.pending += 1;
        self.pending += 1;
        Ok(key)
    }

    /// A connection waits no more: it has an endpoint, or none can be had.
    pub fn settle(&mut self, key: usize) {
        if let Some(load) = self.loads.get_mut(key) {
            load.pending -= 1;
            self.pending -= 1;
        }
    }

    /// A connection that waits no more is over.
    pub fn leave(&mut self, key: usize) {
        let Some(load) = self.loads.get_mut(key) else { return };
        load.connections -= 1;
        if load.connections == 0 {
            let Load { name, .. } = self.loads.remove(key);
            self.by_name.remove(&name);
        }
    }

    /// How many connections wait for an endpoint.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAIR: PendingRule = PendingRule::Fair { most: 1_024, room: 4_096 };

    fn rule(connections: Option<usize>, pending: PendingRule) -> BackendRule {
        BackendRule { connections, pending }
    }

    /// Connections that wait for `name` until one is refused.
    fn fill(backends: &mut Backends, name: &str, rule: BackendRule) -> (Vec<usize>, Overload) {
        let mut keys = Vec::new();
        loop {
            match backends.enter(&name.into(), rule) {
                Ok(key) => keys.push(key),
                Err(why) => return (keys, why),
            }
        }
    }

    #[test]
    fn connections_and_pending_ones_are_bounded_for_each_backend() {
        let mut backends = Backends::default();
        let (keys, why) = fill(&mut backends, "a", rule(Some(5), PendingRule::Most(3)));
        assert_eq!((keys.len(), why), (3, Overload::Pending));
        backends.settle(keys[0]);
        backends.settle(keys[1]);
        let (more, why) = fill(&mut backends, "a", rule(Some(5), PendingRule::Most(3)));
        assert_eq!((more.len(), why), (2, Overload::Backend));
        assert!(backends.enter(&"b".into(), rule(Some(5), PendingRule::Most(3))).is_ok());
        backends.leave(keys[0]);
        assert!(backends.enter(&"a".into(), rule(Some(5), PendingRule::Any)).is_ok());
    }

    #[test]
    fn dead_backends_leave_room_for_a_good_one_however_many_they_are() {
        for dead in [1, 3, 8, 40, 200] {
            let mut backends = Backends::default();
            for name in 0..dead {
                fill(&mut backends, &format!("dead{name}"), rule(None, FAIR));
            }
            let (good, _) = fill(&mut backends, "good", rule(None, FAIR));
            assert!(good.len() >= Limits::FEW, "{dead}: {}", good.len());
            let taken = backends.pending() - good.len();
            assert!(taken <= 4_096 + dead * Limits::FEW, "{dead}: {taken}");
        }
        let mut backends = Backends::default();
        let (alone, why) = fill(&mut backends, "dead", rule(None, FAIR));
        assert_eq!((alone.len(), why), (1_024, Overload::Pending));
    }

    #[test]
    fn nothing_is_kept_of_a_backend_without_connections() {
        let mut backends = Backends::default();
        for name in 0..100 {
            let key = backends.enter(&format!("{name}").as_str().into(), rule(None, FAIR)).unwrap();
            backends.settle(key);
            backends.leave(key);
        }
        assert!(backends.by_name.is_empty() && backends.loads.is_empty());
        assert_eq!(backends.pending(), 0);
        assert!(backends.loads.capacity() <= 4);
    }
}
