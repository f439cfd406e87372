//! Information from the options of a pair's sockets.

use std::{io, os::fd::BorrowedFd};

use tokio::net::TcpStream;

use super::plan::{self, Leg};
use crate::{bpf::packet::tuple::tuple, metrics::labels::PacketIneligible, net::sockopt};

/// `TCP_ESTABLISHED`.
const ESTABLISHED: u8 = 1;

/// Bits of `tcpi_options`.
mod negotiated {
    pub(super) const TIMESTAMPS: u8 = 1;
    pub(super) const SACK: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 4;
    pub(super) const ECN: u8 = 8;
}

/// Reads a connection's socket options. Sequence numbers and devices come from a snapshot.
pub(super) fn of(stream: &TcpStream) -> Result<Leg, PacketIneligible> {
    read(stream).map_err(|error| {
        tracing::debug!(%error, "cannot read a socket's options");
        // A peer that has reset the connection has no address.
        if error.kind() == io::ErrorKind::NotConnected {
            PacketIneligible::PeerClosed
        } else {
            PacketIneligible::Other
        }
    })
}

fn read(stream: &TcpStream) -> io::Result<Leg> {
    let info = sockopt::tcp_info(stream)?;
    let has = |option| info.tcpi_options & option != 0;
    // Both scales are in one byte, the peer's in the lower half; without the option there is none.
    let scales = if has(negotiated::WINDOW_SCALE) { u32::from(info.tcpi_snd_rcv_wscale) } else { 0 };
    Ok(Leg {
        tuple: tuple(stream.local_addr()?, stream.peer_addr()?),
        established: info.tcpi_state == ESTABLISHED,
        timestamps: has(negotiated::TIMESTAMPS),
        sack: has(negotiated::SACK),
        ecn: has(negotiated::ECN),
        peer_scale: scales & 15,
        own_scale: scales >> 4,
        send_mss: info.tcpi_snd_mss,
        announced_mss: info.tcpi_advmss,
        clock: sockopt::timestamp(stream)?,
        ..Leg::default()
    })
}

/// The largest segment that the backend may send so that it fits the client's connection; `None` if a bound is useless.
pub(in crate::datapath) fn largest_segment(client: BorrowedFd<'_>) -> Option<u32> {
    let info = sockopt::tcp_info(client).ok()?;
    let timestamps = info.tcpi_options & negotiated::TIMESTAMPS != 0;
    plan::largest_segment(info.tcpi_snd_mss, info.tcpi_advmss, timestamps)
}

/// Reasons against an accepted connection that are not in its numbers. Neither socket has an upper protocol, since
/// both are the balancer's.
pub(super) fn admit(client: &TcpStream) -> Result<(), PacketIneligible> {
    let local = client.local_addr().map_err(|_| PacketIneligible::PeerClosed)?;
    // The client's packets had another destination, and were redirected by NAT. Forwarded packets would bypass that
    // translation.
    match sockopt::original_destination(client, local.is_ipv6()) {
        Some(wanted) if wanted != local => Err(PacketIneligible::Nat),
        _ => Ok(()),
    }
}
