//! The state that all connections of one worker share.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use snisplice_config::model::{Listener, PeerTimeouts, scope::ScopedTimeouts};

use crate::{
    account::registry::Registry,
    datapath::seam::{Datapath, Patience},
    http::connection::Worker,
    metrics::Metrics,
    net::{keepalive::Keepalive, local_address},
    snapshot::SharedSnapshot,
};

/// The state that all connections of one worker share.
pub struct Service {
    /// The configuration in service.
    pub current: Arc<SharedSnapshot>,
    /// The counters of the process.
    pub metrics: Arc<Metrics>,
    /// The datapath that moves the bytes.
    pub datapath: Rc<dyn Datapath>,
    /// The settings that detect unreachable peers.
    pub keepalives: Keepalives,
    /// The idle timeouts of terminated connections.
    pub patience: Patience,
    /// All open connections of the worker.
    pub registry: Rc<Registry>,
    /// Whether a recent connection may try a second endpoint after its head start.
    pub races: Cell<bool>,
    /// The addresses on which this process listens: the configured address and the real one.
    pub listening: RefCell<Vec<(SocketAddr, SocketAddr)>>,
    /// The state that HTTP connections share.
    pub http: Rc<Worker>,
}

/// The settings that detect unreachable peers, of the process and of single backends.
#[derive(Debug)]
pub struct Keepalives {
    process: PeerTimeouts,
    of_process: Rc<Keepalive>,
    /// Those of backends with their own. Connections share them.
    others: RefCell<Vec<Rc<Keepalive>>>,
}

impl Keepalives {
    /// The settings of the process.
    #[must_use]
    pub fn new(process: &PeerTimeouts) -> Self {
        let of_process = Rc::new(Keepalive::of(process));
        Self { process: process.clone(), of_process, others: RefCell::default() }
    }

    /// The settings for clients of a listener.
    #[must_use]
    pub fn of_listener(&self, listener: Option<&Listener>) -> Rc<Keepalive> {
        self.within(listener.and_then(|listener| listener.timeouts.as_ref()))
    }

    /// The settings for a scope.
    #[must_use]
    pub fn within(&self, scope: Option<&Arc<ScopedTimeouts>>) -> Rc<Keepalive> {
        let Some(scope) = scope.filter(|scope| scope.keepalive.or(scope.tcp_user_timeout).is_some()) else {
            return self.of_process.clone();
        };
        let wanted = Keepalive::of(&scope.of_peers(&self.process));
        let mut others = self.others.borrow_mut();
        if let Some(known) = others.iter().find(|known| ***known == wanted) {
            return known.clone();
        }
        // There are few at a time. Reloads bring new ones.
        if others.len() >= 64 {
            others.retain(|one| Rc::strong_count(one) > 1);
        }
        let wanted = Rc::new(wanted);
        others.push(wanted.clone());
        wanted
    }
}

impl Service {
    /// Whether a connection to this address would return to this process.
    #[must_use]
    pub fn listens_on(&self, address: SocketAddr) -> bool {
        let listening = self.listening.borrow();
        local_address::reaches(listening.iter().map(|(_, own)| *own), address, local_address::is_local)
    }
}
