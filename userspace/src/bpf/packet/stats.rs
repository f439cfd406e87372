//! Counters of the packet datapath in userspace. The kernel's own totals are
//! [`snisplice_common::packet::maps::Totals`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::metrics::labels::PacketIneligible;

/// The reason for which a connection moves back from packets to two sockets, and is relayed from then on. The metric
/// label of `packet_taken_back_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum TakenBack {
    /// A route leads over a device that cannot have the programs, or to this host.
    Route,
    /// A peer's packets bypass the programs: in fragments, with IP options, or over another device.
    Bypassed,
    /// The flow stalled for an unknown reason.
    Stalled,
}

impl TakenBack {
    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Counted by all workers of a process.
#[derive(Debug, Default)]
pub struct Stats {
    taken_back: [AtomicU64; TakenBack::COUNT],
    begun: AtomicU64,
    settled: AtomicU64,
    adopted: AtomicU64,
    refused: [AtomicU64; PacketIneligible::COUNT],
}

impl Stats {
    /// Connections that packets forward now or have forwarded.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    /// Connections that the kernel forwards alone: the balancer's sockets have no byte left to deliver.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled.load(Relaxed)
    }

    pub(crate) fn settle(&self) {
        self.settled.fetch_add(1, Relaxed);
    }

    /// Flows of an earlier process that continue.
    #[must_use]
    pub fn adopted(&self) -> u64 {
        self.adopted.load(Relaxed)
    }

    /// Connections that the relay forwards instead, for this reason.
    #[must_use]
    pub fn refused(&self, why: PacketIneligible) -> u64 {
        self.refused[why as usize].load(Relaxed)
    }

    /// Connections that moved back to sockets, for this reason.
    #[must_use]
    pub fn taken_back(&self, why: TakenBack) -> u64 {
        self.taken_back[why as usize].load(Relaxed)
    }

    pub(crate) fn take_back(&self, why: TakenBack) {
        self.taken_back[why as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn adopt(&self) {
        self.adopted.fetch_add(1, Relaxed);
    }

    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    pub(crate) fn refuse(&self, why: PacketIneligible) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }
}
