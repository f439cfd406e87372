//! The adaptive datapath, `auto` where the kernel can redirect: copies first, and moves what pays into the kernel.
//!
//! Enrolling a connection costs about as much as accepting it, and spares a little with each message. A short connection
//! never earns that back; so a direction is copied until it has moved as much as [`Handover`] says, and then goes over
//! at a moment when nothing of it is under way in userspace ([`super::sockmap`]). Such a moment comes only while the
//! receiver keeps up; where it does not, it sets the pace, and a copy is as good. A direction never comes back for good:
//! leaving the maps alive is not safe, and one that falls silent or chatty costs nothing there.

use std::os::fd::BorrowedFd;

use snisplice_config::model::Handover;

use super::{
    Carry, Datapath, End, HelloMode, Pair,
    relay::{self, Carried, Relay},
    sockmap::Sockmap,
};
use crate::account::{Account, Carrier};

/// One worker's instance.
#[derive(Debug)]
pub struct Adaptive {
    relay: Relay,
    sockmap: Sockmap,
    rule: Handover,
}

impl Adaptive {
    /// Copies with `relay` until `rule` hands over to `sockmap`.
    #[must_use]
    pub fn new(relay: Relay, sockmap: Sockmap, rule: Handover) -> Self {
        Self { relay, sockmap, rule }
    }

    async fn carry(&self, mut copied: Box<relay::Connection>, account: &Account) -> End {
        // Each stage lives in a box of its own, which is gone before the next one begins.
        match Box::pin(copied.carry(self.relay.idle(), account, Some(self.rule))).await {
            Carried::ToEnd(end) => end,
            Carried::ToHandover => Box::pin(self.sockmap.take_over(copied, self.rule, account)).await,
        }
    }
}

impl Datapath for Adaptive {
    fn hello(&self) -> HelloMode {
        HelloMode::Read
    }

    fn announce(&self, upstream: BorrowedFd<'_>) -> bool {
        self.sockmap.announce(upstream)
    }

    fn relay<'a>(&'a self, pair: Pair, account: &'a Account) -> Carry<'a> {
        account.carried_by(Carrier::Relay);
        Box::pin(self.carry(Box::new(relay::Connection::new(pair)), account))
    }
}
