//! `backends[].health_check` and `outlier_detection`.

use std::time::Duration;

use super::{
    codec::{By, one_or_more, text},
    keys::{FromKeys, mapping},
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Choice, Count, Flag, MOST, Time, choices},
    model::health::{HealthCheck, OutlierDetection, Probe},
    name::ServerName,
};

choices! {
    /// The values of `health_check.type`.
    pub(super) enum ProbeKind {
        /// The endpoint accepts a connection.
        Tcp,
        /// The endpoint answers a `ClientHello` with a `ServerHello` and its certificate.
        Tls,
    }
}

pub(super) const PERCENT: Count = Count(0..=100);
/// The shortest interval between checks, so that they are no flood.
const INTERVAL: Time = Time { least: Duration::from_millis(100) };
/// Consecutive checks.
const TIMES: Count = Count(1..=1_000);
const ERRORS: Count = Count(0..=MOST);
const PROTOCOLS: &str = "names of protocols, as h2";

mapping! {
    /// Active checks of each endpoint
    pub(super) struct HealthCheckKeys("health_check", "backends[].health_check") {
        /// What a check does.
        r#type: ProbeKind = default(ProbeKind::Tcp), Choice { what: "type of health check" };
        /// The server name that a check of the type `tls` sends.
        sni: ServerName = optional("none"), By(text("a server name", "shop.example.com"), server_name);
        /// Protocols that a check of the type `tls` offers (RFC 7301).
        alpn: Vec<String> = optional("none"),
            one_or_more(By(text("the name of a protocol", "h2"), protocol), PROTOCOLS).or_none();
        /// From one check of a healthy endpoint to the next.
        interval: Duration = default(HealthCheck::default().interval), INTERVAL;
        /// The same while the endpoint is unhealthy, or its last check has failed. At most `interval`, unless it is
        /// written.
        unhealthy_interval: Duration = default(HealthCheck::default().unhealthy_interval), INTERVAL;
        /// Percent of the interval that is added at random at most, so that checks do not come all at once.
        interval_jitter_percent: u8 = default(HealthCheck::default().interval_jitter_percent), PERCENT;
        /// How long one check may take.
        timeout: Duration = default(HealthCheck::default().timeout), Time::POSITIVE;
        /// Successes in a row after which an unhealthy endpoint is healthy.
        rise: u32 = default(HealthCheck::default().rise), TIMES;
        /// Failures in a row after which a healthy endpoint is unhealthy.
        fall: u32 = default(HealthCheck::default().fall), TIMES;
    }
}

impl<'n> FromKeys<'n> for HealthCheck {
    type Keys = HealthCheckKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let state = &keys.state;
        if keys.r#type == Some(ProbeKind::Tcp) && state.is_certain("type") {
            for view in ["sni", "alpn"].into_iter().filter_map(|key| state.view.written(key)) {
                view.error("a check of the type tcp sends nothing").remedy("add type: tls").emit(diagnostics);
            }
        }
        let (interval, mut unhealthy_interval) = (keys.interval?, keys.unhealthy_interval?);
        if !state.is_written("unhealthy_interval") {
            unhealthy_interval = unhealthy_interval.min(interval);
        }
        Some(Self {
            probe: match keys.r#type? {
                ProbeKind::Tcp => Probe::Tcp,
                ProbeKind::Tls => Probe::Tls { sni: keys.sni, alpn: keys.alpn.unwrap_or_default() },
            },
            interval,
            unhealthy_interval,
            interval_jitter_percent: keys.interval_jitter_percent?,
            timeout: keys.timeout?,
            rise: keys.rise?,
            fall: keys.fall?,
        })
    }
}

fn server_name(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<ServerName> {
    view.parse("a server name, for example www.example.com", diagnostics)
}

fn protocol(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<String> {
    let name = view.text(PROTOCOLS, diagnostics)?;
    if (1..=255).contains(&name.len()) {
        return Some(name.to_owned());
    }
    view.error("the name of a protocol has 1 to 255 bytes (RFC 7301)").emit(diagnostics);
    None
}

mapping! {
    /// When an endpoint is ejected for its failures, and for how long. Names and defaults are Envoy's
    pub(super) struct OutlierDetectionKeys("outlier_detection", "backends[].outlier_detection") {
        /// Failures in a row that eject: of connections, and responses with a status from 500 on; 0 never ejects. A
        /// connection fails if it is refused, times out, or is reset before the endpoint has sent a byte.
        consecutive_5xx: u32 = default(OutlierDetection::default().consecutive_5xx), ERRORS;
        /// The same, of the statuses 502, 503 and 504 alone; 0 never ejects.
        consecutive_gateway_failure: u32 =
            default(OutlierDetection::default().consecutive_gateway_failure), ERRORS;
        /// Failures of connections in a row that eject, with `split_external_local_origin_errors`; 0 never ejects.
        consecutive_local_origin_failure: u32 =
            default(OutlierDetection::default().consecutive_local_origin_failure), ERRORS;
        /// Whether failures of connections are counted apart from responses.
        split_external_local_origin_errors: bool = default(false), Flag;
        /// How often it is decided which endpoints return.
        interval: Duration = default(OutlierDetection::default().interval), INTERVAL;
        /// How long the first ejection lasts. The second in a row lasts twice as long, the third three times.
        base_ejection_time: Duration = default(OutlierDetection::default().base_ejection_time), Time::POSITIVE;
        /// The longest ejection. At least `base_ejection_time`.
        max_ejection_time: Duration = default(OutlierDetection::default().max_ejection_time), Time::POSITIVE;
        /// Percent of the endpoints that may be ejected at once; one may always be.
        max_ejection_percent: u8 = default(OutlierDetection::default().max_ejection_percent), PERCENT;
    }
}

impl<'n> FromKeys<'n> for OutlierDetection {
    type Keys = OutlierDetectionKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let (base, mut longest) = (keys.base_ejection_time?, keys.max_ejection_time?);
        if !keys.state.is_written("max_ejection_time") {
            longest = longest.max(base);
        } else if longest < base && keys.state.is_certain("base_ejection_time") {
            let view = keys.state.at("max_ejection_time");
            view.error("shorter than base_ejection_time")
                .remedy("write a longer max_ejection_time, or leave it out")
                .emit(diagnostics);
        }
        Some(Self {
            consecutive_5xx: keys.consecutive_5xx?,
            consecutive_gateway_failure: keys.consecutive_gateway_failure?,
            consecutive_local_origin_failure: keys.consecutive_local_origin_failure?,
            split_external_local_origin_errors: keys.split_external_local_origin_errors?,
            interval: keys.interval?,
            base_ejection_time: base,
            max_ejection_time: longest,
            max_ejection_percent: keys.max_ejection_percent?,
        })
    }
}
