//! `cargo xtask demo`: the product at work, with nothing that the build does not bring.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::shell::{self, cargo};

/// Shows real TLS connections routed by name, each backend's own certificate verified by the client.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave everything running afterwards, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Which datapath to ask for.
    #[arg(long, value_parser = ["auto", "sockmap", "relay"], default_value = "auto")]
    datapath: String,
}

impl Args {
    /// The shortest demo, on the best datapath there is.
    pub(crate) fn plain() -> Self {
        Self { keep: false, datapath: "auto".to_owned() }
    }

    /// Builds the demo and what it shows, and says how to start it.
    fn command(&self) -> Result<Command> {
        let packages = ["--package", "snisplice", "--package", "snisplice-tests"];
        shell::run(cargo().args(["build", "--release", "--bins"]).args(packages))?;
        self.built()
    }

    /// How to start a demo that is built.
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
    // Takes our place, so that Ctrl-C reaches the one process that has something to clean up.
    Err(args.command()?.exec()).context("cannot start the demo")
}
