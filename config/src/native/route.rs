//! `routes[]`.

use super::{
    access::AccessKeys,
    codec::{By, Placed, one_or_more, text},
    keys::{Nested, mapping},
    reference::{BACKENDS, BackendRef, backend_refs, name},
    terminate::Terminate,
    timeouts::RouteTimeouts,
};
use crate::{
    decode::{Diagnostics, View},
    name::HostPattern,
};

const SNI: &str = "server names: www.example.com, \"*.example.com\" or \"*\"";

mapping! {
    /// Names, and where they go
    pub(super) struct RouteKeys("route", "routes[]") {
        /// Its name; a metric label.
        name: &'n str = optional("the first of `sni`"), By(text("a unique name", "shop"), name);
        /// The listeners that it is for. `gateway-443` is the one that Istio Gateways make for port 443 on all
        /// addresses, `gateway-192.0.2.1-443` the one for one address.
        listeners: Vec<(View<'n>, &'n str)> = optional("all listeners"),
            one_or_more(Placed(By(text("the name of a listener", "public"), name)), "a list of names of listeners")
                .or_left_out("leave the key out to mean all listeners");
        /// Server names. `*.suffix` stands for one or more labels before the suffix; `*` also serves a hello without
        /// a server name.
        sni: Vec<(View<'n>, HostPattern)> = required(SNI),
            one_or_more(Placed(By(text("a name, `*.suffix` or `*`", "*.example.com"), pattern)), SNI);
        /// Where its connections go, in proportion to the weights.
        backends: Vec<BackendRef<'n>> = optional("required without `terminate.http`"), backend_refs();
        /// How TLS ends here. The backends get the bytes that are inside of it.
        terminate: Terminate<'n> = optional("TLS is passed through"), Nested;
        /// Time limits of its connections.
        timeouts: RouteTimeouts = optional("those of the listener"), Nested;
    }
    and access: AccessKeys;
}

fn pattern(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<HostPattern> {
    view.parse(SNI, diagnostics)
}

impl RouteKeys<'_> {
    /// Whether its requests have rules of their own.
    pub(super) fn has_rules(&self) -> bool {
        self.terminate.as_ref().is_some_and(|ends| ends.http.is_some())
    }

    /// Whether the termination was written, but cannot be used.
    pub(super) fn is_broken(&self) -> bool {
        self.terminate.is_none() && self.state.view.written("terminate").is_some()
    }

    /// A route has backends, or rules for requests, each of which has backends.
    pub(super) fn check(&self, diagnostics: &mut Diagnostics) {
        let view = &self.state.view;
        match (view.written("backends"), self.has_rules()) {
            (None, false) if self.state.lacks(&["backends"]) && !self.is_broken() => {
                let missing = if view.peek("backends").is_some() { "is empty" } else { "is missing" };
                view.error(format!("'backends' {missing}")).expected(BACKENDS).emit(diagnostics);
            }
            (Some(list), true) => {
                list.error(
                    "each rule in terminate.http says where its requests go: nothing goes to these backends",
                )
                .remedy("move them into a last rule of terminate.http, as {backends: NAME}")
                .emit(diagnostics);
            }
            _ => {}
        }
    }
}
