//! `cargo xtask bench`: compares snisplice with widely used balancers.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    peers,
    shell::{self, cargo},
};

/// Runs snisplice beside other balancers and no balancer at all, and reports ratios.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Options of the benchmark, for example `--quick`, `--smoke`, `--install-peers`, `compare A.json B.json`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // The benchmark itself installs packages of the system's package manager and of pip.
    if args.options.iter().any(|option| option == "--install-peers") {
        peers::install()?;
    }
    let packages = ["--package", "snisplice", "--package", "snisplice-bench"];
    shell::run(cargo().args(["build", "--release", "--bins"]).args(packages))?;
    // The benchmark finds the daemon in its own directory. It replaces this process, so that Ctrl-C reaches the
    // process that has something to clean up.
    let mut bench = Command::new(shell::target()?.join("release/snisplice-bench"));
    Err(bench.args(&args.options).exec()).context("cannot start the benchmark")
}
