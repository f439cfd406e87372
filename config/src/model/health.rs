//! Health of a backend's endpoints: active checks, outlier detection and the panic threshold.
//!
//! The names are those of Envoy and `HAProxy`. `docs/internals/health.md` describes the behaviour.

use std::time::Duration;

use crate::name::ServerName;

/// The rules for the endpoints of a backend that are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Active checks. `None` makes none.
    pub check: Option<HealthCheck>,
    /// Passive checks: endpoints with failing connections are ejected for a while. `None` ejects none.
    pub outliers: Option<OutlierDetection>,
    /// The panic threshold, in percent of the endpoints. While fewer are healthy and not ejected, all are used
    /// (Envoy's `healthy_panic_threshold`). With 0 there is no panic: connections are rejected while no endpoint is
    /// left.
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

    /// Whether any rule watches the endpoints.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.check.is_some() || self.outliers.is_some()
    }
}

/// An active check of each endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The data to send, and the expected reply.
    pub probe: Probe,
    /// The time between two checks of a healthy endpoint.
    pub interval: Duration,
    /// The time between two checks while the endpoint is unhealthy, or after a failed check.
    pub unhealthy_interval: Duration,
    /// The greatest random addition to the interval, in percent.
    pub interval_jitter_percent: u8,
    /// The time limit of one check.
    pub timeout: Duration,
    /// Consecutive successes after which an unhealthy endpoint is healthy.
    pub rise: u32,
    /// Consecutive failures after which a healthy endpoint is unhealthy.
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

/// The kind of an active check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Connects and closes.
    Tcp,
    /// Sends a `ClientHello` (RFC 8446 section 4.1.2). Expects the `ServerHello` and the certificate.
    Tls {
        /// The server name to send. `None` sends none.
        sni: Option<ServerName>,
        /// The protocols to offer (RFC 7301), the preferred one first.
        alpn: Vec<String>,
    },
}

/// The ejection of endpoints with failing connections, and its duration. Envoy's `outlier_detection`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Consecutive responses with a status from 500 on. Failures of connections count as well, unless they are split.
    /// 0 never ejects.
    pub consecutive_5xx: u32,
    /// Consecutive responses with the statuses 502, 503 and 504. 0 never ejects.
    pub consecutive_gateway_failure: u32,
    /// Consecutive failures of connections, if they are split. 0 never ejects.
    pub consecutive_local_origin_failure: u32,
    /// Whether failures of connections are counted separately from responses.
    pub split_external_local_origin_errors: bool,
    /// The interval between checks of the ejected endpoints. An endpoint returns at the first check after its time.
    pub interval: Duration,
    /// The duration of the first ejection. The second one lasts twice as long, the third one three times, and so on.
    pub base_ejection_time: Duration,
    /// The longest ejection, but at least `base_ejection_time`.
    pub max_ejection_time: Duration,
    /// The greatest share of ejected endpoints, in percent. One endpoint may always be ejected.
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
