//! Kubernetes `Service`, `Endpoints` and `EndpointSlice`: the ports of a host, and its addresses if the files contain
//! them (`kubectl get -o yaml`).

use std::{net::IpAddr, sync::Arc};

use super::{export_to::ExportTo, labels::Labels, object::Object};
use crate::{
    decode::{Diagnostics, View},
    model::rank::Seniority,
};

#[derive(Debug)]
pub(super) struct Service<'n> {
    pub(super) view: View<'n>,
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
    pub(super) seniority: Arc<Seniority>,
    pub(super) export_to: ExportTo<'n>,
    pub(super) ports: Vec<ServicePort<'n>>,
    pub(super) selector: Labels<'n>,
    /// The target host of a service with the type `ExternalName`.
    pub(super) external_name: Option<(View<'n>, &'n str)>,
    /// Whether the service has no address of its own: its name resolves to its endpoints.
    pub(super) headless: bool,
    pub(super) lost: bool,
}

#[derive(Debug)]
pub(super) struct ServicePort<'n> {
    pub(super) number: u16,
    pub(super) name: &'n str,
    pub(super) target: TargetPort<'n>,
    /// Whether it is not TCP.
    pub(super) other_protocol: bool,
    /// Whether HTTP at this port is HTTP/2.
    pub(super) http2: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum TargetPort<'n> {
    Number(u16),
    Name(&'n str),
}

/// The addresses of an `Endpoints` or `EndpointSlice` object for a service.
#[derive(Debug)]
pub(super) struct Addresses<'n> {
    pub(super) namespace: &'n str,
    pub(super) service: &'n str,
    /// The addresses of the ready endpoints.
    pub(super) ready: Vec<IpAddr>,
    /// By name. Kubernetes omits the name of a single port.
    pub(super) ports: Vec<(&'n str, u16)>,
}

/// Only the relevant fields are read: the API server has validated the object, and most fields do not apply here.
pub(super) fn read<'n>(object: Object<'n>, diagnostics: &mut Diagnostics) -> Service<'n> {
    let exported = object.annotation("networking.istio.io/exportTo");
    let Object { namespace, name, view, spec, seniority, lost, .. } = object;
    let exported = exported.and_then(|view| view.text("names of namespaces", diagnostics));
    let list = spec.peek("ports").filter(|view| !view.is_unset());
    let ports = list
        .map(|view| view.list("a list of {name, port}", diagnostics))
        .unwrap_or_default()
        .iter()
        .filter_map(|view| {
            let number = view.peek("port")?.port(diagnostics)?;
            let target = match view.peek_text("targetPort") {
                None | Some("" | "0") => TargetPort::Number(number),
                Some(text) => text.parse().map_or(TargetPort::Name(text), TargetPort::Number),
            };
            let protocol = view.peek_text("protocol").unwrap_or("TCP");
            Some(ServicePort {
                number,
                name: view.peek_text("name").unwrap_or_default(),
                target,
                other_protocol: protocol != "TCP",
                http2: is_http2(view.peek_text("appProtocol"), view.peek_text("name").unwrap_or_default()),
            })
        })
        .collect();
    let external_name = (spec.peek_text("type") == Some("ExternalName"))
        .then(|| spec.peek("externalName"))
        .flatten()
        .and_then(|view| Some((view.clone(), view.text("the name of a host", diagnostics)?)));
    let selector = spec.peek("selector").filter(|view| !view.is_unset());
    Service {
        namespace,
        name,
        seniority,
        export_to: ExportTo::of_annotation(exported, namespace),
        ports,
        selector: selector.map(|view| Labels::read(&view, diagnostics)).unwrap_or_default(),
        external_name,
        headless: spec.peek_text("clusterIP") == Some("None"),
        lost,
        view,
    }
}

/// Whether a port is HTTP/2: by `appProtocol`, or else by its name up to the first hyphen, as in Istio.
fn is_http2(app_protocol: Option<&str>, name: &str) -> bool {
    let of_name = || {
        ["grpc-web", "grpc", "http2", "h2c"].into_iter().find(|known| {
            name.get(..known.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(known))
                && matches!(name.as_bytes().get(known.len()), None | Some(b'-'))
        })
    };
    match app_protocol.filter(|protocol| !protocol.is_empty()) {
        Some(protocol) => protocol == "kubernetes.io/h2c" || speaks_http2(protocol),
        None => of_name().is_some(),
    }
}

/// Whether a protocol, by Istio's name, is HTTP/2.
pub(super) fn speaks_http2(protocol: &str) -> bool {
    ["HTTP2", "GRPC", "GRPC-WEB", "H2C"].iter().any(|known| known.eq_ignore_ascii_case(protocol))
}

/// `None` for a slice without a service.
pub(super) fn read_slice<'n>(object: Object<'n>, diagnostics: &mut Diagnostics) -> Option<Addresses<'n>> {
    let service = object.labels().get("kubernetes.io/service-name")?;
    let Object { namespace, spec, lost, .. } = object;
    let mut addresses = Vec::new();
    for endpoint in list(&spec, "endpoints", diagnostics) {
        if !lost && endpoint.peek("conditions").is_none_or(|view| is_ready(&view)) {
            let own = list(&endpoint, "addresses", diagnostics);
            addresses
                .extend(own.iter().filter_map(|view| view.parse::<IpAddr>("an IP address", diagnostics)));
        }
    }
    Some(Addresses { namespace, service, ready: addresses, ports: ports(&spec, diagnostics) })
}

fn is_ready(conditions: &View<'_>) -> bool {
    conditions.peek("ready").is_none_or(|ready| !ready.says("false"))
}

/// Returns one value per subset.
pub(super) fn read_endpoints<'n>(object: Object<'n>, diagnostics: &mut Diagnostics) -> Vec<Addresses<'n>> {
    let Object { namespace, name, spec, lost, .. } = object;
    list(&spec, "subsets", diagnostics)
        .iter()
        .map(|subset| Addresses {
            namespace,
            service: name,
            ready: list(subset, "addresses", diagnostics)
                .iter()
                .filter(|_| !lost)
                .filter_map(|view| view.peek("ip")?.parse("an IP address", diagnostics))
                .collect(),
            ports: ports(subset, diagnostics),
        })
        .collect()
}

fn list<'n>(view: &View<'n>, key: &str, diagnostics: &mut Diagnostics) -> Vec<View<'n>> {
    let list = view.peek(key).filter(|view| !view.is_unset());
    list.map(|view| view.list("a list", diagnostics)).unwrap_or_default()
}

fn ports<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Vec<(&'n str, u16)> {
    list(view, "ports", diagnostics)
        .iter()
        .filter_map(|view| {
            Some((view.peek_text("name").unwrap_or_default(), view.peek("port")?.port(diagnostics)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_speaks_http2_by_its_protocol_or_its_name() {
        for (app_protocol, name, http2) in [
            (None, "http2", true),
            (None, "grpc-api", true),
            (None, "grpc-web", true),
            (None, "GRPC", true),
            (None, "h2c-x", true),
            (None, "http", false),
            (None, "grpcs", false),
            (None, "my-grpc", false),
            (None, "", false),
            (Some("kubernetes.io/h2c"), "http", true),
            (Some("grpc"), "http", true),
            (Some("http"), "grpc", false),
            (Some(""), "grpc", true),
        ] {
            assert_eq!(is_http2(app_protocol, name), http2, "{app_protocol:?} {name}");
        }
    }
}
