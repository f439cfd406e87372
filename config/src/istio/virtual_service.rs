//! `VirtualService`: the routes of names.

use std::sync::Arc;

use super::{
    destination::{self, Destination},
    export_to::ExportTo,
    gateway_ref::{GatewayRef, read_gateways},
    http::{self, Action, HttpRoute},
    object::Object,
};
use crate::{
    decode::{Diagnostics, Fields, View},
    model::rank::Seniority,
    name::HostPattern,
    options::Options,
};

#[derive(Debug)]
pub(super) struct VirtualService<'n> {
    pub(super) namespace: &'n str,
    pub(super) view: View<'n>,
    pub(super) seniority: Arc<Seniority>,
    pub(super) gateways: Vec<GatewayRef<'n>>,
    pub(super) export_to: ExportTo<'n>,
    pub(super) hosts: Vec<HostPattern>,
    pub(super) tls: Vec<TlsRoute<'n>>,
    pub(super) tcp: Vec<TcpRoute<'n>>,
    pub(super) http: Vec<HttpRoute<'n>>,
}

#[derive(Debug)]
pub(super) struct TlsRoute<'n> {
    pub(super) view: View<'n>,
    pub(super) index: usize,
    pub(super) matches: Vec<Match<'n>>,
    /// Empty if no destination is valid.
    pub(super) destinations: Vec<Destination<'n>>,
}

#[derive(Debug)]
pub(super) struct Match<'n> {
    pub(super) at: Place<'n>,
    pub(super) sni_hosts: Vec<SniHost<'n>>,
    /// Whether it has an unsupported condition: its names are refused.
    pub(super) refused: bool,
}

#[derive(Debug)]
pub(super) struct SniHost<'n> {
    pub(super) view: View<'n>,
    pub(super) pattern: HostPattern,
    /// Whether it must not be served.
    pub(super) refused: bool,
    /// Whether it replaces unreadable names. It takes nothing from another route for the same name.
    pub(super) assumed: bool,
}

/// The servers of a match.
#[derive(Debug)]
pub(super) struct Place<'n> {
    pub(super) port: Option<(View<'n>, u16)>,
    /// A part of the Gateways of the `VirtualService`. `None` is all of them.
    pub(super) gateways: Option<Vec<GatewayRef<'n>>>,
}

#[derive(Debug)]
pub(super) struct TcpRoute<'n> {
    pub(super) view: View<'n>,
    pub(super) index: usize,
    /// An empty list matches all servers.
    pub(super) matches: Vec<(Place<'n>, bool)>,
    pub(super) destinations: Vec<Destination<'n>>,
}

pub(super) fn read<'n>(
    object: Object<'n>,
    options: &Options,
    diagnostics: &mut Diagnostics,
) -> Option<VirtualService<'n>> {
    let namespace = options.namespace.as_deref();
    let Object { namespace: own, view, spec, seniority, lost, .. } = object;
    let mut fields = spec.fields("the spec of a VirtualService", diagnostics)?;
    let hosts = fields.take_set("hosts");
    let gateways = fields.take_set("gateways");
    let export_view = fields.take_set("exportTo");
    let tls = fields.take_set("tls");
    let tcp = fields.take_set("tcp");
    let http = fields.take_set("http");
    fields.finish(diagnostics);

    let Some(hosts) = hosts else {
        if http.is_some() && tls.is_none() && tcp.is_none() {
            view.ignored("without 'hosts' it is a delegate of another VirtualService, for HTTP only")
                .emit(diagnostics);
        } else {
            spec.error("'hosts' is missing: the routes are not served")
                .expected("a list of names")
                .emit(diagnostics);
        }
        return None;
    };
    let hosts = read_hosts(&hosts, diagnostics);
    let Some(gateways) = gateways.map(|view| read_gateways(&view, own, diagnostics)) else {
        view.ignored("without 'gateways' it is for the sidecars of a mesh only")
            .remedy("name the Gateway under 'gateways'")
            .emit(diagnostics);
        return None;
    };
    if tls.is_none() && tcp.is_none() && http.is_none() {
        spec.warn("there are no routes")
            .expected("tls: [{match, route}] or http: [{match, route}]")
            .emit(diagnostics);
    }
    let export_to = ExportTo::read(export_view.as_ref(), own, diagnostics);
    if !gateways.is_empty() {
        export_to.tell(export_view.as_ref(), namespace, diagnostics);
    }

    let list = tls.map(|view| view.list("a list of tls routes", diagnostics)).unwrap_or_default();
    let mut tls: Vec<_> = list
        .iter()
        .enumerate()
        .filter_map(|(index, view)| tls_route(view, index, own, &hosts, diagnostics))
        .collect();
    let list = tcp.map(|view| view.list("a list of tcp routes", diagnostics)).unwrap_or_default();
    let tcp = list
        .iter()
        .enumerate()
        .filter_map(|(index, view)| tcp_route(view, index, own, diagnostics))
        .collect();
    let list = http.map(|view| view.list("a list of http routes", diagnostics)).unwrap_or_default();
    let mut http: Vec<_> = list
        .iter()
        .enumerate()
        .filter_map(|(index, view)| http::read(view, index, own, options, diagnostics))
        .collect();
    if lost {
        for one in &mut http {
            one.action = Action::Refused;
        }
        for one in tls.iter_mut().flat_map(|route| &mut route.matches) {
            one.refused = true;
        }
    }
    Some(VirtualService { namespace: own, view, seniority, gateways, export_to, hosts, tls, tcp, http })
}

fn read_hosts(view: &View<'_>, diagnostics: &mut Diagnostics) -> Vec<HostPattern> {
    let expected = "names: www.example.com, *.example.com or *";
    view.list(expected, diagnostics)
        .iter()
        .filter_map(|item| {
            let text = item.text(expected, diagnostics)?;
            match HostPattern::parse(text) {
                Ok(pattern) => Some(pattern),
                Err(why) => {
                    item.warn(format!("'{text}': {why}; no server name can be within it")).emit(diagnostics);
                    None
                }
            }
        })
        .collect()
}

fn tls_route<'n>(
    view: &View<'n>,
    index: usize,
    own: &'n str,
    hosts: &[HostPattern],
    diagnostics: &mut Diagnostics,
) -> Option<TlsRoute<'n>> {
    let mut fields = view.fields("a tls route: {match, route}", diagnostics)?;
    let matches = fields.take_set("match");
    let route = fields.take_set("route");
    let matches = if let Some(matches) = matches {
        let list = matches.list("a list of matches", diagnostics);
        let ours: Vec<_> = list.iter().filter(|view| !is_for_mesh(view)).collect();
        if ours.is_empty() && !list.is_empty() {
            return None; // All of it is for the sidecars of a mesh.
        }
        ours.into_iter().filter_map(|view| read_match(view, own, hosts, diagnostics)).collect()
    } else {
        view.error("'match' is missing: the hosts of the VirtualService are refused")
            .expected("a list with port and sniHosts")
            .emit(diagnostics);
        let at = Place { port: None, gateways: None };
        vec![Match { at, sni_hosts: all_refused(view, hosts), refused: true }]
    };
    if route.is_none() {
        view.error("'route' is missing: the names are refused")
            .expected("a list of weighted destinations")
            .emit(diagnostics);
    }
    fields.finish(diagnostics);
    let destinations = route.map(|view| destination::read(&view, diagnostics)).unwrap_or_default();
    Some(TlsRoute { view: view.clone(), index, matches, destinations })
}

/// Whether all gateways of a match are the sidecars of a mesh.
fn is_for_mesh(one: &View<'_>) -> bool {
    let Some(gateways) = one.peek("gateways").filter(|view| !view.is_unset()) else { return false };
    let list = gateways.list("a list", &mut Diagnostics::default());
    !list.is_empty() && list.iter().all(|one| one.says("mesh"))
}

fn read_match<'n>(
    view: &View<'n>,
    own: &'n str,
    hosts: &[HostPattern],
    diagnostics: &mut Diagnostics,
) -> Option<Match<'n>> {
    let mut fields = view.fields("a match: {port, sniHosts, gateways}", diagnostics)?;
    let expected = "server names within the hosts of the VirtualService";
    let list_view = fields.take_set("sniHosts");
    let (at, mut refused) = read_place(&mut fields, &["destinationSubnets"], own, diagnostics);
    fields.finish(diagnostics);

    let mut sni_hosts = Vec::new();
    match list_view {
        None => view
            .error("'sniHosts' is missing: the hosts of the VirtualService are refused")
            .expected(expected)
            .emit(diagnostics),
        Some(list) => {
            sni_hosts.extend(
                list.list(expected, diagnostics).iter().flat_map(|view| sni_host(view, hosts, diagnostics)),
            );
        }
    }
    if sni_hosts.is_empty() {
        sni_hosts = all_refused(view, hosts);
        refused = true;
    }
    Some(Match { at, sni_hosts, refused })
}

/// The rest of a match with unreadable names.
fn all_refused<'n>(view: &View<'n>, hosts: &[HostPattern]) -> Vec<SniHost<'n>> {
    let one = |pattern: &HostPattern| SniHost {
        view: view.clone(),
        pattern: pattern.clone(),
        refused: true,
        assumed: true,
    };
    hosts.iter().map(one).collect()
}

/// The scope of a match, and whether it has an unsupported condition.
///
/// Istio's gateways only evaluate the port and the gateways (`l4SingleMatch`). `subnets` restrict the reachable
/// addresses, so a match with them is refused. The other conditions are for sidecars and have no meaning here.
fn read_place<'n>(
    fields: &mut Fields<'n>,
    subnets: &[&'static str],
    own: &'n str,
    diagnostics: &mut Diagnostics,
) -> (Place<'n>, bool) {
    let mut refused = false;
    for key in subnets {
        if let Some(condition) = fields.take_set(key) {
            condition
                .error(
                    "the condition is not implemented (addresses are not looked at): the match is not served",
                )
                .remedy("remove it if the match shall hold without it")
                .emit(diagnostics);
            refused = true;
        }
    }
    for key in ["sourceLabels", "sourceNamespace"] {
        if let Some(condition) = fields.take_set(key) {
            condition
                .note(format!("{key} is for sidecars: a gateway serves the match to everybody"))
                .emit(diagnostics);
        }
    }
    let port = fields.take_number("port");
    let written = port.is_some();
    let port = port.and_then(|view| Some((view.clone(), view.port(diagnostics)?)));
    refused |= written && port.is_none();
    let gateways = fields.take_set("gateways").map(|view| read_gateways(&view, own, diagnostics));
    (Place { port, gateways }, refused)
}

/// A name outside the hosts is refused, for the names that they have in common.
fn sni_host<'n>(view: &View<'n>, hosts: &[HostPattern], diagnostics: &mut Diagnostics) -> Vec<SniHost<'n>> {
    let Some(pattern) = view.parse::<HostPattern>("www.example.com, *.example.com or *", diagnostics) else {
        return Vec::new();
    };
    let one = |pattern, refused| SniHost { view: view.clone(), pattern, refused, assumed: false };
    if hosts.iter().any(|host| pattern.is_subset_of(host)) {
        return vec![one(pattern, false)];
    }
    let written = hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    view.error(format!("'{pattern}' is not within the hosts of the VirtualService: it is not served"))
        .expected(format!("a name within {written}"))
        .remedy(format!("add '{pattern}' to spec.hosts"))
        .emit(diagnostics);
    hosts.iter().filter_map(|host| Some(one(pattern.intersect(host)?, true))).collect()
}

fn tcp_route<'n>(
    view: &View<'n>,
    index: usize,
    own: &'n str,
    diagnostics: &mut Diagnostics,
) -> Option<TcpRoute<'n>> {
    let mut fields = view.fields("a tcp route: {match, route}", diagnostics)?;
    let matches = fields.take_set("match");
    let route = fields.take_set("route");
    fields.finish(diagnostics);
    let list = matches.map(|view| view.list("a list of matches", diagnostics)).unwrap_or_default();
    let ours: Vec<_> = list.iter().filter(|view| !is_for_mesh(view)).collect();
    if ours.is_empty() && !list.is_empty() {
        return None;
    }
    let matches = ours
        .into_iter()
        .filter_map(|view| {
            let mut fields = view.fields("a match: {port, gateways}", diagnostics)?;
            let place = read_place(&mut fields, &["destinationSubnets", "sourceSubnet"], own, diagnostics);
            fields.finish(diagnostics);
            Some(place)
        })
        .collect();
    let destinations = route.map(|view| destination::read(&view, diagnostics)).unwrap_or_default();
    Some(TcpRoute { view: view.clone(), index, matches, destinations })
}
