//! Kernel modules that the guest loads, each after its dependencies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use object::read::{Object as _, ObjectSection as _, elf::ElfFile64};

use crate::shell;

/// A module as the kernel loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) image: Vec<u8>,
}

/// The modules `names` and their dependencies, from the files below `directory`.
///
/// A missing module is skipped. Either it is built in, or the kernel lacks the feature, and a test then reports that.
pub(super) fn in_load_order(directory: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    list(directory, &mut files)?;
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        visit(name, &files, &mut seen, &mut order)?;
    }
    Ok(order)
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<Module>,
) -> Result<()> {
    let name = normal(name);
    let Some(file) = files.get(&name) else { return Ok(()) };
    if !seen.insert(name.clone()) {
        return Ok(());
    }
    let image = read(file).with_context(|| file.display().to_string())?;
    for dependency in dependencies(&image).with_context(|| file.display().to_string())? {
        visit(&dependency, files, seen, order)?;
    }
    order.push(Module { name, image });
    Ok(())
}

fn list(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        // `build` and `source` lead out of the directory.
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            list(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz" | "ko.zst")) =
            path.file_name().and_then(|name| name.to_str()?.split_once('.'))
        {
            files.insert(normal(name), path);
        }
    }
    Ok(())
}

/// In the name of a module, the kernel treats `-` and `_` as equal.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let unpacker = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(file)?),
    };
    let mut command = Command::new(unpacker);
    shell::bytes(command.args(["--decompress", "--stdout"]).arg(file))
}

/// The dependencies of a module: `depends=a,b` among the strings of its section `.modinfo`.
fn dependencies(image: &[u8]) -> Result<Vec<String>> {
    let file: ElfFile64<'_> = ElfFile64::parse(image)?;
    let Some(section) = file.section_by_name(".modinfo") else { bail!("no section `.modinfo`") };
    let mut strings = section.data()?.split(|byte| *byte == 0);
    let depends = strings.find_map(|string| string.strip_prefix(b"depends=")).unwrap_or_default();
    let depends = std::str::from_utf8(depends)?;
    Ok(depends.split(',').filter(|name| !name.is_empty()).map(normal).collect())
}
