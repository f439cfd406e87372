//! `WorkloadEntry`: a machine outside the cluster, which a node can reach.

use super::{
    labels::Labels,
    object::Object,
    service_entry::{self, EntryEndpoint, Resolution},
};
use crate::decode::Diagnostics;

#[derive(Debug)]
pub(super) struct WorkloadEntry<'n> {
    pub(super) namespace: &'n str,
    /// The labels of the spec and of the object. The latter take precedence.
    pub(super) labels: Labels<'n>,
    /// `None` if it is unreachable, with an error reported.
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
    // A name is accepted like an address if the selecting ServiceEntry resolves names.
    let endpoint = service_entry::endpoint(&spec, Resolution::Dns, diagnostics).filter(|_| !lost);
    WorkloadEntry { namespace, labels, endpoint }
}
