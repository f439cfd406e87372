//! What the sockets of a pair tell.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
};

use snisplice_common::packet::{Tuple, flow::Way, is_mapped, mapped};
use tokio::net::TcpStream;

use super::{
    plan::{self, Leg},
    stats::Refusal,
};
use crate::socket;

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
pub(super) fn of(stream: &TcpStream) -> Result<Leg, Refusal> {
    read(stream).map_err(|error| {
        tracing::debug!(%error, "cannot read a socket's options");
        // It has no peer any more once that has reset it.
        if error.kind() == io::ErrorKind::NotConnected { Refusal::PeerClosed } else { Refusal::Other }
    })
}

fn read(stream: &TcpStream) -> io::Result<Leg> {
    let info = socket::tcp_info(stream)?;
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
        clock: socket::timestamp(stream)?,
        ..Leg::default()
    })
}

/// Largest segment that the backend may send so that it fits the client's connection; `None` where that would be in vain.
pub(in crate::datapath) fn largest_segment(client: BorrowedFd<'_>) -> Option<u32> {
    let info = socket::tcp_info(client).ok()?;
    let timestamps = info.tcpi_options & negotiated::TIMESTAMPS != 0;
    plan::largest_segment(info.tcpi_snd_mss, info.tcpi_advmss, timestamps)
}

/// What speaks against an accepted connection and cannot be told from numbers. Nothing sits on top of the sockets: both
/// are our own.
pub(super) fn admit(client: &TcpStream) -> Result<(), Refusal> {
    let local = client.local_addr().map_err(|_| Refusal::PeerClosed)?;
    // Who wanted to go elsewhere was led here by a translation that packets sent on would not see.
    match socket::original_destination(client, local.is_ipv6()) {
        Some(wanted) if wanted != local => Err(Refusal::Nat),
        _ => Ok(()),
    }
}

/// The addresses of a connection as the packets that it receives have them.
#[must_use]
pub fn tuple(local: SocketAddr, remote: SocketAddr) -> Tuple {
    Tuple {
        remote: address(remote.ip()),
        local: address(local.ip()),
        remote_port: remote.port().to_be(),
        local_port: local.port().to_be(),
    }
}

/// The addresses of the connection that this way's packets are sent on to.
pub(crate) fn of_receiver(way: &Way) -> Tuple {
    // As they lie in the header: our own port first.
    let [a, b, c, d] = way.ports.to_ne_bytes();
    Tuple {
        remote: way.remote,
        local: way.local,
        remote_port: u16::from_ne_bytes([c, d]),
        local_port: u16::from_ne_bytes([a, b]),
    }
}

/// Our own address and the peer's.
pub(crate) fn ends(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
    let end = |address: &[u32; 4], port: u16| SocketAddr::new(ip(address), u16::from_be(port));
    (end(&tuple.local, tuple.local_port), end(&tuple.remote, tuple.remote_port))
}

fn ip(address: &[u32; 4]) -> IpAddr {
    if is_mapped(address) {
        return IpAddr::from(address[3].to_ne_bytes());
    }
    let mut octets = [0; 16];
    for (to, word) in octets.chunks_exact_mut(4).zip(address) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(octets)
}

fn address(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => mapped(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = address.octets();
            std::array::from_fn(|word| {
                u32::from_ne_bytes(std::array::from_fn(|byte| octets[4 * word + byte]))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_in_network_byte_order() {
        let tuple = tuple("10.0.0.1:443".parse().unwrap(), "10.0.0.2:5000".parse().unwrap());
        assert_eq!(tuple.local[3].to_ne_bytes(), [10, 0, 0, 1]);
        assert_eq!(tuple.remote[2].to_ne_bytes(), [0, 0, 0xff, 0xff]);
        assert_eq!(tuple.local_port.to_ne_bytes(), [1, 187]);
        assert_eq!(tuple.remote_port.to_ne_bytes(), [0x13, 0x88]);
    }

    #[test]
    fn a_tuple_tells_both_ends() {
        for (local, remote) in [("10.0.0.1:443", "10.0.0.2:5000"), ("[fd00::1]:443", "[fd00:1::2]:5000")] {
            let both = (local.parse().unwrap(), remote.parse().unwrap());
            assert_eq!(ends(&tuple(both.0, both.1)), both);
        }
    }
}
