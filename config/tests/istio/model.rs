//! The route of a name: in Istio, and in an Istio that behaves like snisplice in some points.
//!
//! Only used if the recorded result and snisplice's differ, so it may be wrong if they agree.

use std::collections::HashSet;

use serde_json::Value;
use snisplice_config::name::{HostPattern, ServerName};

use super::set::{Ask, Set};

/// An intended difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    OutsideHosts,
    DuplicateName,
    DuplicateHost,
    Claimed,
    LostObject,
    RefusedPart,
    PlainFirst,
    TcpAlone,
    ListenerRejected,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::OutsideHosts,
        Self::DuplicateName,
        Self::DuplicateHost,
        Self::Claimed,
        Self::LostObject,
        Self::RefusedPart,
        Self::PlainFirst,
        Self::TcpAlone,
        Self::ListenerRejected,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OutsideHosts => "outside-hosts",
            Self::DuplicateName => "duplicate-name",
            Self::DuplicateHost => "duplicate-host",
            Self::Claimed => "claimed",
            Self::LostObject => "lost-object",
            Self::RefusedPart => "refused-part",
            Self::PlainFirst => "plain-first",
            Self::TcpAlone => "tcp-alone",
            Self::ListenerRejected => "listener-rejected",
        }
    }
}

/// The route of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The name of snisplice's rule.
    Route(String),
    Closed,
    Rejected,
}

/// The fewest kinds that turn Istio's outcome into snisplice's. `None` if no kinds do.
pub(crate) fn explain(set: &Set, ask: &Ask, ours: &Outcome, closed: bool) -> Option<Vec<Kind>> {
    let mut subsets: Vec<Vec<Kind>> = (1_u32..1 << Kind::ALL.len())
        .map(|bits| {
            (0..).zip(Kind::ALL).filter(|(at, _)| bits >> at & 1 == 1).map(|(_, kind)| kind).collect()
        })
        .collect();
    subsets.sort_by_key(Vec::len);
    let istio = outcome(set, ask, &[]);
    subsets.into_iter().find(|kinds| {
        let like_us = outcome(set, ask, kinds);
        like_us != istio && (like_us == *ours || (closed && like_us == Outcome::Closed))
    })
}

/// Istio's outcome if it behaved like snisplice in the points of `kinds`.
pub(crate) fn outcome(set: &Set, ask: &Ask, kinds: &[Kind]) -> Outcome {
    let like_us = |kind| kinds.contains(&kind);
    let is_refused = |object: &&Value| set.refused.contains(&described(object));
    let is_lost = |object: &&Value| is_refused(object) && !like_us(Kind::RefusedPart);
    let mut gateways: Vec<&Value> = of_kind(set, "Gateway")
        .filter(|gateway| like_us(Kind::LostObject) || !is_lost(gateway))
        .filter(|gateway| is_selected(set, gateway))
        .collect();
    gateways.sort_by_key(|gateway| seniority(gateway));
    let mut services: Vec<(u8, &Value)> = of_kind(set, "VirtualService")
        .filter(|service| like_us(Kind::LostObject) || !is_lost(service))
        .filter_map(|service| Some((exported(set, service)?, service)))
        .collect();
    services.sort_by_key(|(exported, service)| (*exported, seniority(service)));

    // mergeGateways: the servers on the port, in order.
    let mut servers: Vec<(&Value, &Value, bool, usize)> = Vec::new();
    let mut hosts_seen = HashSet::new();
    let mut plain = false;
    for gateway in &gateways {
        for server in list(&gateway["spec"]["servers"]) {
            if server["port"]["number"].as_u64() != Some(ask.port.into()) {
                continue;
            }
            let tls = server.get("tls").is_some();
            let mode_claims = server["tls"]["mode"] != "PASSTHROUGH";
            let mut skipped = plain && !(tls && like_us(Kind::PlainFirst));
            if tls && !like_us(Kind::DuplicateHost) {
                let own: Vec<_> = list(&server["hosts"]).map(|host| sanitized(gateway, host)).collect();
                if own.iter().any(|host| hosts_seen.contains(host)) {
                    skipped = true;
                } else {
                    hosts_seen.extend(own);
                }
            }
            if skipped && !(tls && mode_claims && like_us(Kind::Claimed)) {
                continue;
            }
            plain |= !tls;
            servers.push((gateway, server, tls && (mode_claims || is_lost(gateway)), servers.len()));
        }
    }
    let protocols: Vec<_> = servers.iter().map(|(_, server, ..)| text(&server["port"]["protocol"])).collect();
    servers.sort_by_key(|(_, server, ..)| {
        protocols.iter().position(|protocol| *protocol == text(&server["port"]["protocol"]))
    });

    if like_us(Kind::TcpAlone)
        && !servers.iter().any(|(_, server, claims, _)| server.get("tls").is_some() && !claims)
    {
        servers.retain(|(_, server, ..)| server["port"]["protocol"] != "TCP");
    }

    // The filter chains.
    let mut chains = Chains { seen: HashSet::new(), all: Vec::new(), order: 0 };
    for (gateway, server, claims, order) in &servers {
        if *claims {
            for host in list(&server["hosts"]) {
                let pattern = unqualified(host);
                let (to, order) = (Outcome::Closed, *order);
                chains.all.push(Chain { host: specificity(&pattern), pattern, to, claim: true, order });
            }
            continue;
        }
        for (_, service) in services.iter().filter(|(_, service)| is_attached(service, gateway)) {
            let admitted: Vec<HostPattern> = list(&server["hosts"])
                .filter(|host| admits(gateway, host, service))
                .map(unqualified)
                .collect();
            let meets = list(&service["spec"]["hosts"])
                .any(|own| admitted.iter().any(|host| host.intersect(&pattern(text(own))).is_some()));
            if !meets {
                continue;
            }
            if server.get("tls").is_some() {
                chains.order = *order;
                chains.add(service, gateway, ask, &admitted, is_lost(service), kinds);
            } else if server["port"]["protocol"] == "TCP" && service["spec"].get("tcp").is_some() {
                let to = route(service, "tcp", 0, is_lost(service));
                chains.all.push(Chain {
                    pattern: HostPattern::Any,
                    host: 0,
                    to,
                    claim: false,
                    order: *order,
                });
                break;
            }
        }
        if server["port"]["protocol"] == "HTTP" && !like_us(Kind::PlainFirst) {
            chains.all.push(Chain {
                pattern: HostPattern::Any,
                host: 0,
                to: Outcome::Closed,
                claim: false,
                order: *order,
            });
        }
    }
    if like_us(Kind::LostObject) {
        chains.block(set, &services);
    }
    chains.choose(ask, like_us(Kind::ListenerRejected))
}

struct Chain {
    pattern: HostPattern,
    /// Specificity of the server's host that admitted the pattern.
    host: usize,
    to: Outcome,
    claim: bool,
    /// The precedence of the server, by Gateways.
    order: usize,
}

struct Chains {
    seen: HashSet<String>,
    all: Vec<Chain>,
    /// The precedence of the current server.
    order: usize,
}

impl Chains {
    /// Adds the chains of the routes of one `VirtualService` on one server.
    fn add(
        &mut self,
        service: &Value,
        gateway: &Value,
        ask: &Ask,
        admitted: &[HostPattern],
        lost: bool,
        kinds: &[Kind],
    ) {
        for (index, rule) in list(&service["spec"]["tls"]).enumerate() {
            for one in list(&rule["match"]) {
                let port = one.get("port").is_none_or(|port| port.as_u64() == Some(ask.port.into()));
                let here = one.get("gateways").is_none_or(|named| {
                    list(named).any(|named| resolved(service, text(named)) == full_name(gateway))
                });
                if !port || !here {
                    continue;
                }
                let mut names: Vec<(HostPattern, usize)> = Vec::new();
                for written in list(&one["sniHosts"]).map(|name| pattern(text(name))) {
                    if kinds.contains(&Kind::OutsideHosts) {
                        names.extend(
                            admitted
                                .iter()
                                .filter_map(|host| Some((written.intersect(host)?, specificity(host)))),
                        );
                    } else {
                        let host = admitted.iter().filter(|host| host.intersect(&written).is_some());
                        let host = host.map(specificity).max().unwrap_or(0);
                        names.push((written, host));
                    }
                }
                let taken: HashSet<String> = names
                    .iter()
                    .map(|(name, _)| name.to_string())
                    .filter(|name| self.seen.contains(name))
                    .collect();
                if !taken.is_empty() && !kinds.contains(&Kind::DuplicateName) {
                    continue;
                }
                for (pattern, host) in names {
                    if !taken.contains(&pattern.to_string()) {
                        self.seen.insert(pattern.to_string());
                        let to = route(service, "tls", index, lost);
                        self.all.push(Chain { pattern, host, to, claim: false, order: self.order });
                    }
                }
            }
        }
    }

    /// Names of a `VirtualService` with a missing Gateway do not fall back to wider routes.
    fn block(&mut self, set: &Set, services: &[(u8, &Value)]) {
        let there: HashSet<String> = of_kind(set, "Gateway")
            .filter(|gateway| !set.refused.contains(&described(gateway)))
            .map(full_name)
            .collect();
        for (_, service) in services {
            let missing = list(&service["spec"]["gateways"])
                .map(text)
                .any(|named| named != "mesh" && !there.contains(&resolved(service, named)));
            if !missing {
                continue;
            }
            for one in list(&service["spec"]["tls"]).flat_map(|rule| list(&rule["match"])) {
                for name in list(&one["sniHosts"]).map(|name| pattern(text(name))) {
                    if !self.all.iter().any(|chain| chain.pattern == name) {
                        self.all.push(Chain {
                            pattern: name,
                            host: 0,
                            to: Outcome::Closed,
                            claim: false,
                            order: 0,
                        });
                    }
                }
            }
        }
    }

    fn choose(&self, ask: &Ask, lenient: bool) -> Outcome {
        let mut seen = HashSet::new();
        // One server's hosts are one chain each. Envoy refuses a listener with two chains of the same pattern.
        let doubled = self.all.iter().any(|chain| !seen.insert(chain.pattern.to_string()));
        if doubled && !lenient {
            return Outcome::Rejected;
        }
        let name = ask.name.as_ref().map(|name| ServerName::parse(name).unwrap());
        let fits = |chain: &&Chain| match &name {
            Some(name) => chain.pattern.matches(name),
            None => chain.pattern == HostPattern::Any,
        };
        let Some(best) = self.all.iter().filter(fits).map(|chain| specificity(&chain.pattern)).max() else {
            return Outcome::Closed;
        };
        let mut equal = self.all.iter().filter(fits).filter(|chain| specificity(&chain.pattern) == best);
        let first = equal.next().unwrap();
        // A claim with a more specific host than the route's comes first, then the first server.
        let claim = equal.find(|chain| {
            chain.claim
                && (chain.host > first.host || (chain.host == first.host && chain.order < first.order))
        });
        claim.unwrap_or(first).to.clone()
    }
}

fn route(service: &Value, kind: &str, index: usize, lost: bool) -> Outcome {
    if lost { Outcome::Closed } else { Outcome::Route(format!("{} {kind}[{index}]", described(service))) }
}

fn of_kind<'s>(set: &'s Set, kind: &'static str) -> impl Iterator<Item = &'s Value> {
    set.objects.iter().filter(move |object| object["kind"] == kind)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn namespace(object: &Value) -> &str {
    text(&object["metadata"]["namespace"])
}

fn full_name(object: &Value) -> String {
    format!("{}/{}", namespace(object), text(&object["metadata"]["name"]))
}

fn described(object: &Value) -> String {
    format!("{} {}", text(&object["kind"]), full_name(object))
}

fn seniority(object: &Value) -> (String, String, String) {
    let metadata = &object["metadata"];
    ["creationTimestamp", "name", "namespace"].map(|key| text(&metadata[key]).to_owned()).into()
}

fn is_selected(set: &Set, gateway: &Value) -> bool {
    gateway["spec"].get("selector").and_then(Value::as_object).is_none_or(|selector| {
        selector
            .iter()
            .all(|(key, value)| set.labels.iter().any(|(own, label)| own == key && value == label.as_str()))
    })
}

fn exported(set: &Set, object: &Value) -> Option<u8> {
    let Some(to) = object["spec"].get("exportTo") else { return Some(2) };
    let own = namespace(object);
    let seen = list(to).map(text).any(|to| (if to == "." { own } else { to }) == set.namespace);
    seen.then_some(u8::from(own != set.namespace))
}

/// `namespace/name` of a reference to a Gateway.
fn resolved(service: &Value, named: &str) -> String {
    match (named.split_once('/'), named.split_once('.')) {
        (Some(_), _) => named.to_owned(),
        (None, Some((name, rest))) => format!("{}/{name}", rest.split('.').next().unwrap()),
        (None, None) => format!("{}/{named}", namespace(service)),
    }
}

fn is_attached(service: &Value, gateway: &Value) -> bool {
    list(&service["spec"]["gateways"]).any(|named| resolved(service, text(named)) == full_name(gateway))
}

fn sanitized(gateway: &Value, host: &Value) -> String {
    match text(host).split_once('/') {
        Some((".", name)) => format!("{}/{name}", namespace(gateway)),
        Some(("*", name)) => name.to_owned(),
        _ => text(host).to_owned(),
    }
}

fn unqualified(host: &Value) -> HostPattern {
    let host = text(host);
    pattern(host.split_once('/').map_or(host, |(_, name)| name))
}

fn admits(gateway: &Value, host: &Value, service: &Value) -> bool {
    match sanitized(gateway, host).split_once('/') {
        Some((of, _)) => of == namespace(service),
        None => true,
    }
}

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn specificity(pattern: &HostPattern) -> usize {
    match pattern {
        HostPattern::Exact(_) => usize::MAX,
        HostPattern::Suffix(name) => name.as_str().split('.').count(),
        HostPattern::Any => 0,
    }
}
