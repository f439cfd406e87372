//! The limits that keep one client, or one dead backend, from exhausting shared resources.
//!
//! [`source`], [`rate`], [`memberships`], [`hellos`], [`handshakes`], [`backends`] and [`cidr`] are functions of values: time is an argument,
//! and the number of connections bounds their memory. [`admission`] is the state that the workers share.

use strum::{EnumCount, VariantArray};

use crate::metrics::labels::CloseReason;

pub mod admission;
pub mod backends;
pub mod cidr;
pub mod collector;
pub mod handshakes;
pub mod hellos;
pub mod memberships;
pub mod rate;
pub mod reachability;
pub mod source;

/// The limit that refused a faultless connection. Each is a close reason, and a label of
/// `snisplice_limit_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumCount, VariantArray)]
pub enum Overload {
    /// The source is at its limit of connections (`limits.connections_per_source`).
    Source,
    /// The source opens connections faster than it may (`limits.connection_rate_per_source`).
    SourceRate,
    /// The listener is at its limit of connections (`listeners[].max_connections`).
    Listener,
    /// Connections of the listener begin faster than they may (`listeners[].connection_rate`).
    ListenerRate,
    /// The route is at its limit of connections (`routes[].max_connections`).
    Route,
    /// Connections of the route begin faster than they may (`routes[].connection_rate`).
    RouteRate,
    /// The hello was incomplete, and a new client needed the slot (`limits.hellos`, `limits.hellos_per_source`,
    /// `limits.connections`).
    Hellos,
    /// The limit of TLS handshakes is reached, of all together or of the source (`limits.handshakes`,
    /// `limits.handshakes_per_source`).
    Handshakes,
    /// The backend is at its limit of connections (`backends[].max_connections`).
    Backend,
    /// The backend is at its limit of connections that wait for an endpoint (`backends[].max_pending`).
    Pending,
    /// The connection waited for a slot until its listener stopped, and no slot became free in time
    /// (`limits.connections`).
    Places,
}

impl From<Overload> for CloseReason {
    fn from(overload: Overload) -> Self {
        match overload {
            Overload::Source => Self::SourceLimit,
            Overload::SourceRate => Self::SourceRate,
            Overload::Listener => Self::ListenerLimit,
            Overload::ListenerRate => Self::ListenerRate,
            Overload::Route => Self::RouteLimit,
            Overload::RouteRate => Self::RouteRate,
            Overload::Hellos => Self::HelloLimit,
            Overload::Handshakes => Self::HandshakeLimit,
            Overload::Backend => Self::BackendLimit,
            Overload::Pending => Self::PendingLimit,
            Overload::Places => Self::ConnectionLimit,
        }
    }
}

impl Overload {
    /// The label for metrics and logs: that of the close reason.
    #[must_use]
    pub fn label(self) -> &'static str {
        CloseReason::from(self).label()
    }
}
