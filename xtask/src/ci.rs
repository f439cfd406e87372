//! `cargo xtask ci`: the very steps of the continuous integration, in its order.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    demo, ebpf,
    shell::{self, cargo, find, root, step},
    test::{self, WITHOUT_EBPF},
};

/// Checks everything that must hold before a change is merged; the tests come last.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long each fuzz target runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    fuzz_seconds: u32,
    #[command(flatten)]
    test: test::Args,
}

/// The documentation is for those who work on the project, so it may lead to what is private.
const DOC_FLAGS: &str = "--deny warnings --allow rustdoc::private-intra-doc-links";
/// Installed where missing, without the parts that need a network or a C compiler.
const CARGO_DENY: [&str; 6] =
    ["--locked", "cargo-deny", "--version", "0.20.2", "--no-default-features", "--debug"];
const CARGO_FUZZ: [&str; 4] = ["--locked", "cargo-fuzz", "--version", "0.13.2"];
/// The packages with fuzz targets are workspaces of their own: nightly only.
const FUZZ: &str = "tests/fuzz";

/// The datapaths' tests under two kernels besides this machine's, where they can be had. Emulated processors that stand
/// still for a while look like a fault now and then; what fails twice is one.
fn other_kernels() -> Result<()> {
    const RELEASES: [&str; 2] = ["6.12", "7"];
    let vm = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("vm").args(RELEASES).args(["--report", "target/kernels.md"]).current_dir(root());
        anyhow::Ok(command)
    };
    if let Err(error) = shell::run(vm()?.arg("--fetch")) {
        println!("no other kernels here: {error:#}");
        return Ok(());
    }
    shell::run(&mut vm()?).or_else(|error| {
        println!("once more: {error:#}");
        shell::run(&mut vm()?)
    })
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { fuzz_seconds, test } = args;
    let started = Instant::now();
    step("format");
    shell::run(cargo().args(["fmt", "--all", "--check"]))?;
    step("lints");
    let deny = ["--", "--deny", "warnings"];
    shell::run(cargo().args(["clippy", "--workspace", "--all-targets"]).args(WITHOUT_EBPF).args(deny))?;
    step("documentation");
    let doc = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    shell::run(cargo().args(doc).args(WITHOUT_EBPF).env("RUSTDOCFLAGS", DOC_FLAGS))?;
    step("dependencies");
    let deny = tool("cargo-deny", &CARGO_DENY)?;
    let checks = ["check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    shell::run(Command::new(deny).args(checks).current_dir(root()))?;
    step("kernel object");
    ebpf::run(&ebpf::Args::check_source())?;
    if has_recorded_compiler()? {
        ebpf::run(&ebpf::Args::check())?;
    } else {
        println!("the compiler that made it is not here: its bytes are not compared");
    }
    step("other kernels");
    other_kernels()?;
    step("fuzz");
    fuzz(*fuzz_seconds)?;
    step("demo");
    shell::run(&mut demo::Args::plain().command()?)?;
    step("benchmark, to see that it works");
    shell::run(cargo().args(["build", "--release", "--bins", "--package", "snisplice-bench"]))?;
    shell::run(Command::new(shell::target()?.join("release/snisplice-bench")).arg("--smoke"))?;
    test::run(test)?;
    println!("\nall checks passed in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Where `program` is; installs it beside our own build output if it is nowhere.
fn tool(program: &str, install: &[&str]) -> Result<PathBuf> {
    if let Some(path) = find(program) {
        return Ok(path);
    }
    let tools = shell::target()?.join("tools");
    let path = tools.join("bin").join(program);
    if !path.is_file() {
        println!("{program} is not installed: building it");
        shell::run(cargo().args(["install", "--quiet", "--root"]).arg(&tools).args(install))?;
    }
    Ok(path)
}

fn has_nightly() -> bool {
    let version = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// Whether `cargo xtask ebpf --check` can be answered here.
fn has_recorded_compiler() -> Result<bool> {
    if !has_nightly() || find("bpf-linker").is_none() {
        return Ok(false);
    }
    let here = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output()?;
    let record = root().join("ebpf/prebuilt/snisplice.bpf.txt");
    let record = fs::read_to_string(&record).with_context(|| record.display().to_string())?;
    let here = format!("rustc: {}", String::from_utf8_lossy(&here.stdout).trim());
    Ok(record.lines().any(|line| line == here))
}

fn fuzz(seconds: u32) -> Result<()> {
    if !has_nightly() {
        println!("no nightly toolchain: the fuzz targets are not run");
        return Ok(());
    }
    let program = tool("cargo-fuzz", &CARGO_FUZZ)?;
    let fuzz = || {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly"]).arg(&program).arg("fuzz").current_dir(root());
        // Names the cargo that started us, which is not nightly's.
        command.env_remove("CARGO");
        command
    };
    let list = fuzz().args(["list", "--fuzz-dir", FUZZ]).output()?;
    ensure!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr).trim());
    for target in String::from_utf8(list.stdout)?.lines() {
        let limit = format!("-max_total_time={seconds}");
        shell::run(fuzz().args([
            "run",
            "--fuzz-dir",
            FUZZ,
            target,
            "--",
            &limit,
            "-verbosity=0",
            "-print_final_stats=1",
        ]))?;
    }
    Ok(())
}
