//! `Secret` of Kubernetes: bytes under names. What they mean is known where they are used.

use super::object::Object;
use crate::{
    builder::LoadedSecret,
    decode::Diagnostics,
    model::{secret::Secret, termination::SecretName},
    secret::entries,
};

/// Reads the entries. Faults are told by whom the Secret is named.
pub(super) fn read(object: Object<'_>) -> Option<LoadedSecret> {
    let Object { namespace, name, view, lost, .. } = object;
    if name.is_empty() {
        return None;
    }
    let mut faults = Diagnostics::default();
    let entries = entries(&view, &mut faults);
    let unused = view.ignored("no server and no destination names it");
    let name = SecretName { namespace: namespace.into(), name: name.into() };
    // What is wrong with the object as a whole is told, and it is not used.
    (!lost).then(|| LoadedSecret {
        secret: Secret { name, origin: view.origin(), entries },
        faults: faults.finish(),
        unused,
    })
}
