//! What must hold for any text that is to hold certificates and keys.

use snisplice_config::{Source, secret::secrets_of};

use crate::sections::pem;

/// A text as a Secret of Kubernetes and as PEM. Nothing of a key is shown.
///
/// # Panics
/// Where something does not hold that must.
pub fn check(text: &str) {
    let (secrets, diagnostics) =
        secrets_of(&Source { name: "secret.yaml".to_owned(), text: text.to_owned() });
    for found in &diagnostics {
        assert!(!found.message.is_empty(), "{found:?}");
    }
    // What is shown of a Secret is not what is in it.
    let _ = format!("{secrets:?}");
    sections(text.as_bytes());
}

fn sections(text: &[u8]) {
    for fault in [pem::certificates(text).err(), pem::key(text).err()].into_iter().flatten() {
        let message = fault.to_string();
        assert!(!message.is_empty() && message.len() < 400, "{message}");
    }
}
