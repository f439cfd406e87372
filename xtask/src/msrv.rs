//! `cargo xtask msrv`: verifies the `rust-version` in the root `Cargo.toml`.

use anyhow::Result;

use crate::{
    shell::{self, root},
    test::WITHOUT_EBPF,
    toolchain::{of_release, rustup},
};

/// Type-checks the workspace with the oldest supported compiler. rustup installs it if needed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Report, and do not fail, if rustup cannot install that compiler.
    #[arg(long)]
    if_it_can_be_had: bool,
}

impl Args {
    /// For machines without a network.
    pub(crate) fn if_it_can_be_had() -> Self {
        Self { if_it_can_be_had: true }
    }
}

/// `rust-version` of the workspace, which every member inherits.
const PROMISED: &str = env!("CARGO_PKG_RUST_VERSION");

pub(crate) fn run(args: &Args) -> Result<()> {
    let name = match of_release(&first_release(PROMISED), &[]) {
        Ok(name) => name,
        Err(error) if args.if_it_can_be_had => {
            println!("{error:#}: the minimum Rust version {PROMISED} is not checked");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // A separate target directory, so that neither compiler discards the other's results.
    let target = shell::target()?.join("msrv");
    let mut check = rustup(&name);
    check.args(["cargo", "check", "--locked", "--workspace"]).args(WITHOUT_EBPF);
    // The variable names the cargo that started this program, which is of another toolchain.
    check.arg("--target-dir").arg(target).current_dir(root()).env_remove("CARGO");
    shell::run(&mut check)
}

/// The first release of a series: for 1.90 it is 1.90.0.
fn first_release(version: &str) -> String {
    if version.matches('.').count() < 2 { format!("{version}.0") } else { version.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_begins_with_its_first_release() {
        assert_eq!(first_release("1.90"), "1.90.0");
        assert_eq!(first_release("1.90.1"), "1.90.1");
    }

    #[test]
    fn the_promise_is_a_version() {
        assert!(first_release(PROMISED).split('.').all(|part| part.parse::<u32>().is_ok()), "{PROMISED}");
    }
}
