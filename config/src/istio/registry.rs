//! The services of the files, and the backends of the destinations that name them.
//!
//! As for a gateway of Istio, a host is looked up among the objects that are exported to the workload's namespace
//! (`servicesExportedToNamespace`). A Kubernetes `Service` comes before a `ServiceEntry`, an export by name before a
//! public one, then the oldest. A host that no object defines is resolved by DNS.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    client_tls::{self, Towards, Traffic},
    destination,
    endpoints::{self, Found},
    export_to::Exported,
    host::{pattern, service_namespace},
    labels::Labels,
    outlier, proxy_protocol,
    service::Service,
    sources::{Known, Sources},
    subset::{self, Subset},
};
use crate::{
    builder::ModelBuilder,
    credentials::missing_secret,
    decode::{Diagnostics, View},
    model::{Backend, BackendId, Endpoint, EndpointHost, http::BackendHttp},
    name::{HostName, HostPattern, NameError},
    options::Options,
    overrides::Overrides,
};

/// The greatest length of a chain of `ExternalName` services.
const ALIASES: usize = 8;

/// The form in which bytes arrive at a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Carried {
    /// As the client sent them, in the client's TLS.
    Through,
    /// TLS is terminated, or there was none.
    Ended,
}

/// The definition of a host: the chosen object, and the entries of its namespace for the same host.
struct Defined<'s, 'n> {
    first: Known<'s, 'n>,
    siblings: Vec<Known<'s, 'n>>,
}

impl Defined<'_, '_> {
    /// Whether HTTP at a port is HTTP/2.
    fn speaks_http2(&self, port: u16) -> bool {
        std::iter::once(&self.first)
            .chain(&self.siblings)
            .find_map(|known| known.speaks_http2(port))
            .unwrap_or(false)
    }

    /// The ports of the first object, and those that others add.
    fn ports(&self) -> Vec<(u16, bool)> {
        let mut ports = self.first.ports();
        for other in self.siblings.iter().filter(|other| self.first.merges_with(**other)) {
            for (number, tcp) in other.ports() {
                if !ports.iter().any(|(known, _)| *known == number) {
                    ports.push((number, tcp));
                }
            }
        }
        ports
    }
}

/// The host, port and subset of a backend.
type Key = (String, u16, Option<String>);

pub(super) struct Registry<'s, 'n, 'r, 'o> {
    sources: &'s Sources<'n>,
    /// The preferred one first.
    by_host: BTreeMap<String, Vec<Known<'s, 'n>>>,
    /// Hosts that are only defined for workloads of other namespaces, with the defining object.
    hidden: HashMap<String, Known<'s, 'n>>,
    options: &'o Options,
    overrides: &'r mut Overrides<'o>,
    made: HashMap<Key, BackendId>,
    /// The results, by the form in which bytes arrive.
    settled: HashMap<(Key, Carried), Option<BackendId>>,
    /// Rules whose policies are already reported, by index.
    told: HashSet<(usize, Carried)>,
}

impl<'s, 'n, 'r, 'o> Registry<'s, 'n, 'r, 'o> {
    pub(super) fn new(
        sources: &'s Sources<'n>,
        options: &'o Options,
        overrides: &'r mut Overrides<'o>,
        diagnostics: &mut Diagnostics,
    ) -> Self {
        let namespace = options.namespace.as_deref();
        let mut found: BTreeMap<String, Vec<(Exported, Known<'s, 'n>)>> = BTreeMap::new();
        let mut hidden = HashMap::new();
        let entries = sources.entries.iter().flat_map(|entry| {
            entry.hosts.iter().map(move |host| (host.to_string(), &entry.export_to, Known::Entry(entry)))
        });
        let services = sources.services.iter().filter_map(|service| {
            let host = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
            let host = HostPattern::parse(&host).ok()?.to_string();
            Some((host, &service.export_to, Known::Service(service)))
        });
        for (host, export_to, known) in entries.chain(services) {
            if let Some(exported) = export_to.seen_from(namespace) {
                found.entry(host).or_default().push((exported, known));
            } else {
                hidden.entry(host).or_insert(known);
            }
        }
        let by_host = found
            .into_iter()
            .map(|(host, mut known)| {
                let public = |exported| exported == Exported::Public;
                known.sort_by(|(a, one), (b, other)| {
                    let services = matches!(one, Known::Entry(_)).cmp(&matches!(other, Known::Entry(_)));
                    services.then_with(|| public(*a).cmp(&public(*b))).then_with(|| one.against(*other))
                });
                let mut known: Vec<_> = known.into_iter().map(|(_, known)| known).collect();
                known.dedup_by_key(|known| known.view().origin());
                tell_rivals(&host, &known, diagnostics);
                (host, known)
            })
            .collect();
        Self {
            sources,
            by_host,
            hidden,
            options,
            overrides,
            made: HashMap::new(),
            settled: HashMap::new(),
            told: HashSet::new(),
        }
    }

    /// The backend for a destination of a `VirtualService` in `namespace` on a server at `server_port`. `None` is
    /// reported as an error, or the backend is not `wanted`.
    pub(super) fn backend(
        &mut self,
        (namespace, carried): (&str, Carried),
        to: &destination::Service<'_>,
        server_port: Option<u16>,
        wanted: bool,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) -> Option<BackendId> {
        let view = &to.view;
        let host = self.host(view, to.host, namespace, diagnostics)?;
        let defined = self.defined(&host);
        let defined = defined.as_ref();
        let port = Self::port(view, to, defined, server_port, wanted, diagnostics)?;
        let subset = match &to.subset {
            None => None,
            Some((view, name)) => Some(self.subset(view, name, &host, defined, diagnostics)?),
        };
        // A subset without labels is the whole service, unless it has a policy of its own.
        let subset = subset.filter(|subset| !subset.labels.is_empty() || subset.has_policy);
        let key = (host.to_string(), port, subset.map(|subset| subset.name.to_owned()));
        if let Some(&settled) = self.settled.get(&(key.clone(), carried)) {
            return settled;
        }
        self.tell_policies(&host, defined, carried, diagnostics);
        let traffic = self.traffic(&host, defined, key.2.as_deref(), port);
        let mut unheard = Diagnostics::default();
        let said = if carried == Carried::Ended { &mut *diagnostics } else { &mut unheard };
        let towards = traffic.towards(self.options.namespace.as_deref(), said);
        let tls = match towards {
            None if carried == Carried::Ended => {
                self.settled.insert((key, carried), None);
                return None;
            }
            None | Some(Towards::Clear) => None,
            Some(Towards::Tls(tls, secrets)) => {
                for (name, view) in secrets.iter().filter(|_| carried == Carried::Ended) {
                    let missing = missing_secret(name, view, "the connections are refused");
                    builder.want_secret(name.clone(), missing);
                }
                Some(Arc::from(tls))
            }
        };
        let http2 = traffic.upgrades || defined.is_some_and(|defined| defined.speaks_http2(port));
        if let Some(&made) = self.made.get(&key) {
            self.settled.insert((key, carried), Some(made));
            return Some(made);
        }
        let none = Labels::default();
        let wanted_labels = subset.map_or(&none, |subset| &subset.labels);
        let endpoints = self.endpoints(view, host, port, wanted_labels, diagnostics)?;
        if !wanted {
            return None;
        }
        let base = match &key.2 {
            None => format!("{}:{port}", key.0),
            Some(subset) => format!("{}:{port}/{subset}", key.0),
        };
        // The native format may define another backend with the name.
        let mut name = base.clone();
        let mut number = 1;
        while builder.backend_named(&name).is_some() {
            number += 1;
            name = format!("{base}#{number}");
        }
        let http = if http2 { BackendHttp::Http2 } else { BackendHttp::Http1 };
        let health = outlier::health(traffic.outliers.as_ref());
        let proxy_protocol = proxy_protocol::header(traffic.proxy_protocol.as_ref());
        let mut backend =
            Backend { name, endpoints, tls, http, proxy_protocol, health, ..Backend::default() };
        traffic.balancing.shape(&mut backend);
        let made = builder.backend(backend)?;
        self.made.insert(key.clone(), made);
        self.settled.insert((key, carried), Some(made));
        Some(made)
    }

    /// Reports rules that match no destination.
    pub(super) fn finish(self, diagnostics: &mut Diagnostics) {
        for (index, rule) in self.sources.rules.iter().enumerate() {
            let told = [Carried::Through, Carried::Ended]
                .iter()
                .any(|carried| self.told.contains(&(index, *carried)));
            if !told && !rule.lost {
                rule.view.ignored("it is for no destination of a route here").emit(diagnostics);
            }
        }
    }

    fn defined(&self, host: &HostPattern) -> Option<Defined<'s, 'n>> {
        let all = self.by_host.get(&host.to_string())?;
        let first = *all.first()?;
        let siblings = all[1..].iter().copied().filter(|other| {
            matches!((first, other), (Known::Entry(a), Known::Entry(b)) if a.namespace == b.namespace)
        });
        Some(Defined { first, siblings: siblings.collect() })
    }

    fn host(
        &self,
        view: &View<'_>,
        written: &str,
        namespace: &str,
        diagnostics: &mut Diagnostics,
    ) -> Option<HostPattern> {
        let expected = "the name of one service, for example web or web.default.svc.cluster.local";
        let why = match pattern(written, namespace) {
            Ok(host @ HostPattern::Exact(_)) => return Some(host),
            Ok(host) if self.by_host.contains_key(&host.to_string()) => return Some(host),
            Ok(_) => {
                view.error(format!(
                    "'{written}' is no single host, and no ServiceEntry has it: connections for this destination \
                     are refused"
                ))
                .expected(expected)
                .emit(diagnostics);
                return None;
            }
            Err(why) => why,
        };
        let mut found =
            view.error(format!("'{written}': {why}: connections for this destination are refused"));
        if why == NameError::IpAddress {
            found = found.remedy("name a ServiceEntry that has the address as its endpoint");
        }
        found.expected(expected).emit(diagnostics);
        None
    }

    /// The written port, or else the only one of the service, or else that of the server (Istio's
    /// `GetDestinationCluster`).
    fn port(
        view: &View<'_>,
        to: &destination::Service<'_>,
        defined: Option<&Defined<'s, 'n>>,
        server_port: Option<u16>,
        wanted: bool,
        diagnostics: &mut Diagnostics,
    ) -> Option<u16> {
        if to.port.is_some() {
            return to.port;
        }
        let ports = defined.map(Defined::ports).unwrap_or_default();
        if let [(port, _)] = *ports {
            return Some(port);
        }
        let port = server_port?;
        if wanted {
            view.note(format!("no port is given: the server's port {port} is taken")).emit(diagnostics);
        }
        Some(port)
    }

    /// The policies of the rules for a host, for one of its ports.
    fn traffic(
        &self,
        host: &HostPattern,
        defined: Option<&Defined<'s, 'n>>,
        subset: Option<&str>,
        port: u16,
    ) -> Traffic<'n> {
        if self.sources.rules.is_empty() {
            return Traffic::default();
        }
        let text = host.to_string();
        let owner = defined.map(|defined| defined.first.namespace()).or_else(|| service_namespace(&text));
        let rules = subset::rules_for(&self.sources.rules, host, owner, self.options.namespace.as_deref());
        client_tls::traffic(&rules, subset, port)
    }

    /// The subset with this name.
    fn subset(
        &self,
        view: &View<'_>,
        name: &str,
        host: &HostPattern,
        defined: Option<&Defined<'s, 'n>>,
        diagnostics: &mut Diagnostics,
    ) -> Option<&'s Subset<'n>> {
        let text = host.to_string();
        let owner = defined.map(|defined| defined.first.namespace()).or_else(|| service_namespace(&text));
        let rules = subset::rules_for(&self.sources.rules, host, owner, self.options.namespace.as_deref());
        let found = rules.iter().flat_map(|rule| &rule.subsets).find(|subset| subset.name == name);
        if let Some(lost) = rules.iter().find(|rule| rule.lost) {
            view.error(format!(
                "{} ({}) cannot be used: connections for this destination are refused",
                lost.view.object(),
                lost.view.origin()
            ))
            .emit(diagnostics);
            return None;
        }
        if found.is_none() {
            let mut missing = view.error(format!(
                "no DestinationRule for '{host}' has a subset '{name}': connections for this destination are refused"
            ));
            let elsewhere = self.sources.rules.iter().find(|rule| {
                host.is_subset_of(&rule.host) && rule.subsets.iter().any(|subset| subset.name == name)
            });
            missing.remedy = Some(match (elsewhere, rules.first()) {
                (Some(rule), _) => format!(
                    "{} ({}) has one, but another namespace, exportTo, workloadSelector or a rule for a more \
                     specific host keeps it away",
                    rule.view.object(),
                    rule.view.origin()
                ),
                (None, Some(rule)) => format!("add it to {}", rule.view.object()),
                (None, None) => "load the file with the DestinationRule too".into(),
            });
            missing.emit(diagnostics);
        }
        found
    }

    fn tell_policies(
        &mut self,
        host: &HostPattern,
        defined: Option<&Defined<'s, 'n>>,
        carried: Carried,
        diagnostics: &mut Diagnostics,
    ) {
        if self.sources.rules.is_empty() {
            return;
        }
        let text = host.to_string();
        let owner = defined.map(|defined| defined.first.namespace()).or_else(|| service_namespace(&text));
        let rules = subset::rules_for(&self.sources.rules, host, owner, self.options.namespace.as_deref());
        for rule in rules {
            let index = self.sources.rules.iter().position(|other| std::ptr::eq(other, rule));
            if index.is_some_and(|index| self.told.insert((index, carried))) {
                let other = if carried == Carried::Ended { Carried::Through } else { Carried::Ended };
                let is_first = index.is_none_or(|index| !self.told.contains(&(index, other)));
                subset::tell_policies(rule, carried == Carried::Ended, is_first, diagnostics);
            }
        }
    }

    fn endpoints(
        &mut self,
        view: &View<'_>,
        mut host: HostPattern,
        port: u16,
        labels: &Labels<'_>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Vec<Endpoint>> {
        for _ in 0..ALIASES {
            let text = host.to_string();
            let defined = self.defined(&host);
            if let Some(addresses) = self.overrides.addresses(&text, port) {
                if let Some(Defined { first, .. }) = defined {
                    let object = first.view().object();
                    view.note(format!("--resolve replaces {object} for {host}:{port}")).emit(diagnostics);
                }
                let endpoint = |at: &std::net::SocketAddr| Endpoint {
                    host: EndpointHost::Ip(at.ip()),
                    port: at.port(),
                    weight: 1,
                    priority: 0,
                };
                return Some(addresses.iter().map(endpoint).collect());
            }
            let Some(defined) = defined else {
                // A host that is defined for other namespaces must not be resolved by DNS.
                if let Some(hidden) = self.hidden.get(&text) {
                    view.error(format!(
                        "{} ({}) defines '{host}' and is not exported to us: connections for this destination are \
                         refused",
                        hidden.view().object(),
                        hidden.view().origin()
                    ))
                    .remedy("add the namespace of the gateway's pods to its spec.exportTo")
                    .emit(diagnostics);
                    return None;
                }
                return left_to_dns(view, &host, port, labels, diagnostics);
            };
            let alias = match defined.first {
                Known::Service(Service { external_name, lost: false, .. }) => external_name.as_ref(),
                _ => None,
            };
            let Some((name_view, name)) = alias else {
                return self.listed(view, &host, &defined, port, labels, diagnostics);
            };
            host = self.host(name_view, name, defined.first.namespace(), diagnostics)?;
        }
        view.error("its ExternalName leads in a circle: connections for this destination are refused")
            .emit(diagnostics);
        None
    }

    fn listed(
        &self,
        view: &View<'_>,
        host: &HostPattern,
        defined: &Defined<'s, 'n>,
        port: u16,
        labels: &Labels<'_>,
        diagnostics: &mut Diagnostics,
    ) -> Option<Vec<Endpoint>> {
        let Defined { first, siblings } = defined;
        let object = || format!("{} ({})", first.view().object(), first.view().origin());
        let ports = defined.ports();
        match ports.iter().find(|(number, _)| *number == port) {
            Some((_, true)) => {}
            Some((_, false)) => {
                view.error(format!(
                    "the port {port} of {} is not for TCP: connections for this destination are refused",
                    object()
                ))
                .emit(diagnostics);
                return None;
            }
            None => {
                let ports = ports.iter().map(|(port, _)| port.to_string()).collect::<Vec<_>>().join(", ");
                let mut missing = view.error(format!(
                    "{} has no port {port}: connections for this destination are refused",
                    object()
                ));
                if !ports.is_empty() {
                    missing = missing.expected(format!("one of its ports: {ports}"));
                }
                missing.emit(diagnostics);
                return None;
            }
        }
        let found = match *first {
            Known::Entry(entry) => {
                let others = siblings.iter().filter_map(|other| match other {
                    Known::Entry(other) => Some(*other),
                    Known::Service(_) => None,
                });
                endpoints::of_entries(entry, others, &self.sources.workloads, host, port, labels)
            }
            Known::Service(service) => endpoints::of_service(service, self.sources, port, labels),
        };
        match found {
            Found::Endpoints(endpoints) if !endpoints.is_empty() => Some(endpoints),
            Found::Endpoints(_) => {
                let what = if labels.is_empty() {
                    "no endpoint that can be used".to_owned()
                } else {
                    format!("no endpoint with the labels {labels} of the subset")
                };
                view.error(format!("{} has {what}: connections for this destination are refused", object()))
                    .emit(diagnostics);
                None
            }
            Found::Unlabelled => {
                view.error(format!(
                    "the files do not say which endpoints of {} have the labels {labels} of the subset: \
                     connections for this destination are refused",
                    object()
                ))
                .remedy("list the endpoints with their labels in a ServiceEntry")
                .emit(diagnostics);
                None
            }
            Found::Refused => {
                view.error(format!(
                    "{} cannot be served: connections for this destination are refused",
                    object()
                ))
                .emit(diagnostics);
                None
            }
        }
    }
}

fn left_to_dns(
    view: &View<'_>,
    host: &HostPattern,
    port: u16,
    labels: &Labels<'_>,
    diagnostics: &mut Diagnostics,
) -> Option<Vec<Endpoint>> {
    if !labels.is_empty() {
        view.error(format!(
            "in no ServiceEntry and no Service, so that nothing says which of its endpoints have the labels \
             {labels} of the subset: connections for this destination are refused"
        ))
        .remedy("list the endpoints with their labels in a ServiceEntry")
        .emit(diagnostics);
        return None;
    }
    let HostPattern::Exact(name) = host else {
        view.error(format!("'{host}' is no single host: connections for this destination are refused"))
            .emit(diagnostics);
        return None;
    };
    let message =
        format!("in no ServiceEntry and no Service: left to DNS (or to --resolve {host}:{port}:ADDRESS)");
    view.note(message).emit(diagnostics);
    Some(vec![Endpoint {
        host: EndpointHost::Dns(HostName::from(name.clone())),
        port,
        weight: 1,
        priority: 0,
    }])
}

/// Reports objects whose definition of a host has no effect.
fn tell_rivals(host: &str, known: &[Known<'_, '_>], diagnostics: &mut Diagnostics) {
    let Some((first, others)) = known.split_first() else { return };
    for other in others {
        let (one, view) = (first.view(), other.view());
        let taken = format!("'{host}' is taken from {} ({})", one.object(), one.origin());
        if first.namespace() != other.namespace() || matches!(first, Known::Service(_)) {
            view.warn(format!(
                "{taken}: a Service comes before a ServiceEntry, then the oldest, then the first namespace"
            ))
            .remedy("define a host in one namespace, or export it to where it is meant for")
            .emit(diagnostics);
        } else if !first.merges_with(*other) && first.ports() != other.ports() {
            view.warn(format!(
                "{taken}, and has no other ports: those of entries of one host add up only if resolution, labels, \
                 exportTo and workloadSelector are the same"
            ))
            .remedy("list all ports and endpoints of a host in one ServiceEntry")
            .emit(diagnostics);
        }
    }
}
