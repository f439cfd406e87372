//! `DestinationRule`: subsets of a service, and policies that are not applied.

use std::sync::Arc;

use super::{balancing, export_to::ExportTo, labels::Labels, object::Object, outlier, proxy_protocol};
use crate::{
    decode::{Diagnostics, View},
    model::rank::Seniority,
    name::HostPattern,
};

/// The namespace of objects for the whole mesh, by Istio's default.
const ROOT: &str = "istio-system";

#[derive(Debug)]
pub(super) struct DestinationRule<'n> {
    pub(super) view: View<'n>,
    pub(super) spec: View<'n>,
    pub(super) namespace: &'n str,
    pub(super) seniority: Arc<Seniority>,
    pub(super) export_to: ExportTo<'n>,
    /// The complete name, in lower case.
    pub(super) host: HostPattern,
    /// Whether it is for some workloads of its namespace only.
    pub(super) for_workloads: bool,
    pub(super) subsets: Vec<Subset<'n>>,
    pub(super) lost: bool,
}

#[derive(Debug)]
pub(super) struct Subset<'n> {
    pub(super) name: &'n str,
    pub(super) labels: Labels<'n>,
    /// Whether it has a `trafficPolicy` of its own.
    pub(super) has_policy: bool,
}

pub(super) fn read<'n>(object: Object<'n>, diagnostics: &mut Diagnostics) -> Option<DestinationRule<'n>> {
    let Object { namespace, view, spec, seniority, lost, .. } = object;
    let mut fields = spec.fields("the spec of a DestinationRule", diagnostics)?;
    let host = fields.require("host", "the name of a service", diagnostics);
    let subsets = fields.take_set("subsets");
    let export_to = fields.take_set("exportTo");
    let for_workloads = fields.take("workloadSelector").is_some();
    fields.known(&["trafficPolicy"]);
    fields.finish(diagnostics);
    let host_view = host?;
    let host = host_view.text("the name of a service", diagnostics)?;
    let host = match super::host::pattern(host, namespace) {
        Ok(host) => host,
        Err(why) => {
            host_view.error(format!("'{host}': {why}: its subsets are not there")).emit(diagnostics);
            return None;
        }
    };
    let subsets = subsets
        .map(|view| view.list("a list of subsets", diagnostics))
        .unwrap_or_default()
        .iter()
        .filter_map(|view| {
            let mut fields = view.fields("a subset: {name, labels}", diagnostics)?;
            let name =
                fields.require("name", "the name of the subset", diagnostics)?.text("a name", diagnostics)?;
            let labels =
                fields.take_set("labels").map(|view| Labels::read(&view, diagnostics)).unwrap_or_default();
            let has_policy = fields.take_set("trafficPolicy").is_some();
            fields.finish(diagnostics);
            Some(Subset { name, labels, has_policy })
        })
        .collect();
    let export_to = ExportTo::read(export_to.as_ref(), namespace, diagnostics);
    Some(DestinationRule { view, spec, namespace, seniority, export_to, host, for_workloads, subsets, lost })
}

/// The rules for a host of a service in `owner`, as visible to the gateway's workload in `namespace`.
///
/// The rules are those of the first namespace that has any for the host: the workload's own, the service's, then the
/// root namespace. Within one namespace, a rule for the exact host hides rules for wildcards (Istio's
/// `destinationRule`). Several rules of one host are merged. A host without a namespace, which only DNS knows, has
/// the rules of all namespaces.
pub(super) fn rules_for<'r, 'n>(
    rules: &'r [DestinationRule<'n>],
    host: &HostPattern,
    owner: Option<&str>,
    namespace: Option<&str>,
) -> Vec<&'r DestinationRule<'n>> {
    let own = |rule: &&DestinationRule<'_>| match namespace {
        // Of the root namespace, only private rules come before a service's own rules.
        Some(ROOT) => rule.namespace == ROOT && rule.export_to.is_private(),
        Some(namespace) => {
            rule.namespace == namespace && rule.export_to.seen_from(Some(rule.namespace)).is_some()
        }
        None => false,
    };
    let exported = |rule: &&DestinationRule<'_>, of: &str| {
        rule.namespace == of
            && match namespace {
                Some(namespace) => {
                    !rule.export_to.is_private() && rule.export_to.seen_from(Some(namespace)).is_some()
                }
                None => rule.export_to.seen_from(None).is_some(),
            }
    };
    let candidates = |wanted: &dyn Fn(&&DestinationRule<'_>) -> bool| {
        let mut found: Vec<&'r DestinationRule<'n>> = rules
            .iter()
            .filter(|rule| !rule.for_workloads && host.is_subset_of(&rule.host) && wanted(rule))
            .collect();
        let best = found.iter().map(|rule| rule.host.specificity()).max();
        found.retain(|rule| Some(rule.host.specificity()) == best);
        found.sort_by(|a, b| a.seniority.cmp(&b.seniority));
        found
    };
    let mut found = candidates(&own);
    if let (true, Some(owner)) = (found.is_empty(), owner) {
        found = candidates(&|rule| exported(rule, owner));
    }
    if found.is_empty() {
        found = candidates(&|rule| exported(rule, ROOT));
    }
    if (found.is_empty(), owner) == (true, None) {
        // A DNS name belongs to no namespace. The TLS settings of a rule for it must not be lost.
        found = candidates(&|rule| rule.export_to.seen_from(namespace).is_some());
    }
    found
}

/// Warns of the unsupported fields of a rule that would change the traffic.
///
/// Findings that do not depend on the form of the bytes are reported the `first` time only.
pub(super) fn tell_policies(
    rule: &DestinationRule<'_>,
    ended: bool,
    first: bool,
    diagnostics: &mut Diagnostics,
) {
    let subsets = rule.spec.peek("subsets").map(|view| view.list("a list", &mut Diagnostics::default()));
    let policies = subsets
        .unwrap_or_default()
        .into_iter()
        .chain([rule.spec.clone()])
        .filter_map(|view| view.peek("trafficPolicy"));
    for policy in policies {
        let ports =
            policy.peek("portLevelSettings").map(|view| view.list("a list", &mut Diagnostics::default()));
        let ports = ports.unwrap_or_default();
        // A port has no such field in Istio.
        for misplaced in ports.iter().filter_map(|port| port.peek("proxyProtocol")).filter(|_| first) {
            misplaced
                .warn("not applied: settings of one port have no proxyProtocol, as in Istio")
                .remedy("write it in the trafficPolicy itself, or in that of a subset")
                .emit(diagnostics);
        }
        if first {
            proxy_protocol::tell(&policy, diagnostics);
        }
        for policy in ports.iter().chain([&policy]) {
            tell_policy(policy, ended, diagnostics);
            if first {
                balancing::tell(policy, diagnostics);
                outlier::tell(policy, diagnostics);
            }
        }
    }
}

fn tell_policy(policy: &View<'_>, ended: bool, diagnostics: &mut Diagnostics) {
    let originates = policy
        .peek("tls")
        .filter(|tls| !tls.is_unset() && !matches!(tls.peek_text("mode"), Some("DISABLE") | None));
    if let Some(tls) = originates.filter(|_| !ended) {
        tls.warn("not applied to routes that pass TLS through: the client's own TLS connection goes to the destination as it is")
            .remedy("let the destination take the client's TLS, or keep this route in Istio")
            .emit(diagnostics);
    }
    if let Some(tunnel) = policy.peek("tunnel").filter(|view| !view.is_unset()) {
        tunnel.warn("not applied: connections are not tunnelled").emit(diagnostics);
    }
}
