//! One adopted flow, and the sockets that hold its ports.

use std::{
    cell::OnceCell,
    io, thread,
    time::{Duration, Instant},
};

use snisplice_common::packet::{
    flow::{KEPT, Rules, State, Translation},
    maps::Tuple,
};
use snisplice_config::model::{Timeouts, scope::ScopedTimeouts};
use socket2::Socket;

use super::is_half_closed;
use crate::{
    account::{time_limits::with_jitter, view::Filter},
    bpf::packet::tuple,
    datapath::seam::{End, Patience},
    metrics::{NONE, labels::Carrier},
    net::{
        keepalive::{Keepalive, bear_silence},
        repair, sockopt,
    },
};

pub(super) struct AdoptedFlow {
    pub(super) flow: u32,
    /// See [`crate::account::registry::number`].
    pub(super) id: u64,
    /// The time of accept if it is known, and otherwise the time of the adoption.
    pub(super) opened: Instant,
    /// A tuple may have been taken by a new connection.
    pub(super) tuples: [Option<Tuple>; 2],
    pub(super) rules: Rules,
    /// The sockets that hold the ports, if they could be made.
    pub(super) sockets: Vec<Holder>,
    pub(super) progress: (u64, u64),
    /// Bytes up and down that an earlier process has accounted for.
    pub(super) counted: [u64; 2],
    /// The time since the last movement, or since the end.
    pub(super) since: Instant,
    /// The limits that differ from those of the process, found by the addresses at the first check.
    pub(super) limits: OnceCell<ScopedTimeouts>,
}

impl AdoptedFlow {
    pub(super) fn is_open(&self) -> bool {
        self.rules.mode == KEPT
    }

    /// Whether the filter selects the flow. Only the earlier process knew its listener, route, backend and server name.
    pub(super) fn matches(&self, filter: &Filter) -> bool {
        filter.id.is_none_or(|id| id == self.id)
            && filter.listener.as_deref().is_none_or(|name| name == NONE)
            && filter.backend.is_none()
            && filter.sni.is_none()
            && filter.carrier.is_none_or(|carrier| carrier == Carrier::Packet)
            && filter.client.as_ref().is_none_or(|networks| {
                let client = self.tuples[Peer::Client as usize].map(|tuple| tuple::ends(&tuple).1);
                client.is_some_and(|client| networks.contains(client.ip()))
            })
    }

    /// Probes the client and the backend, each if it is in doubt, as for flows with a task of their own.
    pub(super) fn ask_peers(&mut self, doubted: [bool; 2]) {
        for holder in &mut self.sockets {
            let is_doubted = doubted[holder.peer as usize];
            if is_doubted != holder.doubted {
                holder.doubted = is_doubted;
                // If this fails, an unreachable peer is given up sooner.
                let _ = bear_silence(&holder.socket, is_doubted);
            }
            if is_doubted {
                // Without a reply, nothing is done.
                let _ = repair::ask(&holder.socket);
            }
        }
    }

    /// The failure of a socket: its peer no longer answers.
    pub(super) fn failure(&mut self) -> Option<End> {
        for at in 0..self.sockets.len() {
            let holder = &mut self.sockets[at];
            let Ok(Some(error)) = holder.socket.take_error() else {
                holder.listen();
                continue;
            };
            let peer = holder.peer;
            if holder.answers {
                return Some(match peer {
                    Peer::Client => End::broken_by_client(error),
                    Peer::Backend => End::broken_by_backend(error),
                });
            }
            tracing::debug!(%error, ?peer, "a peer never answers probes: it is not probed any more");
            self.sockets.swap_remove(at);
            let (Some(tuple), way) = (&self.tuples[peer as usize], &self.rules.ways[peer as usize]) else {
                return None;
            };
            self.sockets.extend(Holder::new(peer, tuple, way, None));
            return None;
        }
        None
    }

    /// The maximum duration, zero for none.
    pub(super) fn longest(&self, process: &Timeouts) -> Duration {
        let own = self.limits.get();
        let longest = own.and_then(|own| own.max_duration).unwrap_or(process.max_duration);
        let jitter = own.and_then(|own| own.max_duration_jitter).unwrap_or(process.max_duration_jitter);
        with_jitter(longest, jitter, self.id)
    }

    /// The limits of the flow's silence.
    pub(super) fn patience(&self, process: Patience) -> Patience {
        self.limits.get().map_or(process, |own| process.or_own(own))
    }

    pub(super) fn silence(&mut self, state: &State, patience: Patience) -> Option<End> {
        let progress = state.progress();
        if progress != self.progress {
            self.progress = progress;
            self.since = Instant::now();
        }
        match self.since.elapsed() {
            silent if silent >= patience.idle => Some(End::Idle),
            silent if silent >= patience.half_closed && is_half_closed(state) => Some(End::HalfClosed),
            _ => None,
        }
    }
}

/// A socket that holds a port.
pub(super) struct Holder {
    pub(super) peer: Peer,
    pub(super) socket: Socket,
    pub(super) since: Instant,
    /// Whether the peer has ever replied to a probe. The balancer's probes have no timestamps. Some systems do not
    /// reply to such packets if timestamps were negotiated (RFC 7323 section 3.2). A peer that has never replied does
    /// not count as lost.
    pub(super) answers: bool,
    /// Whether the peer was in doubt at the last check.
    pub(super) doubted: bool,
}

impl Holder {
    /// A socket that replaces one of a dead process, with its numbers. It has nothing left to deliver or to receive.
    pub(super) fn new(
        peer: Peer,
        tuple: &Tuple,
        way: &Translation,
        keepalive: Option<&Keepalive>,
    ) -> io::Result<Self> {
        let (local, remote) = tuple::ends(tuple);
        let sends = way.ack_start.wrapping_add(way.own);
        let since = Instant::now();
        let socket = loop {
            match repair::connected(local, remote, sends, way.expected) {
                // The socket of the dead process still holds the port.
                Err(error)
                    if error.kind() == io::ErrorKind::AddrNotAvailable && since.elapsed() < PATIENCE =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                other => break other?,
            }
        };
        sockopt::reset_on_close(&socket)?;
        if let Some(keepalive) = keepalive {
            keepalive.apply(&socket)?;
        }
        Ok(Self { peer, socket, since: Instant::now(), answers: false, doubted: false })
    }

    /// Records whether the peer has replied.
    fn listen(&mut self) {
        /// More than the resolution of the kernel's clock.
        const TICKS: Duration = Duration::from_millis(200);
        if self.answers {
            return;
        }
        let Ok(info) = sockopt::tcp_info(&self.socket) else { return };
        // The kernel counts the beginning as a reply.
        let silent = Duration::from_millis(info.tcpi_last_ack_recv.into());
        self.answers = silent + TICKS < self.since.elapsed();
    }
}

/// The owner of a socket.
#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    Client,
    Backend,
}

/// Limit of the time for which sockets of a killed process may stay.
const PATIENCE: Duration = Duration::from_secs(1);
