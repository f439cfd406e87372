//! `cargo xtask notice`: the licences of all crates that are linked into the daemon or its kernel objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell::{cargo, root};

/// Writes THIRD-PARTY-NOTICES from the licence files of all dependencies.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing: fail if the file is outdated.
    #[arg(long)]
    check: bool,
}

/// The file in the root of the repository, which images and packages contain.
const FILE: &str = "THIRD-PARTY-NOTICES";

/// The packages of the release.
const ROOTS: [&str; 2] = ["snisplice", "snisplice-ebpf"];

/// The platforms of the daemon, as in `deny.toml`.
const PLATFORMS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// The prefixes of the names of licence files.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

impl Args {
    pub(crate) fn check() -> Self {
        Self { check: true }
    }
}

/// One dependency.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: String,
    folder: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let packages = packages()?;
    let text = render(&packages)?;
    let path = root().join(FILE);
    if !args.check {
        fs::write(&path, text)?;
        println!("{FILE}: {} packages", packages.len());
        return Ok(());
    }
    if fs::read_to_string(&path).unwrap_or_default() != text {
        bail!("{FILE} is not up to date: run `cargo xtask notice`, and commit what it writes");
    }
    Ok(())
}

fn packages() -> Result<BTreeSet<Package>> {
    let mut all = BTreeSet::new();
    for platform in PLATFORMS {
        let arguments = ["metadata", "--format-version", "1", "--locked", "--filter-platform", platform];
        let output = cargo().args(arguments).output()?;
        if !output.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        all.extend(linked(&serde_json::from_slice(&output.stdout)?)?);
    }
    Ok(all)
}

/// All packages that the roots link, from the output of `cargo metadata`, without the dependencies of build scripts
/// and tests.
fn linked(metadata: &Value) -> Result<Vec<Package>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|node| (text(&node["id"]), node)).collect();
    let is_root = |package: &Value| ROOTS.contains(&text(&package["name"]).as_str());
    let mut next: Vec<String> =
        packages.iter().filter(|(_, package)| is_root(package)).map(|(id, _)| id.clone()).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    while let Some(id) = next.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        let package = packages.get(&id).with_context(|| format!("{id} is not told"))?;
        let is_macro = list(&package["targets"])
            .iter()
            .any(|target| list(&target["kind"]).iter().any(|kind| kind == "proc-macro"));
        if is_macro {
            continue; // A procedural macro generates code, and is not linked.
        }
        if !package["source"].is_null() {
            let folder = text(&package["manifest_path"]).trim_end_matches("Cargo.toml").to_owned();
            let license = text(&package["license"]);
            found.push(Package {
                name: text(&package["name"]),
                version: text(&package["version"]),
                license: license.replace('/', " OR "),
                folder,
            });
        }
        for dependency in list(&nodes.get(&id).with_context(|| format!("{id} is not resolved"))?["deps"]) {
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                next.push(text(&dependency["pkg"]));
            }
        }
    }
    Ok(found)
}

/// The packages with each licence, and then each text once.
fn render(packages: &BTreeSet<Package>) -> Result<String> {
    let mut out = String::from(
        "Third-party software in snisplice\n\n\
         The daemon and its kernel objects contain the packages below, and parts of the Rust standard library (MIT OR\n\
         Apache-2.0, https://github.com/rust-lang/rust). Where a package may be used under one of several licences, it is\n\
         used here under the first of them that is printed. Written by `cargo xtask notice`.\n\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages {
        let Package { name, version, license, folder } = package;
        writeln!(out, "{name} {version}: {license}")?;
        for text in licences(Path::new(folder), license)? {
            texts.entry(text).or_default().push(format!("{name} {version}"));
        }
    }
    for (text, names) in texts {
        write!(out, "\n{}\n{}\n\n{text}\n", "-".repeat(100), names.join(", "))?;
    }
    Ok(out)
}

/// The licence texts in a package's folder. If the licence is a choice that includes MIT's, only that one and every
/// notice.
fn licences(folder: &Path, license: &str) -> Result<BTreeSet<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if NAMES.iter().any(|start| name.starts_with(start)) && entry.file_type()?.is_file() {
            files.push((name, entry.path()));
        }
    }
    let is_mit = |name: &str| name.contains("MIT");
    if license.contains("MIT") && license.contains("OR") && files.iter().any(|(name, _)| is_mit(name)) {
        files.retain(|(name, _)| is_mit(name) || name.starts_with("NOTICE") || name.starts_with("COPYRIGHT"));
    }
    let read = |path: &Path| -> Result<String> {
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_matches('\n').to_owned())
    };
    files.iter().map(|(_, path)| read(path)).collect()
}
