//! How bytes move between two sockets: [`seam`] is what a session knows of it, the rest are the ways to do it.

pub mod adaptive;
mod broken;
pub mod factory;
mod idle;
pub mod packet;
pub mod relay;
pub mod seam;
pub mod sockmap;
