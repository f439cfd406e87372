//! The relay: a copy in userspace. Always available, needs no privilege, and is what every other datapath falls
//! back to.

use std::{cell::Cell, future::poll_fn, io, net::Shutdown, pin::pin, time::Duration};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{
    Carry, Datapath, End, HelloMode, Pair,
    copy::{Pump, Step, StepError},
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
        let mut connection = Connection {
            client: pair.client,
            backend: pair.backend,
            upward: Pump::starting_with(pair.hello),
            downward: Pump::default(),
        };
        Box::pin(async move { connection.carry(self.idle, account).await })
    }
}

/// One relayed connection.
struct Connection {
    client: TcpStream,
    backend: TcpStream,
    upward: Pump,
    downward: Pump,
}

impl Connection {
    async fn carry(&mut self, limit: Duration, account: &Account) -> End {
        let Self { client, backend, upward, downward } = self;
        let finished = Cell::new(false);
        let up =
            Way { from: client, to: backend, direction: Direction::Up, account, other_finished: &finished };
        let down =
            Way { from: backend, to: client, direction: Direction::Down, account, other_finished: &finished };
        let ended = tokio::select! {
            ended = up.one_way(upward) => ended,
            ended = down.one_way(downward) => ended,
            () = idle(limit, || account.bytes()) => return End::Idle,
        };
        match ended {
            Ok(()) => End::Finished,
            Err(Broken { side: Side::Client, error }) => {
                Box::pin(up.last_words(upward)).await;
                End::broken_by_client(error)
            }
            Err(Broken { side: Side::Backend, error }) => {
                Box::pin(down.last_words(downward)).await;
                End::broken_by_backend(error)
            }
        }
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

/// One direction.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    direction: Direction,
    account: &'a Account,
    /// Whether one of the two directions has passed its FIN on.
    other_finished: &'a Cell<bool>,
}

impl Way<'_> {
    /// Copies until the sender has sent FIN, then passes the FIN on.
    ///
    /// The direction that finishes second ends the pair. The first one stays to watch its sender: nobody else would
    /// notice that this side, which has sent FIN, now resets.
    async fn one_way(&self, pump: &mut Pump) -> Result<(), Broken> {
        self.copy(pump).await?;
        if self.other_finished.replace(true) {
            // Nothing is left to come from either side, so closing both, which the caller does next, says it.
            return Ok(());
        }
        match SockRef::from(self.to).shutdown(Shutdown::Write) {
            // The receiver is gone already; its own direction reports how.
            Err(error) if error.kind() != io::ErrorKind::NotConnected => return Err(self.by_receiver(error)),
            _ => {}
        }
        Err(self.by_sender(Box::pin(failure(self.from)).await))
    }

    /// Copies until the sender has sent FIN and the receiver has taken everything before it.
    async fn copy(&self, pump: &mut Pump) -> Result<(), Broken> {
        let mut steps = 0;
        loop {
            if !pump.is_blocked() {
                readable(self.from).await.map_err(|error| self.by_sender(error))?;
            }
            match pump.step(self.from, self.to) {
                Ok(Step::Moved { bytes, drained }) => {
                    self.account.moved(self.direction, bytes as u64);
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
                Ok(Step::Eof) => return Ok(()),
                Err(StepError::Read(error)) => return Err(self.by_sender(error)),
                Err(StepError::Write(error)) => return Err(self.by_receiver(error)),
            }
        }
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
        let _ = timeout(FLUSH_GRACE, self.copy(pump)).await;
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
async fn failure(stream: &TcpStream) -> io::Error {
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
