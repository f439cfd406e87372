//! Header changes of a route or a destination.

use crate::{
    decode::{Diagnostics, View},
    model::http::HeaderChanges,
    requests::{header_fault, header_text, plain_text},
};

/// `headers` of a route or destination: the changes to requests and to responses, and the authority of requests.
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
            if name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority") {
                *host = authority(&view, diagnostics).or(host.take());
                continue;
            }
            if !is_header_name(name, &view, diagnostics) {
                continue;
            }
            let Some(value) = header_text(&view, ", left out", diagnostics) else { continue };
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

/// An authority to set. Variables are not allowed, since a client could then choose the authority.
fn authority(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let text = plain_text(view, diagnostics)?;
    if text.contains('%') {
        view.error("an authority has no variables, left out")
            .remedy("write the authority itself, or rewrite: {authority}")
            .emit(diagnostics);
        return None;
    }
    Some(text)
}

/// Reports a header that cannot be changed.
fn is_header_name(name: &str, view: &View<'_>, diagnostics: &mut Diagnostics) -> bool {
    let fault = header_fault(name);
    if let Some(why) = fault {
        view.error(format!("'{name}' {why}, left out")).emit(diagnostics);
    }
    fault.is_none()
}
