//! Failures of a request: the local reply, the flags of the access log, and the rule for retries.

use hyper::StatusCode;
use snisplice_config::model::http::Retries;

use crate::account::access_log::outcome::NO_FLAG;

/// A failure that becomes a local reply, with Envoy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The rule has no target, or the backend has no endpoint.
    NoHealthyUpstream,
    /// No endpoint accepted a connection.
    NotConnected,
    /// The connection ended before the response.
    Reset,
    /// A limit of connections is reached.
    Overflow,
    /// The request's time limit is over.
    Timeout,
    /// The time limit of one attempt is over.
    TryTimeout,
    /// The client has stopped sending its request.
    ClientStalled,
    /// The client's request is malformed.
    ClientMalformed,
    /// The backend speaks another protocol than requested.
    Protocol,
    /// HTTP/2 towards the backend does not support this upgrade.
    Upgrade,
}

impl Failure {
    /// The status and text of the local reply.
    pub(super) fn response(self) -> (StatusCode, &'static str) {
        match self {
            Self::NoHealthyUpstream => (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream"),
            Self::NotConnected => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
            ),
            Self::Reset => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            ),
            Self::Overflow => (
                StatusCode::SERVICE_UNAVAILABLE,
                "upstream connect error or disconnect/reset before headers. reset reason: overflow",
            ),
            Self::Timeout | Self::TryTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout"),
            Self::ClientStalled => (StatusCode::REQUEST_TIMEOUT, "request timeout"),
            Self::ClientMalformed => (StatusCode::BAD_REQUEST, ""),
            Self::Protocol => (
                StatusCode::BAD_GATEWAY,
                "upstream connect error or disconnect/reset before headers. reset reason: protocol error",
            ),
            Self::Upgrade => (StatusCode::NOT_IMPLEMENTED, ""),
        }
    }

    /// Envoy's response flags and details for the access log.
    pub(super) fn in_the_log(self) -> (&'static str, &'static str) {
        match self {
            Self::NoHealthyUpstream => ("UH", "no_healthy_upstream"),
            Self::NotConnected => ("UF", "upstream_reset_before_response_started{connection_failure}"),
            Self::Reset => ("UC", "upstream_reset_before_response_started{connection_termination}"),
            Self::Overflow => ("UO", "upstream_reset_before_response_started{overflow}"),
            Self::Timeout => ("UT", "response_timeout"),
            Self::TryTimeout => ("UT", "upstream_per_try_timeout"),
            Self::ClientStalled => ("SI", "stream_idle_timeout"),
            Self::ClientMalformed => ("DPE", "http1.codec_error"),
            Self::Protocol => ("UPE", "upstream_reset_before_response_started{protocol_error}"),
            Self::Upgrade => (NO_FLAG, "upgrade_failed"),
        }
    }

    /// Whether the rule permits a retry after this failure.
    pub(super) fn is_retried(self, retries: &Retries) -> bool {
        match self {
            Self::NotConnected => retries.on_connect_failure,
            Self::Reset | Self::TryTimeout | Self::Protocol => retries.on_reset,
            _ => false,
        }
    }

    /// Whether the client is the cause. The begin of its next request is then uncertain.
    pub(super) fn is_of_the_client(self) -> bool {
        matches!(self, Self::ClientStalled | Self::ClientMalformed)
    }
}
