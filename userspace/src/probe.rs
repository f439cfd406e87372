//! The capabilities of this kernel: short probes on loopback, before the first connection is accepted.
//!
//! Version numbers are not sufficient: distributions backport fixes, and some features that the sockmap datapath
//! needs can be disabled. So the probes run the datapath itself, on sockets of the daemon, and check for the faults
//! of older kernels. All probes together take well under a second.

pub mod answers;
mod lab;
mod netns;
pub mod packet;
pub mod report;
pub mod same_host;
pub mod socket_info;
pub mod sockmap;
mod traffic;
