//! One address of a backend, and its recorded state.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use snisplice_config::model::{balancing::SlowStart, health::OutlierDetection};

use super::{
    balance::slow_start,
    monitor::{Alarms, Monitor},
    recent_failures::{Record, Standing},
};

/// The time for an attempt before the next address is tried beside it (RFC 8305, section 5, "Connection Attempt
/// Delay").
pub const HEAD_START: Duration = Duration::from_millis(250);

/// The longest head start, for an address with a long round trip (RFC 8305, section 8, recommends no more).
const LONGEST_HEAD_START: Duration = Duration::from_secs(2);

/// An address. Successive configurations share it, and so do all backends that do not watch its health.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    /// A [`Record`] as a number.
    record: AtomicU64,
    /// The duration of the last connect, in milliseconds.
    took: AtomicU32,
    /// Whether health checks and outlier detection admit connections.
    eligible: AtomicBool,
    /// The time of [`uptime`], in milliseconds, at which the endpoint was new or recovered. 0 if no slow start is
    /// needed.
    since: AtomicU64,
    /// Present if the backend watches the endpoint's health.
    monitor: Option<Box<Monitor>>,
    counts: Counts,
}

/// The values that every connection changes, on a cache line apart from those that every connection only reads.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counts {
    /// Attempts and connections in progress: those of [`super::lease::Lease`].
    active: AtomicU32,
    /// Connections that the endpoint reset, or that ended because it was unreachable.
    broken: AtomicU32,
}

impl Endpoint {
    fn new(address: SocketAddr, since: u64) -> Self {
        Self {
            address,
            record: AtomicU64::new(0),
            took: AtomicU32::new(0),
            eligible: AtomicBool::new(true),
            since: AtomicU64::new(since),
            monitor: None,
            counts: Counts::default(),
        }
    }

    /// The address, which identifies the endpoint.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Attempts and connections in progress, of all backends with this address.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.counts.active.load(Relaxed)
    }

    /// Connections that the endpoint reset, or that ended because it was unreachable, since it is known.
    #[must_use]
    pub fn broken(&self) -> u32 {
        self.counts.broken.load(Relaxed)
    }

    pub(super) fn begin(&self) {
        self.counts.active.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.counts.active.fetch_sub(1, Relaxed);
    }

    pub(super) fn broke(&self) {
        self.counts.broken.fetch_add(1, Relaxed);
    }

    /// Sets whether health checks and outlier detection admit connections. A new endpoint is eligible.
    pub fn set_eligible(&self, eligible: bool) {
        // Most calls change nothing. Without a write, all processors can share the cache line.
        if self.eligible.load(Relaxed) != eligible {
            if eligible {
                self.since.store(millis(uptime()), Relaxed);
            }
            self.eligible.store(eligible, Relaxed);
        }
    }

    /// The share of the endpoint's weight during slow start, as a part of [`FULL`](slow_start::FULL).
    #[must_use]
    pub fn part(&self, rule: &SlowStart) -> u32 {
        match self.since.load(Relaxed) {
            0 => slow_start::FULL,
            since => slow_start::part(uptime().saturating_sub(Duration::from_millis(since)), rule),
        }
    }

    /// Whether health checks and outlier detection admit connections.
    #[must_use]
    pub fn is_eligible(&self) -> bool {
        self.eligible.load(Relaxed)
    }

    /// Whether a recent attempt failed, so that siblings come first. The call changes nothing.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let bits = self.record.load(Relaxed);
        bits != 0 && Record::from_bits(bits).standing(uptime()) == Standing::Failed
    }

    /// Records a failed attempt to connect.
    pub(super) fn failed_to_connect(&self) {
        if let Some(monitor) = &self.monitor {
            monitor.failed(false);
        }
    }

    /// Records the end of a connection: whether the endpoint has `broken` it, and whether the endpoint has sent any
    /// byte.
    pub(super) fn ended(&self, broken: bool, has_answered: bool) {
        if broken {
            self.broke();
        }
        let Some(monitor) = &self.monitor else { return };
        if has_answered {
            monitor.answered();
        } else if broken {
            monitor.failed(true);
        }
    }

    /// Records the status code of an HTTP response. `None` is a connection that ended before the response.
    pub fn responded(&self, status: Option<u16>) {
        match (&self.monitor, status) {
            (None, _) => {}
            (Some(monitor), Some(status)) => monitor.responded(status),
            (Some(monitor), None) => monitor.failed(true),
        }
    }

    /// Whether a connection should try this address before its siblings. When the time to avoid the address is over,
    /// the result is true for one connection only. Its attempt decides for the others.
    #[must_use]
    pub fn is_preferred(&self) -> bool {
        let bits = self.record.load(Relaxed);
        if bits == 0 {
            return true;
        }
        let (record, now) = (Record::from_bits(bits), uptime());
        match record.standing(now) {
            Standing::Good => true,
            Standing::Failed => false,
            Standing::Due => {
                let trial = record.on_trial(now).to_bits();
                self.record.compare_exchange(bits, trial, Relaxed, Relaxed).is_ok()
            }
        }
    }

    /// Records the duration of a successful connect.
    pub fn answered(&self, took: Duration) {
        let took = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        if self.took.load(Relaxed) != took {
            self.took.store(took, Relaxed);
        }
        self.answered_at_once();
    }

    /// Records a connect that succeeded at once.
    pub fn answered_at_once(&self) {
        // Most addresses have no failure to clear. Without a write, all processors can share the cache line.
        let bits = self.record.load(Relaxed);
        if bits != 0 {
            if Record::from_bits(bits).has_failed() {
                self.since.store(millis(uptime()), Relaxed);
            }
            self.record.store(0, Relaxed);
        }
        if let Some(monitor) = &self.monitor {
            monitor.connected();
        }
    }

    /// Records a failed attempt.
    pub fn failed(&self) {
        self.update(Record::failed);
    }

    /// Records that a sibling answered after this address had exceeded its head start.
    pub fn overtaken(&self) {
        self.update(Record::overtaken);
    }

    fn update(&self, change: impl Fn(Record, Duration) -> Record) {
        let now = uptime();
        let change = |bits| Some(change(Record::from_bits(bits), now).to_bits());
        let _ = self.record.fetch_update(Relaxed, Relaxed, change);
    }

    /// The time for this address before another is tried beside it. The time is longer for an address with a long
    /// round trip, so that a healthy endpoint costs one SYN.
    #[must_use]
    pub fn head_start(&self) -> Duration {
        let usual = Duration::from_millis(self.took.load(Relaxed).into());
        (usual * 2).clamp(HEAD_START, LONGEST_HEAD_START)
    }
}

/// The time since the first call.
pub(super) fn uptime() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Milliseconds, at least 1.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The endpoints of a process by their address. A request for an endpoint in use returns the same one.
#[derive(Debug, Default)]
pub struct Endpoints {
    by_address: Mutex<Table>,
    /// Whether an endpoint that is created now is new beside serving ones.
    serving: AtomicBool,
    alarms: Arc<Alarms>,
}

#[derive(Debug, Default)]
struct Table {
    known: HashMap<(Option<Arc<str>>, SocketAddr), Weak<Endpoint>>,
    /// The number of endpoints that triggers the removal of unused ones.
    room: usize,
}

impl Endpoints {
    /// Marks endpoints that are created from now on as new, for slow start. At the start of the process all endpoints
    /// are equal.
    pub fn are_serving(&self) {
        self.serving.store(true, Relaxed);
    }

    /// The endpoint with this address, for all backends that do not watch its health.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Arc<Endpoint> {
        self.known((None, address), |since| Endpoint::new(address, since))
    }

    /// The endpoint with this address, for a backend that watches its health. Two backends may judge one address
    /// differently, for example by their server names.
    #[must_use]
    pub fn watched(
        &self,
        backend: &Arc<str>,
        address: SocketAddr,
        rules: Option<&OutlierDetection>,
    ) -> Arc<Endpoint> {
        // A copy: the shared references of a name show whether it is in use.
        let backend: Arc<str> = Arc::from(&**backend);
        let key = (backend.clone(), address);
        let endpoint = self.known((Some(backend), address), |since| Endpoint {
            monitor: Some(Box::new(Monitor::new(key, &self.alarms))),
            ..Endpoint::new(address, since)
        });
        if let Some(monitor) = &endpoint.monitor {
            monitor.follow(rules);
        }
        endpoint
    }

    /// Receives reports of failing watched endpoints.
    #[must_use]
    pub fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    fn known(
        &self,
        key: (Option<Arc<str>>, SocketAddr),
        begin: impl FnOnce(u64) -> Endpoint,
    ) -> Arc<Endpoint> {
        let mut table = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.known.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if table.known.len() >= table.room {
            table.known.retain(|_, endpoint| endpoint.strong_count() > 0);
            table.room = 2 * table.known.len() + 64;
        }
        // A backend whose health is watched from now on keeps its former addresses, which are not new.
        let is_known = table.known.get(&(None, key.1)).is_some_and(|shared| shared.strong_count() > 0);
        let is_new = self.serving.load(Relaxed) && !is_known;
        let endpoint = Arc::new(begin(if is_new { millis(uptime()) } else { 0 }));
        table.known.insert(key, Arc::downgrade(&endpoint));
        endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    #[test]
    fn who_asks_for_an_address_twice_gets_one_endpoint() {
        let endpoints = Endpoints::default();
        let first = endpoints.at(address(1));
        assert!(Arc::ptr_eq(&first, &endpoints.at(address(1))));
        assert!(!Arc::ptr_eq(&first, &endpoints.at(address(2))));
    }

    #[test]
    fn addresses_that_nobody_uses_are_forgotten() {
        let endpoints = Endpoints::default();
        let kept = endpoints.at(address(1));
        kept.failed();
        for number in 2..10_000 {
            drop(endpoints.at(address(number)));
        }
        assert!(endpoints.by_address.lock().unwrap().known.len() < 200);
        assert!(!endpoints.at(address(1)).is_preferred(), "one in use is remembered");
    }

    #[test]
    fn an_answer_ends_the_memory_of_failures() {
        let endpoint = Endpoint::new(address(1), 0);
        endpoint.failed();
        assert!(!endpoint.is_preferred());
        endpoint.answered(Duration::from_millis(1));
        assert!(endpoint.is_preferred());
    }

    #[test]
    fn health_and_the_memory_of_failures_are_independent() {
        let endpoint = Endpoint::new(address(1), 0);
        assert!(endpoint.is_eligible() && !endpoint.has_failed());
        endpoint.set_eligible(false);
        assert!(!endpoint.is_eligible() && !endpoint.has_failed());
        endpoint.failed();
        endpoint.set_eligible(true);
        assert!(endpoint.is_eligible() && endpoint.has_failed());
        endpoint.answered_at_once();
        assert!(endpoint.is_eligible() && !endpoint.has_failed());
    }

    /// Such as after a reload that adds a health check to a backend.
    #[test]
    fn an_address_that_is_watched_from_now_on_is_not_new() {
        let rule = SlowStart {
            window: Duration::from_secs(3_600),
            aggression: "1".parse().unwrap(),
            min_weight_percent: 25,
        };
        let endpoints = Endpoints::default();
        let _serves = endpoints.at(address(1));
        endpoints.are_serving();
        let part = |port| endpoints.watched(&"web".into(), address(port), None).part(&rule);
        assert_eq!(part(1), slow_start::FULL);
        assert_eq!(part(2), slow_start::FULL / 4);
    }

    #[test]
    fn a_new_endpoint_and_one_that_has_recovered_begin_slowly() {
        let window = Duration::from_secs(3_600);
        let rule = SlowStart { window, aggression: "1".parse().unwrap(), min_weight_percent: 25 };
        let endpoints = Endpoints::default();
        let first = endpoints.at(address(1));
        assert_eq!(first.part(&rule), slow_start::FULL, "all are alike at the start");
        endpoints.are_serving();
        assert_eq!(endpoints.at(address(2)).part(&rule), slow_start::FULL / 4);
        first.overtaken();
        first.answered_at_once();
        assert_eq!(first.part(&rule), slow_start::FULL, "one lost packet is no failure");
        first.failed();
        first.answered_at_once();
        assert_eq!(first.part(&rule), slow_start::FULL / 4);
        let checked = Endpoint::new(address(3), 0);
        checked.set_eligible(true);
        assert_eq!(checked.part(&rule), slow_start::FULL, "nothing has changed");
        checked.set_eligible(false);
        checked.set_eligible(true);
        assert_eq!(checked.part(&rule), slow_start::FULL / 4);
    }

    #[test]
    fn the_head_start_follows_the_distance() {
        let endpoint = Endpoint::new(address(1), 0);
        assert_eq!(endpoint.head_start(), HEAD_START);
        endpoint.answered(Duration::from_millis(400));
        assert_eq!(endpoint.head_start(), Duration::from_millis(800));
        endpoint.answered(Duration::from_secs(30));
        assert_eq!(endpoint.head_start(), LONGEST_HEAD_START);
    }
}
