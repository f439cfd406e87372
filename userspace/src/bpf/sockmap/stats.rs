//! Counters of the sockmap datapath in userspace. The kernel's own counters are
//! [`snisplice_common::sockmap::counters::Counters`].

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::io::Errno;
use strum::{EnumCount, IntoStaticStr, VariantArray};

/// The reason for which a connection, or a direction of it, was not offloaded. The metric label of `fallback_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Ineligible {
    /// A socket was no longer established: its peer had already sent FIN or RST.
    PeerClosed,
    /// The maps are full.
    MapFull,
    /// The kernel has no memory for it.
    NoMemory,
    /// Another program already has the socket.
    Busy,
    /// The socket has a protocol on top, such as kTLS or MPTCP.
    Protocol,
    /// Any other error.
    Other,
}

impl Ineligible {
    /// The meaning of an error of a map update.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::OPNOTSUPP) => Self::PeerClosed,
            Some(Errno::TOOBIG | Errno::NOSPC) => Self::MapFull,
            Some(Errno::NOMEM | Errno::AGAIN) => Self::NoMemory,
            Some(Errno::BUSY | Errno::EXIST) => Self::Busy,
            Some(Errno::INVAL) => Self::Protocol,
            _ => Self::Other,
        }
    }

    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Counted by all workers of a process.
#[derive(Debug, Default)]
pub struct Stats {
    enrolled: AtomicU64,
    fallbacks: [AtomicU64; Ineligible::COUNT],
    half: AtomicU64,
}

impl Stats {
    /// Connections of which the kernel forwards at least one direction.
    #[must_use]
    pub fn enrolled(&self) -> u64 {
        self.enrolled.load(Relaxed)
    }

    /// Connections that the relay forwards instead, for this reason.
    #[must_use]
    pub fn fallbacks(&self, why: Ineligible) -> u64 {
        self.fallbacks[why as usize].load(Relaxed)
    }

    /// Directions of enrolled connections that userspace copies.
    #[must_use]
    pub fn copied_directions(&self) -> u64 {
        self.half.load(Relaxed)
    }

    pub(crate) fn enrol(&self) {
        self.enrolled.fetch_add(1, Relaxed);
    }

    pub(crate) fn fall_back(&self, why: Ineligible) {
        self.fallbacks[why as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn copy_direction(&self) {
        self.half.fetch_add(1, Relaxed);
    }
}
