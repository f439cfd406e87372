//! The adaptive datapath, `auto` where the kernel can do more than copy: copies first, and moves what pays into the
//! kernel.
//!
//! Handing a connection over costs about as much as accepting it, and spares a little with each message. A short
//! connection never earns that back; so a connection is copied until a direction has moved as much as [`Handover`] says.
//!
//! Then it goes over to packets ([`super::packet`]), at whatever moment that is, if it may and if its packets are seen to
//! come by the programs. Otherwise each direction by itself is redirected ([`super::sockmap`]), at a moment when nothing
//! of it is under way in userspace. Such a moment comes only while the receiver keeps up; where it does not, it sets the
//! pace, and a copy is as good. Nothing comes back for good: one that falls silent or chatty costs nothing there.

use std::os::fd::BorrowedFd;

use snisplice_config::model::Handover;

use super::{
    Carry, Datapath, End, HelloMode, Pair,
    packet::{Flow, Packet, Seen},
    relay::{self, Carried, Moment, Relay},
    sockmap::Sockmap,
};
use crate::account::{Account, Carrier};

/// One worker's instance.
#[derive(Debug)]
pub struct Adaptive {
    relay: Relay,
    packet: Option<Packet>,
    sockmap: Option<Sockmap>,
    rule: Handover,
}

/// What comes of a connection that was copied.
enum Next<'a> {
    Ended(End),
    Carried(Box<Flow<'a>>),
    Copied(Box<relay::Connection>),
}

impl Adaptive {
    /// Copies with `relay` until `rule` hands over to one of the others.
    #[must_use]
    pub fn new(relay: Relay, packet: Option<Packet>, sockmap: Option<Sockmap>, rule: Handover) -> Self {
        Self { relay, packet, sockmap, rule }
    }

    // Each stage lives in a box of its own, which is gone before the next one begins.
    async fn carry(&self, copied: Box<relay::Connection>, account: &Account) -> End {
        let copied = match &self.packet {
            None => copied,
            // Whoever asks for the short cut shall have it.
            Some(_) if copied.same_host && self.sockmap.is_some() => copied,
            Some(packet) => match Box::pin(self.until_packets(packet, copied, account)).await {
                Next::Ended(end) => return end,
                Next::Carried(flow) => return flow.run(self.relay.idle()).await,
                Next::Copied(copied) => copied,
            },
        };
        Box::pin(self.until_redirected(copied, account)).await
    }

    /// Copies until the connection is carried in packets, or until it is known that it cannot be.
    async fn until_packets<'a>(
        &self,
        packet: &Packet,
        mut copied: Box<relay::Connection>,
        account: &'a Account,
    ) -> Next<'a> {
        let mut watched = None;
        loop {
            let carried = copied.carry(self.relay.idle(), account, Some((self.rule, Moment::Any)));
            if let Carried::ToEnd(end) = Box::pin(carried).await {
                return Next::Ended(end);
            }
            watched = match watched.take() {
                None => packet.watch(&copied),
                Some(seen) => match packet.is_seen(seen) {
                    Seen::Yes(seen) => {
                        return match packet.take_over(seen, copied, account) {
                            Ok(flow) => Next::Carried(Box::new(flow)),
                            Err(copied) => Next::Copied(copied),
                        };
                    }
                    Seen::NotYet(watched) => Some(watched),
                    Seen::Never => None,
                },
            };
            if watched.is_none() {
                return Next::Copied(copied);
            }
        }
    }

    /// Copies until a direction is redirected, and stays with it.
    async fn until_redirected(&self, mut copied: Box<relay::Connection>, account: &Account) -> End {
        let Some(sockmap) = &self.sockmap else {
            return copied.carry_to_end(self.relay.idle(), account).await;
        };
        let carried = copied.carry(self.relay.idle(), account, Some((self.rule, Moment::AtRest)));
        match Box::pin(carried).await {
            Carried::ToEnd(end) => end,
            Carried::ToHandover => Box::pin(sockmap.take_over(copied, self.rule, account)).await,
        }
    }
}

impl Datapath for Adaptive {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn announce(&self, upstream: BorrowedFd<'_>) -> bool {
        self.sockmap.as_ref().is_some_and(|sockmap| sockmap.announce(upstream))
    }

    fn largest_segment(&self, client: BorrowedFd<'_>) -> Option<u32> {
        self.packet.as_ref().and_then(|packet| packet.largest_segment(client))
    }

    fn relay<'a>(&'a self, pair: Pair, account: &'a Account) -> Carry<'a> {
        account.carried_by(Carrier::Relay);
        Box::pin(self.carry(Box::new(relay::Connection::new(pair)), account))
    }
}
