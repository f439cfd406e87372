//! The little of TLS that a passthrough balancer reads and writes: the hello that names the backend, and the
//! alert that refuses it.
//!
//! Pure: bytes in, values out. No socket, clock, randomness or log, so every split, limit and malformation can be
//! tested and fuzzed by plain calls.

pub mod alert;
pub mod client_hello;
pub mod error;
mod record;
