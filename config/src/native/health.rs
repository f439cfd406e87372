//! `backends[].health_check`, `outlier_detection` and `panic_threshold`.

use std::time::Duration;

use crate::{
    decode::{Diagnostics, Fields, View},
    kind::{Choice, Codec, Count, Kind, MOST, Time},
    model::health::{Health, HealthCheck, OutlierDetection, Probe},
    name::ServerName,
};

use super::keys::{Key, Mapping, key, one_or_more, text};

/// The values of `health_check.type`.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    strum::EnumMessage,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "snake_case")]
enum ProbeKind {
    /// The endpoint accepts a connection.
    Tcp,
    /// The endpoint answers a `ClientHello` with a `ServerHello` and its certificate.
    Tls,
}

const PROBE: Choice = Choice { what: "type of health check" };
const PERCENT: Count = Count(0..=100);
/// The shortest interval between checks, so that they are no flood.
const INTERVAL: Time = Time { least: Duration::from_millis(100) };
/// Consecutive checks.
const TIMES: Count = Count(1..=1_000);
const ERRORS: Count = Count(0..=MOST);
const PROTOCOLS: &str = "names of protocols, as h2";

/// Reads the keys of a backend that concern health.
pub(super) fn read(fields: &mut Fields<'_>, diagnostics: &mut Diagnostics) -> Health {
    let check = fields.take("health_check").and_then(|view| check(&view, diagnostics));
    let outliers = fields.take("outlier_detection").and_then(|view| outliers(&view, diagnostics));
    let threshold = fields.take("panic_threshold").and_then(|view| PERCENT.read(&view, diagnostics));
    Health { check, outliers, panic_threshold: threshold.unwrap_or(Health::PANIC_THRESHOLD) }
}

/// Reads a key if it is present.
fn set<T>(
    fields: &mut Fields<'_>,
    name: &'static str,
    codec: &impl Codec<T>,
    value: &mut T,
    diagnostics: &mut Diagnostics,
) {
    if let Some(read) = fields.take(name).and_then(|view| codec.read(&view, diagnostics)) {
        *value = read;
    }
}

fn check(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<HealthCheck> {
    let mut fields = view.fields(
        "{type, sni, alpn, interval, unhealthy_interval, interval_jitter_percent, timeout, rise, fall}",
        diagnostics,
    )?;
    let mut check = HealthCheck::default();
    let mut kind = ProbeKind::Tcp;
    set(&mut fields, "type", &PROBE, &mut kind, diagnostics);
    let sni_view = fields.take("sni");
    let sni = sni_view
        .as_ref()
        .and_then(|view| view.parse::<ServerName>("a server name, for example www.example.com", diagnostics));
    let alpn_view = fields.take("alpn");
    let alpn = alpn_view.as_ref().map(|view| protocols(view, diagnostics)).unwrap_or_default();
    set(&mut fields, "interval", &INTERVAL, &mut check.interval, diagnostics);
    let fast = fields.take("unhealthy_interval");
    let fast = fast.map(|view| INTERVAL.read(&view, diagnostics).unwrap_or(check.unhealthy_interval));
    set(&mut fields, "interval_jitter_percent", &PERCENT, &mut check.interval_jitter_percent, diagnostics);
    set(&mut fields, "timeout", &Time::POSITIVE, &mut check.timeout, diagnostics);
    set(&mut fields, "rise", &TIMES, &mut check.rise, diagnostics);
    set(&mut fields, "fall", &TIMES, &mut check.fall, diagnostics);
    fields.finish(diagnostics);
    // Defaults to at most the normal interval.
    check.unhealthy_interval = fast.unwrap_or_else(|| check.unhealthy_interval.min(check.interval));
    match kind {
        ProbeKind::Tls => check.probe = Probe::Tls { sni, alpn },
        ProbeKind::Tcp => {
            for view in [sni_view, alpn_view].into_iter().flatten() {
                view.error("a check of the type tcp sends nothing").remedy("add type: tls").emit(diagnostics);
            }
        }
    }
    Some(check)
}

fn protocols(view: &View<'_>, diagnostics: &mut Diagnostics) -> Vec<String> {
    let items = view.one_or_more(PROTOCOLS, diagnostics);
    let mut names = Vec::new();
    for item in items {
        let Some(name) = item.text(PROTOCOLS, diagnostics) else { continue };
        if (1..=255).contains(&name.len()) {
            names.push(name.to_owned());
        } else {
            item.error("the name of a protocol has 1 to 255 bytes (RFC 7301)").emit(diagnostics);
        }
    }
    names
}

fn outliers(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<OutlierDetection> {
    let mut fields = view.fields(
        "{consecutive_5xx, consecutive_gateway_failure, consecutive_local_origin_failure, interval, base_ejection_time, \
         max_ejection_time, max_ejection_percent, split_external_local_origin_errors}",
        diagnostics,
    )?;
    let mut rules = OutlierDetection::default();
    set(&mut fields, "consecutive_5xx", &ERRORS, &mut rules.consecutive_5xx, diagnostics);
    set(
        &mut fields,
        "consecutive_gateway_failure",
        &ERRORS,
        &mut rules.consecutive_gateway_failure,
        diagnostics,
    );
    set(
        &mut fields,
        "consecutive_local_origin_failure",
        &ERRORS,
        &mut rules.consecutive_local_origin_failure,
        diagnostics,
    );
    if let Some(view) = fields.take("split_external_local_origin_errors") {
        rules.split_external_local_origin_errors = view.flag(diagnostics).unwrap_or_default();
    }
    set(&mut fields, "interval", &INTERVAL, &mut rules.interval, diagnostics);
    set(&mut fields, "base_ejection_time", &Time::POSITIVE, &mut rules.base_ejection_time, diagnostics);
    let longest = fields.take("max_ejection_time");
    let longest = longest.and_then(|view| Some((Time::POSITIVE.read(&view, diagnostics)?, view)));
    set(&mut fields, "max_ejection_percent", &PERCENT, &mut rules.max_ejection_percent, diagnostics);
    fields.finish(diagnostics);
    match longest {
        None => rules.max_ejection_time = rules.max_ejection_time.max(rules.base_ejection_time),
        Some((longest, view)) if longest < rules.base_ejection_time => {
            view.error("shorter than base_ejection_time")
                .remedy("write a longer max_ejection_time, or leave it out")
                .emit(diagnostics);
        }
        Some((longest, _)) => rules.max_ejection_time = longest,
    }
    Some(rules)
}

/// The keys of a backend, for the reference.
pub(super) fn keys() -> Vec<Key> {
    vec![
        key(
            "health_check",
            Kind::Mapping("health_check"),
            "no checks",
            "Active checks of its endpoints (see [health](internals/health.md)).",
        ),
        key(
            "outlier_detection",
            Kind::Mapping("outlier_detection"),
            "no ejections",
            "Ejects endpoints whose connections or responses fail, for a while.",
        ),
        key(
            "panic_threshold",
            Codec::<u8>::kind(&PERCENT),
            &Health::PANIC_THRESHOLD.to_string(),
            "Percent of the endpoints. While fewer are healthy and not ejected, all are used. With 0 never: connections are \
             rejected while none is left.",
        ),
    ]
}

/// The mappings of these keys, for the reference.
pub(super) fn mappings() -> [Mapping; 2] {
    [check_mapping(), outlier_mapping()]
}

fn check_mapping() -> Mapping {
    let rules = HealthCheck::default();
    let time = |name, value: Duration, doc| {
        key(name, Codec::<Duration>::kind(&INTERVAL), &INTERVAL.show(&value), doc)
    };
    let count =
        |name, codec: &Count, value: u32, doc| key(name, Codec::<u32>::kind(codec), &value.to_string(), doc);
    Mapping {
        id: "health_check",
        path: "backends[].health_check",
        doc: "Active checks of each endpoint",
        keys: vec![
            key("type", Codec::<ProbeKind>::kind(&PROBE), "tcp", "What a check does."),
            key(
                "sni",
                text("a server name", "shop.example.com"),
                "none",
                "The server name that a check of the type `tls` sends.",
            ),
            key(
                "alpn",
                one_or_more(text("the name of a protocol", "h2")),
                "none",
                "Protocols that a check of the type `tls` offers (RFC 7301).",
            ),
            time("interval", rules.interval, "From one check of a healthy endpoint to the next."),
            time(
                "unhealthy_interval",
                rules.unhealthy_interval,
                "The same while the endpoint is unhealthy, or its last check has failed. At most `interval`, unless it is \
                 written.",
            ),
            count(
                "interval_jitter_percent",
                &PERCENT,
                rules.interval_jitter_percent.into(),
                "Percent of the interval that is added at random at most, so that checks do not come all at once.",
            ),
            key(
                "timeout",
                Codec::<Duration>::kind(&Time::POSITIVE),
                &INTERVAL.show(&rules.timeout),
                "How long one check may take.",
            ),
            count(
                "rise",
                &TIMES,
                rules.rise,
                "Successes in a row after which an unhealthy endpoint is healthy.",
            ),
            count(
                "fall",
                &TIMES,
                rules.fall,
                "Failures in a row after which a healthy endpoint is unhealthy.",
            ),
        ],
    }
}

fn outlier_mapping() -> Mapping {
    let rules = OutlierDetection::default();
    let errors = |name, value: u32, doc| key(name, Codec::<u32>::kind(&ERRORS), &value.to_string(), doc);
    let time = |name, codec: &Time, value: Duration, doc| {
        key(name, Codec::<Duration>::kind(codec), &codec.show(&value), doc)
    };
    Mapping {
        id: "outlier_detection",
        path: "backends[].outlier_detection",
        doc: "When an endpoint is ejected for its failures, and for how long. Names and defaults are Envoy's",
        keys: vec![
            errors(
                "consecutive_5xx",
                rules.consecutive_5xx,
                "Failures in a row that eject: of connections, and responses with a status from 500 on; 0 never ejects. A \
                 connection fails if it is refused, times out, or is reset before the endpoint has sent a byte.",
            ),
            errors(
                "consecutive_gateway_failure",
                rules.consecutive_gateway_failure,
                "The same, of the statuses 502, 503 and 504 alone; 0 never ejects.",
            ),
            errors(
                "consecutive_local_origin_failure",
                rules.consecutive_local_origin_failure,
                "Failures of connections in a row that eject, with `split_external_local_origin_errors`; 0 never ejects.",
            ),
            key(
                "split_external_local_origin_errors",
                Kind::Flag,
                "false",
                "Whether failures of connections are counted apart from responses.",
            ),
            time("interval", &INTERVAL, rules.interval, "How often it is decided which endpoints return."),
            time(
                "base_ejection_time",
                &Time::POSITIVE,
                rules.base_ejection_time,
                "How long the first ejection lasts. The second in a row lasts twice as long, the third three times.",
            ),
            time(
                "max_ejection_time",
                &Time::POSITIVE,
                rules.max_ejection_time,
                "The longest ejection. At least `base_ejection_time`.",
            ),
            key(
                "max_ejection_percent",
                Codec::<u8>::kind(&PERCENT),
                &rules.max_ejection_percent.to_string(),
                "Percent of the endpoints that may be ejected at once; one may always be.",
            ),
        ],
    }
}
