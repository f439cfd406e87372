//! Kubernetes `Secret`: named bytes. The code that uses a Secret interprets its entries.

use super::object::Object;
use crate::{
    builder::LoadedSecret,
    decode::Diagnostics,
    model::{secret::Secret, termination::SecretName},
    secret::entries,
};

/// Reads the entries. Errors are reported when an object names the Secret.
pub(super) fn read(object: Object<'_>) -> Option<LoadedSecret> {
    let Object { namespace, name, view, lost, .. } = object;
    if name.is_empty() {
        return None;
    }
    let mut faults = Diagnostics::default();
    let entries = entries(&view, &mut faults);
    let unused = view.ignored("no server and no destination names it");
    let name = SecretName { namespace: namespace.into(), name: name.into() };
    // Errors of the whole object are reported, and the object is not used.
    (!lost).then(|| LoadedSecret {
        secret: Secret { name, origin: view.origin(), entries },
        faults: faults.finish(),
        unused,
    })
}
