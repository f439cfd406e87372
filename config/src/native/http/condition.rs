//! `match[]` of a rule: the conditions for requests.

use crate::{
    decode::{Diagnostics, View},
    kind::Flag,
    model::http::{Expression, HttpMatch, StringMatch},
    native::{
        codec::{By, Form, Named, text},
        keys::{FromKeys, TextOr, mapping},
        secrets::owned,
    },
    requests::expression,
};

/// A condition for a text. `None` is any text.
#[derive(Debug)]
pub(in crate::native) struct TextMatch(Option<StringMatch>);

/// A text, or a mapping with the kind of comparison.
fn string<'n>() -> impl Form<'n, TextMatch> {
    let exact = |view: &View<'n>, diagnostics: &mut Diagnostics| {
        Some(TextMatch(Some(StringMatch::Exact(owned(view, diagnostics)?))))
    };
    TextOr(By(text("the whole text", "/api"), exact))
}

const NAMED: &str = "a mapping of names to texts, or to {exact}, {prefix} or {regex}";

mapping! {
    /// What a request must look like; all of it must hold
    pub(in crate::native) struct MatchKeys("match", "routes[].terminate.http[].match[]") {
        /// The path without its query, in its [normal form](internals/http.md).
        path: TextMatch = optional("any"), string();
        /// Whether the case of the path counts for nothing.
        ignore_path_case: bool = default(false), Flag;
        /// The method.
        method: TextMatch = optional("any"), string();
        /// `http` or `https`, as the client sees it.
        scheme: TextMatch = optional("any"), string();
        /// The host as the client sent it, with its port if it has sent one.
        authority: TextMatch = optional("any"), string();
        /// Headers that must be there. `{}` takes any value.
        headers: Vec<(&'n str, TextMatch)> = optional("any"), Named(NAMED, string());
        /// Headers that must not be there, or not with this value.
        without_headers: Vec<(&'n str, TextMatch)> = optional("none"), Named(NAMED, string());
        /// Query parameters that must be there. `{}` takes any value.
        query: Vec<(&'n str, TextMatch)> = optional("any"), Named(NAMED, string());
    }
}

impl<'n> FromKeys<'n> for HttpMatch {
    type Keys = MatchKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let text = |key: Option<TextMatch>| key.and_then(|TextMatch(text)| text);
        let headers = |key: Option<Vec<(&str, TextMatch)>>| {
            let named = key.unwrap_or_default().into_iter();
            named.map(|(name, TextMatch(text))| (name.to_ascii_lowercase(), text)).collect()
        };
        let query = keys.query.unwrap_or_default().into_iter();
        let path = text(keys.path);
        if let Some(StringMatch::Exact(text) | StringMatch::Prefix(text)) = &path
            && !text.starts_with('/')
            && text != "*"
        {
            let view = keys.state.at("path");
            view.error(format!("no path is '{text}': a path begins with '/'"))
                .remedy(format!("write '/{text}'"))
                .emit(diagnostics);
            return None;
        }
        Some(Self {
            uri: path,
            ignore_uri_case: keys.ignore_path_case?,
            scheme: text(keys.scheme),
            method: text(keys.method),
            authority: text(keys.authority),
            headers: headers(keys.headers),
            without_headers: headers(keys.without_headers),
            query_params: query.map(|(name, TextMatch(text))| (name.to_owned(), text)).collect(),
        })
    }
}

mapping! {
    /// How a text is compared. A text instead of a mapping is `exact`. One of these
    pub(in crate::native) struct StringKeys("string", "routes[].terminate.http[].match[].path") {
        /// The whole text.
        exact: String = optional, By(text("a text", "/api"), owned);
        /// The beginning of the text.
        prefix: String = optional, By(text("a text", "/api/"), owned);
        /// An expression that the whole text matches.
        regex: Expression = optional, By(text("an expression (RE2)", "/v[0-9]+/.*"), expression);
    }
}

/// An empty mapping matches any text.
impl<'n> FromKeys<'n> for TextMatch {
    type Keys = StringKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let StringKeys { state, exact, prefix, regex } = keys;
        if ["exact", "prefix", "regex"].into_iter().filter(|key| state.is_written(key)).count() > 1 {
            state
                .view
                .error("more than one of exact, prefix and regex")
                .remedy("keep one of them")
                .emit(diagnostics);
            return None;
        }
        let exact = exact.map(StringMatch::Exact);
        Some(Self(exact.or(prefix.map(StringMatch::Prefix)).or(regex.map(StringMatch::Regex))))
    }
}
