//! What keeps one client, or one dead backend, from taking what everybody needs.
//!
//! [`source`], [`hellos`], [`backends`] and [`cidr`] are functions of values: time is an argument, and their memory is
//! bounded by the number of connections. [`admission`] is what the workers share of them.

pub mod admission;
pub mod backends;
pub mod cidr;
pub mod collector;
pub mod hellos;
pub mod reachability;
pub mod source;

/// Why a connection was not served although nothing was wrong with it. Each is a close reason, and a label of
/// `snisplice_limit_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// Its source has as many connections as it may (`limits.connections_per_source`).
    Source,
    /// Its hello was not complete, and a newcomer needed its place (`limits.hellos`, `limits.connections`).
    Hellos,
    /// Its backend has as many connections as it may (`backends[].max_connections`).
    Backend,
    /// As many connections as may wait for an endpoint of its backend (`backends[].max_pending`).
    Pending,
    /// It waited for a place until its listener stopped, and no place became free in time (`limits.connections`).
    Places,
}

impl Overload {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Source, Self::Hellos, Self::Backend, Self::Pending, Self::Places];

    /// Metric and log label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source_limit",
            Self::Hellos => "hello_limit",
            Self::Backend => "backend_limit",
            Self::Pending => "pending_limit",
            Self::Places => "connection_limit",
        }
    }
}
