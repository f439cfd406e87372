//! Userspace's part of a connection whose bytes the kernel redirects.
//!
//! Each direction has a task of its own. It sleeps while the kernel redirects, and copies passed bytes until the kernel
//! redirects again ([`super::fallback`]). At the peer's FIN it copies the rest, waits until the receiver's socket has
//! taken everything, and forwards the FIN. A reset of one side ends both directions and resets the other side.

use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    io,
    net::{Shutdown, TcpStream},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};
use snisplice_common::{
    Cookie,
    sockmap::direction::{Control, Flow, TORN},
};
use snisplice_config::model::Offload;
use tokio::time::{sleep, timeout};

use super::{Slot, watch::Also};
use crate::{
    account::Account,
    bpf::{
        sockmap::budget::Budget,
        wakeup::{Peer, Ready, What},
    },
    datapath::{
        broken::{Broken, flush_then_reset},
        idle::idle,
        relay::{progress::Progress, pump::Pump},
        seam::{End, Patience},
    },
    metrics::labels::Direction,
    net::sockopt,
};

/// Limit of the time that the kernel's worker may take to write redirected bytes to one side after the other has reset.
///
/// If the receiver has room, only the scheduler decides when the worker runs. On a busy machine it has run more than a
/// second late. The bytes are safe meanwhile. A reset of the receiver would discard them.
const WORKER_GRACE: Duration = Duration::from_secs(30);

/// The number of checks of a queue that is about to become empty, before a longer pause.
const LOOKS: u32 = 16;

/// Checks, a millisecond apart, after which bytes of the short cut are given up. If the host had no memory, a client's
/// socket may have taken less than the program counted, and the backend never sent again.
const LOST: u32 = 60_000;

/// One socket of the connection.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) peer: Peer,
    pub(super) socket: TcpStream,
    pub(super) cookie: Cookie,
    pub(super) also: Cell<Also>,
    /// Bytes of its stream that the socket had taken before the first redirected byte.
    base: Cell<u64>,
}

impl Leg {
    /// Takes the socket out of the runtime.
    pub(super) fn new(peer: Peer, stream: tokio::net::TcpStream, cookie: Cookie) -> io::Result<Self> {
        let socket = stream.into_std()?;
        Ok(Self { peer, socket, cookie, also: Cell::default(), base: Cell::default() })
    }

    /// Records exactly what the socket has taken so far, while no one writes to it.
    pub(super) fn settle(&self) -> io::Result<()> {
        // An acknowledgement moves bytes from one figure to the other. One that arrives between the two reads makes the
        // sum too small.
        let mut before = taken(&self.socket)?;
        loop {
            let now = taken(&self.socket)?;
            if now == before {
                self.base.set(now);
                return Ok(());
            }
            before = before.max(now);
        }
    }

    /// Peeks at the next byte. No byte means the end of the stream.
    pub(super) fn peek(&self) -> Result<usize, Errno> {
        let mut byte = [0];
        recv(&self.socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT).map(|(peeked, _)| peeked)
    }

    /// Takes the socket's lock and releases it. Every verdict that was in progress has then ended.
    ///
    /// The kernel reports a socket's error to the first caller only. Later callers find an ordinary end of the stream.
    /// So the error must not be overlooked here.
    pub(super) fn lock(&self) -> Result<(), Broken> {
        match self.peek() {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(Broken { peer: self.peer, error: error.into() }),
        }
    }
}

/// Bytes of its stream that the socket has taken from its writers, with or without the SYN. In this order of reads,
/// concurrent acknowledgements make the sum a little too small, never too large.
fn taken(socket: &TcpStream) -> io::Result<u64> {
    let acknowledged = sockopt::tcp_info(socket)?.tcpi_bytes_acked;
    Ok(acknowledged + u64::from(sockopt::unacknowledged(socket)?))
}

/// Userspace's state of one direction.
#[derive(Debug, Default)]
pub(super) struct RedirectState {
    /// Whether the kernel has a flow for the direction.
    pub(super) state: Cell<bool>,
    /// Whether the program processes its packets.
    pub(super) armed: Cell<bool>,
    /// Whether the kernel refused the direction.
    pub(super) refused: Cell<bool>,
    /// Bytes that were copied before the kernel had the direction.
    pub(super) progress: Cell<Progress>,
    /// Bytes that userspace has written to the receiver.
    pub(super) forwarded: Cell<u64>,
    /// The part of them that userspace has published to the kernel.
    pub(super) published: Cell<u64>,
    /// The part of the direction's share that userspace has returned.
    pub(super) returned: Cell<u64>,
    /// Whether the kernel must leave the direction to userspace.
    pub(super) held: Cell<bool>,
    /// Whether the kernel has received any report.
    pub(super) told: Cell<bool>,
    /// Redirected bytes that are in the account already.
    accounted: Cell<u64>,
    /// Whether some of its bytes may take the short cut.
    pub(super) shortcut: Cell<bool>,
}

impl RedirectState {
    /// The kernel does not count bytes written so far.
    pub(super) fn begin(&self) {
        self.forwarded.set(0);
    }
}

/// A connection that the kernel forwards.
pub(super) struct Connection<'a> {
    // Fields are dropped in this order: the sockets are closed before their state is removed.
    client: Leg,
    backend: Leg,
    pub(super) entries: Entries<'a>,
    /// The threshold at which a copied direction is armed. `None` without such a direction.
    rule: Option<Offload>,
    /// Whether the backend is on this host, and its bytes may take the short cut.
    pub(super) same_host: bool,
    /// The side whose failure is already handled.
    broken: Cell<Option<Peer>>,
    /// One direction has forwarded its FIN.
    half_closed: Cell<bool>,
}

/// The kernel's entries for the connection. They are removed and accounted for at its end.
pub(super) struct Entries<'a> {
    pub(super) slot: Slot<'a>,
    pub(super) account: &'a Account,
    cookies: [Cookie; 2],
    ways: [RedirectState; 2],
}

/// The way in which a connection comes to its end.
enum Over {
    /// Both sides have sent FIN, and all earlier bytes were delivered.
    Finished,
    /// One side has sent FIN, and the other one sent nothing for too long.
    Silent,
    Broken(Broken),
}

impl From<Broken> for Over {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        client: Leg,
        backend: Leg,
        slot: Slot<'a>,
        rule: Option<Offload>,
        same_host: bool,
        account: &'a Account,
    ) -> Self {
        let cookies = [client.cookie, backend.cookie];
        let entries = Entries { slot, account, cookies, ways: Default::default() };
        Self {
            client,
            backend,
            entries,
            rule,
            same_host,
            broken: Cell::new(None),
            half_closed: Cell::new(false),
        }
    }

    /// Watches both sockets for their end.
    pub(super) fn watch(&self) -> io::Result<()> {
        let watch = &self.entries.slot.sockmap.watch;
        watch.add(&self.client.socket, self.slot(), Peer::Client)?;
        watch.add(&self.backend.socket, self.slot(), Peer::Backend)
    }

    pub(super) fn slot(&self) -> usize {
        self.entries.slot.number
    }

    pub(super) fn way(&self, direction: Direction) -> &RedirectState {
        &self.entries.ways[direction as usize]
    }

    /// Whether a direction that is copied has moved enough for the kernel to take it.
    pub(super) fn is_due(&self, direction: Direction) -> bool {
        let way = self.way(direction);
        !way.refused.get() && self.rule.is_some_and(|rule| way.progress.get().pays(rule))
    }

    /// The sockets that a direction receives from and sends to.
    pub(super) fn ends(&self, direction: Direction) -> (&Leg, &Leg) {
        match direction {
            Direction::Up => (&self.client, &self.backend),
            Direction::Down => (&self.backend, &self.client),
        }
    }

    /// Serves the connection until its end.
    ///
    /// State that lives while a connection is idle counts for each connection. So rare and short parts are boxed at
    /// the await.
    ///
    /// The pumps hold bytes that were read before and are not yet written.
    pub(super) async fn run(&self, pumps: &mut [Pump; 2]) -> End {
        let [upward, downward] = pumps;
        let over = tokio::select! {
            ended = async {
                tokio::try_join!(
                    self.one_way(Direction::Up, upward),
                    self.one_way(Direction::Down, downward),
                )
            } => match ended {
                Ok((never, _)) => match never {},
                Err(over) => over,
            },
            () = idle(self.patience().idle, || self.progress()) => return End::Idle,
        };
        match over {
            Over::Finished => End::Finished,
            Over::Silent => End::HalfClosed,
            Over::Broken(broken) => {
                let (direction, pump) = match broken.peer {
                    Peer::Client => (Direction::Up, upward),
                    Peer::Backend => (Direction::Down, downward),
                };
                Box::pin(self.pass_on_reset(direction, pump)).await;
                broken.into()
            }
        }
    }

    /// The task of one direction. Rare parts are boxed: an idle connection must not hold memory for them.
    ///
    /// The direction that finishes second ends the pair.
    async fn one_way(&self, direction: Direction, pump: &mut Pump) -> Result<Infallible, Over> {
        let way = self.way(direction);
        if way.armed.get() || Box::pin(self.copy_until_armed(direction, pump)).await? {
            self.kernel_until_fin(direction, pump).await?;
        }
        Box::pin(self.until_taken(direction)).await?;
        let (_, to) = self.ends(direction);
        match to.socket.shutdown(Shutdown::Write) {
            // The receiver has failed already. Its own direction reports the reason.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            result => result.map_err(|error| Broken { peer: to.peer, error })?,
        }
        if self.half_closed.replace(true) {
            return Err(Over::Finished);
        }
        Box::pin(idle(self.patience().half_closed, || self.progress())).await;
        Err(Over::Silent)
    }

    /// Lets the kernel redirect, and copies the bytes that it passes, until the sender's FIN.
    async fn kernel_until_fin(&self, direction: Direction, pump: &mut Pump) -> Result<(), Broken> {
        let (from, _) = self.ends(direction);
        let over = Ready::of(from.peer, What::HangUp);
        loop {
            let wanted = Ready::of(from.peer, What::Passed) | over;
            let happened = match self.spell() {
                None => self.wait(wanted).await?,
                Some(spell) => Box::pin(self.wait_or_hold(wanted, direction, pump, spell)).await?,
            };
            if happened.any(over) {
                return Box::pin(self.copy_rest(direction, pump)).await;
            }
            Box::pin(self.catch_up(direction, pump)).await?;
        }
    }

    /// Waits until the receiver's socket has taken all bytes of a direction that has ended.
    async fn until_taken(&self, direction: Direction) -> Result<(), Broken> {
        if !self.way(direction).armed.get() {
            return Ok(());
        }
        let flow = self.flow(direction)?;
        self.until_flow_taken(direction, &flow).await
    }

    /// Waits until the receiver's socket has taken all redirected bytes. There was room for them, so that takes a
    /// moment, unless the host has no memory left.
    pub(super) async fn until_flow_taken(&self, direction: Direction, flow: &Flow) -> Result<(), Broken> {
        let mut looks = 0;
        loop {
            if self.is_taken(direction, flow)? {
                return Ok(());
            }
            self.check(Ready::both(What::Failed))?;
            looks += 1;
            if self.way(direction).shortcut.get() && looks > LOST {
                let (_, to) = self.ends(direction);
                return Err(Broken { peer: to.peer, error: io::ErrorKind::TimedOut.into() });
            }
            if looks < LOOKS {
                tokio::task::yield_now().await;
            } else {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Whether the receiver's socket has taken all redirected bytes.
    pub(super) fn is_taken(&self, direction: Direction, flow: &Flow) -> Result<bool, Broken> {
        let (_, to) = self.ends(direction);
        let sent = flow.redirected + self.way(direction).forwarded.get() + self.by_shortcut(direction)?;
        let taken = taken(&to.socket).map_err(|error| Broken { peer: to.peer, error })?;
        Ok(taken.saturating_sub(to.base.get()) >= sent)
    }

    /// Handles a failure of a direction's sender: delivers the bytes sent before, then resets the other side. A server
    /// may answer and reset because it did not read the whole request. Its answer must arrive.
    async fn pass_on_reset(&self, direction: Direction, pump: &mut Pump) {
        let (from, to) = self.ends(direction);
        self.broken.set(Some(from.peer));
        let redirected = async {
            // The sender's error is already handled.
            let _ = from.lock();
            self.until_taken(direction).await
        };
        let _ = timeout(WORKER_GRACE, redirected).await;
        let rest = async {
            if self.way(direction).armed.get() {
                // The sender's error is already handled, and its remaining bytes are still delivered.
                let _ = self.copy_rest(direction, pump).await;
            } else {
                self.copy(direction, pump).await?;
            }
            self.until_taken(direction).await
        };
        flush_then_reset(rest, &to.socket).await;
    }

    /// Waits until an event of `wanted` has happened. Also returns when either socket fails.
    pub(super) async fn wait(&self, wanted: Ready) -> Result<Ready, Broken> {
        let failed = match self.broken.get() {
            None => Ready::both(What::Failed),
            Some(Peer::Client) => Ready::of(Peer::Backend, What::Failed),
            Some(Peer::Backend) => Ready::of(Peer::Client, What::Failed),
        };
        let wakeups = &self.entries.slot.sockmap.wakeups;
        loop {
            let happened = poll_fn(|context| wakeups.poll(self.slot(), wanted | failed, context)).await;
            self.check(happened & failed)?;
            if happened.any(wanted) {
                return Ok(happened & wanted);
            }
        }
    }

    /// Checks sockets that are reported as failed.
    fn check(&self, failed: Ready) -> Result<(), Broken> {
        for leg in [&self.client, &self.backend] {
            let mark = Ready::of(leg.peer, What::Failed);
            if !failed.any(mark) || self.broken.get() == Some(leg.peer) {
                continue;
            }
            let broken = |error| Broken { peer: leg.peer, error };
            if let Some(error) = leg.socket.take_error().map_err(broken)? {
                return Err(broken(error));
            }
            self.entries.slot.sockmap.wakeups.clear(self.slot(), mark);
        }
        Ok(())
    }

    /// Changes the events that a socket is watched for.
    pub(super) fn listen(&self, leg: &Leg, change: impl FnOnce(&mut Also)) -> Result<(), Broken> {
        let mut also = leg.also.get();
        change(&mut also);
        if also != leg.also.replace(also) {
            let watch = &self.entries.slot.sockmap.watch;
            let modified = watch.modify(&leg.socket, self.slot(), leg.peer, also);
            modified.map_err(|error| Broken { peer: leg.peer, error })?;
        }
        Ok(())
    }

    pub(super) fn flow(&self, direction: Direction) -> Result<Flow, Broken> {
        let (from, _) = self.ends(direction);
        let flow = self.entries.slot.sockmap.maps.borrow().flow(from.cookie);
        let broken = |error| Broken { peer: from.peer, error };
        let flow = flow.map_err(broken)?;
        if flow.receiving == TORN {
            // The sender must not take its bytes for delivered.
            let _ = sockopt::reset_on_close(&from.socket);
            return Err(broken(io::Error::other("the kernel had no memory to leave repeated bytes out")));
        }
        Ok(flow)
    }

    /// Bytes of a direction that took the short cut. None does while bytes of the direction are on the normal path.
    fn by_shortcut(&self, direction: Direction) -> Result<u64, Broken> {
        let (from, _) = self.ends(direction);
        let moved = self.entries.by_shortcut(from.cookie, self.way(direction));
        moved.map_err(|error| Broken { peer: from.peer, error })
    }

    /// The limits of the connection's silence.
    fn patience(&self) -> Patience {
        let settings = &self.entries.slot.sockmap.settings;
        Patience { idle: settings.idle, half_closed: settings.half_closed }
            .of_connection(self.entries.account)
    }

    /// Changes whenever a byte has moved that counts as activity.
    fn progress(&self) -> (u64, u64) {
        self.entries.bring_account_up_to_date();
        let (up, down) = self.entries.account.bytes();
        Patience::progress(up, down)
    }
}

impl Entries<'_> {
    pub(super) fn budget(&self) -> &Budget {
        self.slot.sockmap.kernel.budget()
    }

    /// Adds the bytes that the kernel has redirected since the last call.
    fn bring_account_up_to_date(&self) {
        for (direction, (cookie, way)) in
            [Direction::Up, Direction::Down].into_iter().zip(self.cookies.iter().zip(&self.ways))
        {
            if !way.armed.get() {
                continue;
            }
            if let (Ok(flow), Ok(moved)) =
                (self.slot.sockmap.maps.borrow().flow(*cookie), self.by_shortcut(*cookie, way))
            {
                let moved = flow.redirected + moved;
                let before = way.accounted.replace(moved);
                // The number of bytes on the short cut may decrease: `Shortcut::decide`.
                self.account.moved(direction, moved.saturating_sub(before));
            }
        }
    }

    fn by_shortcut(&self, from: Cookie, way: &RedirectState) -> io::Result<u64> {
        if way.shortcut.get() { self.slot.sockmap.maps.borrow().by_shortcut(from) } else { Ok(0) }
    }
}

impl Drop for Entries<'_> {
    fn drop(&mut self) {
        self.bring_account_up_to_date();
        let mut maps = self.slot.sockmap.maps.borrow_mut();
        for (cookie, way) in self.cookies.iter().zip(&self.ways) {
            if !way.state.get() {
                continue;
            }
            // The sockets are closed, so the count is final.
            if let Ok(flow) = maps.flow(*cookie) {
                let control = Control { returned: way.returned.get(), ..Control::default() };
                self.budget().give_back(flow.share(&control));
            }
            maps.remove(*cookie, way.told.get());
            if way.shortcut.get() {
                maps.remove_shortcut(*cookie);
            }
        }
    }
}
