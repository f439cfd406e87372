//! Finds programs, and installs missing ones on request.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::contestants::{Contestant, Install, Search};

/// The tools of the cross-checks. The Debian package of each has the same name.
pub(crate) const TOOLS: [&str; 2] = ["iperf3", "wrk"];

/// The directory of installed Python packages.
fn wheels() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"));
    cache.join("snisplice-bench")
}

/// Searches this program's directory, PATH, the system directories that a user's PATH may lack, and the usual
/// directories of Envoy's Python package.
pub(crate) fn search(snisplice: Option<&Path>, passes_through: bool) -> Search {
    let beside = env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = beside.into_iter().chain(env::split_paths(&path)).collect();
    directories.extend(["/usr/local/sbin", "/usr/sbin", "/opt/envoy/bin"].map(PathBuf::from));
    directories.push(wheels().join("bin"));
    // <target>/release/snisplice-bench
    let target = env::current_exe().ok().and_then(|path| path.ancestors().nth(2).map(Path::to_owned));
    let peers = target.unwrap_or_default().join("peers");
    Search { snisplice: snisplice.map(Path::to_owned), directories, passes_through, peers }
}

/// Installs the missing requirements of these contestants and of the cross-checks.
pub(crate) fn install(missing: &[&dyn Contestant], tools: &[&str]) -> anyhow::Result<()> {
    let mut packages: Vec<&str> = tools.to_vec();
    let mut python = Vec::new();
    for contestant in missing {
        match contestant.install() {
            Install::Packages(names) => packages.extend(names),
            Install::Wheel(name) => python.push(name),
            Install::Nothing => {}
            other @ (Install::Build(_) | Install::Newest) => {
                eprintln!("{}: not installed from here; {other}", contestant.id());
            }
        }
    }
    packages.sort_unstable();
    packages.dedup();
    if !python.is_empty() {
        packages.push("python3-venv");
    }
    if !packages.is_empty() {
        run("apt-get", &["update"])?;
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        arguments.extend(&packages);
        run("apt-get", &arguments)?;
    }
    if !python.is_empty() {
        let directory = wheels();
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        run("python3", &["-m", "venv", &directory.to_string_lossy()])?;
        let pip = directory.join("bin/pip");
        let mut arguments = vec!["install"];
        arguments.extend(&python);
        run(&pip.to_string_lossy(), &arguments)?;
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    eprintln!("running {program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // A balancer whose package starts a service would take port 80 or 443 of the host.
        .env("RUNLEVEL", "1")
        .status()
        .with_context(|| format!("run {program}"))?;
    if !status.success() {
        bail!("{program} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}

/// The available cross-check tools, with their versions.
pub(crate) fn tool_versions(search: &Search) -> BTreeMap<String, String> {
    TOOLS
        .iter()
        .filter_map(|tool| {
            let program = search.program(tool)?;
            let output = Command::new(program).arg("--version").output().ok()?;
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            Some(((*tool).to_owned(), text.lines().next().unwrap_or("unknown version").trim().to_owned()))
        })
        .collect()
}
