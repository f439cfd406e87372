use super::*;
use crate::model::rank::{Rank, Seniority, ServerRank};
use crate::model::{Origin, Route, Target};

fn rule(name: &str) -> Arc<Rule> {
    Arc::new(Rule {
        route: Route {
            id: 0,
            name: name.into(),
            origin: Origin { file: "test".into(), line: 1, column: 1 },
            targets: vec![Target { weight: 1, backend: None }],
        },
        termination: None,
        access: None,
        timeouts: None,
    })
}

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn seniority(created: Option<&str>, name: &str, namespace: &str) -> Arc<Seniority> {
    let created = created.map(Into::into);
    Arc::new(Seniority { created, name: name.into(), namespace: namespace.into() })
}

fn server(name: &str, index: usize) -> Arc<ServerRank> {
    Arc::new(ServerRank { protocol: 0, gateway: seniority(None, name, "g"), index })
}

fn rank(created: Option<&str>, name: &str, namespace: &str) -> Arc<Rank> {
    let object = seniority(created, name, namespace);
    Arc::new(Rank::Object { server: server("edge", 0), exported: 0, object })
}

fn table(patterns: &[&str]) -> RouteTable {
    let mut builder = RouteTable::builder();
    for text in patterns {
        builder.insert(pattern(text), &pattern(text), &HostPattern::Any, &rule(text), &Arc::default());
    }
    builder.build()
}

fn found<'t>(table: &'t RouteTable, name: &str) -> Option<&'t str> {
    table.lookup(&ServerName::parse(name).unwrap()).map(|rule| &*rule.name)
}

#[test]
fn exact_before_longest_suffix_before_any() {
    let table = table(&["*", "*.com", "*.example.com", "www.example.com", "*.b.example.com"]);
    for (name, expected) in [
        ("www.example.com", "www.example.com"),
        ("WWW.EXAMPLE.COM.", "www.example.com"),
        ("x.example.com", "*.example.com"),
        ("x.www.example.com", "*.example.com"),
        ("b.example.com", "*.example.com"),
        ("a.b.example.com", "*.b.example.com"),
        ("z.a.b.example.com", "*.b.example.com"),
        ("example.com", "*.com"),
        ("com", "*"),
        ("example.org", "*"),
    ] {
        assert_eq!(found(&table, name), Some(expected), "{name}");
    }
    assert_eq!(table.no_sni().map(|rule| &*rule.name), Some("*"));
}

#[test]
fn nothing_without_a_match() {
    let table = table(&["*.example.com", "a.org"]);
    for name in ["example.com", "newexample.com", "com", "b.a.org"] {
        assert_eq!(found(&table, name), None, "{name}");
    }
    assert!(table.no_sni().is_none());
    assert_eq!(found(&RouteTable::default(), "a.b"), None);
}

#[test]
fn lookup_agrees_with_the_definition() {
    let patterns = ["*", "a.b.c", "*.b.c", "*.c", "c", "*.a.b.c", "*.d", "b.c", "*.x.y.z.d"];
    let table = table(&patterns);
    let labels = ["a", "b", "c", "d", "x", "y", "z"];
    let mut names = labels.map(String::from).to_vec();
    for _ in 0..3 {
        names = names
            .iter()
            .flat_map(|name| labels.iter().map(move |label| format!("{label}.{name}")).chain([name.clone()]))
            .collect();
    }
    for text in names {
        let name = ServerName::parse(&text).unwrap();
        let expected = patterns
            .iter()
            .filter(|text| pattern(text).matches(&name))
            .max_by_key(|text| pattern(text).specificity())
            .copied();
        assert_eq!(found(&table, &text), expected, "{text}");
    }
}

#[test]
fn ties_go_to_the_oldest_then_the_first_name_then_the_first_namespace_then_the_first_written() {
    let old = rank(Some("2020-01-01T00:00:00Z"), "z", "z");
    let young = rank(Some("2021-01-01T00:00:00Z"), "a", "a");
    let ageless = rank(None, "a", "b");
    let other_name = rank(None, "b", "a");
    let other_namespace = rank(None, "a", "a");
    for (first, second, because, winner) in [
        (&young, &old, Because::Older, "second"),
        (&ageless, &young, Because::Older, "second"),
        (&other_name, &ageless, Because::NameFirst, "second"),
        (&ageless, &other_namespace, Because::NameFirst, "second"),
        (&ageless, &ageless, Because::WrittenFirst, "first"),
        (&old, &Arc::default(), Because::Native, "second"),
    ] {
        let mut builder = RouteTable::builder();
        for (name, rank) in [("first", first), ("second", second)] {
            builder.insert(pattern("a.com"), &pattern("a.com"), &pattern("*"), &rule(name), rank);
        }
        let table = builder.build();
        assert_eq!(found(&table, "a.com"), Some(winner));
        let [lost] = table.shadowed() else { panic!("one loser") };
        assert_eq!((lost.because, &*lost.by.name), (because, winner));
    }
}

#[test]
fn the_first_server_comes_before_the_oldest_route() {
    let mut builder = RouteTable::builder();
    for (name, gateway, created) in
        [("old", "b", "2020-01-01T00:00:00Z"), ("young", "a", "2021-01-01T00:00:00Z")]
    {
        let object = seniority(Some(created), name, "n");
        let rank = Arc::new(Rank::Object { server: server(gateway, 0), exported: 1, object });
        builder.insert(pattern("a.com"), &pattern("a.com"), &pattern("*"), &rule(name), &rank);
    }
    let table = builder.build();
    assert_eq!(found(&table, "a.com"), Some("young"));
    assert_eq!(table.shadowed()[0].because, Because::ServerFirst);
}

#[test]
fn a_claim_yields_to_what_is_more_specific_and_to_the_first_server() {
    // The claim is that of server 1 of the Gateway. The route comes through `host` of server 0 or 2.
    for (claimed, route, host, of, winner) in [
        ("*.b.c", "a.b.c", "*.c", 2, "route"),
        ("a.b.c", "*.b.c", "*.b.c", 0, "claim"),
        ("a.b.c", "a.b.c", "*.b.c", 0, "claim"),
        ("a.b.c", "a.b.c", "a.b.c", 0, "route"),
        ("a.b.c", "a.b.c", "a.b.c", 2, "claim"),
        ("*", "*", "*", 0, "route"),
        ("*", "*", "*", 2, "claim"),
        ("*", "*.c", "*.c", 2, "route"),
    ] {
        let mut builder = RouteTable::builder();
        let object = seniority(None, "a", "n");
        let rank = Arc::new(Rank::Object { server: server("edge", of), exported: 1, object });
        builder.insert(pattern(route), &pattern(route), &pattern(host), &rule("route"), &rank);
        builder.claim(pattern(claimed), &rule("claim"), &server("edge", 1));
        let case = format!("{claimed} claimed, {route} by {host} of {of}");
        assert_eq!(found(&builder.build(), "a.b.c"), Some(winner), "{case}");
    }
}

#[test]
fn a_claim_to_everything_leaves_unknown_names_to_the_policy() {
    let mut builder = RouteTable::builder();
    builder.claim(pattern("*"), &rule("claim"), &server("edge", 1));
    builder.claim(pattern("a.b"), &rule("claim"), &server("edge", 1));
    let table = builder.build();
    assert_eq!(found(&table, "x.y"), None);
    assert_eq!(found(&table, "a.b"), Some("claim"));
}

#[test]
fn narrowed_patterns_compete_as_they_were_written() {
    let mut builder = RouteTable::builder();
    builder.insert(pattern("*.a.com"), &pattern("*.com"), &pattern("*"), &rule("wide"), &Arc::default());
    let narrow = rule("narrow");
    builder.insert(pattern("*.a.com"), &pattern("*.a.com"), &pattern("*"), &narrow, &Arc::default());
    assert_eq!(found(&builder.build(), "x.a.com"), Some("narrow"));
}

#[test]
fn one_rule_twice_shadows_nothing() {
    let mut builder = RouteTable::builder();
    let rule = rule("r");
    for _ in 0..2 {
        builder.insert(pattern("a.com"), &pattern("a.com"), &pattern("*"), &rule, &Arc::default());
    }
    let table = builder.build();
    assert_eq!((table.entries().len(), table.shadowed().len()), (1, 0));
}

#[test]
fn explains_what_was_beaten() {
    let table = table(&["*", "*.b.c", "a.b.c", "*.x", "a.b.c"]);
    let name = ServerName::parse("a.b.c").unwrap();
    let answer = table.explain(Some(&name));
    assert_eq!(answer.matched.map(|entry| entry.pattern.to_string()).as_deref(), Some("a.b.c"));
    let less: Vec<_> = answer.less_specific.iter().map(|entry| entry.pattern.to_string()).collect();
    assert_eq!(less, ["*.b.c", "*"]);
    assert_eq!(answer.shadowed.len(), 1);
    assert_eq!(table.explain(None).matched.map(|entry| entry.pattern.to_string()).as_deref(), Some("*"));
}
