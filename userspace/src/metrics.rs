//! The metrics and their label values.
//!
//! Labels come from the configuration or from closed sets. They never contain a raw server name or a client address,
//! since clients could create any number of those.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
    },
    registry::{Metric, Registry},
};

pub use self::series::{Gone, Names};
use self::{
    labels::{AppliedPolicy, Carrier, CloseReason, ConnectFailure, Direction, ProxyHeader},
    series::{Kind, Labels, Series},
};

pub mod labels;
mod series;

/// The label value for a connection that never had a route, a backend or a datapath.
pub const NONE: &str = "none";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByListener {
    listener: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProxyHeaders {
    listener: Arc<str>,
    header: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Closed {
    listener: Arc<str>,
    route: Arc<str>,
    datapath: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Moved {
    route: Arc<str>,
    datapath: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unrouted {
    listener: Arc<str>,
    verdict: &'static str,
    policy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailedConnect {
    backend: Arc<str>,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: Arc<str>,
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InService {
    datapath: &'static str,
}

impl Labels for ByListener {
    fn detached(&self) -> Self {
        Self { listener: copy(&self.listener) }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Listener && &*self.listener == name
    }
}

impl Labels for ProxyHeaders {
    fn detached(&self) -> Self {
        Self { listener: copy(&self.listener), ..*self }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Listener && &*self.listener == name
    }
}

impl Labels for Closed {
    fn detached(&self) -> Self {
        Self { listener: copy(&self.listener), route: copy(&self.route), ..*self }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        (kind == Kind::Listener && &*self.listener == name) || (kind == Kind::Route && &*self.route == name)
    }
}

impl Labels for Moved {
    fn detached(&self) -> Self {
        Self { route: copy(&self.route), ..*self }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Route && &*self.route == name
    }
}

impl Labels for Unrouted {
    fn detached(&self) -> Self {
        Self { listener: copy(&self.listener), ..*self }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Listener && &*self.listener == name
    }
}

impl Labels for FailedConnect {
    fn detached(&self) -> Self {
        Self { backend: copy(&self.backend), ..*self }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Backend && &*self.backend == name
    }
}

impl Labels for Answered {
    fn detached(&self) -> Self {
        Self { route: copy(&self.route), ..*self }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        kind == Kind::Route && &*self.route == name
    }
}

/// An unshared copy of the text.
fn copy(name: &Arc<str>) -> Arc<str> {
    Arc::from(&**name)
}

/// Registries with one family or one collector each, so that each can be exported separately.
#[derive(Debug, Default)]
struct Families(Vec<Registry>);

impl Families {
    fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.next().register(name, help, metric);
    }

    fn register_collector(&mut self, collector: Box<dyn Collector>) {
        self.next().register_collector(collector);
    }

    fn next(&mut self) -> &mut Registry {
        let index = self.0.len();
        self.0.push(Registry::with_prefix("snisplice"));
        &mut self.0[index]
    }
}

/// All counters of the process. Cheap to share, and never locked across an await.
#[derive(Debug)]
pub struct Metrics {
    registry: Families,
    opened: Series<ByListener, Counter>,
    active: Series<ByListener, Gauge>,
    closed: Series<Closed, Counter>,
    moved: Series<Moved, Counter>,
    unrouted: Series<Unrouted, Counter>,
    connect_failures: Series<FailedConnect, Counter>,
    http_requests: Series<Answered, Counter>,
    accept_errors: Series<ByListener, Counter>,
    proxy_headers: Series<ProxyHeaders, Counter>,
    datapath: Family<InService, Gauge>,
    probing: Gauge,
    /// Collectors that are added after the start.
    added: Mutex<Families>,
    same_host: Gauge,
    gone: Mutex<Gone>,
    /// Configurations put into service since the start.
    pub config_generation: Gauge,
    /// Rejected configurations since the start. The last good one stayed in service.
    pub config_rejected: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates all families with the value zero.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Families::default(),
            opened: Series::default(),
            active: Series::default(),
            closed: Series::default(),
            moved: Series::default(),
            unrouted: Series::default(),
            connect_failures: Series::default(),
            http_requests: Series::default(),
            accept_errors: Series::default(),
            proxy_headers: Series::default(),
            datapath: Family::default(),
            probing: Gauge::default(),
            added: Mutex::default(),
            same_host: Gauge::default(),
            gone: Mutex::default(),
            config_generation: Gauge::default(),
            config_rejected: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("connections_opened", "Connections accepted", metrics.opened.clone());
        registry.register("connections_active", "Connections being served", metrics.active.clone());
        registry.register(
            "connections_closed",
            "Connections ended, by how they ended",
            metrics.closed.clone(),
        );
        registry.register(
            "bytes",
            "Bytes delivered to the receiving side's socket; those of open connections as of the scrape",
            metrics.moved.clone(),
        );
        registry.register(
            "unrouted",
            "Connections whose hello led to no rule, by verdict and by the policy applied",
            metrics.unrouted.clone(),
        );
        registry.register(
            "connect_failures",
            "Attempts to connect to an endpoint that failed",
            metrics.connect_failures.clone(),
        );
        registry.register(
            "http_requests",
            "HTTP requests answered, by rule and status code",
            metrics.http_requests.clone(),
        );
        registry.register(
            "accept_errors",
            "Failures to accept, such as too many open files",
            metrics.accept_errors.clone(),
        );
        registry.register(
            "proxy_headers",
            "PROXY headers of trusted proxies, by listener and form",
            metrics.proxy_headers.clone(),
        );
        registry.register("datapath", "1 for the datapath in service", metrics.datapath.clone());
        registry.register(
            "probing",
            "1 while connections are relayed because it is not known yet what this kernel can do",
            metrics.probing.clone(),
        );
        registry.register(
            "same_host",
            "1 if same_host serves, -1 if a backend asks for it and it was refused at the start",
            metrics.same_host.clone(),
        );
        registry.register(
            "config_generation",
            "Configurations put into service since the start",
            metrics.config_generation.clone(),
        );
        registry.register(
            "config_rejected",
            "Configurations refused since the start; the last good one kept serving",
            metrics.config_rejected.clone(),
        );
        metrics
    }

    /// Adds a collector whose counters are read at each scrape.
    pub fn add(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// Adds a collector after the start, for programs that are loaded later.
    pub fn adds(&self, collector: Box<dyn Collector>) {
        self.added().register_collector(collector);
    }

    fn added(&self) -> MutexGuard<'_, Families> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets whether the probes of the kernel are still running.
    pub fn is_probing(&self, probing: bool) {
        self.probing.set(probing.into());
    }

    /// Records names that a configuration has removed. [`Metrics::forget_gone`] deletes their series.
    pub fn removed(&self, gone: Gone) {
        self.gone().extend(gone);
    }

    /// Records removed names that the configuration has again.
    pub fn returned<'m>(&self, is_there: impl FnOnce() -> Names<'m>) {
        let mut gone = self.gone();
        if gone.is_empty() {
            return;
        }
        let is_there = is_there();
        gone.listeners.retain(|name| !is_there.listeners.contains(&**name));
        gone.routes.retain(|name| !is_there.routes.contains(&**name));
        gone.backends.retain(|name| !is_there.backends.contains(&**name));
    }

    /// Deletes the series of removed listeners, routes and backends that no connection uses any more.
    pub fn forget_gone(&self) {
        let active = |listener: &Arc<str>| {
            self.active.get_or_create(&ByListener { listener: listener.clone() }).get() > 0
        };
        for (kind, name) in self.gone().unused(active) {
            self.opened.forget(kind, &name);
            self.active.forget(kind, &name);
            self.accept_errors.forget(kind, &name);
            self.proxy_headers.forget(kind, &name);
            self.closed.forget(kind, &name);
            self.moved.forget(kind, &name);
            self.unrouted.forget(kind, &name);
            self.connect_failures.forget(kind, &name);
            self.http_requests.forget(kind, &name);
        }
    }

    fn gone(&self) -> MutexGuard<'_, Gone> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics in the Prometheus text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        for family in self.registry.0.iter().chain(&self.added().0) {
            text::encode_registry(&mut text, family)?;
        }
        text::encode_eof(&mut text)?;
        Ok(text)
    }

    /// One part of the text: a family or a collector, by index from 0. The last part is the end marker, and `None`
    /// follows it.
    #[must_use]
    pub fn encode_family(&self, index: usize) -> Option<String> {
        let mut text = String::new();
        let (families, added) = (&self.registry.0, &self.added().0);
        let encoded = match families.iter().chain(added).nth(index) {
            Some(family) => text::encode_registry(&mut text, family),
            None if index == families.len() + added.len() => text::encode_eof(&mut text),
            None => return None,
        };
        // Writing to a string does not fail.
        encoded.is_ok().then_some(text)
    }

    /// The sum of all samples of the counter `name` with `label`, written as in the text.
    #[must_use]
    pub fn total(&self, name: &str, label: &str) -> u64 {
        let series = format!("snisplice_{name}_total{{");
        let text = self.encode().unwrap_or_default();
        let samples = text.lines().filter(|line| line.starts_with(&series) && line.contains(label));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// Sets the datapath that serves from now on.
    pub fn serves_with(&self, datapath: &'static str) {
        self.datapath.clear();
        self.datapath.get_or_create(&InService { datapath }).set(1);
    }

    /// Sets whether the short cut to backends on this host is available.
    pub fn same_host(&self, serves: bool) {
        self.same_host.set(if serves { 1 } else { -1 });
    }

    pub(crate) fn listener(&self, listener: &Arc<str>) -> ListenerCounters {
        let labels = ByListener { listener: listener.clone() };
        ListenerCounters {
            listener: listener.clone(),
            opened: self.opened.get_or_create_owned(&labels),
            active: self.active.get_or_create_owned(&labels),
            accept_errors: self.accept_errors.get_or_create_owned(&labels),
        }
    }

    pub(crate) fn closed(
        &self,
        listener: &Arc<str>,
        route: &Arc<str>,
        carrier: Option<Carrier>,
        reason: CloseReason,
    ) {
        let (datapath, reason) = (label_of(carrier), reason.label());
        let labels = Closed { listener: listener.clone(), route: route.clone(), datapath, reason };
        self.closed.get_or_create(&labels).inc();
    }

    pub(crate) fn moved(&self, route: &Arc<str>, carrier: Option<Carrier>, direction: Direction, bytes: u64) {
        let (datapath, direction) = (label_of(carrier), direction.label());
        self.moved.get_or_create(&Moved { route: route.clone(), datapath, direction }).inc_by(bytes);
    }

    pub(crate) fn unrouted(&self, listener: &Arc<str>, verdict: CloseReason, policy: AppliedPolicy) {
        let (verdict, policy) = (verdict.label(), policy.label());
        self.unrouted.get_or_create(&Unrouted { listener: listener.clone(), verdict, policy }).inc();
    }

    pub(crate) fn proxy_header(&self, listener: &Arc<str>, header: ProxyHeader) {
        let labels = ProxyHeaders { listener: listener.clone(), header: header.into() };
        self.proxy_headers.get_or_create(&labels).inc();
    }

    pub(crate) fn http_request(&self, route: &Arc<str>, code: u16) {
        // A backend may invent status codes, but must not create series without bound.
        let code = if (100..600).contains(&code) { code } else { 0 };
        self.http_requests.get_or_create(&Answered { route: route.clone(), code }).inc();
    }

    pub(crate) fn connect_failed(&self, backend: &Arc<str>, reason: ConnectFailure) {
        let reason = reason.label();
        self.connect_failures.get_or_create(&FailedConnect { backend: backend.clone(), reason }).inc();
    }
}

fn label_of(carrier: Option<Carrier>) -> &'static str {
    carrier.map_or(NONE, Carrier::label)
}

/// Encodes one counter per value of a label, for a collector.
pub(crate) fn by_label(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (value_of_label, value) in values {
        ConstCounter::new(value).encode(family.encode_family(&[(label, value_of_label)])?)?;
    }
    Ok(())
}

/// Encodes counters without labels, each with its name and help, for a collector.
pub(crate) fn counters(
    encoder: &mut DescriptorEncoder,
    counters: &[(&'static str, &'static str, u64)],
) -> fmt::Result {
    for (name, help, value) in counters {
        let counter = ConstCounter::new(*value);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

/// Encodes one counter per reason, for a collector.
pub(crate) fn by_reason(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    by_label(encoder, name, help, "reason", values)
}

/// The counters of one listener, looked up once and not per connection.
#[derive(Debug, Clone)]
pub struct ListenerCounters {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Connections accepted.
    pub opened: Counter,
    /// Connections in service.
    pub active: Gauge,
    /// Failures to accept.
    pub accept_errors: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: &Metrics, name: &str) -> bool {
        metrics.forget_gone();
        metrics.encode().unwrap().contains(name)
    }

    #[test]
    fn series_go_with_the_last_who_uses_a_name() {
        let metrics = Metrics::new();
        let (listener, route, backend): (Arc<str>, Arc<str>, Arc<str>) =
            ("door".into(), "way".into(), "house".into());
        let counters = metrics.listener(&listener);
        counters.active.inc();
        metrics.closed(&listener, &route, Some(Carrier::Relay), CloseReason::Finished);
        metrics.moved(&route, Some(Carrier::Relay), Direction::Up, 7);
        metrics.connect_failed(&backend, ConnectFailure::ConnectRefused);
        let connection = (route.clone(), backend.clone());
        metrics.removed(Gone { listeners: vec![listener], routes: vec![route], backends: vec![backend] });
        for name in ["door", "way", "house"] {
            assert!(shown(&metrics, name), "{name} is in use");
        }
        drop(connection);
        assert!(!shown(&metrics, "way") && !shown(&metrics, "house"));
        counters.active.dec();
        assert!(!shown(&metrics, "door"));
    }

    #[test]
    fn what_has_come_back_stays() {
        let metrics = Metrics::new();
        let route: Arc<str> = "way".into();
        metrics.moved(&route, Some(Carrier::Relay), Direction::Up, 7);
        metrics.removed(Gone { routes: vec![route], ..Gone::default() });
        metrics.returned(|| Names { routes: ["way"].into(), ..Names::default() });
        assert!(shown(&metrics, "way"));
    }
}
