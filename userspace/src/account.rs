//! Accounting by ownership: an [`Account`] is opened at accept, and records the end exactly once, when it is dropped.

use std::{
    cell::{Cell, OnceCell},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::SocketAddr,
    os::fd::RawFd,
    rc::Rc,
    sync::{Arc, LazyLock},
};

use self::{
    access_log::{AccessLog, Line, Record},
    registry::Registry,
};
use crate::metrics::{
    ListenerCounters, Metrics, NONE,
    labels::{Carrier, CloseReason, Direction, PacketIneligible},
};

pub mod access_log;
pub mod registry;
pub mod view;

/// What all accounts of one listener on one worker share.
#[derive(Debug)]
pub struct ListenerAccount {
    metrics: Arc<Metrics>,
    /// The listener's own counters.
    pub counters: ListenerCounters,
    /// Where its connections are found.
    pub registry: Rc<Registry>,
    /// The address that accepts them, as the configuration has it: by it their listener is found.
    pub address: SocketAddr,
}

impl ListenerAccount {
    /// For the listener of this name.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>, listener: &Arc<str>, registry: &Rc<Registry>) -> Self {
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            metrics: metrics.clone(),
            counters: metrics.listener(listener),
            registry: registry.clone(),
            address,
        }
    }

    /// The same, of what this address accepts.
    #[must_use]
    pub fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// That of the same address for a listener of another name.
    #[must_use]
    pub fn renamed(&self, listener: &Arc<str>) -> Self {
        Self::new(&self.metrics, listener, &self.registry).at(self.address)
    }
}

/// One connection's account. The datapath adds bytes as they move, so an error loses no count.
///
/// Each open connection has one, for hours perhaps: what is only wanted when somebody looks, such as the addresses, is
/// asked of the kernel then.
#[derive(Debug)]
pub struct Account {
    listener: Rc<ListenerAccount>,
    route: OnceCell<Arc<str>>,
    backend: OnceCell<Arc<str>>,
    up: Cell<u64>,
    down: Cell<u64>,
    /// Bytes up and down that the metrics have already.
    counted: Cell<(u64, u64)>,
    extras: OnceCell<Box<Extras>>,
    reason: Cell<CloseReason>,
    /// The client's and the backend's, or -1.
    sockets: Cell<[RawFd; 2]>,
    /// See [`Registry`].
    pub(crate) place: Cell<u32>,
    pub(crate) serial: u32,
    pub(crate) opened: u32,
    carrier: Cell<Option<Carrier>>,
    refused: Cell<Option<PacketIneligible>>,
    asked_for: Cell<NameMark>,
}

/// What not every connection has.
#[derive(Debug, Default)]
struct Extras {
    in_packets: Cell<Option<InPackets>>,
    /// Where the access log was on when it began.
    record: Option<Box<Record>>,
}

/// What stands for a server name: eight bytes, which two names have in common by chance only, and nobody can choose names that do.
/// A connection need not keep the name itself, and nothing can tell it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameMark(u64);

impl NameMark {
    /// Of a name as hellos and people write it: case and a dot at the end do not matter.
    #[must_use]
    pub fn of(name: &str) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let mut hasher = KEYS.build_hasher();
        for byte in name.strip_suffix('.').unwrap_or(name).bytes() {
            hasher.write_u8(byte.to_ascii_lowercase());
        }
        // Zero is no name.
        Self(hasher.finish().max(1))
    }
}

/// Where the kernel counts for a connection that is carried in packets.
#[derive(Debug, Clone, Copy)]
pub struct InPackets {
    /// The flow's place in the maps.
    pub flow: u32,
    /// Bytes up and down of before.
    pub before: (u64, u64),
}

impl Account {
    /// Opens the account of a connection that was just accepted. Until [`Account::ended`] says otherwise it counts
    /// as `aborted`, which is what a connection is whose future was dropped.
    #[must_use]
    pub fn open(listener_account: &Rc<ListenerAccount>) -> Self {
        listener_account.counters.opened.inc();
        listener_account.counters.active.inc();
        let (serial, opened) = listener_account.registry.stamp();
        let record = listener_account.registry.access_log.begin();
        let extras = record.map(|record| Box::new(Extras { record: Some(record), ..Extras::default() }));
        Self {
            listener: listener_account.clone(),
            route: OnceCell::new(),
            backend: OnceCell::new(),
            up: Cell::new(0),
            down: Cell::new(0),
            counted: Cell::default(),
            extras: extras.map(OnceCell::from).unwrap_or_default(),
            reason: Cell::new(CloseReason::Aborted),
            sockets: Cell::new([-1, -1]),
            place: Cell::new(0),
            serial,
            opened,
            carrier: Cell::new(None),
            refused: Cell::new(None),
            asked_for: Cell::default(),
        }
    }

    /// The listener that accepted the connection.
    #[must_use]
    pub fn listener(&self) -> &Arc<str> {
        &self.listener.counters.listener
    }

    /// Notes the server name that the client has asked for.
    pub fn asks_for(&self, name: &str) {
        self.asked_for.set(NameMark::of(name));
        if let Some(record) = self.record() {
            record.asks_for(name);
        }
    }

    /// What stands for that name; the default where there was none.
    #[must_use]
    pub fn asked_for(&self) -> NameMark {
        self.asked_for.get()
    }

    /// Notes which rule serves the connection.
    pub fn routed(&self, route: Arc<str>) {
        // Asked once for each connection.
        let _ = self.route.set(route);
    }

    /// The rule that serves the connection, once it is known.
    #[must_use]
    pub fn route(&self) -> Option<&Arc<str>> {
        self.route.get()
    }

    /// Notes the backend to which the connection goes.
    pub fn goes_to(&self, backend: Arc<str>) {
        let _ = self.backend.set(backend);
    }

    /// The backend, once it is known.
    #[must_use]
    pub fn backend(&self) -> Option<&Arc<str>> {
        self.backend.get()
    }

    /// Notes the numbers of the client's and the backend's socket, which stay open for as long as the connection's future
    /// is polled; -1 is none.
    pub fn has_sockets(&self, sockets: [RawFd; 2]) {
        self.sockets.set(sockets);
        if let Some(record) = self.record() {
            record.has_sockets(sockets);
        }
    }

    /// The numbers of the client's and the backend's socket, or -1.
    #[must_use]
    pub fn sockets(&self) -> [RawFd; 2] {
        self.sockets.get()
    }

    /// Notes where the kernel counts for a connection that goes over to packets, which it does at most once.
    pub fn is_in_packets(&self, place: InPackets) {
        self.extras.get_or_init(Box::default).in_packets.set(Some(place));
    }

    /// Where the kernel counts for a connection in packets.
    #[must_use]
    pub fn in_packets(&self) -> Option<InPackets> {
        self.extras.get()?.in_packets.get()
    }

    fn record(&self) -> Option<&Record> {
        self.extras.get()?.record.as_deref()
    }

    fn access_log(&self) -> &AccessLog {
        &self.listener.registry.access_log
    }

    /// Whether [`Self::log_request`] does anything.
    #[must_use]
    pub fn logs_requests(&self) -> bool {
        self.record().is_some()
    }

    /// Logs an HTTP request of this connection. The fields of the line that are the connection's are filled in:
    /// `downstream_local_address`, `downstream_remote_address` and `requested_server_name`.
    pub fn log_request(&self, line: &Line<'_>) {
        if let Some(record) = self.record() {
            record.request(self, line);
        }
    }

    /// Notes why packets do not carry the connection.
    pub fn refused_in_packets(&self, why: PacketIneligible) {
        self.refused.set(Some(why));
    }

    /// Why packets do not carry the connection, if that was tried.
    #[must_use]
    pub fn refusal(&self) -> Option<PacketIneligible> {
        self.refused.get()
    }

    /// What all accounts of the listener share.
    #[must_use]
    pub fn listener_account(&self) -> &Rc<ListenerAccount> {
        &self.listener
    }

    /// Adds `bytes` that were delivered to the receiving side's socket.
    pub fn moved(&self, direction: Direction, bytes: u64) {
        let cell = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        cell.set(cell.get() + bytes);
    }

    /// Has the metrics know of all bytes up and down that have moved so far, which the kernel may know better than the account.
    /// What they know already is not counted twice, and a number that is less than that changes nothing.
    pub fn count(&self, moved: (u64, u64)) {
        let (up, down) = self.counted.get();
        let now = (moved.0.max(up), moved.1.max(down));
        if now == (up, down) {
            return;
        }
        self.counted.set(now);
        let route = self.route.get().cloned().unwrap_or_else(|| NONE.into());
        for (direction, bytes) in [(Direction::Up, now.0 - up), (Direction::Down, now.1 - down)] {
            if bytes > 0 {
                self.listener.metrics.moved(&route, self.carrier.get(), direction, bytes);
            }
        }
    }

    /// Bytes up and down that the metrics know of.
    #[must_use]
    pub fn counted(&self) -> (u64, u64) {
        self.counted.get()
    }

    /// Notes what carries the connection from now on. What has moved before is counted for what carried it then.
    pub fn set_carrier(&self, carrier: Carrier) {
        if self.carrier.get().is_some_and(|before| before != carrier) {
            self.count(self.bytes());
        }
        self.carrier.set(Some(carrier));
    }

    /// Notes how the connection ended.
    pub fn ended(&self, reason: CloseReason) {
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
        Self::open(&Rc::new(ListenerAccount::new(&metrics, &NONE.into(), &Rc::default())))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // In this order, and a scrape reads them in the opposite one: who finds the connection gone, or its end counted,
        // finds its bytes.
        self.count(self.bytes());
        if let Some(record) = self.record() {
            record.ended(self);
        }
        let ListenerAccount { metrics, counters, .. } = &*self.listener;
        let route = self.route.take().unwrap_or_else(|| NONE.into());
        metrics.closed(&counters.listener, &route, self.carrier.get(), self.reason.get());
        counters.active.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_is_counted_once_and_never_taken_back() {
        let metrics = Arc::new(Metrics::new());
        let listener = Rc::new(ListenerAccount::new(&metrics, &"https".into(), &Rc::default()));
        let up = |carrier: &str| {
            let text = metrics.encode().unwrap();
            let series = format!("datapath=\"{carrier}\",direction=\"up\"}} ");
            text.lines().find_map(|line| line.split(&series).nth(1)?.parse::<u64>().ok())
        };
        let account = Account::open(&listener);
        account.set_carrier(Carrier::Relay);
        account.moved(Direction::Up, 10);
        assert_eq!(up("relay"), None, "nobody has looked");
        account.count(account.bytes());
        account.count(account.bytes());
        assert_eq!(up("relay"), Some(10));
        account.moved(Direction::Up, 5);
        account.set_carrier(Carrier::Packet);
        assert_eq!(up("relay"), Some(15), "what the relay has carried is its own");
        // What the kernel has moved, the account learns only at the end.
        account.count((100, 0));
        account.count((90, 0));
        assert_eq!(up("packet"), Some(85));
        account.moved(Direction::Up, 95);
        drop(account);
        assert_eq!((up("relay"), up("packet")), (Some(15), Some(95)));
    }
}
