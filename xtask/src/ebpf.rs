//! `cargo xtask ebpf`: the eBPF objects that a normal build embeds, one for each kernel datapath.
//!
//! The objects are committed, so that only a change of the programs needs bpf-linker and the standard library's
//! source. [`crate::toolchain`] fetches both for a stable compiler. The same source and compiler produce the same
//! bytes on every machine. Paths are remapped, DWARF is stripped, and neither the workspace's profile nor the host's
//! architecture has an effect.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};
use sha2::{Digest as _, Sha256};

use crate::{
    shell::{self, output, root, step},
    toolchain::{Toolchain, field},
};

/// Rebuilds the committed eBPF objects.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail unless the committed objects are the result of the source with the recorded compiler.
    #[arg(long)]
    check: bool,
    /// Only compare the source with that of the committed objects; build nothing.
    #[arg(long, conflicts_with = "check")]
    check_source: bool,
    /// The toolchain to build with, by its name in rustup [default: the stable release of the committed objects]
    #[arg(long, value_name = "NAME")]
    toolchain: Option<String>,
}

impl Args {
    /// `--check`
    pub(crate) fn check() -> Self {
        Self { check: true, check_source: false, toolchain: None }
    }
}

/// The target of bpf-linker for little-endian objects.
const TARGET: &str = "bpfel-unknown-none";
/// The crate.
const PACKAGE: &str = "snisplice-ebpf";
/// The folder of the objects that a normal build embeds.
const PREBUILT: &str = "ebpf/prebuilt";

/// One of the crate's binaries.
struct Object {
    binary: &'static str,
    /// The name of the committed file and of its record, without the extension.
    name: &'static str,
}

/// All objects.
const OBJECTS: [Object; 2] = [
    Object { binary: "snisplice-sockmap-ebpf", name: "snisplice-sockmap" },
    Object { binary: "snisplice-packet-ebpf", name: "snisplice-packet" },
];

impl Object {
    /// The object that a normal build embeds.
    fn path(&self) -> String {
        format!("{PREBUILT}/{}.bpf.o", self.name)
    }

    /// The record of the build.
    fn record(&self) -> String {
        format!("{PREBUILT}/{}.bpf.txt", self.name)
    }
}

/// The sources of the objects, besides the crates from the registry.
const SOURCES: [&str; 4] = ["common/Cargo.toml", "common/src", "ebpf/Cargo.toml", "ebpf/src"];
/// The crates from the registry that are part of the objects.
const CRATES: [&str; 6] = [
    "aya-ebpf",
    "aya-ebpf-bindings",
    "aya-ebpf-macros",
    "aya-log-common",
    "aya-log-ebpf",
    "aya-log-ebpf-macros",
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { check, check_source, toolchain } = args;
    let source = source()?;
    if *check_source {
        return OBJECTS.iter().try_for_each(|object| committed_is_of(object, &source));
    }
    let toolchain = Toolchain::ready(toolchain.as_deref())?;
    let compiler = compiler(&toolchain)?;
    if *check {
        OBJECTS.iter().try_for_each(|object| same_compiler(object, &compiler))?;
    }
    step("build the eBPF objects");
    let built = build(&toolchain)?;
    for object in &OBJECTS {
        let bytes = stripped(&built.join(object.binary))?;
        let mut record = compiler.clone();
        record.extend(source.clone());
        record.insert("object", digest(&bytes));
        if *check {
            is_committed(object, &bytes, &record)?;
        } else {
            commit(object, &bytes, &record)?;
        }
    }
    Ok(())
}

fn is_committed(object: &Object, bytes: &[u8], record: &Record) -> Result<()> {
    let path = object.path();
    let committed = fs::read(root().join(&path)).with_context(|| path.clone())?;
    ensure!(
        committed == bytes && read_record(object)? == text(object, record)?,
        "{path} is not what the source gives; run `cargo xtask ebpf` and commit {PREBUILT}"
    );
    println!("{path} is what the source gives");
    Ok(())
}

fn commit(object: &Object, bytes: &[u8], record: &Record) -> Result<()> {
    let (path, record_path) = (object.path(), object.record());
    fs::create_dir_all(root().join(PREBUILT))?;
    fs::write(root().join(&path), bytes).with_context(|| path.clone())?;
    fs::write(root().join(&record_path), text(object, record)?).context(record_path)?;
    println!("{path}: {} bytes", bytes.len());
    Ok(())
}

type Record = BTreeMap<&'static str, String>;

fn text(object: &Object, record: &Record) -> Result<String> {
    let mut text = format!(
        "# What {}.bpf.o was built with and from; `cargo xtask ebpf` writes this file.\n",
        object.name
    );
    for (key, value) in record {
        writeln!(text, "{key}: {value}")?;
    }
    Ok(text)
}

fn read_record(object: &Object) -> Result<String> {
    let path = object.record();
    fs::read_to_string(root().join(&path)).context(path)
}

fn recorded(object: &Object, key: &str) -> Result<String> {
    let record = read_record(object)?;
    let value = record.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    Ok(value.with_context(|| format!("{} has no `{key}`", object.record()))?.to_owned())
}

/// The compiler of this machine.
fn compiler(toolchain: &Toolchain) -> Result<Record> {
    let verbose = toolchain.version()?;
    let rustc = verbose.lines().next().context("`rustc -vV` says nothing")?;
    let linker = output(Command::new(&toolchain.linker).arg("--version"))?;
    Ok(Record::from([
        ("rustc", rustc.trim().to_owned()),
        ("llvm", field(&verbose, "LLVM version")?.to_owned()),
        ("linker", linker.trim().to_owned()),
    ]))
}

fn same_compiler(object: &Object, here: &Record) -> Result<()> {
    for (key, here) in here {
        let recorded = recorded(object, key)?;
        if *here != recorded {
            bail!(
                "{} was built with another {key}: `{recorded}`; here is `{here}`.\n\
                 Only the recorded one gives the same bytes: pass it as `--toolchain`, or rebuild with \
                 `cargo xtask ebpf` and commit {PREBUILT}",
                object.path()
            );
        }
    }
    Ok(())
}

/// The sources of the objects.
fn source() -> Result<Record> {
    let mut files = Vec::new();
    for source in SOURCES {
        list(&root().join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root())?.to_str().context("a source file's name is not UTF-8")?;
        hash.update(name);
        hash.update([0]);
        hash.update(Sha256::digest(fs::read(&file)?));
    }
    let mut record = Record::from([("source", hex(&hash.finalize()))]);
    let lock = fs::read_to_string(root().join("Cargo.lock")).context("Cargo.lock")?;
    for name in CRATES {
        record.insert(name, locked(&lock, name).with_context(|| format!("Cargo.lock has no {name}"))?);
    }
    Ok(record)
}

/// The version of a crate in the lock file. The eBPF crate's tree contains the oldest one, since others on the host
/// may use a later one.
fn locked(lock: &str, name: &str) -> Option<String> {
    let entry = format!("name = \"{name}\"\nversion = \"");
    let (_, rest) = lock.split_once(&entry)?;
    Some(rest.split_once('"')?.0.to_owned())
}

fn committed_is_of(object: &Object, source: &Record) -> Result<()> {
    let path = object.path();
    for (key, here) in source {
        ensure!(
            recorded(object, key)? == *here,
            "{path} was built from another source ({key} differs); run `cargo xtask ebpf` and commit {PREBUILT}"
        );
    }
    println!("{path} was built from this source");
    Ok(())
}

fn list(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            list(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}

/// Compiles the crate and returns the directory of the linked objects.
fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let target = shell::target()?.join("ebpf");
    let mut command = toolchain.command();
    command
        .args(["cargo", "build", "--locked", "--release", "--package", PACKAGE])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(root())
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain)?.join("\u{1f}"))
        // The registers that the bindings for tracing programs name. This crate has no such program, but a path would
        // differ.
        .env("AYA_BPF_TARGET_ARCH", "x86_64")
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    // The profile of the objects is set here only.
    for (key, value) in [
        ("OPT_LEVEL", "3"),
        ("LTO", "fat"),
        ("CODEGEN_UNITS", "1"),
        ("DEBUG", "2"),
        ("STRIP", "none"),
        ("PANIC", "abort"),
        ("OVERFLOW_CHECKS", "false"),
        ("DEBUG_ASSERTIONS", "false"),
        ("INCREMENTAL", "false"),
    ] {
        command.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    shell::run(&mut command)?;
    Ok(target.join(TARGET).join("release"))
}

fn flags(toolchain: &Toolchain) -> Result<Vec<String>> {
    let mut flags = vec![
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // The instruction set of every kernel that the datapath supports (Linux 5.1).
        "-Ctarget-cpu=v3".to_owned(),
        format!("--remap-path-prefix={}=snisplice", root().display()),
        format!("--remap-path-prefix={}=rust", toolchain.sysroot.display()),
    ];
    // One directory per registry, named after a hash of its address.
    let registries = cargo_home()?.join("registry/src");
    for registry in fs::read_dir(&registries).with_context(|| registries.display().to_string())? {
        flags.push(format!("--remap-path-prefix={}=registry", registry?.path().display()));
    }
    Ok(flags)
}

fn cargo_home() -> Result<PathBuf> {
    let home = || std::env::home_dir().map(|home| home.join(".cargo"));
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("no home directory")
}

/// Removes DWARF and its references. BTF stays.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let data = fs::read(path).with_context(|| path.display().to_string())?;
    let mut elf = Builder::read(&*data)?;
    for section in &mut elf.sections {
        let name = section.name.to_string();
        section.delete = name.starts_with(".debug_") || name.starts_with(".rel.debug_");
    }
    elf.delete_orphans();
    // LLVM keeps the names of sections and symbols in one table, and the writer needs two.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    for foreign in [root().as_os_str(), cargo_home()?.as_os_str()] {
        let foreign = foreign.as_encoded_bytes();
        ensure!(
            !stripped.windows(foreign.len()).any(|window| window == foreign),
            "the object names a path of this machine, so it would differ elsewhere"
        );
    }
    Ok(stripped)
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
