//! The addresses of a connection in the form of the maps.

use std::net::{IpAddr, SocketAddr};

use snisplice_common::packet::{
    flow::Translation,
    maps::{Tuple, is_mapped, mapped},
};

/// The addresses of a connection in the order of received packets.
#[must_use]
pub fn tuple(local: SocketAddr, remote: SocketAddr) -> Tuple {
    Tuple {
        remote: address(remote.ip()),
        local: address(local.ip()),
        remote_port: remote.port().to_be(),
        local_port: local.port().to_be(),
    }
}

/// The addresses of the connection to which this way's packets are forwarded.
#[must_use]
pub fn of_receiver(way: &Translation) -> Tuple {
    // In the order of the header: the balancer's port first.
    let [a, b, c, d] = way.ports.to_ne_bytes();
    Tuple {
        remote: way.remote,
        local: way.local,
        remote_port: u16::from_ne_bytes([c, d]),
        local_port: u16::from_ne_bytes([a, b]),
    }
}

/// The balancer's address and the peer's.
#[must_use]
pub fn ends(tuple: &Tuple) -> (SocketAddr, SocketAddr) {
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
