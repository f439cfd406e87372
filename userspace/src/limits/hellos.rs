//! Connections with an incomplete hello, and the choice of the one that makes room.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

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
}

/// The number of a connection, used once.
pub type Ticket = u64;

#[derive(Debug)]
struct Waiting<T> {
    since: Instant,
    call: T,
}

impl<T> Default for Hellos<T> {
    fn default() -> Self {
        Self { next: 0, silent: BTreeMap::new(), begun: BTreeMap::new() }
    }
}

impl<T> Hellos<T> {
    /// Adds a connection that waits since `now`. If there are then more than `most`, returns the one that makes room.
    pub fn enter(&mut self, most: usize, begun: bool, now: Instant, call: T) -> (Ticket, Option<T>) {
        let gone = if self.len() >= most { self.first_to_go() } else { None };
        let ticket = self.next;
        self.next += 1;
        let queue = if begun { &mut self.begun } else { &mut self.silent };
        queue.insert(ticket, Waiting { since: now, call });
        (ticket, gone)
    }

    /// The connection has sent something.
    pub fn heard(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.silent.remove(&ticket) {
            self.begun.insert(ticket, waiting);
        }
    }

    /// The connection no longer waits. No effect if it has made room.
    pub fn leave(&mut self, ticket: Ticket) {
        if self.silent.remove(&ticket).is_none() {
            self.begun.remove(&ticket);
        }
    }

    /// Removes the connection that makes room for a better claim: the oldest silent one, or else the oldest one, if it
    /// has waited for `least`. A younger silent connection does not protect the others.
    pub fn make_room(&mut self, least: Duration, now: Instant) -> Option<T> {
        [&mut self.silent, &mut self.begun].into_iter().find_map(|queue| {
            let first = queue.first_entry()?;
            let waited = now.saturating_duration_since(first.get().since);
            (waited >= least).then(|| first.remove().call)
        })
    }

    fn first_to_go(&mut self) -> Option<T> {
        let first = self.silent.pop_first().or_else(|| self.begun.pop_first());
        first.map(|(_, waiting)| waiting.call)
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

    #[test]
    fn the_oldest_silent_one_makes_room() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let (first, none) = hellos.enter(3, false, now, 1);
        assert_eq!(none, None);
        hellos.enter(3, true, now, 2);
        hellos.enter(3, false, now, 3);
        hellos.heard(first);
        assert_eq!(hellos.enter(3, false, now, 4).1, Some(3), "it alone has said nothing");
        assert_eq!(hellos.enter(3, true, now, 5).1, Some(4));
        assert_eq!(hellos.enter(3, true, now, 6).1, Some(1), "the oldest of those that have begun");
        assert_eq!(hellos.len(), 3);
    }

    #[test]
    fn never_more_than_its_budget() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let gone = (0..10_000).filter(|call| hellos.enter(64, call % 3 == 0, now, *call).1.is_some()).count();
        assert_eq!((hellos.len(), gone), (64, 10_000 - 64));
    }

    #[test]
    fn who_has_just_come_makes_no_room_for_a_place() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let least = Duration::from_millis(500);
        assert_eq!(hellos.make_room(least, now), None);
        hellos.enter(8, false, now, 1);
        hellos.enter(8, false, now + least, 2);
        assert_eq!(hellos.make_room(least, now + least / 2), None);
        assert_eq!(hellos.make_room(least, now + least), Some(1));
        assert_eq!(hellos.make_room(least, now + least), None);
        assert_eq!(hellos.make_room(least, now + 2 * least), Some(2));
    }

    #[test]
    fn one_that_has_just_come_and_is_silent_protects_nobody() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let least = Duration::from_millis(500);
        hellos.enter(8, true, now, 1);
        hellos.enter(8, false, now + least, 2);
        assert_eq!(hellos.make_room(least, now + least), Some(1), "it has begun long ago");
        assert_eq!(hellos.make_room(least, now + least), None);
    }

    #[test]
    fn who_is_done_or_has_made_room_leaves_nothing() {
        let (mut hellos, now) = (Hellos::default(), Instant::now());
        let (first, _) = hellos.enter(1, false, now, 1);
        let (second, gone) = hellos.enter(1, true, now, 2);
        assert_eq!(gone, Some(1));
        hellos.heard(first);
        hellos.leave(first);
        assert_eq!(hellos.len(), 1);
        hellos.leave(second);
        assert_eq!(hellos.len(), 0);
    }
}
