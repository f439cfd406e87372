//! `WorkloadEntry`: a machine outside the cluster, which is what a node can reach.

use super::{
    labels::Labels,
    object::Object,
    service_entry::{self, EntryEndpoint, Resolution},
};
use crate::decode::Diagnostics;

#[derive(Debug)]
pub(super) struct WorkloadEntry<'n> {
    pub(super) namespace: &'n str,
    /// Those of the spec and of the object, which are stronger.
    pub(super) labels: Labels<'n>,
    /// `None` if it cannot be reached, which is told.
    pub(super) endpoint: Option<EntryEndpoint<'n>>,
}

pub(super) fn read<'n>(object: Object<'n>, diagnostics: &mut Diagnostics) -> WorkloadEntry<'n> {
    let own = object.labels();
    let Object { namespace, spec, lost, .. } = object;
    let labels = spec
        .peek("labels")
        .map(|view| Labels::read(&view, &mut Diagnostics::default()))
        .unwrap_or_default()
        .merged(own);
    // A name is as good as an address where the ServiceEntry that selects it resolves names.
    let endpoint = service_entry::endpoint(&spec, Resolution::Dns, diagnostics).filter(|_| !lost);
    WorkloadEntry { namespace, labels, endpoint }
}
