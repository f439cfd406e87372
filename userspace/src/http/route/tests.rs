use std::sync::Arc;

use hyper::Request;
use snisplice_config::{
    model::{
        Origin, Route,
        http::{Expression, Respond, VirtualHost},
    },
    name::HostPattern,
};

use super::*;

fn rule(name: &str, matches: Vec<HttpMatch>, action: HttpAction) -> Arc<HttpRule> {
    let origin = Origin { file: "test".into(), line: 1, column: 1 };
    let rule = Route { id: 0, name: name.into(), origin, targets: Vec::new() };
    Arc::new(HttpRule {
        rule: Arc::new(rule),
        matches,
        action,
        request_headers: snisplice_config::model::http::HeaderChanges::default(),
        response_headers: snisplice_config::model::http::HeaderChanges::default(),
    })
}

fn forward(name: &str, matches: Vec<HttpMatch>) -> Arc<HttpRule> {
    rule(name, matches, HttpAction::Forward(Forward::default()))
}

fn uri(uri: StringMatch) -> HttpMatch {
    HttpMatch { uri: Some(uri), ..HttpMatch::default() }
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.into())
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.into())
}

fn regex(text: &str) -> StringMatch {
    StringMatch::Regex(Expression::new(text).unwrap())
}

fn table(rules: &[Arc<HttpRule>]) -> HttpTable {
    let host = |pattern: &str| VirtualHost {
        pattern: HostPattern::parse(pattern).unwrap(),
        https_redirect: None,
        rules: rules.to_vec(),
    };
    HttpTable { hosts: vec![host("a.test"), host("*.b.test")] }
}

fn parts(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(target);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "a.test");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// The rule's name and the target, or any other decision.
fn decided(table: &HttpTable, head: &Parts) -> String {
    let asked = match read(head, "http", false) {
        Ok(asked) => asked,
        Err(refused) => return format!("{refused:?}"),
    };
    match decide(table, &asked, 8080) {
        Decision::NotFound => "404".into(),
        Decision::Redirected { location, status, .. } => format!("{} {location}", status.as_u16()),
        Decision::Responded(rule) => rule.rule.name.clone(),
        Decision::Forwarded { rule, target, authority, .. } => {
            format!("{} {authority}{target}", rule.rule.name)
        }
    }
}

fn get(table: &HttpTable, target: &str) -> String {
    decided(table, &parts("GET", target, &[]))
}

#[test]
fn a_host_is_found_however_it_is_written() {
    let table = table(&[forward("r", vec![])]);
    for host in
        ["a.test", "A.Test", "a.test.", "a.test:8080", "a.test.:80", "a.test:", "x.b.test", "x.y.B.test:1"]
    {
        let found = decided(&table, &parts("GET", "/", &[("host", host)]));
        assert_eq!(found, format!("r {host}/"), "{host}");
    }
    for host in ["b.test", "c.test", "[::1]", "127.0.0.1", "[::1]:80", "_"] {
        assert_eq!(decided(&table, &parts("GET", "/", &[("host", host)])), "404", "{host}");
    }
}

#[test]
fn a_host_that_is_none_is_refused() {
    let table = table(&[forward("r", vec![])]);
    for host in [
        "",
        "a.test:x",
        "a.test:99999",
        ":80",
        "a@a.test",
        "a.test/b",
        "a test",
        "a.test:80:80",
        "a.test?x",
        "a\\b",
    ] {
        assert_eq!(decided(&table, &parts("GET", "/", &[("host", host)])), "Host", "{host}");
    }
    assert_eq!(decided(&table, &parts("GET", "/", &[("host", "a.test"), ("host", "a.test")])), "Host");
    assert_eq!(decided(&table, &parts("GET", "http://a.test/x", &[])), "r a.test/x");
    assert_eq!(decided(&table, &parts("GET", "http://b.test/x", &[])), "Authority");
    assert_eq!(decided(&table, &parts("GET", "ftp://a.test/x", &[])), "Scheme");
    assert_eq!(decided(&table, &parts("CONNECT", "a.test:443", &[])), "Connect");
    assert_eq!(get(&table, "/../x"), "Path");
}

#[test]
fn the_first_rule_that_matches_serves() {
    let both = HttpMatch { uri: Some(prefix("/api")), method: Some(exact("POST")), ..HttpMatch::default() };
    let any_case = HttpMatch { ignore_uri_case: true, ..uri(prefix("/Case")) };
    let table = table(&[
        forward("exact", vec![uri(exact("/one"))]),
        forward("post", vec![both]),
        forward("regex", vec![uri(regex("/v[0-9]+/.*")), uri(exact("/two"))]),
        forward("case", vec![any_case]),
        forward("api", vec![uri(prefix("/api"))]),
    ]);
    let cases = [
        ("/one?x=1", "exact a.test/one?x=1"),
        ("/one/", "404"),
        ("/%6fne", "exact a.test/one"),
        ("/api/x", "api a.test/api/x"),
        ("/apix", "api a.test/apix"),
        ("/v12/x", "regex a.test/v12/x"),
        ("/x/v12/x", "404"),
        ("/two", "regex a.test/two"),
        ("/cAsE/x", "case a.test/cAsE/x"),
        ("/API", "404"),
    ];
    for (target, expected) in cases {
        assert_eq!(get(&table, target), expected, "{target}");
    }
    assert_eq!(decided(&table, &parts("POST", "/api", &[])), "post a.test/api");
}

#[test]
fn headers_and_parameters_are_conditions() {
    let headers = |name: &str, wanted: Option<StringMatch>| vec![(name.to_owned(), wanted)];
    let with = |name: &str, wanted| HttpMatch { headers: headers(name, wanted), ..HttpMatch::default() };
    let without =
        |name: &str, wanted| HttpMatch { without_headers: headers(name, wanted), ..HttpMatch::default() };
    let query =
        |name: &str, wanted| HttpMatch { query_params: headers(name, wanted), ..HttpMatch::default() };
    let serves =
        |wanted: HttpMatch, head: &Parts| decided(&table(&[forward("r", vec![wanted])]), head) != "404";
    let head =
        parts("GET", "/x?a=1%202&b&a=3&c=x+y", &[("x-user", "joe"), ("x-user", "ann"), ("cookie", "k=v")]);
    assert!(serves(with("x-user", None), &head));
    assert!(serves(with("x-user", Some(exact("joe,ann"))), &head));
    assert!(!serves(with("x-user", Some(exact("joe"))), &head));
    assert!(serves(with("cookie", Some(regex("(.*;)?k=v(;.*)?"))), &head));
    assert!(!serves(with("x-other", None), &head));
    assert!(serves(with(":authority", Some(exact("a.test"))), &head));
    assert!(serves(with(":path", Some(prefix("/x?a=1"))), &head));
    assert!(serves(without("x-other", None), &head));
    assert!(!serves(without("x-user", None), &head));
    assert!(serves(without("x-user", Some(exact("joe"))), &head));
    assert!(serves(query("a", Some(exact("1 2"))), &head));
    assert!(!serves(query("a", Some(exact("3"))), &head));
    assert!(serves(query("b", None), &head));
    assert!(serves(query("c", Some(regex("x y"))), &head));
    assert!(!serves(query("d", None), &head));
    let scheme = HttpMatch { scheme: Some(exact("https")), ..HttpMatch::default() };
    assert!(!serves(scheme, &head));
    let authority = HttpMatch { authority: Some(prefix("a.")), ..HttpMatch::default() };
    assert!(serves(authority, &head));
}

#[test]
fn what_is_sent_on_is_rewritten() {
    let rewritten = |matched: Option<StringMatch>, rewrite: Rewrite, target: &str| {
        let action = HttpAction::Forward(Forward { rewrite: Some(rewrite), ..Forward::default() });
        let matches = matched.map(|matched| vec![uri(matched)]).unwrap_or_default();
        get(&table(&[rule("r", matches, action)]), target)
    };
    let to = |uri: &str| Rewrite { uri: Some(uri.into()), ..Rewrite::default() };
    assert_eq!(rewritten(Some(prefix("/a")), to("/b"), "/a/x?q"), "r a.test/b/x?q");
    assert_eq!(rewritten(Some(prefix("/a")), to("/b"), "/ax"), "r a.test/bx");
    assert_eq!(rewritten(Some(prefix("/a/")), to("/"), "/a/x"), "r a.test/x");
    assert_eq!(rewritten(Some(exact("/a")), to("/b"), "/a?q"), "r a.test/b?q");
    assert_eq!(rewritten(Some(regex("/a.*")), to("/b"), "/abc"), "r a.test/b");
    assert_eq!(rewritten(None, to("/b/"), "/x"), "r a.test/b/x");
    let regex = Rewrite {
        uri_regex: Some((Expression::new("^/a/(.*)$").unwrap(), r"/\1/a".into())),
        ..Rewrite::default()
    };
    assert_eq!(rewritten(None, regex, "/a/x?q"), "r a.test/x/a?q");
    let authority = Rewrite { authority: Some("other".into()), ..Rewrite::default() };
    assert_eq!(rewritten(None, authority, "/a"), "r other/a");
}

#[test]
fn a_client_is_sent_elsewhere() {
    let base = Redirect { uri: None, prefix: None, authority: None, scheme: None, port: None, code: 302 };
    let sent = |redirect: &Redirect, host: &str, target: &str| {
        let table = table(&[rule("r", vec![], HttpAction::Redirect(redirect.clone()))]);
        decided(&table, &parts("GET", target, &[("host", host)]))
    };
    let uri = |uri: &str| Redirect { uri: Some(uri.into()), ..base.clone() };
    assert_eq!(sent(&uri("/b"), "a.test:81", "/a?q"), "302 http://a.test:81/b?q");
    assert_eq!(sent(&uri("/b?c"), "a.test", "/a?q"), "302 http://a.test/b?c");
    let prefix =
        Redirect { uri: Some("/new".into()), prefix: Some("/old".into()), code: 308, ..base.clone() };
    assert_eq!(sent(&prefix, "a.test", "/old/x?q"), "308 http://a.test/new/x?q");
    let https = Redirect { scheme: Some("https".into()), ..base.clone() };
    assert_eq!(sent(&https, "a.test:80", "/a?q"), "302 https://a.test/a?q");
    assert_eq!(sent(&https, "a.test:8080", "/"), "302 https://a.test:8080/");
    let authority = Redirect { authority: Some("new.test".into()), ..base.clone() };
    assert_eq!(sent(&authority, "a.test:8080", "/a"), "302 http://new.test/a");
    let port = |port| Redirect { port: Some(port), ..base.clone() };
    assert_eq!(sent(&port(RedirectPort::Number(99)), "a.test:81", "/"), "302 http://a.test:99/");
    assert_eq!(sent(&port(RedirectPort::OfScheme), "a.test:81", "/"), "302 http://a.test/");
    assert_eq!(sent(&port(RedirectPort::OfRequest), "a.test:81", "/"), "302 http://a.test:8080/");
}

#[test]
fn a_whole_host_is_sent_to_https_but_for_challenges() {
    let respond = HttpAction::Respond(Respond { status: 200, body: Vec::new() });
    let mut table = table(&[
        rule("acme", vec![uri(prefix("/.well-known/acme-challenge/"))], respond),
        forward("all", vec![uri(prefix("/"))]),
    ]);
    for host in &mut table.hosts {
        host.https_redirect = Some(HttpsRedirect { port: 443 });
    }
    assert_eq!(get(&table, "/a?q"), "301 https://a.test/a?q");
    assert_eq!(decided(&table, &parts("POST", "/", &[("host", "A.test:80")])), "301 https://A.test/");
    assert_eq!(get(&table, "/.well-known/acme-challenge/token"), "acme");
    assert_eq!(get(&table, "/.well-known/other"), "301 https://a.test/.well-known/other");
    table.hosts[0].https_redirect = Some(HttpsRedirect { port: 8443 });
    assert_eq!(get(&table, "/"), "301 https://a.test:8443/");
    table.hosts[0].rules.remove(0);
    assert_eq!(
        get(&table, "/.well-known/acme-challenge/token"),
        "301 https://a.test:8443/.well-known/acme-challenge/token"
    );
    // A trusted balancer in front has terminated TLS.
    let head = parts("GET", "/", &[("x-forwarded-proto", "https")]);
    let asked = read(&head, "http", true).unwrap();
    assert!(matches!(decide(&table, &asked, 80), Decision::Forwarded { .. }));
}
