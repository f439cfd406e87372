//! Guards and peers that the end-to-end tests share: network namespaces, real servers and clients, the daemon.
//!
//! Nothing here asserts the product's behaviour; `tests/e2e/` does so. A value owns everything that is started, and
//! ends it on drop.

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
