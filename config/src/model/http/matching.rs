//! Which rule a request takes, and what keeps others from it: functions of the rules and the request.

use std::{borrow::Cow, sync::Arc};

use super::{HttpMatch, HttpRule, HttpsRedirect, StringMatch, VirtualHost};

/// Where requests may go before they are sent to HTTPS: who proves control of a name over plain HTTP (RFC 8555 section 8.3).
const ACME: &str = "/.well-known/acme-challenge/";

/// What rules look at of a request.
pub trait Request {
    /// The method.
    fn method(&self) -> &str;
    /// `http` or `https`, as the client sees it.
    fn scheme(&self) -> &str;
    /// The authority as sent.
    fn authority(&self) -> &str;
    /// The path in its normal form, without the query.
    fn path(&self) -> &str;
    /// What is behind the first question mark.
    fn query(&self) -> Option<&str>;
    /// The values of a header, joined by commas (RFC 9110 section 5.3). The name is in lower case.
    fn header(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// What serves a request of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served<'t> {
    /// It is sent to HTTPS.
    Https(HttpsRedirect),
    /// This rule, by one of its conditions; a rule without conditions takes every request.
    Rule(&'t Arc<HttpRule>, Option<&'t HttpMatch>),
    /// No rule.
    Nothing,
}

/// The part of a condition that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet<'t> {
    /// `uri`.
    Path,
    /// `scheme`.
    Scheme,
    /// `method`.
    Method,
    /// `authority`.
    Authority,
    /// A header that is missing or has another value.
    Header(&'t str),
    /// A header that must not be there.
    WithoutHeader(&'t str),
    /// A query parameter that is missing or has another value.
    QueryParam(&'t str),
}

impl VirtualHost {
    /// What serves a request: the redirect to HTTPS unless a rule is for its ACME challenge, else the first rule that matches.
    #[must_use]
    pub fn serve(&self, request: &impl Request) -> Served<'_> {
        let found = match self.https_redirect {
            Some(redirect) if request.scheme() != "https" => {
                return match self.challenge(request) {
                    Some((rule, matched)) => Served::Rule(rule, Some(matched)),
                    None => Served::Https(redirect),
                };
            }
            _ => self.rules.iter().find_map(|rule| Some((rule, rule.matched(request)?))),
        };
        found.map_or(Served::Nothing, |(rule, matched)| Served::Rule(rule, matched))
    }

    /// The rule of an ACME challenge, which is served before a redirect to HTTPS where a rule names its path and no other one.
    fn challenge(&self, request: &impl Request) -> Option<(&Arc<HttpRule>, &HttpMatch)> {
        if !request.path().starts_with(ACME) {
            return None;
        }
        self.rules.iter().find_map(|rule| {
            let matched =
                rule.matches.iter().find(|wanted| wanted.is_for_challenges() && wanted.holds(request))?;
            Some((rule, matched))
        })
    }
}

impl HttpRule {
    /// Whether it takes every request.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(HttpMatch::takes_all)
    }

    /// Whether it takes a request, and by which of its conditions.
    #[expect(clippy::option_option, reason = "a rule without conditions matches by none of them")]
    fn matched(&self, request: &impl Request) -> Option<Option<&HttpMatch>> {
        if self.matches.is_empty() {
            return Some(None);
        }
        self.matches.iter().find(|wanted| wanted.holds(request)).map(Some)
    }
}

impl HttpMatch {
    /// Whether every request matches: nothing is asked for, or a path that all paths begin with.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        let Self {
            uri,
            ignore_uri_case: _,
            scheme,
            method,
            authority,
            headers,
            without_headers,
            query_params,
        } = self;
        let any_path = match uri {
            None => true,
            Some(StringMatch::Prefix(prefix)) => prefix == "/",
            Some(_) => false,
        };
        any_path
            && scheme.is_none()
            && method.is_none()
            && authority.is_none()
            && headers.is_empty()
            && without_headers.is_empty()
            && query_params.is_empty()
    }

    /// Whether it names the path of ACME challenges and no other one.
    fn is_for_challenges(&self) -> bool {
        match &self.uri {
            Some(StringMatch::Exact(path) | StringMatch::Prefix(path)) => {
                path.starts_with(ACME) || path == ACME.trim_end_matches('/')
            }
            _ => false,
        }
    }

    fn holds(&self, request: &impl Request) -> bool {
        self.unmet(request).is_none()
    }

    /// The first part that does not hold for a request; `None` if all do.
    #[must_use]
    pub fn unmet(&self, request: &impl Request) -> Option<Unmet<'_>> {
        let Self { uri, ignore_uri_case, scheme, method, authority, headers, without_headers, query_params } =
            self;
        let is = |wanted: &Option<StringMatch>, text: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted.holds(text))
        };
        let path = uri.as_ref().is_none_or(|wanted| {
            if *ignore_uri_case {
                wanted.holds_in_any_case(request.path())
            } else {
                wanted.holds(request.path())
            }
        });
        if !path {
            return Some(Unmet::Path);
        }
        if !is(scheme, request.scheme()) {
            return Some(Unmet::Scheme);
        }
        if !is(method, request.method()) {
            return Some(Unmet::Method);
        }
        if !is(authority, request.authority()) {
            return Some(Unmet::Authority);
        }
        if let Some((name, _)) =
            headers.iter().find(|(name, wanted)| !header_holds(request, name, wanted.as_ref()))
        {
            return Some(Unmet::Header(name));
        }
        if let Some((name, _)) =
            without_headers.iter().find(|(name, wanted)| header_holds(request, name, wanted.as_ref()))
        {
            return Some(Unmet::WithoutHeader(name));
        }
        let missing =
            query_params.iter().find(|(name, wanted)| !query_holds(request.query(), name, wanted.as_ref()));
        missing.map(|(name, _)| Unmet::QueryParam(name))
    }
}

impl StringMatch {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Regex(expression) => expression.matches(text),
        }
    }

    /// An expression says itself whether case matters.
    fn holds_in_any_case(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.eq_ignore_ascii_case(text),
            Self::Prefix(prefix) => {
                text.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
            }
            Self::Regex(expression) => expression.matches(text),
        }
    }
}

/// Several headers of one name are one with commas. The pseudo-headers of HTTP/2 count too.
fn header_holds(request: &impl Request, name: &str, wanted: Option<&StringMatch>) -> bool {
    let value = match name {
        ":authority" | "host" => Some(Cow::Borrowed(request.authority())),
        ":method" => Some(Cow::Borrowed(request.method())),
        ":scheme" => Some(Cow::Borrowed(request.scheme())),
        ":path" => Some(Cow::Owned(with_query(request.path(), request.query()))),
        _ => request.header(name),
    };
    value.is_some_and(|value| wanted.is_none_or(|wanted| wanted.holds(&value)))
}

/// A path and its query, as a request has them.
#[must_use]
pub fn with_query(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// The first parameter of the name counts.
fn query_holds(query: Option<&str>, name: &str, wanted: Option<&StringMatch>) -> bool {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
    };
    pairs
        .map(|(key, value)| (decode(key), value))
        .find(|(key, _)| key == name)
        .is_some_and(|(_, value)| wanted.is_none_or(|wanted| wanted.holds(&decode(value))))
}
