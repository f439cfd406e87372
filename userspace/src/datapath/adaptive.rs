//! The adaptive datapath, `auto` where the kernel can do more than copy. It copies first, and moves a connection into
//! the kernel if that pays.
//!
//! The offload of a connection costs about as much as its accept, and saves a little with each message. A short
//! connection never earns that back. So a connection is copied until a direction has moved as much as [`Offload`] says.
//!
//! Then it moves to packets ([`super::packet`]), at any moment, if it is eligible and if its packets are seen to pass
//! the programs. Otherwise each direction is redirected separately ([`super::sockmap`]), at a moment when none of its
//! bytes are under way in userspace. Such a moment comes only while the receiver keeps up. A slower receiver sets the
//! pace, and a copy is as good. No direction moves back permanently: a silent or chatty one costs nothing there.
//!
//! The capabilities of the kernel may be unknown when the first connections arrive. They are copied, and move once the
//! capabilities are known.

use std::{
    cell::{Cell, OnceCell},
    future::Future,
    io,
    ops::ControlFlow,
    os::fd::BorrowedFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use snisplice_config::model::Offload;

use super::{
    packet::{Packet, Seen, Watched, leg},
    relay::{Carried, Connection, CopyContext, CopyOptions, HandoverPoint, Relay},
    seam::{Datapath, End, Forward, HelloMode, InKernel, Pair},
    sockmap::{self, Sockmap},
};
use crate::{account::Account, metrics::labels::Carrier};

/// One worker's instance.
#[derive(Debug)]
pub struct Adaptive {
    relay: Relay,
    /// The datapaths in the kernel, once they are known.
    carriers: OnceCell<Carriers>,
    rule: Offload,
    /// The options for copying a connection, by [`Goal`].
    options: [CopyOptions; 4],
}

/// The datapaths that connections move to.
#[derive(Debug)]
struct Carriers {
    packet: Option<Packet>,
    sockmap: Option<Sockmap>,
    /// Whether the kernel has turned out to be faulty, so that no further connection moves.
    withdrawn: Cell<bool>,
}

/// The event that a copied connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// The capabilities of the kernel are known.
    Knowledge,
    /// The connection can move to packets.
    Packets,
    /// A direction can be redirected.
    Redirection,
    /// Its end.
    End,
}

/// A copied connection, until it ends or moves to another datapath.
type Copying<'a> = Pin<Box<dyn Future<Output = Next<'a>> + 'a>>;

/// The step after copying.
enum Next<'a> {
    End(End),
    Carried(Forward<'a>),
}

/// The datapath of a connection at this moment. Each stage is dropped before the next begins.
enum Stage<'a> {
    Copied(Copying<'a>),
    Carried(Forward<'a>),
}

impl Future for Stage<'_> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<End> {
        loop {
            match &mut *self {
                Self::Copied(copying) => match ready!(copying.as_mut().poll(context)) {
                    Next::End(end) => return Poll::Ready(end),
                    Next::Carried(carried) => *self = Self::Carried(carried),
                },
                Self::Carried(carried) => return carried.as_mut().poll(context),
            }
        }
    }
}

impl Adaptive {
    /// Copies with `relay` until `rule` hands over to what [`Datapath::gain`] brings.
    #[must_use]
    pub fn new(relay: Relay, rule: Offload) -> Self {
        let to_end = *relay.options();
        let until = |moment| CopyOptions { handover: Some((rule, moment)), ..to_end };
        let options =
            [until(HandoverPoint::Any), until(HandoverPoint::Any), until(HandoverPoint::AtRest), to_end];
        Self { relay, carriers: OnceCell::new(), rule, options }
    }

    fn packet(&self) -> Option<&Packet> {
        self.carriers.get()?.packet.as_ref()
    }

    fn sockmap(&self) -> Option<&Sockmap> {
        self.carriers.get()?.sockmap.as_ref()
    }

    fn options(&self, goal: Goal) -> &CopyOptions {
        &self.options[goal as usize]
    }

    fn first_goal(&self, same_host: bool) -> Goal {
        match self.carriers.get() {
            None => Goal::Knowledge,
            Some(Carriers { withdrawn, .. }) if withdrawn.get() => Goal::End,
            // A connection with the short cut keeps it.
            Some(Carriers { packet: Some(_), sockmap, .. }) if !(same_host && sockmap.is_some()) => {
                Goal::Packets
            }
            Some(_) => self.second_goal(),
        }
    }

    fn second_goal(&self) -> Goal {
        if self.sockmap().is_some() { Goal::Redirection } else { Goal::End }
    }

    /// Copies a connection until the kernel takes it.
    #[expect(clippy::manual_async_fn, reason = "an `async fn` would hold the connection twice")]
    fn copy<'a>(
        &'a self,
        mut copied: Connection,
        account: &'a Account,
    ) -> impl Future<Output = Next<'a>> + 'a {
        async move {
            let mut goal = self.first_goal(copied.same_host);
            let mut watched = None;
            loop {
                let copy = CopyContext { options: self.options(goal), account };
                if let Carried::ToEnd(end) = copied.carry(&copy).await {
                    return Next::End(end);
                }
                copied.watch();
                match (goal, self.packet(), self.sockmap()) {
                    (Goal::Knowledge, ..) => goal = self.first_goal(copied.same_host),
                    (Goal::Packets, Some(packet), _) => {
                        match self.to_packets(packet, watched.take(), copied, account) {
                            ControlFlow::Break(carried) => return Next::Carried(carried),
                            ControlFlow::Continue((back, seen)) => {
                                copied = back;
                                watched = seen;
                            }
                        }
                        if watched.is_none() {
                            goal = self.second_goal();
                        }
                    }
                    (Goal::Redirection, _, Some(sockmap)) => {
                        return Next::Carried(sockmap.adopt(Box::new(copied), self.rule, account));
                    }
                    _ => goal = Goal::End,
                }
            }
        }
    }

    /// Moves a connection to packets. Returns it if it is not eligible, or not known to be, together with the watch on
    /// its packets.
    fn to_packets<'a>(
        &'a self,
        packet: &'a Packet,
        watched: Option<Box<Watched>>,
        copied: Connection,
        account: &'a Account,
    ) -> ControlFlow<Forward<'a>, (Connection, Option<Box<Watched>>)> {
        let Some(watched) = watched else {
            let watched = packet.watch(&copied, account).map(Box::new);
            return ControlFlow::Continue((copied, watched));
        };
        match packet.is_seen(*watched, account) {
            Seen::Yes(watched) => match packet.adopt(watched, Box::new(copied), account) {
                Ok(flow) => ControlFlow::Break(Box::pin(Box::new(flow).run(self.options(Goal::End)))),
                Err(copied) => ControlFlow::Continue((*copied, None)),
            },
            Seen::NotYet(watched) => ControlFlow::Continue((copied, Some(Box::new(watched)))),
            Seen::Never => ControlFlow::Continue((copied, None)),
        }
    }
}

impl Datapath for Adaptive {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn announce(&self, upstream: BorrowedFd<'_>) -> bool {
        self.sockmap().is_some_and(|sockmap| sockmap.announce(upstream))
    }

    fn largest_segment(&self, client: BorrowedFd<'_>) -> Option<u32> {
        match self.carriers.get() {
            Some(carriers) => carriers.packet.as_ref()?.largest_segment(client),
            // The connection may move to packets later.
            None if self.rule.packet => leg::largest_segment(client),
            None => None,
        }
    }

    fn gain(&self, found: &InKernel) -> io::Result<()> {
        let patience = self.relay.patience();
        let packet = found.packet.clone().map(|programs| Packet::new(programs, patience)).transpose()?;
        let settings = sockmap::Settings::new(patience);
        let sockmap =
            found.sockmap.clone().map(|programs| Sockmap::new(programs, self.relay.clone(), settings));
        let carriers = Carriers { packet, sockmap: sockmap.transpose()?, withdrawn: Cell::new(false) };
        // Only the first call counts: connections may have moved already.
        let _ = self.carriers.set(carriers);
        Ok(())
    }

    fn withdraw(&self) {
        if let Some(carriers) = self.carriers.get() {
            carriers.withdrawn.set(true);
        }
    }

    fn forward<'a>(&'a self, pair: Pair, account: &'a Account) -> Forward<'a> {
        account.set_carrier(Carrier::Relay);
        Box::pin(Stage::Copied(Box::pin(self.copy(Connection::new(pair), account))))
    }

    fn moved(&self, account: &Account) -> (u64, u64) {
        match (account.carrier(), self.packet(), self.sockmap()) {
            (Some(Carrier::Packet), Some(packet), _) => packet.moved(account),
            (Some(Carrier::Sockmap), _, Some(sockmap)) => sockmap.moved(account),
            _ => account.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// As [`crate::proxy::session`]'s test of an idle connection.
    #[tokio::test]
    async fn an_idle_connection_stays_small() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let backend = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let pair = Pair { client, backend, hello: Vec::new(), same_host: false, keepalive: None };
        let account = Account::default();
        let adaptive = Adaptive::new(Relay::new(Duration::MAX), Offload::default());
        let copied = size_of_val(&adaptive.copy(Connection::new(pair), &account));
        assert!(copied <= 448, "a connection that is copied takes {copied} bytes");
    }

    #[tokio::test]
    async fn what_the_kernel_can_do_comes_later_and_may_go() {
        let adaptive = Adaptive::new(Relay::new(Duration::MAX), Offload::default());
        assert_eq!(adaptive.first_goal(false), Goal::Knowledge);
        adaptive.withdraw();
        assert_eq!(adaptive.first_goal(false), Goal::Knowledge);
        adaptive.gain(&InKernel::default()).unwrap();
        assert_eq!(adaptive.first_goal(false), Goal::End);
        assert_eq!(adaptive.first_goal(true), Goal::End);

        let carriers = Carriers { packet: None, sockmap: None, withdrawn: Cell::new(true) };
        let withdrawn = Adaptive { carriers: OnceCell::from(carriers), ..adaptive };
        assert_eq!(withdrawn.first_goal(false), Goal::End);
    }
}
