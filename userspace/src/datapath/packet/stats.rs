//! What the packet datapath counts in userspace. The kernel's own totals are [`snisplice_common::packet::Totals`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a connection is relayed instead. The metric label of `packet_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// One of the peers has already sent FIN or RST.
    PeerClosed,
    /// One leg is IPv4, the other IPv6.
    Family,
    /// A peer is on this host and in this network namespace.
    Local,
    /// A device has no Ethernet headers, or the programs cannot be attached to it.
    Device,
    /// One leg has negotiated timestamps, the other not.
    Timestamps,
    /// One leg has negotiated selective acknowledgements, the other not.
    Sack,
    /// A peer may send segments that are too large for the other leg.
    Mss,
    /// The kernel translates the addresses of a leg.
    Nat,
    /// Packets of a flow that had begun did not come by the program.
    Bypassed,
    /// Too many bytes are still to be delivered by our own sockets.
    Pending,
    /// All places for flows are taken.
    Full,
    /// Another flow of the same addresses is not over yet.
    Busy,
    /// Anything else.
    Other,
}

impl Refusal {
    /// Every reason there is.
    pub const ALL: [Self; 13] = [
        Self::PeerClosed,
        Self::Family,
        Self::Local,
        Self::Device,
        Self::Timestamps,
        Self::Sack,
        Self::Mss,
        Self::Nat,
        Self::Bypassed,
        Self::Pending,
        Self::Full,
        Self::Busy,
        Self::Other,
    ];

    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::Family => "family",
            Self::Local => "local",
            Self::Device => "device",
            Self::Timestamps => "timestamps",
            Self::Sack => "sack",
            Self::Mss => "mss",
            Self::Nat => "nat",
            Self::Bypassed => "bypassed",
            Self::Pending => "pending",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Other => "other",
        }
    }
}

/// Why a connection that packets carried is taken back into two sockets, and relayed from then on. The metric label of
/// `packet_taken_back_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// A route leads over a device that cannot have the programs, or to this host.
    Route,
    /// A peer's packets come past the programs: in fragments, with IP options, or over another device.
    Bypassed,
    /// It stood still for a reason that nobody foresaw.
    Stalled,
}

impl TakenBack {
    /// Every reason there is.
    pub const ALL: [Self; 3] = [Self::Route, Self::Bypassed, Self::Stalled];

    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Bypassed => "bypassed",
            Self::Stalled => "stalled",
        }
    }
}

/// Counted by all workers of a process.
#[derive(Debug, Default)]
pub struct Stats {
    taken_back: [AtomicU64; TakenBack::ALL.len()],
    begun: AtomicU64,
    settled: AtomicU64,
    taken_over: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

impl Stats {
    /// Connections that are or were carried in packets.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    /// Connections that the kernel carries alone: our own sockets have delivered all that was theirs.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled.load(Relaxed)
    }

    pub(super) fn settle(&self) {
        self.settled.fetch_add(1, Relaxed);
    }

    /// Flows of an earlier process that go on.
    #[must_use]
    pub fn taken_over(&self) -> u64 {
        self.taken_over.load(Relaxed)
    }

    /// Connections that the relay carries instead, for this reason.
    #[must_use]
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize].load(Relaxed)
    }

    /// Connections that were taken back into sockets, for this reason.
    #[must_use]
    pub fn taken_back(&self, why: TakenBack) -> u64 {
        self.taken_back[why as usize].load(Relaxed)
    }

    pub(super) fn take_back(&self, why: TakenBack) {
        self.taken_back[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn take_over(&self) {
        self.taken_over.fetch_add(1, Relaxed);
    }

    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    pub(super) fn refuse(&self, why: Refusal) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }
}
