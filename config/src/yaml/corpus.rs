//! A comparison with libyaml: `tests/libyaml` contains its results for some 800 texts (`python3 record.py` there
//! records them again).

use serde_json::Value as Json;

use super::{chunks, parse};
use crate::document::{Node, Value};

/// Whether the result differs on purpose.
fn is_meant(text: &str) -> bool {
    // An alias within its own anchor is infinite.
    text.contains("[*x]")
        // A block text in a last line without a line break gets a line break here.
        || (!text.ends_with('\n') && text.contains("- |\n"))
}

#[test]
fn reads_what_libyaml_reads() {
    let corpus: Json = serde_json::from_str(include_str!("../../tests/libyaml/corpus.json")).unwrap();
    let entries = corpus.as_array().unwrap();
    assert!(entries.len() > 700);
    let mut wrong = Vec::new();
    for entry in entries {
        let text = entry["text"].as_str().unwrap();
        if is_meant(text) {
            continue;
        }
        let (read, wanted) = (read(text), &entry["documents"]);
        if read != *wanted {
            wrong.push(format!("{text:?}\n  libyaml {wanted}\n  here    {read}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), entries.len(), wrong.join("\n"));
}

/// The documents of a text. Null for a syntax error.
fn read(text: &str) -> Json {
    let mut documents = Vec::new();
    for chunk in chunks(text) {
        let (found, broken) = parse(chunk);
        if broken.is_some() {
            return Json::Null;
        }
        documents.extend(found.iter().map(|document| {
            serde_json::json!({"value": value(document.root()), "problem": !document.problems.is_empty()})
        }));
    }
    documents.into()
}

fn value(node: Node<'_>) -> Json {
    match node.value() {
        Value::Null => Json::Null,
        Value::Text(text) => text.into(),
        Value::List => node.children().map(value).collect(),
        Value::Map => {
            let entry = |child: Node<'_>| (child.key().unwrap().0.to_owned(), value(child));
            Json::Object(node.children().map(entry).collect())
        }
    }
}
