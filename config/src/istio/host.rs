//! Hosts of destinations and rules.

use crate::name::{HostName, HostPattern, NameError};

/// A host as a destination or a `DestinationRule` in `namespace` writes it. Without a dot it is a service of the
/// namespace, and otherwise it is complete.
pub(super) fn pattern(written: &str, namespace: &str) -> Result<HostPattern, NameError> {
    if written.contains('.') || written.contains('*') {
        HostPattern::parse(written)
    } else {
        HostName::parse(written)?;
        HostPattern::parse(&format!("{written}.{namespace}.svc.cluster.local"))
    }
}

/// `namespace` of `service.namespace.svc.cluster.local`.
pub(super) fn service_namespace(host: &str) -> Option<&str> {
    let (_, namespace) = host.strip_suffix(".svc.cluster.local")?.split_once('.')?;
    (!namespace.contains('.')).then_some(namespace)
}
