//! The reference of the native format, generated from the declarations: as Markdown for people, as a JSON schema for
//! editors.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::{
    kind::{Kind, Share},
    model::settings::Applies,
    native::schema::{Key, Mapping, mappings},
    units::{Bytes, Span},
};

#[cfg(test)]
mod tests;

const HEAD: &str = "\
# Configuration

<!-- Written by `cargo xtask schema` from the declarations in `config/src`. Change those, not this page. -->

This page is the reference of snisplice's own format: every key, with its type, default and range. Worked examples:
[one name on one port](../config/examples/minimal.yaml), [HTTPS and HTTP](../config/examples/http.yaml),
[every key](../config/examples/complete.yaml), [Istio objects](../config/examples/istio.yaml). [istio.md](istio.md) has what is served of Istio objects.

`snisplice check --config FILE` says what is wrong with a configuration, with file, line and remedy, and prints what is
served. `snisplice explain --config FILE NAME` tells where a name leads, and why; with `--path PATH` which rule an HTTP
request takes.

An editor that speaks the YAML language server completes and checks keys where a file begins with the path of
[`config/snisplice.schema.json`](../config/snisplice.schema.json):

```yaml
# yaml-language-server: $schema=/path/to/snisplice.schema.json
```

## Rules

* A file holds one or more YAML or JSON documents. All documents of all files together are one configuration.
* Lists are joined, and a setting is written once.
* Keys are `snake_case`. An unknown key, a key written twice and a reference to nothing are errors.
* A document with `apiVersion` or `kind` is a Kubernetes object; any other one is of this format.
* A configuration with an error is refused as a whole. The last good one keeps serving.
* SIGHUP reads the files again. A change to a key that is marked *restart* takes effect at the next start; the log names it.
* Sizes are bytes, or have a unit: `KiB`, `MiB`, `GiB`, or `k`, `m`, `g` for the same powers of 1024. `kB`, `MB` and `GB`
  mean different things to different people and are errors.
* Durations have a unit: `ms`, `s`, `m`, `h`, `d`; `1h30m` is one, too. The longest one is a year.
";

/// The reference as a page of Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut page = HEAD.to_owned();
    for mapping in mappings() {
        let Mapping { path, doc, keys, .. } = &mapping;
        let title = if path.is_empty() { "Keys of a document".to_owned() } else { format!("`{path}`") };
        page += "\n## ";
        page += &title;
        page += "\n\n";
        page += doc;
        page += ".\n\n";
        page += "| key | value | default | change | meaning |\n|---|---|---|---|---|\n";
        for key in keys {
            page += &row(key);
        }
    }
    page
}

fn row(key: &Key) -> String {
    let Key { name, kind, required, default, applies, since, doc, shape: _ } = key;
    let default = match (required, &**default) {
        (true, _) => "required".into(),
        (false, "") => String::new(),
        (false, "none") if !matches!(kind, Kind::Share(_)) => "none".into(),
        (false, words) if words.contains(' ') => words.to_owned(),
        (false, value) => format!("`{value}`"),
    };
    let applies = match applies {
        _ if matches!(kind, Kind::Mapping(_)) => "key by key",
        Applies::Restart => "restart",
        Applies::Reload => "reload",
    };
    let since = since.map(|kernel| format!(" Linux {kernel} or newer.")).unwrap_or_default();
    format!("| `{name}` | {} | {default} | {applies} | {doc}{since}{} |\n", value(kind), choices(kind))
}

/// A type in words.
fn value(kind: &Kind) -> String {
    match kind {
        Kind::Flag => "`true` or `false`".into(),
        Kind::Number { least, most } => format!("number, {least} to {most}"),
        Kind::Decimal { least, most } => format!("number, {least} to {most}, with decimals"),
        Kind::Size { least, most } => format!("size, {} to {}", Bytes(*least), Bytes(*most)),
        Kind::Duration { least } => format!("duration, from {}", Span(*least)),
        Kind::Share(Share { least, none, .. }) => {
            let none = if *none { ", `none`" } else { "" };
            format!("`auto`{none}, or number from {least}")
        }
        Kind::Choice(words) => {
            words.iter().map(|(word, _)| format!("`{word}`")).collect::<Vec<_>>().join(", ")
        }
        Kind::Text { what, example } => format!("{what}, as `{example}`"),
        Kind::List(item) => format!("list of: {}", value(item)),
        Kind::OneOrMore(item) => format!("one or a list of: {}", value(item)),
        Kind::Mapping(id) => match mappings().iter().find(|mapping| mapping.id == *id) {
            Some(Mapping { path, .. }) => format!("[mapping](#{})", anchor(path)),
            None => "mapping".into(),
        },
        Kind::Named(item) => format!("mapping of names to: {}", value(item)),
        Kind::Either(kinds) => kinds.iter().map(value).collect::<Vec<_>>().join("; or "),
    }
}

/// The meaning of each word of a choice.
fn choices(kind: &Kind) -> String {
    match kind {
        Kind::Choice(words) => words.iter().fold(String::new(), |mut text, (word, doc)| {
            let _ = write!(text, "<br>`{word}`: {doc}");
            text
        }),
        Kind::Either(kinds) => kinds.iter().map(choices).collect(),
        Kind::Share(share) => {
            let none = if share.none { " `none` and 0 are no limit." } else { "" };
            format!(" `auto` is {} of `limits.connections`, at least {}.{none}", share.in_words(), Share::FEW)
        }
        _ => String::new(),
    }
}

/// The anchor of a path's heading.
fn anchor(path: &str) -> String {
    path.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == '_' || *c == '-').collect()
}

/// The JSON schema (draft 7, which most editors support), with a final line break.
#[must_use]
pub fn json_schema() -> String {
    let mappings = mappings();
    let mut definitions = Map::new();
    for mapping in &mappings {
        definitions.insert(mapping.id.into(), mapping_schema(mapping));
    }
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of snisplice",
        "description": "A document of snisplice's own format, or a Kubernetes object.",
        "if": {"type": "object", "anyOf": [{"required": ["apiVersion"]}, {"required": ["kind"]}]},
        "then": {"type": "object"},
        "else": {"$ref": "#/definitions/configuration"},
        "definitions": definitions,
    });
    format!("{schema:#}\n")
}

fn mapping_schema(Mapping { doc, keys, .. }: &Mapping) -> Value {
    let mut properties = Map::new();
    for key in keys {
        let mut schema = value_schema(&key.kind);
        if schema.get("$ref").is_some() {
            // Draft 7 ignores the siblings of a reference.
            schema = json!({"allOf": [schema]});
        }
        schema["description"] = format!("{}{}", key.doc, default(key)).into();
        properties.insert(key.name.into(), schema);
    }
    let required: Vec<_> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut schema = json!({
        "type": ["object", "null"],
        "description": format!("{doc}."),
        "additionalProperties": false,
        "properties": properties,
    });
    if !required.is_empty() {
        schema["type"] = "object".into();
        schema["required"] = required.into();
    }
    schema
}

fn default(key: &Key) -> String {
    if key.default.is_empty() { String::new() } else { format!(" Default: {}.", key.default) }
}

fn value_schema(kind: &Kind) -> Value {
    match kind {
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Number { least, most } => json!({"type": "integer", "minimum": least, "maximum": most}),
        Kind::Decimal { most, .. } => json!({"type": "number", "exclusiveMinimum": 0, "maximum": most}),
        Kind::Size { least, most } => json!({"anyOf": [
            {"type": "integer", "minimum": least, "maximum": most},
            {"type": "string", "pattern": "^[0-9]+ *(B|[kKmMgG]|[KMGT]i|[kKMGT]iB)?$"},
        ]}),
        Kind::Duration { .. } => json!({"type": "string", "pattern": "^([0-9]+ *[a-z]+ *)+$"}),
        Kind::Share(Share { least, none, .. }) => {
            let words: &[&str] = if *none { &["auto", "none"] } else { &["auto"] };
            json!({"anyOf": [{"type": "integer", "minimum": least}, {"enum": words}]})
        }
        Kind::Choice(words) => json!({"enum": words.iter().map(|(word, _)| *word).collect::<Vec<_>>()}),
        Kind::Text { example, .. } => json!({"type": "string", "examples": [example]}),
        Kind::List(item) => json!({"type": ["array", "null"], "items": value_schema(item)}),
        Kind::OneOrMore(item) => {
            json!({"anyOf": [value_schema(item), {"type": "array", "items": value_schema(item)}]})
        }
        Kind::Mapping(id) => json!({"$ref": format!("#/definitions/{id}")}),
        Kind::Named(item) => json!({"type": ["object", "null"], "additionalProperties": value_schema(item)}),
        Kind::Either(kinds) => json!({"anyOf": kinds.iter().map(value_schema).collect::<Vec<_>>()}),
    }
}
