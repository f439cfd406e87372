//! What keeps one client, or one dead backend, from taking what everybody needs.
//!
//! [`source`], [`hellos`], [`handshakes`], [`backends`] and [`cidr`] are functions of values: time is an argument, and their memory is
//! bounded by the number of connections. [`admission`] is what the workers share of them.

use strum::{EnumCount, VariantArray};

use crate::metrics::labels::CloseReason;

pub mod admission;
pub mod backends;
pub mod cidr;
pub mod collector;
pub mod handshakes;
pub mod hellos;
pub mod reachability;
pub mod source;

/// Why a connection was not served although nothing was wrong with it. Each is a close reason, and a label of
/// `snisplice_limit_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, VariantArray)]
pub enum Overload {
    /// Its source has as many connections as it may (`limits.connections_per_source`).
    Source,
    /// Its hello was not complete, and a newcomer needed its place (`limits.hellos`, `limits.connections`).
    Hellos,
    /// As many TLS handshakes are under way as may be, in all or of its source (`limits.handshakes`,
    /// `limits.handshakes_per_source`).
    Handshakes,
    /// Its backend has as many connections as it may (`backends[].max_connections`).
    Backend,
    /// As many connections as may wait for an endpoint of its backend (`backends[].max_pending`).
    Pending,
    /// It waited for a place until its listener stopped, and no place became free in time (`limits.connections`).
    Places,
}

impl From<Overload> for CloseReason {
    fn from(overload: Overload) -> Self {
        match overload {
            Overload::Source => Self::SourceLimit,
            Overload::Hellos => Self::HelloLimit,
            Overload::Handshakes => Self::HandshakeLimit,
            Overload::Backend => Self::BackendLimit,
            Overload::Pending => Self::PendingLimit,
            Overload::Places => Self::ConnectionLimit,
        }
    }
}

impl Overload {
    /// Metric and log label: that of the close reason.
    #[must_use]
    pub fn label(self) -> &'static str {
        CloseReason::from(self).label()
    }
}
