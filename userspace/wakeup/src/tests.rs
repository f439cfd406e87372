//! One thread marks an event of a connection, and another waits for it. Loom runs them in all orders in which they can
//! reach the lock. It reports a lost wake-up as a deadlock.

use std::future::poll_fn;

use loom::{future::block_on, model::Builder, sync::Arc, thread};

use super::*;

const PASSED: Ready = Ready::of(Peer::Client, What::Passed);
const HANG_UP: Ready = Ready::of(Peer::Backend, What::HangUp);

/// Runs a trial in all orders that its threads can take.
fn in_all_orders(trial: impl Fn() + Sync + Send + 'static) {
    // Every failure needs few preemptions. With any number of them, three threads take a minute.
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(trial);
}

/// Waits like a connection's task.
fn wait(wakeups: &Wakeups, slot: usize, wanted: Ready) -> Ready {
    block_on(poll_fn(|context| wakeups.poll(slot, wanted, context)))
}

fn raise(wakeups: &Arc<Wakeups>, slot: usize, happened: Ready) -> thread::JoinHandle<()> {
    let wakeups = wakeups.clone();
    thread::spawn(move || wakeups.raise(slot, happened))
}

#[test]
fn what_happens_while_a_task_goes_to_sleep_wakes_it() {
    in_all_orders(|| {
        let wakeups = Arc::new(Wakeups::default());
        let slot = wakeups.insert();
        let raising = raise(&wakeups, slot, PASSED);
        assert_eq!(wait(&wakeups, slot, PASSED), PASSED);
        raising.join().expect("nothing panics");
    });
}

#[test]
fn what_two_threads_tell_at_once_is_heard_of_both() {
    in_all_orders(|| {
        let wakeups = Arc::new(Wakeups::default());
        let slot = wakeups.insert();
        let raising = [raise(&wakeups, slot, PASSED), raise(&wakeups, slot, HANG_UP)];
        let mut heard = Ready::default();
        while !(heard.any(PASSED) && heard.any(HANG_UP)) {
            // An event that stays set would be returned repeatedly.
            let wanted = if heard.any(HANG_UP) { PASSED } else { PASSED | HANG_UP };
            heard |= wait(&wakeups, slot, wanted);
        }
        for raising in raising {
            raising.join().expect("nothing panics");
        }
    });
}

#[test]
fn what_is_told_to_all_reaches_who_comes_and_goes() {
    in_all_orders(|| {
        let wakeups = Arc::new(Wakeups::default());
        let (here, leaving) = (wakeups.insert(), wakeups.insert());
        let raising = {
            let wakeups = wakeups.clone();
            thread::spawn(move || wakeups.raise_all(HANG_UP))
        };
        wakeups.remove(leaving);
        assert_eq!(wait(&wakeups, here, HANG_UP), HANG_UP);
        raising.join().expect("nothing panics");
        assert_eq!(wakeups.len(), 1);
    });
}

#[test]
fn what_comes_late_for_one_connection_does_not_keep_the_next_from_waking() {
    in_all_orders(|| {
        let wakeups = Arc::new(Wakeups::default());
        let slot = wakeups.insert();
        let late = raise(&wakeups, slot, PASSED);
        wakeups.remove(slot);
        let next = wakeups.insert();
        assert_eq!(next, slot, "the slot is used again");
        let raising = raise(&wakeups, next, HANG_UP);
        assert_eq!(wait(&wakeups, next, HANG_UP), HANG_UP);
        for raising in [late, raising] {
            raising.join().expect("nothing panics");
        }
    });
}

#[test]
fn a_token_survives_the_kernel() {
    for token in [
        Token { worker: 0, slot: 0, peer: Peer::Client },
        Token { worker: u16::MAX, slot: 0xffff_ffff, peer: Peer::Backend },
    ] {
        assert_eq!(Token::unpack(token.pack()), token);
    }
}

#[test]
fn states_stay_and_edges_are_taken() {
    in_all_orders(|| {
        let wakeups = Wakeups::default();
        let slot = wakeups.insert();
        let hang_up = Ready::of(Peer::Client, What::HangUp);
        let readable = Ready::of(Peer::Client, What::Readable);
        let context = Context::from_waker(Waker::noop());
        wakeups.raise(slot, hang_up | readable);
        assert_eq!(wakeups.poll(slot, readable | hang_up, &context), Poll::Ready(readable | hang_up));
        assert_eq!(wakeups.poll(slot, readable | hang_up, &context), Poll::Ready(hang_up));
        assert_eq!(wakeups.poll(slot, readable, &context), Poll::Pending);
        wakeups.clear(slot, hang_up);
        assert_eq!(wakeups.poll(slot, readable | hang_up, &context), Poll::Pending);
    });
}

#[test]
fn peers_do_not_mix() {
    in_all_orders(|| {
        let wakeups = Wakeups::default();
        let slot = wakeups.insert();
        let context = Context::from_waker(Waker::noop());
        wakeups.raise(slot, Ready::of(Peer::Backend, What::Passed));
        assert_eq!(wakeups.poll(slot, Ready::of(Peer::Client, What::Passed), &context), Poll::Pending);
        assert!(wakeups.poll(slot, Ready::both(What::Passed), &context).is_ready());
    });
}
