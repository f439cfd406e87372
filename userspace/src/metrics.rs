//! What is counted, and the label values it is counted under.
//!
//! Labels come from the configuration or from closed sets: never a raw server name or a client's address, which
//! anyone could multiply at will.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use self::{kernel::KernelCounters, packet::PacketCounters, same_host::SameHostCounters};
use crate::datapath::InKernel;

pub mod kernel;
pub mod limits;
pub mod packet;
pub mod same_host;

/// The label value for a connection that never had a route, a backend or a datapath.
pub const NONE: &str = "none";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByListener {
    listener: Arc<str>,
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
struct ConnectFailure {
    backend: Arc<str>,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InService {
    datapath: &'static str,
}

/// All counters of the process. Cheap to share, never locked across an await.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    opened: Family<ByListener, Counter>,
    active: Family<ByListener, Gauge>,
    closed: Family<Closed, Counter>,
    moved: Family<Moved, Counter>,
    unrouted: Family<Unrouted, Counter>,
    connect_failures: Family<ConnectFailure, Counter>,
    accept_errors: Family<ByListener, Counter>,
    datapath: Family<InService, Gauge>,
    probing: Gauge,
    kernel: Later<KernelCounters>,
    packet: Later<PacketCounters>,
    short_cut: Later<SameHostCounters>,
    same_host: Gauge,
    /// Configurations put into service since the start.
    pub config_generation: Gauge,
    /// Configurations refused since the start; the last good one kept serving.
    pub config_rejected: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All families at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("snisplice"),
            opened: Family::default(),
            active: Family::default(),
            closed: Family::default(),
            moved: Family::default(),
            unrouted: Family::default(),
            connect_failures: Family::default(),
            accept_errors: Family::default(),
            datapath: Family::default(),
            probing: Gauge::default(),
            kernel: Later::default(),
            packet: Later::default(),
            short_cut: Later::default(),
            same_host: Gauge::default(),
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
            "Bytes delivered to the receiving side's socket by connections that have ended",
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
            "accept_errors",
            "Failures to accept, such as too many open files",
            metrics.accept_errors.clone(),
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
        registry.register_collector(Box::new(crate::log::Counters));
        registry.register_collector(Box::new(metrics.kernel.clone()));
        registry.register_collector(Box::new(metrics.short_cut.clone()));
        registry.register_collector(Box::new(metrics.packet.clone()));
        metrics
    }

    /// Adds counters that live elsewhere and are read at each scrape.
    pub fn add(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// Shows the counters of what is in the kernel from now on; they are read from its maps at each scrape. Only the first
    /// time counts.
    pub fn has_in_kernel(&self, found: &InKernel) {
        let InKernel { programs, kernel } = found;
        if let Some(kernel) = kernel {
            let _ = self.kernel.0.set(KernelCounters(kernel.clone()));
            if kernel.same_host().is_some() {
                let _ = self.short_cut.0.set(SameHostCounters(kernel.clone()));
            }
        }
        if let Some(programs) = programs {
            let _ = self.packet.0.set(PacketCounters(programs.clone()));
        }
    }

    /// Notes whether it is still to be found out what this kernel can do.
    pub fn is_probing(&self, probing: bool) {
        self.probing.set(probing.into());
    }

    /// The Prometheus text exposition of everything.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// The sum of all samples of the counter `name` that have `label`, which is written as in the text.
    #[must_use]
    pub fn total(&self, name: &str, label: &str) -> u64 {
        let series = format!("snisplice_{name}_total{{");
        let text = self.encode().unwrap_or_default();
        let samples = text.lines().filter(|line| line.starts_with(&series) && line.contains(label));
        samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// Notes which datapath serves from now on.
    pub fn serves_with(&self, datapath: &'static str) {
        self.datapath.clear();
        self.datapath.get_or_create(&InService { datapath }).set(1);
    }

    /// Notes whether what a backend asks for is served.
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
        datapath: &'static str,
        reason: &'static str,
    ) {
        let labels = Closed { listener: listener.clone(), route: route.clone(), datapath, reason };
        self.closed.get_or_create(&labels).inc();
    }

    pub(crate) fn moved(
        &self,
        route: &Arc<str>,
        datapath: &'static str,
        direction: &'static str,
        bytes: u64,
    ) {
        self.moved.get_or_create(&Moved { route: route.clone(), datapath, direction }).inc_by(bytes);
    }

    pub(crate) fn unrouted(&self, listener: &Arc<str>, verdict: &'static str, policy: &'static str) {
        self.unrouted.get_or_create(&Unrouted { listener: listener.clone(), verdict, policy }).inc();
    }

    pub(crate) fn connect_failed(&self, backend: &Arc<str>, reason: &'static str) {
        self.connect_failures.get_or_create(&ConnectFailure { backend: backend.clone(), reason }).inc();
    }
}

/// Counters of something that may be loaded only after the metrics are there.
#[derive(Debug)]
struct Later<C>(Arc<OnceLock<C>>);

impl<C> Default for Later<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C> Clone for Later<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Collector> Collector for Later<C> {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        self.0.get().map_or(Ok(()), |counters| counters.encode(encoder))
    }
}

/// One listener's counters, looked up once and not per connection.
#[derive(Debug, Clone)]
pub struct ListenerCounters {
    /// The listener's name.
    pub listener: Arc<str>,
    /// Connections accepted.
    pub opened: Counter,
    /// Connections being served.
    pub active: Gauge,
    /// Failures to accept.
    pub accept_errors: Counter,
}
