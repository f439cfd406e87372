//! The client connections, one type for each kind of load.

use std::{collections::VecDeque, time::Instant};

use hdrhistogram::Histogram;
use rustix::{fd::BorrowedFd, io::Errno};

use super::{
    echo::{Arrival, MessageReceiver, MessageSender},
    fault::Fault,
    frame::{ACK_BYTES, Ack, Message, Order, Task},
    reactor::Step,
    socket::{self, Received},
    stream::{Bulk, End, Scratch},
    tally::Tally,
};

/// The phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Connections are opened.
    Setup,
    /// Load runs but does not count.
    WarmUp,
    /// Load counts.
    Measure,
    /// Connections complete their work, and close.
    Stop,
}

/// The environment of a session while it is driven.
pub(crate) struct Turn<'a> {
    /// The phase of the run.
    pub phase: Phase,
    /// The thread's counters.
    pub tally: &'a Tally,
    /// The thread's buffers.
    pub scratch: &'a mut Scratch,
    /// The thread's latencies in nanoseconds.
    pub latencies: &'a mut Histogram<u64>,
}

impl Turn<'_> {
    /// Records a duration, if it counts.
    pub(super) fn took(&mut self, since: Instant) {
        if self.phase == Phase::Measure {
            record(self.latencies, since);
        }
    }
}

/// Records the time since `since`, in nanoseconds.
pub(crate) fn record(histogram: &mut Histogram<u64>, since: Instant) {
    histogram.saturating_record(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

/// One client connection.
pub(crate) trait Session {
    /// Continues until the socket would block.
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault>;

    /// Receives a further request to send, if the [`Plan`](super::engine::Plan) has a rate.
    fn owe(&mut self, _: Due) {}
}

/// A request to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    /// The time at which it is due. Its latency counts from here, including its wait.
    pub since: Instant,
    /// Whether its latency counts.
    pub counts: bool,
}

/// The hello and the backend's answer: the start of every connection.
struct Greeting {
    hello: Vec<u8>,
    sent: usize,
    ack: [u8; ACK_BYTES],
    received: usize,
    nonce: u64,
}

impl Greeting {
    fn new(hello: Vec<u8>, nonce: u64) -> Self {
        Self { hello, sent: 0, ack: [0; ACK_BYTES], received: 0, nonce }
    }

    fn send(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Fault> {
        while self.sent < self.hello.len() {
            match socket::send(socket, &self.hello[self.sent..])? {
                0 => return Ok(false),
                count => self.sent += count,
            }
        }
        Ok(true)
    }

    /// Whether the backend has answered this connection.
    fn drive(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Fault> {
        if !self.send(socket)? {
            return Ok(false);
        }
        while self.received < ACK_BYTES {
            match socket::receive(socket, &mut self.ack[self.received..])? {
                Received::Bytes(count) => self.received += count,
                Received::Nothing => return Ok(false),
                Received::End => return Err(Fault::Closed("the answer to the hello was due")),
            }
        }
        if Ack::decode(&self.ack)?.nonce != self.nonce {
            return Err(Fault::Protocol("the answer to another connection's hello"));
        }
        Ok(true)
    }
}

/// Hello, short answer, close.
pub(crate) struct Short {
    greeting: Greeting,
    opened: Instant,
}

impl Short {
    /// The clock starts now, before connect(2).
    pub(crate) fn new(hello: Vec<u8>, nonce: u64) -> Self {
        Self { greeting: Greeting::new(hello, nonce), opened: Instant::now() }
    }
}

impl Session for Short {
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        if !self.greeting.drive(socket)? {
            return Ok(Step::Wait);
        }
        turn.tally.hello();
        turn.took(self.opened);
        Ok(Step::Done)
    }
}

/// Hello with a name without a route. Any end except an answer from the backend is a rejection.
pub(crate) struct Refused {
    greeting: Greeting,
    opened: Instant,
}

impl Refused {
    /// The clock starts now, before connect(2).
    pub(crate) fn new(hello: Vec<u8>, nonce: u64) -> Self {
        Self { greeting: Greeting::new(hello, nonce), opened: Instant::now() }
    }

    fn rejected(&self, turn: &mut Turn<'_>) -> Step {
        turn.tally.rejection();
        turn.took(self.opened);
        Step::Done
    }
}

impl Session for Refused {
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        const ALERT_RECORD: u8 = 21;
        if !self.greeting.send(socket)? {
            return Ok(Step::Wait);
        }
        let mut first = [0; ACK_BYTES];
        match socket::receive(socket, &mut first) {
            Ok(Received::Nothing) => Ok(Step::Wait),
            Ok(Received::End) | Err(Fault::Io(Errno::CONNRESET | Errno::PIPE)) => Ok(self.rejected(turn)),
            Ok(Received::Bytes(_)) if first[0] == ALERT_RECORD => Ok(self.rejected(turn)),
            Ok(Received::Bytes(_)) => Err(Fault::Served),
            Err(fault) => Err(fault),
        }
    }
}

/// Opened, then silent until the end.
pub(crate) struct Idle {
    greeting: Greeting,
    open: bool,
}

impl Idle {
    /// For a hello with [`Task::Wait`].
    pub(crate) fn new(hello: Vec<u8>, nonce: u64) -> Self {
        Self { greeting: Greeting::new(hello, nonce), open: false }
    }
}

impl Session for Idle {
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        if !self.open {
            if !self.greeting.drive(socket)? {
                return Ok(Step::Wait);
            }
            turn.tally.hello();
            self.open = true;
            return Ok(Step::Ready);
        }
        if turn.phase == Phase::Stop {
            return Ok(Step::Done);
        }
        match socket::receive(socket, &mut [0; 1])? {
            Received::Nothing => Ok(Step::Wait),
            Received::Bytes(_) => Err(Fault::Protocol("bytes on a connection that is idle")),
            Received::End => Err(Fault::Closed("the connection was to be held")),
        }
    }
}

enum EchoState {
    Greeting(Greeting),
    Parked,
    Sending(MessageSender),
    Receiving(MessageReceiver),
}

/// Messages of one size, each answered by one of the same size.
pub(crate) struct Echo {
    state: EchoState,
    order: Order,
    sequence: u64,
    asked: Instant,
    pace: Pace,
}

/// The trigger of a client's next message.
enum Pace {
    /// The answer to the last message.
    Answers,
    /// The due time, and whether the last message counts.
    Given { owed: VecDeque<Due>, counts: bool },
}

impl Echo {
    /// For a hello with [`Task::Echo`].
    pub(crate) fn new(hello: Vec<u8>, order: Order) -> Self {
        let state = EchoState::Greeting(Greeting::new(hello, order.nonce));
        Self { state, order, sequence: 0, asked: Instant::now(), pace: Pace::Answers }
    }

    /// A session that sends a message whenever one is due.
    pub(crate) fn paced(hello: Vec<u8>, order: Order) -> Self {
        Self { pace: Pace::Given { owed: VecDeque::new(), counts: false }, ..Self::new(hello, order) }
    }

    /// The due time of the next message, if any.
    fn next(&mut self, phase: Phase) -> Option<Instant> {
        match &mut self.pace {
            Pace::Answers => matches!(phase, Phase::WarmUp | Phase::Measure).then(Instant::now),
            // Messages that are due before the end are sent after it if necessary, and count.
            Pace::Given { owed, counts } => {
                let due = owed.pop_front()?;
                *counts = due.counts;
                Some(due.since)
            }
        }
    }

    fn message(&self) -> Message {
        Message { size: self.order.size, sequence: self.sequence }
    }
}

impl Session for Echo {
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        loop {
            match &mut self.state {
                EchoState::Greeting(greeting) => {
                    if !greeting.drive(socket)? {
                        return Ok(Step::Wait);
                    }
                    turn.tally.hello();
                    self.state = EchoState::Parked;
                    return Ok(Step::Ready);
                }
                EchoState::Parked => match self.next(turn.phase) {
                    Some(since) => {
                        self.asked = since;
                        self.state = EchoState::Sending(MessageSender::new(self.message()));
                    }
                    None if turn.phase == Phase::Stop => return Ok(Step::Done),
                    None => return Ok(Step::Wait),
                },
                EchoState::Sending(sender) => {
                    if !sender.send(socket, turn.scratch)? {
                        return Ok(Step::Wait);
                    }
                    self.state =
                        EchoState::Receiving(MessageReceiver::new(self.message(), self.order.verify));
                    // The answer makes an edge of its own. To read now would cost processor time of the balancer.
                    return Ok(Step::Wait);
                }
                EchoState::Receiving(receiver) => match receiver.receive(socket, turn.scratch)? {
                    Arrival::Partial => return Ok(Step::Wait),
                    Arrival::End => return Err(Fault::Closed("an answer was due")),
                    Arrival::Complete => {
                        turn.tally.message();
                        match self.pace {
                            Pace::Answers => turn.took(self.asked),
                            Pace::Given { counts: true, .. } => record(turn.latencies, self.asked),
                            Pace::Given { .. } => {}
                        }
                        self.sequence += 1;
                        self.state = EchoState::Parked;
                    }
                },
            }
        }
    }

    fn owe(&mut self, due: Due) {
        if let Pace::Given { owed, .. } = &mut self.pace {
            owed.push_back(due);
        }
    }
}

enum BulkState {
    Greeting(Greeting),
    Moving(Bulk),
}

/// As many bytes as possible, in one direction or both.
pub(crate) struct Stream {
    state: BulkState,
    task: Task,
    verify: bool,
}

impl Stream {
    /// For a hello with one of the bulk tasks.
    pub(crate) fn new(hello: Vec<u8>, order: Order) -> Self {
        let state = BulkState::Greeting(Greeting::new(hello, order.nonce));
        Self { state, task: order.task, verify: order.verify }
    }
}

impl Session for Stream {
    fn drive(&mut self, socket: BorrowedFd<'_>, turn: &mut Turn<'_>) -> Result<Step, Fault> {
        match &mut self.state {
            BulkState::Greeting(greeting) => {
                if !greeting.drive(socket)? {
                    return Ok(Step::Wait);
                }
                turn.tally.hello();
                self.state = BulkState::Moving(Bulk::new(End::Client, self.task, self.verify));
                Ok(Step::Ready)
            }
            BulkState::Moving(_) if turn.phase == Phase::Setup => Ok(Step::Wait),
            BulkState::Moving(bulk) => {
                bulk.drive(socket, turn.phase == Phase::Stop, turn.scratch, turn.tally)
            }
        }
    }
}
