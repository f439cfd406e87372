//! Splicing of packets: the types in the maps of both sides, and every decision on a packet as a pure function.
//!
//! A flow is two established connections: A from the client to the balancer, B from the balancer to the backend. Every
//! byte of one connection corresponds to a byte of the other, at a constant offset. A *leg* is one of the two
//! connections. A *way* is one of the two directions. Way 0 leads up, from the client to the backend, and its packets
//! arrive on leg A. [`translate`] turns a packet of one leg into a packet of the other. [`flow`] records what both ends
//! have sent and acknowledged.

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
