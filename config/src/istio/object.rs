//! What all Kubernetes objects have in common.

use std::{rc::Rc, sync::Arc};

use crate::{
    decode::{Sink, Subject, View},
    report::Severity,
    table::Rank,
};

const GROUP: &str = "networking.istio.io";
const VERSIONS: [&str; 3] = ["v1alpha3", "v1beta1", "v1"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gateway,
    VirtualService,
    ServiceEntry,
}

/// An object of a kind that we translate.
#[derive(Debug)]
pub(super) struct Object<'n> {
    pub(super) kind: Kind,
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
    /// Of the whole object.
    pub(super) view: View<'n>,
    pub(super) spec: View<'n>,
    pub(super) rank: Arc<Rank>,
}

impl Object<'_> {
    pub(super) fn subject(&self) -> Rc<Subject> {
        Subject::foreign(self.view.file(), self.view.object().to_owned())
    }
}

/// Whether a document is for us to read; all others are of the native format.
pub(crate) fn is_object(document: &View<'_>) -> bool {
    document.peek("apiVersion").is_some() || document.peek("kind").is_some()
}

/// Reads what surrounds the spec; reports objects that we do not translate.
pub(super) fn read<'n>(document: &View<'n>, sink: &mut Sink) -> Option<Object<'n>> {
    let kind = document.peek_text("kind").unwrap_or_default();
    let version = document.peek_text("apiVersion").unwrap_or_default();
    let metadata = document.peek("metadata");
    let named = |key| metadata.as_ref().and_then(|metadata| metadata.peek_text(key));
    let namespace = named("namespace").filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let name = named("name").unwrap_or_default();

    let what = if kind.is_empty() { "object" } else { kind };
    let label = if name.is_empty() { what.to_owned() } else { format!("{what} {namespace}/{name}") };
    let view = document.with_subject(Subject::foreign(document.file(), label));

    let kind = kind_of(&view, kind, version, sink)?;
    let mut fields = view.fields("an object", sink)?;
    fields.known(&["apiVersion", "kind", "status"]);
    let created = fields.require("metadata", "{name, namespace}", sink).and_then(|metadata| {
        let mut fields = metadata.fields("{name, namespace}", sink)?;
        fields.require("name", "the name of the object", sink);
        fields.take("namespace");
        fields.known(&[
            "annotations",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "finalizers",
            "generateName",
            "generation",
            "labels",
            "managedFields",
            "ownerReferences",
            "resourceVersion",
            "selfLink",
            "uid",
        ]);
        let created = fields.take("creationTimestamp").and_then(|view| timestamp(&view, sink));
        fields.finish(sink);
        created
    });
    let spec = fields.require("spec", "the spec of the object", sink);
    fields.finish(sink);
    let spec = spec?;
    if name.is_empty() {
        return None;
    }
    let rank = Arc::new(Rank { created, object: format!("{namespace}/{name}").into() });
    Some(Object { kind, namespace, name, view, spec, rank })
}

fn kind_of(view: &View<'_>, kind: &str, version: &str, sink: &mut Sink) -> Option<Kind> {
    let Some((GROUP, version)) = version.split_once('/') else {
        let because = match kind {
            "" => "an object without a kind",
            "IstioOperator" => "how Istio itself is installed has no meaning here",
            "Service" | "Endpoints" | "EndpointSlice" => {
                "destinations are found through ServiceEntry, --resolve or DNS"
            }
            "Gateway" | "TLSRoute" => "only the Istio kinds of networking.istio.io are translated",
            _ => "not a kind that routes TLS connections",
        };
        view.say(Severity::Ignored, because).to(sink);
        return None;
    };
    let kind = match kind {
        "Gateway" => Kind::Gateway,
        "VirtualService" => Kind::VirtualService,
        "ServiceEntry" => Kind::ServiceEntry,
        "DestinationRule" => {
            let because = "its traffic policies and subsets are not implemented";
            view.say(Severity::Ignored, because).to(sink);
            return None;
        }
        other => {
            let mut found = view.say(Severity::Ignored, "not a kind that is translated");
            found.remedy = sink
                .closest(other, ["Gateway", "VirtualService", "ServiceEntry"].into_iter())
                .map(|near| format!("did you mean '{near}'?"));
            found.to(sink);
            return None;
        }
    };
    if VERSIONS.contains(&version) {
        return Some(kind);
    }
    view.peek("apiVersion")
        .unwrap_or_else(|| view.clone())
        .bad(format!("the version '{version}' is not known"))
        .expected(VERSIONS.map(|version| format!("{GROUP}/{version}")).join(", "))
        .to(sink);
    None
}

/// RFC 3339 in UTC to the second is what Kubernetes writes, and sorts as text.
fn timestamp(view: &View<'_>, sink: &mut Sink) -> Option<Arc<str>> {
    let expected = "a time such as 2024-05-01T12:00:00Z";
    let text = view.text(expected, sink)?;
    let shape = b"0000-00-00T00:00:00Z";
    let fits = text.len() == shape.len()
        && text.bytes().zip(shape).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            _ => byte == *shape,
        });
    if !fits {
        view.warn(format!(
            "'{text}' is not in the form that Kubernetes writes; the object counts as the youngest"
        ))
        .expected(expected)
        .to(sink);
        return None;
    }
    Some(text.into())
}

/// Which namespaces may see an object; `None` in the list is all of them.
#[derive(Debug, Default)]
pub(super) struct ExportTo<'n>(Vec<Option<&'n str>>);

impl<'n> ExportTo<'n> {
    /// `exportTo` of an object in `own`: `*`, `.`, `~` or names of namespaces; all if there is none.
    pub(super) fn read(view: Option<View<'n>>, own: &'n str, sink: &mut Sink) -> Self {
        let Some(list) = view else { return Self(vec![None]) };
        let expected = "a list of '.', '*' or names of namespaces";
        let items = list.list(expected, sink);
        if items.is_empty() {
            return Self(vec![None]);
        }
        Self(
            items
                .iter()
                .filter_map(|item| match item.text(expected, sink)? {
                    "*" => Some(None),
                    "." => Some(Some(own)),
                    "~" => None,
                    namespace => Some(Some(namespace)),
                })
                .collect(),
        )
    }

    pub(super) fn admits(&self, namespace: &str) -> bool {
        self.0.iter().any(|one| one.is_none_or(|one| one == namespace))
    }
}
