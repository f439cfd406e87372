//! The endpoints of connections: their addresses, and the record of recent failures.

pub mod affinity;
pub mod attempt;
pub mod balance;
pub mod caller;
pub mod candidates;
pub mod cluster;
pub mod dns;
pub mod dynamic;
pub mod endpoint;
pub mod health;
pub mod health_collector;
pub mod lease;
pub mod monitor;
pub mod names;
pub mod overrides;
pub mod recent_failures;
pub mod records;
pub mod requested;
pub mod schedule;
pub mod upstreams;
