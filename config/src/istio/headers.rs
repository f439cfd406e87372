//! Changes of headers, of a route or a destination.

use crate::{
    decode::{Diagnostics, View},
    model::http::HeaderChanges,
};

/// `headers` of a route or destination: of requests and of responses, and the authority that requests get.
pub(super) fn read(
    view: &View<'_>,
    diagnostics: &mut Diagnostics,
) -> (HeaderChanges, HeaderChanges, Option<String>) {
    let Some(mut fields) = view.fields("{request, response}", diagnostics) else { return Default::default() };
    let mut host = None;
    let mut read = |key, diagnostics: &mut Diagnostics| {
        fields.take_set(key).map(|view| changes(&view, &mut host, diagnostics)).unwrap_or_default()
    };
    let request = read("request", diagnostics);
    let response = read("response", diagnostics);
    fields.finish(diagnostics);
    (request, response, host)
}

fn changes(view: &View<'_>, host: &mut Option<String>, diagnostics: &mut Diagnostics) -> HeaderChanges {
    let mut changes = HeaderChanges::default();
    let Some(mut fields) = view.fields("{set, add, remove}", diagnostics) else { return changes };
    for key in ["set", "add"] {
        let Some(view) = fields.take_set(key) else { continue };
        for (name, view) in view.entries("a mapping of names to values", diagnostics) {
            let Some(value) = header_value(&view, diagnostics) else { continue };
            if name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority") {
                *host = Some(value);
                continue;
            }
            if !is_header_name(name, &view, diagnostics) {
                continue;
            }
            if value.contains('%') {
                view.warn("sent as it is written: the variables of Envoy between '%' are not implemented")
                    .emit(diagnostics);
            }
            let into = if key == "set" { &mut changes.set } else { &mut changes.add };
            into.push((name.to_ascii_lowercase(), value));
        }
    }
    if let Some(view) = fields.take_set("remove") {
        for item in view.list("a list of names of headers", diagnostics) {
            if let Some(name) = item.text("the name of a header", diagnostics)
                && is_header_name(name, &item, diagnostics)
            {
                changes.remove.push(name.to_ascii_lowercase());
            }
        }
    }
    fields.finish(diagnostics);
    changes
}

/// A token (RFC 9110 section 5.6.2), and not what the protocol itself needs.
fn is_header_name(name: &str, view: &View<'_>, diagnostics: &mut Diagnostics) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let framing = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let why = if name.is_empty() || !name.bytes().all(is_token) {
        "is no name of a header"
    } else if framing.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        "belongs to the connection and is not changed"
    } else {
        return true;
    };
    view.error(format!("'{name}' {why}, left out")).emit(diagnostics);
    false
}

/// A text without a control character, which no header and no path can have.
pub(super) fn header_value(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let text = if view.is_unset() { "" } else { view.text("a text", diagnostics)? };
    if text.chars().any(|letter| letter.is_control() && letter != '\t') {
        view.error("holds a control character").emit(diagnostics);
        return None;
    }
    Some(text.into())
}
