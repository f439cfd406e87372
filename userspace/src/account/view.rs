//! The description of open connections, and filters for them: values and text only.

use std::{collections::BTreeMap, fmt::Display, net::SocketAddr, str::FromStr};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use snisplice_config::networks::{Network, Networks};

use crate::metrics::labels::Carrier;

/// The default number of connections in a listing.
pub const MOST: usize = 1_000;

/// The greatest number of connections in one listing. A client requests more with `after`.
pub const LONGEST: usize = 10_000;

/// One open connection. A value that is not known yet, such as the backend while the hello is read, is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionView {
    /// The number, by which the connection can be closed.
    pub id: u64,
    /// The listener that accepted the connection. `none` for a connection of an earlier process, whose route and
    /// backend are then unknown.
    pub listener: String,
    /// The rule that serves the connection.
    pub route: Option<String>,
    /// The name of its backend.
    pub backend: Option<String>,
    /// The client's address, also behind a proxy whose PROXY header names the client.
    pub client: Option<SocketAddr>,
    /// The address of that proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<SocketAddr>,
    /// The local address towards the client.
    pub accepted_at: Option<SocketAddr>,
    /// The local address towards the backend.
    pub connected_from: Option<SocketAddr>,
    /// The backend's address.
    pub backend_address: Option<SocketAddr>,
    /// Seconds since accept.
    pub age_seconds: f64,
    /// `relay`, `sockmap` or `packet`.
    #[serde(rename = "datapath")]
    pub carrier: Option<String>,
    /// The same value under its former name, for existing programs.
    #[serde(rename = "carrier", skip_serializing_if = "Option::is_none")]
    pub former_carrier: Option<String>,
    /// The reason for which the connection is not eligible for packets, if that was checked. The same values as in
    /// `snisplice_packet_refused_total`.
    pub packet_refused: Option<String>,
    /// Bytes of the client that the backend's socket has taken so far. For an adopted connection, since it is in
    /// packets.
    pub bytes_up: u64,
    /// Bytes of the backend that the client's socket has taken so far.
    pub bytes_down: u64,
}

/// The body of the response to `GET /connections`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// Sorted by id.
    pub connections: Vec<ConnectionView>,
    /// Whether the limit has cut off further connections.
    pub more: bool,
}

/// The body of the response to `DELETE /connections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// The number of connections that were closed.
    pub closed: usize,
}

/// The body of the response to `POST /reload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The number of the configuration that serves.
    pub generation: u64,
}

/// The body of the response to `POST /drain`, `/undrain` and `/weight`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The backend.
    pub backend: String,
    /// The address of the endpoint.
    pub endpoint: SocketAddr,
    /// Whether the endpoint gets no new connection.
    pub drained: bool,
    /// The weight instead of the configured one.
    pub weight: Option<u32>,
}

/// The body of the response to `GET /explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The number of the configuration that serves.
    pub generation: u64,
    /// Whether at least one listener has a rule for the name.
    pub served: bool,
    /// The text of `snisplice explain`, then the present state of the endpoints.
    pub text: String,
}

/// The body of the response to `GET /config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigView {
    /// The number of the configuration that serves.
    pub generation: u64,
    /// The time of its load, in UTC (RFC 3339).
    pub loaded_at: String,
    /// The paths of the command line that it was read from.
    pub paths: Vec<String>,
    /// The number of listeners.
    pub listeners: usize,
    /// The number of rules.
    pub routes: usize,
    /// The number of backends.
    pub backends: usize,
    /// The number of findings by severity, such as `warning`.
    pub findings: BTreeMap<String, usize>,
    /// The findings as text, the worst first; at most 1,000.
    pub texts: Vec<String>,
    /// The newer configuration that was refused, if any: this one still serves.
    pub refused: Option<RefusedConfig>,
    /// Changes of endpoints at run time.
    pub overrides: Vec<Changed>,
}

/// A configuration that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedConfig {
    /// The time of the attempt, in UTC (RFC 3339).
    pub at: String,
    /// Its errors.
    pub error: String,
}

/// A selection of connections: those that match all given fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Filter {
    /// The number of the connection. It is part of a path and not of a query.
    #[serde(skip)]
    pub id: Option<u64>,
    /// The name of the listener.
    pub listener: Option<String>,
    /// The name of the backend.
    pub backend: Option<String>,
    /// The datapath. Queries may also use the former name `carrier`, which answers still have.
    #[serde(rename = "datapath")]
    #[serde(serialize_with = "label")]
    pub carrier: Option<Carrier>,
    /// Networks that contain the client.
    #[serde(serialize_with = "with_commas")]
    pub client: Option<Networks>,
    /// The server name that the client requested.
    pub sni: Option<String>,
}

impl Filter {
    /// Whether all connections match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The query part of an address with this filter. Empty for all connections.
    #[must_use]
    pub fn to_query(&self) -> String {
        match serde_urlencoded::to_string(self) {
            // A `+` means a space in forms only.
            Ok(query) if !query.is_empty() => format!("?{}", query.replace('+', "%20")),
            _ => String::new(),
        }
    }
}

/// The query part of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// The selection.
    pub filter: Filter,
    /// The greatest number of connections, at most [`LONGEST`].
    pub limit: Option<usize>,
    /// Only connections with a greater number.
    pub after: Option<u64>,
}

impl Query {
    /// Parses `key=value` pairs, each key once. The error is for the author of the query.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split('&').filter(|pair| !pair.is_empty()).try_for_each(check)?;
        let asked: Asked =
            serde_urlencoded::from_str(text).map_err(|error| error.to_string().replace('`', "'"))?;
        let Asked { listener, backend, carrier, client, sni, limit, after } = asked;
        Ok(Self { filter: Filter { id: None, listener, backend, carrier, client, sni }, limit, after })
    }
}

/// The keys of a query.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    listener: Option<String>,
    backend: Option<String>,
    #[serde(rename = "datapath", alias = "carrier")]
    #[serde(deserialize_with = "parsed")]
    carrier: Option<Carrier>,
    #[serde(deserialize_with = "networks")]
    client: Option<Networks>,
    sni: Option<String>,
    #[serde(deserialize_with = "limit")]
    limit: Option<usize>,
    #[serde(deserialize_with = "after")]
    after: Option<u64>,
}

fn parsed<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(de::Error::custom)
}

/// Networks or addresses, separated by commas.
fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Networks>, D::Error> {
    let text = String::deserialize(from)?;
    text.split(',').map(str::parse::<Network>).collect::<Result<_, _>>().map(Some).map_err(de::Error::custom)
}

fn limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    let text = String::deserialize(from)?;
    let limit = text.parse().ok().filter(|limit| *limit > 0);
    limit.map(Some).ok_or_else(|| de::Error::custom(format!("'{text}' is not a number above 0")))
}

fn after<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    let after = text.parse().map(Some);
    after.map_err(|_| de::Error::custom(format!("'{text}' is not the number of a connection")))
}

/// Refuses text that decoding would replace or keep silently. A decoder reads a key without a value as an empty one,
/// keeps a `%` without two digits (URL standard, section 1.3), puts U+FFFD for bytes that are no text, and takes a `+`
/// for a blank, which a name may contain.
fn check(pair: &str) -> Result<(), String> {
    let (_, value) = pair.split_once('=').ok_or_else(|| format!("'{pair}' is not key=value"))?;
    if value.contains('+') {
        return Err(format!("'{value}' has a '+', which is not encoded: write %2B, or %20 for a blank"));
    }
    let is_code =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|code| code.iter().all(u8::is_ascii_hexdigit));
    let codes = value.split('%').skip(1).all(is_code);
    if codes && percent_decode_str(value).decode_utf8().is_ok() {
        Ok(())
    } else {
        Err(format!("'{value}' is not encoded as it should be"))
    }
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn label<S: Serializer>(carrier: &Option<Carrier>, to: S) -> Result<S::Ok, S::Error> {
    carrier.map(Carrier::label).serialize(to)
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn with_commas<S: Serializer>(networks: &Option<Networks>, to: S) -> Result<S::Ok, S::Error> {
    let text = |networks: &Networks| networks.iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",");
    networks.as_ref().map(text).serialize(to)
}

impl FromStr for Carrier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Relay, Self::Sockmap, Self::Packet]
            .into_iter()
            .find(|carrier| carrier.label() == text)
            .ok_or_else(|| format!("'{text}' is not relay, sockmap or packet"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which() {
        let query = "listener=a&backend=b%20%c3%a4&datapath=packet&client=10.1.0.0/16,2001:db8::1&sni=x.example&limit=7&after=9";
        let query = Query::parse(query).unwrap();
        let filter = Filter {
            id: None,
            listener: Some("a".into()),
            backend: Some("b ä".into()),
            carrier: Some(Carrier::Packet),
            client: Some(
                ["10.1.0.0/16", "2001:db8::1"].map(|net| net.parse().unwrap()).into_iter().collect(),
            ),
            sni: Some("x.example".into()),
        };
        assert_eq!(query, Query { filter: filter.clone(), limit: Some(7), after: Some(9) });
        assert_eq!(Query::parse(filter.to_query().strip_prefix('?').unwrap()).unwrap().filter, filter);
        assert_eq!(Query::parse("carrier=packet"), Query::parse("datapath=packet"));
        assert!(Query::parse("").unwrap().filter.is_empty());
        assert_eq!(Filter::default().to_query(), "");
    }

    #[test]
    fn what_is_no_query_says_why() {
        for (text, word) in [
            ("backend", "key=value"),
            ("backends=x", "'backends'"),
            ("carrier=relay&datapath=relay", "'datapath'"),
            ("datapath=fast", "'fast'"),
            ("client=10.0.0.0%2F33", "'10.0.0.0/33'"),
            ("client=", "''"),
            ("listener=a&listener=b", "'listener'"),
            ("limit=0", "'0'"),
            ("limit=-1", "'-1'"),
            ("after=x", "'x'"),
            ("backend=%x0", "encoded"),
            ("backend=a+b", "%2B"),
            ("backend=%f", "encoded"),
            ("backend=%ff", "encoded"),
        ] {
            let error = Query::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
