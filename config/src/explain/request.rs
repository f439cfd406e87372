//! The rule of an HTTP request, and the reasons why other rules do not match, one description per line.

use std::{borrow::Cow, sync::Arc};

use crate::{
    describe,
    model::{
        Route,
        http::{
            HttpMatch, HttpRule, HttpTable, HttpsRedirect,
            matching::{Request, Served, Unmet, with_query},
        },
    },
};

/// The request in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// The method.
    pub method: String,
    /// `http` for a request without TLS, or `https`.
    pub scheme: String,
    /// The path in its normal form.
    pub path: String,
    /// The text after the first question mark.
    pub query: Option<String>,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The host: the name in question, unless a `host` header differs.
    pub authority: String,
}

impl Request for Requested {
    fn method(&self) -> &str {
        &self.method
    }

    fn scheme(&self) -> &str {
        &self.scheme
    }

    fn authority(&self) -> &str {
        &self.authority
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| &**value);
        let first = values.next()?;
        Some(values.fold(first.into(), |all: Cow<'_, str>, value| format!("{all},{value}").into()))
    }
}

impl Requested {
    /// The host without its port.
    fn host(&self) -> &str {
        let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        match self.authority.rsplit_once(':') {
            Some((host, port)) if is_port(port) && (!host.contains(':') || host.ends_with(']')) => host,
            _ => &self.authority,
        }
    }
}

/// The action for a request, and the reasons.
pub(super) fn lines(table: &HttpTable, asked: &Requested, targets: &dyn Fn(&Route) -> String) -> Vec<String> {
    let Requested { method, scheme, authority, .. } = asked;
    let mut lines =
        vec![format!("{method} {scheme}://{authority}{}", with_query(&asked.path, asked.query.as_deref()))];
    let host = asked.host();
    let Some(virtual_host) = table.lookup(host.strip_suffix('.').unwrap_or(host)) else {
        lines.push(format!("  answered with 404: no rule is for the host '{host}'"));
        return lines;
    };
    let served = virtual_host.serve(asked);
    lines.push(match served {
        Served::Rule(rule, _) => format!("  {}", describe::action(rule, targets)),
        Served::Https(HttpsRedirect { port }) => format!("  redirected to HTTPS on port {port} with 301"),
        Served::Nothing => "  answered with 404: no rule matches".to_owned(),
    });
    let pattern = &virtual_host.pattern;
    lines.push(format!("  because of the rules for the host '{pattern}', in their order:"));
    if let Some(HttpsRedirect { .. }) = virtual_host.https_redirect {
        let why = match served {
            Served::Https(_) => "serves every request without TLS",
            Served::Rule(..) if scheme != "https" => {
                "does not serve this one, which a rule for ACME challenges takes"
            }
            Served::Rule(..) | Served::Nothing => "does not serve this one, which is HTTPS",
        };
        lines.push(format!("    the redirect to HTTPS {why}"));
    }
    let mut taken = matches!(served, Served::Https(_));
    for rule in &virtual_host.rules {
        let what = match served {
            Served::Rule(winner, matched) if !taken && Arc::ptr_eq(winner, rule) => {
                taken = true;
                let how = matched.map_or_else(|| "every request".to_owned(), describe::condition);
                format!("serves it: {how}")
            }
            _ if taken => "comes later".to_owned(),
            _ => why_not(rule, asked),
        };
        lines.push(format!("    {} ({}) {what}", rule.rule.name, rule.rule.origin));
    }
    lines
}

/// The part of each condition that does not match.
fn why_not(rule: &HttpRule, asked: &Requested) -> String {
    let reasons: Vec<_> = rule.matches.iter().filter_map(|wanted| reason(wanted, asked)).collect();
    if reasons.is_empty() {
        return "is for ACME challenges only where every request is sent to HTTPS".to_owned();
    }
    format!("does not match: {}", reasons.join("; or "))
}

fn reason(wanted: &HttpMatch, asked: &Requested) -> Option<String> {
    let value = |name: &str| match asked.header(name) {
        Some(value) => format!("it is '{value}'"),
        None => "there is none".to_owned(),
    };
    let what = describe::condition(wanted);
    Some(match wanted.unmet(asked)? {
        Unmet::Path => format!("{what}, but the path is {}", asked.path),
        Unmet::Scheme => format!("{what}, but the scheme is {}", asked.scheme),
        Unmet::Method => format!("{what}, but the method is {}", asked.method),
        Unmet::Authority => format!("{what}, but the authority is '{}'", asked.authority),
        Unmet::Header(name) => format!("{what}, but of the header {name} {}", value(name)),
        Unmet::WithoutHeader(name) => format!("{what}, but there is the header {name}"),
        Unmet::QueryParam(name) => {
            format!(
                "{what}, but the parameter {name} of the query '{}' is not so",
                asked.query.as_deref().unwrap_or_default()
            )
        }
    })
}
