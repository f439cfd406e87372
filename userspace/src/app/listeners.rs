//! The sockets on which the workers listen, and the time at which one is closed.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use anyhow::Context as _;
use snisplice_config::model::Model;
use tokio::time::Instant;

use super::App;
use crate::{
    net::{
        keepalive::Keepalive,
        listeners::{self, Bound},
    },
    proxy::worker::Order,
    snapshot::Snapshot,
    takeover::client::Client,
};

/// The time for which a socket listens beside its replacement. The kernel holds a silent client back for a second
/// before accept(2), and a client retransmits a lost packet after one and three seconds.
const MADE: Duration = Duration::from_secs(5);

impl App {
    /// Listens also where another process has listened. No other process serves by now, so unavailable addresses are
    /// skipped.
    pub(super) fn listen_if_possible(&mut self, mut bound: Bound, copies: Vec<StdListener>) {
        for error in bound.listen_if_possible() {
            tracing::error!(%error, "a listening socket has a wrong option");
        }
        self.listen(bound, copies);
    }

    pub(super) fn listen(&mut self, bound: Bound, copies: Vec<StdListener>) {
        let Bound { front, wanted, address, sockets, leaves, .. } = bound;
        let listener = &front.listener;
        tracing::info!(%listener, %address, "listening");
        self.sockets.insert(wanted, copies);
        for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
            let _ = worker.orders.send(Order::Listen { listener: listener.clone(), wanted, socket });
        }
        self.listening.insert(wanted, front);
        if leaves {
            self.leave(wanted);
        }
    }

    /// Keeps listening for connections in progress to an address that another socket serves from now on.
    pub(super) fn leave(&mut self, address: SocketAddr) {
        self.leaving.entry(address).or_insert_with(|| {
            tracing::info!(%address, time = ?MADE, "still accepting connections that arrived before the change");
            Instant::now() + MADE
        });
    }

    pub(super) fn unlisten(&mut self, address: SocketAddr) {
        self.order_all(|| Order::Unlisten(address));
        self.listening.remove(&address);
        self.sockets.remove(&address);
        self.leaving.remove(&address);
        tracing::info!(%address, "no longer listening");
    }

    /// Sets the keepalive options of each listener on its sockets, for clients that connect from now on.
    pub(super) fn probe_clients(&self, live: &Snapshot) {
        for (address, sockets) in &self.sockets {
            let Some(listener) = live.listener_at(*address) else { continue };
            let own = listener.timeouts.as_deref().copied().unwrap_or_default();
            let keepalive = Keepalive::of(&own.of_peers(&self.peers));
            for socket in sockets {
                if let Err(error) = keepalive.replace(socket) {
                    tracing::error!(%error, %address, "cannot set the keepalive of clients");
                }
            }
        }
    }

    /// Keeps the sockets of an address, and applies a new configuration to them. Each worker finds the listener by
    /// the address.
    pub(super) fn follow(&mut self, address: SocketAddr, front: listeners::Front) {
        for socket in self.sockets.get(&address).into_iter().flatten() {
            if let Err(error) = listeners::announce(socket, &front) {
                tracing::error!(%error, %address, "cannot set the largest segment");
            }
        }
        tracing::info!(listener = %front.listener, %address, "listening on the same address as before");
        self.listening.insert(address, front);
    }
}

/// Adds a copy of each socket, for a process that takes over.
pub(super) fn with_copies(bound: Vec<Bound>) -> anyhow::Result<Vec<(Bound, Vec<StdListener>)>> {
    let copied = |bound: Bound| {
        let copies = bound.sockets.iter().map(StdListener::try_clone).collect::<Result<_, _>>();
        Ok((bound, copies.context("cannot keep a listening socket")?))
    };
    bound.into_iter().map(copied).collect()
}

/// Binds all listening sockets, including those received from the old process. They do not listen yet, unless they do
/// so in the old process.
pub(super) fn bind(
    model: &Model,
    mut old: Option<&mut Client>,
    workers: usize,
) -> anyhow::Result<Vec<Bound>> {
    let offered = old.as_ref().map(|old| old.fronts()).unwrap_or_default();
    let own = old.as_ref().map_or_else(|| Ok(Vec::new()), |old| old.own());
    let own = own.context("cannot take over")?;
    let wanted = listeners::with_kept(&offered, listeners::wanted(model));
    let outlived = listeners::changes(&offered, &wanted).outlived;
    let mut bound = Vec::new();
    for (address, front) in wanted {
        bound.extend(match old.as_mut().and_then(|old| old.sockets(address)) {
            Some(sockets) => Some(listeners::complete(&front, address, sockets, workers)?),
            None => listeners::bind_if_possible(&front, address, workers, &own)?,
        });
    }
    for address in outlived {
        let sockets = old.as_mut().and_then(|old| old.sockets(address));
        if let (Some(sockets), Some(front)) = (sockets, offered.get(&address)) {
            bound.push(Bound::leaving(front, address, sockets)?);
        }
    }
    bound.iter().filter(|bound| !bound.late).try_for_each(Bound::listen)?;
    Ok(bound)
}
