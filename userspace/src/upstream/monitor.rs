//! Counts consecutive failures of an endpoint's connections and responses, for outlier detection.
//!
//! Workers change a few atomic numbers, and only while an endpoint fails. A monitor only raises an alarm.
//! `health/outlier.rs` decides on the consequences.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use snisplice_config::model::health::OutlierDetection;
use strum::{Display, IntoStaticStr};
use tokio::sync::Notify;

/// The kind of an endpoint's failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// [`OutlierDetection::consecutive_5xx`].
    #[strum(serialize = "consecutive_5xx")]
    Consecutive5xx,
    /// [`OutlierDetection::consecutive_gateway_failure`].
    ConsecutiveGatewayFailure,
    /// [`OutlierDetection::consecutive_local_origin_failure`].
    ConsecutiveLocalOriginFailure,
}

/// A backend's name and the address of its endpoint.
pub type Key = (Arc<str>, SocketAddr);

/// Endpoints with too many failures. There is at most one alarm for each endpoint.
#[derive(Debug, Default)]
pub struct Alarms {
    raised: Mutex<HashMap<Key, Cause>>,
    notify: Notify,
}

impl Alarms {
    fn raise(&self, key: Key, cause: Cause) {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).insert(key, cause);
        self.notify.notify_one();
    }

    /// Waits for an alarm.
    pub async fn next(&self) {
        self.notify.notified().await;
    }

    /// Removes and returns the alarms.
    #[must_use]
    pub fn take(&self) -> Vec<(Key, Cause)> {
        std::mem::take(&mut *self.raised.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }
}

/// Consecutive failures.
#[derive(Debug, Default)]
struct Streak(AtomicU32);

impl Streak {
    /// Set once a failure has followed a successful connect. Then a further connect does not end the streak, and only
    /// an answer does.
    const LATE: u32 = 1 << 31;

    /// Adds a failure. Returns whether `enough` is reached; 0 is never reached.
    fn fail(&self, late: bool, enough: u32) -> bool {
        let flag = if late { Self::LATE } else { 0 };
        let next =
            |bits: u32| Some(((bits & !Self::LATE) + 1).min(Self::LATE - 1) | (bits & Self::LATE) | flag);
        let before = self.0.fetch_update(Relaxed, Relaxed, next).unwrap_or_default();
        enough > 0 && (before & !Self::LATE) + 1 >= enough
    }

    fn connected(&self) {
        let bits = self.0.load(Relaxed);
        if bits != 0 && bits & Self::LATE == 0 {
            self.end();
        }
    }

    fn end(&self) {
        // Most endpoints do not fail. Without a write, all processors can share the cache line.
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }
}

/// One kind of failure: its consecutive count, and the limit.
#[derive(Debug, Default)]
struct Counter {
    streak: Streak,
    enough: AtomicU32,
}

impl Counter {
    fn fail(&self, late: bool) -> bool {
        self.streak.fail(late, self.enough.load(Relaxed))
    }
}

/// Watches one endpoint of one backend.
#[derive(Debug)]
pub struct Monitor {
    key: Key,
    server_errors: Counter,
    gateway_failures: Counter,
    local_failures: Counter,
    split: AtomicBool,
    alarms: Arc<Alarms>,
}

impl Monitor {
    pub(super) fn new(key: Key, alarms: &Arc<Alarms>) -> Self {
        Self {
            key,
            server_errors: Counter::default(),
            gateway_failures: Counter::default(),
            local_failures: Counter::default(),
            split: AtomicBool::new(false),
            alarms: alarms.clone(),
        }
    }

    /// Applies these rules from now on. Without rules there is no limit.
    pub(super) fn follow(&self, rules: Option<&OutlierDetection>) {
        let split = rules.is_some_and(|rules| rules.split_external_local_origin_errors);
        let enough = |of: fn(&OutlierDetection) -> u32| rules.map_or(0, of);
        self.split.store(split, Relaxed);
        self.server_errors.enough.store(enough(|rules| rules.consecutive_5xx), Relaxed);
        self.gateway_failures.enough.store(enough(|rules| rules.consecutive_gateway_failure), Relaxed);
        let local = if split { enough(|rules| rules.consecutive_local_origin_failure) } else { 0 };
        self.local_failures.enough.store(local, Relaxed);
    }

    /// Records a successful connect.
    pub(super) fn connected(&self) {
        self.counters().into_iter().for_each(|(counter, _)| counter.streak.connected());
    }

    /// Records a failed connect, or with `late` a connection that failed before the endpoint had sent a byte.
    pub(super) fn failed(&self, late: bool) {
        let split = self.split.load(Relaxed);
        for (counter, cause) in self.counters() {
            let is_local = cause == Cause::ConsecutiveLocalOriginFailure;
            if is_local == split && counter.fail(late) {
                self.raise(cause);
                return;
            }
        }
    }

    /// Records that the endpoint has sent bytes over a connection without HTTP.
    pub(super) fn answered(&self) {
        self.counters().into_iter().for_each(|(counter, _)| counter.streak.end());
    }

    /// Records the status code of a response.
    pub(super) fn responded(&self, status: u16) {
        self.local_failures.streak.end();
        let all = [
            (&self.server_errors, status >= 500, Cause::Consecutive5xx),
            (&self.gateway_failures, (502..=504).contains(&status), Cause::ConsecutiveGatewayFailure),
        ];
        for (counter, failed, cause) in all {
            if !failed {
                counter.streak.end();
            } else if counter.fail(true) {
                self.raise(cause);
                return;
            }
        }
    }

    fn counters(&self) -> [(&Counter, Cause); 3] {
        [
            (&self.server_errors, Cause::Consecutive5xx),
            (&self.gateway_failures, Cause::ConsecutiveGatewayFailure),
            (&self.local_failures, Cause::ConsecutiveLocalOriginFailure),
        ]
    }

    fn raise(&self, cause: Cause) {
        self.answered();
        self.alarms.raise(self.key.clone(), cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(rules: &OutlierDetection) -> Monitor {
        let key = ("pool".into(), SocketAddr::from(([10, 0, 0, 1], 443)));
        let monitor = Monitor::new(key, &Arc::default());
        monitor.follow(Some(rules));
        monitor
    }

    fn causes(monitor: &Monitor) -> Vec<Cause> {
        monitor.alarms.take().into_iter().map(|(_, cause)| cause).collect()
    }

    #[test]
    fn five_failures_in_a_row_are_too_many() {
        let monitor = monitor(&OutlierDetection::default());
        for _ in 0..4 {
            monitor.failed(false);
        }
        monitor.connected();
        for _ in 0..4 {
            monitor.failed(false);
        }
        assert_eq!(causes(&monitor), []);
        monitor.failed(false);
        assert_eq!(causes(&monitor), [Cause::Consecutive5xx]);
        monitor.failed(false);
        assert_eq!(causes(&monitor), [], "it begins anew");
    }

    /// An endpoint that accepts and then resets is not healthy.
    #[test]
    fn a_connect_does_not_end_a_streak_of_resets() {
        let monitor = monitor(&OutlierDetection::default());
        for _ in 0..5 {
            assert_eq!(causes(&monitor), []);
            monitor.connected();
            monitor.failed(true);
        }
        assert_eq!(causes(&monitor), [Cause::Consecutive5xx]);
        for _ in 0..20 {
            monitor.connected();
            monitor.failed(true);
            monitor.answered();
        }
        assert_eq!(causes(&monitor), []);
    }

    #[test]
    fn statuses_count_with_failures_of_connections_unless_they_are_split() {
        let rules = OutlierDetection {
            consecutive_5xx: 3,
            consecutive_gateway_failure: 2,
            consecutive_local_origin_failure: 4,
            ..OutlierDetection::default()
        };
        let together = monitor(&rules);
        together.responded(500);
        together.responded(503);
        assert_eq!(causes(&together), []);
        together.failed(false);
        assert_eq!(causes(&together), [Cause::Consecutive5xx]);
        together.responded(502);
        together.failed(false);
        assert_eq!(causes(&together), [Cause::ConsecutiveGatewayFailure]);

        let split = monitor(&OutlierDetection { split_external_local_origin_errors: true, ..rules });
        for _ in 0..3 {
            split.failed(false);
        }
        assert_eq!(causes(&split), []);
        split.failed(false);
        assert_eq!(causes(&split), [Cause::ConsecutiveLocalOriginFailure]);
        for status in [500, 404, 500, 200, 500] {
            split.responded(status);
        }
        assert_eq!(causes(&split), []);
    }

    #[test]
    fn without_rules_nothing_is_too_many() {
        let monitor = monitor(&OutlierDetection::default());
        monitor.follow(None);
        for _ in 0..100 {
            monitor.failed(false);
            monitor.responded(503);
        }
        assert_eq!(causes(&monitor), []);
    }
}
