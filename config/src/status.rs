//! The status of each object, for conditions.

use std::collections::HashMap;

use crate::report::{Diagnostic, ObjectRef, Severity};

/// The status of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStatus {
    /// The object.
    pub object: ObjectRef,
    /// Whether all of it is served: no part is rejected, and no error excludes it.
    pub accepted: bool,
    /// The worst finding about it, the first of its severity. `None` without findings.
    pub worst: Option<Diagnostic>,
    /// The number of further findings about it.
    pub more: usize,
}

/// The status of each of `objects`, in order, from the findings.
pub fn statuses(
    objects: impl IntoIterator<Item = ObjectRef>,
    diagnostics: &[Diagnostic],
) -> Vec<ObjectStatus> {
    let mut found: HashMap<&ObjectRef, (&Diagnostic, usize)> = HashMap::new();
    for diagnostic in diagnostics {
        let Some(object) = &diagnostic.object else { continue };
        let (worst, count) = found.entry(object).or_insert((diagnostic, 0));
        *count += 1;
        // Severities are ordered from the worst on.
        if diagnostic.severity < worst.severity {
            *worst = diagnostic;
        }
    }
    let status = |object: ObjectRef| {
        let about = found.get(&object).copied();
        let worst = about.map(|(worst, _)| worst);
        ObjectStatus {
            accepted: worst.is_none_or(|worst| worst.severity > Severity::Rejected),
            worst: worst.cloned(),
            more: about.map_or(0, |(_, count)| count - 1),
            object,
        }
    };
    objects.into_iter().map(status).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Documents, Options, load};

    fn reference(kind: &str, name: &str) -> ObjectRef {
        ObjectRef {
            group: "networking.istio.io".into(),
            kind: kind.into(),
            namespace: "web".into(),
            name: name.into(),
        }
    }

    /// Objects of an API server, without a text.
    fn objects() -> Documents {
        let object = |kind: &str, name: &str, spec: serde_json::Value| {
            json!({
                "apiVersion": "networking.istio.io/v1",
                "kind": kind,
                "metadata": {"name": name, "namespace": "web", "generation": 3},
                "spec": spec,
            })
        };
        let gateway = json!({"servers": [{
            "port": {"number": 443, "name": "tls", "protocol": "TLS"},
            "tls": {"mode": "PASSTHROUGH"},
            "hosts": ["*.example.com"],
        }]});
        let route = json!({
            "hosts": ["shop.example.com"],
            "gateways": ["edge"],
            "tls": [{
                "match": [{"port": 443, "sniHosts": ["shop.example.com"]}],
                "route": [{"destination": {"host": "shop", "port": {"number": 443}}}],
            }],
        });
        let mut bad = route.clone();
        bad["tls"][0]["match"][0]["port"] = 70_000.into();
        bad["surprise"] = true.into();
        let mut documents = Documents::default();
        documents.push_object("cluster", &object("Gateway", "edge", gateway));
        documents.push_object("cluster", &object("VirtualService", "good", route));
        documents.push_object("cluster", &object("VirtualService", "bad", bad));
        documents
    }

    #[test]
    fn an_object_is_judged_by_its_worst_finding() {
        let translation = load(&objects(), &Options::default());
        let model = translation.model.as_ref().expect("a model");
        assert_eq!(model.listeners[0].routes.entries().len(), 1, "the route of the good one");
        let names = [("Gateway", "edge"), ("VirtualService", "bad"), ("VirtualService", "good")];
        let statuses = statuses(names.map(|(kind, name)| reference(kind, name)), &translation.diagnostics);
        let accepted: Vec<_> = statuses.iter().map(|status| status.accepted).collect();
        assert_eq!(accepted, [true, false, true], "{statuses:?}");
        let worst = statuses[1].worst.as_ref().expect("a finding");
        assert_eq!((worst.severity, &*worst.field), (Severity::Rejected, "spec.tls[0].match[0].port"));
        assert!(statuses[1].more >= 1, "{statuses:?}");
        assert!(worst.to_string().starts_with("cluster: rejected: VirtualService web/bad: "), "{worst}");
    }

    /// An object without a text has the same result as its text.
    #[test]
    fn an_object_and_its_text_say_the_same() {
        let text = "{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: a}, spec: {servers: [{port: 1}]}}";
        let object = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": {"name": "a"},
            "spec": {"servers": [{"port": 1}]},
        });
        let source = crate::Source { name: "a".into(), text: text.into() };
        let mut documents = Documents::default();
        documents.push_object("a", &object);
        let said = |documents: &Documents| {
            let found = load(documents, &Options::default()).diagnostics;
            found.into_iter().map(|one| (one.field, one.message, one.object)).collect::<Vec<_>>()
        };
        assert_eq!(said(&documents), said(&[source].into_iter().collect()));
    }
}
