//! The installation of Istio: an `IstioOperator`, or the values of Istio's Helm charts. Only the parts that apply to
//! a gateway without a cluster are read: the access log and the ports of the ingress gateway.

use std::{collections::BTreeMap, str::FromStr};

use super::{
    gateway::Gateway,
    service::{Service, TargetPort},
};
use crate::{
    decode::{Diagnostics, Subject, View},
    log_file::LogFile,
    model::{AccessLogFormat, Origin, settings::Settings},
    options::Options,
    report::{ObjectRef, Severity},
};

/// The kind of the objects.
pub(super) const KIND: &str = "IstioOperator";
/// The group of the objects, which has a single version.
const GROUP: &str = "install.istio.io";
const VERSION: &str = "v1alpha1";
/// The name of the port that load balancers probe.
const STATUS: &str = "status-port";

/// The parts of one document that apply here.
#[derive(Debug)]
pub(super) struct Installation<'n> {
    /// The target of the access log. `None` within is "off".
    log_file: Option<(View<'n>, Option<LogFile>)>,
    encoding: Option<AccessLogFormat>,
    lists: Vec<PortList<'n>>,
}

/// The ports of an ingress gateway's Service.
#[derive(Debug)]
struct PortList<'n> {
    view: View<'n>,
    ports: Vec<Port<'n>>,
}

#[derive(Debug)]
struct Port<'n> {
    view: View<'n>,
    name: &'n str,
    number: u16,
    /// The port on which the gateway's pods would listen.
    target: Option<u16>,
}

/// Whether a document is an `IstioOperator`.
pub(super) fn is_operator(document: &View<'_>) -> bool {
    document.peek_text("kind") == Some(KIND)
        && document.peek_text("apiVersion").is_some_and(|version| version.starts_with(GROUP))
}

/// Whether a document without a kind is the values of one of Istio's charts.
pub(super) fn is_values(document: &View<'_>) -> bool {
    let keys = |view: &View<'_>| !view.entries("", &mut Diagnostics::default()).is_empty();
    document.peek("meshConfig").is_some_and(|mesh| keys(&mesh))
        || at(document, &["gateways", INGRESS]).is_some()
        || at(document, &["service", "ports"]).is_some_and(|ports| {
            let ports = ports.list("", &mut Diagnostics::default());
            ports.iter().any(|port| port.peek_text("name") == Some(STATUS))
        })
}

/// The ingress gateway in the values of the operator and of older charts.
const INGRESS: &str = "istio-ingressgateway";

fn at<'n>(view: &View<'n>, path: &[&str]) -> Option<View<'n>> {
    path.iter().try_fold(view.clone(), |view, key| view.peek(key))
}

/// Reads an `IstioOperator`. Unlike other objects it may have no name, since `istioctl` needs none.
pub(super) fn read<'n>(document: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Installation<'n>> {
    let named =
        |key| at(document, &["metadata", key]).and_then(|view| view.text("", &mut Diagnostics::default()));
    let object = ObjectRef {
        group: GROUP.into(),
        kind: KIND.into(),
        namespace: named("namespace").unwrap_or("istio-system").into(),
        name: named("name").unwrap_or_default().into(),
    };
    let subject = Subject::foreign(document.file(), object);
    let view = document.with_subject(subject.clone());
    let mut damaged = false;
    for problem in view.problems() {
        diagnostics.push(subject.problem(problem, Severity::Rejected));
        damaged = true;
    }
    if damaged {
        return None;
    }
    let version = view.peek("apiVersion")?;
    if !version.says(&format!("{GROUP}/{VERSION}")) {
        version
            .error("the version is not known: nothing of the object is used")
            .expected(format!("{GROUP}/{VERSION}"))
            .emit(diagnostics);
        return None;
    }
    let mut reader = Reader::default();
    if let Some(spec) = view.peek("spec").filter(|spec| !spec.is_unset()) {
        for (key, part) in spec.entries("the spec of an IstioOperator", diagnostics) {
            match key {
                _ if part.is_unset() => {}
                "meshConfig" => reader.mesh(key, &part, diagnostics),
                "components" => reader.components(&part, diagnostics),
                "values" => reader.values(&part, diagnostics),
                _ => reader.others.push(key.into()),
            }
        }
    }
    Some(reader.finish(&view, diagnostics))
}

/// Reads the values of one of Istio's charts.
pub(super) fn read_values<'n>(document: &View<'n>, diagnostics: &mut Diagnostics) -> Installation<'n> {
    let object = ObjectRef { kind: "Helm values".into(), ..ObjectRef::default() };
    let view = document.with_subject(Subject::foreign(document.file(), object));
    let mut reader = Reader::default();
    for (key, part) in view.entries("values of a chart", diagnostics) {
        match key {
            _ if part.is_unset() => {}
            "meshConfig" => reader.mesh(key, &part, diagnostics),
            "gateways" => reader.gateways(key, &part, diagnostics),
            // The chart `gateway` describes one gateway.
            "service" => {
                for (inner, part) in part.entries("a Service", diagnostics) {
                    match inner {
                        "ports" => reader.ports("service.ports", &part, diagnostics),
                        _ => reader.others.push(format!("{key}.{inner}")),
                    }
                }
            }
            "autoscaling" => replicas(part.peek("minReplicas"), diagnostics),
            _ => reader.others.push(key.into()),
        }
    }
    reader.finish(&view, diagnostics)
}

#[derive(Default)]
struct Reader<'n> {
    log_file: Option<(View<'n>, Option<LogFile>)>,
    encoding: Option<AccessLogFormat>,
    lists: Vec<PortList<'n>>,
    /// Fields that apply here.
    used: Vec<String>,
    /// Fields that do not apply here.
    others: Vec<String>,
}

impl<'n> Reader<'n> {
    /// `meshConfig`, under the key `name`.
    fn mesh(&mut self, name: &str, view: &View<'n>, diagnostics: &mut Diagnostics) {
        for (key, part) in view.entries("a mapping", diagnostics) {
            let field = format!("{name}.{key}");
            match key {
                "accessLogFile" => {
                    let file = if part.is_unset() {
                        None
                    } else {
                        let expected = "an absolute path, such as /dev/stdout";
                        let Some(file) = part.parse::<LogFile>(expected, diagnostics) else { continue };
                        Some(file)
                    };
                    self.log_file = Some((part, file));
                    self.used.push(field);
                }
                "accessLogEncoding" => {
                    self.encoding = part.parse::<Encoding>("TEXT or JSON", diagnostics).map(|Encoding(one)| one);
                    self.used.push(field);
                }
                "accessLogFormat" if part.is_unset() => {}
                "accessLogFormat" => part
                    .note("a format of one's own is not supported: lines have the fields of Istio's default format")
                    .emit(diagnostics),
                _ => self.others.push(field),
            }
        }
    }

    fn components(&mut self, view: &View<'n>, diagnostics: &mut Diagnostics) {
        for (key, part) in view.entries("a mapping of components", diagnostics) {
            if key != "ingressGateways" {
                self.others.push(format!("components.{key}"));
                continue;
            }
            for (index, gateway) in part.list("a list of gateways", diagnostics).iter().enumerate() {
                let field = format!("components.{key}[{index}]");
                let enabled = gateway.peek("enabled").and_then(|view| view.flag(diagnostics));
                if enabled == Some(false) {
                    self.others.push(field);
                    continue;
                }
                self.gateway(&field, gateway, diagnostics);
            }
        }
    }

    /// One ingress gateway of an `IstioOperator`.
    fn gateway(&mut self, field: &str, gateway: &View<'n>, diagnostics: &mut Diagnostics) {
        let Some(k8s) = gateway.peek("k8s").filter(|k8s| !k8s.is_unset()) else { return };
        let before = self.lists.len();
        let mut of_service = None;
        for (key, part) in k8s.entries("how the gateway is deployed", diagnostics) {
            match key {
                "hpaSpec" => replicas(part.peek("minReplicas"), diagnostics),
                "service" => of_service = part.peek("ports"),
                "overlays" => {
                    for list in overlaid(&part, diagnostics) {
                        self.ports(&format!("{field}.k8s.overlays"), &list, diagnostics);
                    }
                }
                _ => self.others.push(format!("{field}.k8s.{key}")),
            }
        }
        // An overlay replaces the ports of the Service.
        if let Some(list) = of_service.filter(|_| self.lists.len() == before) {
            self.ports(&format!("{field}.k8s.service.ports"), &list, diagnostics);
        }
    }

    /// `values` of an `IstioOperator`, which are the charts' values.
    fn values(&mut self, view: &View<'n>, diagnostics: &mut Diagnostics) {
        for (key, part) in view.entries("values of charts", diagnostics) {
            let field = format!("values.{key}");
            match key {
                _ if part.is_unset() => {}
                "meshConfig" => self.mesh(&field, &part, diagnostics),
                "gateways" => self.gateways(&field, &part, diagnostics),
                _ => self.others.push(field),
            }
        }
    }

    /// `gateways`, under the key `name`.
    fn gateways(&mut self, name: &str, view: &View<'n>, diagnostics: &mut Diagnostics) {
        for (key, part) in view.entries("a mapping of gateways", diagnostics) {
            let field = format!("{name}.{key}");
            if key != INGRESS {
                self.others.push(field);
                continue;
            }
            replicas(part.peek("autoscaleMin"), diagnostics);
            if let Some(list) = part.peek("ports") {
                self.ports(&format!("{field}.ports"), &list, diagnostics);
            }
        }
    }

    fn ports(&mut self, field: &str, list: &View<'n>, diagnostics: &mut Diagnostics) {
        let ports: Vec<_> = list
            .list("a list of {name, port, targetPort}", diagnostics)
            .into_iter()
            .filter_map(|view| {
                let number = view.peek("port")?.port(diagnostics)?;
                let target = view.peek_text("targetPort").and_then(|text| text.parse().ok());
                // Only TCP is supported.
                let tcp = view.peek_text("protocol").is_none_or(|protocol| protocol == "TCP");
                let name = view.peek_text("name").unwrap_or_default();
                tcp.then_some(Port { view, name, number, target })
            })
            .collect();
        if !ports.is_empty() {
            self.used.push(field.into());
            self.lists.push(PortList { view: list.clone(), ports });
        }
    }

    fn finish(self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Installation<'n> {
        let Self { log_file, encoding, lists, used, others } = self;
        let message = match (used.is_empty(), others.is_empty()) {
            (true, _) => "nothing of how Istio is installed has a meaning here".to_owned(),
            (false, true) => format!("used: {}", used.join(", ")),
            (false, false) => format!("used: {}; not ours: {}", used.join(", "), others.join(", ")),
        };
        view.ignored(message).emit(diagnostics);
        Installation { log_file, encoding, lists }
    }
}

/// The number of replicas has no meaning on one node.
fn replicas(view: Option<View<'_>>, diagnostics: &mut Diagnostics) {
    if let Some(view) = view {
        view.note("no autoscaler counts processes on one node: for two of them, run it on two nodes")
            .emit(diagnostics);
    }
}

/// `accessLogEncoding`.
struct Encoding(AccessLogFormat);

impl FromStr for Encoding {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "TEXT" => Ok(Self(AccessLogFormat::Text)),
            "JSON" => Ok(Self(AccessLogFormat::Json)),
            _ => Err("there is no such encoding"),
        }
    }
}

/// The lists by which patches of the gateway's Service replace its ports.
fn overlaid<'n>(overlays: &View<'n>, diagnostics: &mut Diagnostics) -> Vec<View<'n>> {
    let mut lists = Vec::new();
    for overlay in overlays.list("a list of overlays", diagnostics) {
        let Some(patches) = overlay.peek("patches").filter(|_| overlay.peek_text("kind") == Some("Service"))
        else {
            continue;
        };
        for patch in patches.list("a list of {path, value}", diagnostics) {
            if patch.peek_text("path") == Some("spec.ports") {
                lists.extend(patch.peek("value"));
            }
        }
    }
    lists
}

/// The ports of Services with a port that load balancers probe: those of ingress gateways.
fn of_services<'s, 'n>(services: &'s [Service<'n>]) -> impl Iterator<Item = PortList<'n>> + use<'s, 'n> {
    let is_of_gateway = |service: &&Service<'n>| {
        !service.lost && service.ports.iter().any(|port| port.name == STATUS && !port.other_protocol)
    };
    services.iter().filter(is_of_gateway).map(|service| PortList {
        view: service.view.clone(),
        ports: service
            .ports
            .iter()
            .filter(|port| !port.other_protocol)
            .map(|port| Port {
                view: service.view.clone(),
                name: port.name,
                number: port.number,
                target: match port.target {
                    TargetPort::Number(number) => Some(number),
                    TargetPort::Name(_) => None,
                },
            })
            .collect(),
    })
}

/// Applies the documents to the settings. `written` returns the location of a setting in a native document, which
/// takes precedence.
pub(super) fn set(
    installations: &[Installation<'_>],
    services: &[Service<'_>],
    settings: &mut Settings,
    written: impl Fn(&str) -> Option<Origin>,
    diagnostics: &mut Diagnostics,
) {
    let mut first: Option<&View<'_>> = None;
    for Installation { log_file, encoding, .. } in installations {
        let Some((view, file)) = log_file else { continue };
        if let Some(origin) = written("access_log.path") {
            view.note(format!("access_log.path holds instead ({origin})")).emit(diagnostics);
            continue;
        }
        if let Some(first) = first {
            view.warn(format!(
                "another document says where the access log goes ({}): that holds",
                first.origin()
            ))
            .remedy("keep one of the two")
            .emit(diagnostics);
            continue;
        }
        first = Some(view);
        settings.runtime.access_log.path.clone_from(file);
        if let Some(origin) = written("access_log.format") {
            view.note(format!("access_log.format holds instead of accessLogEncoding ({origin})"))
                .emit(diagnostics);
        } else {
            settings.runtime.access_log.format = encoding.unwrap_or(AccessLogFormat::Text);
        }
    }
    let lists = installations.iter().flat_map(|one| &one.lists);
    let of_services: Vec<_> = of_services(services).collect();
    let probed = lists.chain(&of_services).flat_map(|list| &list.ports).find(|port| port.name == STATUS);
    let Some(Port { view, number, .. }) = probed else { return };
    if settings.startup.admin.status.is_some() {
        view.note("admin.status holds instead").emit(diagnostics);
        return;
    }
    view.note(format!(
        "probes of load balancers are answered on port {number} of all addresses: /healthz/ready and /livez; --status or \
         admin.status names another address"
    ))
    .emit(diagnostics);
    settings.startup.named_status = Some(*number);
}

/// Compares the ports of the ingress gateways with the servers of the Gateways, and reports differences.
pub(super) fn compare(
    installations: &[Installation<'_>],
    services: &[Service<'_>],
    gateways: &[Gateway<'_>],
    options: &Options,
    diagnostics: &mut Diagnostics,
) {
    let of_services: Vec<_> = of_services(services).collect();
    let lists: Vec<_> = installations.iter().flat_map(|one| &one.lists).chain(&of_services).collect();
    let Some(first) = lists.first() else { return };
    let listed: Vec<u16> = lists.iter().flat_map(|list| &list.ports).map(|port| port.number).collect();
    let servers: Vec<_> = gateways
        .iter()
        .filter(|gateway| gateway.is_selected(options))
        .flat_map(|gateway| &gateway.servers)
        .collect();
    for server in servers.iter().filter(|server| !listed.contains(&server.port)) {
        server
            .view
            .note(format!(
                "port {} is none of the ingress gateway's ports ({}): in a cluster nothing leads to this server; here it \
                 is the same as any other",
                server.port,
                first.view.origin()
            ))
            .emit(diagnostics);
    }
    for list in lists {
        for port in list.ports.iter().filter(|port| port.name != STATUS) {
            if !servers.iter().any(|server| server.port == port.number) {
                port.view
                    .note(format!("no server of a Gateway has port {}: nothing listens there", port.number))
                    .emit(diagnostics);
            }
        }
        tell_targets(list, diagnostics);
    }
}

/// Reports the effect of `targetPort`.
fn tell_targets(list: &PortList<'_>, diagnostics: &mut Diagnostics) {
    let mut by_target: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
    for port in list.ports.iter().filter(|port| port.name != STATUS) {
        if let Some(target) = port.target.filter(|target| *target != port.number) {
            by_target.entry(target).or_default().push(port.number);
        }
    }
    let Some((target, ports)) = by_target.iter().next() else { return };
    let mut told =
        vec!["targetPort has no meaning outside a cluster: each server listens on its own port".to_owned()];
    for (target, sharing) in by_target.iter().filter(|(_, ports)| ports.len() > 1) {
        let sharing: Vec<_> = sharing.iter().map(u16::to_string).collect();
        told.push(format!(
            "ports {} with the targetPort {target} are one listener in Istio, and one each here",
            sharing.join(" and ")
        ));
    }
    list.view
        .note(told.join("; "))
        .remedy(format!("to listen on the target port, add --listen {}=0.0.0.0:{target}", ports[0]))
        .emit(diagnostics);
}
