//! References to Gateways.

use crate::decode::{Diagnostics, View};

/// The Gateway of a reference.
#[derive(Debug, Clone)]
pub(super) struct GatewayRef<'n> {
    pub(super) view: View<'n>,
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
}

impl GatewayRef<'_> {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.name == other.name
    }
}

/// The references other than `mesh`: `name`, `namespace/name`, or `name.namespace` with the suffix of a service name
/// (Istio's `resolveGatewayName`).
pub(super) fn read_gateways<'n>(
    view: &View<'n>,
    own: &'n str,
    diagnostics: &mut Diagnostics,
) -> Vec<GatewayRef<'n>> {
    let expected = "a list of [namespace/]name";
    view.list(expected, diagnostics)
        .into_iter()
        .filter_map(|view| {
            let text = view.text(expected, diagnostics)?;
            let (namespace, name) = match (text.split_once('/'), text.split_once('.')) {
                (None, _) if text == "mesh" => {
                    view.ignored("'mesh' is the sidecars of a mesh, which are not here").emit(diagnostics);
                    return None;
                }
                (Some((".", name)), _) => (own, name),
                (Some((namespace, name)), _) => (namespace, name),
                (None, Some((name, rest))) => (rest.split('.').next().unwrap_or(rest), name),
                (None, None) => (own, text),
            };
            Some(GatewayRef { view, namespace, name })
        })
        .collect()
}
