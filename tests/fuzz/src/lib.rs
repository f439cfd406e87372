//! What the fuzz targets share.

pub mod config;
pub mod seeds;
pub mod tls;

/// What the unit tests, too, check of any bytes.
#[path = "../../../userspace/src/tls/client_hello/tests/invariants.rs"]
pub mod invariants;
