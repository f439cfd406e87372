//! Every key of the native format, as data: for the reference and for the JSON schema.
//!
//! Settings come from their declarations. This module adds the keys of listeners, routes and backends. A test
//! compares both with the keys of the reader.

use std::time::Duration;

pub(crate) use super::keys::{Key, Mapping};
use super::keys::{key, list, one_or_more, required, text};
use super::{backend_tls::Version, health, read::SEGMENT_BYTES, terminate::Wanted};
use crate::{
    kind::{Choice, Codec, Kind, MOST},
    model::{
        Endpoint, Target,
        settings::{Applies, PENDING, Settings, groups},
        termination::TlsVersion,
    },
};

mod balancing;
mod http;

/// The names of verdicts, and their conditions.
const VERDICTS: [(&str, &str); 6] = [
    ("no_sni", "A valid hello has no server name, and no route has `*`."),
    ("unknown_name", "No route serves the name."),
    ("not_tls", "The first bytes are not TLS."),
    ("malformed", "The first bytes are TLS, but not a valid hello."),
    ("too_large", "The hello is longer than `limits.hello_bytes`."),
    ("timeout", "The hello was not complete within `timeouts.hello`."),
];

fn weight() -> Key {
    let range = Kind::Number { least: 0, most: u64::from(Target::MAX_WEIGHT) };
    key("weight", range, "1", "Share among its siblings; 0 receives nothing.")
}

/// All mappings, the document first.
pub(crate) fn mappings() -> Vec<Mapping> {
    let mut all =
        vec![document(), listener(), http::redirect_https(), http::of_listener(), policies(), policy()];
    all.extend([route(), reference(), terminate(), certificate(), http::rule()]);
    all.extend(http::parts());
    all.extend([backend(), endpoint(), backend_tls()]);
    all.extend(balancing::mappings());
    all.extend(health::mappings());
    let defaults = Settings::default();
    for group in groups() {
        let keys = group.settings.iter().map(|setting| Key {
            name: setting.name,
            kind: setting.kind(),
            required: false,
            default: setting.show(&defaults),
            applies: setting.applies,
            since: setting.since(),
            doc: setting.doc(),
        });
        if group.name.is_empty() {
            all[0].keys.extend(keys);
        } else {
            let mapping = Kind::Mapping(group.name);
            let kind = match group.name {
                "admin" => Kind::Either(vec![group.settings[0].kind(), mapping]),
                _ => mapping,
            };
            let applies = group.settings[0].applies;
            all[0].keys.push(Key { applies, ..key(group.name, kind, "", &format!("{}.", group.doc)) });
            all.push(Mapping { id: group.name, path: group.name, doc: group.doc, keys: keys.collect() });
        }
    }
    all
}

fn document() -> Mapping {
    Mapping {
        id: "configuration",
        path: "",
        doc: "A document",
        keys: vec![
            key(
                "listeners",
                list(Kind::Mapping("listener")),
                "",
                "What to listen on. There is at least one listener, here or from an Istio Gateway.",
            ),
            key(
                "policies",
                Kind::Mapping("policies"),
                "",
                "What happens to a connection without a route, by verdict. It holds for all listeners, also for those of \
                 Gateways.",
            ),
            key(
                "routes",
                list(Kind::Mapping("route")),
                "",
                "Which names go where. The most specific pattern wins: a name, then the longest `*.suffix`, then `*`. Of \
                 routes with the same pattern the first one wins, and the others are reported.",
            ),
            key("backends", list(Kind::Mapping("backend")), "", "Where connections can go."),
        ],
    }
}

fn listener() -> Mapping {
    Mapping {
        id: "listener",
        path: "listeners[]",
        doc: "A set of addresses, and the routes that are reached through it",
        keys: vec![
            required("name", text("a unique name", "public"), "Its name; a metric label."),
            required(
                "bind",
                one_or_more(text("ip:port or [ipv6]:port", "0.0.0.0:443")),
                "Addresses to listen on. `[::]` is IPv6 alone.",
            ),
            key(
                "policies",
                Kind::Mapping("policies"),
                "",
                "Policies instead of the common ones, verdict by verdict.",
            ),
            key(
                "mss",
                Kind::Number {
                    least: u64::from(*SEGMENT_BYTES.start()),
                    most: u64::from(*SEGMENT_BYTES.end()),
                },
                "what the device takes",
                "Largest segment to announce to clients, in bytes without options (`TCP_MAXSEG`).",
            ),
            key(
                "freebind",
                Kind::Flag,
                "false",
                "Whether addresses are bound that this host does not have yet (`IP_FREEBIND`).",
            ),
            key(
                "http",
                list(Kind::Mapping("listener_http")),
                "HTTP without TLS is not served",
                "Rules for HTTP requests without TLS. A listener with them is for no TLS, unless a route names it in \
                 `listeners`; then the first bytes of a connection decide.",
            ),
            key(
                "redirect_https",
                Kind::Either(vec![Kind::Flag, Kind::Mapping("redirect_https")]),
                "false",
                "Whether HTTP requests without TLS are sent to HTTPS, with 301. Rules in `http` for \
                 `/.well-known/acme-challenge/` come before it.",
            ),
        ],
    }
}

fn policies() -> Mapping {
    let policy = || Kind::Either(vec![choice(), Kind::Mapping("policy")]);
    Mapping {
        id: "policies",
        path: "policies",
        doc: "What happens to a connection without a route, by verdict",
        keys: VERDICTS.iter().map(|(name, doc)| key(name, policy(), "close", doc)).collect(),
    }
}

fn choice() -> Kind {
    Codec::<super::read::FixedPolicy>::kind(&Choice { what: "policy" })
}

fn policy() -> Mapping {
    Mapping {
        id: "policy",
        path: "policies.VERDICT",
        doc: "A policy that passes the bytes on all the same",
        keys: vec![required("backend", text("the name of a backend", "shop"), "The backend that gets them.")],
    }
}

fn route() -> Mapping {
    let backend = Kind::Either(vec![text("the name of a backend", "shop"), Kind::Mapping("reference")]);
    Mapping {
        id: "route",
        path: "routes[]",
        doc: "Names, and where they go",
        keys: vec![
            key("name", text("a unique name", "shop"), "the first of `sni`", "Its name; a metric label."),
            key(
                "listeners",
                one_or_more(text("the name of a listener", "public")),
                "all listeners",
                "The listeners that it is for. `gateway-443` is the one that Istio Gateways make for port 443 on all addresses, \
                 `gateway-192.0.2.1-443` the one for one address.",
            ),
            required(
                "sni",
                one_or_more(text("a name, `*.suffix` or `*`", "*.example.com")),
                "Server names. `*.suffix` stands for one or more labels before the suffix; `*` also serves a hello without a \
                 server name.",
            ),
            key(
                "backends",
                one_or_more(backend),
                "required without `terminate.http`",
                "Where its connections go, in proportion to the weights.",
            ),
            key(
                "terminate",
                Kind::Mapping("terminate"),
                "TLS is passed through",
                "How TLS ends here. The backends get the bytes that are inside of it.",
            ),
        ],
    }
}

fn reference() -> Mapping {
    Mapping {
        id: "reference",
        path: "routes[].backends[]",
        doc: "A backend of a route. A text instead of a mapping is its `name`",
        keys: vec![required("name", text("the name of a backend", "shop"), "The backend."), weight()],
    }
}

fn terminate() -> Mapping {
    let version = || Codec::<TlsVersion>::kind(&Choice { what: "version" });
    let certificate =
        Kind::Either(vec![text("the name of a Secret", "shop-cert"), Kind::Mapping("certificate")]);
    Mapping {
        id: "terminate",
        path: "routes[].terminate",
        doc: "How a route ends TLS",
        keys: vec![
            required(
                "certificates",
                one_or_more(certificate),
                "Certificates with their keys. Of several, the first that fits the client and the server name is shown.",
            ),
            key(
                "http",
                list(Kind::Mapping("rule")),
                "what is inside is bytes",
                "Rules for the HTTP requests inside of TLS. The first that matches serves; without one the answer is 404.",
            ),
            key(
                "client_ca",
                text("a path with a `/`, or the name of a Secret", "/etc/ssl/clients.pem"),
                "no client is asked",
                "Certificates of the authorities that clients' certificates are from. A Secret holds them as `ca.crt` or \
                 `cacert`.",
            ),
            key(
                "client_crl",
                text("a path", "/etc/ssl/clients.crl"),
                "`ca.crl` of the Secret, if it has one",
                "Certificates that these authorities have revoked, in PEM. With it, each authority of a client's chain needs a \
                 list that is in force.",
            ),
            key(
                "client_certificate",
                Codec::<Wanted>::kind(&Choice { what: "kind of client certificate" }),
                "required",
                "Whether a client must show a certificate, where there is a `client_ca`.",
            ),
            key(
                "subject_alt_names",
                one_or_more(text("a name", "spiffe://shop/web")),
                "any",
                "Names of which the certificate of a client must have one.",
            ),
            key("min_version", version(), "TLSv1.2", "The oldest version."),
            key("max_version", version(), "TLSv1.3", "The newest version."),
            key(
                "cipher_suites",
                list(text("the name of a cipher suite", "ECDHE-ECDSA-AES128-GCM-SHA256")),
                "all of the library",
                "Cipher suites, as OpenSSL or the IANA registry writes them. One that is not spoken here is left out, with a \
                 warning.",
            ),
            key(
                "alpn",
                one_or_more(text("the name of a protocol", "http/1.1")),
                "h2 and http/1.1 with `http`, else none",
                "Protocols to offer (RFC 7301), the preferred one first.",
            ),
        ],
    }
}

fn certificate() -> Mapping {
    Mapping {
        id: "certificate",
        path: "routes[].terminate.certificates[]",
        doc: "A certificate and its key. A text instead of a mapping is the name of a Secret, which is looked for in the \
              loaded files, then in `secrets`",
        keys: vec![
            required(
                "certificate",
                text("a path", "/etc/ssl/shop.crt"),
                "The certificate, and those that lead to its issuer, in PEM.",
            ),
            required("key", text("a path", "/etc/ssl/shop.key"), "The private key, in PEM."),
        ],
    }
}

fn backend() -> Mapping {
    let mut mapping = backend_of(&format!("an eighth of `limits.connections`, at least {}", PENDING.of(0)));
    mapping.keys.extend(balancing::keys());
    mapping.keys.extend(health::keys());
    mapping
}

fn backend_of(pending: &str) -> Mapping {
    let address = text("host:port", "10.0.0.1:8443");
    Mapping {
        id: "backend",
        path: "backends[]",
        doc: "Endpoints that serve the same thing",
        keys: vec![
            required("name", text("a unique name", "shop"), "Its name; a metric label."),
            required(
                "endpoints",
                one_or_more(Kind::Either(vec![address, Kind::Mapping("endpoint")])),
                "Where it can be reached. Names are resolved by DNS.",
            ),
            key(
                "source",
                one_or_more(text("an IP address of this machine", "10.0.0.9")),
                "the kernel's choice",
                "Local addresses to connect from, in turn.",
            ),
            Key {
                applies: Applies::Restart,
                ..key(
                    "same_host",
                    Kind::Flag,
                    "false",
                    "Whether what it sends is handed to the client's socket at once, where it is on this host and the kernel \
                     allows it (see [same host](internals/same-host.md)). That the first backend asks for it takes effect at \
                     the next start.",
                )
            },
            key(
                "max_connections",
                Kind::Number { least: 1, most: MOST },
                "no limit",
                "Connections to it at once. Further ones are refused.",
            ),
            key(
                "max_pending",
                Kind::Number { least: 0, most: MOST },
                pending,
                "Connections at once that wait for one of its endpoints to answer; 0 is no limit.",
            ),
            key(
                "connect_timeout",
                Kind::Duration { least: Duration::from_millis(1) },
                "that of `timeouts.connect`",
                "How long connecting to its endpoints may take in all.",
            ),
            key(
                "tls",
                Kind::Mapping("backend_tls"),
                "in clear",
                "TLS towards it, for what ends TLS here and for HTTP. What is passed through is not encrypted again.",
            ),
            key(
                "http",
                Codec::<Version>::kind(&Choice { what: "version of HTTP" }),
                "http1",
                "The version of HTTP that requests are sent in.",
            ),
        ],
    }
}

fn backend_tls() -> Mapping {
    Mapping {
        id: "backend_tls",
        path: "backends[].tls",
        doc: "TLS towards a backend",
        keys: vec![
            key(
                "sni",
                text("a server name", "shop.example.com"),
                "the host name of the first endpoint that has one",
                "The server name to send. The backend's certificate must be for it, unless there are `subject_alt_names`.",
            ),
            key(
                "ca",
                text("a path with a `/`, the name of a Secret, or `system`", "/etc/ssl/internal.pem"),
                "system",
                "Certificates of the authorities that the backend's certificate is from. `system` is what the system trusts.",
            ),
            key(
                "crl",
                text("a path", "/etc/ssl/internal.crl"),
                "`ca.crl` of the Secret, if it has one",
                "Certificates that these authorities have revoked, in PEM.",
            ),
            key(
                "certificate",
                Kind::Either(vec![text("the name of a Secret", "client-cert"), Kind::Mapping("certificate")]),
                "none",
                "The certificate that is shown to the backend (mutual TLS).",
            ),
            key(
                "subject_alt_names",
                one_or_more(text("a name", "spiffe://shop/web")),
                "the server name",
                "Names of which the backend's certificate must have one.",
            ),
            key(
                "insecure_skip_verify",
                Kind::Flag,
                "false",
                "Whether any certificate is taken. Then whoever is on the way can read and change what is sent.",
            ),
        ],
    }
}

fn endpoint() -> Mapping {
    Mapping {
        id: "endpoint",
        path: "backends[].endpoints[]",
        doc: "One address of a backend. A text instead of a mapping is its `address`",
        keys: vec![
            required("address", text("host:port", "shop.internal:8443"), "Address or name, and port."),
            weight(),
            key(
                "priority",
                Kind::Number { least: 0, most: u64::from(Endpoint::MAX_PRIORITY) },
                "0",
                "Endpoints of a higher number are backups: they are for when none of a lower number is available. \
                 HAProxy's `backup` is 1.",
            ),
        ],
    }
}
