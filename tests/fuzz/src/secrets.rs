//! Invariants for any text with certificates and keys.

use snisplice_config::{Source, secret::secrets_of};

use crate::sections::pem;

/// A text as a Kubernetes Secret and as PEM. No key material is printed.
///
/// # Panics
/// Panics if an invariant does not hold.
pub fn check(text: &str) {
    let (secrets, diagnostics) =
        secrets_of(&Source { name: "secret.yaml".to_owned(), text: text.to_owned() });
    for found in &diagnostics {
        assert!(!found.message.is_empty(), "{found:?}");
    }
    // The printed form of a Secret does not contain its bytes.
    let _ = format!("{secrets:?}");
    sections(text.as_bytes());
}

fn sections(text: &[u8]) {
    for fault in [pem::certificates(text).err(), pem::key(text).err()].into_iter().flatten() {
        let message = fault.to_string();
        assert!(!message.is_empty() && message.len() < 400, "{message}");
    }
}
