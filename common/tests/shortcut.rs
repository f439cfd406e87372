//! The short cut beside the ordinary way, over many random interleavings. The decisions are the real ones. The queues
//! between the sockets are modelled. `protocol.rs` tests the ordinary way alone.

use std::{collections::VecDeque, ops::Range};

use snisplice_common::sockmap::{
    direction::{Control, Decision, Flow, Limits, Target},
    shortcut::{Path, Receiver, Sender, Shortcut},
};

const LIMITS: Limits = Limits { high_water: 600, total: u64::MAX, margin: 50 };
const SNDBUF: u64 = 2_000;
const MESSAGE: u64 = 400;
/// Where the streams of backend and client begin.
const BACKEND_BASE: u32 = u32::MAX - 5_000;
const CLIENT_BASE: u32 = u32::MAX - 100;
const CLIENT: u64 = 7;

type Bytes = Range<u64>;

/// A small generator: each seed is one interleaving.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn len(queue: &VecDeque<Bytes>) -> u64 {
    queue.iter().map(|bytes| bytes.end - bytes.start).sum()
}

fn low(number: u64) -> u32 {
    u32::try_from(number).expect("a run is short")
}

struct Model {
    random: Random,
    flow: Flow,
    shortcut: Shortcut,
    /// Bytes that the backend has sent, and the part of them on the ordinary way.
    sent: u64,
    ordinary: u64,
    /// A message that the client's socket is about to take. The backend waits for it.
    in_hand: Option<Bytes>,
    /// Between the backend's socket and the balancer's.
    wire: VecDeque<Bytes>,
    /// Redirected, not yet in the client's write queue.
    backlog: VecDeque<Bytes>,
    /// Passed, not yet copied by userspace.
    passed: VecDeque<Bytes>,
    /// The count that the kernel knows.
    forwarded: u64,
    /// The client's write queue.
    queue: VecDeque<Bytes>,
    taken: u64,
    received: u64,
    cut_short: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            flow: Flow::new(CLIENT, 0),
            shortcut: Shortcut::new(CLIENT, 0),
            sent: 0,
            ordinary: 0,
            in_hand: None,
            wire: VecDeque::new(),
            backlog: VecDeque::new(),
            passed: VecDeque::new(),
            forwarded: 0,
            queue: VecDeque::new(),
            taken: 0,
            received: 0,
            cut_short: 0,
        }
    }

    fn write_seq(&self) -> u32 {
        CLIENT_BASE.wrapping_add(low(self.taken))
    }

    /// The backend calls send(2): the program decides.
    fn send(&mut self) -> bool {
        if self.in_hand.is_some() {
            return false;
        }
        let size = 1 + self.random.below(MESSAGE);
        let bytes = self.sent..self.sent + size;
        self.sent = bytes.end;
        let sender = Sender { write_seq: BACKEND_BASE.wrapping_add(low(self.ordinary)), thread: 1 };
        let receiver = Receiver {
            cookie: CLIENT,
            write_seq: self.write_seq(),
            wmem_queued: low(len(&self.queue)),
            sndbuf: low(SNDBUF),
        };
        let way = |shortcut: &mut Shortcut| {
            shortcut.decide(BACKEND_BASE, low(size), &sender, &receiver, LIMITS.margin)
        };
        if self.shortcut.is_ready() && way(&mut self.shortcut) == Path::Short {
            self.shortcut.take(low(size), &sender);
            self.in_hand = Some(bytes);
        } else {
            self.ordinary += size;
            self.wire.push_back(bytes);
        }
        true
    }

    /// The client's socket takes the message, or a part of it if the host has no memory left.
    fn hand_over(&mut self) -> bool {
        let Some(bytes) = self.in_hand.take() else { return false };
        assert!(
            len(&self.queue) + bytes.end - bytes.start <= SNDBUF,
            "the backend is made to wait for the client"
        );
        let end = if self.random.below(20) == 0 {
            self.cut_short += 1;
            bytes.start + self.random.below(bytes.end - bytes.start)
        } else {
            bytes.end
        };
        // The backend's send(2) returns the sent size.
        self.sent = end;
        if end > bytes.start {
            self.take(bytes.start..end);
        }
        true
    }

    /// A message arrives at our socket: the verdict.
    fn arrive(&mut self) -> bool {
        let Some(bytes) = self.wire.pop_front() else { return false };
        let size = low(bytes.end - bytes.start);
        let control = Control { forwarded: self.forwarded, ..Control::default() };
        let target = Target {
            write_seq: self.write_seq().wrapping_sub(low(self.shortcut.moved)),
            wmem_queued: low(len(&self.queue)),
            sndbuf: low(SNDBUF),
            rmem_alloc: 0,
            rcvbuf: u32::MAX,
        };
        let mut redirect = false;
        if !self.flow.is_held(&control) {
            redirect = self.flow.decide(size, &control, &target, 0, LIMITS) == Decision::Redirect;
            if !self.shortcut.is_ready() {
                self.shortcut.seen(1, self.flow.base);
            }
        }
        if redirect {
            self.flow.redirect(size);
            self.backlog.push_back(bytes);
        } else {
            self.flow.pass(size);
            self.passed.push_back(bytes);
        }
        assert!(len(&self.backlog) <= u64::from(LIMITS.high_water) + MESSAGE, "the backlog has no bound");
        true
    }

    fn work(&mut self) -> bool {
        let Some(bytes) = self.backlog.pop_front() else { return false };
        self.take(bytes);
        true
    }

    /// Userspace copies one piece, once the client's socket has everything before it as far as userspace knows.
    fn copy(&mut self) -> bool {
        let before = self.flow.redirected + self.forwarded + self.shortcut.moved;
        if self.passed.is_empty() || self.taken < before || len(&self.queue) >= SNDBUF {
            return false;
        }
        let Some(bytes) = self.passed.pop_front() else { return false };
        self.forwarded += bytes.end - bytes.start;
        self.take(bytes);
        true
    }

    fn take(&mut self, bytes: Bytes) {
        assert_eq!(bytes.start, self.taken, "out of order");
        self.taken = bytes.end;
        self.queue.push_back(bytes);
    }

    fn receive(&mut self) -> bool {
        let Some(bytes) = self.queue.pop_front() else { return false };
        assert_eq!(bytes.start, self.received);
        self.received = bytes.end;
        true
    }

    fn step(&mut self, sending: bool, laziness: u64) {
        // A step that cannot happen now is tried again later.
        let _ = match self.random.below(6) {
            0 => sending && self.send(),
            1 => self.hand_over(),
            2 => self.arrive(),
            3 => self.work(),
            4 => self.copy(),
            _ => self.random.below(1 + laziness) == 0 && self.receive(),
        };
    }

    fn settle(&mut self) {
        while self.hand_over() || self.arrive() || self.work() || self.copy() || self.receive() {}
    }
}

#[test]
fn every_byte_arrives_once_and_in_order_whichever_way_it_takes() {
    let (mut moved, mut ordinary, mut cut_short) = (0, 0, 0);
    for seed in 0..5_000 {
        let mut model = Model::new(seed);
        for _ in 0..20 {
            // The backend pauses at times, and the client reads at different rates.
            let (sending, laziness) = (model.random.below(2) == 0, model.random.below(8));
            for _ in 0..100 {
                model.step(sending, laziness);
            }
        }
        model.settle();
        assert_eq!(model.received, model.sent, "seed {seed}");
        // The short cut opens again, once a message has revealed the client's socket.
        for _ in 0..3 {
            model.send();
            model.settle();
        }
        let before = model.shortcut.messages;
        model.send();
        assert!(model.shortcut.messages > before, "seed {seed}: the short cut stays closed");
        moved += model.shortcut.moved;
        ordinary += model.ordinary;
        cut_short += model.cut_short;
    }
    assert!(moved > 1_000_000 && ordinary > 1_000_000 && cut_short > 1_000, "{moved} {ordinary} {cut_short}");
}
