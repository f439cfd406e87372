//! The output of `explain`: the listener, rule and endpoints of a name, and the reasons.

use std::{fmt, sync::Arc};

pub use self::request::Requested;

use crate::{
    check::{Percent, describe_policy, endpoints, shares, targets},
    describe::{self, is_http},
    model::route_table::{Entry, Shadowed, TableExplanation},
    model::{
        Backend, Claim, Listener, Model, Origin, Policy, Route, Rule, http::HttpTable, termination::Inside,
    },
    name::{HostPattern, NameError, ServerName, is_address},
};

mod request;

/// The results for one name on each selected listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The question.
    pub question: Question,
    /// One result per selected listener.
    pub answers: Vec<Answer>,
    /// The ports of all listeners, for a question about another port.
    pub ports: Vec<u16>,
    /// Claims of servers that are not served, if no listener is selected.
    pub claims: Vec<Claim>,
}

impl Explanation {
    /// Whether a rule of at least one listener serves the name.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.answers
            .iter()
            .any(|answer| matches!(answer.outcome, Outcome::Rule { .. }) || !answer.plain_http.is_empty())
    }
}

/// The question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The text of the name. `None` is a hello without a name.
    pub sni: Option<String>,
    /// The reason for which the text is not a server name.
    pub invalid: Option<NameError>,
    /// The port of the listeners. `None` is all of them.
    pub port: Option<u16>,
}

/// The result for one listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The listener's name.
    pub listener: String,
    /// Its addresses.
    pub bind: Vec<std::net::SocketAddr>,
    /// The location in the configuration.
    pub origin: Origin,
    /// The rules for its clients in words. Empty without rules.
    pub clients: String,
    /// The result for a connection.
    pub outcome: Outcome,
    /// The results for HTTP requests for the name within TLS, one description per line.
    pub requests: Vec<String>,
    /// The results for HTTP requests for the name without TLS, one description per line.
    pub plain_http: Vec<String>,
    /// Whether the question is about a request without TLS only.
    pub only_plain: bool,
}

/// The result for a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A rule serves the connection.
    Rule {
        /// The matched pattern.
        pattern: HostPattern,
        /// The rule.
        rule: Arc<Rule>,
        /// Percent of the connections by backend. `None` is rejected.
        shares: Vec<(Option<Backend>, f64)>,
        /// Entries that would serve the name without this rule, the most specific first.
        less_specific: Vec<Entry>,
        /// Rules that claim the name by a pattern of another rule.
        shadowed: Vec<Shadowed>,
    },
    /// No rule serves the connection.
    Policy {
        /// Servers with the name that are not served.
        claims: Vec<Claim>,
        /// `no_sni` or `unknown_name`.
        verdict: &'static str,
        /// The applied policy.
        policy: Policy,
        /// The policy in words.
        described: String,
    },
}

/// Explains a hello with `sni` (or without one) on the listeners of `port`, or on all of them.
///
/// `port` is the configured one or the one of `--listen`. With a request, the result includes the rule for the HTTP
/// request.
#[must_use]
pub fn explain(
    model: &Model,
    sni: Option<&str>,
    port: Option<u16>,
    request: Option<&Requested>,
) -> Explanation {
    let mut ports: Vec<u16> = model.listeners.iter().flat_map(|one| &one.ports).copied().collect();
    ports.sort_unstable();
    ports.dedup();
    let (name, invalid) = match sni.map(ServerName::parse) {
        None => (None, None),
        Some(Ok(name)) => (Some(name), None),
        // As for a hello: such a client is served like one without a name.
        Some(Err(_)) if sni.is_some_and(|text| is_address(text.as_bytes())) => (None, None),
        Some(Err(why)) => (None, Some(why)),
    };
    let answers = if invalid.is_some() {
        Vec::new()
    } else {
        model
            .listeners
            .iter()
            .filter(|listener| port.is_none_or(|port| has_port(listener, port)))
            .map(|listener| answer(model, listener, name.as_ref(), request))
            .collect()
    };
    let question = Question { sni: sni.map(Into::into), invalid, port };
    let elsewhere = |at: u16| port.is_none_or(|port| port == at);
    let claims = if answers.is_empty() { claims(model, name.as_ref(), elsewhere) } else { Vec::new() };
    Explanation { question, answers, ports, claims }
}

/// The result for requests of a host without rules.
const NO_ROUTE: &str = "no http route: every request is answered with 404";

/// The claims for a name on the ports that `asked` selects.
fn claims(model: &Model, name: Option<&ServerName>, asked: impl Fn(u16) -> bool) -> Vec<Claim> {
    let Some(name) = name else { return Vec::new() };
    let is_asked = |claim: &&Claim| asked(claim.port) && claim.pattern.matches(name);
    model.claims.iter().filter(is_asked).cloned().collect()
}

fn has_port(listener: &Listener, port: u16) -> bool {
    listener.ports.contains(&port) || listener.bind.iter().any(|address| address.port() == port)
}

fn answer(
    model: &Model,
    listener: &Listener,
    name: Option<&ServerName>,
    request: Option<&Requested>,
) -> Answer {
    let TableExplanation { matched, less_specific, shadowed } = listener.routes.explain(name);
    let outcome = if let Some(Entry { pattern, rule }) = matched {
        Outcome::Rule {
            pattern: pattern.clone(),
            rule: Arc::clone(rule),
            shares: shares(rule, model)
                .into_iter()
                .map(|(backend, percent)| (backend.cloned(), percent))
                .collect(),
            less_specific: less_specific.into_iter().cloned().collect(),
            shadowed: shadowed.into_iter().cloned().collect(),
        }
    } else {
        let (verdict, policy) = match name {
            Some(_) => ("unknown_name", listener.policies.unknown_name),
            None => ("no_sni", listener.policies.no_sni),
        };
        let claims = claims(model, name, |port| listener.ports.contains(&port));
        Outcome::Policy { claims, verdict, policy, described: describe_policy(policy, model) }
    };
    let lead = |rule: &Route| targets(rule, model);
    // A client requests the host that its hello names.
    let of_table = |table: &HttpTable| match (request, table.lookup(name.map_or("", ServerName::as_str))) {
        (Some(asked), _) => request::lines(table, asked, &lead),
        (None, Some(host)) => describe::host(host, &lead),
        (None, None) => vec![NO_ROUTE.to_owned()],
    };
    let within_tls = request.is_none_or(|asked| asked.scheme == "https");
    let without_tls = request.is_none_or(|asked| asked.scheme != "https");
    let requests = match &outcome {
        Outcome::Rule { rule, .. } => match rule.termination.as_ref().map(|ends| &ends.inside) {
            Some(Inside::Http(table)) if within_tls => of_table(table),
            _ => Vec::new(),
        },
        Outcome::Policy { .. } => Vec::new(),
    };
    let plain = listener.plain_http.as_ref().filter(|_| without_tls);
    let plain_http = plain.map(|plain| of_table(&plain.table)).unwrap_or_default();
    let only_plain = request.is_some() && without_tls;
    Answer {
        requests,
        plain_http,
        only_plain,
        listener: listener.name.clone(),
        bind: listener.bind.clone(),
        origin: listener.origin.clone(),
        clients: describe::access(listener.access.as_ref()),
        outcome,
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { question, answers, ports, claims } = self;
        let Question { sni, invalid, port } = question;
        let what = match sni {
            Some(name) => format!("'{name}'"),
            None => "a hello without a server name".into(),
        };
        if let Some(why) = invalid {
            return writeln!(f, "{what} is not a server name: {why}");
        }
        if let (Some(port), true, false) = (port, answers.is_empty(), claims.is_empty()) {
            writeln!(f, "{what} on port {port}, where nothing listens")?;
            return claims.iter().try_for_each(|claim| write_claim(f, claim));
        }
        if let (Some(port), true) = (port, answers.is_empty()) {
            let ports = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return writeln!(f, "no listener has port {port}; the ports are {ports}");
        }
        for (index, answer) in answers.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            write!(f, "{gap}{what} on {answer}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { listener, bind, origin, clients, outcome, requests, plain_http, only_plain } = self;
        let bind = bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        writeln!(f, "listener {listener}, {bind}{clients} ({origin})")?;
        if *only_plain && plain_http.is_empty() {
            return writeln!(f, "  no HTTP without TLS is served here: policy not_tls");
        }
        if !plain_http.is_empty() {
            writeln!(f, "  HTTP without TLS:")?;
            plain_http.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
            if *only_plain {
                return Ok(());
            }
            if let Outcome::Policy { claims, verdict, described, .. } = outcome
                && claims.is_empty()
            {
                return writeln!(f, "  with TLS: policy {verdict} is {described}");
            }
        }
        match outcome {
            Outcome::Policy { claims, verdict, described, .. } if claims.is_empty() => {
                writeln!(f, "  no rule serves it: policy {verdict} is {described}")
            }
            Outcome::Policy { claims, verdict, described, .. } => {
                claims.iter().try_for_each(|claim| write_claim(f, claim))?;
                writeln!(f, "  so policy {verdict} is {described}")
            }
            Outcome::Rule { pattern, rule, shares, less_specific, shadowed } => {
                let clients = describe::access(rule.access.as_deref());
                writeln!(f, "  {}{clients} ({})", rule.name, rule.origin)?;
                writeln!(f, "  because {} matches{}", quoted(pattern), how(pattern))?;
                for Entry { pattern, rule } in less_specific {
                    let pattern = quoted(pattern);
                    writeln!(
                        f,
                        "    which is more specific than {pattern} of {} ({})",
                        rule.name, rule.origin
                    )?;
                }
                for Shadowed { pattern, rule, by, because } in shadowed {
                    let (pattern, because) = (quoted(pattern), because.as_str());
                    writeln!(
                        f,
                        "    {pattern} of {} ({}) is shadowed by {}, {because}",
                        rule.name, rule.origin, by.name
                    )?;
                }
                match &rule.termination {
                    None if shares.iter().all(|(backend, _)| backend.is_none()) => {}
                    None => writeln!(f, "  {}", describe::mode(rule))?,
                    Some(ends) => {
                        writeln!(f, "  {} with {}", describe::mode(rule), describe::Settings(ends))?;
                    }
                }
                if is_http(rule) && !requests.is_empty() {
                    write_requests(f, requests)?;
                }
                for (backend, percent) in shares {
                    match backend {
                        Some(backend) => {
                            let to = endpoints(backend);
                            writeln!(f, "  {} to backend {}: {to}", Percent(*percent), backend.name)?;
                        }
                        None => {
                            writeln!(f, "  {} refused: its destination cannot be served", Percent(*percent))?;
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

fn write_claim(f: &mut fmt::Formatter<'_>, claim: &Claim) -> fmt::Result {
    let Claim { pattern, by, origin, .. } = claim;
    writeln!(f, "  {by} ({origin})")?;
    writeln!(f, "    asks for {} and is not served: check says why", quoted(pattern))
}

fn quoted(pattern: &HostPattern) -> String {
    format!("'{pattern}'")
}

fn how(pattern: &HostPattern) -> &'static str {
    match pattern {
        HostPattern::Exact(_) => " exactly",
        HostPattern::Suffix(_) => " as the longest suffix",
        HostPattern::Any => " everything, also a hello without a server name",
    }
}

fn write_requests(f: &mut fmt::Formatter<'_>, lines: &[String]) -> fmt::Result {
    if let [line] = lines
        && line.starts_with("no http route")
    {
        return writeln!(f, "  100 % refused: {line}");
    }
    writeln!(f, "  HTTP requests:")?;
    lines.iter().try_for_each(|line| writeln!(f, "    {line}"))
}
