//! The sources of the configuration.

pub mod file;
