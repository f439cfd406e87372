//! The connections of each backend, and those that wait for one of its endpoints.

use std::{collections::HashMap, sync::Arc};

use slab::Slab;
use snisplice_config::model::Limits;

use super::Overload;

/// The connections of each backend. It has an entry for each backend with a connection.
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
    /// All connections, with those that wait.
    connections: usize,
    pending: usize,
}

/// The limits of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendRule {
    /// Connections at once; `None` is no limit.
    pub connections: Option<usize>,
    /// Connections that wait for an endpoint.
    pub pending: PendingRule,
}

/// The limit of connections that wait for an endpoint of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingRule {
    /// The configured number.
    Most(usize),
    /// Any number, by configuration.
    Any,
    /// A number that is at most the free part of `room`, which the waiting connections of all backends share.
    ///
    /// Each greedy backend then has as much as is left free (the dynamic threshold of Choudhury and Hahne for queues
    /// that share a memory). So any number of dead backends leaves room for a good one.
    Fair {
        /// The limit of one backend.
        most: usize,
        /// The limit of all backends.
        room: usize,
    },
}

impl Backends {
    /// Counts a connection that waits for an endpoint. The other functions take the returned key.
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

    /// The connection no longer waits: it has an endpoint, or none is available.
    pub fn settle(&mut self, key: usize) {
        if let Some(load) = self.loads.get_mut(key) {
            load.pending -= 1;
            self.pending -= 1;
        }
    }

    /// A connection that no longer waits has ended.
    pub fn leave(&mut self, key: usize) {
        let Some(load) = self.loads.get_mut(key) else { return };
        load.connections -= 1;
        if load.connections == 0 {
            let Load { name, .. } = self.loads.remove(key);
            self.by_name.remove(&name);
        }
    }

    /// The number of connections that wait for an endpoint.
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

    /// Adds connections that wait for `name` until one is refused.
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
