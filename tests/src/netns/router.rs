//! A router in the middle of a link, whose links may turn out to take less than was agreed on.

use anyhow::Result;

use super::{BACKEND, BACKEND_V6, CLIENT, LB, LB_V6, Link, Netns, OUTER, ip};
use crate::lab::Lab;

/// The device towards the lab's outer namespace.
const NEAR: &str = "outer";
/// The device towards the balancer.
const FAR: &str = "inner";

/// Forwards what comes over a link. It answers for the hosts of one side on the other, so that neither needs to know it.
#[derive(Debug)]
pub struct Router {
    netns: Netns,
    link: Link,
}

impl Router {
    /// Cuts a link of the lab in two. The devices keep their names and addresses.
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
            // Its own addresses are usable at once.
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
        // Its answers for others are not delayed.
        for (family, device) in [("ipv4", NEAR), ("ipv4", FAR), ("ipv6", NEAR), ("ipv6", FAR)] {
            netns.sysctl(&format!("net/{family}/neigh/{device}/proxy_delay"), "0")?;
        }
        link.address(outer, &lab.lb)?;
        let router = Self { netns, link };
        // What it says itself comes from somewhere.
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

    /// From now on, its link away from the balancer takes packets of at most so many bytes: of IPv4 and of IPv6. It says
    /// so to the balancer, which sends larger ones. Who is beyond would hear of the other link by itself.
    pub fn narrow(&self, mtus: [u32; 2]) -> Result<()> {
        self.route("replace", &[NEAR], mtus)
    }

    /// The same for its link towards the balancer. Whose packets may be cut in pieces, it cuts.
    pub fn narrow_inwards(&self, mtus: [u32; 2]) -> Result<()> {
        self.route("replace", &[FAR], mtus)
    }

    /// From now on, nothing that is for anybody on either side gets through, and nobody is told.
    pub fn cut(&self) -> Result<()> {
        let hosts = self.hosts().into_iter().flat_map(|(_, hosts)| hosts);
        ip(
            &["-n", &self.netns.name],
            &hosts.map(|host| format!("route replace blackhole {host}")).collect::<Vec<_>>(),
        )
    }

    /// Ends what [`Router::cut`] began.
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

    /// Who is behind which device.
    fn hosts(&self) -> [(&'static str, [&'static str; 2]); 2] {
        match self.link {
            Link::Client => [(NEAR, [CLIENT, "fd00:1::2"]), (FAR, [LB, LB_V6])],
            Link::Backend => [(NEAR, [BACKEND, BACKEND_V6]), (FAR, ["10.0.2.1", "fd00:2::1"])],
        }
    }
}
