//! The protocol between the verdict program and userspace, over many random interleavings: the decisions are the
//! real ones, the kernel's queues and the program's two reads are modelled.

use std::{collections::VecDeque, ops::Range};

use snisplice_common::flow::{Control, Decision, Flow, Limits, Target};

const LIMITS: Limits = Limits { high_water: 600, margin: 50 };
const SNDBUF: u64 = 2_000;
const RCVBUF: u64 = 300;
const PACKET: u64 = 200;

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

/// Where userspace is in its story; one step is one system call.
#[derive(Debug, Clone, PartialEq)]
enum User {
    /// Waits for an event.
    Rest,
    /// Looks at the flow.
    Look,
    /// Waits until the target has taken what was redirected.
    Drain { redirected: u64 },
    /// Reads until nothing is left.
    Read { before: u64 },
    /// Writes what it has read.
    Write { before: u64, bytes: Bytes },
    /// Tells the kernel.
    Publish,
    /// Takes the socket's lock.
    Lock,
    /// Waits for bytes to come into reach.
    AwaitReadable,
}

struct Model {
    random: Random,
    flow: Flow,
    control: Control,
    /// What the sender has sent.
    sent: u64,
    /// A packet whose verdict has read the control but not finished: the socket's lock is held.
    in_verdict: Option<(Bytes, Control)>,
    /// Passed, to be read.
    passed: VecDeque<Bytes>,
    /// Redirected, not yet in the target's write queue.
    backlog: VecDeque<Bytes>,
    /// The target's write queue.
    queue: VecDeque<Bytes>,
    /// What the target has taken in all.
    taken: u64,
    /// What the receiver has read, in order.
    received: u64,
    event: bool,
    user: User,
    forwarded: u64,
    most: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            flow: Flow::new(1, 2),
            control: Control::default(),
            sent: 0,
            in_verdict: None,
            passed: VecDeque::new(),
            backlog: VecDeque::new(),
            queue: VecDeque::new(),
            taken: 0,
            received: 0,
            event: false,
            user: User::Rest,
            forwarded: 0,
            most: 0,
        }
    }

    /// A packet arrives, if the window is open, and its verdict begins.
    fn arrive(&mut self) -> bool {
        if self.in_verdict.is_some() || len(&self.passed) >= RCVBUF {
            return false;
        }
        let size = 1 + self.random.below(PACKET);
        let bytes = self.sent..self.sent + size;
        self.sent += size;
        self.in_verdict = Some((bytes, self.control));
        true
    }

    fn finish_verdict(&mut self) -> bool {
        let Some((bytes, control)) = self.in_verdict.take() else { return false };
        let size = u32::try_from(bytes.end - bytes.start).expect("a packet is small");
        let held = self.flow.is_held(&control);
        let target = Target {
            write_seq: u32::MAX.wrapping_add(u32::try_from(self.taken).expect("a run is short")),
            wmem_queued: u32::try_from(len(&self.queue)).expect("a queue is short"),
            sndbuf: u32::try_from(SNDBUF).expect("small"),
            rmem_alloc: 0,
            rcvbuf: u32::MAX,
        };
        if !held && self.flow.decide(size, &control, &target, LIMITS) == Decision::Redirect {
            self.flow.redirect(size);
            self.backlog.push_back(bytes);
        } else {
            self.flow.pass(size);
            self.passed.push_back(bytes);
            self.event |= !held;
        }
        self.most = self.most.max(len(&self.backlog));
        true
    }

    /// The kernel's worker writes one packet to the target.
    fn work(&mut self) -> bool {
        let Some(bytes) = self.backlog.pop_front() else { return false };
        assert!(len(&self.queue) < SNDBUF, "a redirected packet had to wait for the send buffer");
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

    /// One system call of userspace. False if it waits.
    fn user(&mut self) -> bool {
        self.user = match self.user.clone() {
            User::Rest if self.event => {
                self.event = false;
                User::Look
            }
            User::Look => {
                if self.flow.passed == self.forwarded {
                    User::Rest
                } else {
                    User::Drain { redirected: self.flow.redirected }
                }
            }
            User::Drain { redirected } if self.taken >= redirected + self.forwarded => {
                User::Read { before: self.forwarded }
            }
            // Takes the lock.
            User::Read { before } if self.in_verdict.is_none() => match self.passed.pop_front() {
                Some(bytes) => User::Write { before, bytes },
                None if self.forwarded > before => User::Publish,
                None => User::AwaitReadable,
            },
            User::Write { before, bytes } if len(&self.queue) < SNDBUF => {
                let size = bytes.end - bytes.start;
                let sent = (1 + self.random.below(size)).min(SNDBUF - len(&self.queue));
                self.take(bytes.start..bytes.start + sent);
                self.forwarded += sent;
                if sent == size {
                    User::Read { before }
                } else {
                    User::Write { before, bytes: bytes.start + sent..bytes.end }
                }
            }
            User::Publish => {
                self.control.forwarded = self.forwarded;
                User::Lock
            }
            User::Lock if self.in_verdict.is_none() => User::Look,
            User::AwaitReadable if !self.passed.is_empty() => User::Look,
            _ => return false,
        };
        true
    }

    fn step(&mut self, sending: bool, laziness: u64) {
        // Whatever cannot move now is tried again later.
        let _ = match self.random.below(8) {
            0 => sending && self.arrive(),
            1 => self.finish_verdict(),
            2 => self.work(),
            3 => self.random.below(1 + laziness) == 0 && self.receive(),
            _ => self.user(),
        };
    }

    /// Lets everything but the sender go on until nothing moves any more.
    fn settle(&mut self) {
        while self.finish_verdict() || self.work() || self.receive() || self.user() {}
    }
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    let (mut redirected, mut returns) = (0, 0);
    for seed in 0..5_000 {
        let mut model = Model::new(seed);
        for _ in 0..40 {
            // The sender rests now and then, and the receiver reads more or less eagerly.
            let (sending, laziness) = (model.random.below(2) == 0, model.random.below(4));
            for _ in 0..80 {
                model.step(sending, laziness);
            }
        }
        model.settle();
        assert_eq!(model.received, model.sent, "seed {seed}: {:?} is left waiting", model.user);
        assert_eq!(model.user, User::Rest, "seed {seed}");
        assert!(
            model.most <= u64::from(LIMITS.high_water) + PACKET,
            "seed {seed}: backlog of {}",
            model.most
        );
        assert_eq!(model.flow.redirected + model.flow.passed, model.sent);
        redirected += model.flow.redirected;
        returns += model.flow.returns;
    }
    assert!(redirected > 1_000_000 && returns > 500, "{redirected} bytes redirected, {returns} returns");
}
