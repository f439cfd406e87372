//! The modules of `snisplice::tls` themselves, taken in by path and not as a dependency: the crate around them brings
//! tokio and aya, which would be built with a sanitizer for nothing. They use no other part of that crate.

// Its tests stay where they are, out of reach from here.
#[rustfmt::skip]
#[path = "../../../userspace/src/tls/client_hello.rs"]
pub mod client_hello;
#[path = "../../../userspace/src/tls/record.rs"]
mod record;
