//! The relay: a copy in userspace. It is always available, needs no privilege, and is the fallback of every other
//! datapath.
//!
//! Nearly all the time, a connection is copied from its senders to receivers that keep up. That needs no state but the
//! connection itself, and is polled in this file. The rest ([`slow_path`]) lives in a box while it lasts.

use std::{
    cell::Cell,
    future::{Future as _, poll_fn},
    io,
    mem::replace,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use snisplice_config::model::{Offload, scope::ScopedTimeouts};
use tokio::{
    io::Interest,
    net::TcpStream,
    task::yield_now,
    time::{Instant, Sleep, sleep},
};

pub(super) use self::slow_path::failure;
use self::{
    progress::Progress,
    pump::{Pump, Step, StepError},
};
use super::{
    broken::Broken,
    seam::{Datapath, End, Forward, HelloMode, Pair, Patience},
};
use crate::{
    account::Account,
    bpf::wakeup::Peer,
    metrics::labels::{Carrier, Direction},
    net::keepalive::Keepalive,
};

pub mod progress;
pub mod pump;
mod slow_path;

/// Steps of one direction before the worker's other connections get their turn.
const STEPS_PER_TURN: u32 = 8;

/// The age at which a connection's backend socket gets the options of [`Keepalive`]. They cost four system calls, and a
/// peer is probed only after at least a second of silence.
const SHORT: Duration = Duration::from_secs(1);

// A connection that is idle for hours holds the live variables of its futures. So arguments are gathered in
// structures that are borrowed, and rare and short parts are boxed at the await.

/// Copies in userspace.
#[derive(Debug, Clone)]
pub struct Relay {
    options: CopyOptions,
}

/// The goal of a copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopyOptions {
    /// The limits of its silence, unless the connection has limits of its own. `None` is no limit.
    pub(super) patience: Option<Patience>,
    /// The thresholds and the moment of the offload. `None` is never.
    pub(super) handover: Option<(Offload, HandoverPoint)>,
}

/// The context of copying one connection.
#[derive(Clone, Copy)]
pub(super) struct CopyContext<'a> {
    pub(super) options: &'a CopyOptions,
    pub(super) account: &'a Account,
}

impl CopyOptions {
    /// To the end.
    pub(super) const fn to_end(patience: Patience) -> Self {
        Self { patience: Some(patience), handover: None }
    }

    /// To the end, after any silence.
    pub(super) const fn with_any_silence() -> Self {
        Self { patience: None, handover: None }
    }

    /// The limits of a connection's silence.
    pub(super) fn patience(&self, account: &Account) -> Patience {
        match self.patience {
            Some(patience) => patience.of_connection(account),
            None => ScopedTimeouts::NEVER.into(),
        }
    }
}

impl CopyContext<'_> {
    /// The limits of the connection's silence.
    fn patience(&self) -> Patience {
        self.options.patience(self.account)
    }
}

impl Relay {
    /// The options for copying a connection to its end.
    pub(super) fn options(&self) -> &CopyOptions {
        &self.options
    }

    /// The limits of a connection without its own.
    pub(super) fn patience(&self) -> Patience {
        self.options.patience.unwrap_or_else(|| ScopedTimeouts::NEVER.into())
    }

    /// A relay that gives up a connection that is silent for longer.
    #[must_use]
    pub fn new(patience: impl Into<Patience>) -> Self {
        Self { options: CopyOptions::to_end(patience.into()) }
    }
}

impl Datapath for Relay {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn forward<'a>(&'a self, pair: Pair, account: &'a Account) -> Forward<'a> {
        account.set_carrier(Carrier::Relay);
        let mut connection = Connection::new(pair);
        let copy = CopyContext { options: &self.options, account };
        // Not `carry_to_end`: a future within a future holds its arguments twice.
        Box::pin(async move {
            loop {
                if let Carried::ToEnd(end) = connection.carry(&copy).await {
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
    /// Moved bytes, by [`Direction`].
    pub(super) progress: [Cell<Progress>; 2],
    /// See [`Pair`].
    pub(super) same_host: bool,
    /// Options that the backend's socket does not have yet.
    unwatched: Option<Rc<Keepalive>>,
}

/// The moment at which a direction that has moved enough may be offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandoverPoint {
    /// When no byte of the direction is in flight in userspace.
    AtRest,
    /// At once.
    Any,
}

/// The result of copying a connection.
pub(super) enum Carried {
    ToEnd(End),
    /// Until a direction had moved enough. None of its bytes are in flight in userspace.
    ToHandover,
}

/// The event that interrupts the copy of a connection.
enum Turn {
    /// Other connections have waited long enough.
    Yield,
    /// A direction has moved enough.
    Due,
    /// The timer has expired.
    Clock,
    /// A receiver does not keep up, or the sender of this direction has sent FIN.
    Wait(Option<Direction>),
    Broken(Broken),
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
            unwatched: pair.keepalive,
        }
    }

    /// Whether bytes that were read still wait for their receiver.
    pub(super) fn is_blocked(&self) -> bool {
        self.upward.is_blocked() || self.downward.is_blocked()
    }

    /// Sets the keepalive options of the backend's socket, unless they are set already.
    pub(super) fn watch(&mut self) {
        watch(&self.backend, &mut self.unwatched);
    }

    /// Copies in both directions to the end. Dropping the future loses no byte: bytes that were read and not written
    /// are kept. `options` must exclude an offload.
    pub(super) async fn carry_to_end(&mut self, options: &CopyOptions, account: &Account) -> End {
        loop {
            if let Carried::ToEnd(end) = self.carry(&CopyContext { options, account }).await {
                return end;
            }
        }
    }

    /// Copies until both directions have ended, or until an offload of one of them pays.
    pub(super) async fn carry(&mut self, copy: &CopyContext<'_>) -> Carried {
        let (first, mut seen) = first_look(copy, self.unwatched.is_some());
        let mut timer = pin!(sleep(first));
        loop {
            let turn = poll_fn(|context| {
                if let Poll::Ready(turn) = self.poll(context, copy) {
                    return Poll::Ready(turn);
                }
                timer.as_mut().poll(context).map(|()| Turn::Clock)
            });
            match turn.await {
                Turn::Yield => yield_now().await,
                Turn::Due => return Carried::ToHandover,
                Turn::Clock => {
                    self.watch();
                    if is_silent(&mut seen, timer.as_mut(), copy) {
                        return Carried::ToEnd(End::Idle);
                    }
                }
                Turn::Wait(ended) => {
                    let (ways, pumps, backend, unwatched) = self.split(copy);
                    let mut waiting = Box::pin(slow_path::carry(ways, pumps, ended));
                    let over = loop {
                        let either = poll_fn(|context| match waiting.as_mut().poll(context) {
                            Poll::Ready(over) => Poll::Ready(Some(over)),
                            Poll::Pending => timer.as_mut().poll(context).map(|()| None),
                        });
                        if let Some(over) = either.await {
                            break over;
                        }
                        watch(backend, unwatched);
                        if is_silent(&mut seen, timer.as_mut(), copy) {
                            return Carried::ToEnd(End::Idle);
                        }
                    };
                    if let Some(carried) = over {
                        return carried;
                    }
                }
                Turn::Broken(broken) => {
                    let (ways, pumps, ..) = self.split(copy);
                    return Carried::ToEnd(Box::pin(slow_path::broken(ways, pumps, broken)).await);
                }
            }
        }
    }

    /// Copies until both senders pause, or until a rare event happens.
    fn poll(&mut self, context: &mut Context<'_>, copy: &CopyContext<'_>) -> Poll<Turn> {
        let ([up, down], [upward, downward], ..) = self.split(copy);
        let first = up.poll(upward, context);
        if let Poll::Ready(Turn::Broken(_) | Turn::Due) = first {
            return first;
        }
        // Both directions have their turn, with any number of bytes in the first one.
        let second = down.poll(downward, context);
        match (first, second) {
            (Poll::Ready(turn), Poll::Pending | Poll::Ready(Turn::Yield)) => Poll::Ready(turn),
            (_, second) => second,
        }
    }

    /// Both directions, and the state of the timer.
    fn split<'a>(
        &'a mut self,
        copy: &CopyContext<'a>,
    ) -> ([CopyDirection<'a>; 2], [&'a mut Pump; 2], &'a TcpStream, &'a mut Option<Rc<Keepalive>>) {
        let Self { client, backend, upward, downward, progress: [up, down], unwatched, .. } = self;
        let (client, backend) = (&*client, &*backend);
        let up =
            CopyDirection { from: client, to: backend, direction: Direction::Up, progress: up, copy: *copy };
        let down = CopyDirection {
            from: backend,
            to: client,
            direction: Direction::Down,
            progress: down,
            copy: *copy,
        };
        ([up, down], [upward, downward], backend, unwatched)
    }
}

fn watch(backend: &TcpStream, unwatched: &mut Option<Rc<Keepalive>>) {
    if let Some(keepalive) = unwatched.take() {
        // On failure, an unreachable peer is detected later.
        let _ = keepalive.apply(backend);
    }
}

/// No check has begun a period of silence yet.
const UNSEEN: u64 = u64::MAX;

/// The time of the first check of the clock, and the progress at its start.
fn first_look(copy: &CopyContext<'_>, is_unwatched: bool) -> (Duration, u64) {
    let idle = copy.patience().idle;
    if is_unwatched && SHORT < idle { (SHORT, UNSEEN) } else { (idle, moved(copy.account)) }
}

/// Whether nothing has moved since the last check, a whole period ago. Restarts the timer.
fn is_silent(seen: &mut u64, timer: Pin<&mut Sleep>, copy: &CopyContext<'_>) -> bool {
    let before = replace(seen, moved(copy.account));
    if *seen == before {
        return true;
    }
    timer.reset(Instant::now() + copy.patience().idle);
    false
}

/// Changes whenever a byte has moved that counts as activity.
fn moved(account: &Account) -> u64 {
    let (up, down) = account.bytes();
    let (up, down) = Patience::progress(up, down);
    up.wrapping_add(down)
}

/// One direction.
#[derive(Clone, Copy)]
struct CopyDirection<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    direction: Direction,
    progress: &'a Cell<Progress>,
    copy: CopyContext<'a>,
}

impl CopyDirection<'_> {
    /// Copies the available bytes.
    fn poll(&self, pump: &mut Pump, context: &mut Context<'_>) -> Poll<Turn> {
        let mut steps = 0;
        loop {
            if !pump.is_blocked()
                && let Err(error) = ready!(self.from.poll_read_ready(context))
            {
                return Poll::Ready(Turn::Broken(self.by_sender(error)));
            }
            match pump.step(self.from, self.to) {
                Ok(Step::Moved { bytes, drained }) => {
                    if self.moved(bytes, drained && !pump.is_blocked()) {
                        return Poll::Ready(Turn::Due);
                    }
                    if drained {
                        forget(self.from, Interest::READABLE);
                        steps = 0;
                        continue;
                    }
                    steps += 1;
                    if steps >= STEPS_PER_TURN {
                        return Poll::Ready(Turn::Yield);
                    }
                }
                Ok(Step::WantRead) => forget(self.from, Interest::READABLE),
                Ok(Step::WantWrite) => return Poll::Ready(Turn::Wait(None)),
                Ok(Step::Eof) => return Poll::Ready(Turn::Wait(Some(self.direction))),
                Err(error) => return Poll::Ready(Turn::Broken(self.broken_by(error))),
            }
        }
    }

    /// Records moved bytes. Returns whether the direction is due for an offload, if no side has sent FIN.
    fn moved(&self, bytes: usize, at_rest: bool) -> bool {
        self.copy.account.moved(self.direction, bytes as u64);
        let progress = self.progress.get().after(bytes);
        self.progress.set(progress);
        let due = |(rule, point): (Offload, HandoverPoint)| {
            (at_rest || point == HandoverPoint::Any) && progress.pays(rule)
        };
        self.copy.options.handover.is_some_and(due)
    }

    fn broken_by(&self, error: StepError) -> Broken {
        match error {
            StepError::Read(error) => self.by_sender(error),
            StepError::Write(error) => self.by_receiver(error),
        }
    }

    fn by_sender(&self, error: io::Error) -> Broken {
        let peer = match self.direction {
            Direction::Up => Peer::Client,
            Direction::Down => Peer::Backend,
        };
        Broken { peer, error }
    }

    fn by_receiver(&self, error: io::Error) -> Broken {
        let peer = match self.direction {
            Direction::Up => Peer::Backend,
            Direction::Down => Peer::Client,
        };
        Broken { peer, error }
    }
}

/// Clears the readiness that the last call disproved.
fn forget(stream: &TcpStream, interest: Interest) {
    // The call exists for its side effect: an operation that "would block" clears the cached readiness.
    let _: io::Result<()> = stream.try_io(interest, || Err(io::ErrorKind::WouldBlock.into()));
}
