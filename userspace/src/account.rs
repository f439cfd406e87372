//! Accounting by ownership: an [`Account`] is opened at accept, and records the end exactly once, when it is dropped.

use std::{
    cell::{Cell, OnceCell},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::SocketAddr,
    os::fd::RawFd,
    rc::Rc,
    sync::{Arc, LazyLock},
};

use snisplice_config::model::scope::ScopedTimeouts;

use self::{
    access_log::{AccessLog, Line, Record},
    registry::Registry,
};
use crate::{
    metrics::{
        ListenerCounters, Metrics, NONE,
        labels::{Carrier, CloseReason, Direction, PacketIneligible, ProxyHeader},
    },
    net::proxy_header::Origin,
};

pub mod access_log;
pub mod registry;
pub mod time_limits;
pub mod view;

/// The state that all accounts of one listener on one worker share.
#[derive(Debug)]
pub struct ListenerAccount {
    metrics: Arc<Metrics>,
    /// The counters of the listener.
    pub counters: ListenerCounters,
    /// The registry of the worker's connections.
    pub registry: Rc<Registry>,
    /// The configured address that accepts the connections. It identifies their listener.
    pub address: SocketAddr,
}

impl ListenerAccount {
    /// The account of the listener with this name.
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

    /// Sets the address that accepts the connections.
    #[must_use]
    pub fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// Counts the PROXY header of a client.
    pub fn proxy_header(&self, header: ProxyHeader) {
        self.metrics.proxy_header(&self.counters.listener, header);
    }

    /// The account of the same address for a listener with another name.
    #[must_use]
    pub fn renamed(&self, listener: &Arc<str>) -> Self {
        Self::new(&self.metrics, listener, &self.registry).at(self.address)
    }
}

/// One connection's account. The datapath adds bytes as they move, so an error loses no count.
///
/// Each open connection has an account, perhaps for hours. Values that are needed only on a request, such as the
/// addresses, are read from the kernel then.
#[derive(Debug)]
pub struct Account {
    listener: Rc<ListenerAccount>,
    route: OnceCell<Arc<str>>,
    backend: OnceCell<Arc<str>>,
    up: Cell<u64>,
    down: Cell<u64>,
    /// Bytes up and down that the metrics already contain.
    counted: Cell<(u64, u64)>,
    extras: OnceCell<Box<Extras>>,
    reason: Cell<CloseReason>,
    /// The descriptors of the client's and the backend's socket, or -1.
    sockets: Cell<[RawFd; 2]>,
    /// See [`Registry`].
    pub(crate) place: Cell<u32>,
    pub(crate) serial: u32,
    pub(crate) opened: u32,
    carrier: Cell<Option<Carrier>>,
    refused: Cell<Option<PacketIneligible>>,
    asked_for: Cell<NameMark>,
}

/// The state that not every connection has.
#[derive(Debug, Default)]
struct Extras {
    in_packets: Cell<Option<InPackets>>,
    /// Time limits that differ from those of the process.
    limits: OnceCell<Rc<ScopedTimeouts>>,
    /// The client that a PROXY header names.
    origin: OnceCell<Box<Origin>>,
    /// Present if the access log was enabled at the connection's begin.
    record: Option<Box<Record>>,
}

/// A keyed hash of a server name, eight bytes. Two names have the same mark by chance only, and a client cannot
/// choose such names. So a connection need not store its name, and the mark does not reveal the name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameMark(u64);

impl NameMark {
    /// The mark of a name in a hello or in typed text. Case and a final dot are ignored.
    #[must_use]
    pub fn of(name: &str) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let mut hasher = KEYS.build_hasher();
        for byte in name.strip_suffix('.').unwrap_or(name).bytes() {
            hasher.write_u8(byte.to_ascii_lowercase());
        }
        // Zero means no name.
        Self(hasher.finish().max(1))
    }
}

/// The kernel's counters of a connection in packets.
#[derive(Debug, Clone, Copy)]
pub struct InPackets {
    /// The flow slot.
    pub flow: u32,
    /// Bytes up and down before the move to packets, without those that the flow begins with. The latter may include a
    /// PROXY header, so a number may wrap below zero.
    pub before: (u64, u64),
}

impl InPackets {
    /// Bytes so far, if the receiver of a way has acknowledged `delivered` bytes since the move.
    #[must_use]
    pub fn total(before: u64, delivered: u64) -> u64 {
        let total = before.wrapping_add(delivered);
        if total > u64::MAX / 2 { 0 } else { total }
    }
}

impl Account {
    /// Opens the account of an accepted connection. Until a call of [`Account::ended`] its reason is `aborted`, which
    /// applies to a connection whose future is dropped.
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

    /// Records the requested server name.
    pub fn asks_for(&self, name: &str) {
        self.asked_for.set(NameMark::of(name));
        if let Some(record) = self.record() {
            record.asks_for(name);
        }
    }

    /// The mark of the requested name. The default without a name.
    #[must_use]
    pub fn asked_for(&self) -> NameMark {
        self.asked_for.get()
    }

    /// Records the rule that serves the connection.
    pub fn routed(&self, route: Arc<str>) {
        // Called once per connection.
        let _ = self.route.set(route);
    }

    /// The rule that serves the connection, once it is known.
    #[must_use]
    pub fn route(&self) -> Option<&Arc<str>> {
        self.route.get()
    }

    /// Records the backend of the connection.
    pub fn goes_to(&self, backend: Arc<str>) {
        let _ = self.backend.set(backend);
    }

    /// The backend, once it is known.
    #[must_use]
    pub fn backend(&self) -> Option<&Arc<str>> {
        self.backend.get()
    }

    /// Records the descriptors of the client's and the backend's socket. The sockets stay open while the connection's
    /// future is polled. -1 is no socket.
    pub fn has_sockets(&self, sockets: [RawFd; 2]) {
        self.sockets.set(sockets);
        if let Some(record) = self.record() {
            record.has_sockets(sockets);
        }
    }

    /// The descriptors of the client's and the backend's socket, or -1.
    #[must_use]
    pub fn sockets(&self) -> [RawFd; 2] {
        self.sockets.get()
    }

    /// Records the kernel's counters of a connection that moves to packets, which happens at most once.
    pub fn is_in_packets(&self, place: InPackets) {
        self.extras.get_or_init(Box::default).in_packets.set(Some(place));
    }

    /// The kernel's counters of a connection in packets.
    #[must_use]
    pub fn in_packets(&self) -> Option<InPackets> {
        self.extras.get()?.in_packets.get()
    }

    /// Sets the time limits of the connection's scopes, the narrowest scope first. Without one, the connection holds no
    /// memory for them. A second call has no effect.
    pub fn limited_by(&self, scopes: [Option<&Arc<ScopedTimeouts>>; 3]) {
        if scopes.iter().all(Option::is_none) {
            return;
        }
        let [first, second, third] = scopes.map(|scope| scope.map(|scope| **scope).unwrap_or_default());
        let limits = first.within(&second).within(&third);
        let registry = &self.listener.registry;
        registry.has_limit_of_duration(&limits);
        let _ = self.extras.get_or_init(Box::default).limits.set(registry.shared_limits.of(limits));
    }

    /// The time limits that differ from those of the process.
    #[must_use]
    pub fn limits(&self) -> Option<&ScopedTimeouts> {
        self.extras.get()?.limits.get().map(|limits| &**limits)
    }

    /// Records the client that a PROXY header names.
    pub fn comes_from(&self, origin: Origin) {
        if let Some(record) = self.record() {
            record.comes_from(&origin);
        }
        let _ = self.extras.get_or_init(Box::default).origin.set(Box::new(origin));
    }

    /// The client that a PROXY header names.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.extras.get()?.origin.get().map(|origin| &**origin)
    }

    /// The connection as its PROXY header describes it, else as its socket does.
    #[must_use]
    pub fn origin_or(&self, source: SocketAddr, destination: SocketAddr) -> Origin {
        let own = || Origin { source, destination, unique_id: None };
        self.origin().cloned().unwrap_or_else(own)
    }

    fn record(&self) -> Option<&Record> {
        self.extras.get()?.record.as_deref()
    }

    fn access_log(&self) -> &AccessLog {
        &self.listener.registry.access_log
    }

    /// Whether [`Self::log_request`] has an effect.
    #[must_use]
    pub fn logs_requests(&self) -> bool {
        self.record().is_some()
    }

    /// Logs an HTTP request of this connection. Adds the connection's fields: `downstream_local_address`,
    /// `downstream_remote_address` and `requested_server_name`.
    pub fn log_request(&self, line: &Line<'_>) {
        if let Some(record) = self.record() {
            record.request(self, line);
        }
    }

    /// Records the reason for which the connection is not eligible for packets.
    pub fn refused_in_packets(&self, why: PacketIneligible) {
        self.refused.set(Some(why));
    }

    /// The reason for which the connection is not eligible for packets, if that was checked.
    #[must_use]
    pub fn refusal(&self) -> Option<PacketIneligible> {
        self.refused.get()
    }

    /// The state that all accounts of the listener share.
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

    /// Updates the metrics with all bytes moved so far, up and down. The kernel's counters may exceed those of the
    /// account. Bytes that the metrics already contain are not counted twice, and a smaller number changes nothing.
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

    /// Bytes up and down that the metrics contain.
    #[must_use]
    pub fn counted(&self) -> (u64, u64) {
        self.counted.get()
    }

    /// Sets the carrier of the connection. Earlier bytes are counted for the former carrier.
    pub fn set_carrier(&self, carrier: Carrier) {
        if self.carrier.get().is_some_and(|before| before != carrier) {
            self.count(self.bytes());
        }
        self.carrier.set(Some(carrier));
    }

    /// Records the close reason.
    pub fn ended(&self, reason: CloseReason) {
        self.reason.set(reason);
    }

    /// Bytes moved so far, up and down.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.up.get(), self.down.get())
    }

    /// The carrier of the connection, once there is one.
    #[must_use]
    pub fn carrier(&self) -> Option<Carrier> {
        self.carrier.get()
    }
}

impl Default for Account {
    /// An account with metrics of its own, for the tests of a datapath.
    fn default() -> Self {
        let metrics = Arc::new(Metrics::new());
        Self::open(&Rc::new(ListenerAccount::new(&metrics, &NONE.into(), &Rc::default())))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // Updated in this order, and a scrape reads in the opposite order: a scrape that includes the connection's
        // end also includes its bytes.
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
        // The account receives the bytes that the kernel has moved only at the end.
        account.count((100, 0));
        account.count((90, 0));
        assert_eq!(up("packet"), Some(85));
        account.moved(Direction::Up, 95);
        drop(account);
        assert_eq!((up("relay"), up("packet")), (Some(15), Some(95)));
    }
}
