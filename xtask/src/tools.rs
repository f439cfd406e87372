//! Programs of the Rust world that a command runs, built where they are missing.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::shell::{self, cargo, find};

/// A program that `cargo install` builds.
pub(crate) struct Tool {
    /// The name of the program, which is that of its package too.
    pub(crate) program: &'static str,
    /// The version that is built, and the only one that counts where `exact` says so.
    pub(crate) version: &'static str,
    /// Whether another version on the search path does not do.
    pub(crate) exact: bool,
}

impl Tool {
    /// Where the program is. Builds it below cargo's target directory, with further `options` of `cargo install`, where
    /// it is nowhere.
    pub(crate) fn path(&self, options: &[&str]) -> Result<PathBuf> {
        let Self { program, version, exact } = *self;
        let tools = shell::target()?.join("tools");
        let own = tools.join("bin").join(program);
        let candidates = [find(program), Some(own.clone()).filter(|own| own.is_file())];
        if let Some(path) = candidates.into_iter().flatten().find(|path| !exact || has_version(path, version))
        {
            return Ok(path);
        }
        println!("{program} {version} is not installed: building it");
        // Stable builds what needs unstable features of the compiler, too: bpf-linker wants its LLVM.
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--force", "--root"]).arg(&tools);
        install.args([program, "--version", version]).args(options).env("RUSTC_BOOTSTRAP", "1");
        shell::run(&mut install)?;
        Ok(own)
    }
}

fn has_version(program: &PathBuf, version: &str) -> bool {
    let said = shell::output(Command::new(program).arg("--version"));
    said.is_ok_and(|said| said.split_whitespace().any(|word| word == version))
}
