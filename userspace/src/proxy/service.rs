//! The state that all connections of one worker share.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

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
    pub keepalive: Rc<Keepalive>,
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

impl Service {
    /// Whether a connection to this address would return to this process.
    #[must_use]
    pub fn listens_on(&self, address: SocketAddr) -> bool {
        let listening = self.listening.borrow();
        local_address::reaches(listening.iter().map(|(_, own)| *own), address, local_address::is_local)
    }
}
