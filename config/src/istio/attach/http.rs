//! Attaches `http` routes to the servers that serve HTTP.

use std::{collections::HashMap, sync::Arc};

use super::Attachment;
use crate::{
    builder::ModelBuilder,
    decode::Diagnostics,
    istio::{
        destination::{Destination, refused},
        gateway::Server,
        http::{Action, Forward, HttpRoute},
        http_match::Condition,
        registry::{Carried, Registry},
        terminate::{Ends, Requests},
    },
    model::{
        Route,
        http::{self, HeaderChanges, HttpAction, HttpMatch, HttpRule, Respond},
    },
    name::HostPattern,
};

/// The response of an invalid route, so that no wider route gets its requests.
fn unavailable() -> HttpAction {
    HttpAction::Respond(Respond { status: 503, body: Vec::new() })
}

/// Rules by route, by the port of the server if it is relevant, and by whether they refuse.
type Made = HashMap<(usize, Option<u16>, bool), (Arc<Route>, HttpAction)>;

impl Attachment<'_, '_> {
    /// Adds the `http` routes to each HTTP server with one of the names.
    pub(super) fn add_http(
        &self,
        registry: &mut Registry<'_, '_, '_, '_>,
        ends: &mut Ends,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) {
        let Some(first) = self.service.http.first() else { return };
        let mut made = Made::new();
        let mut any_server = false;
        let mut admitted = false;
        let servers = self
            .gateways
            .iter()
            .flat_map(|gateway| gateway.servers.iter().map(move |server| (gateway, server)));
        for (gateway, server) in servers {
            let Some(slot) = server.slot.filter(|_| server.is_http()) else { continue };
            any_server = true;
            let mut patterns: Vec<HostPattern> = Vec::new();
            for host in &server.hosts {
                if host.namespace.is_some_and(|namespace| namespace != self.service.namespace) {
                    continue;
                }
                for both in self.service.hosts.iter().filter_map(|own| own.intersect(&host.pattern)) {
                    if !patterns.contains(&both) {
                        patterns.push(both);
                    }
                }
            }
            if patterns.is_empty() {
                continue;
            }
            admitted = true;
            let here = |condition: &Condition<'_>| {
                condition.port.is_none_or(|port| port == server.port)
                    && condition.gateways.as_ref().is_none_or(|named| {
                        named.iter().any(|one| one.namespace == gateway.namespace && one.name == gateway.name)
                    })
            };
            let (rules, last) = self.rules(&here, server, &mut made, registry, builder, diagnostics);
            ends.add(slot, Requests { patterns, rank: self.rank(&server.rank), rules, last });
        }
        for condition in self.service.http.iter().flat_map(|route| &route.conditions) {
            // Reports names of a match that have no effect.
            self.narrowed(condition.gateways.as_deref(), diagnostics);
        }
        if self.lost {
            let rule = Arc::new(builder.route(self.title(first), first.view.origin(), Vec::new()));
            let rule = Arc::new(HttpRule {
                rule,
                matches: Vec::new(),
                action: unavailable(),
                request_headers: HeaderChanges::default(),
                response_headers: HeaderChanges::default(),
            });
            for host in &self.service.hosts {
                ends.block(host.clone(), &rule);
            }
        }
        if any_server && !admitted {
            let hosts: Vec<_> = self.service.hosts.iter().map(ToString::to_string).collect();
            self.service
                .view
                .warn(format!(
                    "no HTTP server of its Gateways admits {} from this namespace: its http routes serve nothing",
                    hosts.join(", ")
                ))
                .expected("names within the hosts of a server")
                .emit(diagnostics);
        } else if !any_server && !self.gateways.is_empty() {
            first
                .view
                .error("no server of its Gateways serves HTTP: the http routes are not served")
                .expected("a server with protocol HTTP, or with protocol HTTPS and mode SIMPLE")
                .remedy("where TLS is passed through, route by server name with 'tls'")
                .emit(diagnostics);
        }
    }

    fn title(&self, route: &HttpRoute<'_>) -> String {
        format!("{} http[{}]", self.service.view.object(), route.index)
    }

    /// The rules for one server, and the rule for all requests, which Istio puts after those of other objects.
    fn rules(
        &self,
        here: &dyn Fn(&Condition<'_>) -> bool,
        server: &Server<'_>,
        known: &mut Made,
        registry: &mut Registry<'_, '_, '_, '_>,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) -> (Vec<Arc<HttpRule>>, Option<Arc<HttpRule>>) {
        let mut rules: Vec<Arc<HttpRule>> = Vec::new();
        for route in &self.service.http {
            let mut make = |matches: Vec<HttpMatch>, refused: bool| {
                let (rule, action) =
                    self.action(route, server, refused, known, registry, builder, diagnostics);
                Arc::new(HttpRule {
                    rule,
                    matches,
                    action,
                    request_headers: route.request_headers.clone(),
                    response_headers: route.response_headers.clone(),
                })
            };
            if route.conditions.is_empty() {
                // Later rules match no request.
                return (rules, Some(make(Vec::new(), false)));
            }
            let mut run: Vec<HttpMatch> = Vec::new();
            let mut run_refused = false;
            for condition in route.conditions.iter().filter(|condition| here(condition)) {
                if condition.refused != run_refused && !run.is_empty() {
                    rules.push(make(std::mem::take(&mut run), run_refused));
                }
                run_refused = condition.refused;
                if condition.matches.takes_all() {
                    if !run.is_empty() {
                        rules.push(make(run, run_refused));
                    }
                    return (rules, Some(make(vec![condition.matches.clone()], run_refused)));
                }
                run.push(condition.matches.clone());
            }
            if !run.is_empty() {
                rules.push(make(run, run_refused));
            }
        }
        (rules, None)
    }

    #[expect(clippy::too_many_arguments, reason = "the four last ones go everywhere together")]
    fn action(
        &self,
        route: &HttpRoute<'_>,
        server: &Server<'_>,
        is_refused: bool,
        made: &mut Made,
        registry: &mut Registry<'_, '_, '_, '_>,
        builder: &mut ModelBuilder,
        diagnostics: &mut Diagnostics,
    ) -> (Arc<Route>, HttpAction) {
        let by_port = match &route.action {
            Action::Forward(forward) if !is_refused => {
                forward.destinations.iter().any(Destination::needs_port)
            }
            _ => false,
        };
        let key = (route.index, by_port.then_some(server.port), is_refused);
        if let Some(known) = made.get(&key) {
            return known.clone();
        }
        let mut targets = Vec::new();
        let action = match &route.action {
            _ if is_refused => unavailable(),
            Action::Refused => unavailable(),
            Action::Redirect(redirect) => HttpAction::Redirect(redirect.clone()),
            Action::Respond(respond) => HttpAction::Respond(respond.clone()),
            Action::Forward(forward) => {
                let Forward { destinations, rewrite, timeout, retries } = &**forward;
                targets = self.targets(
                    destinations,
                    Some(server.port),
                    (true, Carried::Ended),
                    registry,
                    builder,
                    diagnostics,
                );
                if targets.is_empty() {
                    targets = refused();
                }
                HttpAction::Forward(http::Forward {
                    of_target: destinations.iter().map(|one| one.headers.clone()).collect(),
                    rewrite: rewrite.clone(),
                    timeout: *timeout,
                    retries: retries.clone(),
                })
            }
        };
        let rule = Arc::new(builder.route(self.title(route), route.view.origin(), targets));
        made.insert(key, (Arc::clone(&rule), action.clone()));
        (rule, action)
    }
}
