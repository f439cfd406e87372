//! Health of a backend's endpoints: active checks, outlier detection and the panic threshold.
//!
//! The names are those of Envoy and `HAProxy`. `docs/internals/health.md` describes what they do.

use std::time::Duration;

use crate::name::ServerName;

/// What decides which endpoints of a backend are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Active checks; none are made without.
    pub check: Option<HealthCheck>,
    /// Passive checks: endpoints whose connections fail are ejected for a while; none are without.
    pub outliers: Option<OutlierDetection>,
    /// Percent of the endpoints. While fewer are healthy and not ejected, all are used (Envoy's
    /// `healthy_panic_threshold`). 0 never: then connections are rejected while none is left.
    pub panic_threshold: u8,
}

impl Default for Health {
    fn default() -> Self {
        Self { check: None, outliers: None, panic_threshold: Self::PANIC_THRESHOLD }
    }
}

impl Health {
    /// Envoy's default.
    pub const PANIC_THRESHOLD: u8 = 50;

    /// Whether anything watches the endpoints.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.check.is_some() || self.outliers.is_some()
    }
}

/// An active check of each endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is sent, and what must come back.
    pub probe: Probe,
    /// From one check of a healthy endpoint to the next.
    pub interval: Duration,
    /// The same while the endpoint is unhealthy, or its last check has failed.
    pub unhealthy_interval: Duration,
    /// Percent of the interval that is added at random at most.
    pub interval_jitter_percent: u8,
    /// How long one check may take.
    pub timeout: Duration,
    /// Successes in a row after which an unhealthy endpoint is healthy.
    pub rise: u32,
    /// Failures in a row after which a healthy endpoint is unhealthy.
    pub fall: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: Probe::Tcp,
            interval: Duration::from_secs(5),
            unhealthy_interval: Duration::from_secs(1),
            interval_jitter_percent: 10,
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
        }
    }
}

/// What an active check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Connects and closes.
    Tcp,
    /// Sends a `ClientHello` (RFC 8446 section 4.1.2); the `ServerHello` and the certificate must come back.
    Tls {
        /// The server name to send; none is sent without.
        sni: Option<ServerName>,
        /// The protocols to offer (RFC 7301), the preferred one first.
        alpn: Vec<String>,
    },
}

/// When an endpoint is ejected for the failures of its connections, and for how long. Envoy's `outlier_detection`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Responses with a status from 500 on, and failures of connections unless these are split, in a row; 0 never ejects.
    pub consecutive_5xx: u32,
    /// The same for the statuses 502, 503 and 504 alone; 0 never ejects.
    pub consecutive_gateway_failure: u32,
    /// Failures of connections in a row, where these are split; 0 never ejects.
    pub consecutive_local_origin_failure: u32,
    /// Whether failures of connections are counted apart from responses.
    pub split_external_local_origin_errors: bool,
    /// How often ejected endpoints are looked at. One returns at the first look after its time.
    pub interval: Duration,
    /// How long the first ejection lasts. The second one lasts twice as long, the third one three times, and so on.
    pub base_ejection_time: Duration,
    /// The longest ejection, but no less than `base_ejection_time`.
    pub max_ejection_time: Duration,
    /// Percent of the endpoints that may be ejected at once; one may always be.
    pub max_ejection_percent: u8,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_failure: 0,
            consecutive_local_origin_failure: 5,
            split_external_local_origin_errors: false,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
        }
    }
}
