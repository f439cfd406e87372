//! The modules of `snisplice::tls` themselves, taken in by path and not as a dependency: the crate around them brings
//! tokio and aya, which would be built with a sanitizer for nothing. They use no other part of that crate.

#[path = "../../../userspace/src/tls/client_hello.rs"]
pub mod client_hello;
#[path = "../../../userspace/src/tls/record.rs"]
mod record;
