//! Istio objects of `networking.istio.io` (v1alpha3, v1beta1, v1), and the Kubernetes `Service` objects that they
//! name.
//!
//! Supported fields behave as in Istio. Unsupported ones are reported, with the object, the field and a remedy. An
//! error invalidates the smallest possible part, and the rest is served. Names whose route is lost in this way are
//! refused. They never fall back to a wider route that was not meant for them. `docs/istio.md` lists every field, the
//! rules of precedence, and the differences from Istio.
//!
//! | Object | Field | Here |
//! |---|---|---|
//! | `Gateway` | `servers[]` with `tls.mode: PASSTHROUGH`, `SIMPLE`, `MUTUAL`, `OPTIONAL_MUTUAL`, or HTTP | a listener for each port and `bind`; servers of several Gateways share it |
//! | | `servers[].bind` | one address; without it `0.0.0.0` and `[::]` |
//! | | `servers[].hosts[]` | `[namespace/]name`; narrows what attached routes serve |
//! | | other modes and protocols | rejected, their names are refused; the other servers are served |
//! | | `selector` | held against `--selector` |
//! | `VirtualService` | `gateways[]`, `exportTo[]` | as in Istio, with `--namespace`; `mesh` has no meaning here |
//! | | `tls[].match[]` | `port`, `sniHosts` (within `hosts`), `gateways`; `destinationSubnets` is rejected |
//! | | `tls[].route[]` | `weight`, `destination.host`, `.port.number` and `.subset` |
//! | | `tcp[]` | what is inside of TLS that ends on a `TLS` server; what has no other route, where a TCP server shares the port of a TLS server |
//! | | `http[]` | on servers of HTTP, and of HTTPS where TLS ends; what cannot be served is answered with 503 |
//! | `ServiceEntry` | `resolution: STATIC`, `DNS` | endpoints, or `WorkloadEntry` objects that it selects, else the host by DNS |
//! | `Service` | `ports`, `type: ExternalName` | endpoints of `EndpointSlice` or `Endpoints` objects, else by DNS |
//! | `DestinationRule` | `subsets`, `trafficPolicy.tls` | labels of endpoints; TLS towards them where the client's has ended; other policies that change what is sent are warned of |
//! | `Secret` | `data`, `stringData` | certificates and keys that servers and rules name |
//! | `IstioOperator`, Helm values | `meshConfig.accessLogFile`, ports of the ingress gateway | the access log and the status port |
//!
//! A destination is searched in `--resolve`, then among these objects, and otherwise resolved by DNS. A host without
//! a dot is a service of the `VirtualService`'s namespace.

use std::collections::HashMap;

use self::{
    attach::Attachment,
    gateway::Gateway,
    object::{Kind, Object},
    operator::Installation,
    policy::Policy,
    registry::Registry,
    sources::Sources,
    terminate::Ends,
    virtual_service::VirtualService,
};
use crate::{
    builder::{LoadedSecret, ModelBuilder},
    decode::{Diagnostics, View},
    model::{Origin, Policies, settings::Settings},
    options::Options,
    overrides::Overrides,
    report::ObjectRef,
    report::Severity,
};

mod attach;
mod balancing;
mod client_tls;
mod destination;
mod endpoints;
mod export_to;
mod gateway;
mod gateway_ref;
mod headers;
mod host;
mod http;
mod http_match;
mod labels;
mod listeners;
mod object;
mod operator;
mod outlier;
mod policy;
mod proxy_protocol;
mod registry;
mod secret;
mod server_tls;
mod service;
mod service_entry;
mod sources;
mod subset;
mod terminate;
mod virtual_service;
mod workload_entry;

pub(crate) use object::is_object;

/// All Istio objects.
#[derive(Debug)]
pub(crate) struct Istio<'n, 'o> {
    options: &'o Options,
    gateways: Vec<Gateway<'n>>,
    virtual_services: Vec<VirtualService<'n>>,
    sources: Sources<'n>,
    policies: Vec<Policy<'n>>,
    secrets: Vec<LoadedSecret>,
    installations: Vec<Installation<'n>>,
    seen: Seen,
}

/// Every object by kind, namespace and name, with its location.
type Seen = HashMap<ObjectRef, Origin>;

/// The kind of the objects that may come last, in [`Routes::add`].
pub(crate) const ROUTES: &str = "VirtualService";

impl<'n, 'o> Istio<'n, 'o> {
    pub(crate) fn new(options: &'o Options) -> Self {
        Self {
            options,
            gateways: Vec::new(),
            virtual_services: Vec::new(),
            sources: Sources::default(),
            policies: Vec::new(),
            secrets: Vec::new(),
            installations: Vec::new(),
            seen: HashMap::new(),
        }
    }

    /// Reads a document with `apiVersion` or `kind`. A `List` is read item by item.
    pub(crate) fn read(&mut self, document: &View<'n>, diagnostics: &mut Diagnostics) {
        let kind = document.peek_text("kind").unwrap_or_default();
        if kind.ends_with("List")
            && let Some(items) = document.peek("items")
        {
            for item in items.list("a list of objects", diagnostics) {
                self.read(&item, diagnostics);
            }
            return;
        }
        if operator::is_operator(document) {
            self.installations.extend(operator::read(document, diagnostics));
            return;
        }
        let Some(object) = admit(document, &mut self.seen, diagnostics) else { return };
        if object.lost {
            // The errors are already reported. The object's names are recorded, to be refused.
            self.take(object, &mut Diagnostics::default());
        } else {
            self.take(object, diagnostics);
        }
    }

    /// Reads a document without a kind, if it has the values of one of Istio's Helm charts.
    pub(crate) fn read_values(&mut self, document: &View<'n>, diagnostics: &mut Diagnostics) -> bool {
        let is_ours = operator::is_values(document);
        if is_ours {
            self.installations.push(operator::read_values(document, diagnostics));
        }
        is_ours
    }

    /// Adds the settings of Istio's installation. `written` returns the location of a setting in a native document,
    /// which takes precedence.
    pub(crate) fn add_settings(
        &self,
        settings: &mut Settings,
        written: impl Fn(&str) -> Option<Origin>,
        diagnostics: &mut Diagnostics,
    ) {
        operator::set(&self.installations, &self.sources.services, settings, written, diagnostics);
    }

    fn take(&mut self, object: Object<'n>, diagnostics: &mut Diagnostics) {
        let namespace = self.options.namespace.as_deref();
        let sources = &mut self.sources;
        match object.kind {
            Kind::Gateway => self.gateways.extend(gateway::read(object, namespace, diagnostics)),
            Kind::VirtualService => {
                self.virtual_services.extend(virtual_service::read(object, self.options, diagnostics));
            }
            Kind::ServiceEntry => sources.entries.extend(service_entry::read(object, namespace, diagnostics)),
            Kind::DestinationRule => sources.rules.extend(subset::read(object, diagnostics)),
            Kind::WorkloadEntry => sources.workloads.push(workload_entry::read(object, diagnostics)),
            Kind::Service => sources.services.push(service::read(object, diagnostics)),
            Kind::Endpoints => sources.endpoints.extend(service::read_endpoints(object, diagnostics)),
            Kind::EndpointSlice => sources.slices.extend(service::read_slice(object, diagnostics)),
            Kind::Secret => self.secrets.extend(secret::read(object)),
            Kind::Policy => self.policies.push(policy::read(&object)),
        }
    }

    /// Adds one listener for each port and address of a served server.
    pub(crate) fn add_listeners(
        &mut self,
        builder: &mut ModelBuilder,
        policies: &Policies,
        diagnostics: &mut Diagnostics,
    ) {
        builder.secrets.append(&mut self.secrets);
        listeners::add(&mut self.gateways, builder, policies, self.options, diagnostics);
        let Self { installations, sources, gateways, .. } = &*self;
        operator::compare(installations, &sources.services, gateways, self.options, diagnostics);
        policy::tell(&self.policies, &self.gateways, self.options.namespace.as_deref(), diagnostics);
    }

    /// Begins to attach routes. All listeners exist by now.
    pub(crate) fn routes<'s, 'r>(
        &'s mut self,
        overrides: &'r mut Overrides<'o>,
        diagnostics: &mut Diagnostics,
    ) -> Routes<'s, 'n, 'r, 'o> {
        let seen = std::mem::take(&mut self.seen);
        let istio = &*self;
        let registry = Registry::new(&istio.sources, istio.options, overrides, diagnostics);
        Routes { istio, registry, ends: Ends::new(&istio.gateways), seen }
    }
}

/// The attachment of routes.
pub(crate) struct Routes<'s, 'n, 'r, 'o> {
    istio: &'s Istio<'n, 'o>,
    registry: Registry<'s, 'n, 'r, 'o>,
    ends: Ends,
    seen: Seen,
}

impl Routes<'_, '_, '_, '_> {
    /// Attaches all routes that are already read.
    pub(crate) fn add_known(&mut self, builder: &mut ModelBuilder, diagnostics: &mut Diagnostics) {
        for service in &self.istio.virtual_services {
            self.attach(service, builder, diagnostics);
        }
    }

    /// Reads and attaches one more `VirtualService`, and keeps none of its memory. Returns false if the document is
    /// of another kind.
    pub(crate) fn add(
        &mut self,
        document: &View<'_>,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) -> bool {
        if document.peek_text("kind") != Some(ROUTES) {
            return false;
        }
        let Some(object) = admit(document, &mut self.seen, diagnostics) else { return true };
        if object.kind == Kind::VirtualService {
            let mut unheard = Diagnostics::default();
            let said = if object.lost { &mut unheard } else { &mut *diagnostics };
            if let Some(service) = virtual_service::read(object, self.istio.options, said) {
                self.attach(&service, builder, diagnostics);
            }
        }
        true
    }

    fn attach(
        &mut self,
        service: &VirtualService<'_>,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        if let Some(attachment) =
            Attachment::of(service, &self.istio.gateways, self.istio.options, diagnostics)
        {
            attachment.add(&mut self.registry, &mut self.ends, builder, diagnostics);
        }
    }

    /// Adds and reports what depends on all routes together.
    pub(crate) fn finish(self, builder: &mut ModelBuilder, diagnostics: &mut Diagnostics) {
        self.ends.finish(&self.istio.gateways, self.istio.options, builder, diagnostics);
        self.registry.finish(diagnostics);
    }
}

/// Reads the metadata of an object. The object is lost if its notation is wrong or it is a duplicate.
fn admit<'d>(document: &View<'d>, seen: &mut Seen, diagnostics: &mut Diagnostics) -> Option<Object<'d>> {
    let mut object = object::read(document, diagnostics)?;
    object.lost |= reject_problems(&object, diagnostics);
    if !object.name.is_empty() {
        if let Some(first) = seen.get(&object.view.object()) {
            object
                .view
                .error(format!(
                    "there is another object of this kind and name ({first}): this one is not served"
                ))
                .remedy("keep one of the two, or give each a name or namespace of its own")
                .emit(diagnostics);
            object.lost = true;
        } else {
            seen.insert(object.view.object(), object.view.origin());
        }
    }
    Some(object)
}

/// Returns whether there were any.
fn reject_problems(object: &Object<'_>, diagnostics: &mut Diagnostics) -> bool {
    let subject = object.subject();
    let mut any = false;
    for problem in object.view.problems() {
        diagnostics.push(subject.problem(problem, Severity::Rejected));
        any = true;
    }
    any
}
