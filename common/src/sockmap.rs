//! Redirection between sockets: the types in the maps of both sides, and the decision on each packet and message as a
//! pure function.
//!
//! [`direction`] follows one direction of a connection and decides on its packets. [`budget`] bounds the bytes of all
//! directions that wait in the kernel. [`shortcut`] decides on the messages of backends on this host.

pub mod budget;
pub mod counters;
pub mod direction;
pub mod event;
pub mod maps;
pub mod shortcut;
