//! The backends that are unreachable, so that the log reports changes and not every connection.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The period in which the log reports the same backend once.
const SILENCE: Duration = Duration::from_secs(10);

/// The backends without a reachable endpoint, for the whole process.
#[derive(Debug, Default)]
pub struct Reachability {
    backends: Mutex<Backends>,
    /// The number of entries. Callers without one need no lock.
    kept: AtomicUsize,
}

/// By name: backends that are unreachable, and backends that became reachable a moment ago.
#[derive(Debug, Default)]
struct Backends(HashMap<Arc<str>, Noticed>);

#[derive(Debug, Clone, Copy)]
struct Noticed {
    /// The time at which the backend became unreachable. `None` if it is reachable.
    away_since: Option<Instant>,
    /// Whether the log has reported that.
    told: bool,
    /// The time at which the log reported the backend.
    line: Instant,
}

impl Backends {
    /// No endpoint was reachable. Whether to log that.
    fn lost(&mut self, name: &Arc<str>, now: Instant) -> bool {
        let told_lately = |line: Instant| now.saturating_duration_since(line) < SILENCE;
        if let Some(noticed) = self.0.get_mut(name) {
            let news = if noticed.away_since.is_none() {
                noticed.away_since = Some(now);
                noticed.told = !told_lately(noticed.line);
                noticed.told
            } else {
                // A change that was not reported at once is reported if it lasts.
                !noticed.told && !told_lately(noticed.line)
            };
            if news {
                (noticed.told, noticed.line) = (true, now);
            }
            return news;
        }
        self.0.retain(|_, noticed| noticed.away_since.is_some() || told_lately(noticed.line));
        self.0.insert(name.clone(), Noticed { away_since: Some(now), told: true, line: now });
        true
    }

    /// An endpoint has answered. Returns for how long none had, if that is to be logged.
    fn found(&mut self, name: &str, now: Instant) -> Option<Duration> {
        let noticed = self.0.get_mut(name)?;
        let since = noticed.away_since.take()?;
        let away = noticed.told.then(|| now.saturating_duration_since(since));
        if away.is_some() {
            noticed.line = now;
        }
        away
    }
}

impl Reachability {
    /// No endpoint of `backend` was reachable. The last one failed for `reason`.
    pub fn lost(&self, backend: &Arc<str>, reason: &dyn std::fmt::Display) {
        let mut backends = self.lock();
        let news = backends.lost(backend, Instant::now());
        self.kept.store(backends.0.len(), Relaxed);
        drop(backends);
        if news {
            tracing::warn!(%backend, "the backend cannot be reached: {reason}");
        }
    }

    /// An endpoint of `backend` has answered.
    pub fn found(&self, backend: &Arc<str>) {
        // The common case.
        if self.kept.load(Relaxed) == 0 {
            return;
        }
        let away = self.lock().found(backend, Instant::now());
        if let Some(away) = away {
            tracing::info!(%backend, ?away, "the backend can be reached again");
        }
    }

    /// Removes the backends that a new configuration lacks.
    pub fn keep(&self, has: impl Fn(&str) -> bool) {
        let mut backends = self.lock();
        backends.0.retain(|name, _| has(name));
        self.kept.store(backends.0.len(), Relaxed);
    }

    /// A panic elsewhere leaves these values consistent.
    fn lock(&self) -> MutexGuard<'_, Backends> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let (mut backends, start) = (Backends::default(), Instant::now());
        let name: Arc<str> = "shop".into();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(backends.found(&name, at(0)), None);
        assert!(backends.lost(&name, at(1)));
        for second in 2..100 {
            assert!(!backends.lost(&name, at(second)));
        }
        assert_eq!(backends.found(&name, at(101)), Some(Duration::from_secs(100)));
        assert_eq!(backends.found(&name, at(102)), None);
        assert!(backends.lost(&name, at(200)));
    }

    #[test]
    fn one_that_comes_and_goes_fills_no_log() {
        let (mut backends, start) = (Backends::default(), Instant::now());
        let name: Arc<str> = "shop".into();
        let mut lines = 0;
        for step in 0..6_000u32 {
            let now = start + Duration::from_millis(10) * step;
            lines += u32::from(backends.lost(&name, now));
            lines += u32::from(backends.found(&name, now).is_some());
        }
        // After a minute.
        assert!((2..=14).contains(&lines), "{lines}");
    }

    #[test]
    fn one_that_stays_away_after_coming_and_going_is_told_of() {
        let (mut backends, start) = (Backends::default(), Instant::now());
        let name: Arc<str> = "shop".into();
        assert!(backends.lost(&name, start));
        assert!(backends.found(&name, start).is_some());
        assert!(!backends.lost(&name, start));
        assert!(backends.lost(&name, start + SILENCE));
        assert!(backends.found(&name, start + 2 * SILENCE).is_some());
    }
}
