//! Sockets and their options, and the kernel's addresses, devices and routes.

pub mod admin_socket;
pub mod keepalive;
pub mod listeners;
pub mod listening;
pub mod local_address;
pub mod low_descriptors;
pub mod proxy_header;
pub mod proxy_sender;
pub mod repair;
pub mod rtnetlink;
pub mod sockopt;
pub mod uuid;
