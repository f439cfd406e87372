//! `cargo xtask ci`: the steps of the continuous integration, in the same order.

use std::{
    num::NonZeroUsize,
    path::Path,
    process::Command,
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};

use crate::{
    demo, dist, ebpf, go, layers, msrv, notice, schema,
    shell::{self, cargo, root, step},
    style,
    test::{self, WITHOUT_EBPF},
    tools::Tool,
};

/// Checks everything that is required before a merge; the tests come last.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The time for all fuzz targets together, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 90)]
    fuzz_seconds: u32,
    #[command(flatten)]
    test: test::Args,
}

/// The documentation is for developers of the project, so it may link to private items.
const DOC_FLAGS: &str = "--deny warnings --allow rustdoc::private-intra-doc-links";
/// Built without the parts that need a network or a C compiler.
const CARGO_DENY: Tool =
    Tool { program: "cargo-deny", package: "cargo-deny", version: "0.20.2", exact: false, wheel: None };
const CARGO_FUZZ: Tool =
    Tool { program: "cargo-fuzz", package: "cargo-fuzz", version: "0.13.2", exact: false, wheel: None };
/// The fuzz targets are a separate workspace, since they are built with a sanitizer.
const FUZZ: &str = "tests/fuzz";

/// Runs the datapaths' tests under two other kernels, if these are available. A stall of an emulated processor
/// sometimes looks like a fault, so only a test that fails twice is a fault.
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
    let started = Instant::now();
    let result = steps(args);
    print!("\n{}", shell::durations());
    result?;
    println!("\nall checks passed in {} s", started.elapsed().as_secs());
    Ok(())
}

fn steps(args: &Args) -> Result<()> {
    let Args { fuzz_seconds, test } = args;
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
    // Fuzzing takes one processor. The tests' tools are built meanwhile.
    let tools = thread::spawn(|| go::tools(false));
    fuzz(*fuzz_seconds)?;
    tools.join().map_err(|_| anyhow!("the build of the tools has panicked"))??;
    step("release build");
    // One build for all optimized binaries: another selection of packages would compile the dependencies again.
    let packages = ["snisplice", "snisplice-tests", "snisplice-bench"].map(|package| ["--package", package]);
    shell::run(cargo().args(["build", "--release", "--bins"]).args(packages.as_flattened()))?;
    step("demo");
    shell::run(&mut demo::Args::plain().built()?)?;
    step("archives");
    dist::run(&dist::Args::of(shell::target()?.join("release/snisplice")))?;
    step("benchmark, to see that it works");
    shell::run(Command::new(shell::target()?.join("release/snisplice-bench")).arg("--smoke"))?;
    test::run(test)
}

/// Checks `Cargo.lock` for known vulnerabilities, if their database is available.
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
        // The sanitizers are part of every stable toolchain on this platform. Only their compiler flags are unstable.
        command.arg("fuzz").current_dir(root()).env("RUSTC_BOOTSTRAP", "1");
        command
    };
    let list = fuzz().args(["list", "--fuzz-dir", FUZZ]).output()?;
    ensure!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr).trim());
    shell::run(fuzz().args(["build", "--fuzz-dir", FUZZ]))?;
    let targets = String::from_utf8(list.stdout)?;
    let targets: Vec<&str> = targets.lines().collect();
    // A target has one thread, so one target runs per processor.
    let at_once = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let batches = u32::try_from(targets.len().div_ceil(at_once)).unwrap_or(1).max(1);
    let limit = format!("-max_total_time={}", (seconds / batches).max(1));
    let limits = [limit, format!("-seed={}", fuzz_seed()?)];
    let run = |target: &str| {
        let mut command = fuzz();
        command.args(["run", "--fuzz-dir", FUZZ, target, "--"]).args(&limits);
        shell::both(command.args(["-verbosity=0", "-print_final_stats=1"]))
    };
    for batch in targets.chunks(at_once) {
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = batch.iter().map(|target| scope.spawn(|| run(target))).collect();
            threads.into_iter().map(ScopedJoinHandle::join).collect()
        });
        for (target, result) in batch.iter().zip(results) {
            let text = result.map_err(|_| anyhow!("the thread of {target} panicked"))??;
            println!("{target}:\n{text}");
        }
    }
    Ok(())
}

/// A seed that follows from the commit: a second run tries the same inputs, and another commit tries others.
fn fuzz_seed() -> Result<u32> {
    let commit = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()).output()?;
    let commit = String::from_utf8_lossy(&commit.stdout);
    // A checkout without history has a fixed seed. For libFuzzer, 0 means a seed from the clock.
    let seed = commit.get(..7).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    Ok(seed.max(1))
}
