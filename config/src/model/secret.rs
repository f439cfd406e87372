//! `Secret` objects of the loaded files, as pure values.

use std::fmt;

use zeroize::Zeroizing;

use super::{route::Origin, termination::SecretName};

/// A `Secret` object that a server or a destination names. The code that uses it interprets its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The namespace and name.
    pub name: SecretName,
    /// The location in the configuration.
    pub origin: Origin,
    /// `data` and `stringData`, in the order of the file. `stringData` replaces an entry of `data`, as in Kubernetes.
    pub entries: Vec<(String, SecretBytes)>,
}

impl Secret {
    /// The entry under a key, such as `tls.crt`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, bytes)| bytes.as_slice())
    }
}

/// Bytes that are never printed, and are overwritten on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

/// Prints only the number of bytes.
impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The Secret that a name refers to: that of the namespace, or else the only one with the name.
pub(crate) fn find<'s>(
    all: impl Iterator<Item = &'s Secret> + Clone,
    SecretName { namespace, name }: &SecretName,
) -> Option<&'s Secret> {
    let mut named = all.filter(|secret| secret.name.name == *name);
    if let Some(own) = named.clone().find(|secret| secret.name.namespace == *namespace) {
        return Some(own);
    }
    let only = named.next()?;
    named.next().is_none().then_some(only)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    fn secret(namespace: &str, name: &str) -> Secret {
        let origin = Origin { file: "a".into(), line: 1, column: 1 };
        let entries = vec![("tls.key".to_owned(), SecretBytes::from(b"private".to_vec()))];
        Secret { name: SecretName { namespace: namespace.into(), name: name.into() }, origin, entries }
    }

    #[test]
    fn the_own_namespace_comes_first_and_another_only_if_it_is_alone() {
        let model = Model {
            secrets: vec![secret("a", "cert"), secret("b", "cert"), secret("b", "other")],
            ..Model::default()
        };
        let found = |namespace: &str, name: &str| {
            let name = SecretName { namespace: namespace.into(), name: name.into() };
            model.secret(&name).map(|secret| secret.name.namespace.clone())
        };
        assert_eq!(found("a", "cert").as_deref(), Some("a"));
        assert_eq!(found("b", "cert").as_deref(), Some("b"));
        assert_eq!(found("c", "cert"), None, "either could be meant");
        assert_eq!(found("a", "other").as_deref(), Some("b"));
        assert_eq!(found("a", "none"), None);
    }

    #[test]
    fn keys_are_not_printed() {
        let printed = format!("{:?}", secret("a", "cert"));
        assert!(printed.contains("7 bytes") && !printed.contains("private"), "{printed}");
        assert!(!printed.contains("112"), "not as numbers either: {printed}");
        assert_eq!(secret("a", "cert").get("tls.key"), Some(&b"private"[..]));
    }
}
