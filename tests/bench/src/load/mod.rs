//! The load generator and the backend: plain sockets, a few epoll threads at either end, no code of the product.

pub mod backend;
pub mod client;
pub mod echo;
pub mod engine;
pub mod fault;
pub mod frame;
pub mod hello;
pub mod reactor;
pub mod socket;
pub mod stream;
pub mod tally;
pub mod tls;
