//! Descriptions of TLS termination and its content, for `check` and `explain`.

use std::fmt::{self, Write as _};

use crate::{
    model::{
        Backend, Route, Rule,
        access::{Access, Rate, SourceRules},
        balancing::{Algorithm, LoadBalancing, SlowStart},
        dynamic::Dynamic,
        health::{Health, Probe},
        http::{
            BackendHttp, Forward, HttpAction, HttpMatch, HttpRule, HttpTable, HttpsRedirect, Redirect,
            RedirectPort, Respond, Rewrite, StringMatch, VirtualHost,
        },
        proxy_protocol::{AcceptProxy, SendProxy},
        scope::ScopedTimeouts,
        termination::{
            AuthoritySource, CertificateSource, ClientAuth, Inside, Termination, TlsVersion, UpstreamTls,
        },
    },
    networks::Networks,
    units::Span,
};

impl fmt::Display for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "Secret {name}"),
            Self::Files { certificate, .. } => f.write_str(certificate),
        }
    }
}

impl fmt::Display for AuthoritySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "Secret {name}"),
            Self::File(path) => f.write_str(path),
            Self::System => f.write_str("those of the system"),
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.into())
    }
}

/// `Secret web/cert, clients must show a certificate of /ca.pem, TLSv1.2 to TLSv1.3, offers h2`.
pub(crate) struct Settings<'t>(pub(crate) &'t Termination);

impl fmt::Display for Settings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Termination { certificates, client, min_version, max_version, cipher_suites, alpn, .. }) =
            self;
        f.write_str(&joined(certificates))?;
        let (how, clients) = match client {
            ClientAuth::None => ("", None),
            ClientAuth::Optional(clients) => ("may", Some(clients)),
            ClientAuth::Required(clients) => ("must", Some(clients)),
        };
        if let Some(clients) = clients {
            write!(f, ", clients {how} show a certificate of {}", clients.authorities)?;
            if let Some(crl) = &clients.crl {
                write!(f, " (revoked ones in {crl})")?;
            }
            if !clients.subject_alt_names.is_empty() {
                write!(f, " for {}", clients.subject_alt_names.join(" or "))?;
            }
        }
        if min_version == max_version {
            write!(f, ", {min_version}")?;
        } else {
            write!(f, ", {min_version} to {max_version}")?;
        }
        if !cipher_suites.is_empty() {
            write!(f, ", suites {}", cipher_suites.join(", "))?;
        }
        if !alpn.is_empty() {
            write!(f, ", offers {}", alpn.join(", "))?;
        }
        Ok(())
    }
}

/// The TLS mode of a rule, in a word.
pub(crate) fn mode(rule: &Rule) -> &'static str {
    if rule.termination.is_some() { "terminated" } else { "passed through" }
}

/// Whether HTTP requests are served within TLS.
pub(crate) fn is_http(rule: &Rule) -> bool {
    rule.termination.as_ref().is_some_and(|ends| matches!(ends.inside, Inside::Http(_)))
}

fn joined(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Each host of a table with its rules, line by line. `targets` describes the targets of a rule.
pub(crate) fn table(table: &HttpTable, targets: &dyn Fn(&Route) -> String) -> Vec<String> {
    let mut lines = Vec::new();
    for host in &table.hosts {
        lines.push(host.pattern.to_string());
        lines.extend(self::host(host, targets).into_iter().map(|line| format!("  {line}")));
    }
    if lines.is_empty() {
        lines.push("no http route: every request is answered with 404".into());
    }
    lines
}

/// The rules of a host in order, line by line.
pub(crate) fn host(host: &VirtualHost, targets: &dyn Fn(&Route) -> String) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(HttpsRedirect { port }) = host.https_redirect {
        lines.push(format!("every request: redirected to HTTPS on port {port} with 301"));
    }
    for rule in &host.rules {
        let conditions: Vec<_> = rule.matches.iter().map(condition).collect();
        let conditions =
            if conditions.is_empty() { "every request".to_owned() } else { conditions.join(", or ") };
        let name = &rule.rule.name;
        lines.push(format!("{conditions}: {}  {name} ({})", action(rule, targets), rule.rule.origin));
    }
    if lines.is_empty() {
        lines.push("no http route: every request is answered with 404".into());
    }
    lines
}

/// A description of a condition.
pub(crate) fn condition(wanted: &HttpMatch) -> String {
    let HttpMatch { uri, ignore_uri_case, scheme, method, authority, headers, without_headers, query_params } =
        wanted;
    let mut parts = Vec::new();
    if let Some(method) = method {
        parts.push(format!("method {}", text(method)));
    }
    if let Some(uri) = uri {
        let case = if *ignore_uri_case { " in any case" } else { "" };
        parts.push(format!("path {}{case}", text(uri)));
    }
    for (what, condition) in [("scheme", scheme), ("authority", authority)] {
        parts.extend(condition.as_ref().map(|condition| format!("{what} {}", text(condition))));
    }
    for (what, list) in [("header", headers), ("no header", without_headers), ("query", query_params)] {
        for (name, condition) in list {
            let value =
                condition.as_ref().map(|condition| format!(" {}", text(condition))).unwrap_or_default();
            parts.push(format!("{what} {name}{value}"));
        }
    }
    if parts.is_empty() { "every request".into() } else { parts.join(" and ") }
}

fn text(condition: &StringMatch) -> String {
    match condition {
        StringMatch::Exact(text) => format!("= {text}"),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Regex(expression) => format!("~ {}", expression.as_str()),
    }
}

/// A description of a rule's action.
pub(crate) fn action(rule: &HttpRule, targets: &dyn Fn(&Route) -> String) -> String {
    let mut text = match &rule.action {
        HttpAction::Respond(Respond { status, .. }) => format!("answered with {status}"),
        HttpAction::Redirect(redirect) => redirected(redirect),
        HttpAction::Forward(forward) => format!("{}{}", targets(&rule.rule), forwarded(forward)),
    };
    let changes = [&rule.request_headers, &rule.response_headers]
        .into_iter()
        .any(|changes| !(changes.remove.is_empty() && changes.set.is_empty() && changes.add.is_empty()));
    if changes {
        text += ", headers changed";
    }
    text
}

fn redirected(Redirect { uri, authority, scheme, port, code, .. }: &Redirect) -> String {
    let mut text = format!("redirected with {code}");
    for (what, value) in [("scheme", scheme), ("authority", authority), ("path", uri)] {
        if let Some(value) = value {
            push(&mut text, format_args!(", {what} {value}"));
        }
    }
    match port {
        None => {}
        Some(RedirectPort::Number(port)) => push(&mut text, format_args!(", port {port}")),
        Some(RedirectPort::OfScheme) => text += ", port of the scheme",
        Some(RedirectPort::OfRequest) => text += ", port of the request",
    }
    text
}

fn forwarded(Forward { rewrite, timeout, retries, .. }: &Forward) -> String {
    let mut text = String::new();
    if let Some(Rewrite { uri, uri_regex, authority }) = rewrite {
        if let Some(uri) = uri {
            push(&mut text, format_args!(", path becomes {uri}"));
        }
        if let Some((expression, replacement)) = uri_regex {
            push(&mut text, format_args!(", path ~ {} becomes {replacement}", expression.as_str()));
        }
        if let Some(authority) = authority {
            push(&mut text, format_args!(", authority becomes {authority}"));
        }
    }
    if let Some(timeout) = timeout {
        push(&mut text, format_args!(", within {}", Span(*timeout)));
    }
    if retries.attempts != 2 {
        push(&mut text, format_args!(", {} retries", retries.attempts));
    }
    text
}

/// A description of a backend's protocol, if it is not HTTP/1.1 without TLS: `, TLS verified by /ca.pem, HTTP/2`.
pub(crate) fn upstream(backend: &Backend) -> String {
    let mut text = String::new();
    if let Some(tls) = &backend.tls {
        let UpstreamTls { sni, authorities, crl, subject_alt_names, certificate } = &**tls;
        match authorities {
            Some(authorities) => push(&mut text, format_args!(", TLS verified by {authorities}")),
            None => text += ", TLS not verified",
        }
        if let Some(crl) = crl {
            push(&mut text, format_args!(" (revoked ones in {crl})"));
        }
        if let Some(sni) = sni {
            push(&mut text, format_args!(", server name {sni}"));
        }
        if !subject_alt_names.is_empty() {
            push(&mut text, format_args!(", for {}", subject_alt_names.join(" or ")));
        }
        if let Some(certificate) = certificate {
            push(&mut text, format_args!(", with {certificate}"));
        }
    }
    if backend.http == BackendHttp::Http2 {
        text += ", HTTP/2";
    }
    if let Some(SendProxy { version, tlvs }) = &backend.proxy_protocol {
        push(&mut text, format_args!(", PROXY protocol {}", Into::<&str>::into(version)));
        if !tlvs.is_empty() {
            let tlvs: Vec<&str> = tlvs.iter().map(Into::into).collect();
            push(&mut text, format_args!(" with {}", tlvs.join(", ")));
        }
    }
    text
}

/// A description of the PROXY protocol on a listener: `, PROXY protocol required from 10.0.0.0/8`.
pub(crate) fn proxies(AcceptProxy { from, mode }: &AcceptProxy) -> String {
    let from = from.iter().map(|network| network.to_string()).collect::<Vec<_>>().join(", ");
    format!(", PROXY protocol {} from {from}", Into::<&str>::into(mode))
}

/// A description of load balancing, if it is not the default: `, maglev by server_name`.
pub(crate) fn balancing(backend: &Backend) -> String {
    let LoadBalancing { algorithm, hash_key, hash_balance_factor, slow_start } = &backend.load_balancing;
    let mut text = String::new();
    if *algorithm != Algorithm::default() {
        push(&mut text, format_args!(", {}", Into::<&str>::into(algorithm)));
    }
    if algorithm.hashes() {
        push(&mut text, format_args!(" by {}", Into::<&str>::into(hash_key)));
    }
    if let Some(factor) = hash_balance_factor {
        push(&mut text, format_args!(", each at most {factor} % of its share"));
    }
    if let Some(SlowStart { window, .. }) = slow_start {
        push(&mut text, format_args!(", slow start of {}", Span(*window)));
    }
    if let Some(affinity) = &backend.affinity {
        push(&mut text, format_args!(", affinity of sources for {}", Span(affinity.timeout)));
    }
    if let Some(limit) = backend.connect_timeout {
        push(&mut text, format_args!(", connected within {}", Span(limit)));
    }
    text += &timeouts(backend.timeouts.as_deref());
    text
}

/// The time limits of a scope: `, idle 5m, max_duration 1h`.
pub(crate) fn timeouts(scope: Option<&ScopedTimeouts>) -> String {
    let Some(scope) = scope else { return String::new() };
    let mut text = String::new();
    for (name, value) in [
        ("hello", scope.hello),
        ("handshake", scope.handshake),
        ("connect", scope.connect),
        ("idle", scope.idle),
        ("half_closed", scope.half_closed),
        ("max_duration", scope.max_duration),
        ("keepalive", scope.keepalive),
        ("tcp_user_timeout", scope.tcp_user_timeout),
    ] {
        if let Some(value) = value {
            push(&mut text, format_args!(", {name} {}", Span(value)));
        }
    }
    if let Some(percent) = scope.max_duration_jitter {
        push(&mut text, format_args!(", max_duration_jitter {percent} %"));
    }
    text
}

/// `, TLS check every 5s with the server name a.test, outliers ejected (at most 10 %), all used below 50 %`.
pub(crate) fn health(backend: &Backend) -> String {
    let Health { check, outliers, panic_threshold } = &backend.health;
    let mut text = String::new();
    if let Some(check) = check {
        let (kind, sni) = match &check.probe {
            Probe::Tcp => ("TCP", None),
            Probe::Tls { sni, .. } => ("TLS", sni.as_ref()),
        };
        push(&mut text, format_args!(", {kind} check every {}", Span(check.interval)));
        if let Some(sni) = sni {
            push(&mut text, format_args!(" with the server name {sni}"));
        }
    }
    if let Some(outliers) = outliers {
        push(&mut text, format_args!(", outliers ejected (at most {} %)", outliers.max_ejection_percent));
    }
    match panic_threshold {
        _ if !backend.health.is_watched() => {}
        0 => text += ", never all used",
        percent => push(&mut text, format_args!(", all used below {percent} %")),
    }
    text
}

/// The rules for clients, if any: `, for 10.0.0.0/8, not 10.1.0.0/16, at most 50 connections, 10 new ones a second`.
pub(crate) fn access(access: Option<&Access>) -> String {
    let mut text = String::new();
    let Some(Access { sources: SourceRules { allow, deny }, max_connections, rate }) = access else {
        return text;
    };
    for (what, networks) in [("for", allow), ("not", deny)] {
        if !networks.is_empty() {
            push(&mut text, format_args!(", {what} {}", in_short(networks)));
        }
    }
    if let Some(most) = max_connections {
        push(&mut text, format_args!(", at most {most} connections"));
    }
    if let Some(Rate { per_second, burst }) = rate {
        push(&mut text, format_args!(", {per_second} new ones a second (burst {burst})"));
    }
    text
}

/// The destination of dynamic forwarding: `the requested name:443 (DNS), also 127.0.0.0/8, not 10.0.0.0/8`.
pub(crate) fn dynamic(Dynamic { port, allow, deny }: &Dynamic) -> String {
    let mut text = format!("the requested name:{port} (DNS)");
    for (what, networks) in [("also", allow), ("not", deny)] {
        if !networks.is_empty() {
            push(&mut text, format_args!(", {what} {}", in_short(networks)));
        }
    }
    text
}

/// The first few networks of a list that may be long.
fn in_short(networks: &Networks) -> String {
    const SHOWN: usize = 8;
    let count = networks.iter().count();
    let shown: Vec<_> = networks.iter().take(SHOWN).map(|network| network.to_string()).collect();
    let more = if count > SHOWN { format!(" and {} more", count - SHOWN) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// Writing to a `String` does not fail.
fn push(text: &mut String, more: fmt::Arguments<'_>) {
    let done = text.write_fmt(more);
    debug_assert!(done.is_ok(), "a String takes everything");
}
