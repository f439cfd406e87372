//! `cargo xtask vm`: the datapath's tests under other kernels than this machine's.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use self::{
    kernel::{Kernel, Wanted},
    machine::{Accelerator, Run},
    suite::Suite,
    transcript::{LOG, Section},
    verdict::Verdict,
};
use crate::{
    install,
    shell::{self, step},
};

mod cpio;
mod debian;
mod host;
mod kernel;
mod machine;
mod module;
mod report;
mod suite;
mod transcript;
mod verdict;

/// Boots kernels in virtual machines, and runs the probes and the datapath's tests in each.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "options of a command line")]
pub(crate) struct Args {
    /// Releases or their prefixes: the newest of each is used, from the directory or else from Debian
    #[arg(value_name = "RELEASE", default_values = ["6.1", "6.12", "7"])]
    releases: Vec<Wanted>,
    /// The directory of kernels, also for downloads: RELEASE/vmlinuz and RELEASE/lib/modules/RELEASE in it [default:
    /// `kernels` in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Print the kernels in the directory, and do nothing else
    #[arg(long)]
    list: bool,
    /// Fetch missing kernels, and do nothing else
    #[arg(long)]
    fetch: bool,
    /// Run only tests with this text in their name or in that of their file, such as `relay`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Run the tests under this machine's own kernel too
    #[arg(long)]
    host: bool,
    /// Write the results to this file, as Markdown
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The accelerator of the guests [default: kvm if the processor supports it, else tcg]
    #[arg(long, value_enum)]
    accelerator: Option<Accelerator>,
    /// Concurrent machines [default: one for each two processors, but at least two]
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<NonZeroUsize>,
    /// The time limit of one kernel, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = SECONDS)]
    limit: u64,
    /// Install nothing: a missing program is an error
    #[arg(long)]
    no_install: bool,
}

/// The default time limit of one kernel, in seconds. Emulation is slow.
const SECONDS: u64 = 900;

/// The greatest number of boots of a kernel that fails through its emulation.
const BOOTS: u32 = 3;

/// The programs of this command, and their Debian packages.
const PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("xz", "xz-utils"),
    ("ip", "iproute2"),
];

/// Features of the tests that a cloud kernel may not have built in.
const MODULES: [&str; 9] =
    ["veth", "dummy", "8021q", "tls", "sch_ingress", "sch_netem", "sch_fq", "cls_bpf", "cls_flower"];

/// Installs the programs that boot kernels, and returns the kernels.
fn obtain(releases: &[Wanted], directory: &Path, no_install: bool) -> Result<Vec<Kernel>> {
    step("programs");
    install::programs(&PROGRAMS, no_install)?;
    step("kernels");
    let mut kernels = Vec::new();
    for wanted in releases {
        let kernel = match Kernel::newest_in(directory, wanted)? {
            Some(kernel) => kernel,
            None => debian::fetch(wanted, directory)?,
        };
        println!("{wanted}: {}", kernel.release);
        kernels.push(kernel);
    }
    Ok(kernels)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { releases, kernels, list, fetch, only, host, report, accelerator, jobs, limit, no_install } =
        args;
    let directory = match kernels {
        Some(directory) => directory.clone(),
        None => shell::target()?.join("kernels"),
    };
    if *list {
        for kernel in Kernel::all_in(&directory)? {
            println!("{}", kernel.release);
        }
        return Ok(());
    }
    let kernels = obtain(releases, &directory, *no_install)?;
    if *fetch {
        return Ok(());
    }
    step("tests");
    let suite = Suite::build(only.as_deref())?;

    let accelerator = accelerator.unwrap_or_else(Accelerator::of_this_machine);
    let limit = Duration::from_secs(*limit);
    let mut verdicts = Vec::new();
    if *host {
        let release = host::release()?;
        step(&format!("{release}, this machine's own"));
        let run = host::run(&suite, show(&release))?;
        verdicts.push(judge(&release, &suite, &run));
    }
    step(&format!("guests under {accelerator}"));
    let jobs = jobs.map_or_else(default_jobs, NonZeroUsize::get);
    for batch in kernels.chunks(jobs) {
        let runs: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> =
                batch.iter().map(|kernel| scope.spawn(|| boot(kernel, &suite, accelerator, limit))).collect();
            threads.into_iter().map(ScopedJoinHandle::join).collect()
        });
        for (kernel, run) in batch.iter().zip(runs) {
            let run = run.map_err(|_| anyhow!("the thread of {} panicked", kernel.release))?;
            verdicts.push(judge(&kernel.release, &suite, &run.with_context(|| kernel.release.clone())?));
        }
    }
    step("summary");
    print!("{}", report::table(&verdicts));
    if let Some(path) = report {
        fs::write(path, report::markdown(&verdicts)).with_context(|| path.display().to_string())?;
    }
    let bad: Vec<_> = verdicts.iter().filter(|verdict| !verdict.faults.is_empty()).collect();
    if !bad.is_empty() {
        let releases: Vec<_> = bad.iter().map(|verdict| verdict.release.as_str()).collect();
        bail!("not as it must be: {}", releases.join(", "));
    }
    Ok(())
}

fn boot(kernel: &Kernel, suite: &Suite, accelerator: Accelerator, limit: Duration) -> Result<Run> {
    let initramfs = tempfile::NamedTempFile::new()?;
    let modules = module::in_load_order(&kernel.modules, &MODULES)?;
    suite.write_initramfs(initramfs.path(), &modules)?;
    let boot = || machine::boot(kernel, initramfs.path(), accelerator, limit, show(&kernel.release));
    let mut run = boot()?;
    for _ in 1..BOOTS {
        if !run.died_of_emulation(accelerator) {
            break;
        }
        println!(
            "{} died of a breakpoint of its own, which is the emulation's fault: once more",
            kernel.release
        );
        run = boot()?;
    }
    Ok(run)
}

/// Prints lines as they arrive, with the seconds since the start. Skips the kernel's log, which the verdict
/// evaluates.
fn show(release: &str) -> impl FnMut(&Section, &str) {
    let started = Instant::now();
    move |section, line| {
        let line = line.trim_end();
        if section.name != LOG && !line.is_empty() {
            println!("{release} {:>5.1}  {line}", started.elapsed().as_secs_f64());
        }
    }
}

/// A guest has two processors, but mostly waits.
fn default_jobs() -> usize {
    thread::available_parallelism().map_or(2, NonZeroUsize::get).div_ceil(2).max(2)
}

fn judge(release: &str, suite: &Suite, run: &Run) -> Verdict {
    let verdict = Verdict::of(release, run, |file| suite.tests_of(file));
    for fault in &verdict.faults {
        println!("FAULT: {fault}");
    }
    verdict
}
