//! The end of connections: FIN and RST of each side, at any time.

use std::{
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use libtest_mimic::Trial;
use snisplice::testing::{Carrier, sockmap::Ineligible};

use crate::{
    data::{Random, Stream, expect_eof, expect_reset},
    rig::{Link, Options, PATIENCE, Rig},
    trial,
};

const MIB: u64 = 1024 * 1024;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_half_close_of_the_client_is_kept", || {
            half_close(&Rig::new(), |link| (&link.client, &link.backend));
        }),
        trial("a_half_close_of_the_backend_is_kept", || {
            half_close(&Rig::new(), |link| (&link.backend, &link.client));
        }),
        trial("fin_waits_for_a_slow_reader", fin_waits_for_a_slow_reader),
        trial("a_client_that_is_done_is_relayed", a_client_that_is_done),
        trial("a_backend_that_is_done_is_relayed", a_backend_that_is_done),
        trial("a_reset_of_the_client_reaches_the_backend", || {
            reset("client_reset", |link| (link.client, link.backend));
        }),
        trial("a_reset_of_the_backend_reaches_the_client", || {
            reset("backend_reset", |link| (link.backend, link.client));
        }),
        trial("a_last_answer_precedes_the_reset", a_last_answer_precedes_the_reset),
        trial("a_reset_is_noticed_while_the_other_side_is_full", reset_while_full),
        trial("an_idle_connection_is_given_up", idle),
        trial("a_dropped_connection_is_closed", dropped),
    ]
}

pub(crate) fn half_close(rig: &Rig, ends: fn(&Link) -> (&TcpStream, &TcpStream)) {
    let link = rig.link();
    let (first, second) = ends(&link);
    thread::scope(|scope| {
        scope.spawn(|| {
            Stream::new(1).send(first, 5 * MIB, 100_000, &mut Random::new(1)).expect("sent");
            first.shutdown(Shutdown::Write).expect("FIN");
        });
        Stream::new(1).expect(second, 5 * MIB);
        expect_eof(second);
        // The other direction is still open, and in the kernel.
        scope.spawn(|| {
            Stream::new(2).send(second, 5 * MIB, 100_000, &mut Random::new(2)).expect("sent");
            second.shutdown(Shutdown::Write).expect("FIN");
        });
        Stream::new(2).expect(first, 5 * MIB);
        expect_eof(first);
    });
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("finished", 5 * MIB, 5 * MIB));
    assert_eq!(rig.entries(), [0; 4]);
}

fn fin_waits_for_a_slow_reader() {
    let rig = Rig::new();
    let link = rig.tight_link();
    let mut stream = Stream::new(1);
    let sent = stream.send_until_blocked(&link.client, Duration::from_secs(1));
    link.client.shutdown(Shutdown::Write).expect("FIN");
    assert!(sent > MIB, "only {sent} bytes fit");
    Stream::new(1).expect(&link.backend, sent);
    expect_eof(&link.backend);
    link.backend.shutdown(Shutdown::Write).expect("FIN");
    expect_eof(&link.client);
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("finished", sent, 0));
}

fn a_client_that_is_done() {
    let rig = Rig::new();
    let link = rig.link_after(|client, _| {
        Stream::new(1).send(client, 1_000, 1_000, &mut Random::new(1)).expect("sent");
        client.shutdown(Shutdown::Write).expect("FIN");
        wait_for_loopback();
    });
    Stream::new(1).expect(&link.backend, 1_000);
    expect_eof(&link.backend);
    Stream::new(2).send(&link.backend, 1_000, 1_000, &mut Random::new(1)).expect("sent");
    link.backend.shutdown(Shutdown::Write).expect("FIN");
    Stream::new(2).expect(&link.client, 1_000);
    expect_eof(&link.client);
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.carrier), ("finished", Some(Carrier::Relay)));
    assert_eq!(rig.kernel.stats().fallbacks(Ineligible::PeerClosed), 1);
    assert_eq!(rig.entries(), [0; 4]);
}

fn a_backend_that_is_done() {
    let rig = Rig::new();
    let link = rig.link_after(|_, backend| {
        Stream::new(2).send(backend, 1_000, 1_000, &mut Random::new(1)).expect("sent");
        backend.shutdown(Shutdown::Write).expect("FIN");
        wait_for_loopback();
    });
    Stream::new(2).expect(&link.client, 1_000);
    expect_eof(&link.client);
    Stream::new(1).send(&link.client, 1_000, 1_000, &mut Random::new(1)).expect("sent");
    link.client.shutdown(Shutdown::Write).expect("FIN");
    Stream::new(1).expect(&link.backend, 1_000);
    expect_eof(&link.backend);
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("finished", 1_000, 1_000));
    assert_eq!(rig.kernel.stats().fallbacks(Ineligible::PeerClosed), 1);
}

/// A packet on loopback is received before its send call returns, unless the receiver's side is deferred to another
/// core.
fn wait_for_loopback() {
    thread::sleep(Duration::from_millis(20));
}

fn abort(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
    drop(stream);
}

fn reset(reason: &str, ends: fn(Ends) -> (TcpStream, TcpStream)) {
    let rig = Rig::new();
    let link = rig.link();
    exchange_a_little(&link);
    let (outcome, ends_of) = taken_apart(link);
    let (first, second) = ends(ends_of);
    abort(first);
    expect_reset(&second);
    assert_eq!(outcome(), reason);
    assert_eq!(rig.entries(), [0; 4]);
}

struct Ends {
    client: TcpStream,
    backend: TcpStream,
}

fn taken_apart(link: Link) -> (impl FnOnce() -> &'static str, Ends) {
    let Link { client, backend, outcome, leash } = link;
    let wait = move || {
        let reason = outcome.recv_timeout(PATIENCE).expect("the connection ends").reason;
        drop(leash);
        reason
    };
    (wait, Ends { client, backend })
}

fn exchange_a_little(link: &Link) {
    Stream::new(1).send(&link.client, 1_000, 1_000, &mut Random::new(1)).expect("sent");
    Stream::new(1).expect(&link.backend, 1_000);
    Stream::new(2).send(&link.backend, 1_000, 1_000, &mut Random::new(1)).expect("sent");
    Stream::new(2).expect(&link.client, 1_000);
}

fn a_last_answer_precedes_the_reset() {
    let rig = Rig::new();
    let link = rig.link();
    let (outcome, Ends { client, backend }) = taken_apart(link);
    Stream::new(2).send(&backend, MIB, 10_000, &mut Random::new(1)).expect("sent");
    Stream::new(2).expect(&client, MIB / 2);
    abort(backend);
    let mut rest = Stream::new(2);
    rest.skip(MIB / 2);
    rest.expect(&client, MIB / 2);
    expect_reset(&client);
    assert_eq!(outcome(), "backend_reset");
}

fn reset_while_full() {
    let rig = Rig::new();
    let link = rig.tight_link();
    let sent = Stream::new(1).send_until_blocked(&link.client, Duration::from_secs(1));
    assert!(sent > MIB);
    let (outcome, Ends { client, backend }) = taken_apart(link);
    abort(client);
    // The backend has read no byte, which is not necessary to detect the reset.
    assert_eq!(outcome(), "client_reset");
    expect_reset(&backend);
    assert_eq!(rig.entries(), [0; 4]);
}

fn idle() {
    let rig = Rig::with(&Options { idle: Duration::from_millis(300), ..Options::default() });
    let link = rig.link();
    exchange_a_little(&link);
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("idle_timeout", 1_000, 1_000));
    expect_eof(&link.client);
    expect_eof(&link.backend);
}

fn dropped() {
    let rig = Rig::new();
    let link = rig.link();
    exchange_a_little(&link);
    let Link { client, backend, outcome, leash } = link;
    drop(leash);
    let outcome = outcome.recv_timeout(PATIENCE).expect("the connection ends");
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("dropped", 1_000, 1_000));
    expect_eof(&client);
    expect_eof(&backend);
    assert_eq!(rig.entries(), [0; 4]);
}
