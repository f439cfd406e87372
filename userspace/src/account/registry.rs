//! One worker's open connections: the main thread's requests find them here, and end them from outside.
//!
//! Threads share nothing: the main thread sends a [`RegistryRequest`], and the worker answers. A connection costs an
//! entry in a table. The kernel is queried for its addresses and bytes only on a request.

use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use slab::Slab;
use snisplice_config::model::{Timeouts, scope::ScopedTimeouts};
use tokio::{
    sync::mpsc::UnboundedSender,
    task::{AbortHandle, yield_now},
};

use super::{
    Account, NameMark,
    access_log::AccessLog,
    time_limits::{self, with_jitter},
    view::{ConnectionView, Filter},
};
use crate::{
    metrics::labels::{Carrier, CloseReason},
    net::sockopt,
};

/// Connections that are described or counted before others get their turn: each takes up to four system calls.
const CONNECTIONS_PER_TURN: usize = 64;

/// A request of the main thread to a worker.
#[derive(Debug)]
pub enum RegistryRequest {
    /// Returns open connections, those with the lowest numbers first.
    List {
        /// The selection.
        filter: Filter,
        /// Only connections with a greater number.
        after: Option<u64>,
        /// The greatest number of connections.
        most: usize,
        /// Receives the connections, in parts.
        reply: UnboundedSender<Vec<ConnectionView>>,
    },
    /// Update the metrics with all bytes moved so far.
    Count {
        /// Receives a report when the bytes are counted.
        reply: UnboundedSender<()>,
    },
    /// End connections. Both peers get a reset.
    Close {
        /// The selection.
        filter: Filter,
        /// The close reason, a label of `snisplice_connections_closed_total`.
        reason: CloseReason,
        /// Receives the number of closed connections.
        reply: UnboundedSender<usize>,
    },
}

/// The number of a connection. It is unique among all `workers` and the adopted connections, which count as one more
/// worker, until one worker has had 2^32 further ones.
#[must_use]
pub fn number(serial: u32, worker: usize, workers: usize) -> u64 {
    u64::from(serial) * (workers as u64 + 1) + worker as u64
}

/// The connections of one worker, from accept to their end.
#[derive(Debug)]
pub struct Registry {
    worker: usize,
    workers: usize,
    began: Instant,
    next: Cell<u32>,
    entries: RefCell<Slab<Entry>>,
    pub(super) access_log: Arc<AccessLog>,
    pub(super) shared_limits: time_limits::Shared,
    /// Whether a connection has had a maximum duration of its own.
    limits_durations: Cell<bool>,
    /// Makes the jitter of this worker's connections differ from that of others.
    seed: u64,
}

#[derive(Debug)]
struct Entry {
    account: Rc<Account>,
    /// The task that serves the connection; `None` once it is to end.
    task: Option<AbortHandle>,
}

impl Default for Registry {
    /// The registry of a single worker.
    fn default() -> Self {
        Self::new(0, 1)
    }
}

impl Registry {
    /// Bytes of a connection in the registry and in its account.
    #[cfg(test)]
    pub const BYTES_EACH: usize = size_of::<Account>() + 2 * size_of::<usize>() + size_of::<Entry>();

    /// The registry of the worker with index `worker` of `workers`.
    #[must_use]
    pub fn new(worker: usize, workers: usize) -> Self {
        let entries = RefCell::default();
        let access_log = Arc::default();
        Self {
            worker,
            workers,
            began: Instant::now(),
            next: Cell::new(0),
            entries,
            access_log,
            shared_limits: time_limits::Shared::default(),
            limits_durations: Cell::new(false),
            seed: fastrand::u64(..),
        }
    }

    /// A registry whose connections are logged in `log`.
    #[must_use]
    pub fn logging_to(self, access_log: Arc<AccessLog>) -> Self {
        Self { access_log, ..self }
    }

    /// A number for the next connection, and the time in tenths of a second since the beginning.
    pub(crate) fn stamp(&self) -> (u32, u32) {
        let serial = self.next.get();
        self.next.set(serial.wrapping_add(1));
        (serial, self.now())
    }

    /// The age of a connection of this registry, in tenths of a second.
    pub(crate) fn age(&self, account: &Account) -> u32 {
        self.now().saturating_sub(account.opened)
    }

    fn now(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_millis() / 100).unwrap_or(u32::MAX)
    }

    /// Adds a connection to the registry of its listener's worker, until the result is dropped.
    #[must_use]
    pub fn register(account: Account) -> Registration {
        let account = Rc::new(account);
        let place = account
            .listener_account()
            .registry
            .entries
            .borrow_mut()
            .insert(Entry { account: account.clone(), task: None });
        // 2^32 connections would need more descriptors than exist.
        account.place.set(u32::try_from(place).unwrap_or(u32::MAX));
        Registration(account)
    }

    /// Records the task that serves a connection. Aborting the task ends the connection.
    pub fn is_served_by(&self, place: usize, task: AbortHandle) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(place) {
            entry.task = Some(task);
        }
    }

    /// Ends connections that have lasted for their maximum duration. `process` has the limits of connections without
    /// their own.
    pub fn end_older(&self, process: &Timeouts) {
        // The common case costs nothing for each connection.
        if process.max_duration.is_zero() && !self.limits_durations.get() {
            return;
        }
        self.end(CloseReason::MaxDuration, |account| {
            let longest = self.longest(account, process).as_millis() / 100;
            longest > 0 && u128::from(self.age(account)) >= longest
        });
    }

    /// The maximum duration of a connection, zero for none.
    #[must_use]
    pub fn longest(&self, account: &Account, process: &Timeouts) -> Duration {
        let own = account.limits();
        let longest = own.and_then(|own| own.max_duration).unwrap_or(process.max_duration);
        let jitter = own.and_then(|own| own.max_duration_jitter).unwrap_or(process.max_duration_jitter);
        with_jitter(longest, jitter, self.seed.wrapping_add(account.serial.into()))
    }

    /// Records that a connection has these limits.
    pub(super) fn has_limit_of_duration(&self, limits: &ScopedTimeouts) {
        if limits.max_duration.is_some_and(|longest| !longest.is_zero()) {
            self.limits_durations.set(true);
        }
    }

    /// Ends all selected connections: both peers receive a reset. Returns the number of those that were not ending
    /// already.
    fn end(&self, reason: CloseReason, matches: impl Fn(&Account) -> bool) -> usize {
        let mut ended = 0;
        for (_, Entry { account, task }) in self.entries.borrow_mut().iter_mut() {
            if !matches(account) {
                continue;
            }
            // The future is dropped when the runtime polls the task, never in this call.
            let Some(task) = task.take() else { continue };
            account.ended(reason);
            for number in account.sockets() {
                sockopt::by_number(number, |socket| {
                    let _ = sockopt::reset_on_close(socket);
                });
            }
            task.abort();
            ended += 1;
        }
        ended
    }

    /// Entries of the connections with the lowest numbers above `after`, at most `most`.
    fn first(&self, filter: &Filter, after: Option<u64>, most: usize) -> Vec<usize> {
        let entries = self.entries.borrow();
        let mut found: Vec<(u64, usize)> = entries
            .iter()
            .filter(|(_, entry)| self.matches(filter, &entry.account))
            .map(|(place, entry)| (self.id(&entry.account), place))
            .filter(|(id, _)| after.is_none_or(|after| *id > after))
            .collect();
        if most < found.len() {
            found.select_nth_unstable(most);
            found.truncate(most);
        }
        found.into_iter().map(|(_, place)| place).collect()
    }

    fn id(&self, account: &Account) -> u64 {
        number(account.serial, self.worker, self.workers)
    }

    fn matches(&self, filter: &Filter, account: &Account) -> bool {
        filter.id.is_none_or(|id| id == self.id(account))
            && filter.listener.as_deref().is_none_or(|name| name == &**account.listener())
            && filter
                .backend
                .as_deref()
                .is_none_or(|name| account.backend().is_some_and(|own| name == &**own))
            && filter.carrier.is_none_or(|carrier| account.carrier() == Some(carrier))
            && filter.sni.as_deref().is_none_or(|name| account.asked_for() == NameMark::of(name))
            && filter.client.as_ref().is_none_or(|networks| {
                // Comes last, since only this condition queries the kernel.
                let client = || {
                    let [number, _] = account.sockets();
                    sockopt::by_number(number, sockopt::addresses).and_then(|(_, client)| client)
                };
                let client = account.origin().map(|origin| origin.source).or_else(client);
                client.is_some_and(|client| networks.contains(client.ip()))
            })
    }

    fn describe(&self, account: &Account, moved: (u64, u64)) -> ConnectionView {
        let [(accepted_at, peer), (connected_from, backend_address)] = account
            .sockets()
            .map(|number| sockopt::by_number(number, sockopt::addresses).unwrap_or_default());
        let origin = account.origin();
        ConnectionView {
            id: self.id(account),
            listener: account.listener().to_string(),
            route: account.route().map(ToString::to_string),
            backend: account.backend().map(ToString::to_string),
            client: origin.map_or(peer, |origin| Some(origin.source)),
            proxy: origin.and(peer),
            accepted_at,
            connected_from,
            backend_address,
            age_seconds: f64::from(self.age(account)) / 10.0,
            carrier: account.carrier().map(|carrier| carrier.label().to_owned()),
            former_carrier: account.carrier().map(|carrier| carrier.label().to_owned()),
            packet_refused: account
                .refusal()
                .filter(|_| account.carrier() != Some(Carrier::Packet))
                .map(|why| why.label().to_owned()),
            bytes_up: moved.0,
            bytes_down: moved.1,
        }
    }
}

/// A connection's entry in the registry. Its session holds it.
#[derive(Debug)]
pub struct Registration(Rc<Account>);

impl Registration {
    /// The account, for other code that counts bytes of the connection.
    #[must_use]
    pub fn account(&self) -> Rc<Account> {
        self.0.clone()
    }

    /// The number of the connection.
    #[must_use]
    pub fn place(&self) -> usize {
        self.0.place.get() as usize
    }
}

impl Deref for Registration {
    type Target = Account;

    fn deref(&self) -> &Account {
        &self.0
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let gone = self.0.listener_account().registry.entries.borrow_mut().try_remove(self.place());
        drop(gone);
    }
}

/// Bytes up and down that a connection has moved so far.
pub type Moved = Rc<dyn Fn(&Account) -> (u64, u64)>;

/// Answers on the worker's thread, inside its runtime.
pub fn answer(registry: &Rc<Registry>, moved: Moved, request: RegistryRequest) {
    match request {
        RegistryRequest::List { filter, after, most, reply } => {
            let places = registry.first(&filter, after, most);
            tokio::task::spawn_local(list(registry.clone(), moved, filter, places, reply));
        }
        RegistryRequest::Count { reply } => {
            tokio::task::spawn_local(count(registry.clone(), moved, reply));
        }
        RegistryRequest::Close { filter, reason, reply } => {
            let _ = reply.send(registry.end(reason, |account| registry.matches(&filter, account)));
        }
    }
}

/// Sends the connections in parts, while others run.
async fn list(
    registry: Rc<Registry>,
    moved: Moved,
    filter: Filter,
    places: Vec<usize>,
    reply: UnboundedSender<Vec<ConnectionView>>,
) {
    for places in places.chunks(CONNECTIONS_PER_TURN) {
        if reply.send(describe_some(&registry, &moved, &filter, places)).is_err() {
            return;
        }
        yield_now().await;
    }
}

/// Counts the bytes of connections in parts, while others run.
async fn count(registry: Rc<Registry>, moved: Moved, reply: UnboundedSender<()>) {
    let places: Vec<usize> = registry.entries.borrow().iter().map(|(place, _)| place).collect();
    for places in places.chunks(CONNECTIONS_PER_TURN) {
        // The worker stops counting if the requester has gone.
        if reply.is_closed() {
            return;
        }
        {
            let entries = registry.entries.borrow();
            // The entry may belong to another connection by now, which is counted as well.
            for Entry { account, .. } in places.iter().filter_map(|place| entries.get(*place)) {
                account.count(moved(account));
            }
        }
        yield_now().await;
    }
    let _ = reply.send(());
}

fn describe_some(
    registry: &Registry,
    moved: &Moved,
    filter: &Filter,
    places: &[usize],
) -> Vec<ConnectionView> {
    let entries = registry.entries.borrow();
    places
        .iter()
        .filter_map(|place| entries.get(*place))
        // The entry may belong to another connection by now.
        .filter(|entry| registry.matches(filter, &entry.account))
        .map(|Entry { account, .. }| registry.describe(account, moved(account)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{account::ListenerAccount, metrics::Metrics};

    fn registration(listener_account: &Rc<ListenerAccount>, backend: &str) -> Registration {
        let account = Account::open(listener_account);
        account.goes_to(backend.into());
        Registry::register(account)
    }

    /// Repeated requests must not make the worker count for each of them.
    #[tokio::test]
    async fn nothing_is_counted_for_who_has_gone() {
        let registry = Rc::<Registry>::default();
        let metrics = Arc::new(Metrics::new());
        let listener_account = Rc::new(ListenerAccount::new(&metrics, &"https".into(), &registry));
        let _open = registration(&listener_account, "shop");
        let counted = Rc::new(Cell::new(0));
        let moved: Moved = {
            let counted = counted.clone();
            Rc::new(move |_| {
                counted.set(counted.get() + 1);
                (0, 0)
            })
        };
        let (reply, mut counts) = tokio::sync::mpsc::unbounded_channel();
        count(registry.clone(), moved.clone(), reply).await;
        assert_eq!((counts.recv().await, counted.get()), (Some(()), 1));
        let (reply, gone) = tokio::sync::mpsc::unbounded_channel();
        drop(gone);
        count(registry, moved, reply).await;
        assert_eq!(counted.get(), 1);
    }

    #[tokio::test]
    async fn ends_what_matches_once_and_says_why() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let metrics = Arc::new(Metrics::new());
                let registry = Rc::new(Registry::new(1, 2));
                let listener_account = Rc::new(ListenerAccount::new(&metrics, &"https".into(), &registry));
                for backend in ["a", "b"] {
                    let registration = registration(&listener_account, backend);
                    let place = registration.place();
                    let task = tokio::task::spawn_local(async move {
                        let _registration = registration;
                        std::future::pending::<()>().await;
                    });
                    registry.is_served_by(place, task.abort_handle());
                }
                let filter = Filter { backend: Some("b".into()), ..Filter::default() };
                assert_eq!(
                    registry.end(CloseReason::ClosedByAdmin, |account| registry.matches(&filter, account)),
                    1
                );
                assert_eq!(
                    registry.end(CloseReason::ClosedByAdmin, |account| registry.matches(&filter, account)),
                    0
                );
                while registry.entries.borrow().len() > 1 {
                    yield_now().await;
                }
                let ids: Vec<u64> =
                    registry.entries.borrow().iter().map(|(_, one)| registry.id(&one.account)).collect();
                assert_eq!(ids, [1], "the other one is there still");
                let text = metrics.encode().unwrap();
                assert!(text.contains("reason=\"closed_by_admin\"} 1"), "{text}");
            })
            .await;
    }

    #[tokio::test]
    async fn only_what_has_lasted_long_enough_ends() {
        let listener_account =
            Rc::new(ListenerAccount::new(&Arc::new(Metrics::new()), &"https".into(), &Rc::default()));
        let registration = registration(&listener_account, "a");
        let registry = &listener_account.registry;
        let task = tokio::spawn(std::future::pending::<()>());
        registry.is_served_by(registration.place(), task.abort_handle());
        let longest = |max_duration| Timeouts { max_duration, ..Timeouts::default() };
        registry.end_older(&longest(Duration::from_secs(60)));
        assert!(registry.entries.borrow()[registration.place()].task.is_some());
        registry.end_older(&longest(Duration::ZERO));
        assert!(registry.entries.borrow()[registration.place()].task.is_some(), "zero is no limit");
        std::thread::sleep(Duration::from_millis(200));
        let own =
            ScopedTimeouts { max_duration: Some(Duration::from_millis(100)), ..ScopedTimeouts::default() };
        registration.limited_by([None, Some(&Arc::new(own)), None]);
        registry.end_older(&longest(Duration::ZERO));
        assert!(registry.entries.borrow()[registration.place()].task.is_none());
        assert!(task.await.unwrap_err().is_cancelled());
    }
}
