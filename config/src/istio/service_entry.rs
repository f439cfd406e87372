//! `ServiceEntry`: the endpoints of a host.

use std::{net::IpAddr, sync::Arc};

use super::{export_to::ExportTo, labels::Labels, object::Object, service::speaks_http2};
use crate::{
    decode::{Diagnostics, View},
    model::rank::Seniority,
    model::{EndpointHost, Target},
    name::{HostName, HostPattern},
};

#[derive(Debug)]
pub(super) struct ServiceEntry<'n> {
    pub(super) view: View<'n>,
    pub(super) namespace: &'n str,
    pub(super) seniority: Arc<Seniority>,
    pub(super) export_to: ExportTo<'n>,
    pub(super) hosts: Vec<HostPattern>,
    pub(super) ports: Vec<EntryPort<'n>>,
    pub(super) resolution: Option<Resolution>,
    pub(super) location: Location<'n>,
    /// `metadata.labels`. Entries with different labels are not merged.
    pub(super) labels: Labels<'n>,
}

#[derive(Debug)]
pub(super) struct EntryPort<'n> {
    pub(super) number: u16,
    pub(super) name: &'n str,
    /// The default port of endpoints.
    pub(super) target: u16,
    /// Whether the port is UDP. No connection uses it.
    pub(super) udp: bool,
    /// Whether HTTP at this port is HTTP/2.
    pub(super) http2: bool,
}

#[derive(Debug)]
pub(super) enum Location<'n> {
    /// The listed endpoints.
    Listed(Vec<EntryEndpoint<'n>>),
    /// The `WorkloadEntry` objects of the namespace with these labels.
    Selected(Labels<'n>),
    /// The host itself, by DNS.
    Host,
    /// The entry is rejected. The host must not be resolved elsewhere instead.
    Refused,
}

/// An endpoint of a `ServiceEntry`, or a `WorkloadEntry`.
#[derive(Debug)]
pub(super) struct EntryEndpoint<'n> {
    pub(super) host: EndpointHost,
    /// Ports by name, if they differ.
    pub(super) ports: Vec<(&'n str, u16)>,
    pub(super) weight: u32,
    pub(super) labels: Labels<'n>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolution {
    Static,
    Dns,
}

pub(super) fn read<'n>(
    object: Object<'n>,
    namespace: Option<&str>,
    diagnostics: &mut Diagnostics,
) -> Option<ServiceEntry<'n>> {
    let labels = object.labels();
    let Object { namespace: own, view, spec, seniority, lost, .. } = object;
    let mut fields = spec.fields("the spec of a ServiceEntry", diagnostics)?;
    let hosts = fields.require("hosts", "a list of names", diagnostics);
    let ports = fields.take_set("ports");
    let resolution = fields.take_set("resolution");
    let endpoints = fields.take_set("endpoints");
    let selector = fields.take("workloadSelector");
    let export_view = fields.take_set("exportTo");
    if let Some(names) = fields.take_set("subjectAltNames") {
        names.warn("certificates are not looked at: TLS passes through, ignored").emit(diagnostics);
    }
    fields.known(&["addresses", "location"]);
    fields.finish(diagnostics);

    let export_to = ExportTo::read(export_view.as_ref(), own, diagnostics);
    export_to.tell(export_view.as_ref(), namespace, diagnostics);
    let hosts = hosts.map(|view| read_hosts(&view, diagnostics)).unwrap_or_default();
    let ports = ports.map(|view| read_ports(&view, diagnostics)).unwrap_or_default();
    let resolution = read_resolution(&spec, resolution.as_ref(), diagnostics);
    let location = match (resolution, selector) {
        _ if lost => Location::Refused,
        (None, _) => Location::Refused,
        (Some(_), Some(selector)) => read_selector(&selector, endpoints.as_ref(), diagnostics),
        (Some(resolution), None) => locate(&spec, resolution, endpoints.as_ref(), diagnostics),
    };
    Some(ServiceEntry {
        view,
        namespace: own,
        seniority,
        export_to,
        hosts,
        ports,
        resolution,
        location,
        labels,
    })
}

fn read_selector<'n>(
    selector: &View<'n>,
    endpoints: Option<&View<'n>>,
    diagnostics: &mut Diagnostics,
) -> Location<'n> {
    if let Some(endpoints) = endpoints {
        endpoints
            .error(
                "endpoints and workloadSelector exclude each other: connections for these hosts are refused",
            )
            .remedy("keep one of the two")
            .emit(diagnostics);
        return Location::Refused;
    }
    let labels = selector.fields("{labels}", diagnostics).map(|mut fields| {
        let labels = fields.take_set("labels").map(|view| Labels::read(&view, diagnostics));
        fields.finish(diagnostics);
        labels.unwrap_or_default()
    });
    labels.map_or(Location::Refused, Location::Selected)
}

fn read_hosts(view: &View<'_>, diagnostics: &mut Diagnostics) -> Vec<HostPattern> {
    let list = view.list("a list of names", diagnostics);
    if view.is_empty_list() {
        view.error("the list is empty").expected("a list of names").emit(diagnostics);
    }
    list.iter().filter_map(|item| item.parse("a name such as shop.internal", diagnostics)).collect()
}

fn read_ports<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Vec<EntryPort<'n>> {
    let expected = "a list of {number, name, protocol}";
    let mut ports: Vec<EntryPort<'n>> = Vec::new();
    for item in view.list(expected, diagnostics) {
        let Some(mut fields) = item.fields("{number, name, protocol, targetPort}", diagnostics) else {
            continue;
        };
        let number = fields.require("number", "a port from 1 to 65535", diagnostics);
        let name = fields.require("name", "a name that is unique within the ServiceEntry", diagnostics);
        let target = fields.take_number("targetPort");
        let protocol = fields.take_set("protocol").and_then(|view| view.text("a protocol", diagnostics));
        let udp = protocol.is_some_and(|text| text.eq_ignore_ascii_case("UDP"));
        let http2 = protocol.is_some_and(speaks_http2);
        fields.finish(diagnostics);
        let number = number.and_then(|view| view.port(diagnostics));
        let name = name.and_then(|view| view.text("a name", diagnostics));
        let target = target.map(|view| view.port(diagnostics));
        let (Some(number), Some(name)) = (number, name) else { continue };
        let target = match target {
            None => number,
            Some(Some(target)) => target,
            Some(None) => continue,
        };
        if ports.iter().any(|port| port.number == number || port.name == name) {
            item.error("the number or name of the port is there already")
                .remedy("keep one of the two")
                .emit(diagnostics);
            continue;
        }
        ports.push(EntryPort { number, name, target, udp, http2 });
    }
    ports
}

fn read_resolution(
    spec: &View<'_>,
    view: Option<&View<'_>>,
    diagnostics: &mut Diagnostics,
) -> Option<Resolution> {
    let expected = "STATIC or DNS";
    let text = match view {
        None => "NONE",
        Some(view) => view.text(expected, diagnostics)?,
    };
    let at = view.unwrap_or(spec);
    let why = match text {
        "STATIC" => return Some(Resolution::Static),
        "DNS" => return Some(Resolution::Dns),
        "DNS_ROUND_ROBIN" => {
            at.note("DNS_ROUND_ROBIN is taken as DNS").emit(diagnostics);
            return Some(Resolution::Dns);
        }
        "NONE" => {
            "resolution NONE (the default) means the address that the client asked for, which is our own"
        }
        "DYNAMIC_DNS" => "DYNAMIC_DNS is not implemented",
        other => {
            at.error(format!("there is no resolution '{other}': connections for these hosts are refused"))
                .expected(expected)
                .emit(diagnostics);
            return None;
        }
    };
    at.error(format!("{why}: connections for these hosts are refused"))
        .expected(expected)
        .remedy("set spec.resolution to DNS, or to STATIC with endpoints")
        .emit(diagnostics);
    None
}

fn locate<'n>(
    spec: &View<'n>,
    resolution: Resolution,
    endpoints: Option<&View<'n>>,
    diagnostics: &mut Diagnostics,
) -> Location<'n> {
    let list = endpoints
        .map(|view| view.list("a list of {address, ports, weight}", diagnostics))
        .unwrap_or_default();
    if list.is_empty() {
        if resolution == Resolution::Dns {
            return Location::Host;
        }
        spec.error("resolution STATIC needs endpoints: connections for these hosts are refused")
            .remedy("list endpoints with IP addresses, or set spec.resolution to DNS")
            .emit(diagnostics);
        return Location::Refused;
    }
    let endpoints: Vec<_> = list.iter().filter_map(|view| endpoint(view, resolution, diagnostics)).collect();
    if endpoints.is_empty() { Location::Refused } else { Location::Listed(endpoints) }
}

/// An endpoint of a `ServiceEntry`, or the spec of a `WorkloadEntry`.
pub(super) fn endpoint<'n>(
    view: &View<'n>,
    resolution: Resolution,
    diagnostics: &mut Diagnostics,
) -> Option<EntryEndpoint<'n>> {
    let mut fields = view.fields("an endpoint: {address, ports, weight}", diagnostics)?;
    let address = fields.require("address", "an IP address, or a name with resolution DNS", diagnostics);
    let ports = fields.take_set("ports");
    let weight = fields.take("weight");
    let labels = fields.take("labels").map(|view| Labels::read(&view, diagnostics)).unwrap_or_default();
    fields.known(&["locality", "network", "serviceAccount"]);
    fields.finish(diagnostics);

    let weight = match weight {
        None => 1,
        // In Istio, too, 0 is the same as a missing weight.
        Some(view) => view.number(0..=Target::MAX_WEIGHT, diagnostics)?.max(1),
    };
    let ports = match ports {
        None => Vec::new(),
        Some(view) => view
            .entries("a mapping from names of ports to numbers", diagnostics)
            .into_iter()
            .filter_map(|(name, view)| Some((name, view.port(diagnostics)?)))
            .collect(),
    };
    let address = address?;
    let host = endpoint_host(&address, resolution, diagnostics)?;
    Some(EntryEndpoint { host, ports, weight, labels })
}

fn endpoint_host(
    view: &View<'_>,
    resolution: Resolution,
    diagnostics: &mut Diagnostics,
) -> Option<EndpointHost> {
    let text = view.text("an IP address", diagnostics)?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(EndpointHost::Ip(ip));
    }
    if text.starts_with("unix:") {
        view.error("unix domain sockets are not connected to: the endpoint is left out")
            .expected("an IP address or a name")
            .emit(diagnostics);
        return None;
    }
    if resolution == Resolution::Static {
        view.error(format!("'{text}' is not an IP address: the endpoint is left out"))
            .expected("an IP address, since spec.resolution is STATIC")
            .remedy("set spec.resolution to DNS for endpoints with names")
            .emit(diagnostics);
        return None;
    }
    match HostName::parse(text) {
        Ok(name) => Some(EndpointHost::Dns(name)),
        Err(why) => {
            view.error(format!("'{text}': {why}")).expected("an IP address or a name").emit(diagnostics);
            None
        }
    }
}

/// Whether a resolution uses DNS.
pub(super) fn is_dns(resolution: Option<Resolution>) -> bool {
    resolution == Some(Resolution::Dns)
}
