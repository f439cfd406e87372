//! The comparison of a backend's certificate with the routes: names that it lacks, and names that are routed
//! elsewhere.

use snisplice_config::{
    model::{BackendId, Listener, Model, Rule},
    name::{HostPattern, ServerName},
};

/// The greatest number of names in a finding.
const MOST: usize = 16;

/// The certificate of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The `DNS` entries of its `subjectAltName`, in lower case.
    pub names: Vec<String>,
    /// The last second of validity, since 1970.
    pub not_after: i64,
}

/// A name of the certificate that the listener routes elsewhere. A browser with an HTTP/2 connection to this backend
/// may send requests for that name over it (RFC 9113 section 9.1.1). Such requests reach the wrong backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elsewhere {
    /// The name, as in the certificate or the route.
    pub name: String,
    /// The target of the routes: the name of a backend, or `terminated here`.
    pub to: String,
}

/// Doubts about a certificate, apart from its expiry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Routed names that the certificate does not cover, sorted.
    pub uncovered: Vec<String>,
    /// Names of the certificate that are routed elsewhere, sorted.
    pub elsewhere: Vec<Elsewhere>,
}

/// Whether these names of a certificate cover a pattern. An asterisk matches one label (RFC 6125 section 6.4.3).
fn covers(names: &[String], pattern: &HostPattern) -> bool {
    match pattern {
        HostPattern::Any => true,
        HostPattern::Exact(name) => {
            let wild = name.as_str().split_once('.').map(|(_, rest)| format!("*.{rest}"));
            names.iter().any(|own| own == name.as_str() || Some(own) == wild.as_ref())
        }
        HostPattern::Suffix(_) => names.contains(&pattern.to_string()),
    }
}

/// The server name for a check of a backend's certificate: the first exact name whose TLS is passed through to the
/// backend.
#[must_use]
pub fn routed_name(model: &Model, backend: BackendId) -> Option<ServerName> {
    let mut entries = model.listeners.iter().flat_map(|listener| listener.routes.entries());
    entries.find_map(|entry| match &entry.pattern {
        HostPattern::Exact(name) if passes(&entry.rule, backend) => Some(name.clone()),
        _ => None,
    })
}

/// Compares a certificate of a backend with the routes that pass TLS through.
#[must_use]
pub fn compare(model: &Model, backend: BackendId, shown: &Shown) -> Findings {
    let mut found = Findings::default();
    for listener in &model.listeners {
        let entries = listener.routes.entries();
        let own = entries.iter().filter(|entry| passes(&entry.rule, backend));
        let mut is_there = false;
        for entry in own {
            is_there = true;
            if !covers(&shown.names, &entry.pattern) {
                found.uncovered.push(entry.pattern.to_string());
            }
        }
        if is_there {
            found.elsewhere.extend(elsewhere(model, listener, backend, shown));
        }
    }
    found.uncovered.sort_unstable();
    found.uncovered.dedup();
    found.uncovered.truncate(MOST);
    found.elsewhere.sort_unstable();
    found.elsewhere.dedup();
    found.elsewhere.truncate(MOST);
    found
}

/// Whether a rule passes TLS through to a backend.
fn passes(rule: &Rule, backend: BackendId) -> bool {
    rule.termination.is_none() && rule.targets.iter().any(|target| target.backend == Some(backend))
}

fn elsewhere(model: &Model, listener: &Listener, backend: BackendId, shown: &Shown) -> Vec<Elsewhere> {
    let mut found = Vec::new();
    for name in &shown.names {
        if name.starts_with("*.") {
            let wild = std::slice::from_ref(name);
            let entries = listener.routes.entries().iter();
            let covered =
                entries.filter(|entry| entry.pattern != HostPattern::Any && covers(wild, &entry.pattern));
            found.extend(covered.map(|entry| (entry.pattern.to_string(), &entry.rule)));
        } else if let Ok(parsed) = ServerName::parse(name) {
            found.extend(listener.routes.lookup(&parsed).map(|rule| (name.clone(), rule)));
        }
    }
    let leads = |(name, rule): (String, &std::sync::Arc<Rule>)| {
        if passes(rule, backend) {
            return None;
        }
        let to = match (&rule.termination, rule.targets.iter().find_map(|target| target.backend)) {
            (Some(_), _) => "terminated here".to_owned(),
            (None, Some(id)) => model.backends.get(id.0)?.name.clone(),
            // Refused: no other backend gets the requests.
            (None, None) => return None,
        };
        Some(Elsewhere { name, to })
    };
    found.into_iter().filter_map(leads).collect()
}

#[cfg(test)]
mod tests {
    use snisplice_config::{Options, Source, load};

    use super::*;

    const TEXT: &str = "listeners: [{name: https, bind: '127.0.0.1:8443'}]\n\
        routes:\n\
        - {sni: [a.test, '*.a.test'], backends: [a]}\n\
        - {sni: [b.test, x.a.test], backends: [b]}\n\
        - {sni: ['*.c.test'], backends: [c]}\n\
        - {sni: [split.test], backends: [a, b]}\n\
        backends: [{name: a, endpoints: ['10.0.0.1:443']}, {name: b, endpoints: ['10.0.0.2:443']},\n\
          {name: c, endpoints: ['10.0.0.3:443']}]\n";

    fn model() -> Model {
        let source = Source { name: "test".to_owned(), text: TEXT.to_owned() };
        load(&[source].into_iter().collect(), &Options::default()).model.unwrap()
    }

    fn of_a(names: &[&str]) -> Findings {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        compare(&model(), BackendId(0), &Shown { names, not_after: 0 })
    }

    #[test]
    fn a_certificate_of_its_own_names_is_good() {
        // `x.a.test` is routed to another backend, and the wildcard covers it.
        assert_eq!(of_a(&["a.test", "*.a.test", "split.test"]).uncovered, [""; 0]);
        assert_eq!(of_a(&["a.test", "split.test"]).elsewhere, []);
    }

    #[test]
    fn names_that_are_routed_here_and_not_covered_are_told() {
        assert_eq!(of_a(&["a.test"]).uncovered, ["*.a.test", "split.test"]);
        assert_eq!(of_a(&[]).uncovered, ["*.a.test", "a.test", "split.test"]);
    }

    #[test]
    fn names_of_other_backends_are_told() {
        let found =
            of_a(&["a.test", "*.a.test", "split.test", "b.test", "*.c.test", "y.c.test", "unknown.test"]);
        let found: Vec<_> = found.elsewhere.iter().map(|one| (&*one.name, &*one.to)).collect();
        assert_eq!(found, [("*.c.test", "c"), ("b.test", "b"), ("x.a.test", "b"), ("y.c.test", "c")]);
    }

    #[test]
    fn the_name_to_ask_for_is_one_that_leads_there() {
        assert_eq!(routed_name(&model(), BackendId(1)).unwrap().as_str(), "b.test");
        assert_eq!(routed_name(&model(), BackendId(2)), None);
    }
}
