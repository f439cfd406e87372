//! HTTP requests, within TLS that ends here and without TLS: each has a rule and a backend of its own.
//!
//! The pure part decides what becomes of a request ([`route`]), follows where requests begin and end ([`framing`] for HTTP/1,
//! [`frames`] for HTTP/2), and says which headers go on ([`headers`]). Around it are the connections of clients ([`connection`])
//! and those to backends ([`pool`]), and between them one request at a time ([`exchange`]).

pub mod activity;
pub mod body;
pub mod connect;
pub mod connection;
pub mod exchange;
pub mod frames;
pub mod framing;
pub mod guarded;
pub mod headers;
pub mod path;
pub mod pool;
pub mod refused;
mod request_log;
pub mod route;
pub mod variables;
pub mod websocket;
