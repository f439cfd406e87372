//! A worker and its connections: from accept to the end of each.

mod acceptor;
pub mod connect;
pub mod hello;
mod http;
mod proxied;
mod refuse;
pub mod service;
pub mod session;
mod terminated;
pub mod worker;
