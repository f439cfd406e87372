//! The decision on a request: a function of the rules and the request's head.

use std::{borrow::Cow, sync::Arc};

use hyper::{
    HeaderMap, Method, StatusCode, Uri, Version,
    header::{self, HeaderValue},
    http::request::Parts,
};
use snisplice_config::model::http::{
    Forward, HttpAction, HttpMatch, HttpRule, HttpTable, HttpsRedirect, Redirect, RedirectPort, Rewrite,
    StringMatch,
    matching::{Request, Served, with_query},
};

use super::{headers, path::normalise, refused::Refused};

/// The greatest number of headers of a request, as in Envoy.
pub const MOST_HEADERS: usize = 100;

/// The head of a request, validated and normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked<'h> {
    /// The method.
    pub method: &'h Method,
    /// `http` or `https`, as the client sees it.
    pub scheme: &'h str,
    /// The authority as sent. Empty for an HTTP/1.0 client without one.
    pub authority: Cow<'h, str>,
    /// The path in its normal form.
    pub path: Cow<'h, str>,
    /// The text after the first question mark.
    pub query: Option<&'h str>,
    /// The headers.
    pub headers: &'h HeaderMap,
}

/// The decision on a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision<'t> {
    /// No rule matches.
    NotFound,
    /// The response is a redirect.
    Redirected {
        /// The rule. `None` if the whole host is redirected.
        rule: Option<&'t Arc<HttpRule>>,
        /// The status code.
        status: StatusCode,
        /// The `Location` header.
        location: String,
    },
    /// The response is the rule's direct response.
    Responded(&'t Arc<HttpRule>),
    /// The request is forwarded.
    Forwarded {
        /// The rule.
        rule: &'t Arc<HttpRule>,
        /// The forwarding of the rule.
        forward: &'t Forward,
        /// Path and query.
        target: String,
        /// The authority.
        authority: String,
    },
}

/// Reads a head. `scheme` is the connection's. `trusted` means that the peer is a trusted proxy.
pub fn read<'h>(head: &'h Parts, scheme: &'h str, trusted: bool) -> Result<Asked<'h>, Refused> {
    if head.method == Method::CONNECT {
        return Err(Refused::Connect);
    }
    if headers::count(&head.headers) > MOST_HEADERS {
        return Err(Refused::TooManyHeaders);
    }
    let scheme_sent = head.uri.scheme_str();
    if scheme_sent
        .is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https"))
    {
        return Err(Refused::Scheme);
    }
    let path = match head.uri.path() {
        "*" if head.method == Method::OPTIONS => Cow::Borrowed("*"),
        path => normalise(path)?,
    };
    Ok(Asked {
        method: &head.method,
        scheme: headers::scheme_of(&head.headers, trusted, scheme),
        authority: authority(head)?,
        path,
        query: head.uri.query(),
        headers: &head.headers,
    })
}

/// The authority of a request. A request names it once, or twice identically (RFC 9112 section 3.2, RFC 9113 section
/// 8.3.1).
fn authority(head: &Parts) -> Result<Cow<'_, str>, Refused> {
    let mut hosts = head.headers.get_all(header::HOST).into_iter();
    let host = hosts.next().map(HeaderValue::to_str).transpose().map_err(|_| Refused::Host)?;
    if hosts.next().is_some() {
        return Err(Refused::Host);
    }
    let authority = match (head.uri.authority(), host) {
        (Some(authority), Some(host)) if !authority.as_str().eq_ignore_ascii_case(host) => {
            return Err(Refused::Authority);
        }
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host,
        (None, None) if head.version == Version::HTTP_10 => return Ok(Cow::Borrowed("")),
        (None, None) => return Err(Refused::Host),
    };
    // Neither a user nor a path is allowed, and an empty authority is no host (RFC 9110 section 4.2.1).
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~[]:!$&'()*+,;=%".contains(&byte);
    if authority.is_empty() || !authority.bytes().all(is_plain) || port(authority).is_none() {
        return Err(Refused::Host);
    }
    Ok(Cow::Borrowed(authority))
}

/// Host and port of an authority. `None` if the text after the colon is no port.
fn port(authority: &str) -> Option<(&str, Option<u16>)> {
    let behind_address = authority.rfind(']').map_or(0, |end| end + 1);
    match authority[behind_address..].find(':') {
        None => Some((authority, None)),
        Some(colon) => {
            let (host, port) = authority.split_at(behind_address + colon);
            let port = &port[1..];
            if host.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            // An empty port is the scheme's default (RFC 3986 section 3.2.3).
            if port.is_empty() { Some((host, None)) } else { Some((host, Some(port.parse().ok()?))) }
        }
    }
}

impl Asked<'_> {
    fn host_and_port(&self) -> (&str, Option<u16>) {
        port(&self.authority).unwrap_or((&self.authority, None))
    }

    fn path_and_query(&self) -> String {
        with_query(&self.path, self.query)
    }
}

impl Request for Asked<'_> {
    fn method(&self) -> &str {
        self.method.as_str()
    }

    fn scheme(&self) -> &str {
        self.scheme
    }

    fn authority(&self) -> &str {
        &self.authority
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> Option<&str> {
        self.query
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values =
            self.headers.get_all(name).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let first = values.next()?;
        Some(values.fold(first, |all, value| format!("{all},{value}").into()))
    }
}

/// Decides on a request. `own_port` is the port of the connection.
#[must_use]
pub fn decide<'t>(table: &'t HttpTable, asked: &Asked<'_>, own_port: u16) -> Decision<'t> {
    let (host, _) = asked.host_and_port();
    let host = host.strip_suffix('.').unwrap_or(host);
    let Some(virtual_host) = table.lookup(host) else { return Decision::NotFound };
    match virtual_host.serve(asked) {
        Served::Nothing => Decision::NotFound,
        Served::Rule(rule, matched) => act(rule, matched, asked, own_port),
        Served::Https(redirect) => Decision::Redirected {
            rule: None,
            status: StatusCode::MOVED_PERMANENTLY,
            location: https_location(redirect, asked),
        },
    }
}

fn act<'t>(
    rule: &'t Arc<HttpRule>,
    matched: Option<&'t HttpMatch>,
    asked: &Asked<'_>,
    own_port: u16,
) -> Decision<'t> {
    match &rule.action {
        HttpAction::Respond(_) => Decision::Responded(rule),
        HttpAction::Redirect(redirect) => Decision::Redirected {
            rule: Some(rule),
            status: StatusCode::from_u16(redirect.code).unwrap_or(StatusCode::MOVED_PERMANENTLY),
            location: location(redirect, asked, own_port),
        },
        HttpAction::Forward(forward) => {
            let rewrite = forward.rewrite.as_ref();
            let path = rewrite
                .map_or(Cow::Borrowed(&*asked.path), |rewrite| rewritten(rewrite, matched, &asked.path));
            let authority =
                rewrite.and_then(|rewrite| rewrite.authority.as_deref()).unwrap_or(&asked.authority);
            Decision::Forwarded {
                rule,
                forward,
                target: with_query(&path, asked.query),
                authority: authority.to_owned(),
            }
        }
    }
}

/// The path for a backend: `uri` replaces the matched prefix, or the whole path.
fn rewritten<'p>(rewrite: &Rewrite, matched: Option<&HttpMatch>, path: &'p str) -> Cow<'p, str> {
    if let Some((expression, substitution)) = &rewrite.uri_regex {
        return rooted(expression.replace_all(path, substitution)).into();
    }
    let Some(uri) = &rewrite.uri else { return path.into() };
    let replaced = match matched.map(|matched| &matched.uri) {
        Some(Some(StringMatch::Exact(_) | StringMatch::Regex(_))) => uri.clone(),
        Some(Some(StringMatch::Prefix(prefix))) => {
            format!("{uri}{}", path.get(prefix.len()..).unwrap_or_default())
        }
        // A rule without a condition matches the prefix `/`, as in Istio.
        Some(None) | None => format!("{uri}{}", path.get(1..).unwrap_or_default()),
    };
    rooted(replaced).into()
}

/// The path always begins with a slash, also after a rewrite.
fn rooted(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

/// The `Location` for the redirect of a whole host: the name as sent, with the port of the TLS server.
fn https_location(redirect: HttpsRedirect, asked: &Asked<'_>) -> String {
    let (host, _) = asked.host_and_port();
    let port = if redirect.port == 443 { String::new() } else { format!(":{}", redirect.port) };
    format!("https://{host}{port}{}", asked.path_and_query())
}

/// The `Location` of a redirect, by Envoy's rules.
fn location(redirect: &Redirect, asked: &Asked<'_>, own_port: u16) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(asked.scheme);
    let standard = if scheme == "https" { 443 } else { 80 };
    let (own_host, sent_port) = asked.host_and_port();
    let port = match (redirect.port, &redirect.authority) {
        (Some(RedirectPort::Number(port)), _) => Some(port),
        (Some(RedirectPort::OfRequest), _) => Some(own_port),
        (Some(RedirectPort::OfScheme), _) | (None, Some(_)) => None,
        // The port of the old scheme is not valid for the new one.
        (None, None)
            if scheme != asked.scheme
                && matches!((asked.scheme, sent_port), ("http", Some(80)) | ("https", Some(443))) =>
        {
            None
        }
        (None, None) => sent_port,
    };
    let host = redirect.authority.as_deref().unwrap_or(own_host);
    // An authority with an explicit port keeps it.
    let has_port = self::port(host).is_some_and(|(_, port)| port.is_some());
    let port = match port {
        Some(port) if port != standard && !has_port => format!(":{port}"),
        _ => String::new(),
    };
    let target = match (&redirect.uri, &redirect.prefix) {
        (None, _) => asked.path_and_query(),
        (Some(uri), Some(prefix)) => {
            let rest = asked.path.get(prefix.len()..).unwrap_or_default();
            with_query(&rooted(format!("{uri}{rest}")), asked.query)
        }
        // The redirect's own query replaces the request's.
        (Some(uri), None) if uri.contains('?') => rooted(uri.clone()),
        (Some(uri), None) => with_query(&rooted(uri.clone()), asked.query),
    };
    format!("{scheme}://{host}{port}{target}")
}

/// The target of a forwarded request. In HTTP/1.1 it is path and query only.
pub fn target(scheme: &str, authority: &str, target: &str, version: Version) -> Result<Uri, Refused> {
    if version != Version::HTTP_2 {
        return target.parse().map_err(|_| Refused::Target);
    }
    let target = if target == "*" { "/*" } else { target };
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(target)
        .build()
        .map_err(|_| Refused::Target)
}

#[cfg(test)]
mod tests;
