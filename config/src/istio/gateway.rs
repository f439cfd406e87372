//! `Gateway`: what to listen on.

use std::{collections::HashMap, net::IpAddr};

use super::object::Object;
use crate::{
    decode::{Fields, Sink, View},
    name::HostPattern,
    report::Severity,
};

const PROTOCOLS: &str = "HTTPS or TLS, with tls.mode PASSTHROUGH";

#[derive(Debug)]
pub(super) struct Gateway<'n> {
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
    pub(super) servers: Vec<Server<'n>>,
}

/// A server that speaks TLS on a port of its own or shares one.
#[derive(Debug)]
pub(super) struct Server<'n> {
    pub(super) view: View<'n>,
    /// Place in the list.
    pub(super) index: usize,
    pub(super) port: u16,
    pub(super) bind: Option<IpAddr>,
    pub(super) hosts: Vec<ServerHost<'n>>,
    /// Whether we serve it.
    pub(super) passthrough: bool,
    /// The listener it became a part of.
    pub(super) listener: Option<usize>,
}

/// `[namespace/]name`.
#[derive(Debug)]
pub(super) struct ServerHost<'n> {
    /// Whose `VirtualService` objects may attach; `None` is all.
    pub(super) namespace: Option<&'n str>,
    pub(super) pattern: HostPattern,
}

pub(super) fn read<'n>(object: Object<'n>, sink: &mut Sink) -> Option<Gateway<'n>> {
    let Object { namespace, name, spec, .. } = object;
    let mut fields = spec.fields("the spec of a Gateway", sink)?;
    if let Some(selector) = fields.take("selector") {
        selector
            .say(Severity::Note, "a selector has no meaning outside a cluster: the Gateway is served")
            .to(sink);
    }
    let servers = fields.require("servers", "a list of servers", sink);
    fields.finish(sink);
    let servers = servers?;
    let list = servers.list("a list of servers", sink);
    if list.is_empty() {
        servers.bad("the list is empty").expected("a list of servers").to(sink);
    }
    let mut names = Names::default();
    let servers = list
        .iter()
        .enumerate()
        .filter_map(|(index, view)| server(view, index, namespace, &mut names, sink))
        .collect();
    Some(Gateway { namespace, name, servers })
}

/// The names that must be unique within one Gateway.
#[derive(Default)]
struct Names<'n> {
    ports: HashMap<&'n str, View<'n>>,
    servers: HashMap<&'n str, View<'n>>,
}

fn server<'n>(
    view: &View<'n>,
    index: usize,
    namespace: &'n str,
    names: &mut Names<'n>,
    sink: &mut Sink,
) -> Option<Server<'n>> {
    let mut fields = view.fields("a server: {port, hosts, tls}", sink)?;
    let port = fields.require("port", "{number, name, protocol}", sink);
    let bind = fields.take("bind");
    let hosts = fields.require("hosts", "a list of [namespace/]name", sink);
    let tls = fields.take("tls");
    let own_name = fields.take("name");
    let default_endpoint = fields.take("defaultEndpoint");
    fields.finish(sink);

    let unique = match own_name.and_then(|view| Some((view.text("a name", sink)?, view))) {
        Some((name, view)) => is_first(&mut names.servers, "server", name, &view, sink),
        None => true,
    };
    let port = port.and_then(|view| read_port(&view, names, sink));
    let bind = match &bind {
        None => Some(None),
        Some(view) => read_bind(view, sink).map(Some),
    };
    let hosts = hosts.map(|view| read_hosts(&view, namespace, sink)).unwrap_or_default();
    if let Some(view) = &default_endpoint {
        view.bad("a default endpoint is not implemented: the server is not served")
            .remedy("remove it and route with a VirtualService")
            .to(sink);
    }

    let Port { number, tls: speaks_tls, good, .. } = port?;
    let mode = if speaks_tls {
        tls_mode(view, tls.as_ref(), sink)
    } else {
        if good {
            report_plain(view, tls.as_ref(), sink);
        }
        false
    };
    let bind = bind?;
    if !speaks_tls || hosts.is_empty() {
        return None;
    }
    let passthrough = mode && good && unique && default_endpoint.is_none();
    Some(Server { view: view.clone(), index, port: number, bind, hosts, passthrough, listener: None })
}

struct Port {
    number: u16,
    /// Whether the protocol is HTTPS or TLS.
    tls: bool,
    /// Whether nothing is wrong with it.
    good: bool,
}

fn read_port<'n>(view: &View<'n>, names: &mut Names<'n>, sink: &mut Sink) -> Option<Port> {
    let mut fields = view.fields("{number, name, protocol}", sink)?;
    let number = fields.require("number", "a port from 1 to 65535", sink);
    let protocol = fields.require("protocol", PROTOCOLS, sink);
    let name = fields.require("name", "a name that is unique within the Gateway", sink);
    if let Some(target) = fields.take("targetPort") {
        target.warn("the field is deprecated in Istio and has no meaning here").to(sink);
    }
    fields.finish(sink);
    let number = number.and_then(|view| view.port(sink));
    let unique = match name.and_then(|view| Some((view.text("a name", sink)?, view))) {
        Some((name, view)) => is_first(&mut names.ports, "port", name, &view, sink),
        None => false,
    };
    let protocol_view = protocol?;
    let protocol = protocol_view.text(PROTOCOLS, sink)?;
    let tls = match &*protocol.to_ascii_uppercase() {
        "HTTPS" | "TLS" => true,
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => false,
        "TCP" | "MONGO" | "MYSQL" | "REDIS" | "UDP" => {
            protocol_view
                .bad(format!(
                    "the protocol {protocol} has no server name to route by: the server is not served"
                ))
                .expected(PROTOCOLS)
                .to(sink);
            return None;
        }
        _ => {
            protocol_view.bad(format!("there is no protocol '{protocol}'")).expected(PROTOCOLS).to(sink);
            return None;
        }
    };
    Some(Port { number: number?, tls, good: unique })
}

fn is_first<'n>(
    seen: &mut HashMap<&'n str, View<'n>>,
    what: &str,
    name: &'n str,
    view: &View<'n>,
    sink: &mut Sink,
) -> bool {
    let first = seen.entry(name).or_insert_with(|| view.clone());
    let is_first = first.origin() == view.origin();
    if !is_first {
        view.bad(format!(
            "the {what} name '{name}' is there already ({}): the server is not served",
            first.origin()
        ))
        .remedy("give each server of a Gateway a name of its own")
        .to(sink);
    }
    is_first
}

fn read_bind(view: &View<'_>, sink: &mut Sink) -> Option<IpAddr> {
    let text = view.text("an IP address", sink)?;
    if text.starts_with("unix:") {
        view.bad("unix domain sockets are not served")
            .expected("an IP address")
            .remedy("use an address such as 127.0.0.1")
            .to(sink);
        return None;
    }
    view.parse("an IP address", sink)
}

fn read_hosts<'n>(view: &View<'n>, own: &'n str, sink: &mut Sink) -> Vec<ServerHost<'n>> {
    let expected = "[namespace/]name, where name is www.example.com, *.example.com or *";
    let list = view.list(expected, sink);
    if list.is_empty() {
        view.bad("the list is empty: the server is not served").expected(expected).to(sink);
    }
    list.iter()
        .filter_map(|item| {
            let text = item.text(expected, sink)?;
            let (namespace, name) = match text.split_once('/') {
                None => (None, text),
                Some(("*", name)) => (None, name),
                Some((".", name)) => (Some(own), name),
                Some((namespace, name)) => (Some(namespace), name),
            };
            match HostPattern::parse(name) {
                Ok(pattern) => Some(ServerHost { namespace, pattern }),
                Err(why) => {
                    item.bad(format!("'{text}': {why}")).expected(expected).to(sink);
                    None
                }
            }
        })
        .collect()
}

/// Whether the server passes TLS through; everything else is reported.
fn tls_mode(server: &View<'_>, tls: Option<&View<'_>>, sink: &mut Sink) -> bool {
    let Some(tls) = tls else {
        server
            .bad("a server with protocol HTTPS or TLS needs 'tls': it is not served")
            .expected("tls: {mode: PASSTHROUGH}")
            .to(sink);
        return false;
    };
    let Some(mut fields) = tls.fields("{mode: PASSTHROUGH}", sink) else { return false };
    let mode_view = fields.take("mode");
    let redirect = fields.take("httpsRedirect");
    let others = termination(&mut fields);
    fields.finish(sink);

    let mode = match &mode_view {
        // The first value of the enumeration, which is what Istio takes.
        None => "PASSTHROUGH",
        Some(view) => match view.text("PASSTHROUGH", sink) {
            Some(mode) => mode,
            None => return false,
        },
    };
    let at = mode_view.as_ref().unwrap_or(tls);
    let why = match mode {
        "PASSTHROUGH" => {
            if mode_view.is_none() {
                tls.say(Severity::Note, "no mode is given, which means PASSTHROUGH").to(sink);
            }
            for other in others.iter().chain(&redirect) {
                other.warn("the field has no meaning with PASSTHROUGH, ignored").to(sink);
            }
            return true;
        }
        "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL" => "TLS is passed through, never terminated",
        "ISTIO_MUTUAL" => "the certificates of a mesh exist only inside it",
        "AUTO_PASSTHROUGH" => "server names that encode a cluster exist only inside a mesh",
        _ => {
            at.bad(format!("there is no mode '{mode}': the server is not served"))
                .expected("PASSTHROUGH")
                .to(sink);
            return false;
        }
    };
    let hosts = "let the backend terminate TLS and use PASSTHROUGH, or keep this server in Istio";
    at.bad(format!("{mode} is not implemented ({why}): the server is not served"))
        .expected("PASSTHROUGH")
        .remedy(hosts)
        .to(sink);
    false
}

/// The fields that say how to terminate TLS.
fn termination<'n>(fields: &mut Fields<'n>) -> Vec<View<'n>> {
    [
        "serverCertificate",
        "privateKey",
        "caCertificates",
        "caCrl",
        "credentialName",
        "credentialNames",
        "caCertCredentialName",
        "tlsCertificates",
        "subjectAltNames",
        "verifyCertificateSpki",
        "verifyCertificateHash",
        "minProtocolVersion",
        "maxProtocolVersion",
        "cipherSuites",
        "insecureSkipVerify",
    ]
    .into_iter()
    .filter_map(|key| fields.take(key))
    .collect()
}

fn report_plain(server: &View<'_>, tls: Option<&View<'_>>, sink: &mut Sink) {
    if let Some(redirect) = tls.and_then(|tls| tls.peek("httpsRedirect"))
        && redirect.flag(sink) != Some(false)
    {
        redirect
            .bad("redirecting HTTP to HTTPS is not implemented: the server is not served")
            .remedy("keep this server in Istio, or let another program answer on the port")
            .to(sink);
        return;
    }
    server
        .bad("plain HTTP has no server name to route by: the server is not served")
        .expected(PROTOCOLS)
        .to(sink);
}
