//! The lists of a document. Its settings are in [`crate::model::settings`].

use super::{
    backend::BackendKeys,
    codec::list,
    keys::{Partial, mapping},
    listener::ListenerKeys,
    policies::PoliciesKeys,
    route::RouteKeys,
};

mapping! {
    /// A document
    pub(super) struct DocumentKeys("configuration", "") {
        /// What to listen on. There is at least one listener, here or from an Istio Gateway.
        listeners: Vec<ListenerKeys<'n>> = optional, list(Partial, "a list of listeners").or_none();
        /// What happens to a connection without a route, by verdict. It holds for all listeners, also for those of
        /// Gateways.
        policies: PoliciesKeys<'n> = optional, Partial;
        /// Which names go where. The most specific pattern wins: a name, then the longest `*.suffix`, then `*`. Of
        /// routes with the same pattern the first one wins, and the others are reported.
        routes: Vec<RouteKeys<'n>> = optional, list(Partial, "a list of routes").or_none();
        /// Where connections can go.
        backends: Vec<BackendKeys<'n>> = optional, list(Partial, "a list of backends").or_none();
    }
}
