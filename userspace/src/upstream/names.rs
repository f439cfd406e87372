//! The schedule of DNS lookups, and the changes by their results, as functions of values.
//!
//! Pure: the time is an argument, and the caller makes the lookups.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_config::name::HostName;

/// Concurrent lookups.
pub const MOST_AT_ONCE: usize = 16;

/// Addresses of one name that become endpoints. Further ones are skipped.
pub const MOST_ADDRESSES: usize = 256;

/// The least validity of a result, whose TTL may be smaller. A TTL of 0 must not cause a flood of queries.
pub const SHORTEST: Duration = Duration::from_secs(5);

/// The longest validity of a result, whose TTL may be larger. So a mistaken TTL can be corrected.
pub const LONGEST: Duration = Duration::from_secs(300);

/// The pause before a lookup is repeated after a failure. Each consecutive failure doubles the pause.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// The longest pause before the lookup of a failed name is repeated.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The result for one address family, IPv4 or IPv6. A result without an address is no failure.
pub type Found = Result<Answer, String>;

/// The addresses of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The addresses, in any order.
    pub addresses: Vec<IpAddr>,
    /// The validity of the addresses.
    pub ttl: Duration,
}

/// The change by a lookup. For any behaviour of the DNS, there is one for each change of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The name has other addresses than before, or its first ones.
    Addresses {
        /// The former addresses.
        before: Arc<[IpAddr]>,
        /// The current addresses.
        now: Arc<[IpAddr]>,
        /// Whether the previous lookup failed.
        was_lost: bool,
    },
    /// The name can be resolved again, and has its former addresses.
    Back,
    /// The name can no longer be resolved, or its first lookup has failed. The name keeps its former addresses.
    Lost {
        /// The number of kept addresses.
        kept: usize,
        /// The reason of the failure.
        error: String,
    },
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Resolve this name.
    LookUp(HostName),
    /// Nothing before this time, or before a lookup ends.
    At(Instant),
    /// Nothing before a lookup ends, or names are added.
    Wait,
}

#[derive(Debug, Default)]
struct Entry {
    /// Sorted. `None` before the first lookup has ended.
    addresses: Option<Arc<[IpAddr]>>,
    failures: u32,
    /// The time of the next lookup. `None` during a lookup.
    due: Option<Instant>,
}

/// All names with their state.
#[derive(Debug, Default)]
pub struct Names {
    entries: HashMap<HostName, Entry>,
    /// Names, sorted by whether they were resolved before, then by the time of the next lookup. New names come first.
    queue: BTreeSet<(bool, Instant, HostName)>,
    running: usize,
}

impl Names {
    /// Sets the names to resolve. Names that stay keep their state.
    pub fn want(&mut self, names: impl Iterator<Item = HostName>, now: Instant) {
        let wanted: HashSet<HostName> = names.collect();
        self.entries.retain(|name, _| wanted.contains(name));
        self.queue.retain(|(_, _, name)| wanted.contains(name));
        for name in wanted {
            if !self.entries.contains_key(&name) {
                self.queue.insert((false, now, name.clone()));
                self.entries.insert(name, Entry { due: Some(now), ..Entry::default() });
            }
        }
    }

    /// The addresses of a name. Empty if it could not be resolved yet, and `None` before its first lookup has ended.
    #[must_use]
    pub fn addresses(&self, name: &HostName) -> Option<Arc<[IpAddr]>> {
        self.entries.get(name)?.addresses.clone()
    }

    /// The next step. A name to resolve counts as in progress until [`Self::ended`].
    pub fn next(&mut self, now: Instant) -> Next {
        if self.running >= MOST_AT_ONCE {
            return Next::Wait;
        }
        match self.queue.first() {
            None => Next::Wait,
            Some((_, due, _)) if *due > now => Next::At(*due),
            Some(_) => {
                let Some((_, _, name)) = self.queue.pop_first() else { return Next::Wait };
                if let Some(entry) = self.entries.get_mut(&name) {
                    entry.due = None;
                }
                self.running += 1;
                Next::LookUp(name)
            }
        }
    }

    /// Applies the results of a name's lookup, for IPv4 and IPv6. If one family failed, its addresses are kept, as
    /// long as the other family has any.
    pub fn ended(&mut self, name: &HostName, found: [Found; 2], now: Instant) -> Option<Change> {
        self.running = self.running.saturating_sub(1);
        let entry = self.entries.get_mut(name)?;
        // The name was removed and added again meanwhile. It is in the queue, and its next lookup is a new one.
        if entry.due.is_some() {
            return None;
        }
        let before = entry.addresses.clone();
        let known = before.as_deref().unwrap_or_default();
        let (change, again) = match merge(found, known) {
            Ok((addresses, ttl)) => {
                let was_lost = std::mem::take(&mut entry.failures) > 0;
                let change = if before.as_deref() == Some(&*addresses) {
                    was_lost.then_some(Change::Back)
                } else {
                    entry.addresses = Some(addresses.clone());
                    Some(Change::Addresses { before: known.into(), now: addresses, was_lost })
                };
                (change, ttl.clamp(SHORTEST, LONGEST))
            }
            Err(error) => {
                let kept = known.len();
                let again = (FIRST_RETRY * (1 << entry.failures.min(8))).min(LONGEST_RETRY);
                entry.failures = entry.failures.saturating_add(1);
                entry.addresses.get_or_insert_default();
                ((entry.failures == 1).then_some(Change::Lost { kept, error }), again)
            }
        };
        entry.due = Some(now + again);
        self.queue.insert((true, now + again, name.clone()));
        change
    }
}

/// The sorted addresses of both families, and their validity. An error if there is none.
fn merge(found: [Found; 2], known: &[IpAddr]) -> Result<(Arc<[IpAddr]>, Duration), String> {
    let mut addresses = BTreeSet::new();
    let mut kept: Vec<IpAddr> = Vec::new();
    let mut ttl: Option<Duration> = None;
    let mut failure = None;
    for (found, is_v4) in found.into_iter().zip([true, false]) {
        match found {
            Ok(answer) => {
                if !answer.addresses.is_empty() {
                    ttl = Some(ttl.map_or(answer.ttl, |other| other.min(answer.ttl)));
                }
                addresses.extend(answer.addresses);
            }
            Err(error) => {
                failure.get_or_insert(error);
                kept.extend(known.iter().filter(|address| address.is_ipv4() == is_v4));
            }
        }
    }
    match ttl {
        Some(ttl) => {
            addresses.extend(kept);
            Ok((addresses.into_iter().take(MOST_ADDRESSES).collect(), ttl))
        }
        None => Err(failure.unwrap_or_else(|| "the name has no address".into())),
    }
}

/// The absolute names to query for a name, in order, until one has an address (resolv.conf(5), `search` and `ndots`).
/// A name with a final dot is absolute.
#[must_use]
pub fn absolute_names(name: &str, search: &[String], ndots: u32) -> Vec<String> {
    if name.ends_with('.') {
        return vec![name.to_owned()];
    }
    let as_is = format!("{name}.");
    let mut names: Vec<String> = search
        .iter()
        .map(|domain| domain.trim_end_matches('.'))
        .map(|domain| if domain.is_empty() { as_is.clone() } else { format!("{name}.{domain}.") })
        .collect();
    let dots = u32::try_from(name.matches('.').count()).unwrap_or(u32::MAX);
    let place = if dots >= ndots { 0 } else { names.len() };
    names.insert(place, as_is);
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[expect(clippy::unnecessary_wraps, reason = "what was found, as the DNS tells it")]
    fn answer(last: &[u8], seconds: u64) -> Found {
        let addresses = last.iter().copied().map(ip).collect();
        Ok(Answer { addresses, ttl: Duration::from_secs(seconds) })
    }

    #[expect(clippy::unnecessary_wraps, reason = "as above")]
    fn none() -> Found {
        Ok(Answer::default())
    }

    fn silence() -> Found {
        Err("no answer".into())
    }

    /// One name. `look_up` returns the change by a result at a given second, and the time of the next lookup.
    struct One {
        names: Names,
        start: Instant,
    }

    impl One {
        fn new() -> Self {
            let (mut names, start) = (Names::default(), Instant::now());
            names.want([name("a.test")].into_iter(), start);
            Self { names, start }
        }

        fn look_up(&mut self, at: u64, found: [Found; 2]) -> (Option<Change>, u64) {
            let now = self.start + Duration::from_secs(at);
            assert_eq!(self.names.next(now), Next::LookUp(name("a.test")));
            assert_eq!(self.names.next(now), Next::Wait, "it is looked up already");
            let change = self.names.ended(&name("a.test"), found, now);
            let Next::At(next) = self.names.next(now) else { panic!("it is looked up again") };
            (change, (next - self.start).as_secs())
        }

        fn known(&self) -> Option<Vec<IpAddr>> {
            self.names.addresses(&name("a.test")).map(|addresses| addresses.to_vec())
        }
    }

    #[test]
    fn another_order_is_no_change() {
        let mut one = One::new();
        let (first, _) = one.look_up(0, [answer(&[3, 1, 2, 1], 60), none()]);
        assert!(matches!(first, Some(Change::Addresses { now, .. }) if *now == [ip(1), ip(2), ip(3)]));
        assert_eq!(one.look_up(60, [answer(&[2, 3, 1], 60), none()]).0, None);
        let (changed, _) = one.look_up(120, [answer(&[2, 3], 60), none()]);
        assert!(matches!(changed, Some(Change::Addresses { was_lost: false, .. })));
    }

    #[test]
    fn a_ttl_is_respected_within_bounds() {
        for (ttl, next) in [(0, 5), (4, 5), (42, 42), (86_400, 300)] {
            assert_eq!(One::new().look_up(0, [answer(&[1], ttl), none()]).1, next, "TTL {ttl}");
        }
        let v6 = Ok(Answer { addresses: vec![IpAddr::from([0; 16])], ttl: Duration::from_secs(7) });
        assert_eq!(One::new().look_up(0, [answer(&[1], 42), v6]).1, 7, "the shorter one of both families");
    }

    #[test]
    fn silence_keeps_the_addresses_and_is_told_once() {
        let mut one = One::new();
        one.look_up(0, [answer(&[1, 2], 5), none()]);
        let (lost, mut next) = one.look_up(5, [silence(), silence()]);
        assert_eq!(lost, Some(Change::Lost { kept: 2, error: "no answer".into() }));
        let mut waits = Vec::new();
        for _ in 0..5 {
            let (change, then) = one.look_up(next, [silence(), none()]);
            assert_eq!(change, None);
            assert_eq!(one.known().unwrap().len(), 2);
            waits.push(then - next);
            next = then;
        }
        assert_eq!(waits, [10, 20, 30, 30, 30]);
        assert_eq!(one.look_up(next, [answer(&[2, 1], 5), none()]).0, Some(Change::Back));
    }

    #[test]
    fn a_name_that_is_gone_keeps_its_addresses() {
        let mut one = One::new();
        one.look_up(0, [answer(&[1], 5), none()]);
        assert!(matches!(one.look_up(5, [none(), none()]).0, Some(Change::Lost { kept: 1, .. })));
        assert_eq!(one.known().unwrap(), [ip(1)]);
    }

    #[test]
    fn a_family_that_fails_keeps_its_addresses() {
        let v6 = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]);
        let mut one = One::new();
        let six = Ok(Answer { addresses: vec![v6], ttl: Duration::from_secs(5) });
        one.look_up(0, [answer(&[1], 5), six]);
        let (change, _) = one.look_up(5, [answer(&[2], 5), silence()]);
        assert!(matches!(change, Some(Change::Addresses { now, .. }) if *now == [ip(2), v6]));
        let (change, _) = one.look_up(10, [answer(&[2], 5), none()]);
        assert!(matches!(change, Some(Change::Addresses { now, .. }) if *now == [ip(2)]));
    }

    #[test]
    fn before_the_first_look_up_has_ended_nothing_is_known() {
        let mut one = One::new();
        assert_eq!(one.known(), None);
        one.look_up(0, [silence(), silence()]);
        assert_eq!(one.known(), Some(Vec::new()));
    }

    #[test]
    fn an_answer_of_thousands_is_cut() {
        let addresses = (0..2_000_u32).map(|number| IpAddr::from(number.to_be_bytes())).collect();
        let mut one = One::new();
        one.look_up(0, [Ok(Answer { addresses, ttl: SHORTEST }), none()]);
        assert_eq!(one.known().unwrap().len(), MOST_ADDRESSES);
    }

    #[test]
    fn look_ups_are_bounded_and_new_names_come_first() {
        let (mut names, now) = (Names::default(), Instant::now());
        let many = || (0..100).map(|number| name(&format!("n{number}.test")));
        names.want(many(), now);
        let running: Vec<_> = std::iter::from_fn(|| match names.next(now) {
            Next::LookUp(name) => Some(name),
            _ => None,
        })
        .collect();
        assert_eq!(running.len(), MOST_AT_ONCE);
        for name in &running {
            names.ended(name, [silence(), silence()], now);
        }
        names.want(many().chain([name("new.test")]), now);
        let later = now + Duration::from_secs(60);
        let next: Vec<_> = (0..MOST_AT_ONCE).map(|_| names.next(later)).collect();
        assert!(running.iter().all(|known| !next.contains(&Next::LookUp(known.clone()))), "{next:?}");
    }

    #[test]
    fn a_name_that_is_no_longer_wanted_is_forgotten() {
        let mut one = One::new();
        one.look_up(0, [answer(&[1], 5), none()]);
        let now = one.start + Duration::from_secs(5);
        assert!(matches!(one.names.next(now), Next::LookUp(_)));
        one.names.want(std::iter::empty(), now);
        assert_eq!(one.names.ended(&name("a.test"), [answer(&[2], 5), none()], now), None);
        assert_eq!((one.known(), one.names.next(now)), (None, Next::Wait));
    }

    #[test]
    fn search_domains_as_the_resolver_of_the_system() {
        let search = ["prod.svc.cluster.local".to_owned(), "cluster.local.".to_owned()];
        assert_eq!(
            absolute_names("web", &search, 1),
            ["web.prod.svc.cluster.local.", "web.cluster.local.", "web."]
        );
        assert_eq!(absolute_names("web.test", &search, 1)[0], "web.test.");
        assert_eq!(absolute_names("web.test", &search, 5)[0], "web.test.prod.svc.cluster.local.");
        assert_eq!(absolute_names("web.test.", &search, 5), ["web.test."]);
        assert_eq!(absolute_names("web", &[".".to_owned()], 1), ["web."]);
    }
}
