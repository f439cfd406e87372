//! The routes of addresses: detects a connection that would come back to this process, and verifies the routing rules
//! of transparent backends.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rustix::{
    io::retry_on_intr,
    net::{self, RecvFlags, SendFlags, SocketFlags, SocketType, socket_with},
};

/// Whether `address` reaches one of the listening addresses. `is_local` returns whether an address belongs to this
/// host. It is called only if a wildcard address listens on the same port.
pub fn reaches(
    mut listening: impl Iterator<Item = SocketAddr>,
    address: SocketAddr,
    is_local: impl Fn(IpAddr) -> bool,
) -> bool {
    // An IPv4 address written as IPv6 reaches IPv4 sockets (RFC 4291, section 2.5.5.2).
    let (ip, port) = (address.ip().to_canonical(), address.port());
    // connect(2) takes the unspecified address for this host.
    let ip = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    listening.any(|own| {
        own.port() == port
            && own.is_ipv4() == ip.is_ipv4()
            && (own.ip() == ip || own.ip().is_unspecified() && is_local(ip))
    })
}

/// Whether the kernel delivers packets for `address` to this host (a route of the type `local`). If the kernel does not
/// answer, only loopback addresses count.
#[must_use]
pub fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || route_type(address).is_ok_and(|kind| kind == RouteType::Local)
}

/// Whether TCP packets of `endpoint` to addresses of other hosts are delivered to this host, as the sockets of a
/// transparent backend need it (Linux 4.18).
///
/// # Errors
/// Fails if there is no route to the endpoint, or if the kernel does not answer.
pub fn are_replies_delivered(endpoint: SocketAddr) -> io::Result<bool> {
    /// Addresses for documentation stand for clients (RFC 5737, RFC 3849).
    const CLIENTS: (Ipv4Addr, Ipv6Addr) =
        (Ipv4Addr::new(192, 0, 2, 77), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77));
    /// `IPPROTO_TCP`.
    const TCP: u8 = 6;
    let address = endpoint.ip();
    let towards = route(address, Vec::new())?;
    let mut packet = vec![
        RouteAttribute::Source(RouteAddress::from(address)),
        RouteAttribute::IpProto(TCP),
        RouteAttribute::Sport(endpoint.port()),
    ];
    if towards.header.kind != RouteType::Local {
        // The packets come from another host. Those of an endpoint on this host have no incoming device.
        packet.extend(towards.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(device) => Some(RouteAttribute::Iif(*device)),
            _ => None,
        }));
    }
    let client = if address.is_ipv4() { CLIENTS.0.into() } else { CLIENTS.1.into() };
    Ok(route(client, packet)?.header.kind == RouteType::Local)
}

/// The type of the route to `address`.
fn route_type(address: IpAddr) -> io::Result<RouteType> {
    route(address, Vec::new()).map(|route| route.header.kind)
}

/// The route of a packet to `address` with these attributes (rtnetlink(7), `RTM_GETROUTE`).
fn route(address: IpAddr, mut attributes: Vec<RouteAttribute>) -> io::Result<RouteMessage> {
    let mut message = RouteMessage::default();
    let (family, length) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    let has_source = attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Source(_)));
    message.header.source_prefix_length = if has_source { length } else { 0 };
    attributes.push(RouteAttribute::Destination(RouteAddress::from(address)));
    message.attributes = attributes;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(message));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);

    // The protocol with the number 0, `NETLINK_ROUTE`. The kernel answers within send(2).
    let socket = socket_with(net::AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    retry_on_intr(|| net::send(&socket, &bytes, SendFlags::empty()))?;
    let mut answer = [0; 4_096];
    let (length, _) = retry_on_intr(|| net::recv(&socket, &mut answer[..], RecvFlags::DONTWAIT))?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..length]);
    match answer.map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("the kernel answers something else")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reaches_own(listening: &[&str], address: &str) -> bool {
        let own = |ip: IpAddr| ip.is_loopback() || ip == IpAddr::from([10, 0, 0, 1]);
        let listening = listening.iter().map(|address| address.parse().unwrap());
        reaches(listening, address.parse().unwrap(), own)
    }

    #[test]
    fn an_address_that_is_listened_on_is_reached() {
        assert!(reaches_own(&["10.0.0.1:443"], "10.0.0.1:443"));
        assert!(!reaches_own(&["10.0.0.1:443"], "10.0.0.1:444"));
        assert!(!reaches_own(&["10.0.0.1:443"], "10.0.0.2:443"));
        assert!(reaches_own(&["10.0.0.1:443"], "[::ffff:10.0.0.1]:443"));
    }

    #[test]
    fn a_wildcard_holds_all_addresses_of_this_host_in_its_family() {
        assert!(reaches_own(&["0.0.0.0:443"], "10.0.0.1:443"));
        assert!(reaches_own(&["0.0.0.0:443"], "127.9.9.9:443"));
        assert!(reaches_own(&["0.0.0.0:443"], "0.0.0.0:443"));
        assert!(!reaches_own(&["0.0.0.0:443"], "10.0.0.2:443"));
        assert!(!reaches_own(&["0.0.0.0:443"], "[::1]:443"));
        assert!(reaches_own(&["[::]:443"], "[::1]:443"));
        assert!(!reaches_own(&["[::]:443"], "127.0.0.1:443"));
    }

    #[test]
    fn the_kernel_knows_its_own_addresses() {
        assert!(is_local(IpAddr::from([127, 1, 2, 3])));
        // An address for documentation (RFC 5737), which no host has.
        assert!(!is_local(IpAddr::from([192, 0, 2, 77])));
        assert!(!are_replies_delivered("127.0.0.1:443".parse().unwrap()).unwrap_or_default());
    }
}
