//! What all connections of one worker share.

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

/// What all connections of one worker share.
pub struct Service {
    /// The configuration in service.
    pub current: Arc<SharedSnapshot>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// What moves the bytes.
    pub datapath: Rc<dyn Datapath>,
    /// How peers that are gone are noticed.
    pub keepalive: Rc<Keepalive>,
    /// How long a connection that is terminated here may be silent.
    pub patience: Patience,
    /// All connections.
    pub registry: Rc<Registry>,
    /// Whether a connection has begun lately that may try a second endpoint after a while.
    pub races: Cell<bool>,
    /// The addresses on which this process listens: as the configuration has each, and the real one.
    pub listening: RefCell<Vec<(SocketAddr, SocketAddr)>>,
    /// What connections of HTTP share.
    pub http: Rc<Worker>,
}

impl Service {
    /// Whether a connection to this address would come back to this process.
    #[must_use]
    pub fn listens_on(&self, address: SocketAddr) -> bool {
        let listening = self.listening.borrow();
        local_address::reaches(listening.iter().map(|(_, own)| *own), address, local_address::is_local)
    }
}
