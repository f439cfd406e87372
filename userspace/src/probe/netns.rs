//! Network namespaces for an experiment, `client | balancer | backend`, joined by two pairs of devices.
//!
//! The thread that makes them moves into the balancer's. The namespaces have no names, and last as long as the thread
//! and the sockets opened inside.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};
use rustix::{
    io::{Errno, retry_on_intr},
    net::{self, RecvFlags, SendFlags, SocketType, socket},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// Addresses of one family: those that connections are made to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) balancer: IpAddr,
    pub(super) backend: IpAddr,
}

/// The index of the first device in each namespace: above those that the kernel makes by itself.
const FIRST: u32 = 100;
/// The second one, which only the balancer has.
const SECOND: u32 = 101;

/// Addresses for documentation (RFC 5737, RFC 3849), which no other host has.
const V4: [[Ipv4Addr; 2]; 2] = [
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)],
    [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)],
];
const V6: [[Ipv6Addr; 2]; 2] = [
    [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2)],
    [Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2)],
];

/// The three namespaces.
#[derive(Debug)]
pub(super) struct Net {
    client: File,
    balancer: File,
    backend: File,
}

impl Net {
    /// Makes them, and moves the calling thread into the balancer's. Needs `CAP_SYS_ADMIN`.
    pub(super) fn new() -> io::Result<Self> {
        let made = || Ok(Self { client: namespace()?, backend: namespace()?, balancer: namespace()? });
        let net: Self = made().map_err(|error| because("cannot make a network namespace", &error))?;
        let links = || {
            let ours = Route::new()?;
            ours.join(FIRST, &net.client)?;
            ours.join(SECOND, &net.backend)?;
            for device in [FIRST, SECOND] {
                ours.switch_on(device)?;
            }
            net.in_client(|| Route::new()?.switch_on(FIRST))?;
            net.in_backend(|| Route::new()?.switch_on(FIRST))
        };
        links().map_err(|error| because("cannot make a pair of devices", &error))?;
        Ok(net)
    }

    /// The balancer's devices.
    pub(super) const fn devices() -> [u32; 2] {
        [FIRST, SECOND]
    }

    /// Gives all three namespaces IPv4 addresses.
    pub(super) fn v4(&self) -> io::Result<Option<Addresses>> {
        self.address(V4.map(|pair| pair.map(IpAddr::from)), 24).map(Some)
    }

    /// As above, for IPv6; `None` if the kernel lacks it.
    pub(super) fn v6(&self) -> io::Result<Option<Addresses>> {
        match self.address(V6.map(|pair| pair.map(IpAddr::from)), 64) {
            Ok(way) => Ok(Some(way)),
            Err(error) => match Errno::from_io_error(&error) {
                // Not there, or switched off for new devices.
                Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::ACCESS) => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn address(
        &self,
        [towards_client, towards_backend]: [[IpAddr; 2]; 2],
        prefix: u8,
    ) -> io::Result<Addresses> {
        let ours = Route::new()?;
        ours.address(FIRST, towards_client[0], prefix)?;
        ours.address(SECOND, towards_backend[0], prefix)?;
        self.in_client(|| Route::new()?.address(FIRST, towards_client[1], prefix))?;
        self.in_backend(|| Route::new()?.address(FIRST, towards_backend[1], prefix))?;
        Ok(Addresses { balancer: towards_client[0], backend: towards_backend[1] })
    }

    /// Runs `work` in the client's namespace. The sockets that it opens stay there.
    pub(super) fn in_client<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.inside(&self.client, work)
    }

    /// Does something as the backend.
    pub(super) fn in_backend<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.inside(&self.backend, work)
    }

    fn inside<T>(&self, namespace: &File, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let enter =
            |namespace: &File| move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        enter(namespace)?;
        let result = work();
        enter(&self.balancer)?;
        result
    }
}

/// A new namespace, which the calling thread is in from now on.
fn namespace() -> io::Result<File> {
    // SAFETY: the thread's table of open files does not change.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    File::open("/proc/thread-self/ns/net")
}

fn because(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// A socket that configures the namespace that it was opened in.
struct Route(OwnedFd);

impl Route {
    fn new() -> io::Result<Self> {
        // The protocol with the number 0, `NETLINK_ROUTE`.
        Ok(Self(socket(net::AddressFamily::NETLINK, SocketType::RAW, None)?))
    }

    /// A pair of devices: one here, the other one the first of a namespace.
    fn join(&self, device: u32, other: &File) -> io::Result<()> {
        let mut far = LinkMessage::default();
        far.header.index = FIRST;
        far.attributes = vec![LinkAttribute::NetNsFd(other.as_raw_fd())];
        let mut near = LinkMessage::default();
        near.header.index = device;
        near.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ])];
        self.ask(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn switch_on(&self, device: u32) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = device;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn address(&self, device: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = prefix;
        message.header.index = device;
        // No other host can have the address, and duplicate detection takes a second.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sends a request, and waits for its answer.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        retry_on_intr(|| net::send(&self.0, &bytes, SendFlags::empty()))?;
        let mut answer = [0; 4_096];
        let (length, _) = retry_on_intr(|| net::recv(&self.0, &mut answer[..], RecvFlags::empty()))?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer[..length]);
        match answer.map_err(io::Error::other)?.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            NetlinkPayload::Error(_) => Ok(()),
            _ => Err(io::Error::other("the kernel answers something else")),
        }
    }
}
