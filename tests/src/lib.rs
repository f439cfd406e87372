//! Guards and peers that the end-to-end tests share: network namespaces, real servers and clients, the daemon.
//!
//! Nothing here asserts what the product should do; that is in `tests/e2e/`. Everything that is started is owned
//! by a value, and ends with it.

pub mod cgroup;
pub mod daemon;
pub mod dns;
pub mod hello;
pub mod kernel;
pub mod lab;
pub mod limits;
pub mod metrics;
pub mod netns;
pub mod peers;
pub mod pki;
pub mod process;
pub mod stream;
pub mod suite;
pub mod tcp;
pub mod wait;
pub mod wan;
