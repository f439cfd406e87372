//! `routes[].terminate.http` and `listeners[].http`: the rules for HTTP requests.

use std::{sync::Arc, time::Duration};

use super::{
    codec::{By, Items, list, one_or_more, text},
    keys::{FromKeys, Nested, State, mapping},
    reference::{BackendRef, backend_refs, refuse_dynamic, targets},
};
use crate::{
    builder::ModelBuilder,
    decode::{Diagnostics, View},
    kind::Time,
    model::{
        Target,
        http::{
            Forward, HeaderChanges, HttpAction, HttpMatch, HttpRule, HttpTable, HttpsRedirect, Redirect,
            Respond, Retries, Rewrite, VirtualHost,
        },
        route::Origin,
    },
    name::HostPattern,
};

pub(super) mod action;
pub(super) mod condition;
pub(super) mod headers;

/// A rule as written. Its backends are still names.
#[derive(Debug)]
pub(super) struct NativeRule<'n> {
    view: View<'n>,
    /// `hosts` of a listener's rule. An empty list is every host of the table.
    hosts: Vec<HostPattern>,
    matches: Vec<HttpMatch>,
    action: Action<'n>,
    request_headers: HeaderChanges,
    response_headers: HeaderChanges,
}

/// A rule of a listener, which may have `hosts`.
#[derive(Debug)]
pub(super) struct ListenerRule<'n>(pub(super) NativeRule<'n>);

#[derive(Debug)]
enum Action<'n> {
    Forward(Vec<BackendRef<'n>>, Box<Forward>),
    Redirect(Redirect),
    Respond(Respond),
}

/// A list of rules.
pub(super) fn rules() -> Items<Nested> {
    list(Nested, "a list of rules for HTTP requests: [{match, backends}]")
        .else_then(": every request would be answered with 404", "at least one rule, as {backends: NAME}")
}

const HOSTS: &str = "names of hosts: www.example.com, \"*.example.com\" or \"*\"";

mapping! {
    /// A rule for HTTP requests without TLS. Of the rules for a host, the first that matches serves
    pub(super) struct ListenerRuleKeys("listener_http", "listeners[].http[]") {
        /// Hosts of requests. A request has the rules of the most specific pattern alone: a name, then the longest
        /// `*.suffix`, then `*`.
        hosts: Vec<HostPattern> = optional("all hosts"),
            one_or_more(By(text("a name, `*.suffix` or `*`", "*.example.com"), host), HOSTS)
                .or_left_out("leave the key out to mean all hosts");
    }
    and rule: RuleKeys;
}

fn host(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<HostPattern> {
    view.parse(HOSTS, diagnostics)
}

mapping! {
    /// A rule for HTTP requests. The first that matches serves. It has one of `backends`, `redirect` and
    /// `direct_response`
    pub(super) struct RuleKeys("rule", "routes[].terminate.http[]") {
        /// What requests must look like: one of these must hold.
        r#match: Vec<HttpMatch> = optional("every request"),
            list(Nested, "a list of matches: [{path, headers, method}]")
                .or_left_out("leave the key out to match every request");
        /// Where its requests go, in proportion to the weights.
        backends: Vec<BackendRef<'n>> = optional, backend_refs();
        /// Where its clients are sent.
        redirect: Redirect = optional, Nested;
        /// What its requests are answered with here.
        direct_response: Respond = optional, Nested;
        /// What a request's path and authority become before it is sent on.
        rewrite: Rewrite = optional, Nested;
        /// How long the response may take, from the end of the request to its own end. 0 is no limit.
        timeout: Duration = default(Duration::ZERO), Time::ANY;
        /// When a request is sent again.
        retries: Retries = optional, Nested;
        /// Changes of the request's headers.
        request_headers: HeaderChanges = optional, Nested;
        /// Changes of the response's headers.
        response_headers: HeaderChanges = optional, Nested;
    }
}

impl<'n> FromKeys<'n> for ListenerRule<'n> {
    type Keys = ListenerRuleKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let hosts = keys.hosts.unwrap_or_default();
        Some(Self(NativeRule { hosts, ..NativeRule::from_keys(keys.rule, diagnostics)? }))
    }
}

impl<'n> FromKeys<'n> for NativeRule<'n> {
    type Keys = RuleKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        check_action(&keys.state, diagnostics);
        let action = match (keys.backends, keys.redirect, keys.direct_response) {
            (Some(backends), None, None) => {
                let forward = Forward {
                    of_target: backends.iter().map(|_| Default::default()).collect(),
                    rewrite: keys.rewrite,
                    timeout: keys.timeout.filter(|time| !time.is_zero()),
                    retries: keys.retries.unwrap_or_default(),
                };
                Action::Forward(backends, Box::new(forward))
            }
            (None, Some(redirect), None) => Action::Redirect(redirect),
            (None, None, Some(respond)) => Action::Respond(respond),
            _ => return None,
        };
        Some(Self {
            view: keys.state.view,
            hosts: Vec::new(),
            matches: keys.r#match.unwrap_or_default(),
            action,
            request_headers: keys.request_headers.unwrap_or_default(),
            response_headers: keys.response_headers.unwrap_or_default(),
        })
    }
}

/// A rule has one action, and the keys for forwarded requests stand beside `backends` only.
fn check_action(state: &State<'_>, diagnostics: &mut Diagnostics) {
    const ACTIONS: [&str; 3] = ["backends", "redirect", "direct_response"];
    let written = ACTIONS.iter().filter(|key| state.is_written(key)).count();
    let problem =
        if state.lacks(&ACTIONS) { "the rule does nothing" } else { "the rule does more than one thing" };
    if state.lacks(&ACTIONS) || written > 1 {
        state.view.error(problem).expected("one of backends, redirect and direct_response").emit(diagnostics);
    }
    if state.is_written("redirect") || state.is_written("direct_response") {
        for other in ["rewrite", "timeout", "retries"].into_iter().filter_map(|key| state.view.written(key)) {
            other
                .error("the request is answered here: the key has a meaning beside 'backends' only")
                .remedy("remove it")
                .emit(diagnostics);
        }
    }
}

/// The owner of a table of rules.
pub(super) struct Owner<'a> {
    /// `route NAME` or `listener NAME`, the prefix of the rules' names.
    pub(super) name: &'a str,
    /// The hosts of rules without `hosts`.
    pub(super) hosts: &'a [HostPattern],
    /// Whether requests without TLS are redirected to HTTPS.
    pub(super) redirect: Option<HttpsRedirect>,
}

/// Builds the table of rules, in their order.
pub(super) fn table<'r>(
    rules: impl IntoIterator<Item = &'r NativeRule<'r>>,
    owner: &Owner<'_>,
    builder: &mut ModelBuilder,
    diagnostics: &mut Diagnostics,
) -> HttpTable {
    let mut hosts: Vec<VirtualHost> = Vec::new();
    let at = |pattern: &HostPattern, hosts: &mut Vec<VirtualHost>| {
        hosts.iter().position(|host| host.pattern == *pattern).unwrap_or_else(|| {
            hosts.push(VirtualHost {
                pattern: pattern.clone(),
                https_redirect: owner.redirect,
                rules: Vec::new(),
            });
            hosts.len() - 1
        })
    };
    if owner.redirect.is_some() {
        at(&HostPattern::Any, &mut hosts);
    }
    for (index, rule) in rules.into_iter().enumerate() {
        let made = build(rule, format!("{} http[{index}]", owner.name), builder, diagnostics);
        let patterns = if rule.hosts.is_empty() { owner.hosts } else { &rule.hosts };
        let mut all_taken = true;
        for pattern in patterns {
            let host = at(pattern, &mut hosts);
            let host = &mut hosts[host];
            all_taken &= host.rules.iter().any(|former| former.takes_all());
            if !host.rules.contains(&made) {
                host.rules.push(Arc::clone(&made));
            }
        }
        if all_taken {
            rule.view
                .warn("no request comes to this rule: one before it takes them all")
                .remedy("put the rule without 'match' last")
                .emit(diagnostics);
        }
    }
    HttpTable::new(hosts)
}

fn build(
    rule: &NativeRule<'_>,
    name: String,
    builder: &mut ModelBuilder,
    diagnostics: &mut Diagnostics,
) -> Arc<HttpRule> {
    let NativeRule { view, hosts: _, matches, action, request_headers, response_headers } = rule;
    let origin: Origin = view.origin();
    let (targets, action): (Vec<Target>, _) = match action {
        Action::Forward(backends, forward) => {
            let targets = targets(backends, builder, diagnostics);
            for (BackendRef { view, name, .. }, target) in backends.iter().zip(&targets) {
                if let Some(id) = target.backend {
                    // Requests of several clients share connections to a backend.
                    refuse_dynamic(view, (name, id), "a rule for HTTP requests", builder, diagnostics);
                }
            }
            if !targets.is_empty() && targets.iter().all(|target| target.weight == 0) {
                view.warn("all weights are 0: the requests of this rule are answered with 503")
                    .emit(diagnostics);
            }
            (targets, HttpAction::Forward((**forward).clone()))
        }
        Action::Redirect(redirect) => (Vec::new(), HttpAction::Redirect(redirect.clone())),
        Action::Respond(respond) => (Vec::new(), HttpAction::Respond(respond.clone())),
    };
    Arc::new(HttpRule {
        rule: Arc::new(builder.route(name, origin, targets)),
        matches: matches.clone(),
        action,
        request_headers: request_headers.clone(),
        response_headers: response_headers.clone(),
    })
}
