//! `cargo xtask demo`: the product at work, with nothing but the results of the build.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::shell::{self, cargo};

/// Shows real TLS connections routed by name, each backend's own certificate verified by the client.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running afterwards, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// The datapath to use.
    #[arg(long, value_parser = ["auto", "sockmap", "relay"], default_value = "auto")]
    datapath: String,
}

impl Args {
    /// The shortest demo, on the best available datapath.
    pub(crate) fn plain() -> Self {
        Self { keep: false, datapath: "auto".to_owned() }
    }

    /// Builds the demo and its programs, and returns the command that starts it.
    fn command(&self) -> Result<Command> {
        let packages = ["--package", "snisplice", "--package", "snisplice-tests"];
        shell::run(cargo().args(["build", "--release", "--bins"]).args(packages))?;
        self.built()
    }

    /// The command that starts a built demo.
    pub(crate) fn built(&self) -> Result<Command> {
        let Self { keep, datapath } = self;
        let mut demo = Command::new(shell::target()?.join("release/snisplice-demo"));
        demo.args(["--datapath", datapath]);
        if *keep {
            demo.arg("--keep");
        }
        Ok(demo)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // Replaces this process, so that Ctrl-C reaches the process that has something to clean up.
    Err(args.command()?.exec()).context("cannot start the demo")
}
