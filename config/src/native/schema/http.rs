//! The keys of rules for HTTP requests.

use std::time::Duration;

use crate::{
    kind::{Choice, Codec, Kind},
    native::{
        http::{DerivedPort, MOST_ATTEMPTS},
        keys::{Key, Mapping, key, list, one_or_more, required, text},
        read::HTTPS,
    },
    requests::RETRY_CONDITIONS,
};

const REFERENCE: Kind = Kind::Mapping("reference");

fn port() -> Kind {
    Kind::Number { least: 1, most: u64::from(u16::MAX) }
}

/// A text, or a mapping with the kind of comparison.
fn string() -> Kind {
    Kind::Either(vec![text("the whole text", "/api"), Kind::Mapping("string")])
}

pub(super) fn redirect_https() -> Mapping {
    Mapping {
        id: "redirect_https",
        path: "listeners[].redirect_https",
        doc: "Where requests without TLS are sent",
        keys: vec![key("port", port(), &HTTPS.to_string(), "The port of HTTPS.")],
    }
}

pub(super) fn of_listener() -> Mapping {
    let mut keys = keys();
    keys.insert(
        0,
        key(
            "hosts",
            one_or_more(text("a name, `*.suffix` or `*`", "*.example.com")),
            "all hosts",
            "Hosts of requests. A request has the rules of the most specific pattern alone: a name, then the longest \
             `*.suffix`, then `*`.",
        ),
    );
    Mapping {
        id: "listener_http",
        path: "listeners[].http[]",
        doc: "A rule for HTTP requests without TLS. Of the rules for a host, the first that matches serves",
        keys,
    }
}

pub(super) fn rule() -> Mapping {
    Mapping {
        id: "rule",
        path: "routes[].terminate.http[]",
        doc: "A rule for HTTP requests. The first that matches serves. It has one of `backends`, `redirect` and \
              `direct_response`",
        keys: keys(),
    }
}

fn keys() -> Vec<Key> {
    vec![
        key(
            "match",
            list(Kind::Mapping("match")),
            "every request",
            "What requests must look like: one of these must hold.",
        ),
        key(
            "backends",
            one_or_more(Kind::Either(vec![text("the name of a backend", "shop"), REFERENCE])),
            "",
            "Where its requests go, in proportion to the weights.",
        ),
        key("redirect", Kind::Mapping("redirect"), "", "Where its clients are sent."),
        key(
            "direct_response",
            Kind::Mapping("direct_response"),
            "",
            "What its requests are answered with here.",
        ),
        key(
            "rewrite",
            Kind::Mapping("rewrite"),
            "",
            "What a request's path and authority become before it is sent on.",
        ),
        key(
            "timeout",
            Kind::Duration { least: Duration::ZERO },
            "0s",
            "How long the response may take, from the end of the request to its own end. 0 is no limit.",
        ),
        key("retries", Kind::Mapping("retries"), "", "When a request is sent again."),
        key("request_headers", Kind::Mapping("headers"), "", "Changes of the request's headers."),
        key("response_headers", Kind::Mapping("headers"), "", "Changes of the response's headers."),
    ]
}

/// The mappings within a rule.
pub(super) fn parts() -> [Mapping; 8] {
    [condition(), string_match(), redirect(), respond(), rewrite(), path_regex(), retries(), headers()]
}

fn condition() -> Mapping {
    let named = |name, default, doc| key(name, Kind::Named(Box::new(string())), default, doc);
    Mapping {
        id: "match",
        path: "routes[].terminate.http[].match[]",
        doc: "What a request must look like; all of it must hold",
        keys: vec![
            key(
                "path",
                string(),
                "any",
                "The path without its query, in its [normal form](internals/http.md).",
            ),
            key("ignore_path_case", Kind::Flag, "false", "Whether the case of the path counts for nothing."),
            key("method", string(), "any", "The method."),
            key("scheme", string(), "any", "`http` or `https`, as the client sees it."),
            key(
                "authority",
                string(),
                "any",
                "The host as the client sent it, with its port if it has sent one.",
            ),
            named("headers", "any", "Headers that must be there. `{}` takes any value."),
            named("without_headers", "none", "Headers that must not be there, or not with this value."),
            named("query", "any", "Query parameters that must be there. `{}` takes any value."),
        ],
    }
}

fn string_match() -> Mapping {
    Mapping {
        id: "string",
        path: "routes[].terminate.http[].match[].path",
        doc: "How a text is compared. A text instead of a mapping is `exact`. One of these",
        keys: vec![
            key("exact", text("a text", "/api"), "", "The whole text."),
            key("prefix", text("a text", "/api/"), "", "The beginning of the text."),
            key(
                "regex",
                text("an expression (RE2)", "/v[0-9]+/.*"),
                "",
                "An expression that the whole text matches.",
            ),
        ],
    }
}

fn redirect() -> Mapping {
    Mapping {
        id: "redirect",
        path: "routes[].terminate.http[].redirect",
        doc: "Where a client is sent; what is not written stays as it was",
        keys: vec![
            key(
                "scheme",
                Kind::Choice(vec![("http", "Without TLS.".into()), ("https", "With TLS.".into())]),
                "the request's",
                "The new scheme.",
            ),
            key(
                "authority",
                text("a host, perhaps with a port", "www.example.com"),
                "the request's",
                "The new host.",
            ),
            key(
                "port",
                Kind::Either(vec![
                    port(),
                    Codec::<DerivedPort>::kind(&Choice { what: "way to find a port" }),
                ]),
                "the request's",
                "The new port.",
            ),
            key(
                "path",
                text("a path", "/new"),
                "the request's",
                "The new path, with a query of its own if it has one.",
            ),
            key(
                "code",
                Kind::Number { least: 301, most: 308 },
                "301",
                "The status code: 301, 302, 303, 307 or 308.",
            ),
        ],
    }
}

fn respond() -> Mapping {
    Mapping {
        id: "direct_response",
        path: "routes[].terminate.http[].direct_response",
        doc: "What a request is answered with here",
        keys: vec![
            required("status", Kind::Number { least: 200, most: 599 }, "The status code."),
            key("body", text("a text", "gone"), "no body", "The body, sent as `text/plain`."),
        ],
    }
}

fn rewrite() -> Mapping {
    Mapping {
        id: "rewrite",
        path: "routes[].terminate.http[].rewrite",
        doc: "What a request's path and authority become",
        keys: vec![
            key(
                "path",
                text("a path", "/v2/"),
                "the request's",
                "Takes the place of the prefix that `match` names, or of the whole path after another match.",
            ),
            key("path_regex", Kind::Mapping("path_regex"), "", "Parts of the path that are replaced."),
            key("authority", text("a host", "shop.internal"), "the request's", "The new host."),
        ],
    }
}

fn path_regex() -> Mapping {
    Mapping {
        id: "path_regex",
        path: "routes[].terminate.http[].rewrite.path_regex",
        doc: "Parts of the path that are replaced",
        keys: vec![
            required(
                "match",
                text("an expression (RE2)", "/user/([0-9]+)"),
                "Each part that matches is replaced.",
            ),
            required(
                "replacement",
                text("a text", "/u/\\1"),
                "What takes its place. `\\1` is the first group.",
            ),
        ],
    }
}

fn retries() -> Mapping {
    Mapping {
        id: "retries",
        path: "routes[].terminate.http[].retries",
        doc: "When a request is sent again",
        keys: vec![
            key(
                "attempts",
                Kind::Number { least: 0, most: u64::from(MOST_ATTEMPTS) },
                "2",
                "How often, beside the first time.",
            ),
            key(
                "per_try_timeout",
                Kind::Duration { least: Duration::from_millis(1) },
                "the rule's `timeout`",
                "How long one try may take.",
            ),
            key(
                "retry_on",
                one_or_more(text(RETRY_CONDITIONS, "gateway-error")),
                "connect-failure and 503",
                "What is tried again, in Envoy's words.",
            ),
        ],
    }
}

fn headers() -> Mapping {
    let values = || Kind::Named(Box::new(text("a text", "%DOWNSTREAM_REMOTE_ADDRESS%")));
    let with_variables = "Its variables are those of [Envoy](internals/http.md#variables).";
    Mapping {
        id: "headers",
        path: "routes[].terminate.http[].request_headers",
        doc: "Changes of headers, in the order `remove`, `set`, `add`",
        keys: vec![
            key("set", values(), "", &format!("Takes the place of the header's values. {with_variables}")),
            key("add", values(), "", &format!("Is added to the header's values. {with_variables}")),
            key(
                "remove",
                one_or_more(text("the name of a header", "x-internal")),
                "",
                "Headers that are taken out.",
            ),
        ],
    }
}
