use std::{collections::BTreeSet, fs, path::Path};

use regex_lite::Regex;

use super::*;
use crate::{
    Options, Severity, Source, Translation,
    document::{self, Node},
    load, yaml,
};

/// An unknown key, for a document that has one in each mapping of the format.
const STRANGER: &str = "zzzzzzzz";

/// The reader's message about an unknown key lists the known ones. They are the keys of the schema, for each mapping:
/// its path in the reference leads to it.
#[test]
fn the_reader_and_the_schema_know_the_same_keys() {
    for mapping in mappings() {
        let keys: BTreeSet<_> = mapping.keys.iter().map(|key| key.name.to_owned()).collect();
        assert_eq!(known_at(mapping.path), keys, "{}", mapping.id);
    }
}

/// The keys that the reader lists for an unknown one at `path`.
fn known_at(path: &str) -> BTreeSet<String> {
    let text = document_with(path, format!("{{{STRANGER}: 1}}"));
    let translation = loaded(&text);
    let found = translation.diagnostics.iter().find(|found| found.message == "unknown key");
    let found = found.unwrap_or_else(|| panic!("{text}: {:?}", translation.diagnostics));
    let known = found.remedy.as_ref().and_then(|remedy| remedy.strip_prefix("the keys here are: "));
    known.unwrap_or_else(|| panic!("{found}")).split(", ").map(str::to_owned).collect()
}

/// A document with this mapping at `path`.
fn document_with(path: &str, mapping: String) -> String {
    // From the inside out: `routes[].backends[]` is a mapping in a list in a mapping in a list.
    path.split('.').rev().filter(|step| !step.is_empty()).fold(mapping, |text, step| {
        let (key, is_list) = step.strip_suffix("[]").map_or((step, false), |key| (key, true));
        let key = if key == "VERDICT" { "timeout" } else { key };
        if is_list { format!("{{{key}: [{text}]}}") } else { format!("{{{key}: {text}}}") }
    })
}

fn loaded(text: &str) -> Translation {
    let source = Source { name: "a.yaml".into(), text: text.to_owned() };
    load(&[source].into_iter().collect(), &Options::default())
}

/// `mappings()` lists every mapping that is the value of a key.
#[test]
fn every_mapping_is_in_the_reference() {
    fn named(kind: &Kind) -> Vec<&'static str> {
        match kind {
            Kind::Mapping(id) => vec![id],
            Kind::List(kind) | Kind::OneOrMore(kind) | Kind::Named(kind) => named(kind),
            Kind::Either(kinds) => kinds.iter().flat_map(named).collect(),
            _ => Vec::new(),
        }
    }
    let all = mappings();
    let listed: BTreeSet<_> = all.iter().map(|mapping| mapping.id).collect();
    assert_eq!(listed.len(), all.len(), "an id is there twice");
    for key in all.iter().flat_map(|mapping| &mapping.keys) {
        for id in named(&key.kind) {
            assert!(listed.contains(id), "{id}, the value of {}", key.name);
        }
    }
}

/// Where the reference says "one or a list", the reader takes each kind of item alone and in a list.
#[test]
fn one_item_needs_no_list() {
    let mut tried = 0;
    for mapping in mappings() {
        for key in &mapping.keys {
            let Kind::OneOrMore(item) = &key.kind else { continue };
            for one in samples(item) {
                for written in [one.clone(), format!("[{one}]")] {
                    let text = document_with(mapping.path, format!("{{{}: {written}}}", key.name));
                    let found = loaded(&text).diagnostics;
                    let wrong = found.iter().find(|found| found.message.starts_with("found "));
                    assert_eq!(wrong, None, "{text}");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 30, "{tried}");
}

/// A value of each form that a type has.
fn samples(kind: &Kind) -> Vec<String> {
    match kind {
        Kind::Text { example, .. } => vec![format!("{example:?}")],
        Kind::Choice(words) => vec![words[0].0.to_owned()],
        Kind::Number { least, .. } => vec![least.to_string()],
        Kind::Flag => vec!["true".into()],
        Kind::Duration { .. } => vec!["10s".into()],
        Kind::Either(kinds) => kinds.iter().flat_map(samples).collect(),
        Kind::Mapping(id) => {
            let all = mappings();
            let mapping = all.iter().find(|mapping| mapping.id == *id).unwrap();
            let required = mapping.keys.iter().filter(|key| key.required);
            let keys: Vec<_> =
                required.map(|key| format!("{}: {}", key.name, samples(&key.kind)[0])).collect();
            vec![format!("{{{}}}", keys.join(", "))]
        }
        other => panic!("write a sample of {other:?}"),
    }
}

/// Each example, and each document of the tests that loads, fits the schema. A document with an unknown key does not.
#[test]
fn what_loads_fits_the_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema: Value = serde_json::from_str(&json_schema()).unwrap();
    let mut seen = 0;
    let folders = fs::read_dir(root.join("testdata")).unwrap().map(|entry| entry.unwrap().path());
    for folder in folders.chain([root.join("examples")]) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let loaded = load(
                &[Source { name: "a".into(), text: text.clone() }].into_iter().collect(),
                &Options::default(),
            );
            if loaded.diagnostics.iter().any(|found| found.severity <= Severity::Ignored) {
                continue;
            }
            for document in documents(&text) {
                fits(document.root(), &schema, &schema)
                    .unwrap_or_else(|why| panic!("{}: {why}", path.display()));
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "{seen}");
    for wrong in [
        "listeners: [{name: a}]",
        "survival: true",
        "limits: {hello_bytes: 1MB}",
        "limits: {workers: many}",
        "datapath: fast",
        "timeouts: {idle: 5}",
        "policies: {no_sni: maybe}",
        "listeners: [{name: a, bind: b, redirect_https: {port: 0}}]",
        "listeners: [{name: a, bind: b, http: [{backends: x, match: [{headers: {x-a: {exactly: y}}}]}]}]",
        "routes: [{sni: a, terminate: {certificates: x, http: [{backend: y}]}}]",
        "backends: [{name: a, endpoints: b, http: h3}]",
    ] {
        assert!(documents(wrong).iter().any(|one| fits(one.root(), &schema, &schema).is_err()), "{wrong}");
    }
}

fn documents(text: &str) -> Vec<document::Document> {
    yaml::chunks(text).flat_map(|chunk| yaml::parse(chunk).0).collect()
}

/// Checks a value by the keywords that this schema uses. A scalar has any type that its text permits.
fn fits(node: Node<'_>, schema: &Value, root: &Value) -> Result<(), String> {
    let Value::Object(keywords) = schema else { return Ok(()) };
    let at = node.path();
    let no = |why: String| Err(format!("'{at}' {why}"));
    let all_of =
        |schemas: &Value| schemas.as_array().unwrap().iter().try_for_each(|one| fits(node, one, root));
    if let Some(condition) = keywords.get("if") {
        let branch = if fits(node, condition, root).is_ok() { "then" } else { "else" };
        fits(node, &schema[branch], root)?;
    }
    for (keyword, value) in keywords {
        match keyword.as_str() {
            "$ref" => {
                let path = value.as_str().unwrap().strip_prefix('#').unwrap();
                fits(node, root.pointer(path).unwrap(), root)?;
            }
            "allOf" => all_of(value)?,
            "anyOf" => {
                let tried: Vec<_> =
                    value.as_array().unwrap().iter().map(|one| fits(node, one, root)).collect();
                if tried.iter().all(Result::is_err) {
                    return no(format!("is none of {tried:?}"));
                }
            }
            "enum" if !value.as_array().unwrap().iter().any(|one| text(node) == one.as_str()) => {
                return no(format!("is not one of {value}"));
            }
            "type" => {
                let types = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                if !types.iter().any(|one| is_a(node, one.as_str().unwrap())) {
                    return no(format!("is no {value}"));
                }
            }
            "pattern" => {
                let text = text(node).unwrap_or_default();
                if !Regex::new(value.as_str().unwrap()).unwrap().is_match(text) {
                    return no(format!("does not look like {value}"));
                }
            }
            "minimum" | "maximum" => {
                let Some(number) = text(node).and_then(|text| text.parse::<u64>().ok()) else { continue };
                let limit = value.as_u64().unwrap();
                if (keyword == "minimum" && number < limit) || (keyword == "maximum" && number > limit) {
                    return no(format!("is beyond {limit}"));
                }
            }
            "required" => {
                for key in value.as_array().unwrap() {
                    if node.get(key.as_str().unwrap()).is_none() {
                        return no(format!("lacks {key}"));
                    }
                }
            }
            "properties" => {
                for child in node.children() {
                    if let Some((key, _)) = child.key() {
                        match value.get(key) {
                            Some(schema) => fits(child, schema, root)?,
                            None => return no(format!("has no key {key}")),
                        }
                    }
                }
            }
            "additionalProperties" if value.is_object() && node.value() == document::Value::Map => {
                node.children().try_for_each(|child| fits(child, value, root))?;
            }
            "items" if node.value() == document::Value::List => {
                node.children().try_for_each(|child| fits(child, value, root))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn text(node: Node<'_>) -> Option<&str> {
    match node.value() {
        document::Value::Text(text) => Some(text),
        _ => None,
    }
}

fn is_a(node: Node<'_>, kind: &str) -> bool {
    match kind {
        "null" => node.value() == document::Value::Null,
        "object" => node.value() == document::Value::Map,
        "array" => node.value() == document::Value::List,
        "boolean" => matches!(text(node), Some("true" | "false")),
        "integer" => text(node).is_some_and(|text| text.parse::<u64>().is_ok()),
        "number" => text(node).is_some_and(|text| text.parse::<f64>().is_ok()),
        "string" => text(node).is_some_and(|text| text.parse::<u64>().is_err()),
        other => panic!("{other}"),
    }
}

/// The complete example contains every key.
#[test]
fn the_complete_example_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/complete.yaml");
    let text = fs::read_to_string(path).unwrap();
    let all = documents(&text);
    let mut shown = BTreeSet::new();
    collect(all[0].root(), &mut shown);
    for mapping in mappings() {
        for key in mapping.keys {
            assert!(shown.contains(key.name), "{} lacks {}", mapping.path, key.name);
        }
    }
}

fn collect(node: Node<'_>, into: &mut BTreeSet<String>) {
    into.extend(node.key().map(|(key, _)| key.to_owned()));
    node.children().for_each(|child| collect(child, into));
}

#[test]
fn the_reference_names_every_key() {
    let page = markdown();
    for mapping in mappings() {
        for key in &mapping.keys {
            assert!(page.contains(&format!("| `{}` |", key.name)), "{}", key.name);
            assert!(key.doc.ends_with('.'), "{}: {}", key.name, key.doc);
        }
    }
}
