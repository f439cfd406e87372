//! `cargo xtask style`: what takes seconds to check and needs no build of the project.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    shell::{self, cargo, root},
    tools::Tool,
};

/// Checks the format of the source, the spelling of every text and the format of TOML files.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Mend what can be mended.
    #[arg(long)]
    fix: bool,
}

impl Args {
    /// Changes nothing.
    pub(crate) fn check() -> Self {
        Self { fix: false }
    }
}

/// Knows common misspellings, and no dictionary; `_typos.toml` has the exceptions. Another version knows others.
const TYPOS: Tool =
    Tool { program: "typos", package: "typos-cli", version: "1.52.0", exact: true, wheel: Some("typos") };
/// Formats TOML as `.taplo.toml` says.
const TAPLO: Tool =
    Tool { program: "taplo", package: "taplo-cli", version: "0.9.3", exact: true, wheel: Some("taplo") };

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { fix } = *args;
    let mut rustfmt = cargo();
    rustfmt.args(["fmt", "--all"]);
    let mut typos = Command::new(TYPOS.path(&[])?);
    typos.current_dir(root());
    let mut taplo = Command::new(TAPLO.path(&[])?);
    taplo.current_dir(root()).arg("fmt").env("RUST_LOG", "warn");
    if fix {
        typos.arg("--write-changes");
    } else {
        rustfmt.arg("--check");
        taplo.args(["--check", "--diff"]);
    }
    // All three, so that one run shows everything.
    let mut failed = 0;
    for command in [&mut rustfmt, &mut typos, &mut taplo] {
        if let Err(error) = shell::run(command) {
            println!("{error:#}");
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of 3 checks failed; `cargo xtask style --fix` mends most of it");
    }
    Ok(())
}
