//! `cargo xtask schema`: the reference of the native format, and its JSON schema.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use snisplice_config::reference;

use crate::shell::root;

/// Writes docs/configuration.md and config/snisplice.schema.json from the declarations in `config`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a file is outdated.
    #[arg(long)]
    check: bool,
}

impl Args {
    /// The arguments that only compare.
    pub(crate) fn check() -> Self {
        Self { check: true }
    }
}

pub(crate) fn run(Args { check }: &Args) -> Result<()> {
    let files = [
        ("docs/configuration.md", reference::markdown()),
        ("config/snisplice.schema.json", reference::json_schema()),
    ];
    for (name, text) in files {
        let path = root().join(name);
        if *check {
            let there = fs::read_to_string(&path).unwrap_or_default();
            ensure!(there == text, "{name} is stale: run cargo xtask schema");
        } else {
            fs::write(&path, text).with_context(|| format!("cannot write {name}"))?;
        }
    }
    Ok(())
}
