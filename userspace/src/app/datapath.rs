//! Chooses the datapath from the configuration and the capabilities of this kernel, and loads it.

use std::{collections::BTreeSet, os::fd::OwnedFd, sync::Arc};

use anyhow::Context as _;
use snisplice_config::model::{DatapathKind, Model};

use crate::{
    bpf::{
        packet::{self, Pins, collector::PacketCounters},
        sockmap::{self, collector::SockmapCounters, same_host, same_host_collector::SameHostCounters},
    },
    datapath::{
        factory::{Chosen, Factory},
        packet::adopted::AdoptedFlows,
        seam::{InKernel, Patience},
    },
    metrics::Metrics,
    net::keepalive::Keepalive,
    probe::{
        answers::{Answers, Questions},
        socket_info,
    },
};

/// Decides on the datapath, from the configuration and the capabilities of this kernel.
///
/// If a probe fails, `auto` uses the relay, and `sockmap` and `packet` refuse to start.
///
/// `pins` are the pins of the old process during a takeover: flows then share its maps.
pub(super) fn choose(model: &Model, answers: &Answers, pins: Option<Pins>) -> anyhow::Result<Factory> {
    let needs = DatapathNeeds::of(model);
    let chosen = match model.startup.datapath {
        DatapathKind::Relay => Chosen::Relay,
        DatapathKind::Sockmap => {
            Chosen::Sockmap(sockmap_of(&needs, answers).context("the datapath sockmap does not work here")?)
        }
        DatapathKind::Packet => {
            let packet = packet_of(&needs, answers, pins);
            Chosen::Packet(packet.context("the datapath packet does not work here")?)
        }
        DatapathKind::Auto => Chosen::Adaptive(Some(load(&needs, answers, pins)), model.startup.offload),
    };
    let factory = Factory::new(Patience::of(&model.startup.timeouts), chosen);
    if !factory.programs().is_some_and(|programs| programs.persists()) {
        Pins::discard();
    }
    Ok(factory)
}

/// Uses the relay until the kernel is probed.
pub(super) fn undecided(model: &Model) -> Factory {
    Pins::discard();
    Factory::new(Patience::of(&model.startup.timeouts), Chosen::Adaptive(None, model.startup.offload))
}

/// Watches flows of an earlier process; see [`AdoptedFlows`]. The flows of a process that still runs, in the given
/// slots, follow later. Their numbers come after the connections of `workers` workers.
pub(super) fn adopted(
    factory: &Factory,
    model: &Model,
    metrics: &Arc<Metrics>,
    alive: Option<BTreeSet<u32>>,
    workers: usize,
) -> anyhow::Result<Option<AdoptedFlows>> {
    let Some(programs) = factory.programs().filter(|programs| programs.persists()) else { return Ok(None) };
    let keepalive = Keepalive::of(&model.startup.timeouts);
    let adopted = AdoptedFlows::take(
        &programs,
        Patience::of(&model.startup.timeouts),
        keepalive,
        metrics,
        alive,
        workers,
    );
    adopted.map(Some).context("cannot take over the flows of a former process")
}

/// The kernel support that a configuration needs.
#[derive(Debug, Clone)]
pub(super) struct DatapathNeeds {
    datapath: DatapathKind,
    settings: sockmap::Settings,
    /// Flow slots of the packet datapath.
    places: u32,
    packet: bool,
    same_host: bool,
    persist: bool,
}

impl DatapathNeeds {
    /// The needs of `model`.
    pub(super) fn of(model: &Model) -> Self {
        Self {
            datapath: model.startup.datapath,
            settings: sockmap::Settings {
                connections: model.startup.capacity.connections,
                in_flight_bytes: model.startup.capacity.in_flight_bytes,
                total_in_flight_bytes: model.startup.capacity.total_in_flight_bytes,
            },
            places: places(model),
            packet: match model.startup.datapath {
                DatapathKind::Auto => model.startup.offload.packet,
                other => other == DatapathKind::Packet,
            },
            same_host: model.startup.same_host,
            persist: model.startup.flows.persist,
        }
    }

    /// The probes that these needs require.
    pub(super) fn questions(&self) -> Questions {
        let sockmap = matches!(self.datapath, DatapathKind::Auto | DatapathKind::Sockmap);
        Questions { sockmap, packet: self.packet, same_host: sockmap && self.same_host }
    }

    /// Whether any datapath loads programs.
    pub(super) fn loads_programs(&self) -> bool {
        self.datapath != DatapathKind::Relay
    }

    /// Whether the process can serve before the probes end: no result makes the start fail, and no flow of an earlier
    /// process waits.
    pub(super) fn can_wait(&self) -> bool {
        self.datapath == DatapathKind::Auto && !self.persist
    }
}

/// Loads each datapath that this kernel supports. Logs the others with the reason.
pub(super) fn load(needs: &DatapathNeeds, answers: &Answers, pins: Option<Pins>) -> InKernel {
    let sockmap = sockmap_of(needs, answers);
    let sockmap =
        sockmap.inspect_err(|error| tracing::warn!("the datapath sockmap is not used: {error:#}")).ok();
    let packet = needs.packet.then(|| packet_of(needs, answers, pins)).and_then(|packet| {
        packet.inspect_err(|error| tracing::warn!("the datapath packet is not used: {error:#}")).ok()
    });
    let found = InKernel { packet, sockmap };
    if found.is_empty() {
        tracing::warn!("all connections are relayed in userspace");
    }
    found
}

/// Loads the packet datapath if its probes pass. The maps have slots for flows that are closed but linger.
fn packet_of(
    needs: &DatapathNeeds,
    answers: &Answers,
    inherited: Option<Pins>,
) -> anyhow::Result<Arc<packet::Programs>> {
    let answer = answers.packet.as_ref().context("the kernel was not probed")?;
    anyhow::ensure!(answer.passed, "this kernel fails the probes:\n{}", answer.text);
    for untried in &answer.untried {
        tracing::info!(untried, "the datapath packet is used, although a probe could not run");
    }
    let pins = if needs.persist { inherited.or_else(pins) } else { None };
    // Otherwise the relay begins each connection, and the programs count its packets before they forward any.
    let from_first_byte = needs.datapath == DatapathKind::Packet;
    let programs = packet::Programs::load_with(needs.places, from_first_byte, pins)?;
    socket_info::look(&programs)?;
    Ok(programs)
}

/// The number of flow slots of the packet datapath.
pub(super) fn places(model: &Model) -> u32 {
    let flows = model.startup.capacity.connections.saturating_mul(2);
    u32::try_from(flows).unwrap_or(u32::MAX).clamp(16, 1 << 22)
}

/// The pins that make flows outlive the process. Without them, flows end with it.
fn pins() -> Option<Pins> {
    let pins = Pins::take();
    pins.inspect_err(|error| tracing::info!("flows will not persist after the process: {error}")).ok()
}

/// Loads the sockmap datapath if its probes pass.
fn sockmap_of(needs: &DatapathNeeds, answers: &Answers) -> anyhow::Result<Arc<sockmap::Programs>> {
    let answer = answers.sockmap.as_ref().context("the kernel was not probed")?;
    anyhow::ensure!(answer.passed, "this kernel fails the probes:\n{}", answer.text);
    let cgroup = if needs.same_host { same_host_of(answers) } else { None };
    Ok(match cgroup {
        Some(cgroup) => sockmap::Programs::load_same_host(&needs.settings, &cgroup)?,
        None => sockmap::Programs::load(&needs.settings)?,
    })
}

/// Without the short cut, all backends are still served.
fn same_host_of(answers: &Answers) -> Option<OwnedFd> {
    let answer = answers.same_host.as_ref()?;
    if !answer.passed {
        tracing::warn!("same_host does not work here:\n{}", answer.text);
        return None;
    }
    same_host::cgroup().ok()
}

/// Exports the datapaths in the metrics, which read the counters from the maps at each scrape. Call it once.
pub(super) fn show(needs: &DatapathNeeds, found: &InKernel, metrics: &Metrics) {
    if needs.same_host {
        metrics.same_host(found.sockmap.as_ref().is_some_and(|sockmap| sockmap.same_host().is_some()));
        if found.sockmap.is_none() {
            tracing::warn!(
                "same_host needs the datapath sockmap, which is not used: the setting has no effect"
            );
        }
    }
    let InKernel { packet, sockmap } = found;
    if let Some(sockmap) = sockmap {
        metrics.adds(Box::new(SockmapCounters(sockmap.clone())));
        if sockmap.same_host().is_some() {
            metrics.adds(Box::new(SameHostCounters(sockmap.clone())));
        }
    }
    if let Some(packet) = packet {
        metrics.adds(Box::new(PacketCounters(packet.clone())));
    }
}
