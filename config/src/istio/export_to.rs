//! `exportTo`: the namespaces that may see an object.
//!
//! The namespaces are those of workloads. For a gateway, the namespace of its own pods counts, which a node does not
//! have. Without `--namespace`, an object that is exported to any namespace is admitted.

use crate::decode::{Diagnostics, View};

/// The visibility of an object for the gateway's workload. If two objects conflict, the lesser value comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Exported {
    /// Within the workload's own namespace only.
    Private,
    /// To the workload's namespace by name.
    ByName,
    /// To all namespaces.
    Public,
}

impl Exported {
    pub(super) fn place(self) -> u8 {
        match self {
            Self::Private => 0,
            Self::ByName => 1,
            Self::Public => 2,
        }
    }
}

/// `exportTo` of an object. `None` in the list is all namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExportTo<'n> {
    own: &'n str,
    to: Vec<Option<&'n str>>,
}

impl<'n> ExportTo<'n> {
    /// Reads the field of an object in `own`: `*`, `.`, `~` or names of namespaces. Without the field it is all
    /// namespaces.
    pub(super) fn read(view: Option<&View<'n>>, own: &'n str, diagnostics: &mut Diagnostics) -> Self {
        let expected = "a list of '.', '*' or names of namespaces";
        let items = view.filter(|view| !view.is_unset()).map(|view| view.list(expected, diagnostics));
        let texts =
            items.map(|items| items.iter().filter_map(|item| item.text(expected, diagnostics)).collect());
        Self::of(texts, own)
    }

    /// Reads the annotation of a `Service`: names separated by commas.
    pub(super) fn of_annotation(text: Option<&'n str>, own: &'n str) -> Self {
        let texts = text.filter(|text| !text.is_empty());
        Self::of(texts.map(|text| text.split(',').map(str::trim).collect()), own)
    }

    fn of(texts: Option<Vec<&'n str>>, own: &'n str) -> Self {
        let to = match texts {
            None => vec![None],
            // Istio's validation refuses `~` beside others. Here it hides the object.
            Some(texts) if texts.contains(&"~") => Vec::new(),
            Some(texts) => texts
                .into_iter()
                .map(|text| match text {
                    "*" => None,
                    "." => Some(own),
                    namespace => Some(namespace),
                })
                .collect(),
        };
        Self { own, to }
    }

    /// The visibility for a workload in `namespace`, or for a node without one.
    pub(super) fn seen_from(&self, namespace: Option<&str>) -> Option<Exported> {
        if self.to.iter().any(Option::is_none) {
            return Some(Exported::Public);
        }
        match namespace {
            None => (!self.to.is_empty()).then_some(Exported::ByName),
            Some(namespace) if self.to.contains(&Some(namespace)) => {
                Some(if namespace == self.own { Exported::Private } else { Exported::ByName })
            }
            Some(_) => None,
        }
    }

    /// Whether no other namespace sees the object.
    pub(super) fn is_private(&self) -> bool {
        self.to.iter().all(|to| *to == Some(self.own))
    }

    /// Reports the effect on an object that some namespaces do not see.
    pub(super) fn tell(
        &self,
        view: Option<&View<'_>>,
        namespace: Option<&str>,
        diagnostics: &mut Diagnostics,
    ) {
        let Some(view) = view else { return };
        match (self.seen_from(namespace), namespace) {
            (Some(Exported::Public), _) | (Some(_), Some(_)) => {}
            (Some(_), None) => view
                .note("a node is in no namespace: the object is taken")
                .remedy(
                    "name the namespace of the gateway's pods with --namespace to hold exportTo against it",
                )
                .emit(diagnostics),
            (None, None) => {
                view.ignored("exported to no namespace: the object is not taken").emit(diagnostics);
            }
            (None, Some(namespace)) => view
                .ignored(format!(
                    "not exported to the namespace '{namespace}' (--namespace): the object is not taken"
                ))
                .emit(diagnostics),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&'static str]) -> ExportTo<'static> {
        ExportTo::of(Some(texts.to_vec()), "own")
    }

    #[test]
    fn the_namespace_of_the_workload_decides() {
        for (export, namespace, seen) in [
            (ExportTo::of(None, "own"), None, Some(Exported::Public)),
            (of(&["*"]), Some("other"), Some(Exported::Public)),
            (of(&["."]), Some("own"), Some(Exported::Private)),
            (of(&["own"]), Some("own"), Some(Exported::Private)),
            (of(&["."]), Some("other"), None),
            (of(&["a", "b"]), Some("b"), Some(Exported::ByName)),
            (of(&["a", "b"]), Some("own"), None),
            (of(&["a"]), None, Some(Exported::ByName)),
            (of(&["."]), None, Some(Exported::ByName)),
            (of(&["~"]), None, None),
            (of(&["~"]), Some("own"), None),
        ] {
            assert_eq!(export.seen_from(namespace), seen, "{export:?} from {namespace:?}");
        }
    }
}
