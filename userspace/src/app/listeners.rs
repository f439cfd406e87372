//! The sockets that the workers listen on: which ones there are, and when one is given up.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use anyhow::Context as _;
use snisplice_config::model::Model;
use tokio::time::Instant;

use super::App;
use crate::{
    net::listeners::{self, Bound},
    proxy::worker::Order,
    takeover::client::Client,
};

/// How long a socket listens beside the one that takes its place. The kernel keeps a silent client for a second before it is
/// accepted, and asks again after one and three seconds where a packet is lost.
const MADE: Duration = Duration::from_secs(5);

impl App {
    /// Listens where another process has, as well. Nobody else serves by now, so that what cannot be had is left out.
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

    /// Listens on until the connections have come that are being made to an address that another socket has from now on.
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

    /// Has the sockets of an address go on for what a new configuration says. Whom they serve, each worker finds by the
    /// address.
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

/// The same sockets with a copy of each, for a process that takes over.
pub(super) fn with_copies(bound: Vec<Bound>) -> anyhow::Result<Vec<(Bound, Vec<StdListener>)>> {
    let copied = |bound: Bound| {
        let copies = bound.sockets.iter().map(StdListener::try_clone).collect::<Result<_, _>>();
        Ok((bound, copies.context("cannot keep a listening socket")?))
    };
    bound.into_iter().map(copied).collect()
}

/// Has all listening sockets, those of a process that is taken over from among them. They listen unless that process does there.
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
