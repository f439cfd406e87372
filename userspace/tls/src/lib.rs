//! The part of TLS that a passthrough balancer reads and writes: the hello that names the backend, and the alert that
//! refuses the hello.
//!
//! Pure: bytes in, values out. There is no socket, clock, randomness or log, so plain calls can test and fuzz every
//! split, limit and malformation.

pub mod alert;
pub mod client_hello;
pub mod error;
mod record;
