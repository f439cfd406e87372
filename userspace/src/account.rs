//! Accounting by ownership: an [`Account`] is opened at accept and records exactly once, when it is dropped.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use crate::metrics::{ListenerCounters, Metrics, NONE};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// What carried a connection; the `datapath` metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Copied in userspace.
    Relay,
    /// Redirected in the kernel between sockets.
    Sockmap,
    /// Sent on in the kernel, packet by packet.
    Packet,
}

impl Carrier {
    /// Metric and log label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Sockmap => "sockmap",
            Self::Packet => "packet",
        }
    }
}

/// One connection's account. The datapath adds bytes as they move, so an error loses no count.
#[derive(Debug)]
pub struct Account {
    metrics: Arc<Metrics>,
    counters: Rc<ListenerCounters>,
    route: RefCell<Option<Arc<str>>>,
    up: Cell<u64>,
    down: Cell<u64>,
    carrier: Cell<Option<Carrier>>,
    reason: Cell<&'static str>,
}

impl Account {
    /// Opens the account of a connection that was just accepted. Until [`Account::ended`] says otherwise it counts
    /// as `aborted`, which is what a connection is whose future was dropped.
    #[must_use]
    pub fn open(metrics: &Arc<Metrics>, counters: Rc<ListenerCounters>) -> Self {
        counters.opened.inc();
        counters.active.inc();
        Self {
            metrics: metrics.clone(),
            counters,
            route: RefCell::new(None),
            up: Cell::new(0),
            down: Cell::new(0),
            carrier: Cell::new(None),
            reason: Cell::new("aborted"),
        }
    }

    /// The listener that accepted the connection.
    #[must_use]
    pub fn listener(&self) -> &Arc<str> {
        &self.counters.listener
    }

    /// Notes which rule serves the connection.
    pub fn routed(&self, route: Arc<str>) {
        self.route.replace(Some(route));
    }

    /// Adds `bytes` that were delivered to the receiving side's socket.
    pub fn moved(&self, direction: Direction, bytes: u64) {
        let cell = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        cell.set(cell.get() + bytes);
    }

    /// Notes what carries the connection from now on.
    pub fn carried_by(&self, carrier: Carrier) {
        self.carrier.set(Some(carrier));
    }

    /// Notes how the connection ended.
    pub fn ended(&self, reason: &'static str) {
        self.reason.set(reason);
    }

    /// Bytes moved so far, up and down.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.get(), self.down.get())
    }

    /// What carries the connection, once something does.
    #[must_use]
    pub fn carrier(&self) -> Option<Carrier> {
        self.carrier.get()
    }
}

impl Default for Account {
    /// An account of its own metrics, for the tests of a datapath.
    fn default() -> Self {
        let metrics = Arc::new(Metrics::new());
        let counters = Rc::new(metrics.listener(&NONE.into()));
        Self::open(&metrics, counters)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let route = self.route.take().unwrap_or_else(|| NONE.into());
        let datapath = self.carrier.get().map_or(NONE, Carrier::label);
        // In this order, and a scrape reads them in the opposite one: who finds the connection gone, or its end counted,
        // finds its bytes.
        for (direction, bytes) in [("up", self.up.get()), ("down", self.down.get())] {
            if bytes > 0 {
                self.metrics.moved(&route, datapath, direction, bytes);
            }
        }
        self.metrics.closed(&self.counters.listener, &route, datapath, self.reason.get());
        self.counters.active.dec();
    }
}
