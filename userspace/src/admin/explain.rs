//! `/explain`: the rule of a name in the configuration in service, and the present state of its endpoints.

use std::fmt::Write as _;

use serde::Deserialize;
use snisplice_config::{Explanation, Outcome, explain};

use super::backends::{Backend, Endpoint, show};
use crate::{
    account::view::Explained, http::question::Parts, snapshot::Snapshot,
    upstream::health_collector::SharedWatchlist,
};

/// The keys of a query, each at most once, except `header`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    sni: Option<String>,
    port: Option<u16>,
    path: Option<String>,
    method: Option<String>,
    scheme: Option<String>,
}

/// Explains the name in a query. The error is for the author of the query.
pub(super) fn answer(
    snapshot: &Snapshot,
    health: &SharedWatchlist,
    query: &str,
) -> Result<Explained, String> {
    let (asked, headers) = parse(query)?;
    let Asked { sni, port, path, method, scheme } = asked;
    let scheme = scheme.as_deref().unwrap_or("https");
    if !matches!(scheme, "http" | "https") {
        return Err(format!("scheme={scheme} is not known; http and https are"));
    }
    if path.is_none() && !headers.is_empty() {
        return Err("header is for a request: add path=/".into());
    }
    let method = method.as_deref().unwrap_or("GET");
    let parts = path.as_deref().map(|path| Parts { path, method, scheme, headers: &headers });
    let request = parts.map(|parts| parts.requested(sni.as_deref())).transpose();
    let request = request.map_err(|error| format!("{error:#}"))?;
    let explanation = explain(&snapshot.model, sni.as_deref(), port, request.as_ref());
    let mut text = explanation.to_string();
    for backend in backends_of(&explanation) {
        let found = snapshot.clusters().iter().enumerate().find(|(_, cluster)| *cluster.name == *backend);
        let Some((at, cluster)) = found else { continue };
        let list = health.lock();
        describe(&mut text, &show(snapshot, at, cluster, list.groups().get(&cluster.name)));
    }
    Ok(Explained { generation: snapshot.generation, served: explanation.is_served(), text })
}

/// The keys of a query, and its headers.
fn parse(query: &str) -> Result<(Asked, Vec<String>), String> {
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(query).map_err(|error| format!("not a query: {error}"))?;
    let (headers, others): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(key, _)| key == "header");
    let others = serde_urlencoded::to_string(others).map_err(|error| error.to_string())?;
    let asked = serde_urlencoded::from_str(&others).map_err(|error| error.to_string().replace('`', "'"))?;
    Ok((asked, headers.into_iter().map(|(_, value)| value).collect()))
}

/// The names of the backends of an explanation, each once.
fn backends_of(explanation: &Explanation) -> Vec<&str> {
    let mut names = Vec::new();
    for answer in &explanation.answers {
        let Outcome::Rule { shares, .. } = &answer.outcome else { continue };
        for (backend, _) in shares {
            let name = backend.as_ref().map(|backend| &*backend.name);
            names.extend(name.filter(|name| !names.contains(name)));
        }
    }
    names
}

/// Appends the present state of a backend: one line, and one for each endpoint.
fn describe(text: &mut String, backend: &Backend<'_>) {
    let Backend { name, panic, dynamic, endpoints } = backend;
    if dynamic.is_some() {
        // The addresses of the name are known only when a client requests it.
        return;
    }
    let available = endpoints.iter().filter(|endpoint| endpoint.available).count();
    let all = if *panic { "; all are used: see panic_threshold" } else { "" };
    // Writing to a string does not fail.
    let _ = writeln!(text, "  now {available} of {} endpoints of {name} available{all}", endpoints.len());
    for endpoint in endpoints {
        let Endpoint { address, active, .. } = endpoint;
        let _ = writeln!(text, "    {address}: {}, {active} connections", endpoint.state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_checked() {
        let (asked, headers) = parse("sni=a.example.com&port=443&path=/x%3Fy&header=a:b&header=c:d").unwrap();
        let expected = Asked {
            sni: Some("a.example.com".into()),
            port: Some(443),
            path: Some("/x?y".into()),
            ..Asked::default()
        };
        assert_eq!(asked, expected);
        assert_eq!(headers, ["a:b", "c:d"]);
        for (query, word) in [
            ("name=a", "unknown field 'name'"),
            ("sni=a&sni=b", "duplicate field"),
            ("port=x", "invalid digit"),
        ] {
            let why = parse(query).unwrap_err();
            assert!(why.contains(word), "{query}: {why}");
        }
    }
}
