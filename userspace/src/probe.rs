//! What this kernel can do: small experiments on loopback, made before the first connection is accepted.
//!
//! Version numbers do not tell: distributions carry fixes back, and some of what the sockmap datapath needs can be
//! switched off. So the very datapath is tried, on sockets of our own, for what older kernels got wrong. All of it
//! takes well under a second.

pub mod answers;
mod lab;
mod netns;
pub mod packet;
pub mod report;
pub mod same_host;
pub mod socket_info;
pub mod sockmap;
mod traffic;
