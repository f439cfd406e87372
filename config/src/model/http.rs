//! HTTP requests: the rules, their conditions and their actions.

use std::{
    cmp::Reverse,
    sync::{Arc, OnceLock},
    time::Duration,
};

use super::route::{Origin, Route};
use crate::name::{HostPattern, ServerName, labels};

mod header_text;
pub mod matching;

pub use self::header_text::{HeaderText, Variable};

/// The rules of one server, by the authority of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpTable {
    /// Each pattern once, the most specific first: exact names, then the longest suffixes, then `*`. Equal ones are
    /// in alphabetical order. See [`HttpTable::new`].
    pub hosts: Vec<VirtualHost>,
}

impl HttpTable {
    /// Sorts the hosts. Their patterns are unique.
    #[must_use]
    pub fn new(mut hosts: Vec<VirtualHost>) -> Self {
        hosts.sort_by(|a, b| place(&a.pattern).cmp(&place(&b.pattern)));
        Self { hosts }
    }

    /// The rules for a host without its port. The response to `None` is 404.
    #[must_use]
    pub fn lookup(&self, host: &str) -> Option<&VirtualHost> {
        // Only `*` matches an address or another text that is no name.
        let any = || self.hosts.last().filter(|last| last.pattern == HostPattern::Any);
        let Ok(name) = ServerName::parse(host) else { return any() };
        let name = name.as_str();
        let suffixes = std::iter::successors(parent(name), |suffix| parent(suffix));
        self.at(usize::MAX, name)
            .or_else(|| suffixes.into_iter().find_map(|suffix| self.at(labels(suffix), suffix)))
            .or_else(any)
    }

    /// The host at exactly this position.
    fn at(&self, specificity: usize, text: &str) -> Option<&VirtualHost> {
        let wanted = (Reverse(specificity), text);
        let found = self.hosts.binary_search_by(|host| place(&host.pattern).cmp(&wanted));
        found.ok().and_then(|at| self.hosts.get(at))
    }
}

/// The sort key of a pattern: the most specific first, then in alphabetical order.
fn place(pattern: &HostPattern) -> (Reverse<usize>, &str) {
    let text = match pattern {
        HostPattern::Exact(name) | HostPattern::Suffix(name) => name.as_str(),
        HostPattern::Any => "",
    };
    (Reverse(pattern.specificity()), text)
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}

/// The rules of one name or pattern of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualHost {
    /// The matched names.
    pub pattern: HostPattern,
    /// Redirects every request to HTTPS (`httpsRedirect`), before any rule.
    pub https_redirect: Option<HttpsRedirect>,
    /// The first matching rule serves a request. Without one the response is 404.
    pub rules: Vec<Arc<HttpRule>>,
}

/// A redirect of whole hosts to HTTPS, with 301.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpsRedirect {
    /// The port of the TLS server. 443 is omitted from the location.
    pub port: u16,
}

/// One `http` route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRule {
    /// The id, name, origin and weighted targets. Only [`HttpAction::Forward`] has targets.
    pub rule: Arc<Route>,
    /// One of these conditions must match. An empty list matches every request.
    pub matches: Vec<HttpMatch>,
    /// The action for a request.
    pub action: HttpAction,
    /// Changes to every request.
    pub request_headers: HeaderChanges,
    /// Changes to every response.
    pub response_headers: HeaderChanges,
}

/// A condition, all of whose parts must match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// The path without its query.
    pub uri: Option<StringMatch>,
    /// Whether the path matches in any case.
    pub ignore_uri_case: bool,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// The request's method.
    pub method: Option<StringMatch>,
    /// The authority as sent, including its port.
    pub authority: Option<StringMatch>,
    /// Required headers. `None` accepts any value.
    pub headers: Vec<(String, Option<StringMatch>)>,
    /// Headers that must be absent, or must not have this value.
    pub without_headers: Vec<(String, Option<StringMatch>)>,
    /// Required query parameters. `None` accepts any value.
    pub query_params: Vec<(String, Option<StringMatch>)>,
}

/// A condition for a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// The complete text.
    Exact(String),
    /// A prefix of the text.
    Prefix(String),
    /// The complete text matches this regular expression (RE2 syntax).
    Regex(Expression),
}

/// A compiled expression. Two are equal if their sources are equal.
#[derive(Debug, Clone)]
pub struct Expression {
    written: String,
    compiled: regex::Regex,
    /// The expression for parts of a text, compiled at the first use.
    of_parts: OnceLock<regex::Regex>,
}

impl Expression {
    /// The greatest size of an expression's program, in bytes.
    const SIZE_LIMIT: usize = 1 << 20;

    /// Compiles an expression that must match a complete text.
    ///
    /// # Errors
    /// Returns an error if the expression is invalid, or its program is larger than 1 MiB.
    pub fn new(written: &str) -> Result<Self, String> {
        let compile = |text: &str| regex::RegexBuilder::new(text).size_limit(Self::SIZE_LIMIT).build();
        // Compiled without brackets first: added brackets must not hide an unbalanced one.
        compile(written)
            .and_then(|_| compile(&format!("^(?:{written})$")))
            .map(|compiled| Self { written: written.to_owned(), compiled, of_parts: OnceLock::new() })
            .map_err(|error| error.to_string())
    }

    /// Whether the expression matches the complete text.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.compiled.is_match(text)
    }

    /// The text with `substitution` instead of each matching part. In `substitution`, `\1` is the first group, `\0`
    /// the complete match, and `\\` a backslash (RE2 `Rewrite`).
    #[must_use]
    pub fn replace_all(&self, text: &str, substitution: &str) -> String {
        // The expression has compiled before, within brackets.
        let build = || {
            regex::RegexBuilder::new(&self.written)
                .size_limit(Self::SIZE_LIMIT)
                .build()
                .unwrap_or_else(|_| self.compiled.clone())
        };
        let replacement = |found: &regex::Captures<'_>| {
            let mut replaced = String::new();
            let mut letters = substitution.chars();
            while let Some(letter) = letters.next() {
                match (letter, letters.clone().next()) {
                    ('\\', Some(digit @ '0'..='9')) => {
                        letters.next();
                        let group = digit as usize - '0' as usize;
                        replaced.push_str(found.get(group).map_or("", |group| group.as_str()));
                    }
                    ('\\', Some('\\')) => {
                        letters.next();
                        replaced.push('\\');
                    }
                    _ => replaced.push(letter),
                }
            }
            replaced
        };
        self.of_parts.get_or_init(build).replace_all(text, replacement).into_owned()
    }

    /// The source of the expression.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.written
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl Eq for Expression {}

/// The action for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAction {
    /// The request is forwarded to one of the rule's targets.
    Forward(Forward),
    /// The response is a redirect.
    Redirect(Redirect),
    /// The response is a direct response.
    Respond(Respond),
}

/// The forwarding of requests to targets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forward {
    /// The changes to requests and to responses for each of the rule's targets, in order.
    pub of_target: Vec<(HeaderChanges, HeaderChanges)>,
    /// Changes of the path and the authority.
    pub rewrite: Option<Rewrite>,
    /// The time limit from the request's end to the response's end. `None` is no limit, as in Istio.
    pub timeout: Option<Duration>,
    /// The conditions for a retry.
    pub retries: Retries,
}

/// Changes of a request's path and authority before it is forwarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Replaces the part that `uri` of the match names: the prefix, or the complete path.
    pub uri: Option<String>,
    /// An expression for the path, and the replacement of each match (`\1` is its first group).
    pub uri_regex: Option<(Expression, String)>,
    /// The new authority.
    pub authority: Option<String>,
}

/// The retries of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// The number of retries; 0 is none.
    pub attempts: u32,
    /// The time limit of one attempt. `None` is that of the request.
    pub per_try_timeout: Option<Duration>,
    /// The connection failed, was reset before the response, or was refused (`connect-failure`, `refused-stream`).
    pub on_connect_failure: bool,
    /// The connection ended before the response's head (`reset`, `gateway-error` and `5xx` include it).
    pub on_reset: bool,
    /// Responses with these codes (`503`, `gateway-error`, `5xx`, `retriable-status-codes`).
    pub on_status: Vec<u16>,
}

impl Default for Retries {
    /// Istio's default: two retries, after failed connections and after 503.
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            on_connect_failure: true,
            on_reset: false,
            on_status: vec![503],
        }
    }
}

/// A redirect of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The new path. `None` keeps the request's.
    pub uri: Option<String>,
    /// The matched prefix that `uri` replaces. With `None`, `uri` replaces the complete path.
    pub prefix: Option<String>,
    /// The new authority. `None` keeps the request's.
    pub authority: Option<String>,
    /// The new scheme. `None` keeps the request's.
    pub scheme: Option<String>,
    /// The new port.
    pub port: Option<RedirectPort>,
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
}

/// The port of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// A number.
    Number(u16),
    /// The default port of the scheme (`FROM_PROTOCOL_DEFAULT`).
    OfScheme,
    /// The request's port (`FROM_REQUEST_PORT`).
    OfRequest,
}

/// A direct response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    /// The status code.
    pub status: u16,
    /// The body. May be empty.
    pub body: Vec<u8>,
}

/// Changes to the headers of a request or response, in the order remove, set, add.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Headers to remove.
    pub remove: Vec<String>,
    /// Headers that replace all values of their name.
    pub set: Vec<(String, HeaderText)>,
    /// Headers that are added to existing values.
    pub add: Vec<(String, HeaderText)>,
}

/// The HTTP service of a server without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainHttp {
    /// The server.
    pub name: String,
    /// The location in the configuration.
    pub origin: Origin,
    /// The rules of the server.
    pub table: Arc<HttpTable>,
}

impl PlainHttp {
    /// Merges this value with `other`. For the same host, the rules of `other` follow these rules, but come before a
    /// rule for all requests.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        let mut hosts = self.table.hosts.clone();
        for more in &other.table.hosts {
            let Some(host) = hosts.iter_mut().find(|host| host.pattern == more.pattern) else {
                hosts.push(more.clone());
                continue;
            };
            host.https_redirect = host.https_redirect.or(more.https_redirect);
            let new =
                more.rules.iter().filter(|rule| !host.rules.contains(rule)).cloned().collect::<Vec<_>>();
            host.rules.extend(new);
            host.rules.sort_by_key(|rule| rule.takes_all());
        }
        Self { table: Arc::new(HttpTable::new(hosts)), ..self }
    }
}

/// The HTTP version towards a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum BackendHttp {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge (port name `http2`, `grpc`, `grpc-web`, or `appProtocol: kubernetes.io/h2c`).
    Http2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_replaces_each_part_that_matches() {
        let expression = Expression::new("/v([0-9]+)/(.*)").unwrap();
        assert!(expression.matches("/v1/a"));
        assert!(!expression.matches("/x/v1/a"));
        assert_eq!(expression.replace_all("/v12/a/b", r"/\2?of=\1"), "/a/b?of=12");
        assert_eq!(expression.replace_all("/other", r"/\2"), "/other");
        assert_eq!(Expression::new("a").unwrap().replace_all("banana", r"$1\\\9"), r"b$1\n$1\n$1\");
    }

    fn table(patterns: &[&str]) -> HttpTable {
        let host = |text: &&str| VirtualHost {
            pattern: HostPattern::parse(text).unwrap(),
            https_redirect: None,
            rules: Vec::new(),
        };
        HttpTable::new(patterns.iter().map(host).collect())
    }

    #[test]
    fn the_most_specific_host_serves() {
        let table = table(&["*", "*.test", "b.a.test", "*.a.test", "a.test", "*.b.a.test", "z.test"]);
        for (host, pattern) in [
            ("a.test", "a.test"),
            ("A.Test", "a.test"),
            ("b.a.test", "b.a.test"),
            ("c.a.test", "*.a.test"),
            ("c.b.a.test", "*.b.a.test"),
            ("d.c.b.a.test", "*.b.a.test"),
            ("y.test", "*.test"),
            ("test", "*"),
            ("other.example", "*"),
            ("10.0.0.1", "*"),
            ("[::1]", "*"),
            ("", "*"),
        ] {
            let found = table.lookup(host).map(|found| found.pattern.to_string());
            assert_eq!(found.as_deref(), Some(pattern), "{host}");
        }
    }

    #[test]
    fn without_a_star_other_hosts_have_no_rules() {
        let table = table(&["a.test", "*.b.test"]);
        assert!(table.lookup("a.test").is_some() && table.lookup("x.b.test").is_some());
        for host in ["b.test", "x.a.test", "10.0.0.1", "", "test"] {
            assert!(table.lookup(host).is_none(), "{host}");
        }
        assert!(HttpTable::default().lookup("a.test").is_none());
    }

    #[test]
    fn an_expression_has_to_match_the_whole_text() {
        let expression = Expression::new("a|b").unwrap();
        assert!(expression.matches("a") && expression.matches("b") && !expression.matches("ab"));
        assert!(Expression::new(")(").is_err());
        assert!(Expression::new("(a{1000}){1000}").is_err(), "larger than is allowed");
    }
}
