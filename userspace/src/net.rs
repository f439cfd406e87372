//! Sockets and their options, and what the kernel says of addresses, devices and routes.

pub mod admin_socket;
pub mod keepalive;
pub mod listeners;
pub mod listening;
pub mod local_address;
pub mod low_descriptors;
pub mod repair;
pub mod rtnetlink;
pub mod sockopt;
