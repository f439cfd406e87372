//! Properties for any input.

#![expect(clippy::unwrap_used, reason = "a test fails by panic, in its helpers too")]

use std::{fs, path::Path, sync::Arc};

use proptest::{prelude::*, sample::Index};
use snisplice_config::{
    Options, Source, explain, load,
    model::{Origin, Route, Rule, Target},
    model::{rank::Rank, route_table::RouteTable, termination::Inside},
    name::{HostPattern, ServerName},
    render_check,
};

proptest! {
    #[test]
    fn a_name_stays_what_it_is(text in "\\PC{0,80}") {
        if let Ok(name) = ServerName::parse(&text) {
            prop_assert_eq!(ServerName::parse(name.as_str()), Ok(name.clone()));
            prop_assert_eq!(ServerName::parse(text.to_ascii_uppercase()), Ok(name));
        }
    }

    #[test]
    fn a_pattern_prints_as_it_parses(text in "(\\*\\.)?[a-c*.]{0,8}") {
        if let Ok(pattern) = HostPattern::parse(&text) {
            prop_assert_eq!(HostPattern::parse(&pattern.to_string()), Ok(pattern));
        }
    }

    #[test]
    fn an_intersection_has_the_names_of_both(a in pattern(), b in pattern(), name in name()) {
        let both = a.intersect(&b).is_some_and(|both| both.matches(&name));
        prop_assert_eq!(both, a.matches(&name) && b.matches(&name));
        if a.is_subset_of(&b) && a.matches(&name) {
            prop_assert!(b.matches(&name));
        }
    }

    #[test]
    fn the_most_specific_pattern_serves(patterns in prop::collection::vec(pattern(), 0..12), name in name()) {
        let mut builder = RouteTable::builder();
        for (id, pattern) in patterns.iter().enumerate() {
            builder.insert(pattern.clone(), pattern, &HostPattern::Any, &rule(id), &Arc::new(Rank::default()));
        }
        let table = builder.build();
        // The narrowest of the matching patterns. Of equal ones the first.
        let expected = patterns
            .iter()
            .enumerate()
            .filter(|(_, pattern)| pattern.matches(&name))
            .reduce(|best, next| if next.1 != best.1 && next.1.is_subset_of(best.1) { next } else { best });
        prop_assert_eq!(table.lookup(&name).map(|rule| rule.id), expected.map(|(id, _)| id));
        prop_assert_eq!(table.entries().len() + table.shadowed().len(), patterns.len());
    }

    #[test]
    fn any_text_loads_or_says_why(text in "\\PC*") {
        survives(&[text]);
    }

    #[test]
    fn words_of_the_schemas_load_or_say_why(words in prop::collection::vec(word(), 0..60)) {
        survives(&[words.concat()]);
    }

    #[test]
    fn broken_files_load_or_say_why(
        file in any::<Index>(),
        edits in prop::collection::vec((any::<Index>(), any::<Index>(), 0_usize..40, word()), 1..6),
    ) {
        let files = testdata();
        let mut text = file.get(&files).clone();
        for (at, from, length, word) in edits {
            let place = boundary(&text, at.index(text.len() + 1));
            let start = boundary(&text, from.index(text.len() + 1));
            let end = boundary(&text, (start + length).min(text.len()));
            let piece = text[start..end.max(start)].to_owned();
            match length % 4 {
                0 => text.insert_str(place, &word),
                1 => text.insert_str(place, &piece),
                2 => text.replace_range(start..end.max(start), ""),
                _ => text.truncate(boundary(&text, place.max(text.len() / 2))),
            }
            while !text.is_char_boundary(text.len()) {
                text.pop();
            }
        }
        survives(&[text]);
    }
}

/// Loads, and checks the invariants of every result.
fn survives(texts: &[String]) {
    let sources: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(at, text)| Source { name: format!("{at}.yaml"), text: text.clone() })
        .collect();
    let options = Options {
        resolve: vec!["*:443:127.0.0.1".parse().unwrap()],
        listen: vec!["443=127.0.0.1:10443".parse().unwrap()],
        ..Options::default()
    };
    let translation = load(&sources.iter().cloned().collect(), &options);
    assert_eq!(translation.model.is_none(), translation.errors().next().is_some(), "a model or an error");
    assert_eq!(
        render_check(&translation),
        render_check(&load(&sources.iter().cloned().collect(), &options)),
        "the same every time"
    );
    for origin in translation.diagnostics.iter().filter_map(|found| found.origin.as_ref()) {
        assert!(origin.line >= 1 && origin.column >= 1, "{origin}");
    }
    let Some(model) = translation.model else { return };
    let mut addresses: Vec<_> = model
        .listeners
        .iter()
        .flat_map(|listener| &listener.bind)
        .filter(|address| address.port() != 0)
        .collect();
    let bound = addresses.len();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), bound, "no address twice");
    for listener in &model.listeners {
        for entry in listener.routes.entries() {
            let ends = entry.rule.termination.as_ref();
            let is_http = ends.is_some_and(|ends| matches!(ends.inside, Inside::Http(_)));
            assert!(entry.rule.id < model.rules && (is_http || !entry.rule.targets.is_empty()));
            assert!(ends.is_none_or(|ends| ends.id < model.terminations && !ends.certificates.is_empty()));
            for backend in entry.rule.targets.iter().filter_map(|target| target.backend) {
                assert!(backend.0 < model.backends.len());
            }
        }
    }
    for sni in [None, Some("a.example.com"), Some("")] {
        assert!(!explain(&model, sni, None, None).to_string().is_empty());
    }
}

fn testdata() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.join("testdata"), root.join("examples")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                files.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    files.sort();
    files
}

fn boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn rule(id: usize) -> Arc<Rule> {
    Arc::new(Rule {
        route: Route {
            id,
            name: id.to_string(),
            origin: Origin { file: "test".into(), line: 1, column: 1 },
            targets: vec![Target { weight: 1, backend: None }],
        },
        termination: None,
        timeouts: None,
        access: None,
    })
}

fn name() -> impl Strategy<Value = ServerName> {
    prop::collection::vec("[ab]", 1..5).prop_map(|labels| ServerName::parse(labels.join(".")).unwrap())
}

fn pattern() -> impl Strategy<Value = HostPattern> {
    prop_oneof![
        1 => Just(HostPattern::Any),
        4 => name().prop_map(HostPattern::Exact),
        4 => name().prop_map(HostPattern::Suffix),
    ]
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(WORDS).prop_map(Into::into)
}

const WORDS: &[&str] = &[
    "\n",
    "\n  ",
    "\n    - ",
    "\n---\n",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "\"",
    "'",
    "&a ",
    "*a",
    "<<: ",
    "|\n ",
    "# ",
    "!!str ",
    "~",
    "*",
    "listeners:",
    "name:",
    "bind:",
    "routes:",
    "sni:",
    "backends:",
    "endpoints:",
    "policies:",
    "weight:",
    "\"[::]:443\"",
    "127.0.0.1:443",
    "a.example.com",
    "\"*.example.com\"",
    "a",
    "b",
    "0",
    "443",
    "apiVersion: networking.istio.io/v1\n",
    "kind: Gateway\n",
    "kind: VirtualService\n",
    "kind: ServiceEntry\n",
    "kind: List\n",
    "items:",
    "metadata: {name: a}\n",
    "spec:",
    "servers:",
    "port:",
    "number:",
    "protocol:",
    "TLS",
    "tls:",
    "mode:",
    "PASSTHROUGH",
    "hosts:",
    "gateways:",
    "match:",
    "sniHosts:",
    "route:",
    "destination:",
    "host:",
    "ports:",
    "resolution:",
    "STATIC",
    "address:",
    "\u{feff}",
    "\t",
    "\0",
    "é",
];
