//! Moves bytes between two sockets. [`seam`] is the interface for a session, and the other modules are the datapaths.

pub mod adaptive;
mod broken;
pub mod factory;
mod idle;
pub mod packet;
pub mod relay;
pub mod seam;
pub mod sockmap;
