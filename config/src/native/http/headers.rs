//! `request_headers` and `response_headers` of a rule.

use crate::{
    decode::{Diagnostics, View},
    kind::Kind,
    model::http::{HeaderChanges, HeaderText},
    native::{
        codec::{By, one_or_more, text},
        keys::{FromKeys, mapping},
    },
    requests::{header_fault, header_text},
};

mapping! {
    /// Changes of headers, in the order `remove`, `set`, `add`
    pub(in crate::native) struct HeadersKeys("headers", "routes[].terminate.http[].request_headers") {
        /// Takes the place of the header's values. Its variables are those of
        /// [Envoy](internals/http.md#variables).
        set: Vec<(String, HeaderText)> = optional, By(named_texts(), values);
        /// Is added to the header's values. Its variables are those of [Envoy](internals/http.md#variables).
        add: Vec<(String, HeaderText)> = optional, By(named_texts(), values);
        /// Headers that are taken out.
        remove: Vec<String> = optional,
            one_or_more(By(text("the name of a header", "x-internal"), removed), "names of headers").or_none();
    }
}

fn named_texts() -> Kind {
    Kind::Named(Box::new(text("a text", "%DOWNSTREAM_REMOTE_ADDRESS%")))
}

fn values(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Vec<(String, HeaderText)>> {
    let entries = view.entries("a mapping of names of headers to texts", diagnostics);
    let read = |(name, view): (&str, View<'_>)| {
        Some((changeable(name, &view, diagnostics)?, header_text(&view, "", diagnostics)?))
    };
    let all: Vec<_> = entries.into_iter().map(read).collect();
    all.into_iter().collect()
}

fn removed(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let name = view.text("the name of a header", diagnostics)?;
    changeable(name, view, diagnostics)
}

/// The name of a header that can be changed, in lower case.
fn changeable(name: &str, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let Some(why) = header_fault(name) else { return Some(name.to_ascii_lowercase()) };
    let mut found = view.error(format!("'{name}' {why}"));
    if name.eq_ignore_ascii_case("host") {
        found = found.remedy("write rewrite: {authority: NAME}");
    }
    found.emit(diagnostics);
    None
}

impl<'n> FromKeys<'n> for HeaderChanges {
    type Keys = HeadersKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        Some(Self {
            remove: keys.remove.unwrap_or_default(),
            set: keys.set.unwrap_or_default(),
            add: keys.add.unwrap_or_default(),
        })
    }
}
