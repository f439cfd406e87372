//! `cargo xtask soak`: thousands of concurrent connections, for any time.

use anyhow::Result;

use crate::shell::{self, cargo};

/// Keeps many connections open, checks every byte, and finally checks for leaks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The duration in minutes.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Concurrent connections; each takes two descriptors here and two in the daemon.
    #[arg(long, default_value_t = 8_000)]
    flows: u64,
    /// Only this datapath.
    #[arg(long, value_parser = ["relay", "sockmap", "adaptive", "auto", "packet"], default_value = "auto")]
    datapath: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { minutes, flows, datapath } = args;
    shell::run(cargo().args(["build", "--release", "--bins", "--package", "snisplice"]))?;
    let filter = format!("soak::many_connections_for_a_while::{datapath}");
    shell::run(
        cargo()
            .args(["test", "--release", "--package", "snisplice-tests", "--test", "e2e", "--"])
            .args(["--nocapture", &filter])
            .env("SNISPLICE_SOAK", format!("{flows},{}", minutes * 60))
            .env("SNISPLICE_REQUIRE_ALL", "1"),
    )
}
