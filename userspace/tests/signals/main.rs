//! Where threads meet: one marks what has happened to a connection, another waits for it. Loom takes them through the
//! orders in which they can come to the lock; a wake-up that is lost is a deadlock to it.

#[expect(dead_code, unreachable_pub, unused_imports, reason = "it is the library's, with its tests")]
#[path = "../../src/bpf/wakeup.rs"]
mod signals;

/// Loom's in the place of the library's.
mod sync {
    pub(crate) use std::sync::PoisonError;

    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

use std::{future::poll_fn, process::ExitCode};

use libtest_mimic::{Arguments, Trial};
use loom::{future::block_on, model::Builder, sync::Arc, thread};

use self::signals::{Ready, Side, Signals, What};

const PASSED: Ready = Ready::of(Side::Client, What::Passed);
const HANG_UP: Ready = Ready::of(Side::Backend, What::HangUp);

fn main() -> ExitCode {
    let trial = |name: &'static str, test: fn()| {
        Trial::test(name, move || {
            // Whatever goes wrong needs few preemptions; with any number of them, three threads take a minute.
            let mut model = Builder::new();
            model.preemption_bound = Some(3);
            model.check(test);
            Ok(())
        })
    };
    let trials = vec![
        trial("what_happens_while_a_task_goes_to_sleep_wakes_it", wakes),
        trial("what_two_threads_tell_at_once_is_heard_of_both", hears_both),
        trial("what_is_told_to_all_reaches_who_comes_and_goes", reaches_all),
        trial("what_comes_late_for_one_connection_does_not_keep_the_next_from_waking", next_wakes),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// As a connection's task waits.
fn wait(signals: &Signals, slot: usize, wanted: Ready) -> Ready {
    block_on(poll_fn(|context| signals.poll(slot, wanted, context)))
}

fn raise(signals: &Arc<Signals>, slot: usize, happened: Ready) -> thread::JoinHandle<()> {
    let signals = signals.clone();
    thread::spawn(move || signals.raise(slot, happened))
}

fn wakes() {
    let signals = Arc::new(Signals::default());
    let slot = signals.insert();
    let raising = raise(&signals, slot, PASSED);
    assert_eq!(wait(&signals, slot, PASSED), PASSED);
    raising.join().expect("nothing panics");
}

fn hears_both() {
    let signals = Arc::new(Signals::default());
    let slot = signals.insert();
    let raising = [raise(&signals, slot, PASSED), raise(&signals, slot, HANG_UP)];
    let mut heard = Ready::default();
    while !(heard.any(PASSED) && heard.any(HANG_UP)) {
        // What stays would be heard again and again.
        let wanted = if heard.any(HANG_UP) { PASSED } else { PASSED | HANG_UP };
        heard |= wait(&signals, slot, wanted);
    }
    for raising in raising {
        raising.join().expect("nothing panics");
    }
}

fn reaches_all() {
    let signals = Arc::new(Signals::default());
    let (here, leaving) = (signals.insert(), signals.insert());
    let raising = {
        let signals = signals.clone();
        thread::spawn(move || signals.raise_all(HANG_UP))
    };
    signals.remove(leaving);
    assert_eq!(wait(&signals, here, HANG_UP), HANG_UP);
    raising.join().expect("nothing panics");
    assert_eq!(signals.len(), 1);
}

fn next_wakes() {
    let signals = Arc::new(Signals::default());
    let slot = signals.insert();
    let late = raise(&signals, slot, PASSED);
    signals.remove(slot);
    let next = signals.insert();
    assert_eq!(next, slot, "the slot is used again");
    let raising = raise(&signals, next, HANG_UP);
    assert_eq!(wait(&signals, next, HANG_UP), HANG_UP);
    for raising in [late, raising] {
        raising.join().expect("nothing panics");
    }
}
