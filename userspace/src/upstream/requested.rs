//! The names that clients request from a dynamic backend: a bounded cache, and the schedule of its lookups.
//!
//! Pure: time is an argument, and the caller makes the lookups. `M` is the value of a resolved name.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_config::model::Dns;
use tokio::sync::watch;

use super::names::Query;

/// Names in the cache. A further one replaces those that were not requested for the longest time.
pub const MOST_NAMES: usize = 4_096;

/// Names that are looked up, or wait for that. A further one is refused.
pub const MOST_PENDING: usize = 512;

/// Concurrent lookups. Those of configured names have a number of their own.
pub const MOST_AT_ONCE: usize = 16;

/// Addresses of one name that are tried. Further ones are skipped.
pub const MOST_ADDRESSES: usize = 16;

/// The time after its validity for which an answer is used while the name cannot be looked up (RFC 8767).
pub const STALE: Duration = Duration::from_secs(3_600);

/// The wait for a lookup while there is such an answer (RFC 8767 section 5, "client response timer").
pub const STALE_PATIENCE: Duration = Duration::from_millis(1_800);

/// A requested name, and the port of the backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The lookup.
    pub query: Query,
    /// The port.
    pub port: u16,
}

/// The value of a name, or the reason for which it has none.
pub type Outcome<M> = Result<M, Arc<str>>;

/// A failed lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The name does not exist, or has no address.
    Absent(String),
    /// No name server answered, or one reported a failure.
    Failed(String),
}

/// The answer to a request.
#[derive(Debug)]
pub enum Answer<M> {
    /// The name is known.
    Known(Outcome<M>),
    /// A lookup of the name is in progress or due.
    Wait {
        /// Receives the outcome.
        outcome: watch::Receiver<Option<Outcome<M>>>,
        /// The last answer, which is used if the lookup takes long.
        stale: Option<M>,
        /// Whether the request added the lookup.
        is_new: bool,
    },
    /// Too many names are looked up.
    Full,
}

#[derive(Debug)]
struct Entry<M> {
    /// The last answer, and the time until which it may be used.
    answer: Option<(M, Instant)>,
    /// The failure of the last lookup, unless the last answer replaces it.
    failure: Option<Arc<str>>,
    /// The time of the next lookup.
    until: Instant,
    /// The lookup in progress or due.
    waiting: Option<watch::Sender<Option<Outcome<M>>>>,
    /// The last request.
    used: Instant,
}

impl<M: Clone> Entry<M> {
    fn new(now: Instant) -> Self {
        Self { answer: None, failure: None, until: now, waiting: None, used: now }
    }

    fn outcome(&self) -> Option<Outcome<M>> {
        match (&self.failure, &self.answer) {
            (Some(failure), _) => Some(Err(failure.clone())),
            (None, Some((answer, _))) => Some(Ok(answer.clone())),
            (None, None) => None,
        }
    }

    /// The last answer, if it may be used.
    fn stale(&self, now: Instant) -> Option<M> {
        self.answer
            .as_ref()
            .filter(|(_, last)| now < *last && self.failure.is_none())
            .map(|(one, _)| one.clone())
    }

    /// Sorts names by their worth: one without an address is removed first, then the one with the oldest request.
    fn worth(&self) -> (bool, Instant) {
        (self.failure.is_none() && self.answer.is_some(), self.used)
    }

    fn is_abandoned(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.receiver_count() == 0)
    }
}

/// The cache and its schedule.
#[derive(Debug)]
pub struct Requested<M> {
    names: HashMap<Wanted, Entry<M>>,
    /// The lookups that are due, in the order of the requests.
    queue: VecDeque<Wanted>,
    running: usize,
    /// The bounds of an answer's validity.
    ttl: (Duration, Duration),
}

impl<M> Default for Requested<M> {
    fn default() -> Self {
        let Dns { min_ttl, max_ttl, .. } = Dns::default();
        Self { names: HashMap::new(), queue: VecDeque::new(), running: 0, ttl: (min_ttl, max_ttl) }
    }
}

impl<M: Clone> Requested<M> {
    /// Applies other settings: the bounds of an answer's validity. Known names are looked up again.
    pub fn follow(&mut self, least: Duration, most: Duration) {
        self.ttl = (least, most);
        self.names.retain(|_, entry| entry.waiting.is_some());
        for entry in self.names.values_mut() {
            (entry.answer, entry.failure) = (None, None);
        }
    }

    /// Requests a name.
    pub fn request(&mut self, wanted: &Wanted, now: Instant) -> Answer<M> {
        let pending = self.queue.len() + self.running;
        if let Some(entry) = self.names.get_mut(wanted) {
            entry.used = now;
            if let Some(outcome) = entry.outcome().filter(|_| now < entry.until) {
                return Answer::Known(outcome);
            }
            if let Some(waiting) = &entry.waiting {
                let (outcome, stale) = (waiting.subscribe(), entry.stale(now));
                return Answer::Wait { outcome, stale, is_new: false };
            }
        }
        if pending >= MOST_PENDING && !self.has_dropped_abandoned() {
            let stale = self.names.get(wanted).and_then(|entry| entry.stale(now));
            return stale.map_or(Answer::Full, |stale| Answer::Known(Ok(stale)));
        }
        if self.names.len() >= MOST_NAMES && !self.names.contains_key(wanted) {
            self.make_room();
        }
        let entry = self.names.entry(wanted.clone()).or_insert_with(|| Entry::new(now));
        let (waiting, outcome) = watch::channel(None);
        entry.waiting = Some(waiting);
        self.queue.push_back(wanted.clone());
        Answer::Wait { outcome, stale: entry.stale(now), is_new: true }
    }

    /// The next lookup, which counts as in progress until [`Self::ended`].
    pub fn next(&mut self) -> Option<Wanted> {
        while self.running < MOST_AT_ONCE {
            let wanted = self.queue.pop_front()?;
            if self.names.get(&wanted).is_some_and(Entry::is_abandoned) {
                self.abandon(&wanted);
                continue;
            }
            self.running += 1;
            return Some(wanted);
        }
        None
    }

    /// Applies the result of a lookup: a value and its validity. A failure of the DNS leaves the last answer in use.
    pub fn ended(&mut self, wanted: &Wanted, found: Result<(M, Duration), Failure>, now: Instant) {
        self.running = self.running.saturating_sub(1);
        let (least, most) = self.ttl;
        let Some(entry) = self.names.get_mut(wanted) else { return };
        entry.until = now + least;
        match found {
            Ok((value, ttl)) => {
                entry.until = now + ttl.min(most).max(least);
                entry.answer = Some((value, entry.until + STALE));
                entry.failure = None;
            }
            Err(Failure::Failed(_)) if entry.stale(now).is_some() => {}
            Err(Failure::Absent(error) | Failure::Failed(error)) => {
                (entry.answer, entry.failure) = (None, Some(error.into()));
            }
        }
        if let Some(waiting) = entry.waiting.take() {
            waiting.send_replace(entry.outcome());
        }
    }

    /// Drops the due lookups that no client waits for. Returns whether there was one.
    fn has_dropped_abandoned(&mut self) -> bool {
        let before = self.queue.len();
        let queue = std::mem::take(&mut self.queue);
        for wanted in queue {
            if self.names.get(&wanted).is_some_and(Entry::is_abandoned) {
                self.abandon(&wanted);
            } else {
                self.queue.push_back(wanted);
            }
        }
        self.queue.len() < before
    }

    fn abandon(&mut self, wanted: &Wanted) {
        if let Some(entry) = self.names.get_mut(wanted) {
            entry.waiting = None;
            if entry.outcome().is_none() {
                self.names.remove(wanted);
            }
        }
    }

    /// Removes a quarter of the names that are not looked up, and so rarely.
    fn make_room(&mut self) {
        let idle = self.names.values().filter(|entry| entry.waiting.is_none());
        let mut worths: Vec<_> = idle.map(Entry::worth).collect();
        let quarter = worths.len() / 4;
        if quarter >= worths.len() {
            return;
        }
        let least = *worths.select_nth_unstable(quarter).1;
        self.names.retain(|_, entry| entry.waiting.is_some() || entry.worth() > least);
    }
}

#[cfg(test)]
mod tests {
    use snisplice_config::name::HostName;

    use super::*;
    use crate::upstream::names::Kind;

    fn wanted(number: usize) -> Wanted {
        let name = HostName::parse(&format!("n{number}.test.")).unwrap();
        Wanted { query: Query { name, kind: Kind::Host, servers: [].into() }, port: 443 }
    }

    const fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn absent() -> Result<(u8, Duration), Failure> {
        Err(Failure::Absent("no address".into()))
    }

    fn failed() -> Result<(u8, Duration), Failure> {
        Err(Failure::Failed("no answer".into()))
    }

    type Receiver = watch::Receiver<Option<Outcome<u8>>>;

    fn wait(answer: Answer<u8>) -> (Receiver, Option<u8>, bool) {
        match answer {
            Answer::Wait { outcome, stale, is_new } => (outcome, stale, is_new),
            other => panic!("{other:?}"),
        }
    }

    fn known(answer: Answer<u8>) -> Outcome<u8> {
        match answer {
            Answer::Known(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_lookup_serves_all_who_ask_meanwhile() {
        let (mut names, now) = (Requested::default(), Instant::now());
        let (first, _, is_new) = wait(names.request(&wanted(1), now));
        assert!(is_new);
        assert_eq!(names.next(), Some(wanted(1)));
        let (second, _, is_new) = wait(names.request(&wanted(1), now));
        assert!(!is_new);
        assert_eq!(names.next(), None);
        names.ended(&wanted(1), Ok((7, seconds(60))), now);
        assert_eq!(*first.borrow(), Some(Ok(7)));
        assert_eq!(*second.borrow(), Some(Ok(7)));
        assert_eq!(known(names.request(&wanted(1), now + seconds(59))), Ok(7));
        let (_, stale, is_new) = wait(names.request(&wanted(1), now + seconds(60)));
        assert_eq!((stale, is_new), (Some(7), true));
    }

    #[test]
    fn a_ttl_is_respected_within_bounds() {
        for (ttl, valid) in [(0, 5), (42, 42), (86_400, 300)] {
            let (mut names, now) = (Requested::default(), Instant::now());
            let _waits = names.request(&wanted(1), now);
            names.next();
            names.ended(&wanted(1), Ok((7, seconds(ttl))), now);
            let last = now + seconds(valid);
            assert_eq!(known(names.request(&wanted(1), now + seconds(valid - 1))), Ok(7));
            assert!(wait(names.request(&wanted(1), last)).2, "TTL {ttl}");
        }
    }

    #[test]
    fn a_failure_is_remembered_for_a_moment() {
        for failure in [absent(), failed()] {
            let (mut names, now) = (Requested::default(), Instant::now());
            let waits = names.request(&wanted(1), now);
            names.next();
            names.ended(&wanted(1), failure, now);
            assert!(matches!(*wait(waits).0.borrow(), Some(Err(_))));
            assert!(known(names.request(&wanted(1), now + seconds(4))).is_err());
            assert!(wait(names.request(&wanted(1), now + seconds(5))).2);
        }
    }

    #[test]
    fn an_answer_outlives_a_failure_of_the_dns_and_not_the_end_of_the_name() {
        let (mut names, now) = (Requested::default(), Instant::now());
        let mut look_up = |at: u64, found| {
            let now = now + seconds(at);
            let (waits, ..) = wait(names.request(&wanted(1), now));
            assert_eq!(names.next(), Some(wanted(1)));
            names.ended(&wanted(1), found, now);
            let outcome = waits.borrow().clone().unwrap();
            outcome.ok()
        };
        assert_eq!(look_up(0, Ok((7, seconds(10)))), Some(7));
        assert_eq!(look_up(10, failed()), Some(7));
        assert_eq!(look_up(15, failed()), Some(7));
        assert_eq!(look_up(20, absent()), None);
        assert_eq!(look_up(25, failed()), None);
        assert_eq!(look_up(30, Ok((8, seconds(10)))), Some(8));
        assert_eq!(look_up(30 + 10 + 3_600, failed()), None, "it is too old");
    }

    #[test]
    fn a_flood_of_names_is_bounded() {
        let (mut names, now) = (Requested::default(), Instant::now());
        let waits: Vec<_> = (0..MOST_PENDING).map(|one| wait(names.request(&wanted(one), now))).collect();
        assert!(matches!(names.request(&wanted(MOST_PENDING), now), Answer::Full));
        assert!(!wait(names.request(&wanted(0), now)).2, "others wait with the first one");
        let running: Vec<_> = std::iter::from_fn(|| names.next()).collect();
        assert_eq!(running.len(), MOST_AT_ONCE);
        assert!(matches!(names.request(&wanted(MOST_PENDING), now), Answer::Full));
        drop(waits);
        assert!(wait(names.request(&wanted(MOST_PENDING), now)).2, "clients that have left make room");
        assert_eq!((names.names.len(), names.queue.len()), (MOST_AT_ONCE + 1, 1));
        for one in &running {
            names.ended(one, absent(), now);
        }
        assert_eq!(names.running, 0);
    }

    #[test]
    fn names_that_are_in_use_outlive_random_ones() {
        let (mut names, start) = (Requested::default(), Instant::now());
        let resolve = |names: &mut Requested<u8>, one: usize, found, now| {
            let _waits = names.request(&wanted(one), now);
            if names.next().is_some() {
                names.ended(&wanted(one), found, now);
            }
        };
        resolve(&mut names, 0, Ok((7, seconds(300))), start);
        for one in 1..3 * MOST_NAMES {
            let now = start + Duration::from_millis(one as u64);
            resolve(&mut names, one, absent(), now);
            assert!(names.names.len() <= MOST_NAMES);
        }
        let now = start + seconds(100);
        assert_eq!(known(names.request(&wanted(0), now)), Ok(7), "names without an address go first");
    }

    #[test]
    fn other_settings_begin_afresh() {
        let (mut names, now) = (Requested::default(), Instant::now());
        let _waits = names.request(&wanted(1), now);
        names.next();
        names.ended(&wanted(1), Ok((7, seconds(60))), now);
        names.follow(seconds(1), seconds(2));
        assert_eq!(wait(names.request(&wanted(1), now)).1, None);
    }
}
