//! The load generator and the backend: plain sockets, a few epoll threads at either end, no code of the product.

pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod echo;
pub(crate) mod engine;
pub(crate) mod fault;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod reactor;
pub(crate) mod schedule;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod tally;
pub(crate) mod tls;
pub(crate) mod web;
