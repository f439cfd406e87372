//! Splicing at the level of packets: what both sides of the maps agree on, and every decision on a packet as a pure
//! function.
//!
//! A flow is two established connections, A (client to balancer) and B (balancer to backend), whose every byte maps
//! to a byte of the other by a constant offset. A *leg* is one of the two connections, a *way* one of the two
//! directions; way 0 leads up, from the client to the backend, and its packets arrive on leg A. [`translate`] turns a
//! packet of the one leg into the packet of the other, [`flow`] follows what the two ends have sent and acknowledged.

#![expect(
    clippy::inline_always,
    reason = "the kernel's programs have no stack to spare for calls with headers in hand"
)]

pub mod checksum;
pub mod flow;
pub mod icmp;
pub mod maps;
pub mod segment;
pub mod socket_info;
pub mod translate;
