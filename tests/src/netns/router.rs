//! A router in the middle of a link. The MTU of its links can fall below the negotiated segment size.

use anyhow::Result;

use super::{BACKEND, BACKEND_V6, CLIENT, LB, LB_V6, Link, Netns, OUTER, ip};
use crate::lab::Lab;

/// The device towards the lab's outer namespace.
const NEAR: &str = "outer";
/// The device towards the balancer.
const FAR: &str = "inner";

/// Forwards the packets of a link. It answers ARP and neighbour requests for the hosts of the other side, so that
/// neither side needs a route.
#[derive(Debug)]
pub struct Router {
    netns: Netns,
    link: Link,
}

impl Router {
    /// Inserts the router into a link of the lab. The devices keep their names and addresses.
    pub fn new(lab: &Lab, link: Link) -> Result<Self> {
        let (outer, name) = match link {
            Link::Client => (&lab.client, "client-router"),
            Link::Backend => (&lab.backend, "backend-router"),
        };
        let netns = Netns::new(format!("{}-{name}", lab.lb))?;
        for (parameter, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/proxy_arp", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/all/proxy_ndp", "1"),
            // The router's own addresses are usable at once.
            ("ipv6/conf/default/accept_dad", "0"),
        ] {
            netns.sysctl(&format!("net/{parameter}"), value)?;
        }
        ip(&["-n", &outer.name, "link", "del", OUTER], &[])?;
        ip(
            &[],
            &[
                format!("link add {OUTER} netns {outer} type veth peer name {NEAR} netns {netns}"),
                format!("link add {} netns {} type veth peer name {FAR} netns {netns}", link.inner(), lab.lb),
            ],
        )?;
        // The answers for other hosts are not delayed.
        for (family, device) in [("ipv4", NEAR), ("ipv4", FAR), ("ipv6", NEAR), ("ipv6", FAR)] {
            netns.sysctl(&format!("net/{family}/neigh/{device}/proxy_delay"), "0")?;
        }
        link.address(outer, &lab.lb)?;
        let router = Self { netns, link };
        // The router's own messages need a source address.
        let (v4, v6) = match link {
            Link::Client => ("10.0.1.254/32", "fd00:1::fe/128"),
            Link::Backend => ("10.0.2.254/32", "fd00:2::fe/128"),
        };
        router.netns.configure(FAR, &[], &[])?;
        router.netns.configure(NEAR, &[v4, v6], &[])?;
        let proxies = router.hosts().into_iter().flat_map(|(side, hosts)| {
            let other = if side == NEAR { FAR } else { NEAR };
            hosts.into_iter().filter(|host| host.contains(':')).map(move |host| (host, other))
        });
        let proxies = proxies.map(|(host, device)| format!("neigh add proxy {host} dev {device}"));
        ip(&["-n", &router.netns.name], &proxies.collect::<Vec<_>>())?;
        router.route("add", &[NEAR, FAR], [1_500, 1_500])?;
        Ok(router)
    }

    /// Sets the MTU of the link away from the balancer, in bytes: for IPv4 and for IPv6. The router reports it to the
    /// balancer for larger packets. A host beyond would get a report about the other link.
    pub fn narrow(&self, mtus: [u32; 2]) -> Result<()> {
        self.route("replace", &[NEAR], mtus)
    }

    /// Sets the MTU of the link towards the balancer. The router fragments packets that allow it.
    pub fn narrow_inwards(&self, mtus: [u32; 2]) -> Result<()> {
        self.route("replace", &[FAR], mtus)
    }

    /// Drops all packets for hosts on both sides without a message, from now on.
    pub fn cut(&self) -> Result<()> {
        let hosts = self.hosts().into_iter().flat_map(|(_, hosts)| hosts);
        ip(
            &["-n", &self.netns.name],
            &hosts.map(|host| format!("route replace blackhole {host}")).collect::<Vec<_>>(),
        )
    }

    /// Ends the effect of [`Router::cut`].
    pub fn restore(&self) -> Result<()> {
        self.route("replace", &[NEAR, FAR], [1_500, 1_500])
    }

    fn route(&self, verb: &str, devices: &[&str], mtus: [u32; 2]) -> Result<()> {
        let sides = self.hosts().into_iter().filter(|(device, _)| devices.contains(device));
        let routes = sides.flat_map(|(device, hosts)| {
            hosts.map(|host| {
                let mtu = mtus[usize::from(host.contains(':'))];
                format!("route {verb} {host} dev {device} mtu {mtu}")
            })
        });
        ip(&["-n", &self.netns.name], &routes.collect::<Vec<_>>())
    }

    /// The hosts behind each device.
    fn hosts(&self) -> [(&'static str, [&'static str; 2]); 2] {
        match self.link {
            Link::Client => [(NEAR, [CLIENT, "fd00:1::2"]), (FAR, [LB, LB_V6])],
            Link::Backend => [(NEAR, [BACKEND, BACKEND_V6]), (FAR, ["10.0.2.1", "fd00:2::1"])],
        }
    }
}
