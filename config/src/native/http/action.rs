//! `redirect`, `direct_response`, `rewrite` and `retries` of a rule.

use std::time::Duration;

use crate::{
    decode::{Diagnostics, View},
    kind::{Choice, Codec, Count, Kind, Time, choices},
    model::http::{Expression, Redirect, RedirectPort, Respond, Retries, Rewrite},
    native::{
        codec::{By, one_or_more, text},
        keys::{FromKeys, Nested, mapping},
        secrets::owned,
    },
    requests::{RETRY_CONDITIONS, expression, plain_text, retry_on},
};

choices! {
    /// The port of a redirect, if it is not a number.
    enum DerivedPort {
        /// The port of the scheme: 443 or 80.
        OfScheme,
        /// The port of the request's connection.
        OfRequest,
    }
}

/// Status codes of redirects (RFC 9110 section 15.4).
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];

const PORT: Count = Count(1..=65_535);
const DERIVED_PORT: Choice = Choice { what: "way to find a port" };

mapping! {
    /// Where a client is sent; what is not written stays as it was
    pub(in crate::native) struct RedirectKeys("redirect", "routes[].terminate.http[].redirect") {
        /// The new scheme.
        scheme: String = optional("the request's"), By(schemes(), scheme);
        /// The new host.
        authority: String = optional("the request's"),
            By(text("a host, perhaps with a port", "www.example.com"), plain_text);
        /// The new port.
        port: RedirectPort = optional("the request's"), By(ports(), port);
        /// The new path, with a query of its own if it has one.
        path: String = optional("the request's"), By(text("a path", "/new"), plain_text);
        /// The status code: 301, 302, 303, 307 or 308.
        code: u16 = optional("301"), By(Kind::Number { least: 301, most: 308 }, code);
    }
}

fn schemes() -> Kind {
    Kind::Choice(vec![("http", "Without TLS.".into()), ("https", "With TLS.".into())])
}

fn scheme(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    if view.says("http") || view.says("https") {
        return owned(view, diagnostics);
    }
    view.error("no scheme to send a client to").expected("http or https").emit(diagnostics);
    None
}

fn ports() -> Kind {
    Kind::Either(vec![Codec::<u16>::kind(&PORT), Codec::<DerivedPort>::kind(&DERIVED_PORT)])
}

fn port(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<RedirectPort> {
    if view.is_number() {
        return PORT.read(view, diagnostics).map(RedirectPort::Number);
    }
    Some(match DERIVED_PORT.read(view, diagnostics)? {
        DerivedPort::OfScheme => RedirectPort::OfScheme,
        DerivedPort::OfRequest => RedirectPort::OfRequest,
    })
}

fn code(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<u16> {
    let code = view.number(0..=999, diagnostics)?;
    if !REDIRECTS.contains(&code) {
        view.error(format!("{code} is no code of a redirect"))
            .expected("301, 302, 303, 307 or 308")
            .emit(diagnostics);
        return None;
    }
    Some(code)
}

impl<'n> FromKeys<'n> for Redirect {
    type Keys = RedirectKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        if keys.state.lacks(&["scheme", "authority", "port", "path"]) {
            let view = &keys.state.view;
            view.error("the client would be sent to where it is")
                .expected("at least one of scheme, authority, port and path")
                .emit(diagnostics);
            return None;
        }
        Some(Self {
            uri: keys.path,
            prefix: None,
            authority: keys.authority,
            scheme: keys.scheme,
            port: keys.port,
            code: keys.code.unwrap_or(REDIRECTS[0]),
        })
    }
}

mapping! {
    /// What a request is answered with here
    pub(in crate::native) struct RespondKeys("direct_response", "routes[].terminate.http[].direct_response") {
        /// The status code.
        status: u16 = required("a status code from 200 to 599"), Count(200..=599);
        /// The body, sent as `text/plain`.
        body: String = optional("no body"), By(text("a text", "gone"), owned);
    }
}

impl<'n> FromKeys<'n> for Respond {
    type Keys = RespondKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        Some(Self { status: keys.status?, body: keys.body.unwrap_or_default().into_bytes() })
    }
}

mapping! {
    /// What a request's path and authority become
    pub(in crate::native) struct RewriteKeys("rewrite", "routes[].terminate.http[].rewrite") {
        /// Takes the place of the prefix that `match` names, or of the whole path after another match.
        path: String = optional("the request's"), By(text("a path", "/v2/"), plain_text);
        /// Parts of the path that are replaced.
        path_regex: (Expression, String) = optional, Nested;
        /// The new host.
        authority: String = optional("the request's"), By(text("a host", "shop.internal"), plain_text);
    }
}

impl<'n> FromKeys<'n> for Rewrite {
    type Keys = RewriteKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        if keys.state.is_written("path")
            && let Some(regex) = keys.state.view.written("path_regex")
        {
            regex.error("there is a 'path' too").remedy("keep one of the two").emit(diagnostics);
            return None;
        }
        Some(Self { uri: keys.path, uri_regex: keys.path_regex, authority: keys.authority })
    }
}

mapping! {
    /// Parts of the path that are replaced
    pub(in crate::native) struct PathRegexKeys("path_regex", "routes[].terminate.http[].rewrite.path_regex") {
        /// Each part that matches is replaced.
        r#match: Expression = required("an expression (RE2)"),
            By(text("an expression (RE2)", "/user/([0-9]+)"), expression);
        /// What takes its place. `\1` is the first group.
        replacement: String = required("a text; \\1 is the first group"), By(text("a text", "/u/\\1"), plain_text);
    }
}

impl<'n> FromKeys<'n> for (Expression, String) {
    type Keys = PathRegexKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        Some((keys.r#match?, keys.replacement?))
    }
}

mapping! {
    /// When a request is sent again
    pub(in crate::native) struct RetriesKeys("retries", "routes[].terminate.http[].retries") {
        /// How often, beside the first time.
        attempts: u32 = default(Retries::default().attempts), Count(0..=1_000);
        /// How long one try may take.
        per_try_timeout: Duration = optional("the rule's `timeout`"), Time::POSITIVE;
        /// What is tried again, in Envoy's words.
        retry_on: Vec<&'n str> = optional("connect-failure and 503"),
            one_or_more(By(text(RETRY_CONDITIONS, "gateway-error"), condition), RETRY_CONDITIONS).or_none();
    }
}

fn condition<'n>(view: &View<'n>, diagnostics: &mut Diagnostics) -> Option<&'n str> {
    let word = view.text(RETRY_CONDITIONS, diagnostics)?;
    if retry_on(&mut Retries::default(), word) {
        return Some(word);
    }
    view.error(format!("there is no condition '{word}'")).expected(RETRY_CONDITIONS).emit(diagnostics);
    None
}

impl<'n> FromKeys<'n> for Retries {
    type Keys = RetriesKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        let mut retries =
            Self { attempts: keys.attempts?, per_try_timeout: keys.per_try_timeout, ..Self::default() };
        if let Some(conditions) = keys.retry_on {
            (retries.on_connect_failure, retries.on_reset, retries.on_status) = (false, false, Vec::new());
            for condition in conditions {
                retry_on(&mut retries, condition);
            }
        }
        Some(retries)
    }
}
