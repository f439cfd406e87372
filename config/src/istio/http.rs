//! `http[]`: the routes of HTTP requests.

use std::time::Duration;

use super::{
    destination::{self, Destination},
    headers,
    http_match::{self, Condition},
};
use crate::{
    decode::{Diagnostics, Fields, View},
    model::http::{HeaderChanges, Redirect, RedirectPort, Respond, Retries, Rewrite},
    options::Options,
    requests::{RETRY_CONDITIONS, expression, plain_text, retry_on},
};

/// One route of the list.
#[derive(Debug)]
pub(super) struct HttpRoute<'n> {
    pub(super) view: View<'n>,
    pub(super) index: usize,
    /// One of them must match. An empty list matches every request.
    pub(super) conditions: Vec<Condition<'n>>,
    pub(super) action: Action<'n>,
    pub(super) request_headers: HeaderChanges,
    pub(super) response_headers: HeaderChanges,
}

/// The action of a route.
#[derive(Debug)]
pub(super) enum Action<'n> {
    Forward(Box<Forward<'n>>),
    Redirect(Redirect),
    Respond(Respond),
    /// The route is invalid, and an error is reported. Its requests are answered with 503, and no other route gets
    /// them.
    Refused,
}

#[derive(Debug)]
pub(super) struct Forward<'n> {
    pub(super) destinations: Vec<Destination<'n>>,
    pub(super) rewrite: Option<Rewrite>,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: Retries,
}

/// Unsupported fields that would change the data for clients or backends.
const UNSUPPORTED: [(&str, &str); 7] = [
    ("delegate", "write the routes of the delegate here"),
    ("mirror", "remove it if no copy of the requests is wanted"),
    ("mirrors", "remove it if no copy of the requests is wanted"),
    ("fault", "remove it if no fault is wanted"),
    ("corsPolicy", "let the backend answer CORS requests"),
    ("tunnel", "remove it"),
    ("rateLimit", "remove it"),
];
const PRESENT: [&str; 5] = ["mirrorPercent", "mirrorPercentage", "websocketUpgrade", "appendHeaders", "name"];

/// `None` if it is only for the sidecars of a mesh.
pub(super) fn read<'n>(
    view: &View<'n>,
    index: usize,
    own: &'n str,
    options: &Options,
    diagnostics: &mut Diagnostics,
) -> Option<HttpRoute<'n>> {
    let mut fields = view.fields("an http route: {match, route}", diagnostics)?;
    let mut refused = false;
    let conditions = match fields.take_set("match") {
        None => Vec::new(),
        Some(view) => {
            let list = view.list("a list of matches", diagnostics);
            let read = http_match::Reader { own, options };
            let conditions: Vec<_> =
                list.iter().filter_map(|view| read.condition(view, diagnostics)).collect();
            if conditions.is_empty() && !list.is_empty() {
                return None; // All of it is for other workloads.
            }
            refused |= list.is_empty();
            conditions
        }
    };
    for (key, remedy) in UNSUPPORTED {
        if let Some(part) = fields.take_set(key) {
            part.error(format!(
                "'{key}' is not implemented: the requests that the route matches are answered with 503"
            ))
            .remedy(remedy)
            .emit(diagnostics);
            refused = true;
        }
    }
    fields.known(&PRESENT);
    let (request_headers, response_headers, host) = match fields.take_set("headers") {
        None => Default::default(),
        Some(view) => headers::read(&view, diagnostics),
    };
    // A refused route has no further findings.
    let mut unheard = Diagnostics::default();
    let said = if refused { &mut unheard } else { &mut *diagnostics };
    let action = action(view, &mut fields, host, said);
    fields.finish(diagnostics);
    let action = if refused { Action::Refused } else { action.unwrap_or(Action::Refused) };
    Some(HttpRoute { view: view.clone(), index, conditions, action, request_headers, response_headers })
}

/// `host` is the authority that the header changes set.
fn action<'n>(
    view: &View<'n>,
    fields: &mut Fields<'n>,
    host: Option<String>,
    diagnostics: &mut Diagnostics,
) -> Option<Action<'n>> {
    let expected = "one of route, redirect and directResponse";
    let [route, redirect, respond] = ["route", "redirect", "directResponse"].map(|key| fields.take_set(key));
    let rewrite = fields.take_set("rewrite");
    let timeout = fields.take_set("timeout");
    let retries = fields.take_set("retries");
    let written =
        usize::from(route.is_some()) + usize::from(redirect.is_some()) + usize::from(respond.is_some());
    if written != 1 {
        let problem = if written == 0 { "'route' is missing" } else { "the route does more than one thing" };
        view.error(format!("{problem}: the requests that it matches are answered with 503"))
            .expected(expected)
            .emit(diagnostics);
        return None;
    }
    if let Some(redirect) = redirect {
        return self::redirect(&redirect, diagnostics).map(Action::Redirect);
    }
    if let Some(respond) = respond {
        return self::respond(&respond, diagnostics).map(Action::Respond);
    }
    let mut good = true;
    let mut rewrite = match rewrite {
        None => None,
        Some(view) => {
            let read = self::rewrite(&view, diagnostics);
            good &= read.is_some();
            read
        }
    };
    if let Some(host) = host {
        let rewrite = rewrite.get_or_insert_default();
        rewrite.authority = rewrite.authority.take().or(Some(host));
    }
    let timeout = match timeout {
        None => None,
        Some(view) => {
            let read = duration(&view, diagnostics);
            good &= read.is_some();
            read.filter(|timeout| !timeout.is_zero())
        }
    };
    let retries = match retries {
        None => Retries::default(),
        Some(view) => self::retries(&view, diagnostics),
    };
    let destinations = destination::read_http(&route?, diagnostics);
    if !good || destinations.is_empty() {
        return None;
    }
    Some(Action::Forward(Box::new(Forward { destinations, rewrite, timeout, retries })))
}

fn redirect(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Redirect> {
    let mut fields = view.fields("{uri, authority, port, derivePort, scheme, redirectCode}", diagnostics)?;
    let [uri, authority, scheme, derive] =
        ["uri", "authority", "scheme", "derivePort"].map(|key| fields.take_set(key));
    let port = fields.take_number("port");
    let code = fields.take_number("redirectCode");
    fields.finish(diagnostics);
    let text = |view: &Option<View<'_>>, diagnostics: &mut Diagnostics| match view {
        None => Some(None),
        Some(view) => plain_text(view, diagnostics).map(Some),
    };
    let uri = text(&uri, diagnostics)?;
    let authority = text(&authority, diagnostics)?;
    let scheme_text = text(&scheme, diagnostics)?;
    if let (Some(view), Some(text)) = (&scheme, &scheme_text)
        && !matches!(&**text, "http" | "https")
    {
        view.error(format!("there is no scheme '{text}' to send a client to"))
            .expected("http or https")
            .emit(diagnostics);
        return None;
    }
    let port = match (port, derive) {
        (Some(port), _) => Some(RedirectPort::Number(port.port(diagnostics)?)),
        (None, Some(derive)) => {
            match derive.text("FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT", diagnostics)? {
                "FROM_PROTOCOL_DEFAULT" => Some(RedirectPort::OfScheme),
                "FROM_REQUEST_PORT" => Some(RedirectPort::OfRequest),
                other => {
                    derive
                        .error(format!("there is no way '{other}' to find a port"))
                        .expected("FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT")
                        .emit(diagnostics);
                    return None;
                }
            }
        }
        (None, None) => None,
    };
    let code = match code {
        None => 301,
        Some(view) => {
            let code: u16 = view.number(0..=999, diagnostics)?;
            if !matches!(code, 301 | 302 | 303 | 307 | 308) {
                view.error(format!("{code} is no code of a redirect"))
                    .expected("301, 302, 303, 307 or 308")
                    .emit(diagnostics);
                return None;
            }
            code
        }
    };
    Some(Redirect { uri, prefix: None, authority, scheme: scheme_text, port, code })
}

fn respond(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Respond> {
    let mut fields = view.fields("{status, body}", diagnostics)?;
    let status = fields.require("status", "a status code from 200 to 599", diagnostics);
    let body = fields.take_set("body");
    fields.finish(diagnostics);
    let status = status?.number(200..=599, diagnostics)?;
    let body = match body {
        None => Vec::new(),
        Some(view) => {
            let mut fields = view.fields("{string} or {bytes}", diagnostics)?;
            let string = fields.take_set("string");
            let bytes = fields.take_set("bytes");
            fields.finish(diagnostics);
            match (string, bytes) {
                (Some(string), None) => string.text("a text", diagnostics)?.as_bytes().to_vec(),
                (None, Some(view)) => {
                    let text = view.text("base64", diagnostics)?;
                    let Ok(bytes) = data_encoding::BASE64.decode(text.as_bytes()) else {
                        view.error("not base64").remedy("write the text under 'string'").emit(diagnostics);
                        return None;
                    };
                    bytes
                }
                (None, None) => Vec::new(),
                (Some(_), Some(bytes)) => {
                    bytes.error("there is a 'string' too").remedy("keep one of the two").emit(diagnostics);
                    return None;
                }
            }
        }
    };
    Some(Respond { status, body })
}

fn rewrite(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Rewrite> {
    let mut fields = view.fields("{uri, authority, uriRegexRewrite}", diagnostics)?;
    let [uri, authority, regex] = ["uri", "authority", "uriRegexRewrite"].map(|key| fields.take_set(key));
    fields.finish(diagnostics);
    if let (Some(_), Some(regex)) = (&uri, &regex) {
        regex.error("there is a 'uri' too").remedy("keep one of the two").emit(diagnostics);
        return None;
    }
    let mut rewrite = Rewrite::default();
    if let Some(uri) = uri {
        rewrite.uri = Some(plain_text(&uri, diagnostics)?);
    }
    if let Some(authority) = authority {
        rewrite.authority = Some(plain_text(&authority, diagnostics)?);
    }
    if let Some(regex) = regex {
        let mut fields = regex.fields("{match, rewrite}", diagnostics)?;
        let pattern = fields.require("match", "an expression (RE2)", diagnostics);
        let replacement = fields.take_set("rewrite");
        fields.finish(diagnostics);
        let expression = expression(&pattern?, diagnostics)?;
        let replacement = match replacement {
            None => String::new(),
            Some(view) => plain_text(&view, diagnostics)?,
        };
        rewrite.uri_regex = Some((expression, replacement));
    }
    Some(rewrite)
}

fn retries(view: &View<'_>, diagnostics: &mut Diagnostics) -> Retries {
    let none = Retries { attempts: 0, ..Retries::default() };
    let Some(mut fields) = view.fields("{attempts, perTryTimeout, retryOn}", diagnostics) else {
        return none;
    };
    let attempts = fields.take("attempts");
    let per_try = fields.take_set("perTryTimeout");
    let on = fields.take_set("retryOn");
    fields.known(&["retryRemoteLocalities", "retryIgnorePreviousHosts", "backoff"]);
    fields.finish(diagnostics);
    let per_try = per_try.and_then(|view| duration(&view, diagnostics));
    let mut retries = Retries {
        // A missing value is 0, no retries, as in Istio.
        attempts: attempts.and_then(|view| view.number(0..=1_000, diagnostics)).unwrap_or(0),
        per_try_timeout: per_try.filter(|time| !time.is_zero()),
        ..Retries::default()
    };
    let Some(view) = on else { return retries };
    let Some(text) = view.text("conditions, separated by commas", diagnostics) else { return retries };
    (retries.on_connect_failure, retries.on_reset, retries.on_status) = (false, false, Vec::new());
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            // The codes are in a field of their own.
            "retriable-status-codes" => {}
            "cancelled" | "deadline-exceeded" | "internal" | "resource-exhausted" | "unavailable" => view
                .note(format!("'{word}' is a status of gRPC, which is not looked at: it makes no retry"))
                .emit(diagnostics),
            _ if retry_on(&mut retries, word) => {}
            _ => view
                .warn(format!("there is no condition '{word}' here, ignored"))
                .expected(RETRY_CONDITIONS)
                .emit(diagnostics),
        }
    }
    retries
}

/// A duration in Go's notation: `1h30m`, `1.5s`, `100ms`.
pub(super) fn duration(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Duration> {
    let expected = "a duration such as 5s, 1.5s, 100ms or 1m";
    let text = view.text(expected, diagnostics)?;
    let parsed = parse_duration(text);
    if parsed.is_none() {
        view.error(format!("'{text}' is no duration"))
            .expected(expected)
            .or_placeholder(text)
            .emit(diagnostics);
    }
    parsed
}

/// The longest duration, the same as in the native format: a year.
const LONGEST: f64 = 365.0 * 86_400.0;

fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..length] {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[length..];
    }
    let good = !text.is_empty() && (0.0..=LONGEST).contains(&seconds);
    if good { Duration::try_from_secs_f64(seconds).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, milliseconds) in [
            ("5s", Some(5_000)),
            ("1.5s", Some(1_500)),
            ("100ms", Some(100)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("5 s", None),
            ("s", None),
            ("-5s", None),
            ("1e9s", None),
            ("999999999h", None),
        ] {
            assert_eq!(parse_duration(text), milliseconds.map(Duration::from_millis), "{text}");
        }
    }
}
