//! The sockmap datapath on loopback, in the running kernel.
//!
//! Without the privilege to load programs the tests are reported as ignored. With `SNISPLICE_REQUIRE_ALL=1` they fail
//! instead.
#![expect(clippy::panic, reason = "a test fails by panicking")]

mod close;
mod data;
mod flow;
mod forced;
mod limits;
mod overlap;
mod rig;
mod verifier;

use std::{fs, process::ExitCode};

use libtest_mimic::{Arguments, Trial};
use snisplice::testing::sockmap::{ProgramSettings, Programs};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let usable =
        Programs::load(&ProgramSettings { connections: 1, in_flight_bytes: 1, total_in_flight_bytes: 1 });
    let required = std::env::var_os("SNISPLICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    if let Err(error) = &usable {
        eprintln!("the kernel's part cannot be tested here: {error}");
    }
    let ignored = usable.is_err() && !required;
    let trials = [flow::trials(), close::trials(), limits::trials(), forced::trials(), overlap::trials()]
        .into_iter()
        .flatten();
    let trials = trials.map(|trial| trial.with_ignored_flag(ignored)).collect();
    // Without debugfs, the kernel does not repeat a one-time warning.
    let _ = fs::write("/sys/kernel/debug/clear_warn_once", "1");
    let before = warnings();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let after = warnings();
    if after > before {
        eprintln!("the kernel has warned {} times meanwhile; see dmesg", after - before);
        return ExitCode::FAILURE;
    }
    if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A trial that fails by panicking, as a test does.
fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// The number of traced warnings and errors of the kernel so far, except a known one of the kernel itself:
/// docs/internals/sockmap.md, "Warnings of the kernel that were seen".
fn warnings() -> usize {
    // Non-blocking: a plain read would wait for the next message.
    use std::{io::Read as _, os::unix::fs::OpenOptionsExt as _};
    let log = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let Ok(mut log) = log else { return 0 };
    let mut record = [0; 8192];
    let mut warnings = 0;
    while let Ok(size) = log.read(&mut record) {
        let text = String::from_utf8_lossy(&record[..size]);
        let is_fault = ["WARNING:", "BUG:", "Oops"].iter().any(|mark| text.contains(mark));
        warnings += usize::from(is_fault && !text.contains("inet_sock_destruct"));
    }
    warnings
}
