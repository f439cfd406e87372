//! The stable compiler that builds the eBPF objects, and its requirements.
//!
//! No compiler is a nightly: `RUSTC_BOOTSTRAP=1` lets a stable compiler build the standard library for the kernel's
//! target. The release is fixed, so that it produces the same bytes on every machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::Apt,
    shell::{self, output},
    tools::Tool,
};

/// The stable release that builds the committed objects.
pub(crate) const RELEASE: &str = "1.95.0";

/// Links the objects with the compiler's own LLVM.
const LINKER: Tool =
    Tool { program: "bpf-linker", package: "bpf-linker", version: "0.10.4", exact: true, wheel: None };

/// Debian's suites that may have the standard library's source of a release, the most probable first.
const SUITES: [&str; 4] = ["sid", "experimental", "trixie-backports", "bookworm-backports"];

/// A compiler with all requirements of a build for the kernel.
#[derive(Debug)]
pub(crate) struct Toolchain {
    name: String,
    /// The directory of its libraries and their source.
    pub(crate) sysroot: PathBuf,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// Prepares the toolchain with the rustup name `name`, or else the release [`RELEASE`]. Installs missing parts:
    /// the toolchain and its source by rustup, the source from Debian if rustup cannot, the linker by cargo.
    pub(crate) fn ready(name: Option<&str>) -> Result<Self> {
        let name = match name {
            Some(name) => name.to_owned(),
            None => of_release(RELEASE, &["rust-src"])
                .with_context(|| format!("the eBPF objects are built with the stable compiler {RELEASE}"))?,
        };
        let sysroot = output(rustup(&name).args(["rustc", "--print", "sysroot"]))?;
        let sysroot = PathBuf::from(sysroot.trim());
        let verbose = output(rustup(&name).args(["rustc", "-vV"]))?;
        source(&name, &sysroot, field(&verbose, "release")?)?;
        let llvm = field(&verbose, "LLVM version")?.split('.').next().unwrap_or_default();
        let llvm = format!("rust-llvm-{llvm}");
        let linker = LINKER.path(&["--no-default-features", "--features", &llvm])?;
        Ok(Self { name, sysroot, linker })
    }

    /// `rustup run` with this toolchain and unstable features.
    pub(crate) fn command(&self) -> Command {
        let mut command = rustup(&self.name);
        // The variable names the cargo that started this program, which may be of another toolchain.
        command.env_remove("CARGO").env("RUSTC_BOOTSTRAP", "1");
        command
    }

    /// The output of `rustc -vV`.
    pub(crate) fn version(&self) -> Result<String> {
        output(self.command().args(["rustc", "-vV"]))
    }
}

/// A field in the output of `rustc -vV`.
pub(crate) fn field<'a>(verbose: &'a str, name: &str) -> Result<&'a str> {
    let value = verbose.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.with_context(|| format!("`rustc -vV` does not say its {name}"))
}

/// The installed toolchain with this `release`: by its number, or the one named stable. Otherwise rustup installs it
/// with `components`.
pub(crate) fn of_release(release: &str, components: &[&str]) -> Result<String> {
    let is_it = |name: &str| {
        let version = output(rustup(name).args(["rustc", "-vV"]).stderr(Stdio::null()));
        version.is_ok_and(|verbose| field(&verbose, "release").is_ok_and(|found| found == release))
    };
    if let Some(name) = [release, "stable"].into_iter().find(|name| is_it(name)) {
        return Ok(name.to_owned());
    }
    println!("the compiler {release} is not installed: installing it");
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", release, "--profile", "minimal", "--no-self-update"]);
    install.args(components.iter().flat_map(|component| ["--component", component]));
    shell::run(&mut install).with_context(|| format!("rustup cannot install the compiler {release} here"))?;
    Ok(release.to_owned())
}

/// Provides the standard library's source at the path of `-Z build-std`.
fn source(name: &str, sysroot: &Path, release: &str) -> Result<()> {
    let place = sysroot.join("lib/rustlib/src/rust");
    if place.join("library/core/src/lib.rs").is_file() {
        return Ok(());
    }
    println!("the source of the standard library {release} is not installed: fetching it");
    let added = Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", name]).output();
    if added.is_ok_and(|added| added.status.success()) {
        return Ok(());
    }
    if !Apt::is_here() {
        bail!(
            "rustup cannot add the component rust-src to {name}, and this system has no apt to fetch Debian's package \
             rust-src with"
        );
    }
    for suite in SUITES {
        // A suite that is not in the archive is skipped.
        let Ok(apt) = Apt::new(suite) else { continue };
        let versions = output(apt.command("apt-cache").args(["madison", "rust-src"]))?;
        let Some(version) = version_of(&versions, release) else { continue };
        println!("rust-src {version}: fetching from {suite}");
        let root = apt.unpack(&[&format!("rust-src={version}")])?;
        let unpacked = root.join("usr/src").join(format!("rustc-{release}")).join("library");
        fs::create_dir_all(&place)?;
        return output(Command::new("cp").arg("-r").arg(&unpacked).arg(&place)).map(drop);
    }
    bail!(
        "neither rustup nor Debian's {} have the source of the standard library {release}; put it to {}",
        SUITES.join(", "),
        place.display()
    );
}

/// The package version of `release`, in the output of `apt-cache madison`.
fn version_of<'a>(madison: &'a str, release: &str) -> Option<&'a str> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1).map(str::trim))
        .find(|version| version.strip_prefix(release).is_some_and(|rest| rest.starts_with(['+', '-', '~'])))
}

/// `rustup run` with an installed toolchain.
pub(crate) fn rustup(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    // A missing toolchain is installed only explicitly.
    command.args(["run", toolchain]).env("RUSTUP_AUTO_INSTALL", "0");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_version_is_matched_by_its_release() {
        let madison =
            " rust-src | 1.95.0+dfsg1-1 | archive sid/main amd64 Packages\n rust-src | 1.95.01-1 | x\n";
        assert_eq!(version_of(madison, "1.95.0"), Some("1.95.0+dfsg1-1"));
        assert_eq!(version_of(madison, "1.95"), None);
        assert_eq!(version_of(madison, "1.9"), None);
    }

    #[test]
    fn fields_of_the_compiler_are_found() {
        let verbose = "rustc 1.95.0 (x)\nbinary: rustc\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(field(verbose, "release").unwrap(), "1.95.0");
        assert_eq!(field(verbose, "LLVM version").unwrap(), "22.1.2");
        assert!(field(verbose, "host").is_err());
    }
}
