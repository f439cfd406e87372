//! Invariants for bytes on either path.

use std::{
    io::{ErrorKind, Read, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData, SockHash};
use libtest_mimic::Trial;
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    io::retry_on_intr,
};
use snisplice::testing::{Carrier, sockopt};
use snisplice_common::{
    Cookie,
    sockmap::shortcut::{BackendEnd, Shortcut, ShortcutCounters},
};

use crate::{
    data::{Random, Stream, expect_eof, read},
    rig::{Link, Options, PATIENCE, Rig},
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("what_the_backend_sends_takes_the_short_cut", takes_it),
        trial("every_byte_in_order_from_way_to_way", from_way_to_way),
        trial("both_ways_at_once", both_ways),
        trial("client_that_never_reads", deaf_client),
        trial("edge_triggered_backend_neither_hangs_nor_spins", edge_triggered),
        trial("other_clients_of_the_backend_are_left_alone", others),
        trial("half_close", half_close),
        trial("reset_of_either_side", resets),
        trial("a_connection_with_traffic_on_the_short_cut_is_not_idle", not_idle),
        trial("nothing_is_left_behind", nothing_left_behind),
    ];
    if has_ktls() {
        trials.push(trial("a_protocol_on_top_closes_the_short_cut", protocol_on_top));
    } else {
        eprintln!("this kernel has no kTLS, so that there is nothing to be tested with it");
    }
    trials
}

fn has_ktls() -> bool {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
    sockopt::set_upper_protocol(&stream, "tls").is_ok()
}

const MIB: u64 = 1024 * 1024;
/// The limit of the bytes in one direction: both send buffers, bytes in flight, both receive buffers.
const HELD: u64 = 32 * MIB;

fn enabled() -> Rig {
    Rig::with(&Options { same_host: true, ..Options::default() })
}

/// A forwarded connection to a backend on this host that was announced as such.
fn link(rig: &Rig) -> Link {
    let same_host = rig.kernel.same_host().expect("loaded");
    let marks = MapData::from_fd(same_host.upstream().expect("a descriptor")).expect("a map");
    let mut marks = HashMap::<_, Cookie, Cookie>::try_from(Map::LruHashMap(marks)).expect("a hash");
    let (ours, backend) = rig.pair_after(None, |ours| {
        let cookie = rustix::net::sockopt::socket_cookie(ours).expect("SO_COOKIE");
        marks.insert(cookie, 0, 0).expect("a mark");
    });
    rig.start(rig.pair_after(None, |_| {}), (backend, ours), true)
}

fn counters(rig: &Rig) -> ShortcutCounters {
    rig.kernel.same_host().expect("loaded").counters().expect("counters")
}

/// The numbers of enrolled sockets of backends, of entries about them and the balancer's sockets, and of short cuts.
fn entries(rig: &Rig) -> [usize; 4] {
    let same_host = rig.kernel.same_host().expect("loaded");
    let data = |fd: std::io::Result<OwnedFd>| MapData::from_fd(fd.expect("a descriptor")).expect("a map");
    let local = SockHash::<_, Cookie>::try_from(Map::SockHash(data(same_host.local()))).expect("a sockhash");
    let shortcuts =
        HashMap::<_, Cookie, Shortcut>::try_from(Map::HashMap(data(same_host.shortcuts()))).expect("a hash");
    let upstream =
        HashMap::<_, Cookie, Cookie>::try_from(Map::LruHashMap(data(same_host.upstream()))).expect("a hash");
    let backend = HashMap::<_, Cookie, BackendEnd>::try_from(Map::LruHashMap(data(same_host.backend())))
        .expect("a hash");
    [local.keys().count(), upstream.keys().count(), backend.keys().count(), shortcuts.keys().count()]
}

/// A question and its answer.
fn exchange(link: &Link, number: u64) {
    let question = number.to_be_bytes();
    let mut got = [0; 8];
    (&link.client).write_all(&question).expect("sent");
    Ear(&link.backend).read_exact(&mut got).expect("received");
    assert_eq!(got, question);
    (&link.backend).write_all(&question).expect("answered");
    (&link.client).read_exact(&mut got).expect("received");
    assert_eq!(got, question);
}

/// Reads the bytes of a backend. A blocking read of a socket in a sockmap returns `EAGAIN` whenever another event
/// than bytes wakes it, such as an interruption (`tcp_msg_wait_data`). So the reader tries again.
struct Ear<'a>(&'a TcpStream);

impl Read for Ear<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for _ in 0..100 {
            match read(self.0, buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                heard => return heard,
            }
        }
        panic!("a hundred times EAGAIN")
    }
}

/// The end of the backend's stream.
fn end(backend: &TcpStream) -> std::io::Result<usize> {
    Ear(backend).read(&mut [0])
}

fn takes_it() {
    let rig = enabled();
    let link = link(&rig);
    for round in 0..100 {
        exchange(&link, round);
    }
    let counters = counters(&rig);
    assert_eq!(counters.enrolled, 1);
    // The first answer shows the kernel the client's socket.
    assert!(counters.moved_messages > 90, "{counters:?}");
    drop((link.client.shutdown(Shutdown::Write), link.backend.shutdown(Shutdown::Write)));
    let outcome = link.outcome();
    assert_eq!((outcome.up, outcome.down), (800, 800));
    assert_eq!((outcome.reason, outcome.carrier), ("finished", Some(Carrier::Sockmap)));
}

/// The client's socket becomes full repeatedly, so that messages change between the two paths.
fn from_way_to_way() {
    let rig = Rig::with(&Options { same_host: true, send_buffer: 300 * 1024, ..Options::default() });
    let link = link(&rig);
    exchange(&link, 0);
    let mut random = Random::new(3);
    let rounds = 60;
    let sizes: Vec<u64> = (0..rounds).map(|_| 1 + random.below(2_000_000) as u64).collect();
    let mut expected = Stream::new(5);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = Stream::new(5);
            for (round, size) in (1_u64..).zip(&sizes) {
                let piece = [100, 5_000, 60_000, 1_000_000][random.below(4)];
                stream.send(&link.backend, *size, piece, &mut Random::new(round)).expect("sent");
                // A pause in which everything arrives.
                let mut mark = [0];
                Ear(&link.backend).read_exact(&mut mark).expect("the client has caught up");
            }
        });
        for size in &sizes {
            thread::sleep(Duration::from_millis(10));
            expected.expect(&link.client, *size);
            (&link.client).write_all(&[1]).expect("sent");
        }
    });
    let counters = counters(&rig);
    assert!(counters.moved_bytes > MIB && counters.no_room > 0 && counters.outstanding > 0, "{counters:?}");
    drop((link.client.shutdown(Shutdown::Write), link.backend.shutdown(Shutdown::Write)));
    let outcome = link.outcome();
    assert_eq!(outcome.down, 8 + sizes.iter().sum::<u64>());
}

fn both_ways() {
    const BYTES: u64 = 100 * MIB;
    let rig = enabled();
    let link = link(&rig);
    thread::scope(|scope| {
        for (from, to, seed) in [(&link.client, &link.backend, 1), (&link.backend, &link.client, 2)] {
            scope.spawn(move || {
                Stream::new(seed).send(from, BYTES, 200_000, &mut Random::new(seed)).expect("sent");
                from.shutdown(Shutdown::Write).expect("FIN");
            });
            scope.spawn(move || {
                Stream::new(seed).expect(to, BYTES);
                assert_eq!(end(to).expect("FIN"), 0);
            });
        }
    });
    let outcome = link.outcome();
    assert_eq!((outcome.up, outcome.down, outcome.reason), (BYTES, BYTES, "finished"));
    assert!(counters(&rig).moved_bytes > 0);
}

fn deaf_client() {
    let rig = enabled();
    let link = link(&rig);
    exchange(&link, 0);
    let mut stream = Stream::new(1);
    let sent = stream.send_until_blocked(&link.backend, Duration::from_secs(1));
    assert!(sent < HELD, "{sent} bytes held");
    assert!(counters(&rig).moved_bytes > 8, "the short cut was not tried");
    let mut expected = Stream::new(1);
    expected.expect(&link.client, sent);
    // Once all bytes have arrived, the short cut is used again.
    let before = counters(&rig).moved_messages;
    for round in 0..1_000 {
        exchange(&link, round);
        if counters(&rig).moved_messages > before {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("the short cut stays closed: {:?}", counters(&rig));
}

/// A typical server: it writes until the socket would block, then waits for the one edge that reports room.
fn edge_triggered() {
    const BYTES: u64 = 64 * MIB;
    let rig = enabled();
    let link = link(&rig);
    exchange(&link, 0);
    link.backend.set_nonblocking(true).expect("O_NONBLOCK");
    let epoll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll");
    let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(&epoll, &link.backend, EventData::new_u64(0), interest).expect("watched");
    let mut sender =
        Sender { epoll, stream: Stream::new(9), sent: 0, unsent: Vec::new(), wakes: 0, writes: 0 };

    // The client does not read: the server comes to rest, and stays at rest.
    while sender.push(&link.backend, BYTES) && sender.wait(Some(Duration::from_secs(1))) {}
    assert!(sender.sent < HELD, "{} bytes held", sender.sent);
    let (wakes, writes) = (sender.wakes, sender.writes);
    assert!(!sender.wait(Some(Duration::from_secs(1))), "it is woken for nothing");
    assert!(wakes < 1_000 && writes < 10_000, "{wakes} wakes and {writes} writes for {} bytes", sender.sent);

    // The server continues once the client reads.
    thread::scope(|scope| {
        scope.spawn(|| Stream::new(9).expect(&link.client, BYTES));
        while sender.push(&link.backend, BYTES) {
            assert!(sender.wait(None), "it hangs at {} of {BYTES}", sender.sent);
        }
    });
    assert!(counters(&rig).moved_bytes > 8);
}

struct Sender {
    epoll: OwnedFd,
    stream: Stream,
    sent: u64,
    unsent: Vec<u8>,
    wakes: u64,
    writes: u64,
}

impl Sender {
    /// Writes until the socket would block (true) or all bytes are written.
    fn push(&mut self, to: &TcpStream, total: u64) -> bool {
        let mut to = to;
        while self.sent < total {
            if self.unsent.is_empty() {
                let left = usize::try_from(total - self.sent).expect("fits");
                self.unsent = vec![0; left.min(16 * 1024)];
                self.stream.fill(&mut self.unsent);
            }
            self.writes += 1;
            match to.write(&self.unsent) {
                Ok(written) => {
                    self.sent += written as u64;
                    self.unsent.drain(..written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => panic!("at {}: {error}", self.sent),
            }
        }
        false
    }

    /// Waits for the next edge.
    fn wait(&mut self, limit: Option<Duration>) -> bool {
        let deadline = Instant::now() + limit.unwrap_or(PATIENCE);
        let mut events = Vec::with_capacity(4);
        retry_on_intr(|| {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).expect("short");
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&left))
        })
        .expect("waits");
        self.wakes += events.len() as u64;
        !events.is_empty()
    }
}

fn others() {
    let rig = enabled();
    let link = link(&rig);
    exchange(&link, 0);
    assert_eq!(entries(&rig), [1; 4]);
    // The same server, and clients that connect to it directly. One of them is urgent.
    let (client, accepted) = rig.pair_after(None, |_| {});
    (&accepted).write_all(b"direct").expect("sent");
    let mut got = [0; 6];
    (&client).read_exact(&mut got).expect("received");
    assert_eq!((entries(&rig), counters(&rig).enrolled), ([1; 4], 1));
    // A backend without the setting.
    let plain = rig.link();
    exchange(&plain, 1);
    assert_eq!(counters(&rig).enrolled, 1);
}

fn half_close() {
    let rig = enabled();
    let asked = link(&rig);
    exchange(&asked, 0);
    asked.client.shutdown(Shutdown::Write).expect("FIN");
    assert_eq!(end(&asked.backend).expect("FIN"), 0);
    Stream::new(1).send(&asked.backend, 5 * MIB, 100_000, &mut Random::new(1)).expect("sent");
    asked.backend.shutdown(Shutdown::Write).expect("FIN");
    Stream::new(1).expect(&asked.client, 5 * MIB);
    expect_eof(&asked.client);
    assert_eq!(asked.outcome().reason, "finished");

    // The backend's FIN follows all bytes of either path.
    let told = link(&rig);
    exchange(&told, 0);
    Stream::new(1).send(&told.backend, 5 * MIB, 100_000, &mut Random::new(1)).expect("sent");
    told.backend.shutdown(Shutdown::Write).expect("FIN");
    Stream::new(1).expect(&told.client, 5 * MIB);
    expect_eof(&told.client);
    Stream::new(2).send(&told.client, 5 * MIB, 100_000, &mut Random::new(1)).expect("sent");
    told.client.shutdown(Shutdown::Write).expect("FIN");
    Stream::new(2).expect(&told.backend, 5 * MIB);
    assert_eq!(end(&told.backend).expect("FIN"), 0);
    assert_eq!(told.outcome().reason, "finished");
}

fn resets() {
    let rig = enabled();
    let Link { client, backend, outcome, leash } = link(&rig);
    let reset = |stream: TcpStream| {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(stream);
    };
    reset(client);
    assert_eq!(end(&backend).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    assert_eq!(outcome.recv_timeout(PATIENCE).expect("an end").reason, "client_reset");
    drop(leash);

    let link = link(&rig);
    exchange(&link, 0);
    // Bytes before the reset are received.
    Stream::new(1).send(&link.backend, 100_000, 100_000, &mut Random::new(1)).expect("sent");
    let Link { client, backend, outcome, leash } = link;
    reset(backend);
    Stream::new(1).expect(&client, 100_000);
    let error = read(&client, &mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(outcome.recv_timeout(PATIENCE).expect("an end").reason, "backend_reset");
    drop(leash);
}

fn not_idle() {
    let rig = Rig::with(&Options { same_host: true, idle: Duration::from_secs(1), ..Options::default() });
    let link = link(&rig);
    exchange(&link, 0);
    for _ in 0..30 {
        thread::sleep(Duration::from_millis(100));
        (&link.backend).write_all(&[1]).expect("sent");
        (&link.client).read_exact(&mut [0]).expect("received");
    }
    assert!(counters(&rig).moved_messages >= 29, "{:?}", counters(&rig));
    assert_eq!(link.outcome().reason, "idle_timeout", "it is, once the traffic has ended");
}

/// Like a server that enables encryption in the kernel.
fn protocol_on_top() {
    let rig = enabled();
    let link = link(&rig);
    exchange(&link, 0);
    exchange(&link, 1);
    let before = counters(&rig);
    assert!(before.moved_messages > 0, "{before:?}");
    // The kernel may refuse any of it on such a socket. Bytes that are sent afterwards must arrive in any case.
    let on_top = sockopt::set_upper_protocol(&link.backend, "tls").is_ok();
    let encrypts = on_top && sockopt::start_ktls_sending(&link.backend).is_ok();
    (&link.backend).write_all(b"what nobody on the way may read").expect("sent");
    let mut got = [0; 31];
    (&link.client).read_exact(&mut got).expect("received");
    assert_eq!(&got == b"what nobody on the way may read", !encrypts);
    if on_top {
        let after = counters(&rig);
        assert_eq!((after.moved_bytes, after.protocol), (before.moved_bytes, before.protocol + 1));
    }
}

fn nothing_left_behind() {
    let rig = enabled();
    for round in 0..500 {
        let link = link(&rig);
        for number in 0..3 {
            exchange(&link, round + number);
        }
        link.backend.shutdown(Shutdown::Write).expect("FIN");
        expect_eof(&link.client);
        link.client.shutdown(Shutdown::Write).expect("FIN");
        assert_eq!(end(&link.backend).expect("FIN"), 0);
        assert_eq!(link.outcome().reason, "finished");
    }
    assert_eq!((entries(&rig), rig.entries()), ([0; 4], [0; 4]));
    assert_eq!(counters(&rig).enrolled, 500);
}
