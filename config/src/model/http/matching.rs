//! The match of a request with rules, and the reasons why rules do not match: functions of the rules and the request.

use std::{borrow::Cow, sync::Arc};

use super::{HttpMatch, HttpRule, HttpsRedirect, StringMatch, VirtualHost};

/// The path of ACME challenges, which may be served before a redirect to HTTPS: control of a name is proved over
/// plain HTTP (RFC 8555 section 8.3).
const ACME: &str = "/.well-known/acme-challenge/";

/// The part of a request that rules use.
pub trait Request {
    /// The method.
    fn method(&self) -> &str;
    /// `http` or `https`, as the client sees it.
    fn scheme(&self) -> &str;
    /// The authority as sent.
    fn authority(&self) -> &str;
    /// The path in its normal form, without the query.
    fn path(&self) -> &str;
    /// The text after the first question mark.
    fn query(&self) -> Option<&str>;
    /// The values of a header, joined by commas (RFC 9110 section 5.3). The name is in lower case.
    fn header(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// The result of a match within a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served<'t> {
    /// A redirect to HTTPS.
    Https(HttpsRedirect),
    /// This rule, by one of its conditions. A rule without conditions matches every request.
    Rule(&'t Arc<HttpRule>, Option<&'t HttpMatch>),
    /// No rule.
    Nothing,
}

/// The part of a condition that does not match.
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
    /// A header that must be absent.
    WithoutHeader(&'t str),
    /// A query parameter that is missing or has another value.
    QueryParam(&'t str),
}

impl VirtualHost {
    /// Finds the rule for a request: the redirect to HTTPS unless a rule serves its ACME challenge, or else the first
    /// matching rule.
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

    /// The rule of an ACME challenge. It comes before a redirect to HTTPS if the rule names the path of challenges
    /// and no other one.
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
    /// Whether the rule matches every request.
    #[must_use]
    pub fn takes_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(HttpMatch::takes_all)
    }

    /// Whether the rule matches a request, and the matching condition.
    #[expect(clippy::option_option, reason = "a rule without conditions matches by none of them")]
    fn matched(&self, request: &impl Request) -> Option<Option<&HttpMatch>> {
        if self.matches.is_empty() {
            return Some(None);
        }
        self.matches.iter().find(|wanted| wanted.holds(request)).map(Some)
    }
}

impl HttpMatch {
    /// Whether the condition matches every request: it is empty, or has a prefix of all paths.
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

    /// Whether the condition names the path of ACME challenges and no other one.
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

    /// The first part that does not match a request. `None` if all match.
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

    /// The expression itself decides on the case.
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

/// Several headers of one name are joined with commas. The pseudo-headers of HTTP/2 are included.
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

/// A path with its query, as in a request.
#[must_use]
pub fn with_query(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// Only the first parameter with the name is used.
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
