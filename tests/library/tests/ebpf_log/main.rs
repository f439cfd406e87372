//! The kernel programs with their log enabled, in the running kernel: the verifier accepts them, and an event reaches
//! the daemon's log.
//!
//! The level is one for the process, so these tests have a binary of their own. Without the privilege to load programs they
//! are reported as ignored. With `SNISPLICE_REQUIRE_ALL=1` they fail instead.

#[path = "../packet/lab.rs"]
#[expect(dead_code, reason = "the tests of the packet programs need more of it")]
mod lab;

use std::{
    io,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};
use snisplice::testing::{
    ebpf_log::{EbpfLog, set_level},
    packet,
    sockmap::{ProgramSettings, Programs},
};
use snisplice_common::packet::segment::flag;

use self::lab::{Lab, NEXT, Segment, packet, to_the_end};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    set_level(EbpfLog::Info);
    let usable = packet::Programs::load(16);
    let required = std::env::var_os("SNISPLICE_REQUIRE_ALL").is_some_and(|value| value == "1");
    if let Err(error) = &usable {
        eprintln!("the kernel's part cannot be tested here: {error}");
    }
    let ignored = usable.is_err() && !required;
    let trials = [
        trial("the_sockmap_programs_load_with_their_log", sockmap_loads),
        trial("a_reset_made_for_a_flow_is_logged", reset_is_logged),
    ];
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(ignored)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A trial that fails by panicking, as a test does.
fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

fn sockmap_loads() {
    let settings =
        ProgramSettings { connections: 1, in_flight_bytes: 1 << 20, total_in_flight_bytes: 1 << 20 };
    Programs::load(&settings).expect("the kernel takes the programs");
}

/// Collects the lines of `tracing`.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn contain(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).contains(text)
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A SYN on the addresses of a flow that has ended resets the balancer's socket.
fn reset_is_logged() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    subscriber.try_init().expect("the only subscriber of this process");
    let lab = Lab::new(false);
    to_the_end(&lab, false, || ());
    let begin = Segment { seq: 77_777, ack: 0, flags: flag::SYN, payload: Vec::new(), ..Segment::default() };
    assert_eq!(lab.run(&packet(false, 0, &begin)).0, NEXT);
    let started = Instant::now();
    while !lines.contain("reset made for a flow peer=\"10.0.1.2:40000\" balancer=\"10.0.1.1:443\"") {
        assert!(started.elapsed() < Duration::from_secs(60), "the event is not logged: {lines:?}");
        sleep(Duration::from_millis(1));
    }
}
