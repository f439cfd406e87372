//! `cargo xtask ci`: the very steps of the continuous integration, in its order.

use anyhow::Result;

use crate::{
    shell::{self, cargo, step},
    test::{self, WITHOUT_EBPF},
};

/// Checks everything that must hold before a change is merged; the tests come last.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    test: test::Args,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { test } = args;
    step("format");
    shell::run(cargo().args(["fmt", "--all", "--check"]))?;
    step("lints");
    let deny = ["--", "--deny", "warnings"];
    shell::run(cargo().args(["clippy", "--workspace", "--all-targets"]).args(WITHOUT_EBPF).args(deny))?;
    step("documentation");
    let doc = ["doc", "--workspace", "--no-deps"];
    shell::run(cargo().args(doc).args(WITHOUT_EBPF).env("RUSTDOCFLAGS", "--deny warnings"))?;
    test::run(test)
}
