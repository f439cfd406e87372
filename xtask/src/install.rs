//! Installs missing programs with the system's package manager.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::{Result, bail};

use crate::shell::{self, find};

/// Installs those of `programs` that are not on the search path, each given with its Debian package.
///
/// Prints what it installs. With `no_install`, or without apt, a missing program is an error.
pub(crate) fn programs(programs: &[(&str, &str)], no_install: bool) -> Result<()> {
    let names = |some: &[&(&str, &str)]| some.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let missing: Vec<_> = programs.iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        println!("all there: {}", names(&programs.iter().collect::<Vec<_>>()));
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    if no_install || find("apt-get").is_none() {
        bail!("missing programs: {}; install them with the system's package manager", names(&missing));
    }
    println!("missing programs: {}; installing with apt-get: {}", names(&missing), packages.join(", "));
    apt(&["update"])?;
    apt(&[["install", "--yes", "--no-install-recommends"].as_slice(), &packages].concat())?;
    if let Some((program, _)) = missing.iter().find(|(program, _)| find(program).is_none()) {
        bail!("`{program}` is still missing after the installation");
    }
    if packages.contains(&"nginx-light") && find("systemctl").is_some() {
        println!("the package starts a server on port 80, which the tests do not need: stopping it");
        // Fails without systemd, and then no service was started.
        drop(shell::run(Command::new("systemctl").args(["disable", "--now", "nginx"])));
    }
    Ok(())
}

/// Installs a module that is a file, given with its Debian package. Without apt, the tests that need it report that.
pub(crate) fn module((path, package): &(&str, &str), no_install: bool) -> Result<()> {
    if Path::new(path).exists() || find("apt-get").is_none() {
        return Ok(());
    }
    if no_install {
        bail!("missing: {path}; install {package}");
    }
    println!("missing: {path}; installing with apt-get: {package}");
    apt(&["update"])?;
    apt(&["install", "--yes", "--no-install-recommends", package])
}

/// Runs apt-get. Another package manager may hold the lock for minutes, and mirrors fail now and then.
pub(crate) fn apt(args: &[&str]) -> Result<()> {
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
