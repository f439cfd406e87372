//! Routes and devices of this network namespace, from rtnetlink(7).

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};
use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        self, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, socket_with,
        sockopt,
    },
};

/// The kernel sends no larger message: a page, or 32 KiB of a dump.
const LARGEST: usize = 64 * 1024;

/// Multicast groups (`RTNLGRP_*`, of which number n is bit n - 1): everything that may change the device of a route, or
/// the set of devices. Neighbours are omitted: the kernel looks them up for each packet.
const GROUPS: u32 = 1 // RTNLGRP_LINK
    | 1 << 4 // RTNLGRP_IPV4_IFADDR
    | 1 << 6 // RTNLGRP_IPV4_ROUTE
    | 1 << 7 // RTNLGRP_IPV4_RULE
    | 1 << 8 // RTNLGRP_IPV6_IFADDR
    | 1 << 10 // RTNLGRP_IPV6_ROUTE
    | 1 << 18 // RTNLGRP_IPV6_RULE
    | 1 << 31; // RTNLGRP_NEXTHOP

/// The way by which packets of a connection leave this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// By the device with this index.
    Device(u32),
    /// The packets do not leave: the other end is on this host.
    Local,
    /// No device for now. Packets may pass once there is a route again.
    None,
}

/// A device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Device {
    /// The index. A device that is made anew gets another one.
    pub index: u32,
    /// Whether packets on it begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether its packets go to another device (a bridge, a bond).
    pub enslaved: bool,
    /// Whether it is one end of a pair, as containers have them.
    pub veth: bool,
    /// Whether it has an address of a scope beyond its link.
    pub addressed: bool,
}

impl Device {
    /// Whether a route of a connection may lead over the device later. All Ethernet devices count but two kinds: those
    /// below another device, and ends of pairs without an address, of which a host with many containers has hundreds.
    #[must_use]
    pub fn is_candidate(self) -> bool {
        self.ethernet && !self.enslaved && (!self.veth || self.addressed)
    }
}

/// All devices at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// The listed devices.
    pub seen: Vec<Device>,
    /// Whether the list is complete. If not, devices kept changing while the kernel listed them, and one may be
    /// missing.
    pub complete: bool,
}

/// The number of attempts at a dump that changes interrupt (`NLM_F_DUMP_INTR`).
const DUMPS: usize = 5;

/// A socket for requests.
#[derive(Debug)]
pub struct Asker {
    socket: OwnedFd,
    serial: u32,
    buffer: Vec<u8>,
}

/// A socket for notifications of changes.
#[derive(Debug)]
pub struct Changes {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    // The protocol with the number 0, `NETLINK_ROUTE`.
    Ok(socket_with(net::AddressFamily::NETLINK, SocketType::RAW, flags, None)?)
}

impl Changes {
    /// Subscribes to the changes in the network namespace of the calling thread.
    pub fn new() -> io::Result<Self> {
        let socket = open()?;
        // A burst that does not fit counts as one change. A larger buffer saves checks. It is not needed for
        // correctness.
        let _ = sockopt::set_socket_recv_buffer_size(&socket, 1 << 20);
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { socket, buffer: vec![0; LARGEST] })
    }

    /// Whether anything has changed since the last call. Does not wait.
    pub fn take(&mut self) -> io::Result<bool> {
        let mut changed = false;
        loop {
            match retry_on_intr(|| net::recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT)) {
                Ok(_) | Err(Errno::NOBUFS) => changed = true,
                Err(Errno::AGAIN) => return Ok(changed),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Asker {
    /// A socket for requests about the network namespace of the calling thread.
    pub fn new() -> io::Result<Self> {
        Ok(Self { socket: open()?, serial: 0, buffer: vec![0; LARGEST] })
    }

    /// The way of a TCP segment from `local` to `remote` by the present routing rules and tables. `device` is required
    /// for link-local addresses.
    pub fn hop(&mut self, local: SocketAddr, remote: SocketAddr, device: u32) -> io::Result<Hop> {
        self.send(RouteNetlinkMessage::GetRoute(question(local, remote, device)), 0)?;
        let mut hop = Hop::None;
        let answered = self.answers(false, |answer| {
            if let RouteNetlinkMessage::NewRoute(route) = answer {
                hop = hop_of(&route);
            }
        });
        match answered {
            // No route, a forbidden one, or an address that this host no longer has.
            Err(error) if has_no_route(&error) => Ok(Hop::None),
            answered => answered.map(|_| hop),
        }
    }

    /// All devices.
    pub fn devices(&mut self) -> io::Result<Devices> {
        let mut devices = Devices { seen: Vec::new(), complete: false };
        for _ in 0..DUMPS {
            devices = self.devices_once()?;
            if devices.complete {
                break;
            }
        }
        Ok(devices)
    }

    fn devices_once(&mut self) -> io::Result<Devices> {
        let mut addressed = BTreeSet::new();
        self.send(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let listed = self.answers(true, |answer| {
            if let RouteNetlinkMessage::NewAddress(address) = answer
                && address.header.scope == AddressScope::Universe
            {
                addressed.insert(address.header.index);
            }
        })?;
        let mut seen = Vec::new();
        self.send(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let links = self.answers(true, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                seen.push(device(&link, &addressed));
            }
        })?;
        Ok(Devices { seen, complete: [listed, links] == [Dump::Consistent; 2] })
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.serial = self.serial.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.serial;
        request.finalize();
        let length = request.buffer_len();
        request.serialize(&mut self.buffer[..length]);
        let sent = retry_on_intr(|| net::send(&self.socket, &self.buffer[..length], SendFlags::empty()));
        sent.map(drop).map_err(io::Error::from)
    }

    /// Reads the reply to the last request: one message, or all messages of a dump.
    fn answers(&mut self, dump: bool, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<Dump> {
        let mut seen = Dump::Consistent;
        loop {
            let (_, length) =
                retry_on_intr(|| net::recv(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC))?;
            let mut rest = &self.buffer[..length.min(LARGEST)];
            while !rest.is_empty() {
                let buffer = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
                let length = buffer.length() as usize;
                let ours = buffer.sequence_number() == self.serial;
                if ours && buffer.flags() & NLM_F_DUMP_INTR != 0 {
                    seen = Dump::Interrupted;
                }
                // A message that the library does not understand does not invalidate the others.
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length.min(rest.len())]);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                match message.map(|message| message.payload) {
                    _ if !ours => {}
                    Ok(NetlinkPayload::InnerMessage(inner)) => each(inner),
                    Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                    Ok(NetlinkPayload::Done(_)) => return Ok(seen),
                    Ok(_) | Err(_) => {}
                }
                if ours && !dump {
                    return Ok(seen);
                }
            }
        }
    }
}

/// Whether the kernel listed one consistent state. It marks the messages of a dump during which objects changed
/// (`NLM_F_DUMP_INTR`, Linux 3.1). An object may then be missing or appear twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dump {
    Consistent,
    Interrupted,
}

fn question(local: SocketAddr, remote: SocketAddr, device: u32) -> RouteMessage {
    /// `IPPROTO_TCP`.
    const TCP: u8 = 6;
    let mut message = RouteMessage::default();
    let is_v4 = remote.is_ipv4();
    message.header.address_family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let bits = if is_v4 { 32 } else { 128 };
    message.header.destination_prefix_length = bits;
    message.header.source_prefix_length = bits;
    message.attributes = vec![
        RouteAttribute::Destination(remote.ip().into()),
        RouteAttribute::Source(local.ip().into()),
        RouteAttribute::IpProto(TCP),
        RouteAttribute::Sport(local.port()),
        RouteAttribute::Dport(remote.port()),
    ];
    if is_link_local(remote.ip()) {
        message.attributes.push(RouteAttribute::Oif(device));
    }
    message
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn hop_of(route: &RouteMessage) -> Hop {
    match route.header.kind {
        RouteType::Local => Hop::Local,
        RouteType::Unicast => {
            let device = |attribute: &RouteAttribute| match attribute {
                RouteAttribute::Oif(device) => Some(Hop::Device(*device)),
                _ => None,
            };
            route.attributes.iter().find_map(device).unwrap_or(Hop::None)
        }
        _ => Hop::None,
    }
}

fn device(link: &LinkMessage, addressed: &BTreeSet<u32>) -> Device {
    let is_veth = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Veth));
    let index = link.header.index;
    let mut device = Device {
        index,
        ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        enslaved: false,
        veth: false,
        addressed: addressed.contains(&index),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Controller(_) => device.enslaved = true,
            LinkAttribute::LinkInfo(infos) => device.veth = infos.iter().any(is_veth),
            _ => {}
        }
    }
    device
}

fn has_no_route(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL | Errno::ACCESS | Errno::NODEV)
    )
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{DoneMessage, NetlinkHeader};

    use super::*;

    #[test]
    fn loopback_is_local_and_no_candidate() {
        let mut asker = Asker::new().unwrap();
        let [local, remote] = ["127.0.0.1:1", "127.0.0.1:2"].map(|end| end.parse().unwrap());
        assert_eq!(asker.hop(local, remote, 0).unwrap(), Hop::Local);
        let devices = asker.devices().unwrap().seen;
        let lo = devices.iter().find(|device| device.index == 1).expect("every namespace has it");
        assert!(!lo.ethernet && !lo.is_candidate(), "{lo:?}");
    }

    #[test]
    fn an_address_that_is_not_ours_leads_nowhere() {
        let mut asker = Asker::new().unwrap();
        // An address for documentation (RFC 5737), which no host has.
        let [local, remote] = ["192.0.2.1:1", "127.0.0.1:2"].map(|end| end.parse().unwrap());
        assert_eq!(asker.hop(local, remote, 0).unwrap(), Hop::None);
    }

    /// A kernel that replies with the next of these lists of devices at each request. The first `changing` lists are
    /// marked as interrupted.
    fn kernel(lists: &'static [&'static [u32]], changing: usize) -> Asker {
        let family = net::AddressFamily::UNIX;
        let (ours, theirs) =
            net::socketpair(family, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        std::thread::spawn(move || {
            let say = |serial, flags, payload: NetlinkPayload<RouteNetlinkMessage>| {
                let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
                message.header.sequence_number = serial;
                message.header.flags = flags;
                message.finalize();
                let mut bytes = vec![0; message.buffer_len()];
                message.serialize(&mut bytes);
                net::send(&theirs, &bytes, SendFlags::empty()).unwrap();
            };
            let done = || NetlinkPayload::Done(DoneMessage::default());
            // Requests are numbered from 1: one for addresses, of which there are none, and one for devices.
            for ((turn, list), serial) in lists.iter().enumerate().zip((1..).step_by(2)) {
                let flags = if turn < changing { NLM_F_DUMP_INTR } else { 0 };
                say(serial, 0, done());
                for index in *list {
                    let mut link = LinkMessage::default();
                    link.header.index = *index;
                    say(serial + 1, flags, RouteNetlinkMessage::NewLink(link).into());
                }
                say(serial + 1, flags, done());
            }
            // Open until the last request was sent.
            while net::recv(&theirs, &mut [0; 256][..], RecvFlags::empty())
                .is_ok_and(|(_, length)| length > 0)
            {}
        });
        Asker { socket: ours, serial: 0, buffer: vec![0; LARGEST] }
    }

    fn indices(devices: &Devices) -> Vec<u32> {
        devices.seen.iter().map(|device| device.index).collect()
    }

    #[test]
    fn a_dump_during_a_change_is_asked_for_again() {
        let devices = kernel(&[&[1, 3], &[1, 2, 3]], 1).devices().unwrap();
        assert_eq!((indices(&devices), devices.complete), (vec![1, 2, 3], true));
    }

    #[test]
    fn devices_that_change_all_the_time_are_said_to_be_incomplete() {
        const LIST: &[u32] = &[1, 3];
        let devices = kernel(&[LIST; DUMPS], DUMPS).devices().unwrap();
        assert_eq!((indices(&devices), devices.complete), (vec![1, 3], false));
    }

    #[test]
    fn a_silent_network_has_not_changed() {
        let mut changes = Changes::new().unwrap();
        // Other processes may change something at the same time, but not forever.
        while changes.take().unwrap() {}
    }

    #[test]
    fn ends_of_pairs_are_candidates_with_an_address_only() {
        let plain = Device { index: 5, ethernet: true, enslaved: false, veth: false, addressed: false };
        assert!(plain.is_candidate());
        assert!(!Device { enslaved: true, ..plain }.is_candidate());
        assert!(!Device { ethernet: false, ..plain }.is_candidate());
        assert!(!Device { veth: true, ..plain }.is_candidate());
        assert!(Device { veth: true, addressed: true, ..plain }.is_candidate());
    }
}
