//! HTTP requests, within terminated TLS and without TLS. Each request has a rule and a backend of its own.
//!
//! The pure part decides on a request ([`route`]), follows request boundaries ([`framing`] for HTTP/1, [`frames`] for
//! HTTP/2), and selects the headers to forward ([`headers`]). The shell has the connections of clients
//! ([`connection`]) and of backends ([`pool`]). [`exchange`] serves one request between them.

pub mod activity;
pub mod body;
pub mod connect;
pub mod connection;
pub mod exchange;
mod failure;
pub mod frames;
pub mod framing;
pub mod guarded;
pub mod headers;
pub mod path;
pub mod pool;
pub mod question;
pub mod refused;
mod request_log;
pub mod route;
pub mod variables;
pub mod websocket;
