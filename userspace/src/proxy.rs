//! A worker and its connections: from accept to the end of each.

pub mod connect;
pub mod hello;
pub mod session;
pub mod worker;
