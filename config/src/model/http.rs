//! HTTP requests: which rule serves them and what it does with them.

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

/// The rules of one server by the authority of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpTable {
    /// Each pattern once, the most specific first: exact names, then the longest suffixes, then `*`; in alphabetical order
    /// among equal ones. See [`HttpTable::new`].
    pub hosts: Vec<VirtualHost>,
}

impl HttpTable {
    /// Puts the hosts in order. Patterns are unique.
    #[must_use]
    pub fn new(mut hosts: Vec<VirtualHost>) -> Self {
        hosts.sort_by(|a, b| place(&a.pattern).cmp(&place(&b.pattern)));
        Self { hosts }
    }

    /// The rules for a host without its port; `None` is answered with 404.
    #[must_use]
    pub fn lookup(&self, host: &str) -> Option<&VirtualHost> {
        // An address or another text that is no name is within `*` alone.
        let any = || self.hosts.last().filter(|last| last.pattern == HostPattern::Any);
        let Ok(name) = ServerName::parse(host) else { return any() };
        let name = name.as_str();
        let suffixes = std::iter::successors(parent(name), |suffix| parent(suffix));
        self.at(usize::MAX, name)
            .or_else(|| suffixes.into_iter().find_map(|suffix| self.at(labels(suffix), suffix)))
            .or_else(any)
    }

    /// The host of exactly this place.
    fn at(&self, specificity: usize, text: &str) -> Option<&VirtualHost> {
        let wanted = (Reverse(specificity), text);
        let found = self.hosts.binary_search_by(|host| place(&host.pattern).cmp(&wanted));
        found.ok().and_then(|at| self.hosts.get(at))
    }
}

/// Where a pattern is among others: the most specific first, then in alphabetical order.
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
    /// The names.
    pub pattern: HostPattern,
    /// Every request is sent to HTTPS (`httpsRedirect`), before any rule.
    pub https_redirect: Option<HttpsRedirect>,
    /// The first that matches serves; none is answered with 404.
    pub rules: Vec<Arc<HttpRule>>,
}

/// A redirect of whole hosts to HTTPS, with 301.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpsRedirect {
    /// The port of the TLS server; 443 is left out of the location.
    pub port: u16,
}

/// What one `http` route does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRule {
    /// Its id, name, origin and weighted targets. There are targets for [`HttpAction::Forward`] only.
    pub rule: Arc<Route>,
    /// One of them must match; no match at all is every request.
    pub matches: Vec<HttpMatch>,
    /// What becomes of a request.
    pub action: HttpAction,
    /// Changes to every request.
    pub request_headers: HeaderChanges,
    /// Changes to every response.
    pub response_headers: HeaderChanges,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// Of the path without its query.
    pub uri: Option<StringMatch>,
    /// Whether the case of the path counts for nothing.
    pub ignore_uri_case: bool,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// The authority as sent, with its port.
    pub authority: Option<StringMatch>,
    /// Headers that must be there; `None` takes any value.
    pub headers: Vec<(String, Option<StringMatch>)>,
    /// Headers that must not be there, or not with this value.
    pub without_headers: Vec<(String, Option<StringMatch>)>,
    /// Query parameters that must be there; `None` takes any value.
    pub query_params: Vec<(String, Option<StringMatch>)>,
}

/// A condition for a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    /// The whole text.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// The whole text matches this expression (RE2 syntax).
    Regex(Expression),
}

/// A compiled expression; two are equal if they are written alike.
#[derive(Debug, Clone)]
pub struct Expression {
    written: String,
    compiled: regex::Regex,
    /// The same for a part of a text, compiled when it is first wanted.
    of_parts: OnceLock<regex::Regex>,
}

impl Expression {
    /// The largest program of an expression, in bytes.
    const SIZE_LIMIT: usize = 1 << 20;

    /// Compiles an expression that has to match a whole text.
    ///
    /// # Errors
    /// If it is no expression, or its program is larger than 1 MiB; the error says why.
    pub fn new(written: &str) -> Result<Self, String> {
        let compile = |text: &str| regex::RegexBuilder::new(text).size_limit(Self::SIZE_LIMIT).build();
        // By itself first: a bracket that closes too early must not pass because of the brackets around it.
        compile(written)
            .and_then(|_| compile(&format!("^(?:{written})$")))
            .map(|compiled| Self { written: written.to_owned(), compiled, of_parts: OnceLock::new() })
            .map_err(|error| error.to_string())
    }

    /// Whether it matches the whole text.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.compiled.is_match(text)
    }

    /// The text with `substitution` in the place of each part that matches; `\1` in it is the first group, `\0` the whole
    /// match, and `\\` a backslash (RE2 `Rewrite`).
    #[must_use]
    pub fn replace_all(&self, text: &str, substitution: &str) -> String {
        // It has compiled before, with brackets around it.
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

    /// As it was written.
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

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAction {
    /// It goes to one of the rule's targets.
    Forward(Forward),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered here.
    Respond(Respond),
}

/// How requests go to targets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forward {
    /// For each of the rule's targets, in their order, the changes to requests and to responses.
    pub of_target: Vec<(HeaderChanges, HeaderChanges)>,
    /// Changes of path and authority.
    pub rewrite: Option<Rewrite>,
    /// From the request's end to the response's end; `None` is no limit, as in Istio.
    pub timeout: Option<Duration>,
    /// What is tried again.
    pub retries: Retries,
}

/// Changes of a request's path and authority before it is sent on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Takes the place of what `uri` of the match names: of the prefix, or of the whole path.
    pub uri: Option<String>,
    /// An expression over the path, and what takes the place of each match (`\1` is its first group).
    pub uri_regex: Option<(Expression, String)>,
    /// The new authority.
    pub authority: Option<String>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Times beside the first; 0 never.
    pub attempts: u32,
    /// The limit of one try; `None` is the request's.
    pub per_try_timeout: Option<Duration>,
    /// The connection failed, was reset before the response, or was refused (`connect-failure`, `refused-stream`).
    pub on_connect_failure: bool,
    /// The connection ended before the response's head (`reset`, `gateway-error` and `5xx` include it).
    pub on_reset: bool,
    /// Responses with these codes (`503`, `gateway-error`, `5xx`, `retriable-status-codes`).
    pub on_status: Vec<u16>,
}

impl Default for Retries {
    /// Istio's: twice, for failures of connections and for 503.
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

/// Sends a client elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The new path; the request's without one.
    pub uri: Option<String>,
    /// The matched prefix whose place `uri` takes; without one it takes that of the whole path.
    pub prefix: Option<String>,
    /// The new authority; the request's without one.
    pub authority: Option<String>,
    /// The new scheme; the request's without one.
    pub scheme: Option<String>,
    /// The new port.
    pub port: Option<RedirectPort>,
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
}

/// The port of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedirectPort {
    /// This one.
    Number(u16),
    /// The scheme's own (`FROM_PROTOCOL_DEFAULT`).
    OfScheme,
    /// The request's (`FROM_REQUEST_PORT`).
    OfRequest,
}

/// An answer of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Respond {
    /// The status code.
    pub status: u16,
    /// The body; empty for none.
    pub body: Vec<u8>,
}

/// Changes to the headers of a request or response, in the order remove, set, add.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Taken out.
    pub remove: Vec<String>,
    /// Put in the place of all values of the name.
    pub set: Vec<(String, HeaderText)>,
    /// Put beside what is there.
    pub add: Vec<(String, HeaderText)>,
}

/// How a server takes HTTP without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainHttp {
    /// Which server wants it.
    pub name: String,
    /// Where it was written.
    pub origin: Origin,
    /// Its rules.
    pub table: Arc<HttpTable>,
}

impl PlainHttp {
    /// This and another one as one: the rules of `other` come after these for the same host, but before a rule for all requests.
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

/// The version of HTTP that a backend is spoken to in.
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
