//! `cargo xtask style`: checks that take seconds and need no build of the project.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    shell::{self, cargo, root},
    tools::Tool,
};

/// Checks the format of the source, the spelling of every text and the format of TOML files.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Correct errors if possible.
    #[arg(long)]
    fix: bool,
}

impl Args {
    /// The arguments that change nothing.
    pub(crate) fn check() -> Self {
        Self { fix: false }
    }
}

/// A checker of common misspellings. `_typos.toml` contains the exceptions. Another version has another list.
const TYPOS: Tool =
    Tool { program: "typos", package: "typos-cli", version: "1.52.0", exact: true, wheel: Some("typos") };
/// Formats TOML by `.taplo.toml`.
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
    // All three run, so that one run shows all errors.
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
