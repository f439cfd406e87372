//! The endpoints of one port of a service.

use std::net::IpAddr;

use super::{
    labels::Labels,
    service::{Addresses, Service, ServicePort, TargetPort},
    service_entry::{EntryEndpoint, EntryPort, Location, ServiceEntry, is_dns},
    sources::Sources,
    workload_entry::WorkloadEntry,
};
use crate::{
    model::{Endpoint, EndpointHost},
    name::{HostName, HostPattern},
};

/// The result of a search for endpoints.
#[derive(Debug)]
pub(super) enum Found {
    /// The endpoints. An empty list is a service without endpoints.
    Endpoints(Vec<Endpoint>),
    /// Endpoints without known labels.
    Unlabelled,
    /// The object that defines the endpoints is rejected.
    Refused,
}

/// The endpoints of an entry and of other entries of its namespace for the same host.
///
/// As in Istio, the endpoints of all entries serve a port. With the resolution `STATIC`, these are the ones at a port
/// with the same name, or else those at a port with the same number.
pub(super) fn of_entries<'s, 'n: 's>(
    first: &'s ServiceEntry<'n>,
    others: impl Iterator<Item = &'s ServiceEntry<'n>>,
    workloads: &[WorkloadEntry<'n>],
    host: &HostPattern,
    port: u16,
    labels: &Labels<'_>,
) -> Found {
    let mut all = Vec::new();
    let mut refused = false;
    let entries: Vec<_> = std::iter::once(first).chain(others).collect();
    let find = |entry: &'s ServiceEntry<'n>| entry.ports.iter().find(|one| one.number == port && !one.udp);
    let Some(named) = entries.iter().find_map(|entry| find(entry)) else { return Found::Refused };
    for entry in entries {
        let by_name = |one: &&EntryPort<'_>| one.name == named.name && !one.udp;
        let found = if is_dns(first.resolution) { find(entry) } else { entry.ports.iter().find(by_name) };
        let Some(port) = found else { continue };
        let mut take = |endpoint: &EntryEndpoint<'n>, own: &Labels<'n>| {
            // Names are resolved only if the chosen entry has DNS resolution.
            let reachable = is_dns(first.resolution) || matches!(endpoint.host, EndpointHost::Ip(_));
            if labels.select(own) && reachable {
                all.push(at_entry_port(endpoint, port));
            }
        };
        match &entry.location {
            Location::Refused => refused = true,
            Location::Listed(listed) => {
                for endpoint in listed {
                    take(endpoint, &endpoint.labels);
                }
            }
            Location::Selected(selector) => {
                for workload in workloads.iter().filter(|one| one.namespace == entry.namespace) {
                    if let Some(endpoint) = &workload.endpoint
                        && selector.select(&workload.labels)
                    {
                        take(endpoint, &workload.labels);
                    }
                }
            }
            Location::Host if !is_dns(first.resolution) => {}
            Location::Host => match host {
                HostPattern::Exact(name) if labels.is_empty() => {
                    let host = EndpointHost::Dns(HostName::from(name.clone()));
                    all.push(Endpoint { host, port: port.target, weight: 1, priority: 0 });
                }
                HostPattern::Exact(_) => {}
                HostPattern::Suffix(_) | HostPattern::Any => refused = true,
            },
        }
    }
    all.dedup();
    if refused && all.is_empty() { Found::Refused } else { Found::Endpoints(all) }
}

fn at_entry_port(endpoint: &EntryEndpoint<'_>, port: &EntryPort<'_>) -> Endpoint {
    let own = endpoint.ports.iter().find(|(name, _)| *name == port.name);
    Endpoint {
        host: endpoint.host.clone(),
        port: own.map_or(port.target, |(_, port)| *port),
        weight: endpoint.weight,
        priority: 0,
    }
}

/// The endpoints of a `Service`: those of its slices or its `Endpoints`, and of the `WorkloadEntry` objects that it
/// selects. Without any of these, the endpoint is its name, by DNS.
pub(super) fn of_service<'n>(
    service: &Service<'n>,
    sources: &Sources<'n>,
    port: u16,
    labels: &Labels<'_>,
) -> Found {
    if service.lost {
        return Found::Refused;
    }
    let Some(port) = service.ports.iter().find(|one| one.number == port && !one.other_protocol) else {
        return Found::Refused;
    };
    let is_own = |one: &&Addresses<'n>| one.namespace == service.namespace && one.service == service.name;
    // The output of `kubectl get` for all kinds has the same addresses in both.
    let mut slices: Vec<_> = sources.slices.iter().filter(is_own).collect();
    if slices.is_empty() {
        slices = sources.endpoints.iter().filter(is_own).collect();
    }
    let workloads: Vec<_> = sources
        .workloads
        .iter()
        .filter(|one| one.namespace == service.namespace && !service.selector.is_empty())
        .filter(|one| service.selector.select(&one.labels))
        .collect();
    if slices.is_empty() && workloads.is_empty() {
        if !labels.is_empty() {
            return Found::Unlabelled;
        }
        let name = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
        let Ok(name) = HostName::parse(&name) else { return Found::Refused };
        // The name of a service without an address resolves to its endpoints.
        let port = match port.target {
            TargetPort::Number(target) if service.headless => target,
            _ => port.number,
        };
        return Found::Endpoints(vec![Endpoint {
            host: EndpointHost::Dns(name),
            port,
            weight: 1,
            priority: 0,
        }]);
    }
    if !labels.is_empty() && !slices.is_empty() {
        return Found::Unlabelled;
    }
    let mut all: Vec<Endpoint> = Vec::new();
    for slice in slices {
        for number in slice.ports.iter().filter(|(name, _)| *name == port.name).map(|(_, number)| *number) {
            for address in &slice.ready {
                push(&mut all, *address, number, 1);
            }
        }
    }
    for workload in workloads.iter().filter(|workload| labels.select(&workload.labels)) {
        if let Some(EntryEndpoint { host: EndpointHost::Ip(address), ports, weight, .. }) = &workload.endpoint
        {
            push(&mut all, *address, workload_port(port, ports), *weight);
        }
    }
    Found::Endpoints(all)
}

/// The port of a `WorkloadEntry` for a port of a `Service`.
fn workload_port(port: &ServicePort<'_>, ports: &[(&str, u16)]) -> u16 {
    match port.target {
        TargetPort::Number(number) => number,
        TargetPort::Name(name) => {
            ports.iter().find(|(other, _)| *other == name).map_or(port.number, |(_, number)| *number)
        }
    }
}

fn push(all: &mut Vec<Endpoint>, address: IpAddr, port: u16, weight: u32) {
    let endpoint = Endpoint { host: EndpointHost::Ip(address), port, weight, priority: 0 };
    if !all.contains(&endpoint) {
        all.push(endpoint);
    }
}
