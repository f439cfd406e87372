//! snisplice: a TLS passthrough load balancer whose bytes move inside the kernel.
//!
//! One connection's story is [`proxy::session`]; what the process is made of is [`app`]; the seam between a connection and
//! the way its bytes move is [`datapath`].

// It waits for whoever reads standard error, and panics where nobody does: see [`log`].
#![deny(clippy::print_stderr)]

pub mod account;
pub mod admin;
pub mod app;
pub mod bpf;
pub mod cli;
pub mod datapath;
pub mod http;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod net;
pub mod privileges;
pub mod probe;
pub mod provider;
pub mod proxy;
pub mod secrets;
pub mod snapshot;
pub mod takeover;
pub mod terminate;
pub mod upstream;
