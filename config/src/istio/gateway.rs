//! `Gateway`: the servers, which become listeners.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{
    labels::Labels,
    object::Object,
    server_tls::{self, Mode, ServerTls},
};
use crate::{
    decode::{Diagnostics, View},
    model::rank::{Seniority, ServerRank},
    name::HostPattern,
    options::Options,
};

const PROTOCOLS: &str = "HTTPS or TLS, with tls.mode PASSTHROUGH or SIMPLE, or HTTP";

#[derive(Debug)]
pub(super) struct Gateway<'n> {
    pub(super) view: View<'n>,
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
    /// Whether its file names no namespace, so that the default namespace applies.
    pub(super) namespace_assumed: bool,
    pub(super) seniority: Arc<Seniority>,
    /// The selector, if it is written.
    pub(super) selector: Option<(View<'n>, Labels<'n>)>,
    /// Whether the whole object is rejected.
    pub(super) lost: bool,
    pub(super) servers: Vec<Server<'n>>,
}

impl Gateway<'_> {
    /// Whether it is for a workload with the labels of `--selector`. Without labels every Gateway is.
    pub(super) fn is_selected(&self, options: &Options) -> bool {
        options.selector.is_empty()
            || self.selector.as_ref().is_none_or(|(_, labels)| labels.selected_by(&options.selector))
    }
}

/// A server, on a port of its own or on a shared one.
#[derive(Debug)]
pub(super) struct Server<'n> {
    pub(super) view: View<'n>,
    /// The index in the list.
    pub(super) index: usize,
    pub(super) port: u16,
    pub(super) protocol: &'n str,
    /// The address as written. `None` is all addresses.
    pub(super) bind: Option<IpAddr>,
    pub(super) hosts: Vec<ServerHost<'n>>,
    pub(super) kind: ServerKind,
    /// The TLS settings, if the kind is [`ServerKind::Terminate`].
    pub(super) tls: Option<Box<ServerTls<'n>>>,
    /// Whether every request is redirected to HTTPS (`httpsRedirect` of an HTTP server).
    pub(super) https_redirect: bool,
    /// The number under which its routes are collected, if the kind is [`ServerKind::Terminate`] or
    /// [`ServerKind::Http`].
    pub(super) slot: Option<usize>,
    /// The listener that contains the server, or has its port.
    pub(super) listener: Option<usize>,
    /// The precedence on the port. Set when all servers are known.
    pub(super) rank: Arc<ServerRank>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerKind {
    /// TLS is passed through.
    Passthrough,
    /// TLS is terminated.
    Terminate,
    /// A TLS server that is not served: its names are refused.
    Claims,
    /// TCP without TLS: serves connections without a name, beside servers with TLS.
    Tcp,
    /// HTTP without TLS.
    Http,
}

impl ServerKind {
    /// Whether TLS connections are served.
    pub(super) fn serves_tls(self) -> bool {
        matches!(self, Self::Passthrough | Self::Terminate)
    }

    /// Whether the server makes a listener.
    pub(super) fn is_served(self) -> bool {
        self.serves_tls() || self == Self::Http
    }
}

impl Server<'_> {
    /// Whether it serves HTTP requests, within terminated TLS or without TLS.
    pub(super) fn is_http(&self) -> bool {
        match self.kind {
            ServerKind::Terminate => self.protocol.eq_ignore_ascii_case("HTTPS"),
            kind => kind == ServerKind::Http,
        }
    }

    /// As `Gateway namespace/name servers[0]`.
    pub(super) fn title(&self) -> String {
        format!("{} servers[{}]", self.view.object(), self.index)
    }
}

/// `[namespace/]name`.
#[derive(Debug)]
pub(super) struct ServerHost<'n> {
    /// The namespace whose `VirtualService` objects may attach. `None` is all.
    pub(super) namespace: Option<&'n str>,
    pub(super) pattern: HostPattern,
}

/// Secrets are searched in `workload` first, then in the Gateway's own namespace.
pub(super) fn read<'n>(
    object: Object<'n>,
    workload: Option<&str>,
    diagnostics: &mut Diagnostics,
) -> Option<Gateway<'n>> {
    let Object { namespace, name, view, spec, seniority, lost, .. } = object;
    let mut fields = spec.fields("the spec of a Gateway", diagnostics)?;
    let selector = fields.take_set("selector").map(|view| {
        let labels = Labels::read(&view, diagnostics);
        (view, labels)
    });
    let servers = fields.require("servers", "a list of servers", diagnostics);
    fields.finish(diagnostics);
    let servers = servers?;
    let list = servers.list("a list of servers", diagnostics);
    if servers.is_empty_list() {
        servers.error("the list is empty").expected("a list of servers").emit(diagnostics);
    }
    let mut names = Names::default();
    let mut servers: Vec<_> = list
        .iter()
        .enumerate()
        .filter_map(|(index, view)| server(view, index, (namespace, workload), &mut names, diagnostics))
        .collect();
    if lost {
        servers.retain(|server| server.kind != ServerKind::Http);
        for server in &mut servers {
            if server.kind.serves_tls() {
                server.kind = ServerKind::Claims;
            }
        }
    }
    let namespace_assumed =
        view.peek("metadata").is_none_or(|metadata| metadata.peek_text("namespace").is_none());
    Some(Gateway { view, namespace, name, namespace_assumed, seniority, selector, lost, servers })
}

/// The names that are compared within one Gateway.
#[derive(Default)]
struct Names<'n> {
    ports: HashMap<&'n str, View<'n>>,
    servers: HashMap<&'n str, View<'n>>,
}

fn server<'n>(
    view: &View<'n>,
    index: usize,
    (namespace, workload): (&'n str, Option<&str>),
    names: &mut Names<'n>,
    diagnostics: &mut Diagnostics,
) -> Option<Server<'n>> {
    let mut fields = view.fields("a server: {port, hosts, tls}", diagnostics)?;
    let port = fields.require("port", "{number, name, protocol}", diagnostics);
    let bind = fields.take_set("bind");
    let hosts = fields.require("hosts", "a list of [namespace/]name", diagnostics);
    let tls = fields.take("tls");
    let own_name = fields.take_set("name");
    if let Some(default) = fields.take_set("defaultEndpoint") {
        default.warn("Istio does not look at the field either, ignored").emit(diagnostics);
    }
    fields.finish(diagnostics);

    if let Some(name_view) = own_name
        && let Some(name) = name_view.text("a name", diagnostics)
        && let Some(first) = first(&mut names.servers, name, &name_view)
    {
        name_view
            .note(format!("the server name '{name}' is there already ({})", first.origin()))
            .emit(diagnostics);
    }
    let port = port.and_then(|view| read_port(&view, names, tls.as_ref(), diagnostics));
    let bind = match &bind {
        None => Some(None),
        Some(view) => read_bind(view, diagnostics).map(Some),
    };
    let hosts = hosts.map(|view| read_hosts(&view, namespace, diagnostics)).unwrap_or_default();

    let Port { number, protocol, kind, good } = port?;
    let (kind, settings) = match kind {
        ServerKind::Passthrough => {
            match server_tls::read(view, tls.as_ref(), workload.unwrap_or(namespace), diagnostics) {
                Mode::Passthrough if good => (ServerKind::Passthrough, None),
                Mode::Terminate(settings) if good => (ServerKind::Terminate, Some(settings)),
                _ => (ServerKind::Claims, None),
            }
        }
        ServerKind::Http if !good => return None,
        other => (other, None),
    };
    // A server at an invalid address counts as one at all addresses: its names are refused.
    let (kind, bind) = match (kind, bind) {
        (kind, Some(bind)) => (kind, bind),
        (ServerKind::Http | ServerKind::Tcp, None) => return None,
        (_, None) => (ServerKind::Claims, None),
    };
    if hosts.is_empty() {
        return None;
    }
    Some(Server {
        view: view.clone(),
        index,
        port: number,
        protocol,
        bind,
        hosts,
        kind,
        https_redirect: kind == ServerKind::Http && redirects(tls.as_ref(), diagnostics),
        tls: settings,
        slot: None,
        listener: None,
        rank: Arc::default(),
    })
}

struct Port<'n> {
    number: u16,
    protocol: &'n str,
    /// The kind that follows from the protocol.
    kind: ServerKind,
    /// Whether the protocol is valid.
    good: bool,
}

fn read_port<'n>(
    view: &View<'n>,
    names: &mut Names<'n>,
    tls: Option<&View<'n>>,
    diagnostics: &mut Diagnostics,
) -> Option<Port<'n>> {
    let mut fields = view.fields("{number, name, protocol}", diagnostics)?;
    let number = fields.require("number", "a port from 1 to 65535", diagnostics);
    let protocol = fields.require("protocol", PROTOCOLS, diagnostics);
    let name = fields.require("name", "a name that is unique within the Gateway", diagnostics);
    if let Some(target) = fields.take("targetPort") {
        target.warn("the field is deprecated in Istio and has no meaning here").emit(diagnostics);
    }
    fields.finish(diagnostics);
    let number = number.and_then(|view| view.port(diagnostics));
    let mut good = false;
    if let Some(name_view) = name
        && let Some(name) = name_view.text("a name", diagnostics)
    {
        match first(&mut names.ports, name, &name_view) {
            None => good = true,
            Some(first) => name_view
                .error(format!(
                    "the port name '{name}' is there already ({}): the server is not served",
                    first.origin()
                ))
                .remedy("give each server of a Gateway a port name of its own")
                .emit(diagnostics),
        }
    }
    let (protocol, kind) = match protocol.and_then(|view| Some((view.text(PROTOCOLS, diagnostics)?, view))) {
        Some((protocol, view)) => (protocol, kind_of(protocol, &view, tls, diagnostics)),
        None => ("", None),
    };
    // An unknown protocol keeps its names from other servers.
    Some(Port { number: number?, protocol, kind: kind.unwrap_or(ServerKind::Claims), good })
}

fn kind_of(
    protocol: &str,
    view: &View<'_>,
    tls: Option<&View<'_>>,
    diagnostics: &mut Diagnostics,
) -> Option<ServerKind> {
    match &*protocol.to_ascii_uppercase() {
        "HTTPS" | "TLS" => Some(ServerKind::Passthrough),
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => Some(ServerKind::Http),
        "TCP" | "MONGO" | "MYSQL" | "REDIS" | "UDP" => {
            if tls.is_none() {
                return Some(ServerKind::Tcp);
            }
            view.error(format!(
                "the protocol {protocol} goes without 'tls' in Istio: the server is not served"
            ))
            .expected(PROTOCOLS)
            .remedy("write protocol: TLS, whatever is spoken inside the TLS connection")
            .emit(diagnostics);
            None
        }
        _ => {
            view.error(format!("there is no protocol '{protocol}': the server is not served"))
                .expected(PROTOCOLS)
                .emit(diagnostics);
            None
        }
    }
}

/// The earlier value with the same name.
fn first<'n>(seen: &mut HashMap<&'n str, View<'n>>, name: &'n str, view: &View<'n>) -> Option<View<'n>> {
    match seen.entry(name) {
        std::collections::hash_map::Entry::Occupied(first) => Some(first.get().clone()),
        std::collections::hash_map::Entry::Vacant(place) => {
            place.insert(view.clone());
            None
        }
    }
}

fn read_bind(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<IpAddr> {
    let text = view.text("an IP address", diagnostics)?;
    if text.starts_with("unix:") {
        view.error("unix domain sockets are not served")
            .expected("an IP address")
            .remedy("use an address such as 127.0.0.1")
            .emit(diagnostics);
        return None;
    }
    view.parse("an IP address", diagnostics)
}

fn read_hosts<'n>(view: &View<'n>, own: &'n str, diagnostics: &mut Diagnostics) -> Vec<ServerHost<'n>> {
    let expected = "[namespace/]name, where name is www.example.com, *.example.com or *";
    let list = view.list(expected, diagnostics);
    if view.is_empty_list() {
        view.error("the list is empty: the server is not served").expected(expected).emit(diagnostics);
    }
    list.iter()
        .filter_map(|item| {
            let text = item.text(expected, diagnostics)?;
            let (namespace, name) = match text.split_once('/') {
                None => (None, text),
                Some(("*", name)) => (None, name),
                Some((".", name)) => (Some(own), name),
                Some((namespace, name)) => (Some(namespace), name),
            };
            match HostPattern::parse(name) {
                Ok(pattern) => Some(ServerHost { namespace, pattern }),
                Err(why) => {
                    item.error(format!("'{text}': {why}")).expected(expected).emit(diagnostics);
                    None
                }
            }
        })
        .collect()
}

/// Whether an HTTP server redirects every request to HTTPS. An invalid value redirects as well, which is the safe
/// choice.
fn redirects(tls: Option<&View<'_>>, diagnostics: &mut Diagnostics) -> bool {
    let Some(tls) = tls else { return false };
    let Some(mut fields) = tls.fields("{httpsRedirect: true}", diagnostics) else { return true };
    let redirect = fields.take("httpsRedirect");
    for other in server_tls::others(&mut fields) {
        other.warn("no TLS is spoken on the port of an HTTP server, ignored").emit(diagnostics);
    }
    fields.finish(diagnostics);
    redirect.is_some_and(|view| view.flag(diagnostics).unwrap_or(true))
}
