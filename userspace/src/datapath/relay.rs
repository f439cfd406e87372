//! The relay: a copy in userspace. Always available, needs no privilege, and is what every other datapath falls
//! back to.

use std::{cell::Cell, future::poll_fn, io, net::Shutdown, time::Duration};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{sleep, timeout},
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

    async fn carry(&self, pair: Pair, account: &Account) -> End {
        account.carried_by(Carrier::Relay);
        let Pair { client, backend, hello } = pair;
        let mut upward = Pump::starting_with(hello);
        let mut downward = Pump::default();
        let first_to_finish = Cell::new(true);
        let ended = tokio::select! {
            ended = one_way(&client, &backend, &mut upward, Direction::Up, account, &first_to_finish) => ended,
            ended = one_way(&backend, &client, &mut downward, Direction::Down, account, &first_to_finish) => ended,
            () = idle(self.idle, || account.bytes()) => return End::Idle,
        };
        // What one side sent before it failed is still delivered: a server that answers and then resets because it
        // did not read the whole request must be heard.
        match ended {
            Ok(()) => End::Finished,
            Err(Broken { side: Side::Client, error }) => {
                let rest = copy(&client, &backend, &mut upward, Direction::Up, account);
                let _ = timeout(FLUSH_GRACE, rest).await;
                reset(backend).await;
                End::broken_by_client(error)
            }
            Err(Broken { side: Side::Backend, error }) => {
                let rest = copy(&backend, &client, &mut downward, Direction::Down, account);
                let _ = timeout(FLUSH_GRACE, rest).await;
                reset(client).await;
                End::broken_by_backend(error)
            }
        }
    }
}

impl Datapath for Relay {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn relay<'a>(&'a self, pair: Pair, account: &'a Account) -> Carry<'a> {
        Box::pin(self.carry(pair, account))
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

impl Direction {
    fn sender(self) -> Side {
        match self {
            Self::Up => Side::Client,
            Self::Down => Side::Backend,
        }
    }

    fn receiver(self) -> Side {
        match self {
            Self::Up => Side::Backend,
            Self::Down => Side::Client,
        }
    }
}

/// Copies until `from` has sent FIN, then passes the FIN on.
///
/// The direction that finishes second ends the pair. The first one stays to watch its sender: nobody else would
/// notice that this side, which has sent FIN, now resets.
async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    pump: &mut Pump,
    direction: Direction,
    account: &Account,
    first_to_finish: &Cell<bool>,
) -> Result<(), Broken> {
    copy(from, to, pump, direction, account).await?;
    match SockRef::from(to).shutdown(Shutdown::Write) {
        // The receiver is gone already; its own direction reports how.
        Err(error) if error.kind() != io::ErrorKind::NotConnected => {
            return Err(Broken { side: direction.receiver(), error });
        }
        _ => {}
    }
    if first_to_finish.replace(false) {
        return Err(Broken { side: direction.sender(), error: failure(from).await });
    }
    Ok(())
}

/// Copies until `from` has sent FIN and everything before it was taken by `to`.
async fn copy(
    from: &TcpStream,
    to: &TcpStream,
    pump: &mut Pump,
    direction: Direction,
    account: &Account,
) -> Result<(), Broken> {
    let by_sender = |error| Broken { side: direction.sender(), error };
    let by_receiver = |error| Broken { side: direction.receiver(), error };
    let mut steps = 0;
    loop {
        match pump.step(from, to) {
            Ok(Step::Moved { bytes, drained }) => {
                account.moved(direction, bytes as u64);
                steps += 1;
                if pump.is_blocked() {
                    continue;
                }
                if drained {
                    until_readable(from).await.map_err(by_sender)?;
                    steps = 0;
                } else if steps >= STEPS_PER_TURN {
                    tokio::task::yield_now().await;
                    steps = 0;
                }
            }
            Ok(Step::WantRead) => {
                until_readable(from).await.map_err(by_sender)?;
                steps = 0;
            }
            Ok(Step::WantWrite) => {
                // Nobody reads `from` meanwhile, so its reset must be looked for here.
                tokio::select! {
                    writable = until_writable(to) => writable.map_err(by_receiver)?,
                    failed = failure(from) => return Err(by_sender(failed)),
                }
                steps = 0;
            }
            Ok(Step::Eof) => return Ok(()),
            Err(StepError::Read(error)) => return Err(by_sender(error)),
            Err(StepError::Write(error)) => return Err(by_receiver(error)),
        }
    }
}

/// Forgets the readiness that the last call disproved, then waits for the next.
async fn until_readable(stream: &TcpStream) -> io::Result<()> {
    forget(stream, Interest::READABLE);
    poll_fn(|context| stream.poll_read_ready(context)).await
}

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
                Ok(None) => {
                    let _: io::Result<()> = stream.try_io(Interest::ERROR, || Err(io::ErrorKind::WouldBlock.into()));
                }
            },
        }
    }
}

/// Passes a reset on: what was already received is delivered first, as far as the receiver takes it.
pub(super) async fn reset(stream: TcpStream) {
    let _ = timeout(FLUSH_GRACE, delivered(&stream)).await;
    let _ = socket::reset_on_close(&stream);
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
    loop {
        sleep(limit).await;
        let now = progress();
        if now == seen {
            return;
        }
        seen = now;
    }
}
