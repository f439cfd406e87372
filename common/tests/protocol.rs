//! The protocol between the verdict program and userspace: all orders of events for a few packets, and many random
//! orders for very many. The decisions are the real ones. The kernel's queues and the program's two reads are modelled.
//!
//! One direction is followed from its first byte to its end, by FIN or by reset. Meanwhile userspace takes it from the
//! kernel and gives it back, and the shares of other directions change.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Range,
};

use snisplice_common::sockmap::{
    budget,
    direction::{Control, Decision, Flow, Limits, Target},
};

const LIMITS: Limits = Limits { high_water: 600_000, total: 1_000_000, margin: 50_000 };
const SNDBUF: u64 = 2_000_000;
const RCVBUF: u64 = 300_000;
const PACKET: u64 = 200_000;
/// Interleavings that each test tries.
const SEEDS: u64 = 1_000;

type Bytes = Range<u64>;

/// The choice of sizes.
#[derive(Debug, Clone, Copy, Hash)]
enum Choice {
    /// Random sizes: each seed is one interleaving.
    Random(u64),
    /// Always the smallest size.
    Least,
    /// Always the largest size.
    Most,
}

impl Choice {
    fn below(&mut self, limit: u64) -> u64 {
        match self {
            Self::Random(state) => {
                *state =
                    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (*state >> 33) % limit
            }
            Self::Least => 0,
            Self::Most => limit - 1,
        }
    }

    /// The part of `size` bytes that is written at once.
    fn part_of(&mut self, size: u64) -> u64 {
        match self {
            Self::Random(_) => 1 + self.below(size),
            // Byte by byte, the test would not end.
            Self::Least => size.min(PACKET / 2),
            Self::Most => size,
        }
    }
}

fn len(queue: &VecDeque<Bytes>) -> u64 {
    queue.iter().map(|bytes| bytes.end - bytes.start).sum()
}

/// The stage of userspace. One step is one system call.
#[derive(Debug, Clone, PartialEq, Hash)]
enum User {
    /// Waits for an event.
    Rest,
    /// Reads the flow's state.
    Look,
    /// Waits until the target has taken what was redirected.
    Drain { redirected: u64 },
    /// Reads until nothing is left.
    Read,
    /// Writes what it has read.
    Write { bytes: Bytes },
    /// Reports its progress to the kernel, and whether it keeps the direction.
    Publish { hold: bool },
    /// Takes the socket's lock.
    Lock,
    /// Waits for bytes that it can read.
    AwaitReadable,
    /// Waits until the target has taken the last byte.
    Flush,
    /// Has forwarded the end.
    Ended,
}

/// The reason for which userspace copies.
#[derive(Debug, Clone, Copy, PartialEq, Hash)]
enum Why {
    /// The kernel has passed something.
    Passed { before: u64 },
    /// Userspace keeps the direction for a while.
    Held,
    /// The sender's stream has ended.
    Over,
}

/// The way in which the sender ended its stream.
#[derive(Debug, Clone, Copy, PartialEq, Hash)]
enum End {
    Fin,
    Reset,
}

#[derive(Debug, Clone, Hash)]
struct Model {
    choice: Choice,
    flow: Flow,
    control: Control,
    /// Bytes that the sender has sent.
    sent: u64,
    end: Option<End>,
    /// A packet whose verdict has read the control but is not finished. The socket's lock is held.
    in_verdict: Option<(Bytes, Control)>,
    /// Passed, to be read.
    passed: VecDeque<Bytes>,
    /// Redirected, not yet in the target's write queue.
    backlog: VecDeque<Bytes>,
    /// The target's write queue.
    queue: VecDeque<Bytes>,
    /// Bytes that the target has taken in total.
    taken: u64,
    /// Bytes that the receiver has read, in order.
    received: u64,
    event: bool,
    user: User,
    why: Why,
    /// Userspace is to keep the direction.
    wanted: bool,
    forwarded: u64,
    /// The part of the direction's share that userspace has returned.
    returned: u64,
    /// The sum of all shares, as the map has it.
    counted_by_all: u64,
    returned_by_all: u64,
    /// The part of the sum that is not this direction's.
    others: i64,
    most: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            choice: Choice::Random(seed),
            flow: Flow::new(1, 2),
            control: Control::default(),
            sent: 0,
            end: None,
            in_verdict: None,
            passed: VecDeque::new(),
            backlog: VecDeque::new(),
            queue: VecDeque::new(),
            taken: 0,
            received: 0,
            event: false,
            user: User::Rest,
            why: Why::Passed { before: 0 },
            wanted: false,
            forwarded: 0,
            returned: 0,
            counted_by_all: 0,
            returned_by_all: 0,
            others: 0,
            most: 0,
        }
    }

    fn sum(&self) -> i64 {
        budget::sum(self.counted_by_all, self.returned_by_all)
    }

    /// The waiting bytes of the other directions change.
    fn others_move(&mut self) -> bool {
        let total = LIMITS.total.cast_signed();
        let now = total / 2 * self.choice.below(3).cast_signed();
        self.counted_by_all = self.counted_by_all.wrapping_add_signed(now - self.others);
        self.others = now;
        true
    }

    /// A packet arrives, if the window is open, and its verdict begins.
    fn arrive(&mut self) -> bool {
        if self.end.is_some() || self.in_verdict.is_some() || len(&self.passed) >= RCVBUF {
            return false;
        }
        let size = 1 + self.choice.below(PACKET);
        let bytes = self.sent..self.sent + size;
        self.sent += size;
        self.in_verdict = Some((bytes, self.control));
        true
    }

    /// The sender's stream ends. Userspace may learn that before the verdict on the last packet is done.
    fn end(&mut self, how: End) {
        self.end = Some(how);
        self.wanted = false;
        if how == End::Reset {
            // The kernel may drop bytes that userspace has not read.
            while self.choice.below(3) > 0 && self.passed.pop_back().is_some() {}
        }
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
        let sum = self.sum();
        let redirected =
            !held && self.flow.decide(size, &control, &target, sum, LIMITS) == Decision::Redirect;
        if redirected {
            let _ = self.flow.redirect(size);
            self.backlog.push_back(bytes);
        } else {
            self.flow.pass(size);
            if self.end != Some(End::Reset) {
                self.passed.push_back(bytes);
            }
            self.event |= !held;
        }
        if !held {
            let more = self.flow.count(&control, target.write_seq);
            self.counted_by_all = self.counted_by_all.wrapping_add_signed(more);
            // The share is the waiting bytes, or nothing. No packet exceeded the bound.
            let share = self.flow.share(&control);
            assert_eq!(share, i64::from(budget::share(u32::try_from(len(&self.backlog)).expect("short"))));
            assert!(!redirected || share == 0 || self.others + share <= LIMITS.total.cast_signed());
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
        assert_ne!(self.user, User::Ended, "a byte behind the end");
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

    fn all_taken(&self, redirected: u64) -> bool {
        self.taken >= redirected + self.forwarded
    }

    /// Returns the direction's share. The kernel learns of it later.
    fn give_back(&mut self) {
        let share = self.flow.share(&Control { returned: self.returned, ..Control::default() });
        self.returned = self.returned.wrapping_add_signed(share);
        self.returned_by_all = self.returned_by_all.wrapping_add_signed(share);
    }

    /// One system call of userspace. False if it waits.
    fn user(&mut self) -> bool {
        let next = match self.user.clone() {
            User::Rest if self.end.is_some() => {
                self.why = Why::Over;
                User::Look
            }
            User::Rest if self.event => {
                self.event = false;
                User::Look
            }
            User::Rest if self.wanted => {
                self.why = Why::Held;
                User::Publish { hold: true }
            }
            // Takes the lock, to see the bytes before the end.
            User::Look if self.why == Why::Over && self.in_verdict.is_some() => return false,
            User::Look => self.look(),
            User::Drain { redirected } if self.all_taken(redirected) => {
                self.give_back();
                User::Read
            }
            // Takes the lock.
            User::Read if self.in_verdict.is_none() => self.read(),
            User::Write { bytes } if len(&self.queue) < SNDBUF => {
                let size = bytes.end - bytes.start;
                let sent = self.choice.part_of(size).min(SNDBUF - len(&self.queue));
                self.take(bytes.start..bytes.start + sent);
                self.forwarded += sent;
                if sent == size { User::Read } else { User::Write { bytes: bytes.start + sent..bytes.end } }
            }
            User::Publish { hold } => {
                self.control = Control {
                    forwarded: self.forwarded,
                    returned: self.returned,
                    hold: hold.into(),
                    reserved: 0,
                };
                User::Lock
            }
            User::Lock if self.in_verdict.is_none() => User::Look,
            User::AwaitReadable => return self.await_readable(),
            User::Flush if self.all_taken(self.flow.redirected) => {
                self.give_back();
                User::Ended
            }
            _ => return false,
        };
        self.user = next;
        true
    }

    fn look(&mut self) -> User {
        let caught_up = self.flow.passed == self.forwarded;
        let lost = self.end == Some(End::Reset) && self.passed.is_empty();
        match self.why {
            Why::Over if caught_up || lost => User::Flush,
            Why::Passed { .. } if caught_up && self.control.forwarded == self.forwarded => User::Rest,
            Why::Passed { .. } => {
                self.why = Why::Passed { before: self.forwarded };
                User::Drain { redirected: self.flow.redirected }
            }
            Why::Held | Why::Over => User::Drain { redirected: self.flow.redirected },
        }
    }

    fn read(&mut self) -> User {
        match (self.passed.pop_front(), self.why) {
            (Some(bytes), _) => User::Write { bytes },
            (None, Why::Over) => User::Look,
            (None, Why::Passed { before }) if self.forwarded > before => User::Publish { hold: false },
            (None, Why::Passed { .. } | Why::Held) => User::AwaitReadable,
        }
    }

    fn await_readable(&mut self) -> bool {
        self.user = match self.why {
            // The kernel redirects nothing before the report, so userspace reads without waiting.
            Why::Held if self.end.is_some() || !self.wanted => {
                self.why = Why::Passed { before: self.forwarded };
                User::Publish { hold: false }
            }
            Why::Held if !self.passed.is_empty() => User::Read,
            Why::Passed { .. } if self.end.is_some() => User::Rest,
            Why::Passed { .. } if !self.passed.is_empty() => User::Look,
            _ => return false,
        };
        true
    }

    fn step(&mut self, sending: bool, laziness: u64) {
        // A step that cannot happen now is tried again later.
        let _ = match self.choice.below(9) {
            0 => sending && self.arrive(),
            1 => self.finish_verdict(),
            2 => self.work(),
            3 => self.choice.below(1 + laziness) == 0 && self.receive(),
            4 => self.choice.below(10) == 0 && self.others_move(),
            _ => self.user(),
        };
    }

    /// Runs everything but the sender until nothing moves any more.
    fn settle(&mut self) {
        self.wanted = false;
        while self.finish_verdict() || self.work() || self.receive() || self.user() {}
    }

    /// Sends and receives for a while, in phases with different rates.
    fn live(&mut self) {
        for _ in 0..40 {
            // The sender pauses at times, and so does userspace's hold. The receiver reads at different rates.
            let (sending, laziness) = (self.choice.below(2) == 0, self.choice.below(4));
            self.wanted = self.end.is_none() && self.choice.below(4) == 0;
            for _ in 0..80 {
                self.step(sending, laziness);
            }
        }
    }
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Next {
    Arrive,
    Verdict,
    Work,
    Receive,
    Others,
    Want(bool),
    User,
    End(End),
}

impl Model {
    /// Runs a step. False if it cannot happen now, or changes nothing.
    fn happens(&mut self, next: Next) -> bool {
        match next {
            Next::Arrive => self.arrive(),
            Next::Verdict => self.finish_verdict(),
            Next::Work => self.work(),
            Next::Receive => self.receive(),
            Next::Others => self.others_move(),
            Next::Want(wanted) => {
                let changes = self.end.is_none() && wanted != self.wanted;
                if changes {
                    self.wanted = wanted;
                }
                changes
            }
            Next::User => self.user(),
            Next::End(how) => {
                let changes = self.end.is_none();
                if changes {
                    self.end(how);
                }
                changes
            }
        }
    }

    /// Checks the invariants once nothing moves any more.
    fn check(mut self) {
        let before = self.clone();
        self.settle();
        let ended = if self.end.is_some() { User::Ended } else { User::Rest };
        assert_eq!(self.user, ended, "{before:?}");
        assert_eq!(self.received, self.taken, "{before:?}");
        if self.end != Some(End::Reset) {
            assert_eq!(self.received, self.sent, "{before:?}");
        }
        self.give_back();
        assert_eq!(self.sum(), self.others, "{before:?}");
    }

    /// A hash that distinguishes states.
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Follows a direction through all reachable states with a few packets, each of one byte or of the greatest size.
#[test]
fn all_orders_of_a_few_packets() {
    const PACKETS: usize = 3;
    const ALL: [Next; 10] = [
        Next::Arrive,
        Next::Verdict,
        Next::Work,
        Next::Receive,
        Next::Others,
        Next::Want(true),
        Next::Want(false),
        Next::User,
        Next::End(End::Fin),
        Next::End(End::Reset),
    ];
    let mut seen = HashSet::new();
    let mut left = vec![(Model::new(0), PACKETS)];
    while let Some((model, packets)) = left.pop() {
        model.clone().check();
        for next in ALL {
            if next == Next::Arrive && packets == 0 {
                continue;
            }
            for choice in [Choice::Least, Choice::Most] {
                let mut model = Model { choice, ..model.clone() };
                if model.happens(next) {
                    model.choice = Choice::Least;
                    if seen.insert(model.key()) {
                        left.push((model, packets - usize::from(next == Next::Arrive)));
                    }
                }
            }
        }
    }
    assert!(seen.len() > 100_000, "{} states", seen.len());
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    let (mut redirected, mut returns, mut shares) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut model = Model::new(seed);
        model.live();
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
        shares += u64::from(model.sum() > model.others);
        model.give_back();
        assert_eq!(model.sum(), model.others, "seed {seed}: a share is left");
    }
    assert!(redirected > 1_000_000_000 && returns > 500, "{redirected} bytes redirected, {returns} returns");
    assert!(shares > 0, "no direction fell silent with a share");
}

#[test]
fn the_end_follows_the_last_byte() {
    for seed in 0..SEEDS {
        let mut model = Model::new(seed);
        model.live();
        model.end(End::Fin);
        model.live();
        model.settle();
        assert_eq!(model.user, User::Ended, "seed {seed}");
        assert_eq!(model.received, model.sent, "seed {seed}: bytes were cut off");
        assert_eq!(model.sum(), model.others, "seed {seed}: a share is left");
    }
}

#[test]
fn a_reset_leaves_nothing_waiting() {
    for seed in 0..SEEDS {
        let mut model = Model::new(seed);
        model.live();
        model.end(End::Reset);
        model.live();
        model.settle();
        // The received bytes are a prefix of the sent ones: bytes are taken in order and without a hole, or not at all.
        assert_eq!(model.user, User::Ended, "seed {seed}");
        assert_eq!(model.received, model.taken, "seed {seed}");
        assert_eq!(model.sum(), model.others, "seed {seed}: a share is left");
    }
}
