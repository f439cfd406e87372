//! One line, in either format.

use std::{
    fmt,
    io::Write as _,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};
use snisplice_config::model::AccessLogFormat;

/// The fields of Istio's access log, in Istio's order. A field that does not apply or is unknown is `None`: `null` in
/// JSON, `-` in text.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Line<'l> {
    /// The time at which the connection was accepted or the request began, in UTC to the millisecond (RFC 3339).
    #[serde(serialize_with = "time")]
    pub start_time: SystemTime,
    /// The matched rule, as the label `route` of the metrics.
    pub route_name: Option<&'l str>,
    /// The method of the request.
    pub method: Option<&'l str>,
    /// The path of the request with its query, as the client has sent it.
    pub path: Option<&'l str>,
    /// `HTTP/1.1`, `HTTP/2` and the like.
    pub protocol: Option<&'l str>,
    /// The status code; 0 for a connection.
    pub response_code: u16,
    /// Envoy's flags, separated by commas. `-` is none.
    pub response_flags: &'l str,
    /// Envoy's details on the reason of the response.
    pub response_code_details: Option<&'l str>,
    /// The reason for an abnormal end of the connection.
    pub connection_termination_details: Option<&'l str>,
    /// Bytes from the client: those of the connection, or of the request's body.
    pub bytes_received: u64,
    /// Bytes to the client: those of the connection, or of the response's body.
    pub bytes_sent: u64,
    /// From the start to the last byte, in milliseconds.
    #[serde(serialize_with = "milliseconds")]
    pub duration: Duration,
    /// From the request to the response's head, in milliseconds. A string, since Envoy takes it from a header.
    #[serde(serialize_with = "milliseconds_as_text")]
    pub upstream_service_time: Option<Duration>,
    /// The request's header `x-forwarded-for`.
    pub x_forwarded_for: Option<&'l str>,
    /// The request's header `user-agent`.
    pub user_agent: Option<&'l str>,
    /// The header `x-request-id`.
    pub request_id: Option<&'l str>,
    /// The authority of the request.
    pub authority: Option<&'l str>,
    /// The endpoint that served the connection or request.
    pub upstream_host: Option<SocketAddr>,
    /// The backend, as the label `backend` of the metrics.
    pub upstream_cluster: Option<&'l str>,
    /// The local address towards the endpoint.
    pub upstream_local_address: Option<SocketAddr>,
    /// The local address towards the client.
    pub downstream_local_address: Option<SocketAddr>,
    /// The client's address.
    pub downstream_remote_address: Option<SocketAddr>,
    /// The server name of the `ClientHello`.
    pub requested_server_name: Option<&'l str>,
    /// The reason for which no endpoint is connected.
    pub upstream_transport_failure_reason: Option<&'l str>,
}

impl Default for Line<'_> {
    fn default() -> Self {
        Self {
            start_time: UNIX_EPOCH,
            route_name: None,
            method: None,
            path: None,
            protocol: None,
            response_code: 0,
            response_flags: super::outcome::NO_FLAG,
            response_code_details: None,
            connection_termination_details: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_service_time: None,
            x_forwarded_for: None,
            user_agent: None,
            request_id: None,
            authority: None,
            upstream_host: None,
            upstream_cluster: None,
            upstream_local_address: None,
            downstream_local_address: None,
            downstream_remote_address: None,
            requested_server_name: None,
            upstream_transport_failure_reason: None,
        }
    }
}

fn time<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn in_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn milliseconds<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    in_milliseconds(*duration).serialize(to)
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn milliseconds_as_text<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => to.collect_str(&in_milliseconds(*duration)),
        None => to.serialize_none(),
    }
}

impl Line<'_> {
    /// Appends the line with a line feed to `text`. The fields contain no line break, with any input from a client.
    pub(super) fn write(&self, format: AccessLogFormat, text: &mut Vec<u8>) {
        // A write to memory does not fail, and every key is a string.
        match format {
            AccessLogFormat::Json => drop(serde_json::to_writer(&mut *text, self)),
            AccessLogFormat::Text => drop(self.write_text(text)),
        }
        text.push(b'\n');
    }

    /// Istio's `EnvoyTextLogFormat`.
    fn write_text(&self, text: &mut Vec<u8>) -> std::io::Result<()> {
        write!(
            text,
            "[{}] \"{} {} {}\" {} {} {} {} \"{}\" {} {} {} {} \"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {} {} {} {} {} {}",
            humantime::format_rfc3339_millis(self.start_time),
            Quoted(self.method),
            Quoted(self.path),
            Quoted(self.protocol),
            self.response_code,
            self.response_flags,
            Word(self.response_code_details),
            Word(self.connection_termination_details),
            Quoted(self.upstream_transport_failure_reason),
            self.bytes_received,
            self.bytes_sent,
            in_milliseconds(self.duration),
            Or(self.upstream_service_time.map(in_milliseconds)),
            Quoted(self.x_forwarded_for),
            Quoted(self.user_agent),
            Quoted(self.request_id),
            Quoted(self.authority),
            Or(self.upstream_host),
            Word(self.upstream_cluster),
            Or(self.upstream_local_address),
            Or(self.downstream_local_address),
            Or(self.downstream_remote_address),
            Word(self.requested_server_name),
            Word(self.route_name),
        )
    }
}

/// A value, or `-`.
struct Or<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Or<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// Text within quotes. Characters that would end the quotes or the line are escaped as in JSON.
struct Quoted<'l>(Option<&'l str>);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else { return f.write_str("-") };
        for part in text.split_inclusive(|c: char| c == '"' || c == '\\' || c.is_control()) {
            let mut before = part.chars();
            match before.next_back() {
                Some(c @ ('"' | '\\')) => write!(f, "{}\\{c}", before.as_str())?,
                Some(c) if c.is_control() => write!(f, "{}\\u{:04x}", before.as_str(), u32::from(c))?,
                _ => f.write_str(part)?,
            }
        }
        Ok(())
    }
}

/// Text without quotes: a space becomes `_`, as in Envoy.
struct Word<'l>(Option<&'l str>);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(text) = self.0 else { return f.write_str("-") };
        for (at, part) in text.split(' ').enumerate() {
            if at > 0 {
                f.write_str("_")?;
            }
            Quoted(Some(part)).fmt(f)?;
        }
        Ok(())
    }
}
