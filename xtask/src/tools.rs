//! Programs that a command runs, fetched or built below cargo's target directory where they are missing.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::shell::{self, cargo, find};

/// A program that `cargo install` builds, or that a Python package carries built.
pub(crate) struct Tool {
    /// The name of the program.
    pub(crate) program: &'static str,
    /// Its package for `cargo install`.
    pub(crate) package: &'static str,
    /// The version that is fetched or built, and the only one that counts where `exact` says so.
    pub(crate) version: &'static str,
    /// Whether another version on the search path does not do.
    pub(crate) exact: bool,
    /// The Python package whose wheel carries the program. pip fetches it in seconds; a build takes minutes.
    pub(crate) wheel: Option<&'static str>,
}

impl Tool {
    /// Where the program is: on the search path, or below cargo's target directory. Where it is in neither, pip fetches
    /// the wheel that carries it; without a wheel or pip, `cargo install` builds it, with further `options`.
    pub(crate) fn path(&self, options: &[&str]) -> Result<PathBuf> {
        let Self { program, package, version, exact, wheel } = *self;
        let tools = shell::target()?.join("tools");
        let built = tools.join("bin").join(program);
        let wheels = tools.join("wheels").join(format!("{package}-{version}"));
        let fetched = wheels.join("bin").join(program);
        let known = [find(program), Some(fetched.clone()), Some(built.clone())];
        let known = known.into_iter().flatten().filter(|path| path.is_file());
        if let Some(path) = known.into_iter().find(|path| !exact || has_version(path, version)) {
            return Ok(path);
        }
        if let Some(wheel) = wheel {
            println!("{program} {version} is not installed: fetching it with pip");
            match pip(wheel, version, &wheels) {
                Ok(()) if fetched.is_file() => return Ok(fetched),
                Ok(()) => println!("the Python package {wheel} {version} has no program {program}"),
                Err(error) => println!("{error:#}"),
            }
        }
        println!("{program} {version} is not installed: building it");
        // Stable builds what needs unstable features of the compiler, too: bpf-linker wants its LLVM.
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--force", "--root"]).arg(&tools);
        install.args([package, "--version", version]).args(options).env("RUSTC_BOOTSTRAP", "1");
        shell::run(&mut install)?;
        Ok(built)
    }
}

/// Unpacks a wheel into `directory`. The interpreter's own packages stay as they are.
pub(crate) fn pip(package: &str, version: &str, directory: &Path) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    // A source package would be built here, with another toolchain than the project's.
    pip.args(["--only-binary", ":all:", "--upgrade", "--target"]).arg(directory);
    pip.arg(format!("{package}=={version}"));
    shell::run(&mut pip)
}

fn has_version(program: &Path, version: &str) -> bool {
    let said = shell::output(Command::new(program).arg("--version"));
    said.is_ok_and(|said| said.split_whitespace().any(|word| word == version))
}
