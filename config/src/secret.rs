//! Kubernetes Secrets as values: names and bytes. The code that uses a Secret interprets its bytes.

use std::sync::Arc;

use data_encoding::BASE64_NOPAD;
use zeroize::Zeroizing;

use crate::{
    Source,
    decode::{Diagnostics, Subject, View},
    model::{
        secret::{Secret, SecretBytes},
        termination::SecretName,
    },
    report::{Diagnostic, Severity},
    yaml,
};

/// The Secrets of a text in YAML or JSON, including those within a `List`. Documents of other kinds are skipped.
#[must_use]
pub fn secrets_of(source: &Source) -> (Vec<Secret>, Vec<Diagnostic>) {
    let file: Arc<str> = source.name.as_str().into();
    let (mut secrets, mut diagnostics) = (Vec::new(), Diagnostics::default());
    for chunk in yaml::chunks(&source.text) {
        let (documents, broken) = yaml::parse(chunk);
        if let Some(problem) = broken {
            diagnostics.push(Subject::native(&file).problem(&problem, Severity::Error));
        }
        for document in &documents {
            read_all(&View::new(Subject::native(&file), document.root()), &mut secrets, &mut diagnostics);
        }
    }
    (secrets, diagnostics.finish())
}

fn read_all(view: &View<'_>, secrets: &mut Vec<Secret>, diagnostics: &mut Diagnostics) {
    match view.peek_text("kind") {
        Some("Secret") => secrets.extend(read(view, diagnostics)),
        Some("List" | "SecretList") => {
            if let Some(items) = view.peek("items") {
                for item in items.list("a list of objects", diagnostics) {
                    read_all(&item, secrets, diagnostics);
                }
            }
        }
        _ => {}
    }
}

/// Reads one Secret. `None` if it has no name.
pub(crate) fn read(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Secret> {
    let metadata = view.peek("metadata");
    let named = |key| metadata.as_ref().and_then(|metadata| metadata.peek_text(key));
    let Some(name) = named("name").filter(|name| !name.is_empty()) else {
        view.error("the Secret has no name").remedy("set metadata.name").emit(diagnostics);
        return None;
    };
    let namespace = named("namespace").filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let entries = entries(view, diagnostics);
    let name = SecretName { namespace: namespace.to_owned(), name: name.to_owned() };
    Some(Secret { name, origin: view.origin(), entries })
}

/// `data` and `stringData`. An entry of `stringData` replaces one of `data`. A finding never contains a value.
pub(crate) fn entries(secret: &View<'_>, diagnostics: &mut Diagnostics) -> Vec<(String, SecretBytes)> {
    let mut entries: Vec<(String, SecretBytes)> = Vec::new();
    for (field, encoded) in [("data", true), ("stringData", false)] {
        let Some(fields) = secret.peek(field).filter(|fields| !fields.is_unset()) else { continue };
        for (key, value) in fields.entries("a mapping of keys to texts", diagnostics) {
            // An empty value may also be written as null.
            let text = if value.is_unset() { Some("") } else { value.text("a text", diagnostics) };
            let Some(text) = text else { continue };
            let bytes = if encoded { decode(text) } else { Some(text.as_bytes().to_vec().into()) };
            if let Some(bytes) = bytes {
                entries.retain(|(former, _)| former != key);
                entries.push((key.to_owned(), bytes));
            } else {
                value
                    .error("not base64: the entry is left out")
                    .remedy("write base64 of the bytes, or the text itself under 'stringData'")
                    .emit(diagnostics);
            }
        }
    }
    entries
}

/// As in kubectl: line breaks are allowed, and padding is optional.
fn decode(text: &str) -> Option<SecretBytes> {
    let mut packed: Zeroizing<Vec<u8>> = Zeroizing::new(Vec::with_capacity(text.len()));
    packed.extend(text.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    while packed.last() == Some(&b'=') {
        packed.pop();
    }
    BASE64_NOPAD.decode(&packed).ok().map(SecretBytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> (Vec<Secret>, Vec<String>) {
        let (secrets, found) = secrets_of(&Source { name: "s.yaml".to_owned(), text: text.to_owned() });
        (secrets, found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn both_kinds_of_data_are_read_and_others_passed_over() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: no}\ndata: {a: b}\n---\n\
                    apiVersion: v1\nkind: Secret\nmetadata: {name: web, namespace: istio-system}\ntype: Opaque\n\
                    data:\n  tls.crt: |\n    SGVs\n    bG8=\n  cert: SGVsbG8\n  empty: null\n\
                    stringData: {tls.key: plain, cert: wins}\n---\n\
                    kind: List\nitems:\n- kind: Secret\n  metadata: {name: inner}\n  data: {}\n";
        let (secrets, found) = read_text(text);
        assert_eq!(found, Vec::<String>::new());
        assert_eq!(secrets.iter().map(|secret| &*secret.name.name).collect::<Vec<_>>(), ["web", "inner"]);
        assert_eq!((&*secrets[0].name.namespace, &*secrets[1].name.namespace), ("istio-system", "default"));
        let value = |key: &str| secrets[0].get(key).map(<[u8]>::to_vec);
        assert_eq!(value("tls.crt").as_deref(), Some(&b"Hello"[..]));
        assert_eq!(value("tls.key").as_deref(), Some(&b"plain"[..]));
        assert_eq!(value("cert").as_deref(), Some(&b"wins"[..]));
        assert_eq!(value("empty").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_fault_names_its_place_and_shows_no_value() {
        let (secrets, found) =
            read_text("kind: Secret\nmetadata: {name: web}\ndata: {tls.key: 'hush! not base64'}\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("s.yaml:3") && found[0].contains("data.tls.key"), "{found:?}");
        assert!(!found[0].contains("hush") && !format!("{secrets:?}").contains("hush"));
        let (secrets, found) = read_text("kind: Secret\ndata: {}\n");
        assert!(secrets.is_empty() && found[0].contains("no name"), "{found:?}");
    }
}
