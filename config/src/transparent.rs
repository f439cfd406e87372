//! The routing rules of transparent backends.
//!
//! An endpoint of such a backend replies to the client's address, which this host forwards. A routing rule delivers the
//! replies to this host instead, by the endpoint's address and port (ip-rule(8), Linux 4.17). The receiving socket is
//! found by all four addresses and ports of the connection.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::model::{Endpoint, EndpointHost, Model};

/// The number of the routing table in the printed commands. Any free number serves.
const TABLE: u32 = 5340;

/// The command that delivers the replies of one endpoint to this host.
#[must_use]
pub fn rule(endpoint: SocketAddr) -> String {
    format!(
        "ip {}{}",
        family(endpoint.ip()),
        rule_from(&endpoint.ip().to_string(), &endpoint.port().to_string())
    )
}

/// The command that makes the routing table of the rules, for the family of `ip`.
#[must_use]
pub fn table(ip: IpAddr) -> String {
    let all = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    format!("ip {}route add local {all} dev lo table {TABLE}", family(ip))
}

/// The commands for all transparent backends of a configuration, without duplicates. A name stands for each of its
/// addresses, and an SRV name for those of each of its targets.
pub(crate) fn rules(model: &Model) -> Vec<String> {
    let endpoints: BTreeSet<(String, String, Option<IpAddr>)> = model
        .backends
        .iter()
        .filter(|backend| backend.transparent)
        .flat_map(|backend| &backend.endpoints)
        .map(|Endpoint { host, port, .. }| match host {
            EndpointHost::Ip(ip) => (ip.to_string(), port.to_string(), Some(*ip)),
            EndpointHost::Dns(name) => (format!("ADDRESS_OF_{name}"), port.to_string(), None),
            EndpointHost::Srv(name) => (format!("ADDRESS_OF_{name}"), format!("PORT_OF_{name}"), None),
        })
        .collect();
    let has = |want: fn(&IpAddr) -> bool| endpoints.iter().any(|(.., ip)| ip.as_ref().is_none_or(want));
    let tables = [
        has(IpAddr::is_ipv4).then(|| table(Ipv4Addr::UNSPECIFIED.into())),
        has(IpAddr::is_ipv6).then(|| table(Ipv6Addr::UNSPECIFIED.into())),
    ];
    let rules = endpoints
        .iter()
        .map(|(host, port, ip)| format!("ip {}{}", ip.map_or("", family), rule_from(host, port)));
    if endpoints.is_empty() {
        return Vec::new();
    }
    tables.into_iter().flatten().chain(rules).collect()
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "" } else { "-6 " }
}

fn rule_from(host: &str, port: &str) -> String {
    format!("rule add from {host} ipproto tcp sport {port} lookup {TABLE}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Backend;

    #[test]
    fn each_endpoint_has_a_rule() {
        let endpoint = |host, port| Endpoint { host, port, weight: 1, priority: 0 };
        let ip = |text: &str| EndpointHost::Ip(text.parse().unwrap());
        let backend = |transparent, endpoints| Backend { endpoints, transparent, ..Backend::default() };
        let model = |backends| Model { backends, ..Model::default() };
        assert!(rules(&model(vec![backend(false, vec![endpoint(ip("10.0.2.2"), 443)])])).is_empty());
        let twice = backend(true, vec![endpoint(ip("10.0.2.2"), 443), endpoint(ip("fd00::2"), 8443)]);
        assert_eq!(
            rules(&model(vec![twice.clone(), twice])),
            [
                "ip route add local 0.0.0.0/0 dev lo table 5340",
                "ip -6 route add local ::/0 dev lo table 5340",
                "ip rule add from 10.0.2.2 ipproto tcp sport 443 lookup 5340",
                "ip -6 rule add from fd00::2 ipproto tcp sport 8443 lookup 5340",
            ]
        );
        let name = EndpointHost::Srv("_web._tcp.a.test".parse().unwrap());
        assert_eq!(
            rules(&model(vec![backend(true, vec![endpoint(name, 0)])])).last().unwrap(),
            "ip rule add from ADDRESS_OF__web._tcp.a.test ipproto tcp sport PORT_OF__web._tcp.a.test lookup 5340"
        );
        assert_eq!(
            rule("[fd00::2]:443".parse().unwrap()),
            "ip -6 rule add from fd00::2 ipproto tcp sport 443 lookup 5340"
        );
    }
}
