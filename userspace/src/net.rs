//! What the daemon asks the kernel about the network around it.

pub mod admin_socket;
pub mod keepalive;
pub mod listeners;
pub mod listening;
pub mod local_address;
pub mod low_descriptors;
pub mod repair;
pub mod rtnetlink;
pub mod sockopt;
