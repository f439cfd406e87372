//! The relay: a copy in userspace. Always available, needs no privilege, and is what every other datapath falls
//! back to.

use std::{cell::Cell, future::poll_fn, io, net::Shutdown, pin::pin, time::Duration};

use snisplice_config::model::Handover;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    Carry, Datapath, End, HelloMode, Pair,
    copy::{Pump, Step, StepError},
    progress::Progress,
};
use crate::{
    account::{Account, Carrier, Direction},
    socket,
};

/// Steps of one direction before the worker's other connections get their turn.
const STEPS_PER_TURN: u32 = 8;

/// How long bytes that were already received may take to reach the one side after the other has reset.
const FLUSH_GRACE: Duration = Duration::from_secs(1);

// A connection that idles for hours holds what is live in its futures: arguments are gathered in structures that are
// borrowed, and the rare and the short parts are boxed where they are awaited.

/// Copies in userspace.
#[derive(Debug, Clone)]
pub struct Relay {
    idle: Duration,
}

impl Relay {
    /// How long a connection may be silent.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    /// A relay that gives up a connection after `idle` without a byte in either direction.
    #[must_use]
    pub fn new(idle: Duration) -> Self {
        Self { idle }
    }
}

impl Datapath for Relay {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn relay<'a>(&'a self, pair: Pair, account: &'a Account) -> Carry<'a> {
        account.carried_by(Carrier::Relay);
        let mut connection = Connection::new(pair);
        // Not `carry_to_end`: a future within a future holds what it is called with twice.
        Box::pin(async move {
            loop {
                if let Carried::ToEnd(end) = connection.carry(self.idle, account, None).await {
                    return end;
                }
            }
        })
    }
}

/// One relayed connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) backend: TcpStream,
    pub(super) upward: Pump,
    pub(super) downward: Pump,
    /// What has been moved, by [`Direction`].
    pub(super) progress: [Cell<Progress>; 2],
    /// As in [`Pair`].
    pub(super) same_host: bool,
}

/// At which moment a direction that has moved enough may go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// When nothing of it is under way in userspace.
    AtRest,
    /// At once.
    Any,
}

/// How far a connection was carried.
pub(super) enum Carried {
    ToEnd(End),
    /// Until a direction had moved enough; of it nothing is under way in userspace.
    ToHandover,
}

/// Why a direction stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Eof,
    Due,
}

impl Connection {
    pub(super) fn new(pair: Pair) -> Self {
        Self {
            client: pair.client,
            backend: pair.backend,
            upward: Pump::starting_with(pair.hello),
            downward: Pump::default(),
            progress: Default::default(),
            same_host: pair.same_host,
        }
    }

    /// Whether bytes that were read still wait for their receiver.
    pub(super) fn is_blocked(&self) -> bool {
        self.upward.is_blocked() || self.downward.is_blocked()
    }

    /// Copies both ways to the end. Dropping the future loses nothing: what was read and not written is kept.
    pub(super) async fn carry_to_end(&mut self, limit: Duration, account: &Account) -> End {
        loop {
            // Without a rule there is no handover.
            if let Carried::ToEnd(end) = self.carry(limit, account, None).await {
                return end;
            }
        }
    }

    /// Copies until both directions have ended, or until `rule` says that going on in the kernel pays for one of them.
    pub(super) async fn carry(
        &mut self,
        limit: Duration,
        account: &Account,
        rule: Option<(Handover, Moment)>,
    ) -> Carried {
        let Self { client, backend, upward, downward, progress, .. } = self;
        let shared = Shared { account, rule, half_closed: Cell::new(false) };
        let [up, down] = progress;
        let up = Way { from: client, to: backend, direction: Direction::Up, progress: up, shared: &shared };
        let down =
            Way { from: backend, to: client, direction: Direction::Down, progress: down, shared: &shared };
        let stopped = tokio::select! {
            stopped = up.one_way(upward) => stopped,
            stopped = down.one_way(downward) => stopped,
            () = idle(limit, || account.bytes()) => return Carried::ToEnd(End::Idle),
        };
        Carried::ToEnd(match stopped {
            Ok(Stop::Due) => return Carried::ToHandover,
            Ok(Stop::Eof) => End::Finished,
            Err(Broken { side: Side::Client, error }) => {
                Box::pin(up.last_words(upward)).await;
                End::broken_by_client(error)
            }
            Err(Broken { side: Side::Backend, error }) => {
                Box::pin(down.last_words(downward)).await;
                End::broken_by_backend(error)
            }
        })
    }
}

/// The side whose socket failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Backend,
}

#[derive(Debug)]
struct Broken {
    side: Side,
    error: io::Error,
}

/// What both directions look at.
struct Shared<'a> {
    account: &'a Account,
    /// When the kernel takes over; `None` is never.
    rule: Option<(Handover, Moment)>,
    /// One of the two directions has passed its FIN on.
    half_closed: Cell<bool>,
}

/// One direction.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    direction: Direction,
    progress: &'a Cell<Progress>,
    shared: &'a Shared<'a>,
}

impl Way<'_> {
    /// Copies until the sender has sent FIN, then passes the FIN on; or until the kernel is to take over.
    ///
    /// The direction that finishes second ends the pair. The first one stays to watch its sender: nobody else would
    /// notice that this side, which has sent FIN, now resets.
    async fn one_way(&self, pump: &mut Pump) -> Result<Stop, Broken> {
        if self.copy(pump).await? == Stop::Due {
            return Ok(Stop::Due);
        }
        if self.shared.half_closed.replace(true) {
            // Nothing is left to come from either side, so closing both, which the caller does next, says it.
            return Ok(Stop::Eof);
        }
        match SockRef::from(self.to).shutdown(Shutdown::Write) {
            // The receiver is gone already; its own direction reports how.
            Err(error) if error.kind() != io::ErrorKind::NotConnected => return Err(self.by_receiver(error)),
            _ => {}
        }
        Err(self.by_sender(Box::pin(failure(self.from)).await))
    }

    /// Copies until the sender has sent FIN and the receiver has taken everything before it, or until the direction is
    /// due: then the receiver has taken everything that was read.
    async fn copy(&self, pump: &mut Pump) -> Result<Stop, Broken> {
        let mut steps = 0;
        loop {
            if !pump.is_blocked() {
                readable(self.from).await.map_err(|error| self.by_sender(error))?;
            }
            match pump.step(self.from, self.to) {
                Ok(Step::Moved { bytes, drained }) => {
                    self.shared.account.moved(self.direction, bytes as u64);
                    self.progress.set(self.progress.get().after(bytes));
                    if self.is_due(drained && !pump.is_blocked()) {
                        return Ok(Stop::Due);
                    }
                    if drained {
                        forget(self.from, Interest::READABLE);
                        steps = 0;
                        continue;
                    }
                    steps += 1;
                    if steps >= STEPS_PER_TURN {
                        tokio::task::yield_now().await;
                        steps = 0;
                    }
                }
                Ok(Step::WantRead) => forget(self.from, Interest::READABLE),
                Ok(Step::WantWrite) => {
                    Box::pin(self.until_taken()).await?;
                    steps = 0;
                }
                Ok(Step::Eof) => return Ok(Stop::Eof),
                Err(StepError::Read(error)) => return Err(self.by_sender(error)),
                Err(StepError::Write(error)) => return Err(self.by_receiver(error)),
            }
        }
    }

    /// Whether the kernel shall take over. It takes only connections of which neither side has sent FIN.
    fn is_due(&self, at_rest: bool) -> bool {
        let Some((rule, moment)) = self.shared.rule else { return false };
        (at_rest || moment == Moment::Any) && self.progress.get().pays(rule) && !self.shared.half_closed.get()
    }

    /// Waits until the receiver takes bytes again. Nobody reads from the sender meanwhile, so its reset must be looked
    /// for here.
    async fn until_taken(&self) -> Result<(), Broken> {
        tokio::select! {
            writable = until_writable(self.to) => writable.map_err(|error| self.by_receiver(error)),
            error = failure(self.from) => Err(self.by_sender(error)),
        }
    }

    /// Passes a failure of the sender on to the receiver, after what it sent before that: a server that answers and
    /// then resets because it did not read the whole request must be heard.
    async fn last_words(&self, pump: &mut Pump) {
        let rest = async { while let Ok(Stop::Due) = self.copy(pump).await {} };
        let _ = timeout(FLUSH_GRACE, rest).await;
        let _ = timeout(FLUSH_GRACE, delivered(self.to)).await;
        let _ = socket::reset_on_close(self.to);
    }

    fn by_sender(&self, error: io::Error) -> Broken {
        let side = match self.direction {
            Direction::Up => Side::Client,
            Direction::Down => Side::Backend,
        };
        Broken { side, error }
    }

    fn by_receiver(&self, error: io::Error) -> Broken {
        let side = match self.direction {
            Direction::Up => Side::Backend,
            Direction::Down => Side::Client,
        };
        Broken { side, error }
    }
}

/// Waits until there may be something to read, as far as the runtime has heard.
async fn readable(stream: &TcpStream) -> io::Result<()> {
    poll_fn(|context| stream.poll_read_ready(context)).await
}

/// Forgets the readiness that the last call disproved, then waits for the next.
async fn until_writable(stream: &TcpStream) -> io::Result<()> {
    forget(stream, Interest::WRITABLE);
    poll_fn(|context| stream.poll_write_ready(context)).await
}

fn forget(stream: &TcpStream, interest: Interest) {
    // The call exists for its side effect: an operation that "would block" clears the cached readiness.
    let _: io::Result<()> = stream.try_io(interest, || Err(io::ErrorKind::WouldBlock.into()));
}

/// Waits until the socket has failed, whatever is still queued on it.
pub(super) async fn failure(stream: &TcpStream) -> io::Error {
    loop {
        match stream.ready(Interest::ERROR).await {
            Err(error) => return error,
            Ok(_) => match stream.take_error() {
                Err(error) | Ok(Some(error)) => return error,
                Ok(None) => forget(stream, Interest::ERROR),
            },
        }
    }
}

/// Waits until the peer has acknowledged everything written, or cannot any more.
async fn delivered(stream: &TcpStream) {
    let mut pause = Duration::from_millis(1);
    while matches!(socket::unacknowledged(stream), Ok(1..)) {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Resolves once `progress` has not changed for `limit` (at most twice as late: it looks once in each `limit`).
pub(super) async fn idle<T: PartialEq>(limit: Duration, progress: impl Fn() -> T) {
    let mut seen = progress();
    let mut timer = pin!(sleep(limit));
    loop {
        timer.as_mut().await;
        let now = progress();
        if now == seen {
            return;
        }
        seen = now;
        timer.as_mut().reset(Instant::now() + limit);
    }
}
