//! The keys of listeners and routes about the clients that they serve.

use super::{
    codec::{By, Form, one_or_more, text},
    keys::mapping,
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Count, MOST},
    model::access::{Access, Rate, SourceRules},
    networks::Network,
};

const NETWORKS: &str = "networks or addresses, such as 192.0.2.0/24 or 2001:db8::7";

const ALL_ALLOWED: &str = "leave the key out to allow all clients";

/// Connections in a second, and those of a burst: more than any machine accepts.
const RATE: Count = Count(1..=Rate::MOST);

mapping! {
    /// Which clients are served, and how many
    pub(super) struct AccessKeys("access", "") {
        /// The only clients that are served. Others are reset. `deny` overrides it.
        allow: Vec<Network> = optional("all clients"),
            networks().or_left_out(ALL_ALLOWED);
        /// Clients that are reset.
        deny: Vec<Network> = optional("none"), networks().or_none();
        /// Concurrent connections. Further ones are reset.
        max_connections: usize = optional("no limit"), Count(1..=MOST);
        /// New connections in a second, as a token bucket. Further ones are reset.
        connection_rate: u32 = optional("no limit"), RATE;
        /// New connections at once, after a pause: the size of the token bucket.
        connection_burst: u32 = optional("that of `connection_rate`"), RATE;
    }
}

fn networks<'n>() -> super::codec::Items<impl Form<'n, Network>> {
    let network =
        |view: &View<'n>, diagnostics: &mut Diagnostics| view.parse::<Network>(NETWORKS, diagnostics);
    one_or_more(By(text("a network or an address", "192.0.2.0/24"), network), NETWORKS)
}

impl AccessKeys<'_> {
    /// The rules and limits, if there are any. A burst needs a rate.
    pub(super) fn build(&self, diagnostics: &mut Diagnostics) -> Option<Access> {
        let view = &self.state.view;
        // A key without a value is as if absent elsewhere. Here that would admit every client.
        if let (Some(allow), None) = (view.peek("allow"), view.written("allow")) {
            allow.error("the list is empty").remedy(ALL_ALLOWED).emit(diagnostics);
        }
        if let Some(burst) = view.written("connection_burst")
            && self.state.lacks(&["connection_rate"])
        {
            burst
                .error("'connection_burst' means nothing without a rate")
                .remedy("add connection_rate: the number of new connections in a second")
                .emit(diagnostics);
        }
        let list = |networks: &Option<Vec<Network>>| networks.iter().flatten().copied().collect();
        let rate = self
            .connection_rate
            .map(|per_second| Rate { per_second, burst: self.connection_burst.unwrap_or(per_second) });
        let access = Access {
            sources: SourceRules { allow: list(&self.allow), deny: list(&self.deny) },
            max_connections: self.max_connections,
            rate,
        };
        (access != Access::default()).then_some(access)
    }
}
