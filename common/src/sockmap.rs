//! Redirection between sockets: what both sides of the maps agree on, and the decision on each packet and message as a
//! pure function.
//!
//! [`direction`] follows one direction of a connection and decides on its packets, [`budget`] bounds what waits in the
//! kernel over all directions, [`shortcut`] decides on the messages of backends on this host.

pub mod budget;
pub mod counters;
pub mod direction;
pub mod event;
pub mod maps;
pub mod shortcut;
