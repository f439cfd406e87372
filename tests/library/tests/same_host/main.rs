//! The short cut of backends on this host, on loopback, in the running kernel.
//!
//! If the probes refuse it, the tests are reported as ignored. With `SNISPLICE_REQUIRE_ALL=1` they fail instead.
#![expect(clippy::panic, reason = "a test fails by panicking")]

#[path = "../sockmap/data.rs"]
#[expect(dead_code, reason = "the tests of the datapath itself need more of it")]
mod data;
#[path = "../sockmap/rig.rs"]
#[expect(dead_code, reason = "the tests of the datapath itself need more of it")]
mod rig;
mod trials;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use snisplice::testing::probe;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut report = probe::sockmap();
    if report.passed() {
        report = probe::same_host();
    }
    let required = std::env::var_os("SNISPLICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    if !report.passed() {
        eprintln!("the short cut cannot be tested here:\n{}", report.describe_same_host());
    }
    let ignored = !report.passed() && !required;
    let trials = trials::trials().into_iter().map(|trial| trial.with_ignored_flag(ignored)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A trial that fails by panicking, as a test does.
fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
