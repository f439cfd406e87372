//! Objects that change access or traffic, and are not applied.

use super::{gateway::Gateway, labels::Labels, object::Object};
use crate::decode::{Diagnostics, View};

/// The namespace of objects for the whole mesh, by Istio's default.
const ROOT: &str = "istio-system";

#[derive(Debug)]
pub(super) struct Policy<'n> {
    namespace: &'n str,
    /// The view of the spec.
    spec: View<'n>,
    view: View<'n>,
    selector: Option<(View<'n>, Labels<'n>)>,
}

pub(super) fn read<'n>(object: &Object<'n>) -> Policy<'n> {
    let Object { namespace, view, spec, .. } = object;
    // AuthorizationPolicy and WasmPlugin have `selector.matchLabels`, EnvoyFilter `workloadSelector.labels`.
    let selector =
        [("selector", "matchLabels"), ("workloadSelector", "labels")].into_iter().find_map(|(key, inner)| {
            let labels = spec.peek(key)?.peek(inner).filter(|view| !view.is_unset())?;
            Some((labels.clone(), Labels::read(&labels, &mut Diagnostics::default())))
        });
    Policy { namespace, spec: spec.clone(), view: view.clone(), selector }
}

/// Warns of objects that may be for the workload of a Gateway. The others are for other workloads.
pub(super) fn tell(
    policies: &[Policy<'_>],
    gateways: &[Gateway<'_>],
    workload: Option<&str>,
    diagnostics: &mut Diagnostics,
) {
    for Policy { namespace, spec, view, selector } in policies {
        let elsewhere = workload.is_some_and(|workload| *namespace != workload && *namespace != ROOT);
        let other = selector.as_ref().is_some_and(|(_, wanted)| {
            !gateways.is_empty()
                && gateways.iter().all(|gateway| {
                    gateway.selector.as_ref().is_some_and(|(_, labels)| !wanted.may_select(labels))
                })
        });
        if elsewhere || other {
            view.ignored("for other workloads than the gateway's").emit(diagnostics);
            continue;
        }
        let field = ["rules", "configPatches", "action"].into_iter().find_map(|key| spec.peek(key));
        field
            .unwrap_or_else(|| spec.clone())
            .warn("not applied: what it says about who may connect, or what is sent, does not hold here")
            .remedy("enforce it elsewhere (a packet filter, the backend), or delete it from these files")
            .emit(diagnostics);
    }
}
