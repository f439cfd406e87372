//! What the sockets of a pair tell.

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

/// Reads what options tell of a connection; sequence numbers and devices are for the kernel to tell.
pub(super) fn of(stream: &TcpStream) -> Result<Leg, PacketIneligible> {
    read(stream).map_err(|error| {
        tracing::debug!(%error, "cannot read a socket's options");
        // It has no peer any more once that has reset it.
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

/// Largest segment that the backend may send so that it fits the client's connection; `None` where that would be in vain.
pub(in crate::datapath) fn largest_segment(client: BorrowedFd<'_>) -> Option<u32> {
    let info = sockopt::tcp_info(client).ok()?;
    let timestamps = info.tcpi_options & negotiated::TIMESTAMPS != 0;
    plan::largest_segment(info.tcpi_snd_mss, info.tcpi_advmss, timestamps)
}

/// What speaks against an accepted connection and cannot be told from numbers. Nothing sits on top of the sockets: both
/// are our own.
pub(super) fn admit(client: &TcpStream) -> Result<(), PacketIneligible> {
    let local = client.local_addr().map_err(|_| PacketIneligible::PeerClosed)?;
    // Who wanted to go elsewhere was led here by a translation that packets sent on would not see.
    match sockopt::original_destination(client, local.is_ipv6()) {
        Some(wanted) if wanted != local => Err(PacketIneligible::Nat),
        _ => Ok(()),
    }
}
