//! Certificates, keys and cipher suites, as all formats name them.

use crate::{
    decode::{Diagnostics, View},
    model::{
        cipher_suites::{self, Suite},
        termination::SecretName,
    },
    report::Diagnostic,
};

/// The supported suites of a list, by their names in the IANA registry. Warns of the others.
pub(crate) fn cipher_suites(view: &View<'_>, diagnostics: &mut Diagnostics) -> Vec<String> {
    let mut suites: Vec<String> = Vec::new();
    for item in view.list("a list of names of cipher suites", diagnostics) {
        let Some(name) = item.text("the name of a cipher suite", diagnostics) else { continue };
        let why = match cipher_suites::look_up(name) {
            Suite::Spoken(name) => {
                if !suites.iter().any(|known| known == name) {
                    suites.push(name.into());
                }
                continue;
            }
            Suite::Weak => "lacks forward secrecy or authenticated encryption and is not spoken here",
            Suite::Unknown => "is no cipher suite that is known here",
        };
        item.warn(format!("'{name}' {why}, left out")).emit(diagnostics);
    }
    suites
}

/// The path of a file.
pub(crate) fn path(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let expected = "the path of a file in PEM";
    let text = view.text(expected, diagnostics)?;
    if text.is_empty() || text.contains('\0') {
        view.error("the path is empty, or holds a zero byte").expected(expected).emit(diagnostics);
        return None;
    }
    Some(text.into())
}

/// The Secret of a text: `name`, `namespace/name`, or either after `kubernetes://`. The default namespace is
/// `namespace`. An empty namespace is any.
pub(crate) fn secret_name(
    view: &View<'_>,
    namespace: &str,
    diagnostics: &mut Diagnostics,
) -> Option<SecretName> {
    let expected = "the name of a Secret";
    let text = view.text(expected, diagnostics)?;
    let bare = text.strip_prefix("kubernetes://").unwrap_or(text);
    let (namespace, name) = bare.split_once('/').unwrap_or((namespace, bare));
    // The name may become a file name, which must not leave its directory.
    let good = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
            && !part.starts_with('.')
    };
    if good(name) && (namespace.is_empty() || good(namespace)) {
        return Some(SecretName { namespace: namespace.into(), name: name.into() });
    }
    view.error(format!("'{text}' is not the name of a Secret"))
        .expected("a name of a-z, 0-9, '-' and '.', as in kubectl create secret tls NAME")
        .or_placeholder(text)
        .emit(diagnostics);
    None
}

/// The finding for a Secret that no file has, without a directory of secrets, and its consequence.
pub(crate) fn missing_secret(name: &SecretName, view: &View<'_>, then: &str) -> Diagnostic {
    view.warn(format!(
        "no file has the Secret '{}', and there is no directory of secrets: without it {then}",
        name.name
    ))
    .remedy(
        "load the file with the Secret too, or name the directory that has it with --secrets or the setting 'secrets'",
    )
}
