//! Debian packages of other suites than this system's, downloaded and unpacked without installation.
//!
//! The packages come from the archive of the system's apt, with apt's own tools and signature checks. The state is
//! separate: the system's package lists do not change.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    install,
    shell::{self, find},
};

/// The keys of all suites, in Debian's package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian archive of this system's apt.
fn archive() -> Result<String> {
    let configured = || -> Result<Option<String>> {
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"]);
        let targets = shell::output(&mut command)?;
        Ok(targets.lines().find_map(|target| target.strip_prefix("Debian Debian ")).map(str::to_owned))
    };
    if let Some(uri) = configured()? {
        return Ok(uri);
    }
    // apt does not list sources without downloaded lists, which images often lack.
    install::apt(&["update"])?;
    configured()?.context("apt's sources name no Debian archive; add one to /etc/apt/sources.list.d")
}

/// apt, restricted to one suite.
#[derive(Debug)]
pub(crate) struct Apt {
    state: tempfile::TempDir,
}

impl Apt {
    /// Whether this system has apt's tools.
    pub(crate) fn is_here() -> bool {
        find("apt-get").is_some() && find("dpkg-deb").is_some()
    }

    /// Reads the index of `suite`, which may not be in the system's sources.
    pub(crate) fn new(suite: &str) -> Result<Self> {
        let archive = archive()?;
        let apt = Self { state: tempfile::tempdir()? };
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.path(directory))?;
        }
        let signed =
            if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        fs::write(apt.path("sources.list"), format!("deb {signed}{archive} {suite} main\n"))?;
        shell::output(apt.command("apt-get").arg("update")).with_context(|| format!("suite {suite}"))?;
        Ok(apt)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }

    /// A `program` of apt, with this state.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.state.path()).args(["-qq", "-o", "Acquire::Retries=3"]);
        for (option, name) in [
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "none"),
            ("Dir::State::lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.path(name).display()));
        }
        // apt's download user cannot write to this directory.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    /// `packages` and all their dependencies, as if none were installed, with versions: `libc6=2.41-1`.
    pub(crate) fn with_dependencies(&self, packages: &[&str]) -> Result<Vec<String>> {
        let nothing = self.path("status");
        fs::write(&nothing, "")?;
        let mut simulate = self.command("apt-get");
        simulate.arg("-o").arg(format!("Dir::State::status={}", nothing.display()));
        simulate.args(["install", "--simulate", "--no-install-recommends"]).args(packages);
        Ok(simulated(&shell::output(&mut simulate)?))
    }

    /// Downloads packages and unpacks them into one directory, which exists as long as this value.
    pub(crate) fn unpack(&self, packages: &[&str]) -> Result<PathBuf> {
        let root = self.path("root");
        shell::output(self.command("apt-get").arg("download").args(packages))?;
        for file in fs::read_dir(self.state.path())? {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                shell::output(Command::new("dpkg-deb").arg("--extract").args([&file, &root]))?;
            }
        }
        Ok(root)
    }
}

/// The packages that `apt-get install --simulate` would install, parsed from its output.
fn simulated(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines
        .filter_map(|line| {
            let (name, rest) = line.split_once(" (")?;
            // An upgrade would name the installed version in brackets.
            let name = name.split(' ').next()?;
            Some(format!("{name}={}", rest.split(' ').next()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_names_packages_with_versions() {
        let printed = "Inst libc6 (2.43-7 Debian:unstable [amd64]) []\nConf libc6 (2.43-7 Debian:unstable [amd64])\n\
                       Inst zlib1g [1:1.2] (1:1.3.2-4 Debian:unstable [amd64])\n";
        assert_eq!(simulated(printed), ["libc6=2.43-7", "zlib1g=1:1.3.2-4"]);
    }
}
