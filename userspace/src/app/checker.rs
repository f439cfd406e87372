//! Watches the health of endpoints, in a thread that runs only while a backend needs it.
//!
//! The thread makes the active checks and receives the endpoints whose connections fail. The decisions are made in
//! `upstream/health`, and marked on the endpoints, where workers read them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::io::Errno;
use snisplice_config::model::{
    BackendId,
    health::{HealthCheck, Probe},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    runtime,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    log::Budget,
    metrics::Metrics,
    net::{proxy_header, proxy_sender, sockopt},
    snapshot::{SharedSnapshot, Snapshot},
    terminate::probe::handshake,
    upstream::{
        attempt::AttemptError,
        candidates::Members,
        endpoint::Endpoint,
        health::{
            certificate::{Elsewhere, Findings, Shown, compare},
            watchlist::{Change, Event, Next, Outcome, Wanted},
        },
        health_collector::{HealthCounters, SharedWatchlist},
        monitor::{Alarms, Key},
    },
};

/// The period of the comparison of names' addresses with the watched endpoints.
const PERIOD: Duration = Duration::from_secs(1);

/// Log lines about health per minute. Each change of state logs a line, unless very many changes come at once.
const LINES: u32 = 30;

/// Seconds per day.
const DAY: i64 = 86_400;

/// Days before its end from which a certificate causes a warning.
const WARN_DAYS: i64 = 30;

/// The interval between log lines about one certificate.
const REMIND: Duration = Duration::from_secs(24 * 60 * 60);

/// Starts and ends the thread.
pub(super) struct Checker {
    current: Arc<SharedSnapshot>,
    metrics: Arc<Metrics>,
    list: SharedWatchlist,
    thread: Option<(mpsc::UnboundedSender<()>, JoinHandle<()>)>,
    is_shown: bool,
}

impl Checker {
    pub(super) fn new(current: &Arc<SharedSnapshot>, metrics: &Arc<Metrics>, list: SharedWatchlist) -> Self {
        Self { current: current.clone(), metrics: metrics.clone(), list, thread: None, is_shown: false }
    }

    /// Applies the configuration in service. If no endpoint is watched, no thread runs and no memory is held.
    pub(super) fn follow(&mut self) {
        let snapshot = self.current.load_full();
        if !snapshot.clusters().iter().any(|cluster| cluster.health.is_watched()) {
            self.stop();
            return;
        }
        if let Some((told, _)) = &self.thread
            && told.send(()).is_ok()
        {
            return;
        }
        if !self.is_shown {
            self.metrics.adds(Box::new(HealthCounters(self.list.clone())));
            self.is_shown = true;
        }
        let (told, hears) = mpsc::unbounded_channel();
        let (current, list) = (self.current.clone(), self.list.clone());
        match thread::Builder::new().name("health".into()).spawn(move || watch(current, list, hears)) {
            Ok(thread) => self.thread = Some((told, thread)),
            Err(error) => tracing::error!(
                %error,
                "cannot start the thread that watches the health of endpoints: all count as healthy until the next reload"
            ),
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        if let Some((told, thread)) = self.thread.take() {
            drop(told);
            let _ = thread.join();
        }
        let _ = self.list.lock().want(Vec::new(), std::time::Instant::now());
    }
}

/// The thread: runs until it is stopped.
fn watch(current: Arc<SharedSnapshot>, list: SharedWatchlist, hears: mpsc::UnboundedReceiver<()>) {
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(current, list, hears)),
        Err(error) => tracing::error!(
            %error,
            "cannot watch the health of endpoints: all count as healthy until the next reload"
        ),
    }
}

/// The state of the thread.
struct Task {
    current: Arc<SharedSnapshot>,
    list: SharedWatchlist,
    snapshot: Arc<Snapshot>,
    /// By backend: the index of the cluster in the snapshot, and its endpoints at the last check.
    watched: HashMap<Arc<str>, (usize, Arc<Members>)>,
    endpoints: HashMap<Key, Arc<Endpoint>>,
    checks: JoinSet<(Key, HealthCheck, Outcome)>,
    budget: Budget,
    /// Certificates that the log has reported, by backend.
    told: HashMap<Arc<str>, Vec<Told>>,
}

/// A certificate, the generation of the configuration it was compared with, and the time.
type Told = (Arc<Shown>, u64, Instant);

async fn run(current: Arc<SharedSnapshot>, list: SharedWatchlist, mut hears: mpsc::UnboundedReceiver<()>) {
    let snapshot = current.load_full();
    let mut task = Task {
        current,
        list,
        snapshot,
        watched: HashMap::new(),
        endpoints: HashMap::new(),
        checks: JoinSet::new(),
        budget: Budget::new(LINES),
        told: HashMap::new(),
    };
    task.follow();
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = task.begin();
        let alarms = task.alarms();
        let alarm = async {
            match &alarms {
                Some(alarms) => alarms.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = hears.recv() => match told {
                Some(()) => task.follow(),
                None => return task.ends(),
            },
            () = alarm => task.heed(alarms.as_deref()),
            // No check panics, and none is aborted.
            Some(Ok((key, rules, outcome))) = task.checks.join_next(), if !task.checks.is_empty() => {
                task.ended(&key, &rules, outcome);
            }
            _ = period.tick() => task.follow_names(),
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {}
        }
        let events = task.list.lock().look(std::time::Instant::now());
        task.apply(&events);
    }
}

impl Task {
    fn alarms(&self) -> Option<Arc<Alarms>> {
        self.snapshot.clusters().first().map(|cluster| cluster.alarms().clone())
    }

    /// Applies the configuration in service and its current endpoints.
    fn follow(&mut self) {
        self.snapshot = self.current.load_full();
        self.watched.clear();
        let mut endpoints = HashMap::new();
        let mut wanted = Vec::new();
        for (at, cluster) in self.snapshot.clusters().iter().enumerate() {
            if !cluster.health.is_watched() {
                continue;
            }
            let members = cluster.members();
            let mut addresses = Vec::new();
            for (endpoint, priority) in members.with_priorities() {
                addresses.push((endpoint.address(), priority));
                endpoints.insert((cluster.name.clone(), endpoint.address()), endpoint.clone());
            }
            wanted.push(Wanted { backend: &cluster.name, health: &cluster.health, endpoints: addresses });
            self.watched.insert(cluster.name.clone(), (at, members));
        }
        self.endpoints = endpoints;
        let events = {
            let mut list = self.list.lock();
            let events = list.want(wanted, Instant::now().into_std());
            for ((backend, address), endpoint) in &self.endpoints {
                let group = list.groups().get(backend);
                endpoint.set_eligible(group.is_none_or(|group| group.is_eligible(*address)));
            }
            events
        };
        self.told.retain(|backend, _| self.watched.contains_key(backend));
        self.apply(&events);
    }

    /// Applies changed addresses of names.
    fn follow_names(&mut self) {
        let clusters = self.snapshot.clusters();
        let changed = |(at, members): &(usize, Arc<Members>)| {
            clusters.get(*at).is_some_and(|cluster| !Arc::ptr_eq(&cluster.members(), members))
        };
        if self.watched.values().any(changed) {
            self.follow();
        }
    }

    /// Makes all endpoints eligible. Connections still in service may use them, and no check would detect a recovery.
    fn ends(&self) {
        self.endpoints.values().for_each(|endpoint| endpoint.set_eligible(true));
    }

    /// Starts the checks that are due. Returns the time of the next one.
    fn begin(&mut self) -> Option<Instant> {
        loop {
            // The lock lasts for one statement: the following code waits for nothing, but is long.
            let next = self.list.lock().next(Instant::now().into_std());
            match next {
                Next::Check(key) => {
                    let cluster = self.watched.get(&key.0).map(|(at, _)| &self.snapshot.clusters()[*at]);
                    let Some((cluster, rules)) =
                        cluster.and_then(|cluster| Some((cluster, cluster.health.check.clone()?)))
                    else {
                        continue;
                    };
                    let sources: Vec<_> = cluster.sources_for(key.1).collect();
                    let header = cluster.proxy_protocol.as_ref().map(proxy_header::local);
                    self.checks.spawn(async move {
                        let outcome = check(&rules, header.as_deref(), key.1, &sources).await;
                        (key, rules, outcome)
                    });
                }
                Next::At(moment) => return Some(moment.into()),
                Next::Wait => return None,
            }
        }
    }

    fn ended(&mut self, key: &Key, rules: &HealthCheck, outcome: Outcome) {
        if let Outcome::Failure(error) | Outcome::Unknown(error) = &outcome {
            tracing::debug!(backend = %key.0, endpoint = %key.1, %error, "health check failed");
        }
        let now = Instant::now();
        let (events, shown) = {
            let mut list = self.list.lock();
            let events = list.ended(key, rules, outcome, now.into_std(), fastrand::u32(..));
            let watched = list.groups().get(&key.0).and_then(|group| group.endpoints.get(&key.1));
            (events, watched.and_then(|watched| watched.certificate.clone()))
        };
        self.apply(&events);
        if let Some(shown) = shown {
            self.judge(key, &shown, now);
        }
    }

    /// Handles endpoints whose connections fail.
    fn heed(&mut self, alarms: Option<&Alarms>) {
        for (key, cause) in alarms.map(Alarms::take).unwrap_or_default() {
            let events = self.list.lock().failed(&key, cause, Instant::now().into_std());
            self.apply(&events);
        }
    }

    /// Marks endpoints, and logs the changes.
    fn apply(&mut self, events: &[Event]) {
        for (key, change) in events {
            let eligible = {
                let list = self.list.lock();
                list.groups().get(&key.0).is_none_or(|group| group.is_eligible(key.1))
            };
            if let Some(endpoint) = self.endpoints.get(key) {
                endpoint.set_eligible(eligible);
            }
            if let Some(suppressed) = self.budget.admit(Instant::now().into_std()) {
                report(key, change, (suppressed > 0).then_some(suppressed));
            }
        }
    }

    /// Warns of a certificate that expires soon or does not match the routes: once a day, and after a reload.
    fn judge(&mut self, key: &Key, shown: &Arc<Shown>, now: Instant) {
        let Some((at, _)) = self.watched.get(&key.0) else { return };
        let generation = self.snapshot.generation;
        let told = self.told.entry(key.0.clone()).or_default();
        told.retain(|(_, of, at)| *of == generation && now.duration_since(*at) < REMIND);
        if told.iter().any(|(known, ..)| known == shown) {
            return;
        }
        told.push((shown.clone(), generation, now));
        let findings = compare(&self.snapshot.model, BackendId(*at), shown);
        for line in doubts(&key.0, key.1, shown, &findings, self::now()) {
            tracing::warn!("{line}");
        }
    }
}

fn report((backend, endpoint): &Key, change: &Change, suppressed: Option<u64>) {
    match change {
        Change::Unhealthy(error) => tracing::warn!(
            suppressed, %backend, %endpoint, %error,
            "endpoint is unhealthy: it gets no connections, except while too few endpoints are healthy"
        ),
        Change::Healthy => tracing::info!(suppressed, %backend, %endpoint, "endpoint is healthy again"),
        Change::Ejected { cause, lasts } => tracing::warn!(
            suppressed, %backend, %endpoint, %cause, ?lasts,
            "endpoint is ejected: its connections or responses have failed too often in a row"
        ),
        Change::Returned => tracing::info!(suppressed, %backend, %endpoint, "ejected endpoint returns"),
        Change::Panic(true) => tracing::warn!(
            suppressed, %backend,
            "fewer endpoints are healthy than panic_threshold: all endpoints are used"
        ),
        Change::Panic(false) => tracing::info!(suppressed, %backend, "enough endpoints are healthy again"),
    }
}

/// Doubts about a certificate, one line each.
pub(super) fn doubts(
    backend: &str,
    endpoint: SocketAddr,
    shown: &Shown,
    findings: &Findings,
    now: i64,
) -> Vec<String> {
    let whose = format!("backend {backend}: the certificate of {endpoint}");
    let mut lines = Vec::new();
    let days = (shown.not_after - now).div_euclid(DAY);
    if days < 0 {
        lines.push(format!("{whose} has expired; renew it"));
    } else if days < WARN_DAYS {
        lines.push(format!("{whose} expires in {days} days; renew it"));
    }
    if !findings.uncovered.is_empty() {
        let names = findings.uncovered.join(", ");
        lines.push(format!(
            "{whose} does not cover {names}, which the routes send there; clients will refuse it: issue one with these \
             names, or set the server name of the health check"
        ));
    }
    if !findings.elsewhere.is_empty() {
        let name = |one: &Elsewhere| format!("{} ({})", one.name, one.to);
        let names = findings.elsewhere.iter().map(name).collect::<Vec<_>>().join(", ");
        lines.push(format!(
            "{whose} covers names that the routes send elsewhere: {names}; browsers that have an HTTP/2 connection to this \
             backend may send requests for these names over it: issue a certificate for each backend's own names"
        ));
    }
    lines
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Makes one check. The connection begins with the PROXY protocol header `header`.
pub(super) async fn check(
    rules: &HealthCheck,
    header: Option<&[u8]>,
    address: SocketAddr,
    sources: &[IpAddr],
) -> Outcome {
    let checked = async {
        let stream = match connect(address, sources).await {
            Ok(stream) => stream,
            Err(AttemptError::Io(error)) => return Outcome::Failure(format!("cannot connect: {error}")),
            Err(error) => return Outcome::Unknown(error.to_string()),
        };
        if let Some(header) = header
            && let Err(error) = proxy_sender::write(&stream, header, matches!(rules.probe, Probe::Tls { .. }))
        {
            return Outcome::Failure(format!("cannot send the PROXY header: {error}"));
        }
        match &rules.probe {
            Probe::Tcp => Outcome::Success(None),
            Probe::Tls { sni, alpn } => match handshake(stream, sni.as_ref(), alpn).await {
                Ok(shown) => Outcome::Success(Some(shown)),
                Err(error) => Outcome::Failure(error),
            },
        }
    };
    timeout(rules.timeout, checked)
        .await
        .unwrap_or_else(|_| Outcome::Failure(format!("no answer within {:?}", rules.timeout)))
}

/// Connects from one of the source addresses, as connections of clients do.
async fn connect(address: SocketAddr, sources: &[IpAddr]) -> Result<TcpStream, AttemptError> {
    let mut sources = sources.iter().copied();
    let mut source = sources.next();
    loop {
        let result = connect_from(address, source).await;
        let is_local = matches!(result, Err(AttemptError::NoLocalPort | AttemptError::NoSource(_)));
        match sources.next() {
            next @ Some(_) if is_local => source = next,
            _ => return result,
        }
    }
}

async fn connect_from(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, AttemptError> {
    let is_unavailable = |error: &io::Error| Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL);
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        sockopt::set_bind_address_no_port(&socket)?;
        match socket.bind(SocketAddr::new(source, 0)) {
            Err(error) if is_unavailable(&error) => return Err(AttemptError::NoSource(source)),
            bound => bound?,
        }
    }
    match socket.connect(address).await {
        Err(error) if is_unavailable(&error) => Err(AttemptError::NoLocalPort),
        connected => Ok(connected?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_doubt_is_a_line_with_a_remedy() {
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 443));
        let shown = Shown { names: vec!["a.test".into()], not_after: 100 * DAY };
        let lines = |findings: &Findings, now| doubts("web", endpoint, &shown, findings, now);
        let good = Findings::default();
        assert_eq!(lines(&good, 70 * DAY), [""; 0]);
        assert!(lines(&good, 70 * DAY + 1)[0].contains("in 29 days; renew"));
        assert!(lines(&good, 101 * DAY)[0].contains("has expired; renew"));
        let elsewhere = vec![Elsewhere { name: "b.test".into(), to: "other".into() }];
        let findings = Findings { uncovered: vec!["c.test".into()], elsewhere };
        let lines = lines(&findings, 0);
        assert!(
            lines[0].contains("does not cover c.test") && lines[1].contains("b.test (other)"),
            "{lines:?}"
        );
    }
}
