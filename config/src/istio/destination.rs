//! From `destination.host` and `.port` to a backend.

use std::collections::{BTreeMap, HashMap};

use super::service_entry::{EntryEndpoint, Location, ServiceEntry};
use crate::{
    decode::{Sink, View},
    draft::Draft,
    model::{Backend, BackendId, Endpoint, EndpointHost},
    name::{HostName, HostPattern, NameError, ServerName},
    report::Severity,
    resolve::Resolver,
};

pub(super) struct Destinations<'s, 'n, 'r, 'o> {
    entries: &'s [ServiceEntry<'n>],
    /// Indexes into `entries`, the one to prefer first.
    by_host: BTreeMap<&'s str, Vec<usize>>,
    resolver: &'r mut Resolver<'o>,
    made: HashMap<(ServerName, u16, Option<usize>), BackendId>,
}

impl<'s, 'n, 'r, 'o> Destinations<'s, 'n, 'r, 'o> {
    pub(super) fn new(
        entries: &'s [ServiceEntry<'n>],
        resolver: &'r mut Resolver<'o>,
        sink: &mut Sink,
    ) -> Self {
        let mut by_host: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, entry) in entries.iter().enumerate() {
            for host in &entry.hosts {
                by_host.entry(host.as_str()).or_default().push(index);
            }
        }
        for (host, indexes) in &mut by_host {
            indexes.sort_by(|&a, &b| {
                let age = |index: usize| {
                    let created = &entries[index].rank.created;
                    (created.is_none(), created, &entries[index].rank.object)
                };
                age(a).cmp(&age(b))
            });
            indexes.dedup();
            for pair in indexes.windows(2) {
                let (first, second) = (&entries[pair[0]], &entries[pair[1]]);
                if first.namespace == second.namespace {
                    second
                        .view
                        .warn(format!(
                            "'{host}' is taken from {} ({})",
                            first.view.object(),
                            first.view.origin()
                        ))
                        .remedy("list all endpoints of a host in one ServiceEntry")
                        .to(sink);
                }
            }
        }
        Self { entries, by_host, resolver, made: HashMap::new() }
    }

    /// The backend for a destination of a `VirtualService` in `namespace`; `None` is reported, or not `wanted`.
    pub(super) fn backend(
        &mut self,
        namespace: &str,
        (view, written, port): &(View<'_>, &str, Option<u16>),
        wanted: bool,
        draft: &mut Draft,
        sink: &mut Sink,
    ) -> Option<BackendId> {
        let host = full_name(view, written, namespace, sink)?;
        let entry = self.entry(&host, namespace);
        let Some(port) = port.or_else(|| self.only_port(entry)) else {
            let mut found = view
                .bad(format!(
                    "the port for '{host}' is missing: connections for this destination are refused"
                ))
                .expected(
                    "port: {number}, which only a ServiceEntry with exactly one port makes unnecessary",
                );
            found.remedy = Some("write destination.port.number".into());
            found.to(sink);
            return None;
        };
        let key = (host, port, entry);
        if let Some(&made) = self.made.get(&key) {
            return Some(made);
        }
        let endpoints = self.endpoints(view, &key.0, port, entry, sink)?;
        if !wanted {
            return None;
        }
        // Another backend of the name comes from another ServiceEntry or from the native format.
        let mut name = format!("{}:{port}", key.0);
        let mut number = 1;
        while draft.backend_named(&name).is_some() {
            number += 1;
            name = format!("{}:{port}#{number}", key.0);
        }
        let made = draft.backend(Backend { name, endpoints, source: Vec::new(), same_host: false })?;
        self.made.insert(key, made);
        Some(made)
    }

    /// The entry for a host that `namespace` can see: of its own namespace, else the oldest.
    fn entry(&self, host: &ServerName, namespace: &str) -> Option<usize> {
        let candidates = self.by_host.get(host.as_str())?;
        let visible =
            || candidates.iter().copied().filter(|&at| self.entries[at].export_to.admits(namespace));
        visible().find(|&at| self.entries[at].namespace == namespace).or_else(|| visible().next())
    }

    fn only_port(&self, entry: Option<usize>) -> Option<u16> {
        match &*self.entries[entry?].ports {
            [port] => Some(port.number),
            _ => None,
        }
    }

    fn endpoints(
        &mut self,
        view: &View<'_>,
        host: &ServerName,
        port: u16,
        entry: Option<usize>,
        sink: &mut Sink,
    ) -> Option<Vec<Endpoint>> {
        if let Some(addresses) = self.resolver.addresses(host.as_str(), port) {
            if let Some(entry) = entry {
                let entry = self.entries[entry].view.object();
                view.say(Severity::Note, format!("--resolve replaces {entry} for {host}:{port}")).to(sink);
            }
            let endpoint = |at: &std::net::SocketAddr| Endpoint {
                host: EndpointHost::Ip(at.ip()),
                port: at.port(),
                weight: 1,
            };
            return Some(addresses.iter().map(endpoint).collect());
        }
        let Some(entry) = entry.map(|at| &self.entries[at]) else {
            let message = format!("in no ServiceEntry: left to DNS (or to --resolve {host}:{port}:ADDRESS)");
            view.say(Severity::Note, message).to(sink);
            return Some(vec![Endpoint { host: EndpointHost::Dns(host.clone().into()), port, weight: 1 }]);
        };
        let Some(entry_port) = entry.ports.iter().find(|candidate| candidate.number == port) else {
            let ports = entry.ports.iter().map(|port| port.number.to_string()).collect::<Vec<_>>().join(", ");
            view.bad(format!(
                "{} ({}) has no port {port}: connections for this destination are refused",
                entry.view.object(),
                entry.view.origin()
            ))
            .expected(format!("one of its ports: {ports}"))
            .to(sink);
            return None;
        };
        match &entry.location {
            Location::Refused => {
                view.bad(format!(
                    "{} ({}) cannot be served: connections for this destination are refused",
                    entry.view.object(),
                    entry.view.origin()
                ))
                .to(sink);
                None
            }
            Location::Host => {
                let host = EndpointHost::Dns(host.clone().into());
                Some(vec![Endpoint { host, port: entry_port.target, weight: 1 }])
            }
            Location::Listed(listed) => {
                let endpoint = |EntryEndpoint { host, ports, weight }: &EntryEndpoint<'_>| {
                    let own = ports.iter().find(|(name, _)| *name == entry_port.name);
                    let port = own.map_or(entry_port.target, |(_, port)| *port);
                    Endpoint { host: host.clone(), port, weight: *weight }
                };
                Some(listed.iter().map(endpoint).collect())
            }
        }
    }
}

/// A name without a dot is a service of `namespace`; with a dot it is complete.
fn full_name(view: &View<'_>, written: &str, namespace: &str, sink: &mut Sink) -> Option<ServerName> {
    let expected = "the name of one service, for example web or web.default.svc.cluster.local";
    if HostPattern::parse(written).is_ok_and(|pattern| !matches!(pattern, HostPattern::Exact(_))) {
        view.bad(format!("'{written}' is no single host: connections for this destination are refused"))
            .expected(expected)
            .to(sink);
        return None;
    }
    let full = match HostName::parse(written) {
        Ok(_) if written.contains('.') => ServerName::parse(written),
        Ok(_) => ServerName::parse(format!("{written}.{namespace}.svc.cluster.local")),
        Err(why) => Err(why),
    };
    match full {
        Ok(name) => Some(name),
        Err(why) => {
            let mut found =
                view.bad(format!("'{written}': {why}: connections for this destination are refused"));
            if why == NameError::IpAddress {
                found = found.remedy("name a ServiceEntry that has the address as its endpoint");
            }
            found.expected(expected).to(sink);
            None
        }
    }
}
