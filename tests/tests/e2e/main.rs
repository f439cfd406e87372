//! End-to-end tests: the daemon between real clients and servers, in network namespaces. Wants root.
//!
//! `cargo xtask test` runs them with everything that they need; `cargo test -p snisplice-tests -- close` runs one
//! topic.

use std::process::ExitCode;

fn main() -> ExitCode {
    snisplice_tests::suite::run(&[])
}
