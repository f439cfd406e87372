//! Runs the end-to-end tests: each in a lab of its own, and under each of its datapaths.
//!
//! A test whose requirements this machine does not meet is reported as ignored, with the reason. With
//! `SNISPLICE_REQUIRE_ALL=1` it fails instead, so that a test cannot pass without running. Only features that the
//! running kernel lacks ([`Lacking`]) are ignored even then.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode},
};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{
    daemon, kernel,
    lab::{self, Datapath, Lab},
};

/// One end-to-end test.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// `topic::name`.
    pub name: &'static str,
    /// The function of the test.
    pub test: fn(&Lab) -> Result<()>,
    /// The datapaths under which the test runs, once each.
    pub datapaths: &'static [Datapath],
}

impl Case {
    /// A test that runs under every datapath.
    #[must_use]
    pub const fn each(name: &'static str, test: fn(&Lab) -> Result<()>) -> Self {
        const ALL: &[Datapath] =
            &[Datapath::Relay, Datapath::Sockmap, Datapath::Adaptive, Datapath::Auto, Datapath::Packet];
        Self { name, test, datapaths: ALL }
    }

    /// A test of the balancer's sockets that forward bytes, which the packet datapath does not do.
    #[must_use]
    pub const fn sockets(name: &'static str, test: fn(&Lab) -> Result<()>) -> Self {
        Self { name, test, datapaths: &[Datapath::Relay, Datapath::Sockmap, Datapath::Adaptive] }
    }

    /// A test that forwards no byte, or that concerns the datapath without privileges.
    #[must_use]
    pub const fn once(name: &'static str, test: fn(&Lab) -> Result<()>) -> Self {
        Self { name, test, datapaths: &[Datapath::Relay] }
    }

    /// A test of an offload in mid-flow.
    #[must_use]
    pub const fn adaptive(name: &'static str, test: fn(&Lab) -> Result<()>) -> Self {
        Self { name, test, datapaths: &[Datapath::Adaptive] }
    }

    /// A test of the packet datapath only.
    #[must_use]
    pub const fn packet(name: &'static str, test: fn(&Lab) -> Result<()>) -> Self {
        Self { name, test, datapaths: &[Datapath::Packet] }
    }

    /// A test of the sockmap datapath only.
    #[must_use]
    pub const fn sockmap(name: &'static str, test: fn(&Lab) -> Result<()>) -> Self {
        Self { name, test, datapaths: &[Datapath::Sockmap] }
    }
}

/// The error of a test whose requirements this machine does not meet.
#[derive(Debug)]
pub struct Unable(pub String);

impl std::fmt::Display for Unable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unable {}

/// The error for a missing program.
fn needs(program: &str) -> Unable {
    Unable(format!("needs {program}: `cargo xtask test` installs it"))
}

/// The error for a program that could not be started.
#[must_use]
pub fn not_started(command: &Command, error: io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => needs(&program).into(),
        _ => anyhow::Error::new(error).context(format!("cannot start {program}")),
    }
}

/// The error of a test of a feature that the running kernel lacks, and that no package can add. The test is ignored
/// with the reason in every environment.
#[derive(Debug)]
pub struct Lacking(pub String);

impl std::fmt::Display for Lacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacking {}

/// Runs `cases` as a test binary for cargo, then searches the kernel's log for faults.
#[must_use]
pub fn run(cases: &[Case]) -> ExitCode {
    let mut args = Arguments::from_args();
    // The tests mostly wait.
    args.test_threads.get_or_insert(4);
    let missing = missing();
    if missing.is_none()
        && let Err(error) = lab::sweep()
    {
        eprintln!("{error:#}");
    }
    let log = kernel::Log::from_now();
    let trials = cases.iter().flat_map(|case| {
        let missing = missing.clone();
        case.datapaths.iter().map(move |datapath| trial(*case, *datapath, missing.clone()))
    });
    let conclusion = libtest_mimic::run(&args, trials.collect());
    // Runs last and alone, since any other test may have caused the fault.
    let last = libtest_mimic::run(
        &args,
        vec![Trial::ignorable_test("kernel_log_is_clean", move || {
            if let Some(reason) = missing {
                return skip(&reason);
            }
            let faults = log.and_then(|mut log| log.faults()).map_err(|error| format!("{error:#}"))?;
            if faults.is_empty() { Ok(Completion::Completed) } else { Err(faults.join("\n").into()) }
        })],
    );
    if conclusion.has_failed() { conclusion.exit_code() } else { last.exit_code() }
}

fn trial(case: Case, datapath: Datapath, missing: Option<String>) -> Trial {
    let Case { name, test, datapaths } = case;
    let name = if datapaths.len() > 1 { format!("{name}::{}", datapath.name()) } else { name.to_owned() };
    Trial::ignorable_test(name, move || {
        if let Some(reason) = missing {
            return skip(&reason);
        }
        let lab = Lab::new(datapath).map_err(|error| format!("cannot build the lab: {error:#}"))?;
        let result = catch_unwind(AssertUnwindSafe(|| test(&lab)));
        match result {
            Ok(Ok(())) => Ok(Completion::Completed),
            Ok(Err(error)) => match (error.downcast_ref(), error.downcast_ref()) {
                (Some(Unable(reason)), _) => skip(reason),
                (_, Some(Lacking(reason))) => Ok(Completion::ignored_with(reason)),
                _ => Err(format!("{error:#}\n{}", lab.logs()).into()),
            },
            Err(panic) => {
                let message = panic.downcast_ref::<String>().map(String::as_str);
                let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked");
                Err(format!("{message}\n{}", lab.logs()).into())
            }
        }
    })
}

fn skip(reason: &str) -> Result<Completion, Failed> {
    let all_required = std::env::var_os("SNISPLICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    if all_required { Err(reason.into()) } else { Ok(Completion::ignored_with(reason)) }
}

/// The reason why the tests cannot run here.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root: network namespaces and eBPF".to_owned());
    }
    if let Err(error) = daemon::binary() {
        return Some(format!("{error:#}"));
    }
    let absent = Command::new("ip").arg("-V").output().is_err();
    absent.then(|| needs("ip").to_string())
}
