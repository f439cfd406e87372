//! The common part of all Kubernetes objects.

use std::{rc::Rc, sync::Arc};

use super::labels::Labels;
use crate::{
    decode::{Diagnostics, Subject, View, placeholder},
    model::rank::Seniority,
    report::ObjectRef,
};

const GROUP: &str = "networking.istio.io";
const VERSIONS: [&str; 3] = ["v1alpha3", "v1beta1", "v1"];

/// The supported kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Gateway,
    VirtualService,
    ServiceEntry,
    DestinationRule,
    WorkloadEntry,
    Service,
    Endpoints,
    EndpointSlice,
    Secret,
    /// A kind that changes access or traffic, and is not applied.
    Policy,
}

/// An object of a supported kind.
#[derive(Debug)]
pub(super) struct Object<'n> {
    pub(super) kind: Kind,
    pub(super) namespace: &'n str,
    pub(super) name: &'n str,
    /// The view of the whole object.
    pub(super) view: View<'n>,
    /// The spec. For kinds without a spec, the whole object.
    pub(super) spec: View<'n>,
    pub(super) seniority: Arc<Seniority>,
    /// Whether it is invalid as a whole, and an error is reported: its names are refused.
    pub(super) lost: bool,
}

impl<'n> Object<'n> {
    pub(super) fn subject(&self) -> Rc<Subject> {
        Subject::foreign(self.view.file(), self.view.object())
    }

    /// `metadata.labels`.
    pub(super) fn labels(&self) -> Labels<'n> {
        let labels = self.view.peek("metadata").and_then(|metadata| metadata.peek("labels"));
        labels.map(|view| Labels::read(&view, &mut Diagnostics::default())).unwrap_or_default()
    }

    /// The text of `metadata.annotations.KEY`.
    pub(super) fn annotation(&self, key: &str) -> Option<View<'n>> {
        self.view.peek("metadata")?.peek("annotations")?.peek(key)
    }
}

/// Whether a document is a Kubernetes object. All other documents are of the native format.
pub(crate) fn is_object(document: &View<'_>) -> bool {
    document.peek("apiVersion").is_some() || document.peek("kind").is_some()
}

/// Reads the metadata around the spec. Reports unsupported objects.
pub(super) fn read<'n>(document: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Object<'n>> {
    let kind = document.peek_text("kind").unwrap_or_default();
    let version = document.peek_text("apiVersion").unwrap_or_default();
    let metadata = document.peek("metadata");
    let named = |key| metadata.as_ref().and_then(|metadata| metadata.peek_text(key));
    let namespace = named("namespace").filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let name = named("name").unwrap_or_default();

    let what = if kind.is_empty() { "object" } else { kind };
    let object = ObjectRef {
        group: version.split_once('/').map_or("", |(group, _)| group).into(),
        kind: what.into(),
        namespace: namespace.into(),
        name: name.into(),
    };
    let view = document.with_subject(Subject::foreign(document.file(), object));

    let (kind, mut lost) = kind_of(&view, kind, version, diagnostics)?;
    let mut fields = view.fields("an object", diagnostics)?;
    fields.known(&["apiVersion", "kind", "status"]);
    let mut created = None;
    match fields.require("metadata", "{name, namespace}", diagnostics) {
        None => lost = true,
        Some(metadata) => {
            if let Some(mut fields) = metadata.fields("{name, namespace}", diagnostics) {
                lost |= !is_name(fields.require("name", NAME, diagnostics).as_ref(), NAME, diagnostics);
                if let Some(namespace) = fields.take("namespace") {
                    lost |= !is_name(Some(&namespace), "the name of a namespace", diagnostics);
                }
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
                created = fields.take("creationTimestamp").and_then(|view| timestamp(&view, diagnostics));
                fields.finish(diagnostics);
            } else {
                lost = true;
            }
        }
    }
    let spec = if matches!(kind, Kind::Endpoints | Kind::EndpointSlice | Kind::Secret) {
        view.clone()
    } else {
        let spec = fields.require("spec", "the spec of the object", diagnostics);
        if kind != Kind::Service {
            fields.finish(diagnostics);
        }
        spec?
    };
    let seniority = Arc::new(Seniority { created, name: name.into(), namespace: namespace.into() });
    Some(Object { kind, namespace, name, view, spec, seniority, lost })
}

const NAME: &str = "the name of the object";

/// Whether it is a valid name of an object or a namespace. Reports an error if not.
fn is_name(view: Option<&View<'_>>, expected: &str, diagnostics: &mut Diagnostics) -> bool {
    let Some(view) = view else { return false };
    let Some(name) = view.text(expected, diagnostics) else { return false };
    if placeholder(name).is_some() {
        view.error(format!("'{name}' is no name: the object is not served"))
            .expected(expected)
            .or_placeholder(name)
            .emit(diagnostics);
        return false;
    }
    true
}

/// The kind, and whether the object's version is unsupported.
fn kind_of(
    view: &View<'_>,
    kind: &str,
    version: &str,
    diagnostics: &mut Diagnostics,
) -> Option<(Kind, bool)> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    match (group, kind) {
        ("", "Service") => return Some((Kind::Service, false)),
        ("", "Endpoints") => return Some((Kind::Endpoints, false)),
        ("", "Secret") => return Some((Kind::Secret, false)),
        ("discovery.k8s.io", "EndpointSlice") => return Some((Kind::EndpointSlice, false)),
        ("security.istio.io", "AuthorizationPolicy")
        | (GROUP, "EnvoyFilter")
        | ("extensions.istio.io", "WasmPlugin" | "TrafficExtension") => return Some((Kind::Policy, false)),
        (GROUP, _) => {}
        _ => {
            let because = match kind {
                "" => "an object without a kind",
                "Gateway" | "TLSRoute" => "only the Istio kinds of networking.istio.io are translated",
                _ => "not a kind that routes TLS connections",
            };
            view.ignored(because).emit(diagnostics);
            return None;
        }
    }
    let kind = match kind {
        "Gateway" => Kind::Gateway,
        "VirtualService" => Kind::VirtualService,
        "ServiceEntry" => Kind::ServiceEntry,
        "DestinationRule" => Kind::DestinationRule,
        "WorkloadEntry" => Kind::WorkloadEntry,
        other => {
            let kinds = ["Gateway", "VirtualService", "ServiceEntry", "DestinationRule", "WorkloadEntry"];
            let mut found = view.ignored("not a kind that is translated");
            found.remedy =
                diagnostics.closest(other, kinds.into_iter()).map(|near| format!("did you mean '{near}'?"));
            found.emit(diagnostics);
            return None;
        }
    };
    let known = VERSIONS.contains(&version);
    if !known {
        view.peek("apiVersion")
            .unwrap_or_else(|| view.clone())
            .error(format!("the version '{version}' is not known: the object is not served"))
            .expected(VERSIONS.map(|version| format!("{GROUP}/{version}")).join(", "))
            .emit(diagnostics);
    }
    Some((kind, !known))
}

/// RFC 3339 in UTC to the second, as Kubernetes writes it, which sorts as text.
fn timestamp(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Box<str>> {
    let expected = "a time such as 2024-05-01T12:00:00Z";
    let text = view.text(expected, diagnostics)?;
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
        .emit(diagnostics);
        return None;
    }
    Some(text.into())
}
