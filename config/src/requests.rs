//! The parts of HTTP rules that all formats share.

use crate::{
    decode::{Diagnostics, View},
    model::http::{Expression, HeaderText, Retries},
};

/// A regular expression. Reports an error for an invalid one.
pub(crate) fn expression(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Expression> {
    let text = view.text("an expression (RE2)", diagnostics)?;
    match Expression::new(text) {
        Ok(expression) => Some(expression),
        Err(why) => {
            // The last line of the library's message is the reason. The lines before it mark the position in the
            // text.
            let why = why.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned();
            view.error(format!("'{text}' is no expression that can be used: {why}"))
                .expected("an expression (RE2)")
                .emit(diagnostics);
            None
        }
    }
}

/// A text without control characters, which headers and paths must not contain.
pub(crate) fn plain_text(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let text = if view.is_unset() { "" } else { view.text("a text", diagnostics)? };
    if text.chars().any(|letter| letter.is_control() && letter != '\t') {
        view.error("holds a control character").emit(diagnostics);
        return None;
    }
    Some(text.into())
}

/// The value of a header to set, with its variables. `then` is the consequence of an invalid value.
pub(crate) fn header_text(view: &View<'_>, then: &str, diagnostics: &mut Diagnostics) -> Option<HeaderText> {
    let text = plain_text(view, diagnostics)?;
    match HeaderText::parse(&text) {
        Ok(text) => Some(text),
        Err(fault) => {
            view.error(format!("{fault}{then}"))
                .expected(format!("a text, with the variables {} if any", HeaderText::VARIABLES))
                .remedy("write '%%' for a percent sign, or a text without variables")
                .emit(diagnostics);
            None
        }
    }
}

/// The reason for which a header cannot be changed. `None` if it can.
pub(crate) fn header_fault(name: &str) -> Option<&'static str> {
    /// The headers that frame a message.
    const FRAMING: [&str; 8] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    // A token (RFC 9110 section 5.6.2).
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        Some("is no name of a header")
    } else if FRAMING.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        Some("belongs to the connection and is not changed")
    } else {
        None
    }
}

/// The conditions of [`retry_on`] that are not status codes, with Envoy's names (`x-envoy-retry-on`).
pub(crate) const RETRY_CONDITIONS: &str =
    "connect-failure, refused-stream, reset, gateway-error, 5xx, retriable-4xx, or a status code";

/// Adds a condition of Envoy, or a status code. Returns whether the word is one.
pub(crate) fn retry_on(retries: &mut Retries, word: &str) -> bool {
    match word {
        "connect-failure" | "refused-stream" | "http3-post-connect-failure" => {
            retries.on_connect_failure = true;
        }
        "reset" | "reset-before-request" => (retries.on_connect_failure, retries.on_reset) = (true, true),
        "gateway-error" => {
            (retries.on_connect_failure, retries.on_reset) = (true, true);
            retries.on_status.extend(502..=504);
        }
        "5xx" => {
            (retries.on_connect_failure, retries.on_reset) = (true, true);
            retries.on_status.extend(500..=599);
        }
        "retriable-4xx" => retries.on_status.push(409),
        _ => match word.parse() {
            Ok(code @ 100..=599) => retries.on_status.push(code),
            _ => return false,
        },
    }
    retries.on_status.sort_unstable();
    retries.on_status.dedup();
    true
}
