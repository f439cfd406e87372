//! `cargo xtask test`: everything the tests need, then every test.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    go, install,
    shell::{self, cargo, is_root, step},
};

/// Installs the peers that the tests need, saying so, and runs every test; what cannot run fails.
#[derive(Debug, clap::Args)]
// `cargo xtask ci` takes them too, and clap would name both groups after the struct.
#[group(skip)]
pub(crate) struct Args {
    /// Install nothing: a missing peer is an error.
    #[arg(long)]
    no_install: bool,
    /// Passed on to `cargo test`, for example `-- routing`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

/// A program that the tests run, and the Debian package that has it.
const PEERS: [(&str, &str); 8] = [
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("gnutls-cli", "gnutls-bin"),
    ("bpftool", "bpftool"),
    ("h2load", "nghttp2-client"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
];

/// The eBPF crate compiles only for its own target.
pub(crate) const WITHOUT_EBPF: [&str; 2] = ["--exclude", "snisplice-ebpf"];

/// What the tests need mounted: where a file system is, and its type.
const MOUNTS: [(&str, &str); 2] = [("/sys/fs/bpf", "bpf"), ("/sys/kernel/debug", "debugfs")];

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { no_install, cargo: passed_on } = args;
    if !is_root() {
        bail!(
            "the end-to-end tests make namespaces and load eBPF programs: run `cargo xtask test` as root, \
               or `cargo test` for what needs no privilege"
        );
    }
    step("peers");
    install::programs(&PEERS, *no_install)?;
    go::tools(*no_install)?;
    mount()?;
    step("build");
    // Once for all packages: the end-to-end tests run the daemon that this leaves beside them.
    shell::run(cargo().args(["build", "--workspace", "--bins"]).args(WITHOUT_EBPF))?;
    step("test");
    shell::run(
        cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            .args(WITHOUT_EBPF)
            .args(passed_on)
            .env("SNISPLICE_REQUIRE_ALL", "1"),
    )
}

fn mount() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    for (place, kind) in MOUNTS {
        let is_mounted = mounts.lines().any(|mount| mount.split(' ').nth(1) == Some(place));
        if !is_mounted && Path::new(place).exists() {
            println!("{place} is not mounted: mounting it");
            if let Err(error) = shell::run(Command::new("mount").args(["-t", kind, kind, place])) {
                // What cannot do without it says so, and fails.
                println!("{error:#}");
            }
        }
    }
    Ok(())
}
