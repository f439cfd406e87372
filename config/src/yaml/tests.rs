use super::*;
use crate::document::{At, Document, Node, Problem, Value};

fn one(text: &str) -> Document {
    let (mut documents, broken) = all(text);
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

fn all(text: &str) -> (Vec<Document>, Vec<Problem>) {
    let (mut documents, mut broken) = (Vec::new(), Vec::new());
    for chunk in chunks(text) {
        let (some, problem) = parse(chunk);
        documents.extend(some);
        broken.extend(problem);
    }
    (documents, broken)
}

/// A value in JSON notation, with scalars as texts.
fn shown(node: Node<'_>) -> String {
    match node.value() {
        Value::Null => "null".into(),
        Value::Text(text) => format!("{text:?}"),
        Value::List => format!("[{}]", node.children().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Map => {
            let entry = |child: Node<'_>| format!("{}: {}", child.key().unwrap().0, shown(child));
            format!("{{{}}}", node.children().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

fn reads(text: &str) -> String {
    let document = one(text);
    assert!(document.problems.is_empty(), "{text}: {:?}", document.problems);
    shown(document.root())
}

#[test]
fn places_count_from_one() {
    let document = one("a: 1\nb:\n  - x\n  - 'null'\n");
    let list = document.root().get("b").unwrap();
    assert_eq!(list.key(), Some(("b", At { line: 2, column: 1 })));
    let items: Vec<_> = list.children().collect();
    assert_eq!(items[0].at(), At { line: 3, column: 5 });
    assert_eq!(items[1].value(), Value::Text("null"));
    assert_eq!(items[1].path_from(document.root().as_root()), "b[1]");
}

#[test]
fn a_broken_document_does_not_hide_the_next() {
    let (documents, broken) = all("a: 1\n---\nb: [\n---\nc: d: e\n---\nf: 2\n");
    assert_eq!(broken.iter().map(|problem| problem.at.line).collect::<Vec<_>>(), [4, 5]);
    assert_eq!(documents.len(), 2);
    assert_eq!(documents[1].root().at(), At { line: 7, column: 1 });
}

#[test]
fn the_last_of_a_doubled_key_stays_and_both_are_told() {
    let document = one("a: 1\nb: 2\na: 3\n");
    assert_eq!(document.problems.len(), 1);
    assert_eq!(document.problems[0].at, At { line: 3, column: 1 });
    assert_eq!(shown(document.root()), r#"{b: "2", a: "3"}"#);
}

#[test]
fn problems_belong_to_the_mapping_that_has_them() {
    let document = one("items:\n- {a: 1, a: 2}\n- {b: 1}\n- {c: {d: 1, d: 2}}\n");
    let items: Vec<_> = document.root().get("items").unwrap().children().collect();
    assert_eq!(items.iter().map(|item| item.problems().count()).collect::<Vec<_>>(), [1, 0, 1]);
}

#[test]
fn aliases_are_copies() {
    assert_eq!(reads("a: &x {k: v}\nb: *x\n"), r#"{a: {k: "v"}, b: {k: "v"}}"#);
    assert_eq!(reads("a: &x k\n*x : v\n"), r#"{a: "k", k: "v"}"#);
    let document = one("a: &x [{k: v}]\nb: *x\n");
    let copy = document.root().get("b").unwrap().children().next().unwrap().get("k").unwrap();
    assert_eq!(copy.path_from(document.root().as_root()), "b[0].k");
}

#[test]
fn merge_keys_bring_what_is_not_there() {
    assert_eq!(
        reads("a: &x {k: v, l: w}\nb: {<<: *x, k: u}\n"),
        r#"{a: {k: "v", l: "w"}, b: {k: "u", l: "w"}}"#
    );
    let several = "- &x {k: 1}\n- &y {k: 2, l: 3}\n- <<: [*x, *y]\n  m: 4\n";
    assert_eq!(reads(several), r#"[{k: "1"}, {k: "2", l: "3"}, {m: "4", k: "1", l: "3"}]"#);
    let nested = "- &x {k: {z: 1}}\n- &y {<<: *x, l: 2}\n- {<<: *y}\n";
    assert_eq!(reads(nested), r#"[{k: {z: "1"}}, {l: "2", k: {z: "1"}}, {l: "2", k: {z: "1"}}]"#);
    assert_eq!(reads("{'<<': 1}"), r#"{<<: "1"}"#, "in quotes it is a key like any other");
    assert_eq!(one("<<: text\n").problems.len(), 1);
    assert_eq!(reads("<<: {a: 1}\n"), r#"{a: "1"}"#);
}

#[test]
fn what_libyaml_takes_is_taken() {
    for (text, value) in [
        ("hosts: [\n  a,\n  b\n]\n", r#"{hosts: ["a", "b"]}"#),
        ("a:\n  b: {\n    c: 1\n  }\n", r#"{a: {b: {c: "1"}}}"#),
        ("a:\n  note: \"the first\n  and the second\"\n", r#"{a: {note: "the first and the second"}}"#),
        ("\u{feff}a: 1\r\nb: 2\r\n", r#"{a: "1", b: "2"}"#),
        ("{\"a\": [1, null], \"b\":{}}", r#"{a: ["1", null], b: {}}"#),
        ("a: |\n  x\n  y", r#"{a: "x\ny\n"}"#),
        ("a: [!t,b]", r#"{a: [null, "b"]}"#),
        ("a: !<tag:x,1:y> b", r#"{a: "b"}"#),
        // No space separates a tag from the token before it, or the comma from the tag.
        ("a: {\"x\":!t,b}", "{a: {x: null, b: null}}"),
        ("a: !!str null", r#"{a: "null"}"#),
        ("? a\n: b\n", r#"{a: "b"}"#),
        ("%YAML 1.1\n---\na: 1\n", r#"{a: "1"}"#),
        ("--- # comment\na: 1\n...\n", r#"{a: "1"}"#),
        ("-\n  - a\n- b", r#"[["a"], "b"]"#),
    ] {
        assert_eq!(reads(text), value, "{text}");
    }
}

#[test]
fn places_to_fill_in_are_texts() {
    assert_eq!(reads("name: {{ .Values.name }}\n"), r#"{name: "{{ .Values.name }}"}"#);
    assert_eq!(reads("hosts: [ {{ .Values.host }}, b ]\n"), r#"{hosts: ["{{ .Values.host }}", "b"]}"#);
    assert_eq!(one("{{a: 1}: 2, c: 3}").problems.len(), 1, "a mapping with a mapping as a key");
    assert_eq!(one("[a]: 1\n").problems.len(), 1);
    assert_eq!(reads("a: {b: {c: 1}}"), r#"{a: {b: {c: "1"}}}"#);
}

#[test]
fn what_would_explode_is_an_error() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..10 {
        let list = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb = [bomb, format!("a{level}: &a{level} [{list}]\n")].concat();
    }
    assert!(all(&bomb).1[0].message.contains("aliases"));
    let mut merges = "- &m0 {a: b}\n".to_owned();
    for level in 1..40 {
        let below = level - 1;
        merges = [merges, format!("- &m{level} {{<<: *m{below}, x{level}: *m{below}}}\n")].concat();
    }
    assert!(all(&merges).1[0].message.contains("merge keys"));
    assert!(all(&"- ".repeat(10_000)).1[0].message.contains("nesting"));
    assert!(!all(&"[".repeat(10_000)).1.is_empty());
    assert!(!all("a: &a [*a]").1.is_empty());
}

/// An anchor on one long text, and many aliases. The text is stored once, but its copies count, since each may be
/// printed.
#[test]
fn long_texts_count_by_their_bytes() {
    let text = format!("x: &x \"{}\"\ny: [{}]\n", "a".repeat(400_000), vec!["*x"; 100_000].join(","));
    let (documents, broken) = all(&text);
    assert!(documents.is_empty() && broken[0].message.contains("16 MiB"), "{broken:?}");
    let few = format!("x: &x \"{}\"\ny: [{}]\n", "a".repeat(400_000), vec!["*x"; 30].join(","));
    let document = one(&few);
    assert!(document.texts.len() < 400_100, "shared");
}

#[test]
fn syntax_errors_come_with_a_remedy() {
    for (text, line, remedy) in [
        ("hosts:\n- *.example.com\n", 2, "quotes"),
        ("hosts: [*.example.com]\n", 1, "quotes"),
        ("host: *example\n", 1, "quotes"),
        ("host: *\n", 1, "quotes"),
        ("    a: 1\n    ---\n    b: 2\n", 2, "indentation"),
        ("a:\n  ...\n    b:\n    - c: 1\n", 3, "stands for"),
        ("a: 1\n...\nb: 2\n", 3, "stands for"),
        ("a:\n\tb: 1\n", 2, "tabs"),
        ("a: {{ .x }}-b\n", 1, "template"),
        ("{{- if .Values.x }}\na: 1\n{{- end }}\n", 1, "template"),
        ("a: @b\n", 1, "quotes"),
        ("a: b: c\n", 1, "': '"),
        ("a: \u{1}\n", 1, "control"),
    ] {
        let (_, broken) = all(text);
        let [problem] = &*broken else { panic!("{text}: {broken:?}") };
        let told = format!("{} {}", problem.message, problem.remedy.unwrap_or_default());
        assert!(told.contains(remedy), "{text}: {told}");
        assert_eq!(problem.at.line, line, "{text}: {told}");
    }
}

#[test]
fn chunks_begin_at_markers() {
    let text = "# c\n%YAML 1.1\n---\na\n--- b\n---c\n---\n";
    let cut: Vec<_> = chunks(text).map(|chunk| (chunk.text, chunk.lines_before)).collect();
    assert_eq!(cut, [("# c\n%YAML 1.1\n---\na\n", 0), ("--- b\n---c\n", 4), ("---\n", 6)]);
}

/// Texts of YAML's special characters: any of them is read or refused.
#[test]
fn no_text_makes_the_parser_panic() {
    const PARTS: [&str; 34] = [
        "!", ",", "[", "]", "{", "}", "\"", "'", "?", ":", "-", "&", "*", "%", "|", ">", "#", "<", "\\", "@",
        "`", "~", "\n", " ", "\t", "\r", "a", "1", "(", "\u{85}", "\u{2028}", "---", "!e,", "%C3%28",
    ];
    let mut state = 7_u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..100_000 {
        let text: String = (0..next(14)).map(|_| PARTS[next(PARTS.len())]).collect();
        assert!(std::panic::catch_unwind(|| all(&text)).is_ok(), "{text:?}");
    }
}
