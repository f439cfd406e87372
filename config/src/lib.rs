//! Configuration: every format becomes one immutable [`model::Model`].
//!
//! Pure: no I/O, no clock, no randomness. The caller reads the files, resolves the names and opens the sockets.
#![forbid(unsafe_code)]

pub mod model;
