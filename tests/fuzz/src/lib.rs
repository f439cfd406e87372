//! What the fuzz targets share.

pub mod config;
pub mod seeds;

/// The modules of `snisplice::tls` themselves, taken in by path and not as a dependency: the crate around them brings
/// tokio and aya, which would be built with a sanitizer for nothing. They use no other part of that crate.
#[allow(dead_code, reason = "the targets call the parser only")]
#[allow(unreachable_pub, reason = "public in the crate that they belong to")]
pub mod tls {
    #[path = "../../../../userspace/src/tls/client_hello.rs"]
    pub mod client_hello;
    #[path = "../../../../userspace/src/tls/record.rs"]
    mod record;
}

/// What the unit tests, too, check of any bytes.
#[path = "../../../userspace/src/tls/client_hello/tests/invariants.rs"]
pub mod invariants;
