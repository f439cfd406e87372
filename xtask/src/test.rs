//! `cargo xtask test`: everything the tests need, then every test.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::{Result, bail};

use crate::shell::{self, cargo, find, is_root, step};

/// Installs the peers that the tests need, saying so, and runs every test; what cannot run fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install nothing: a missing peer is an error.
    #[arg(long)]
    no_install: bool,
    /// Passed on to `cargo test`, for example `-- routing`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo: Vec<String>,
}

/// A program that the tests run, and the Debian package that has it.
const PEERS: [(&str, &str); 7] = [
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("gnutls-cli", "gnutls-bin"),
    ("bpftool", "bpftool"),
    ("ip", "iproute2"),
    ("cc", "gcc"),
];

/// The eBPF crate compiles only for its own target.
pub(crate) const WITHOUT_EBPF: [&str; 2] = ["--exclude", "snisplice-ebpf"];

const BPFFS: &str = "/sys/fs/bpf";

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { no_install, cargo: passed_on } = args;
    if !is_root() {
        bail!(
            "the end-to-end tests make namespaces and load eBPF programs: run `cargo xtask test` as root, \
               or `cargo test` for what needs no privilege"
        );
    }
    step("peers");
    install_peers(*no_install)?;
    mount_bpffs()?;
    step("build");
    // Once for all packages: the end-to-end tests run the daemon that this leaves beside them.
    shell::run(cargo().args(["build", "--workspace", "--bins"]).args(WITHOUT_EBPF))?;
    step("test");
    shell::run(
        cargo()
            .args(["test", "--workspace"])
            .args(WITHOUT_EBPF)
            .args(passed_on)
            .env("SNISPLICE_REQUIRE_ALL", "1"),
    )
}

fn install_peers(no_install: bool) -> Result<()> {
    let missing: Vec<_> = PEERS.into_iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        println!("all there: {}", PEERS.map(|(program, _)| program).join(", "));
        return Ok(());
    }
    let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    if no_install || find("apt-get").is_none() {
        bail!("missing programs: {}; install them with the system's package manager", programs.join(", "));
    }
    println!("missing programs: {}; installing with apt-get: {}", programs.join(", "), packages.join(", "));
    apt(&["update"])?;
    apt(&[["install", "--yes", "--no-install-recommends"].as_slice(), &packages].concat())?;
    if let Some(program) = programs.iter().find(|program| find(program).is_none()) {
        bail!("`{program}` is still missing after the installation");
    }
    if packages.contains(&"nginx-light") && find("systemctl").is_some() {
        println!("the package starts a server on port 80, which the tests do not need: stopping it");
        // Fails where systemd does not run, and then nothing was started.
        drop(shell::run(Command::new("systemctl").args(["disable", "--now", "nginx"])));
    }
    Ok(())
}

/// Another package manager may hold the lock for minutes, and mirrors fail now and then.
fn apt(args: &[&str]) -> Result<()> {
    const ATTEMPTS: usize = 5;
    for attempt in 1.. {
        let mut command = Command::new("apt-get");
        command
            .args(["-qq", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive");
        match shell::run(&mut command) {
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(error) => println!("attempt {attempt} of {ATTEMPTS}: {error:#}"),
            Ok(()) => break,
        }
        thread::sleep(Duration::from_secs(10));
    }
    Ok(())
}

fn mount_bpffs() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let is_mounted = mounts.lines().any(|mount| mount.split(' ').nth(1) == Some(BPFFS));
    if is_mounted || !Path::new(BPFFS).exists() {
        return Ok(());
    }
    println!("{BPFFS} is not mounted: mounting it");
    shell::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
}
