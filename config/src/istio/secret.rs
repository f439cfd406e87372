//! `Secret` of Kubernetes: bytes under names. What they mean is known where they are used.

use data_encoding::{BASE64, Specification};

use super::object::Object;
use crate::{
    builder::LoadedSecret,
    decode::{Diagnostics, View},
    model::{
        secret::{Secret, SecretBytes},
        termination::SecretName,
    },
};

/// Reads the entries. Faults are told by whom the Secret is named.
pub(super) fn read(object: Object<'_>) -> Option<LoadedSecret> {
    let Object { namespace, name, view, lost, .. } = object;
    if name.is_empty() {
        return None;
    }
    let mut faults = Diagnostics::default();
    let mut entries: Vec<(String, SecretBytes)> = Vec::new();
    let mut put = |key: &str, bytes: Vec<u8>| {
        entries.retain(|(known, _)| known != key);
        entries.push((key.to_owned(), bytes.into()));
    };
    for (key, view) in of(&view, "data", &mut faults) {
        let Some(text) = text(&view, &mut faults) else { continue };
        match decoded(text) {
            Some(bytes) => put(key, bytes),
            None => view
                .error("not base64: the entry is left out")
                .remedy("write base64 of the bytes, or the text itself under 'stringData'")
                .emit(&mut faults),
        }
    }
    for (key, view) in of(&view, "stringData", &mut faults) {
        if let Some(text) = text(&view, &mut faults) {
            put(key, text.as_bytes().to_vec());
        }
    }
    let unused = view.ignored("no server and no destination names it");
    let name = SecretName { namespace: namespace.into(), name: name.into() };
    // What is wrong with the object as a whole is told, and it is not used.
    (!lost).then(|| LoadedSecret {
        secret: Secret { name, origin: view.origin(), entries },
        faults: faults.finish(),
        unused,
    })
}

fn of<'n>(object: &View<'n>, key: &str, faults: &mut Diagnostics) -> Vec<(&'n str, View<'n>)> {
    let view = object.peek(key).filter(|view| !view.is_unset());
    view.map(|view| view.entries("a mapping of keys to texts", faults)).unwrap_or_default()
}

/// The text of an entry. A finding never shows it.
fn text<'n>(view: &View<'n>, faults: &mut Diagnostics) -> Option<&'n str> {
    if view.is_unset() { Some("") } else { view.text("a text", faults) }
}

/// As Go reads it: line ends count for nothing.
fn decoded(text: &str) -> Option<Vec<u8>> {
    if !text.contains(['\r', '\n']) {
        return BASE64.decode(text.as_bytes()).ok();
    }
    let mut lenient: Specification = BASE64.specification();
    lenient.ignore = "\r\n".into();
    lenient.encoding().ok()?.decode(text.as_bytes()).ok()
}
