//! Connections with an incomplete hello, and the choice of the one that makes room.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::cidr::Cidr;

/// The connections with an incomplete hello. `T` notifies a connection that has to make room.
///
/// A client that has sent nothing goes first, then one that has sent a part. The oldest one of a kind goes first. The
/// age counts from the arrival, not from the last byte, since single bytes at times are cheap.
#[derive(Debug)]
pub struct Hellos<T> {
    next: Ticket,
    /// By ticket, which is the order of arrival.
    silent: BTreeMap<Ticket, Waiting<T>>,
    begun: BTreeMap<Ticket, Waiting<T>>,
    sources: HashMap<Cidr, OfSource>,
}

/// The number of a connection, used once.
pub type Ticket = u64;

/// The limits of connections with an incomplete hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloRule {
    /// The limit of all.
    pub most: usize,
    /// The limit of one source; `None` is no limit.
    pub per_source: Option<usize>,
}

/// A connection that makes room.
#[derive(Debug, PartialEq, Eq)]
pub struct Evicted<T> {
    /// Notifies the connection.
    pub call: T,
    /// The source whose limit is reached. `None` if it is the limit of all.
    pub source: Option<Cidr>,
}

#[derive(Debug)]
struct Waiting<T> {
    since: Instant,
    source: Option<Cidr>,
    call: T,
}

/// The connections of one source.
#[derive(Debug, Default)]
struct OfSource {
    silent: BTreeSet<Ticket>,
    begun: BTreeSet<Ticket>,
}

impl OfSource {
    fn len(&self) -> usize {
        self.silent.len() + self.begun.len()
    }

    fn first_to_go(&self) -> Option<Ticket> {
        self.silent.first().or_else(|| self.begun.first()).copied()
    }
}

impl<T> Default for Hellos<T> {
    fn default() -> Self {
        Self { next: 0, silent: BTreeMap::new(), begun: BTreeMap::new(), sources: HashMap::new() }
    }
}

impl<T> Hellos<T> {
    /// Adds a connection that waits since `now`. If a limit is then exceeded, returns the one that makes room: one of
    /// the same source if the limit of the source is. Without a source, the connection counts for all only.
    pub fn enter(
        &mut self,
        rule: HelloRule,
        source: Option<Cidr>,
        begun: bool,
        now: Instant,
        call: T,
    ) -> (Ticket, Option<Evicted<T>>) {
        let of_source = source.and_then(|source| Some((source, self.sources.get(&source)?)));
        let (ticket, of_source) = match (of_source, rule.per_source) {
            (Some((source, own)), Some(most)) if own.len() >= most => (own.first_to_go(), Some(source)),
            _ if self.len() >= rule.most => (self.first_to_go(), None),
            _ => (None, None),
        };
        let evicted = ticket
            .and_then(|ticket| self.remove(ticket))
            .map(|Waiting { call, .. }| Evicted { call, source: of_source });
        let ticket = self.next;
        self.next += 1;
        if let Some(source) = source {
            let own = self.sources.entry(source).or_default();
            if begun {
                own.begun.insert(ticket)
            } else {
                own.silent.insert(ticket)
            };
        }
        let queue = if begun { &mut self.begun } else { &mut self.silent };
        queue.insert(ticket, Waiting { since: now, source, call });
        (ticket, evicted)
    }

    /// The connection has sent something.
    pub fn heard(&mut self, ticket: Ticket) {
        let Some(waiting) = self.silent.remove(&ticket) else { return };
        if let Some(own) = waiting.source.and_then(|source| self.sources.get_mut(&source)) {
            own.silent.remove(&ticket);
            own.begun.insert(ticket);
        }
        self.begun.insert(ticket, waiting);
    }

    /// The connection no longer waits. No effect if it has made room.
    pub fn leave(&mut self, ticket: Ticket) {
        self.remove(ticket);
    }

    /// Removes the connection that makes room for a better claim: the oldest silent one, or else the oldest one, if it
    /// has waited for `least`. A younger silent connection does not protect the others.
    pub fn make_room(&mut self, least: Duration, now: Instant) -> Option<T> {
        let ticket = [&self.silent, &self.begun].into_iter().find_map(|queue| {
            let (ticket, first) = queue.first_key_value()?;
            (now.saturating_duration_since(first.since) >= least).then_some(*ticket)
        })?;
        self.remove(ticket).map(|waiting| waiting.call)
    }

    fn first_to_go(&self) -> Option<Ticket> {
        self.silent.first_key_value().or_else(|| self.begun.first_key_value()).map(|(ticket, _)| *ticket)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiting<T>> {
        let waiting = self.silent.remove(&ticket).or_else(|| self.begun.remove(&ticket))?;
        if let Some(source) = waiting.source
            && let Some(own) = self.sources.get_mut(&source)
        {
            own.silent.remove(&ticket);
            own.begun.remove(&ticket);
            if own.len() == 0 {
                self.sources.remove(&source);
            }
        }
        Some(waiting)
    }

    /// The number of connections that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.silent.len() + self.begun.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a connection without a source. Returns its ticket, and the one that makes room.
    fn enter(
        hellos: &mut Hellos<i32>,
        most: usize,
        begun: bool,
        now: Instant,
        call: i32,
    ) -> (Ticket, Option<i32>) {
        let rule = HelloRule { most, per_source: Some(1) };
        let (ticket, evicted) = hellos.enter(rule, None, begun, now, call);
        (ticket, evicted.map(|evicted| evicted.call))
    }

    fn source(last: u8) -> Cidr {
        Cidr::of([192, 0, 2, last].into(), 32)
    }

    #[test]
    fn the_oldest_silent_one_makes_room() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let (first, none) = enter(&mut hellos, 3, false, now, 1);
        assert_eq!(none, None);
        enter(&mut hellos, 3, true, now, 2);
        enter(&mut hellos, 3, false, now, 3);
        hellos.heard(first);
        assert_eq!(enter(&mut hellos, 3, false, now, 4).1, Some(3), "it alone has said nothing");
        assert_eq!(enter(&mut hellos, 3, true, now, 5).1, Some(4));
        assert_eq!(enter(&mut hellos, 3, true, now, 6).1, Some(1), "the oldest of those that have begun");
        assert_eq!(hellos.len(), 3);
    }

    #[test]
    fn never_more_than_its_budget() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let gone =
            (0..10_000).filter(|call| enter(&mut hellos, 64, call % 3 == 0, now, *call).1.is_some()).count();
        assert_eq!((hellos.len(), gone), (64, 10_000 - 64));
    }

    #[test]
    fn who_has_just_come_makes_no_room_for_a_place() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let least = Duration::from_millis(500);
        assert_eq!(hellos.make_room(least, now), None);
        enter(&mut hellos, 8, false, now, 1);
        enter(&mut hellos, 8, false, now + least, 2);
        assert_eq!(hellos.make_room(least, now + least / 2), None);
        assert_eq!(hellos.make_room(least, now + least), Some(1));
        assert_eq!(hellos.make_room(least, now + least), None);
        assert_eq!(hellos.make_room(least, now + 2 * least), Some(2));
    }

    #[test]
    fn one_that_has_just_come_and_is_silent_protects_nobody() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let least = Duration::from_millis(500);
        enter(&mut hellos, 8, true, now, 1);
        enter(&mut hellos, 8, false, now + least, 2);
        assert_eq!(hellos.make_room(least, now + least), Some(1), "it has begun long ago");
        assert_eq!(hellos.make_room(least, now + least), None);
    }

    #[test]
    fn who_is_done_or_has_made_room_leaves_nothing() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let (first, _) = enter(&mut hellos, 1, false, now, 1);
        let (second, gone) = enter(&mut hellos, 1, true, now, 2);
        assert_eq!(gone, Some(1));
        hellos.heard(first);
        hellos.leave(first);
        assert_eq!(hellos.len(), 1);
        hellos.leave(second);
        assert_eq!(hellos.len(), 0);
    }

    #[test]
    fn a_source_makes_room_for_itself_and_for_no_other() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let rule = HelloRule { most: 8, per_source: Some(4) };
        let mut enter = |of, begun, call| {
            hellos.enter(rule, Some(source(of)), begun, now, call).1.map(|gone| (gone.call, gone.source))
        };
        assert_eq!(enter(2, false, 0), None);
        assert_eq!(enter(1, true, 1), None);
        for call in 2..5 {
            assert_eq!(enter(1, false, call), None);
        }
        for call in 5..1_000 {
            let (gone, of) = enter(1, false, call).unwrap();
            assert!(gone > 1, "one that has begun stays beside silent ones");
            assert_eq!(of, Some(source(1)));
        }
        for call in 1_000..1_003 {
            assert_eq!(enter(2, false, call), None, "half of all are left to others");
        }
        assert_eq!(enter(3, false, 1_003), Some((0, None)), "at the limit of all the oldest one goes");
        assert_eq!(hellos.len(), 8);
    }

    #[test]
    fn nothing_is_kept_of_a_source_that_waits_no_more() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let rule = HelloRule { most: 100, per_source: Some(10) };
        let tickets: Vec<_> = (0..200)
            .map(|turn| hellos.enter(rule, Some(source(turn % 20)), turn % 3 == 0, now, turn).0)
            .collect();
        for ticket in &tickets {
            hellos.heard(*ticket);
        }
        assert_eq!(
            hellos.make_room(Duration::ZERO, now),
            Some(0),
            "it has begun, and silent ones have made room"
        );
        for ticket in tickets {
            hellos.leave(ticket);
        }
        assert_eq!(hellos.len(), 0);
        assert!(hellos.sources.is_empty());
    }

    #[test]
    fn a_smaller_rule_holds_for_the_next_one() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let rule = |per_source| HelloRule { most: 100, per_source };
        for call in 0..10 {
            assert_eq!(hellos.enter(rule(None), Some(source(1)), false, now, call).1, None);
        }
        let gone = hellos.enter(rule(Some(3)), Some(source(1)), false, now, 10).1;
        assert_eq!(gone, Some(Evicted { call: 0, source: Some(source(1)) }));
    }
}
