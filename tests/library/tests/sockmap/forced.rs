//! The same invariants while every direction changes between the kernel and userspace every few milliseconds, at any
//! position of its bytes and its end.

use std::{
    io::ErrorKind,
    net::{Shutdown, TcpStream},
    sync::Mutex,
    thread,
    time::Duration,
};

use libtest_mimic::Trial;

use crate::{
    close,
    data::{Random, Stream, expect_eof, read},
    flow,
    rig::{Link, Options, Rig, wait_until},
    trial,
};

const MIB: u64 = 1024 * 1024;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("forced::100_mib_both_ways_at_once", || flow::exchange(&rig(3).link(), 50 * MIB, 300_000)),
        trial("forced::pieces_of_all_sizes", || flow::exchange(&rig(1).link(), 2 * MIB, 3_000)),
        trial("forced::one_byte_at_a_time", || flow::exchange(&rig(1).link(), 20_000, 1)),
        trial("forced::directions_do_change", directions_do_change),
        trial("forced::slow_readers", slow_readers),
        trial("forced::a_half_close_of_the_client_is_kept", || {
            close::half_close(&rig(1), |link| (&link.client, &link.backend));
        }),
        trial("forced::a_half_close_of_the_backend_is_kept", || {
            close::half_close(&rig(1), |link| (&link.backend, &link.client));
        }),
        trial("forced::fin_at_any_moment", || at_any_moment(fin)),
        trial("forced::reset_at_any_moment", || at_any_moment(reset)),
    ]
}

/// Changes after this number of milliseconds.
fn rig(milliseconds: u64) -> Rig {
    Rig::with(&Options { hold: Some(Duration::from_millis(milliseconds)), ..Options::default() })
}

/// Without changes the other tests would prove nothing.
fn directions_do_change() {
    let rig = rig(2);
    let link = rig.link();
    let (mut up, mut expected, mut random) = (Stream::new(1), Stream::new(1), Random::new(1));
    let counters = || rig.kernel.counters().expect("counters");
    wait_until("bytes take both ways, in turns", || {
        up.send(&link.client, 10_000, 10_000, &mut random).expect("sent");
        expected.expect(&link.backend, 10_000);
        let counters = counters();
        counters.passed_bytes > 100_000 && counters.redirected_bytes > 100_000 && counters.returns > 20
    });
}

fn slow_readers() {
    let rig = rig(2);
    let link = rig.tight_link();
    let ends = [(&link.client, &link.backend, 1), (&link.backend, &link.client, 2)];
    thread::scope(|scope| {
        for (from, to, seed) in ends {
            scope.spawn(move || {
                let sent = Stream::new(seed).send(from, 4 * MIB, 200_000, &mut Random::new(seed));
                sent.expect("the connection holds");
                from.shutdown(Shutdown::Write).expect("FIN");
            });
            scope.spawn(move || {
                let (mut stream, mut random) = (Stream::new(seed), Random::new(seed));
                for _ in 0..64 {
                    thread::sleep(Duration::from_millis(random.below(10) as u64));
                    stream.expect(to, MIB / 16);
                }
                expect_eof(to);
            });
        }
    });
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("finished", 4 * MIB, 4 * MIB));
}

/// Many connections, several at a time, each with an end of its own at its own time.
fn at_any_moment(end: fn(&Link, u64)) {
    const AT_ONCE: u64 = 8;
    const EACH: u64 = 60;
    let rig = rig(1);
    let next = Mutex::new(());
    thread::scope(|scope| {
        for lane in 0..AT_ONCE {
            let (rig, next) = (&rig, &next);
            scope.spawn(move || {
                for round in 0..EACH {
                    // A link takes the listener's next connection.
                    let link = {
                        let _turn = next.lock().expect("nobody has failed");
                        rig.link()
                    };
                    end(&link, lane * EACH + round);
                }
            });
        }
    });
    wait_until("every connection is forgotten", || {
        rig.entries() == [0; 4] && rig.kernel.budget().in_flight().expect("the sum") == 0
    });
}

/// The bytes of one end before it closes its direction, and a pause that decides whether the FIN comes with them.
fn speak(to: &TcpStream, seed: u64) -> u64 {
    let mut random = Random::new(seed ^ 0x5eed_0000);
    // The first numbers of neighbouring seeds are similar.
    for _ in 0..8 {
        random.below(2);
    }
    let bytes = random.below(400_000) as u64;
    Stream::new(seed).send(to, bytes, 100_000, &mut random).expect("sent");
    thread::sleep(Duration::from_micros(random.below(3) as u64 * 700));
    bytes
}

/// Each end sends FIN after its bytes: one after the other, or both at once.
fn fin(link: &Link, seed: u64) {
    let ends = [(&link.client, &link.backend, 2 * seed), (&link.backend, &link.client, 2 * seed + 1)];
    let bytes: Vec<_> = thread::scope(|scope| {
        let speaking = ends.map(|(from, _, seed)| {
            scope.spawn(move || {
                let bytes = speak(from, seed);
                from.shutdown(Shutdown::Write).expect("FIN");
                bytes
            })
        });
        let hearing = ends.map(|(_, to, seed)| scope.spawn(move || hear(to, seed).expect("FIN, no reset")));
        let spoken = speaking.map(|thread| thread.join().expect("spoken"));
        let heard = hearing.map(|thread| thread.join().expect("heard"));
        assert_eq!(spoken, heard, "seed {seed}");
        spoken.into()
    });
    let outcome = link.outcome();
    assert_eq!((outcome.reason, outcome.up, outcome.down), ("finished", bytes[0], bytes[1]), "seed {seed}");
}

/// One end sends bytes and then resets. The other receives the bytes in order and without a gap, and the reset.
fn reset(link: &Link, seed: u64) {
    let (from, to) =
        if seed.is_multiple_of(2) { (&link.client, &link.backend) } else { (&link.backend, &link.client) };
    thread::scope(|scope| {
        scope.spawn(|| {
            speak(from, seed);
            // Resets the connection, while the link keeps the descriptor.
            rustix::net::connect_unspec(from).expect("disconnected");
        });
        assert!(hear(to, seed).is_none(), "FIN instead of a reset, seed {seed}");
    });
    let reason = link.outcome().reason;
    assert!(reason.ends_with("_reset"), "{reason}");
}

/// Reads to the end, and checks every byte. Returns the number of bytes before the FIN, or `None` for a reset.
fn hear(from: &TcpStream, seed: u64) -> Option<u64> {
    let (mut stream, mut heard) = (Stream::new(seed), 0);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match read(from, &mut buffer) {
            Ok(0) => return Some(heard),
            Ok(count) => {
                stream.compare(&buffer[..count]);
                heard += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error} after {heard} bytes"),
        }
    }
}
