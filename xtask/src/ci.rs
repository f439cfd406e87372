//! `cargo xtask ci`: the very steps of the continuous integration, in its order.

use std::{path::Path, process::Command, thread, time::Instant};

use anyhow::{Result, anyhow, ensure};

use crate::{
    demo, dist, ebpf, go, layers, msrv, notice, schema,
    shell::{self, cargo, root, step},
    style,
    test::{self, WITHOUT_EBPF},
    tools::Tool,
};

/// Checks everything that must hold before a change is merged; the tests come last.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long the fuzz targets run, all of them together.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    fuzz_seconds: u32,
    #[command(flatten)]
    test: test::Args,
}

/// The documentation is for those who work on the project, so it may lead to what is private.
const DOC_FLAGS: &str = "--deny warnings --allow rustdoc::private-intra-doc-links";
/// Built without the parts that need a network or a C compiler.
const CARGO_DENY: Tool =
    Tool { program: "cargo-deny", package: "cargo-deny", version: "0.20.2", exact: false, wheel: None };
const CARGO_FUZZ: Tool =
    Tool { program: "cargo-fuzz", package: "cargo-fuzz", version: "0.13.2", exact: false, wheel: None };
/// The fuzz targets are a workspace of their own, since they are built with a sanitizer.
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
    step("style");
    style::run(&style::Args::check())?;
    step("layers");
    layers::run(&layers::Args {})?;
    step("reference of the configuration");
    schema::run(&schema::Args::check())?;
    step("lints");
    let deny = ["--", "--deny", "warnings"];
    shell::run(cargo().args(["clippy", "--workspace", "--all-targets"]).args(WITHOUT_EBPF).args(deny))?;
    step("minimum Rust version");
    msrv::run(&msrv::Args::if_it_can_be_had())?;
    step("documentation");
    let doc = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    shell::run(cargo().args(doc).args(WITHOUT_EBPF).env("RUSTDOCFLAGS", DOC_FLAGS))?;
    step("dependencies");
    let deny = CARGO_DENY.path(&["--no-default-features", "--debug"])?;
    let checks = ["check", "--hide-inclusion-graph", "bans", "licenses", "sources"];
    shell::run(Command::new(&deny).args(checks).current_dir(root()))?;
    advisories(&deny)?;
    notice::run(&notice::Args::check())?;
    step("kernel object");
    ebpf::run(&ebpf::Args::check())?;
    step("other kernels");
    other_kernels()?;
    step("fuzz");
    // Fuzzing takes one processor. What the tests run is built meanwhile.
    let tools = thread::spawn(|| go::tools(false));
    fuzz(*fuzz_seconds)?;
    tools.join().map_err(|_| anyhow!("the build of the tools has panicked"))??;
    step("demo");
    shell::run(&mut demo::Args::plain().command()?)?;
    step("archives");
    dist::run(&dist::Args::of(shell::target()?.join("release/snisplice")))?;
    step("benchmark, to see that it works");
    shell::run(cargo().args(["build", "--release", "--bins", "--package", "snisplice-bench"]))?;
    shell::run(Command::new(shell::target()?.join("release/snisplice-bench")).arg("--smoke"))?;
    test::run(test)?;
    println!("\nall checks passed in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Looks for known weaknesses of what is in `Cargo.lock`, where their database can be had.
fn advisories(deny: &Path) -> Result<()> {
    let fetched = Command::new(deny).args(["fetch", "db"]).current_dir(root()).output()?;
    if !fetched.status.success() {
        println!("the database of advisories cannot be had here: they are not checked");
        return Ok(());
    }
    let checks = ["check", "--disable-fetch", "--hide-inclusion-graph", "advisories"];
    shell::run(Command::new(deny).args(checks).current_dir(root()))
}

fn fuzz(seconds: u32) -> Result<()> {
    let program = CARGO_FUZZ.path(&[])?;
    let fuzz = || {
        let mut command = Command::new(&program);
        // The sanitizers are part of every stable toolchain on this platform; the flags that name them are unstable.
        command.arg("fuzz").current_dir(root()).env("RUSTC_BOOTSTRAP", "1");
        command
    };
    let list = fuzz().args(["list", "--fuzz-dir", FUZZ]).output()?;
    ensure!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr).trim());
    let seed = fuzz_seed()?;
    let targets = String::from_utf8(list.stdout)?;
    let count = u32::try_from(targets.lines().count()).unwrap_or(1).max(1);
    let seconds = (seconds / count).max(1);
    for target in targets.lines() {
        let limit = format!("-max_total_time={seconds}");
        let seed = format!("-seed={seed}");
        shell::run(fuzz().args([
            "run",
            "--fuzz-dir",
            FUZZ,
            target,
            "--",
            &limit,
            &seed,
            "-verbosity=0",
            "-print_final_stats=1",
        ]))?;
    }
    Ok(())
}

/// A number that belongs to the commit: a second run tries the same inputs, and each commit tries others.
fn fuzz_seed() -> Result<u32> {
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()).output()?;
    let commit = String::from_utf8_lossy(&commit.stdout);
    // A checkout without its history has one seed. libFuzzer takes 0 for "by the clock".
    let seed = commit.get(..7).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    Ok(seed.max(1))
}
