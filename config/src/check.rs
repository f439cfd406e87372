//! The output of `check`.

use std::fmt::{self, Write as _};

use crate::{
    describe::{self, Settings as Ends, is_http},
    load::Translation,
    model::{
        Backend, BackendId, Endpoint, EndpointHost, Listener, Model, Policies, Policy, Route, Rule, Target,
        http::PlainHttp,
        route_table::{Entry, Shadowed},
        settings::{Declared, Settings, groups},
        termination::Inside,
    },
    report::Severity,
    transparent,
};

/// The route table with shadowed rules, every finding, and a summary line.
#[must_use]
pub fn render_check(translation: &Translation) -> String {
    let Translation { model, diagnostics } = translation;
    let mut out = String::new();
    if let Some(model) = model {
        write_infallibly(&mut out, |out| render_model(out, model));
    }
    for found in diagnostics {
        write_infallibly(&mut out, |out| writeln!(out, "{found}"));
    }
    if !diagnostics.is_empty() {
        out.push('\n');
    }
    write_infallibly(&mut out, |out| summary(out, translation));
    out
}

fn render_model(out: &mut String, model: &Model) -> fmt::Result {
    for listener in &model.listeners {
        render_listener(out, listener, model)?;
        out.push('\n');
    }
    writeln!(out, "backends")?;
    let width = column(model.backends.iter().map(|backend| backend.name.len()));
    for backend in &model.backends {
        writeln!(out, "  {:width$}  {}", backend.name, endpoints(backend))?;
    }
    render_routing(out, model)?;
    out.push('\n');
    render_settings(out, model)
}

/// The routing rules that transparent backends need, as commands of ip(8).
fn render_routing(out: &mut String, model: &Model) -> fmt::Result {
    let rules = transparent::rules(model);
    if rules.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nrouting rules of transparent backends, for this host")?;
    rules.iter().try_for_each(|rule| writeln!(out, "  {rule}"))
}

fn render_listener(out: &mut String, listener: &Listener, model: &Model) -> fmt::Result {
    let Listener {
        name,
        origin,
        bind,
        mss,
        freebind,
        any_address: _,
        ports: _,
        access,
        proxy_protocol,
        routes,
        plain_http,
        policies,
        timeouts,
    } = listener;
    let addresses = bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let segments = mss.map(|bytes| format!(", segments of {bytes} bytes")).unwrap_or_default();
    let early = if *freebind { ", freebind" } else { "" };
    let proxies = proxy_protocol.as_ref().map(describe::proxies).unwrap_or_default();
    let clients = describe::access(access.as_ref());
    let times = describe::timeouts(timeouts.as_deref());
    writeln!(out, "listener {name} on {addresses}{segments}{early}{proxies}{clients}{times} ({origin})")?;
    let rows: Vec<_> = routes
        .entries()
        .iter()
        .map(|Entry { pattern, rule }| {
            let leads_to = leads_to(rule, model) + &describe::access(rule.access.as_deref());
            (pattern.to_string(), leads_to, rule)
        })
        .collect();
    let patterns = column(rows.iter().map(|(pattern, ..)| pattern.len()));
    let width = column(rows.iter().map(|(_, targets, _)| targets.len()));
    for (pattern, targets, rule) in &rows {
        writeln!(
            out,
            "  {pattern:patterns$}  {targets:width$}  {} ({}){}",
            rule.name,
            rule.origin,
            describe::timeouts(rule.timeouts.as_deref())
        )?;
    }
    let mut ends: Vec<_> = rows.iter().filter_map(|(.., rule)| rule.termination.as_ref()).collect();
    ends.sort_by_key(|ends| ends.id);
    ends.dedup_by_key(|ends| ends.id);
    let lead = |rule: &Route| targets(rule, model);
    for ends in ends {
        writeln!(out, "  terminated: {} with {}", ends.name, Ends(ends))?;
        if let Inside::Http(table) = &ends.inside {
            describe::table(table, &lead).iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        }
    }
    if let Some(PlainHttp { name, origin, table }) = plain_http {
        writeln!(out, "  HTTP without TLS: {name} ({origin})")?;
        describe::table(table, &lead).iter().try_for_each(|line| writeln!(out, "    {line}"))?;
    }
    for Shadowed { pattern, rule, by, because } in routes.shadowed() {
        writeln!(
            out,
            "  shadowed: {pattern} of {} ({}) by {}, {}",
            rule.name,
            rule.origin,
            by.name,
            because.as_str()
        )?;
    }
    let policies = describe_policies(policies, model);
    writeln!(out, "  otherwise: {policies}")
}

/// A line per group: `limits connections 8192, workers 0`.
fn render_settings(out: &mut String, model: &Model) -> fmt::Result {
    let settings = Settings { startup: model.startup.clone(), runtime: model.runtime.clone() };
    let value = |setting: &Declared| {
        let shown = setting.show(&settings);
        match setting.share() {
            Some(share) if shown == "auto" => {
                format!("{} auto ({})", setting.name, share.of(model.startup.capacity.connections))
            }
            _ => format!("{} {shown}", setting.name),
        }
    };
    for group in groups() {
        let values: Vec<_> = group.settings.iter().map(value).collect();
        if group.name.is_empty() {
            values.iter().try_for_each(|value| writeln!(out, "{value}"))?;
        } else {
            writeln!(out, "{} {}", group.name, values.join(", "))?;
        }
    }
    writeln!(out)
}

fn summary(out: &mut String, translation: &Translation) -> fmt::Result {
    match &translation.model {
        Some(model) => {
            let patterns: usize = model.listeners.iter().map(|one| one.routes.entries().len()).sum();
            let shadowed: usize = model.listeners.iter().map(|one| one.routes.shadowed().len()).sum();
            write!(
                out,
                "valid: {}, {}, {}, {shadowed} shadowed",
                counted(model.listeners.len(), "listener"),
                counted(patterns, "pattern"),
                counted(model.backends.len(), "backend"),
            )?;
        }
        None => write!(out, "not valid")?,
    }
    let count = |severity| translation.diagnostics.iter().filter(|found| found.severity == severity).count();
    writeln!(
        out,
        "; {}, {} rejected, {}, {} ignored, {}",
        counted(count(Severity::Error), "error"),
        count(Severity::Rejected),
        counted(count(Severity::Warning), "warning"),
        count(Severity::Ignored),
        counted(count(Severity::Note), "note"),
    )
}

/// The targets, and whether TLS is terminated.
fn leads_to(rule: &Rule, model: &Model) -> String {
    match &rule.termination {
        None => targets(rule, model),
        Some(_) if is_http(rule) => "terminated, HTTP".into(),
        Some(_) => format!("terminated, {}", targets(rule, model)),
    }
}

/// `shop:443`, or `shop:443 90 %, refused 10 %`.
pub(crate) fn targets(rule: &Route, model: &Model) -> String {
    let shares = shares(rule, model);
    let only = shares.len() == 1;
    let share = |(backend, percent): &(Option<&Backend>, f64)| {
        let name = backend.map_or("refused", |backend| &*backend.name);
        if only && *percent > 0.0 { name.to_owned() } else { format!("{name} {}", Percent(*percent)) }
    };
    shares.iter().map(share).collect::<Vec<_>>().join(", ")
}

/// Each backend of a rule with its share of the connections in percent. `None` is the rejected share.
pub(crate) fn shares<'m>(rule: &Route, model: &'m Model) -> Vec<(Option<&'m Backend>, f64)> {
    let sum: u64 = rule.targets.iter().map(|target| u64::from(target.weight)).sum();
    let mut shares: Vec<(Option<BackendId>, u64)> = Vec::new();
    for Target { weight, backend } in &rule.targets {
        match shares.iter_mut().find(|(known, _)| known == backend) {
            Some((_, total)) => *total += u64::from(*weight),
            None => shares.push((*backend, u64::from(*weight))),
        }
    }
    shares
        .into_iter()
        .map(|(id, weight)| {
            #[expect(clippy::cast_precision_loss, reason = "only for display, and weights are below 2^20")]
            let percent = if sum == 0 { 0.0 } else { weight as f64 * 100.0 / sum as f64 };
            (id.and_then(|id| model.backends.get(id.0)), percent)
        })
        .collect()
}

/// Printed with one decimal if it is not zero.
pub(crate) struct Percent(pub(crate) f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.1}", self.0);
        write!(f, "{} %", text.strip_suffix(".0").unwrap_or(&text))
    }
}

/// `10.0.0.1:443, shop.internal:443 (DNS, weight 2)`.
pub(crate) fn endpoints(backend: &Backend) -> String {
    let mut text = backend.endpoints.iter().map(endpoint).collect::<Vec<_>>().join(", ");
    if let Some(dynamic) = &backend.dynamic {
        text = describe::dynamic(dynamic);
    } else if text.is_empty() {
        "no endpoints".clone_into(&mut text);
    }
    if !backend.source.is_empty() {
        let source = backend.source.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        write_infallibly(&mut text, |text| write!(text, " from {source}"));
    }
    if !backend.resolver.is_empty() {
        let servers = backend.resolver.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        write_infallibly(&mut text, |text| write!(text, ", resolver {servers}"));
    }
    text.push_str(&describe::upstream(backend));
    if backend.transparent {
        text.push_str(" from the client's address");
    }
    if backend.same_host {
        text.push_str(", same host");
    }
    if let Some(most) = backend.max_connections {
        write_infallibly(&mut text, |text| write!(text, ", at most {most} connections"));
    }
    match backend.max_pending {
        None => {}
        Some(0) => text.push_str(", any number pending"),
        Some(most) => write_infallibly(&mut text, |text| write!(text, ", at most {most} pending")),
    }
    text.push_str(&describe::balancing(backend));
    text.push_str(&describe::health(backend));
    text
}

fn endpoint(Endpoint { host, port, weight, priority }: &Endpoint) -> String {
    let (address, dns) = match host {
        EndpointHost::Ip(ip) => (std::net::SocketAddr::new(*ip, *port).to_string(), None),
        EndpointHost::Dns(name) => (format!("{name}:{port}"), Some("DNS")),
        EndpointHost::Srv(name) => (name.to_string(), Some("DNS SRV")),
    };
    let mut notes: Vec<_> = dns.map(str::to_owned).into_iter().collect();
    if *weight != 1 {
        notes.push(format!("weight {weight}"));
    }
    if *priority != 0 {
        notes.push(format!("priority {priority}"));
    }
    if notes.is_empty() { address } else { format!("{address} ({})", notes.join(", ")) }
}

pub(crate) fn describe_policy(policy: Policy, model: &Model) -> String {
    match policy {
        Policy::Close => "close".into(),
        Policy::Reset => "reset".into(),
        Policy::Alert => "alert".into(),
        Policy::Backend(id) => {
            format!("backend {}", model.backends.get(id.0).map_or("?", |backend| &*backend.name))
        }
    }
}

/// Groups verdicts with the same policy: six times `close` is `close`.
fn describe_policies(policies: &Policies, model: &Model) -> String {
    let mut groups: Vec<(Policy, Vec<&str>)> = Vec::new();
    for (verdict, policy) in policies.iter() {
        match groups.iter_mut().find(|(candidate, _)| *candidate == policy) {
            Some((_, verdicts)) => verdicts.push(verdict),
            None => groups.push((policy, vec![verdict])),
        }
    }
    if let [(policy, _)] = &*groups {
        return describe_policy(*policy, model);
    }
    let group = |(policy, verdicts): &(Policy, Vec<&str>)| {
        format!("{} on {}", describe_policy(*policy, model), verdicts.join(", "))
    };
    groups.iter().map(group).collect::<Vec<_>>().join("; ")
}

/// The width of a column. A few long cells must not make the column too wide.
fn column(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.filter(|length| *length <= 60).max().unwrap_or(0)
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Writing to a `String` does not fail.
fn write_infallibly(out: &mut String, write: impl FnOnce(&mut String) -> fmt::Result) {
    let done = write(out);
    debug_assert!(done.is_ok(), "a String takes everything");
}
