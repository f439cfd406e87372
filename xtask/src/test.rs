//! `cargo xtask test`: installs the requirements of the tests, then runs every test.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    go, install,
    shell::{self, cargo, is_root, step},
};

/// Installs the peers that the tests need, with a message, and runs every test; a test that cannot run fails.
#[derive(Debug, clap::Args)]
// The struct is flattened into `cargo xtask ci`, where clap would name both groups after the struct.
#[group(skip)]
pub(crate) struct Args {
    /// Install nothing: a missing peer is an error.
    #[arg(long)]
    no_install: bool,
    /// Arguments for `cargo test`, for example `-- routing`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

/// The programs of the tests, each with its Debian package.
const PEERS: [(&str, &str); 10] = [
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("gnutls-cli", "gnutls-bin"),
    ("bpftool", "bpftool"),
    ("haproxy", "haproxy"),
    ("h2load", "nghttp2-client"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("strace", "strace"),
];

/// nginx's module for streams, and its Debian package. Debian's nginx loads it from there.
const NGINX_STREAM: (&str, &str) = ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream");

/// The eBPF crate compiles only for its own target.
pub(crate) const WITHOUT_EBPF: [&str; 2] = ["--exclude", "snisplice-ebpf"];

/// The required mounts: the path and type of each file system.
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
    install::module(&NGINX_STREAM, *no_install)?;
    go::tools(*no_install)?;
    mount()?;
    step("build");
    // One build for all packages: the end-to-end tests run the daemon of this build.
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
                // A test that needs the mount reports its absence, and fails.
                println!("{error:#}");
            }
        }
    }
    Ok(())
}
