//! `VirtualService`: which names go where.

use std::sync::Arc;

use super::object::{ExportTo, Object};
use crate::{
    decode::{Sink, View},
    model::Target,
    name::HostPattern,
    report::Severity,
    table::Rank,
};

#[derive(Debug)]
pub(super) struct VirtualService<'n> {
    pub(super) namespace: &'n str,
    pub(super) view: View<'n>,
    pub(super) rank: Arc<Rank>,
    pub(super) gateways: Vec<GatewayRef<'n>>,
    pub(super) export_to: ExportTo<'n>,
    pub(super) tls: Vec<TlsRoute<'n>>,
}

/// `name`, or `namespace/name`.
#[derive(Debug, Clone)]
pub(super) struct GatewayRef<'n> {
    pub(super) view: View<'n>,
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
}

#[derive(Debug)]
pub(super) struct TlsRoute<'n> {
    pub(super) view: View<'n>,
    pub(super) index: usize,
    pub(super) matches: Vec<Match<'n>>,
    /// Empty if none of them can be served.
    pub(super) destinations: Vec<Destination<'n>>,
}

#[derive(Debug)]
pub(super) struct Match<'n> {
    pub(super) port: Option<(View<'n>, u16)>,
    pub(super) sni_hosts: Vec<(View<'n>, HostPattern)>,
    /// Instead of those of the `VirtualService`.
    pub(super) gateways: Option<Vec<GatewayRef<'n>>>,
    /// Whether it has a condition that we cannot test.
    pub(super) refused: bool,
}

#[derive(Debug)]
pub(super) struct Destination<'n> {
    pub(super) weight: u32,
    /// `None` if it was rejected; its share of the connections is too.
    pub(super) to: Option<(View<'n>, &'n str, Option<u16>)>,
}

pub(super) fn read<'n>(object: Object<'n>, sink: &mut Sink) -> Option<VirtualService<'n>> {
    let Object { namespace, view, spec, rank, .. } = object;
    let mut fields = spec.fields("the spec of a VirtualService", sink)?;
    let hosts = fields.require("hosts", "a list of names", sink);
    let gateways = fields.take("gateways");
    let export_to = ExportTo::read(fields.take("exportTo"), namespace, sink);
    let tls = fields.take("tls");
    let mut routes_something = tls.is_some();
    for (key, why) in [
        ("http", "HTTP routes need TLS to be terminated, which is not implemented"),
        ("tcp", "TCP routes have no server name to route by"),
    ] {
        if let Some(routes) = fields.take(key) {
            routes_something = true;
            routes
                .bad(format!("{why}: these routes are not served"))
                .expected("tls routes with sniHosts")
                .remedy("route by server name with 'tls', or keep these routes in Istio")
                .to(sink);
        }
    }
    fields.finish(sink);
    if !routes_something {
        spec.warn("there are no routes").expected("tls: [{match, route}]").to(sink);
    }

    let hosts = read_hosts(&hosts?, sink);
    let Some(gateways) = gateways.map(|view| read_gateways(&view, namespace, sink)) else {
        view.say(Severity::Ignored, "without 'gateways' it is for the sidecars of a mesh only")
            .remedy("name the Gateway under 'gateways'")
            .to(sink);
        return None;
    };
    let list = tls.map(|view| view.list("a list of tls routes", sink)).unwrap_or_default();
    let tls = list
        .iter()
        .enumerate()
        .filter_map(|(index, view)| tls_route(view, index, namespace, &hosts, sink))
        .collect();
    Some(VirtualService { namespace, view, rank, gateways, export_to, tls })
}

fn read_hosts(view: &View<'_>, sink: &mut Sink) -> Vec<HostPattern> {
    let expected = "names: www.example.com, *.example.com or *";
    let list = view.list(expected, sink);
    if list.is_empty() {
        view.bad("the list is empty").expected(expected).to(sink);
    }
    list.iter()
        .filter_map(|item| {
            let text = item.text(expected, sink)?;
            match HostPattern::parse(text) {
                Ok(pattern) => Some(pattern),
                Err(why) => {
                    item.warn(format!("'{text}': {why}; no server name can be within it")).to(sink);
                    None
                }
            }
        })
        .collect()
}

/// The references other than `mesh`.
fn read_gateways<'n>(view: &View<'n>, own: &'n str, sink: &mut Sink) -> Vec<GatewayRef<'n>> {
    let expected = "a list of [namespace/]name";
    view.list(expected, sink)
        .into_iter()
        .filter_map(|view| {
            let text = view.text(expected, sink)?;
            let (namespace, name) = match text.split_once('/') {
                None if text == "mesh" => {
                    view.say(Severity::Ignored, "'mesh' is the sidecars of a mesh, which are not here")
                        .to(sink);
                    return None;
                }
                None | Some((".", _)) => (own, text.trim_start_matches("./")),
                Some((namespace, name)) => (namespace, name),
            };
            Some(GatewayRef { view, namespace, name })
        })
        .collect()
}

fn tls_route<'n>(
    view: &View<'n>,
    index: usize,
    own: &'n str,
    hosts: &[HostPattern],
    sink: &mut Sink,
) -> Option<TlsRoute<'n>> {
    let mut fields = view.fields("a tls route: {match, route}", sink)?;
    let matches = fields.require("match", "a list with port and sniHosts", sink);
    let route = fields.require("route", "a list of weighted destinations", sink);
    fields.finish(sink);

    let matches_view = matches?;
    let list = matches_view.list("a list of matches", sink);
    if list.is_empty() {
        matches_view
            .bad("the list is empty: the route is not served")
            .expected("at least one match")
            .to(sink);
    }
    let matches = list.iter().filter_map(|view| read_match(view, own, hosts, sink)).collect();
    let destinations = route.map(|view| read_destinations(&view, sink)).unwrap_or_default();
    Some(TlsRoute { view: view.clone(), index, matches, destinations })
}

fn read_match<'n>(
    view: &View<'n>,
    own: &'n str,
    hosts: &[HostPattern],
    sink: &mut Sink,
) -> Option<Match<'n>> {
    let mut fields = view.fields("a match: {port, sniHosts, gateways}", sink)?;
    let expected = "server names within the hosts of the VirtualService";
    let sni_hosts = fields.require("sniHosts", expected, sink);
    let port = fields.take_number("port");
    let gateways = fields.take("gateways");
    let mut refused = false;
    for (key, why) in [
        ("destinationSubnets", "the address that the client asked for is not looked at"),
        ("sourceLabels", "labels of workloads exist only in a cluster"),
        ("sourceNamespace", "namespaces of workloads exist only in a cluster"),
    ] {
        if let Some(condition) = fields.take_set(key) {
            condition
                .bad(format!("the condition is not implemented ({why}): the match is not served"))
                .remedy("remove it if the match shall hold without it")
                .to(sink);
            refused = true;
        }
    }
    fields.finish(sink);

    let written = port.is_some();
    let port = port.and_then(|view| Some((view.clone(), view.port(sink)?)));
    refused |= written && port.is_none();
    let gateways = gateways.map(|view| read_gateways(&view, own, sink));
    let list_view = sni_hosts?;
    let list = list_view.list(expected, sink);
    if list.is_empty() {
        list_view.bad("the list is empty: the match is not served").expected(expected).to(sink);
    }
    let sni_hosts =
        list.into_iter().filter_map(|view| Some((view.clone(), sni_host(&view, hosts, sink)?))).collect();
    Some(Match { port, sni_hosts, gateways, refused })
}

fn sni_host(view: &View<'_>, hosts: &[HostPattern], sink: &mut Sink) -> Option<HostPattern> {
    let pattern: HostPattern = view.parse("www.example.com, *.example.com or *", sink)?;
    if hosts.iter().any(|host| pattern.is_subset_of(host)) {
        return Some(pattern);
    }
    let hosts = hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    view.bad(format!("'{pattern}' is not within the hosts of the VirtualService: it is not served"))
        .expected(format!("a name within {hosts}"))
        .remedy(format!("add '{pattern}' to spec.hosts"))
        .to(sink);
    None
}

fn read_destinations<'n>(view: &View<'n>, sink: &mut Sink) -> Vec<Destination<'n>> {
    let list = view.list("a list of weighted destinations", sink);
    if list.is_empty() {
        view.bad("the list is empty: the route is not served").expected("at least one destination").to(sink);
    }
    let only = list.len() == 1;
    let destinations: Vec<_> = list.iter().map(|item| read_destination(item, only, sink)).collect();
    if !destinations.is_empty() && destinations.iter().all(|one| one.weight == 0) {
        view.bad("the weights add up to 0: the route is not served")
            .expected("weights that add up to more than 0; a destination without a weight has 0")
            .to(sink);
        return Vec::new();
    }
    destinations
}

fn read_destination<'n>(view: &View<'n>, only: bool, sink: &mut Sink) -> Destination<'n> {
    let refused = Destination { weight: u32::from(only), to: None };
    let Some(mut fields) = view.fields("{destination, weight}", sink) else { return refused };
    let weight = match fields.take("weight").map(|view| view.number(0..=Target::MAX_WEIGHT, sink)) {
        // A destination alone receives everything, whatever its weight.
        _ if only => 1,
        None => 0,
        Some(weight) => weight.unwrap_or(0),
    };
    let destination = fields.require("destination", "{host, port: {number}}", sink);
    fields.finish(sink);
    Destination { weight, to: destination.and_then(|view| read_target(&view, sink)) }
}

fn read_target<'n>(view: &View<'n>, sink: &mut Sink) -> Option<(View<'n>, &'n str, Option<u16>)> {
    let mut fields = view.fields("{host, port: {number}}", sink)?;
    let host = fields.require("host", "the name of a service", sink);
    let subset = fields.take("subset");
    let port = fields.take("port").map(|view| {
        let mut fields = view.fields("{number}", sink)?;
        let number = fields.require("number", "a port from 1 to 65535", sink);
        fields.finish(sink);
        number?.port(sink)
    });
    fields.finish(sink);
    if let Some(subset) = &subset {
        subset
            .bad("subsets are not implemented: connections for this destination are refused")
            .remedy("name a host that stands for the subset alone")
            .to(sink);
        return None;
    }
    let port = match port {
        None => None,
        // Written, and wrong.
        Some(None) => return None,
        Some(port) => port,
    };
    let host = host?;
    let text = host.text("the name of a service", sink)?;
    Some((host, text, port))
}
