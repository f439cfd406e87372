//! The schedule of DNS lookups, and the changes by their results, as functions of values.
//!
//! Pure: time and randomness are arguments, and the caller makes the lookups.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use snisplice_config::{model::Dns, name::HostName};

use super::records::{self, Known, Record, Records, Target};

/// Concurrent lookups.
pub const MOST_AT_ONCE: usize = 16;

/// Addresses of one name that become endpoints. Further ones are skipped.
pub const MOST_ADDRESSES: usize = 256;

/// The pause before a lookup is repeated after a failure. Each consecutive failure doubles the pause.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// The longest pause before the lookup of a failed name is repeated, without jitter.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The input of a lookup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Query {
    /// The name.
    pub name: HostName,
    /// What the name has.
    pub kind: Kind,
    /// The backend's own name servers. With an empty list those of the process.
    pub servers: Arc<[SocketAddr]>,
}

/// The records of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Addresses: A and AAAA records.
    Host,
    /// SRV records, each with the name of a host.
    Srv,
}

/// The result for one address family, IPv4 or IPv6. A result without an address is no failure.
pub type Family = Result<Answer, String>;

/// The result of a lookup.
#[derive(Debug, Clone)]
pub enum Found {
    /// The addresses, in IPv4 and IPv6.
    Host([Family; 2]),
    /// The SRV records. A result without a record is no failure.
    Srv(Result<Records, String>),
}

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
    /// The name has other SRV records than before, or its first ones.
    Records(Arc<[Record]>),
    /// The name can be resolved again, and has its former addresses or records.
    Back,
    /// The name can no longer be resolved, or its first lookup has failed. The name keeps its former addresses or
    /// records.
    Lost {
        /// The number of kept addresses or records.
        kept: usize,
        /// The reason of the failure.
        error: String,
    },
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Resolve this name.
    LookUp(Query),
    /// Nothing before this time, or before a lookup ends.
    At(Instant),
    /// Nothing before a lookup ends, or names are added.
    Wait,
}

#[derive(Debug, Default)]
struct Entry {
    /// Of a host, sorted. `None` before the first lookup has ended.
    addresses: Option<Arc<[IpAddr]>>,
    /// The SRV records, sorted. `None` before the first lookup has ended.
    records: Option<Arc<[Record]>>,
    /// The addresses of the hosts in `records`. `None` before the first lookups of those have ended.
    targets: Option<Arc<[Target]>>,
    failures: u32,
    /// The time of the next lookup. `None` during a lookup.
    due: Option<Instant>,
}

/// All names with their state.
#[derive(Debug)]
pub struct Names {
    /// Those of the configuration.
    wanted: HashSet<Query>,
    /// Those of the configuration, and the hosts in their SRV records.
    entries: HashMap<Query, Entry>,
    /// Names, sorted by whether they were resolved before, then by the time of the next lookup. New names come first.
    queue: BTreeSet<(bool, Instant, Query)>,
    running: usize,
    /// The bounds of an answer's validity. A TTL of 0 must not cause a flood of queries, and a mistaken long one can
    /// be corrected.
    ttl: (Duration, Duration),
    /// The wanted names with other values than before, until they are taken.
    changed: Vec<Query>,
}

impl Default for Names {
    fn default() -> Self {
        let Dns { min_ttl, max_ttl, .. } = Dns::default();
        Self {
            wanted: HashSet::new(),
            entries: HashMap::new(),
            queue: BTreeSet::new(),
            running: 0,
            ttl: (min_ttl, max_ttl),
            changed: Vec::new(),
        }
    }
}

impl Names {
    /// Sets the bounds of an answer's validity. A valid answer whose lookup is due later is looked up earlier.
    pub fn bound(&mut self, least: Duration, most: Duration, now: Instant) {
        self.ttl = (least, most);
        let latest = now + most;
        for (known, due, query) in std::mem::take(&mut self.queue) {
            let due = due.min(latest);
            if let Some(entry) = self.entries.get_mut(&query) {
                entry.due = Some(due);
            }
            self.queue.insert((known, due, query));
        }
    }

    /// Sets the names to resolve. Names that stay keep their state.
    pub fn want(&mut self, names: impl Iterator<Item = Query>, now: Instant) {
        self.wanted = names.collect();
        self.settle(now);
    }

    /// Resolves the wanted names and the hosts in their SRV records, and no others.
    fn settle(&mut self, now: Instant) {
        let mut all = self.wanted.clone();
        for query in &self.wanted {
            let records = self.entries.get(query).and_then(|entry| entry.records.as_deref());
            all.extend(records.unwrap_or_default().iter().map(|record| host_of(query, record)));
        }
        self.entries.retain(|query, _| all.contains(query));
        self.queue.retain(|(_, _, query)| all.contains(query));
        for query in all {
            if !self.entries.contains_key(&query) {
                self.queue.insert((false, now, query.clone()));
                self.entries.insert(query, Entry { due: Some(now), ..Entry::default() });
            }
        }
    }

    /// The addresses of a name. Empty if it could not be resolved yet, and `None` before its first lookup has ended.
    #[must_use]
    pub fn known(&self, query: &Query) -> Option<Known> {
        let entry = self.entries.get(query)?;
        match query.kind {
            Kind::Host => entry.addresses.clone().map(Known::Addresses),
            Kind::Srv => entry.targets.clone().map(Known::Targets),
        }
    }

    /// The wanted names whose addresses have changed since the last call.
    pub fn changed(&mut self) -> Vec<Query> {
        std::mem::take(&mut self.changed)
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
                let Some((_, _, query)) = self.queue.pop_first() else { return Next::Wait };
                if let Some(entry) = self.entries.get_mut(&query) {
                    entry.due = None;
                }
                self.running += 1;
                Next::LookUp(query)
            }
        }
    }

    /// Applies the result of a name's lookup. If one address family failed, its addresses are kept, as long as the
    /// other family has any. `jitter` is random: it spreads the repeated lookups of names that fail together.
    pub fn ended(&mut self, query: &Query, found: Found, jitter: u8, now: Instant) -> Option<Change> {
        self.running = self.running.saturating_sub(1);
        let (least, most) = self.ttl;
        let entry = self.entries.get_mut(query)?;
        // The name was removed and added again meanwhile. It is in the queue, and its next lookup is a new one.
        if entry.due.is_some() {
            return None;
        }
        let (change, again) = match entry.apply(found) {
            Ok((change, ttl)) => (change, ttl.min(most).max(least)),
            Err(error) => {
                let again = (FIRST_RETRY * (1 << entry.failures.min(8))).min(LONGEST_RETRY);
                entry.failures = entry.failures.saturating_add(1);
                (
                    (entry.failures == 1).then(|| entry.lost(query.kind, error)),
                    again + again * u32::from(jitter) / 1_024,
                )
            }
        };
        entry.due = Some(now + again);
        self.queue.insert((true, now + again, query.clone()));
        if matches!(change, Some(Change::Records(_))) {
            self.settle(now);
        }
        match (query.kind, &change) {
            (Kind::Host, Some(Change::Addresses { .. } | Change::Lost { kept: 0, .. })) => {
                if self.wanted.contains(query) {
                    self.changed.push(query.clone());
                }
                self.update_targets();
            }
            (Kind::Srv, Some(_)) => self.update_targets(),
            _ => {}
        }
        change
    }

    /// Updates the addresses of SRV records after any change. Those of a name change at once: when the first lookup
    /// of each host has ended. If no host has an address, the former ones are kept.
    fn update_targets(&mut self) {
        let services: Vec<_> = self.wanted.iter().filter(|query| query.kind == Kind::Srv).collect();
        for query in services {
            let Some(entry) = self.entries.get(query) else { continue };
            let Some(wanted) = entry.records.clone() else { continue };
            let found = records::targets(&wanted, |record| {
                self.entries.get(&host_of(query, record))?.addresses.clone()
            });
            let Some(found) = found else { continue };
            let known = entry.targets.as_deref();
            let keeps = found.is_empty() && known.is_some_and(|known| !known.is_empty());
            if known == Some(&*found) || keeps {
                continue;
            }
            if let Some(entry) = self.entries.get_mut(query) {
                entry.targets = Some(found);
                self.changed.push(query.clone());
            }
        }
    }
}

impl Entry {
    /// Applies a result. Returns the change, and the validity of the result.
    fn apply(&mut self, found: Found) -> Result<(Option<Change>, Duration), String> {
        match found {
            Found::Host(found) => {
                let before = self.addresses.clone();
                let known = before.as_deref().unwrap_or_default();
                let (now, ttl) = merge(found, known)?;
                let was_lost = std::mem::take(&mut self.failures) > 0;
                if before.as_deref() == Some(&*now) {
                    return Ok((was_lost.then_some(Change::Back), ttl));
                }
                self.addresses = Some(now.clone());
                Ok((Some(Change::Addresses { before: known.into(), now, was_lost }), ttl))
            }
            Found::Srv(found) => {
                let Records { mut records, ttl } = found?;
                records.sort_unstable();
                records.dedup();
                records.truncate(MOST_ADDRESSES);
                if records.is_empty() {
                    return Err("the name has no SRV record with a host".into());
                }
                let was_lost = std::mem::take(&mut self.failures) > 0;
                if self.records.as_deref() == Some(&*records) {
                    return Ok((was_lost.then_some(Change::Back), ttl));
                }
                let now: Arc<[Record]> = records.into();
                self.records = Some(now.clone());
                Ok((Some(Change::Records(now)), ttl))
            }
        }
    }

    /// Keeps the known values after a failed lookup.
    fn lost(&mut self, kind: Kind, error: String) -> Change {
        let kept = match kind {
            Kind::Host => self.addresses.get_or_insert_default().len(),
            Kind::Srv => self.records.get_or_insert_default().len(),
        };
        Change::Lost { kept, error }
    }
}

/// The host of an SRV record, which the same servers know. The name is absolute.
fn host_of(service: &Query, record: &Record) -> Query {
    Query { name: record.host.clone(), kind: Kind::Host, servers: service.servers.clone() }
}

/// The sorted addresses of both families, and their validity. An error if there is none.
pub(super) fn merge(found: [Family; 2], known: &[IpAddr]) -> Result<(Arc<[IpAddr]>, Duration), String> {
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

    fn name(text: &str) -> Query {
        Query { name: HostName::parse(text).unwrap(), kind: Kind::Host, servers: [].into() }
    }

    fn service(text: &str) -> Query {
        Query { kind: Kind::Srv, ..name(text) }
    }

    fn known(names: &Names, query: &Query) -> Option<Arc<[IpAddr]>> {
        names.known(query).map(|known| match known {
            Known::Addresses(addresses) => addresses,
            Known::Targets(targets) => targets.iter().map(|target| target.address.ip()).collect(),
        })
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[expect(clippy::unnecessary_wraps, reason = "what was found, as the DNS tells it")]
    fn answer(last: &[u8], seconds: u64) -> Family {
        let addresses = last.iter().copied().map(ip).collect();
        Ok(Answer { addresses, ttl: Duration::from_secs(seconds) })
    }

    #[expect(clippy::unnecessary_wraps, reason = "as above")]
    fn none() -> Family {
        Ok(Answer::default())
    }

    fn silence() -> Family {
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

        fn look_up(&mut self, at: u64, found: [Family; 2]) -> (Option<Change>, u64) {
            let now = self.start + Duration::from_secs(at);
            assert_eq!(self.names.next(now), Next::LookUp(name("a.test")));
            assert_eq!(self.names.next(now), Next::Wait, "it is looked up already");
            let change = self.names.ended(&name("a.test"), Found::Host(found), 0, now);
            let Next::At(next) = self.names.next(now) else { panic!("it is looked up again") };
            (change, (next - self.start).as_secs())
        }

        fn known(&self) -> Option<Vec<IpAddr>> {
            known(&self.names, &name("a.test")).map(|addresses| addresses.to_vec())
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
        one.look_up(0, [Ok(Answer { addresses, ttl: FIRST_RETRY }), none()]);
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
            names.ended(name, Found::Host([silence(), silence()]), 0, now);
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
        assert_eq!(one.names.ended(&name("a.test"), Found::Host([answer(&[2], 5), none()]), 0, now), None);
        assert_eq!((one.known(), one.names.next(now)), (None, Next::Wait));
    }

    #[test]
    fn other_bounds_apply_to_known_names_as_well() {
        let mut one = One::new();
        one.look_up(0, [answer(&[1], 86_400), none()]);
        let second = Duration::from_secs(1);
        one.names.bound(second, 10 * second, one.start);
        let mut next = |at: u64, ttl| one.look_up(at, [answer(&[1], ttl), none()]).1;
        assert_eq!([next(10, 0), next(11, 7), next(18, 60)], [11, 18, 28]);
    }

    #[test]
    fn jitter_never_shortens_the_pause_after_a_failure() {
        let pause = |jitter| {
            let (mut names, start) = (Names::default(), Instant::now());
            names.want([name("a.test")].into_iter(), start);
            names.next(start);
            names.ended(&name("a.test"), Found::Host([silence(), silence()]), jitter, start);
            let Next::At(next) = names.next(start) else { panic!("it is looked up again") };
            next - start
        };
        assert_eq!(pause(0), FIRST_RETRY);
        assert!(pause(u8::MAX) > FIRST_RETRY && pause(u8::MAX) <= FIRST_RETRY * 5 / 4);
    }

    /// The names of one service and its hosts.
    struct Service(Names, Instant);

    impl Service {
        fn new() -> Self {
            let (mut names, start) = (Names::default(), Instant::now());
            names.want([service("_https._tcp.test")].into_iter(), start);
            Self(names, start)
        }

        /// Makes all lookups that are due after a minute: that of the service, and those of hosts.
        fn look_up(&mut self, hosts: Result<&[&str], ()>, addresses: &[(&str, Family)]) {
            self.1 += Duration::from_secs(60);
            let record = |host: &&str| Record {
                priority: 1,
                host: HostName::parse(host).unwrap(),
                port: 443,
                weight: 1,
            };
            while let Next::LookUp(query) = self.0.next(self.1) {
                let found = match query.kind {
                    Kind::Srv => Found::Srv(match hosts {
                        Ok(hosts) => Ok(Records {
                            records: hosts.iter().map(record).collect(),
                            ttl: Duration::from_secs(60),
                        }),
                        Err(()) => Err("no answer".into()),
                    }),
                    Kind::Host => {
                        let found = addresses.iter().find(|(name, _)| *name == query.name.as_str());
                        Found::Host([found.map_or_else(none, |(_, found)| found.clone()), none()])
                    }
                };
                self.0.ended(&query, found, 0, self.1);
            }
        }

        fn known(&self) -> Option<Vec<IpAddr>> {
            known(&self.0, &service("_https._tcp.test")).map(|addresses| addresses.to_vec())
        }
    }

    #[test]
    fn a_service_has_the_addresses_of_its_hosts() {
        let mut one = Service::new();
        assert_eq!(one.known(), None);
        let (a, b) = (("a.test.", answer(&[1, 2], 5)), ("b.test.", answer(&[3], 5)));
        one.look_up(Ok(&["a.test."]), &[a.clone(), b.clone()]);
        assert_eq!(one.known().unwrap(), [ip(1), ip(2)]);
        assert_eq!(one.0.changed(), [service("_https._tcp.test")]);
        one.look_up(Ok(&["b.test."]), &[a.clone(), b.clone()]);
        assert_eq!(one.known().unwrap(), [ip(3)]);
        assert_eq!(one.0.entries.len(), 2, "a host that left is forgotten");
        one.0.changed();
        one.look_up(Ok(&["b.test."]), &[a, b]);
        assert_eq!(one.0.changed(), [], "nothing has changed");
    }

    #[test]
    fn other_records_wait_for_the_addresses_of_their_hosts() {
        let mut one = Service::new();
        one.look_up(Ok(&["a.test."]), &[("a.test.", answer(&[1], 3_600))]);
        one.1 += Duration::from_secs(60);
        let query = service("_https._tcp.test");
        assert_eq!(one.0.next(one.1), Next::LookUp(query.clone()));
        let record = Record { priority: 1, host: HostName::parse("b.test.").unwrap(), port: 443, weight: 1 };
        let records = Records { records: vec![record], ttl: Duration::from_secs(60) };
        one.0.ended(&query, Found::Srv(Ok(records)), 0, one.1);
        assert_eq!(one.known().unwrap(), [ip(1)], "the new host is looked up first");
        assert_eq!(one.0.next(one.1), Next::LookUp(name("b.test.")));
        one.0.ended(&name("b.test."), Found::Host([answer(&[2], 60), none()]), 0, one.1);
        assert_eq!(one.known().unwrap(), [ip(2)]);
    }

    #[test]
    fn a_service_that_fails_keeps_its_addresses() {
        let mut one = Service::new();
        let a = [("a.test.", answer(&[1], 5))];
        one.look_up(Ok(&["a.test."]), &a);
        for (hosts, addresses) in [
            (Err(()), &a[..]),
            (Ok(&[][..]), &a[..]),
            (Ok(&["a.test."][..]), &[][..]),
            (Ok(&["gone.test."][..]), &[][..]),
        ] {
            one.look_up(hosts, addresses);
            assert_eq!(one.known().unwrap(), [ip(1)], "{hosts:?} {addresses:?}");
        }
        let mut never = Service::new();
        never.look_up(Err(()), &[]);
        assert_eq!(never.known(), Some(Vec::new()), "connections wait no longer");
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
