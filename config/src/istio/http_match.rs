//! `http[].match[]`: the conditions of a route.

use super::{
    gateway_ref::{GatewayRef, read_gateways},
    labels::Labels,
};
use crate::{
    decode::{Diagnostics, View},
    model::http::{HttpMatch, StringMatch},
    options::Options,
    requests::expression,
};

/// A match, and its servers.
#[derive(Debug)]
pub(super) struct Condition<'n> {
    pub(super) port: Option<u16>,
    /// A part of the Gateways of the `VirtualService`. `None` is all of them.
    pub(super) gateways: Option<Vec<GatewayRef<'n>>>,
    pub(super) matches: HttpMatch,
    /// Whether a part of the match is unsupported, and an error is reported. Requests that match the other parts are
    /// refused.
    pub(super) refused: bool,
}

/// The input of the reader.
pub(super) struct Reader<'r, 'n> {
    /// The namespace of the object.
    pub(super) own: &'n str,
    pub(super) options: &'r Options,
}

impl<'n> Reader<'_, 'n> {
    /// `None` if it is for the sidecars of a mesh, or for another workload.
    pub(super) fn condition(&self, view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<Condition<'n>> {
        let mut fields = view.fields("a match: {uri, headers, method}", diagnostics)?;
        fields.known(&["name", "statPrefix"]);
        let mut elsewhere = false;
        let (labels, namespace) = (fields.take_set("sourceLabels"), fields.take_set("sourceNamespace"));
        let gateways = match fields.take_set("gateways") {
            None => None,
            Some(view) if is_mesh(&view) => {
                elsewhere = true;
                None
            }
            Some(view) => Some(read_gateways(&view, self.own, diagnostics)),
        };
        // With Gateways in the match, Istio ignores all other fields of the source.
        if gateways.is_none() && !elsewhere {
            elsewhere |= labels.is_some_and(|view| !self.is_own_labels(&view, diagnostics));
            elsewhere |= namespace.is_some_and(|view| !self.is_own_namespace(&view, diagnostics));
        }
        let mut read = Parts { refused: false };
        let written = fields.take_number("port");
        let port = written.as_ref().and_then(|view| view.port(diagnostics));
        read.refused |= written.is_some() && port.is_none();
        let [uri, scheme, method, authority] =
            ["uri", "scheme", "method", "authority"].map(|key| fields.take_set(key));
        let ignore_uri_case = fields.take("ignoreUriCase");
        let [headers, without, query] =
            ["headers", "withoutHeaders", "queryParams"].map(|key| fields.take_set(key));
        fields.finish(diagnostics);
        if elsewhere {
            return None;
        }
        let mut matches = HttpMatch {
            ignore_uri_case: ignore_uri_case.and_then(|view| view.flag(diagnostics)).unwrap_or_default(),
            ..HttpMatch::default()
        };
        for (view, into) in [
            (uri, &mut matches.uri),
            (scheme, &mut matches.scheme),
            (method, &mut matches.method),
            (authority, &mut matches.authority),
        ] {
            if let Some(view) = view {
                *into = read.string(&view, diagnostics);
            }
        }
        for (view, into, is_header) in [
            (headers, &mut matches.headers, true),
            (without, &mut matches.without_headers, true),
            (query, &mut matches.query_params, false),
        ] {
            if let Some(view) = view {
                *into = read.strings(&view, is_header, diagnostics);
            }
        }
        if read.refused {
            // An unsupported condition must not let requests pass to a wider route.
            matches.without_headers.clear();
        }
        Some(Condition { port, gateways, matches, refused: read.refused })
    }

    fn is_own_labels(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> bool {
        let labels = Labels::read(view, diagnostics);
        let own = !self.options.selector.is_empty() && labels.selected_by(&self.options.selector);
        if !own {
            view.note("the match is for workloads with these labels, which is not the gateway (--selector): skipped")
                .emit(diagnostics);
        }
        own
    }

    fn is_own_namespace(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> bool {
        let own = self.options.namespace.as_deref().is_some_and(|namespace| view.says(namespace));
        if !own {
            view.note("the match is for workloads of this namespace, which is not the gateway's (--namespace): skipped")
                .emit(diagnostics);
        }
        own
    }
}

/// Whether all gateways of a list are the sidecars of a mesh.
fn is_mesh(view: &View<'_>) -> bool {
    let list = view.list("a list", &mut Diagnostics::default());
    !list.is_empty() && list.iter().all(|one| one.says("mesh"))
}

/// Reads conditions and records whether one is invalid.
struct Parts {
    refused: bool,
}

/// The condition for a text.
enum Wanted {
    Any,
    Text(StringMatch),
}

impl Wanted {
    fn condition(self) -> Option<StringMatch> {
        match self {
            Self::Any => None,
            Self::Text(condition) => Some(condition),
        }
    }
}

/// Reads one condition. Reports errors.
fn wanted(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Wanted> {
    let mut fields = view.fields("{exact}, {prefix} or {regex}", diagnostics)?;
    let [exact, prefix, regex] = ["exact", "prefix", "regex"].map(|key| fields.take_set(key));
    fields.finish(diagnostics);
    let text =
        |view: &View<'_>, diagnostics: &mut Diagnostics| view.text("a text", diagnostics).map(str::to_owned);
    let condition = match (exact, prefix, regex) {
        (Some(view), None, None) => StringMatch::Exact(text(&view, diagnostics)?),
        (None, Some(view), None) => StringMatch::Prefix(text(&view, diagnostics)?),
        // Istio accepts it for any text, although it is no valid expression.
        (None, None, Some(view)) if view.says("*") => return Some(Wanted::Any),
        (None, None, Some(view)) => StringMatch::Regex(expression(&view, diagnostics)?),
        (None, None, None) => return Some(Wanted::Any),
        _ => {
            view.error("more than one of exact, prefix and regex")
                .remedy("keep one of them")
                .emit(diagnostics);
            return None;
        }
    };
    Some(Wanted::Text(condition))
}

impl Parts {
    /// `None` also for an expression that matches every text.
    fn string(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<StringMatch> {
        let read = wanted(view, diagnostics);
        self.refused |= read.is_none();
        read?.condition()
    }

    fn strings(
        &mut self,
        view: &View<'_>,
        is_header: bool,
        diagnostics: &mut Diagnostics,
    ) -> Vec<(String, Option<StringMatch>)> {
        let mut all = Vec::new();
        for (name, view) in view.entries("a mapping of names to {exact}, {prefix} or {regex}", diagnostics) {
            if is_header && name.starts_with('@') {
                view.error(format!(
                    "'{name}' is a claim of a token, which is not looked at: the match is refused"
                ))
                .remedy("remove it if the match shall hold without it")
                .emit(diagnostics);
                self.refused = true;
                continue;
            }
            let condition = if view.is_unset() {
                None
            } else if let Some(read) = wanted(&view, diagnostics) {
                read.condition()
            } else {
                self.refused = true;
                continue;
            };
            let name = if is_header { name.to_ascii_lowercase() } else { name.to_owned() };
            all.push((name, condition));
        }
        all
    }
}
