//! `routes[].terminate.http` and `listeners[].http`: the rules for HTTP requests.

use std::sync::Arc;

use super::reference::{backend_refs, targets};
use crate::{
    builder::ModelBuilder,
    decode::{Diagnostics, Fields, View},
    kind::{Choice, Codec as _, Time},
    model::{
        Target,
        http::{
            Forward, HeaderChanges, HttpAction, HttpMatch, HttpRule, HttpTable, HttpsRedirect, Redirect,
            RedirectPort, Respond, Retries, Rewrite, StringMatch, VirtualHost,
        },
        route::Origin,
    },
    name::HostPattern,
    requests::{RETRY_CONDITIONS, expression, header_fault, header_text, plain_text, retry_on},
};

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

#[derive(Debug)]
enum Action<'n> {
    Forward(Vec<(View<'n>, &'n str, u32)>, Box<Forward>),
    Redirect(Redirect),
    Respond(Respond),
}

/// The port of a redirect, if it is not a number.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    strum::EnumMessage,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "snake_case")]
pub(super) enum DerivedPort {
    /// The port of the scheme: 443 or 80.
    OfScheme,
    /// The port of the request's connection.
    OfRequest,
}

/// Status codes of redirects (RFC 9110 section 15.4).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

/// The greatest number of retries.
pub(super) const MOST_ATTEMPTS: u32 = 1_000;

/// Reads the rules of a list. `None` if one is invalid.
pub(super) fn read<'n>(
    list: &View<'n>,
    with_hosts: bool,
    diagnostics: &mut Diagnostics,
) -> Option<Vec<NativeRule<'n>>> {
    let items = list.list("a list of rules for HTTP requests: [{match, backends}]", diagnostics);
    if items.is_empty() {
        list.error("the list is empty: every request would be answered with 404")
            .expected("at least one rule, as {backends: NAME}")
            .emit(diagnostics);
    }
    let rules: Vec<_> = items.iter().map(|item| rule(item, with_hosts, diagnostics)).collect();
    rules.into_iter().collect::<Option<Vec<_>>>().filter(|rules| !rules.is_empty())
}

fn rule<'n>(view: &View<'n>, with_hosts: bool, diagnostics: &mut Diagnostics) -> Option<NativeRule<'n>> {
    let mut fields =
        view.fields("a rule: {match, backends}, {match, redirect} or {match, direct_response}", diagnostics)?;
    let hosts = if with_hosts { fields.take("hosts") } else { None };
    let hosts = match hosts {
        None => Some(Vec::new()),
        Some(list) => {
            let expected = "names of hosts: www.example.com, \"*.example.com\" or \"*\"";
            let items = list.one_or_more(expected, diagnostics);
            if items.is_empty() {
                list.error("the list is empty")
                    .remedy("leave the key out to mean all hosts")
                    .emit(diagnostics);
            }
            items.iter().map(|item| item.parse(expected, diagnostics)).collect()
        }
    };
    let matches = match fields.take("match") {
        None => Some(Vec::new()),
        Some(list) => {
            let items = list.list("a list of matches: [{path, headers, method}]", diagnostics);
            if items.is_empty() {
                list.error("the list is empty")
                    .remedy("leave the key out to match every request")
                    .emit(diagnostics);
            }
            items.iter().map(|item| condition(item, diagnostics)).collect()
        }
    };
    let action = action(view, &mut fields, diagnostics);
    let mut changes = |key| {
        fields.take(key).map_or(Some(HeaderChanges::default()), |view| header_changes(&view, diagnostics))
    };
    let (request_headers, response_headers) = (changes("request_headers"), changes("response_headers"));
    fields.finish(diagnostics);
    Some(NativeRule {
        view: view.clone(),
        hosts: hosts?,
        matches: matches?,
        action: action?,
        request_headers: request_headers?,
        response_headers: response_headers?,
    })
}

fn condition(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<HttpMatch> {
    let mut fields = view.fields("a match: {path, headers, method}", diagnostics)?;
    let path_view = fields.take("path");
    let mut text = |key| match fields.take(key) {
        None => Some(None),
        Some(view) => string(&view, diagnostics),
    };
    let (method, scheme, authority) = (text("method"), text("scheme"), text("authority"));
    let path = match &path_view {
        None => Some(None),
        Some(view) => string(view, diagnostics),
    };
    let ignore_case = fields.take("ignore_path_case").map_or(Some(false), |view| view.flag(diagnostics));
    let mut named = |key, is_header| match fields.take(key) {
        None => Some(Vec::new()),
        Some(view) => strings(&view, is_header, diagnostics),
    };
    let (headers, without) = (named("headers", true), named("without_headers", true));
    let query = named("query", false);
    fields.finish(diagnostics);
    let path = path?;
    if let (Some(view), Some(StringMatch::Exact(text) | StringMatch::Prefix(text))) = (&path_view, &path)
        && !text.starts_with('/')
        && text != "*"
    {
        view.error(format!("no path is '{text}': a path begins with '/'"))
            .remedy(format!("write '/{text}'"))
            .emit(diagnostics);
        return None;
    }
    Some(HttpMatch {
        uri: path,
        ignore_uri_case: ignore_case?,
        scheme: scheme?,
        method: method?,
        authority: authority?,
        headers: headers?,
        without_headers: without?,
        query_params: query?,
    })
}

/// A text must match completely. An empty mapping matches any text. Reports an error on `None`.
#[expect(clippy::option_option, reason = "any text is no condition, and what cannot be read is told")]
fn string(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Option<StringMatch>> {
    let expected = "a text, or one of {exact}, {prefix} and {regex}";
    if view.is_text() {
        return Some(Some(StringMatch::Exact(view.text(expected, diagnostics)?.to_owned())));
    }
    let mut fields = view.fields(expected, diagnostics)?;
    let [exact, prefix, regex] = ["exact", "prefix", "regex"].map(|key| fields.take(key));
    fields.finish(diagnostics);
    let text =
        |view: &View<'_>, diagnostics: &mut Diagnostics| view.text("a text", diagnostics).map(str::to_owned);
    Some(match (exact, prefix, regex) {
        (None, None, None) => None,
        (Some(view), None, None) => Some(StringMatch::Exact(text(&view, diagnostics)?)),
        (None, Some(view), None) => Some(StringMatch::Prefix(text(&view, diagnostics)?)),
        (None, None, Some(view)) => Some(StringMatch::Regex(expression(&view, diagnostics)?)),
        _ => {
            view.error("more than one of exact, prefix and regex")
                .remedy("keep one of them")
                .emit(diagnostics);
            return None;
        }
    })
}

fn strings(
    view: &View<'_>,
    is_header: bool,
    diagnostics: &mut Diagnostics,
) -> Option<Vec<(String, Option<StringMatch>)>> {
    let entries =
        view.entries("a mapping of names to texts, or to {exact}, {prefix} or {regex}", diagnostics);
    let read = |(name, view): (&str, View<'_>)| {
        let name = if is_header { name.to_ascii_lowercase() } else { name.to_owned() };
        Some((name, string(&view, diagnostics)?))
    };
    let all: Vec<_> = entries.into_iter().map(read).collect();
    all.into_iter().collect()
}

/// Keys for forwarded requests, which other rules do not accept.
const FORWARDING: [&str; 3] = ["rewrite", "timeout", "retries"];

fn action<'n>(view: &View<'n>, fields: &mut Fields<'n>, diagnostics: &mut Diagnostics) -> Option<Action<'n>> {
    let [backends, redirect, respond] =
        ["backends", "redirect", "direct_response"].map(|key| fields.take(key));
    let ours = [&redirect, &respond].into_iter().flatten().count();
    let written = ours + usize::from(backends.is_some());
    if written != 1 {
        let problem =
            if written == 0 { "the rule does nothing" } else { "the rule does more than one thing" };
        view.error(problem).expected("one of backends, redirect and direct_response").emit(diagnostics);
    }
    // Each part is read even if another one is invalid, so that all errors are reported at once.
    let forward = forward(fields, ours > 0, diagnostics);
    let redirect = redirect.map(|view| self::redirect(&view, diagnostics).map(Action::Redirect));
    let respond = respond.map(|view| self::respond(&view, diagnostics).map(Action::Respond));
    let forwarded = backends.map(|list| {
        let backends = backend_refs(&list, diagnostics);
        let mut forward = forward?;
        forward.of_target = backends.iter().map(|_| Default::default()).collect();
        Some(Action::Forward(backends, Box::new(forward)))
    });
    if written != 1 {
        return None;
    }
    forwarded.or(redirect).or(respond)?
}

/// Reads the keys for forwarded requests. A rule with a direct response does not accept them.
fn forward(fields: &mut Fields<'_>, answers: bool, diagnostics: &mut Diagnostics) -> Option<Forward> {
    let [rewrite, timeout, retries] = FORWARDING.map(|key| fields.take(key));
    if answers {
        for other in [&rewrite, &timeout, &retries].into_iter().flatten() {
            other
                .error("the request is answered here: the key has a meaning beside 'backends' only")
                .remedy("remove it")
                .emit(diagnostics);
        }
    }
    let rewrite = match rewrite {
        None => Some(None),
        Some(view) => self::rewrite(&view, diagnostics).map(Some),
    };
    let timeout = match timeout {
        None => Some(None),
        Some(view) => {
            Time::ANY.read(&view, diagnostics).map(|time| Some(time).filter(|time| !time.is_zero()))
        }
    };
    let retries = match retries {
        None => Some(Retries::default()),
        Some(view) => self::retries(&view, diagnostics),
    };
    Some(Forward { of_target: Vec::new(), rewrite: rewrite?, timeout: timeout?, retries: retries? })
}

#[expect(clippy::option_option, reason = "no text is fine, and what cannot be read is told")]
fn optional_text(view: Option<&View<'_>>, diagnostics: &mut Diagnostics) -> Option<Option<String>> {
    match view {
        None => Some(None),
        Some(view) => plain_text(view, diagnostics).map(Some),
    }
}

fn redirect(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Redirect> {
    let mut fields = view.fields("{scheme, authority, port, path, code}", diagnostics)?;
    let [path, authority, scheme, port, code] =
        ["path", "authority", "scheme", "port", "code"].map(|key| fields.take(key));
    fields.finish(diagnostics);
    let uri = optional_text(path.as_ref(), diagnostics);
    let new_authority = optional_text(authority.as_ref(), diagnostics);
    let scheme = match &scheme {
        None => Some(None),
        Some(view) if view.says("http") || view.says("https") => {
            view.text("http or https", diagnostics).map(|text| Some(text.to_owned()))
        }
        Some(view) => {
            view.error("no scheme to send a client to").expected("http or https").emit(diagnostics);
            None
        }
    };
    let port = match &port {
        None => Some(None),
        Some(view) if view.is_number() => view.port(diagnostics).map(|port| Some(RedirectPort::Number(port))),
        Some(view) => Choice { what: "way to find a port" }.read(view, diagnostics).map(|derived| {
            Some(match derived {
                DerivedPort::OfScheme => RedirectPort::OfScheme,
                DerivedPort::OfRequest => RedirectPort::OfRequest,
            })
        }),
    };
    let code = match code {
        None => Some(REDIRECTS[0]),
        Some(view) => {
            let code = view.number(0..=999, diagnostics)?;
            if !REDIRECTS.contains(&code) {
                view.error(format!("{code} is no code of a redirect"))
                    .expected("301, 302, 303, 307 or 308")
                    .emit(diagnostics);
                return None;
            }
            Some(code)
        }
    };
    let redirect = Redirect {
        uri: uri?,
        prefix: None,
        authority: new_authority?,
        scheme: scheme?,
        port: port?,
        code: code?,
    };
    if redirect.uri.is_none()
        && redirect.authority.is_none()
        && redirect.scheme.is_none()
        && redirect.port.is_none()
    {
        view.error("the client would be sent to where it is")
            .expected("at least one of scheme, authority, port and path")
            .emit(diagnostics);
        return None;
    }
    Some(redirect)
}

fn respond(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Respond> {
    let mut fields = view.fields("{status, body}", diagnostics)?;
    let status = fields.require("status", "a status code from 200 to 599", diagnostics);
    let body = fields.take("body");
    fields.finish(diagnostics);
    let status = status?.number(200..=599, diagnostics)?;
    let body = match body {
        None => Vec::new(),
        Some(view) => view.text("a text", diagnostics)?.as_bytes().to_vec(),
    };
    Some(Respond { status, body })
}

fn rewrite(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Rewrite> {
    let mut fields = view.fields("{path, path_regex, authority}", diagnostics)?;
    let [path, regex, authority] = ["path", "path_regex", "authority"].map(|key| fields.take(key));
    fields.finish(diagnostics);
    if let (Some(_), Some(regex)) = (&path, &regex) {
        regex.error("there is a 'path' too").remedy("keep one of the two").emit(diagnostics);
        return None;
    }
    let uri_regex = match regex {
        None => None,
        Some(view) => {
            let mut fields = view.fields("{match, replacement}", diagnostics)?;
            let pattern = fields.require("match", "an expression (RE2)", diagnostics);
            let replacement = fields.require("replacement", "a text; \\1 is the first group", diagnostics);
            fields.finish(diagnostics);
            Some((expression(&pattern?, diagnostics)?, plain_text(&replacement?, diagnostics)?))
        }
    };
    let uri = optional_text(path.as_ref(), diagnostics);
    let authority = optional_text(authority.as_ref(), diagnostics);
    Some(Rewrite { uri: uri?, uri_regex, authority: authority? })
}

fn retries(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Retries> {
    let mut fields = view.fields("{attempts, per_try_timeout, retry_on}", diagnostics)?;
    let [attempts, per_try, on] = ["attempts", "per_try_timeout", "retry_on"].map(|key| fields.take(key));
    fields.finish(diagnostics);
    let mut retries = Retries::default();
    if let Some(view) = attempts {
        retries.attempts = view.number(0..=MOST_ATTEMPTS, diagnostics)?;
    }
    if let Some(view) = per_try {
        retries.per_try_timeout = Some(Time::POSITIVE.read(&view, diagnostics)?);
    }
    let Some(list) = on else { return Some(retries) };
    (retries.on_connect_failure, retries.on_reset, retries.on_status) = (false, false, Vec::new());
    let mut good = true;
    for item in list.one_or_more(RETRY_CONDITIONS, diagnostics) {
        let Some(word) = item.text(RETRY_CONDITIONS, diagnostics) else {
            good = false;
            continue;
        };
        if !retry_on(&mut retries, word) {
            good = false;
            item.error(format!("there is no condition '{word}'"))
                .expected(RETRY_CONDITIONS)
                .emit(diagnostics);
        }
    }
    good.then_some(retries)
}

fn header_changes(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<HeaderChanges> {
    let mut fields = view.fields("{set, add, remove}", diagnostics)?;
    let [set, add, remove] = ["set", "add", "remove"].map(|key| fields.take(key));
    fields.finish(diagnostics);
    let mut changes = HeaderChanges::default();
    let mut good = true;
    let mut is_free = |name: &str, view: &View<'_>, diagnostics: &mut Diagnostics| {
        let fault = header_fault(name);
        if let Some(why) = fault {
            let mut found = view.error(format!("'{name}' {why}"));
            if name.eq_ignore_ascii_case("host") {
                found = found.remedy("write rewrite: {authority: NAME}");
            }
            found.emit(diagnostics);
        }
        good &= fault.is_none();
        fault.is_none()
    };
    let mut failed = false;
    for (view, into) in [(set, &mut changes.set), (add, &mut changes.add)] {
        let Some(view) = view else { continue };
        for (name, view) in view.entries("a mapping of names of headers to texts", diagnostics) {
            if !is_free(name, &view, diagnostics) {
                continue;
            }
            match header_text(&view, "", diagnostics) {
                Some(text) => into.push((name.to_ascii_lowercase(), text)),
                None => failed = true,
            }
        }
    }
    if let Some(view) = remove {
        for item in view.one_or_more("names of headers", diagnostics) {
            if let Some(name) = item.text("the name of a header", diagnostics)
                && is_free(name, &item, diagnostics)
            {
                changes.remove.push(name.to_ascii_lowercase());
            }
        }
    }
    (good && !failed).then_some(changes)
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
pub(super) fn table(
    rules: &[NativeRule<'_>],
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
    for (index, rule) in rules.iter().enumerate() {
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
