//! What is told of open connections, and how somebody says which ones: values and text only.

use std::{fmt::Write as _, net::SocketAddr};

use serde::{Deserialize, Serialize};

use snisplice_config::networks::{Network, Networks};

use crate::metrics::labels::Carrier;

/// How many are told unless somebody wants more.
pub const MOST: usize = 1_000;

/// How many are told at once at most; the rest is asked for with `after`.
pub const LONGEST: usize = 10_000;

/// One open connection. What is not known yet, such as the backend while the hello is read, is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number, by which it can be closed.
    pub id: u64,
    /// The listener that accepted it; `none` where it was taken over from another process, which is why route and backend
    /// are not known either.
    pub listener: String,
    /// The rule that serves it.
    pub route: Option<String>,
    /// Where it goes.
    pub backend: Option<String>,
    /// The client's address.
    pub client: Option<SocketAddr>,
    /// Ours, towards the client.
    pub accepted_at: Option<SocketAddr>,
    /// Ours, towards the backend.
    pub connected_from: Option<SocketAddr>,
    /// The backend's.
    pub backend_address: Option<SocketAddr>,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// `relay`, `sockmap` or `packet`.
    pub carrier: Option<String>,
    /// Why packets do not carry it, where that was tried; as in `snisplice_packet_refused_total`.
    pub packet_refused: Option<String>,
    /// Bytes of the client that the backend's socket has taken so far; of a connection that was taken over, since packets
    /// carry it.
    pub bytes_up: u64,
    /// Bytes of the backend that the client's socket has taken so far.
    pub bytes_down: u64,
}

/// What `GET /connections` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// By id.
    pub connections: Vec<Connection>,
    /// Whether there are more than the limit.
    pub more: bool,
}

/// What `DELETE /connections` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// How many connections were told to end.
    pub closed: usize,
}

/// Which connections are meant: those that match all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// This one.
    pub id: Option<u64>,
    /// Accepted by the listener of this name.
    pub listener: Option<String>,
    /// Going to the backend of this name.
    pub backend: Option<String>,
    /// Carried so.
    pub carrier: Option<Carrier>,
    /// Of a client in one of these networks.
    pub client: Option<Networks>,
    /// Whose client has asked for this server name.
    pub sni: Option<String>,
}

impl Filter {
    /// Whether all connections match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The query part of an address that means this; empty for everything.
    #[must_use]
    pub fn to_query(&self) -> String {
        let networks = |networks: &Networks| {
            networks.iter().map(|network| network.to_string()).collect::<Vec<_>>().join(",")
        };
        let client = self.client.as_ref().map(networks);
        let given = [
            ("listener", self.listener.as_deref()),
            ("backend", self.backend.as_deref()),
            ("carrier", self.carrier.map(Carrier::label)),
            ("client", client.as_deref()),
            ("sni", self.sni.as_deref()),
        ];
        let mut query = String::new();
        for (key, value) in given {
            if let Some(value) = value {
                query.push(if query.is_empty() { '?' } else { '&' });
                query.extend([key, "=", &encoded(value)]);
            }
        }
        query
    }
}

/// What the query part of a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Which ones.
    pub filter: Filter,
    /// How many at most; more than [`LONGEST`] are never told at once.
    pub limit: Option<usize>,
    /// Only those of a greater number.
    pub after: Option<u64>,
}

impl Query {
    /// Reads `key=value` pairs. The error is for whoever has written them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("'{pair}' is not key=value"))?;
            let value = decoded(value).ok_or_else(|| format!("'{value}' is not encoded as it should be"))?;
            let Filter { listener, backend, carrier, client, sni, .. } = &mut query.filter;
            match key {
                "listener" => *listener = Some(value),
                "backend" => *backend = Some(value),
                "carrier" => *carrier = Some(value.parse()?),
                "client" => *client = Some(networks(&value)?),
                "sni" => *sni = Some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| *limit > 0);
                    query.limit = Some(limit.ok_or_else(|| format!("'{value}' is not a number above 0"))?);
                }
                "after" => {
                    query.after = Some(
                        value.parse().map_err(|_| format!("'{value}' is not the number of a connection"))?,
                    );
                }
                _ => {
                    return Err(format!(
                        "there is no '{key}': use listener, backend, carrier, limit or after"
                    ));
                }
            }
        }
        Ok(query)
    }
}

impl std::str::FromStr for Carrier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Relay, Self::Sockmap, Self::Packet]
            .into_iter()
            .find(|carrier| carrier.label() == text)
            .ok_or_else(|| format!("'{text}' is not relay, sockmap or packet"))
    }
}

/// Networks or addresses with commas between.
fn networks(text: &str) -> Result<Networks, String> {
    text.split(',').map(str::parse::<Network>).collect()
}

/// Percent-encoding of everything that is not unreserved (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which() {
        let query = "listener=a&backend=b%20%c3%a4&carrier=packet&client=10.1.0.0/16,2001:db8::1&sni=x.example&limit=7&after=9";
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
        assert!(Query::parse("").unwrap().filter.is_empty());
        assert_eq!(Filter::default().to_query(), "");
    }

    #[test]
    fn what_is_no_query_says_why() {
        for (text, word) in [
            ("backend", "key=value"),
            ("backends=x", "'backends'"),
            ("carrier=fast", "'fast'"),
            ("client=10.0.0.0%2F33", "'10.0.0.0/33'"),
            ("client=", "''"),
            ("limit=0", "'0'"),
            ("limit=-1", "'-1'"),
            ("after=x", "'x'"),
            ("backend=%x0", "encoded"),
            ("backend=%f", "encoded"),
            ("backend=%ff", "encoded"),
        ] {
            let error = Query::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
