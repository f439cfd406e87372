//! The values of variables in configured headers.

use std::{
    cell::{Cell, OnceCell},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use hyper::{HeaderMap, Version, header::HeaderValue, http::request::Parts};
use snisplice_config::model::http::Variable;

use super::headers;

/// A request and its connection, as the source of variables.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The head as received.
    pub head: &'a Parts,
    /// `http` or `https`, as the client sees it.
    pub scheme: &'a str,
    /// The authority as sent.
    pub authority: &'a str,
    /// The peer's address.
    pub client: SocketAddr,
    /// The local address of the connection.
    pub own: SocketAddr,
    /// The server name in the client's hello.
    pub server_name: Option<&'a str>,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
    /// The time at which the head was received.
    pub started: SystemTime,
    /// The forwarded headers, once they are known.
    pub sent: OnceCell<HeaderMap>,
    /// The backend, once it is known.
    pub upstream: &'a Upstream,
}

/// The backend of a request, for variables and for the access log.
#[derive(Debug, Default)]
pub struct Upstream {
    /// The name of the backend.
    pub cluster: OnceCell<Arc<str>>,
    /// The endpoint of the last attempt.
    pub host: Cell<Option<SocketAddr>>,
    /// The local address towards the endpoint.
    pub local: Cell<Option<SocketAddr>>,
}

impl Facts<'_> {
    /// The value of a variable in a header of the response, which has these headers so far. Headers of the request are
    /// the forwarded ones, or the received ones if the request is not forwarded.
    #[must_use]
    pub fn of_response(&self, variable: &Variable, response: &HeaderMap) -> Option<String> {
        let upstream = &self.upstream;
        Some(match variable {
            Variable::ResponseHeader(name, other) => {
                let value = |name: &str| response.get(name).map(text);
                return value(name).or_else(|| value(other.as_deref()?));
            }
            Variable::UpstreamHost => upstream.host.get()?.to_string(),
            Variable::UpstreamHostWithoutPort => upstream.host.get()?.ip().to_string(),
            Variable::UpstreamLocalAddress => upstream.local.get()?.to_string(),
            Variable::UpstreamLocalAddressWithoutPort => upstream.local.get()?.ip().to_string(),
            Variable::UpstreamCluster => upstream.cluster.get()?.to_string(),
            _ => return self.of_request(variable, self.sent.get().unwrap_or(&self.head.headers)),
        })
    }

    /// The value of a variable in a header of the request, which has these headers so far.
    #[must_use]
    pub fn of_request(&self, variable: &Variable, headers: &HeaderMap) -> Option<String> {
        Some(match variable {
            Variable::RequestHeader(name, other) => {
                let other = || self.header(other.as_deref()?, headers);
                return self.header(name, headers).or_else(other);
            }
            Variable::StartTime => humantime::format_rfc3339_millis(self.started).to_string(),
            Variable::DownstreamRemoteAddress => self.remote().to_string(),
            Variable::DownstreamRemoteAddressWithoutPort => self.remote().ip().to_string(),
            Variable::DownstreamDirectRemoteAddress => self.client.to_string(),
            Variable::DownstreamDirectRemoteAddressWithoutPort => self.client.ip().to_string(),
            Variable::DownstreamLocalAddress => self.local().to_string(),
            Variable::DownstreamLocalAddressWithoutPort => self.local().ip().to_string(),
            Variable::DownstreamLocalPort => self.own.port().to_string(),
            Variable::Protocol => protocol(self.head.version).to_owned(),
            Variable::RequestedServerName => self.server_name?.to_owned(),
            // These exist once there is a response.
            Variable::ResponseHeader(..)
            | Variable::UpstreamHost
            | Variable::UpstreamHostWithoutPort
            | Variable::UpstreamLocalAddress
            | Variable::UpstreamLocalAddressWithoutPort
            | Variable::UpstreamCluster => return None,
        })
    }

    fn header(&self, name: &str, headers: &HeaderMap) -> Option<String> {
        Some(match name {
            ":authority" | "host" => self.authority.to_owned(),
            ":method" => self.head.method.as_str().to_owned(),
            ":scheme" => self.scheme.to_owned(),
            ":path" => self.head.uri.path_and_query()?.as_str().to_owned(),
            _ => text(headers.get(name)?),
        })
    }

    /// The client's address. If a trusted proxy declares it, the port is 0, as in Envoy.
    fn remote(&self) -> SocketAddr {
        let named = || headers::last_forwarded_for(&self.head.headers)?.parse::<IpAddr>().ok();
        match self.trusted.then(named).flatten() {
            Some(ip) => SocketAddr::new(ip.to_canonical(), 0),
            None => self.client,
        }
    }

    fn local(&self) -> SocketAddr {
        SocketAddr::new(self.own.ip().to_canonical(), self.own.port())
    }
}

/// The value of a header as text. Invalid bytes are replaced.
fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The name of a version in the access log and in `%PROTOCOL%`.
#[must_use]
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use snisplice_config::model::http::HeaderText;

    use super::*;

    #[test]
    fn each_variable_has_its_value() {
        let request = Request::builder()
            .uri("/a?b")
            .header("x-forwarded-for", "198.51.100.7, 203.0.113.9")
            .header("x-a", "1")
            .body(());
        let (head, ()) = request.unwrap().into_parts();
        let upstream = Upstream::default();
        let facts = |trusted| Facts {
            head: &head,
            scheme: "https",
            authority: "a.test",
            client: "192.0.2.7:5000".parse().unwrap(),
            own: "[::ffff:192.0.2.1]:443".parse().unwrap(),
            server_name: Some("sni.test"),
            trusted,
            started: SystemTime::UNIX_EPOCH,
            sent: OnceCell::new(),
            upstream: &upstream,
        };
        let value = |text: &str, trusted| {
            let facts = facts(trusted);
            let text = HeaderText::parse(text).unwrap();
            text.with(|variable| facts.of_request(variable, &head.headers)).map(std::borrow::Cow::into_owned)
        };
        for (text, expected) in [
            ("%REQ(X-A)%", "1"),
            ("%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)% %REQ(:SCHEME)%", "GET /a?b a.test https"),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", "192.0.2.7:5000"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "192.0.2.7"),
            ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "192.0.2.7:5000"),
            ("%DOWNSTREAM_LOCAL_ADDRESS%", "192.0.2.1:443"),
            ("%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%:%DOWNSTREAM_LOCAL_PORT%", "192.0.2.1:443"),
            ("%PROTOCOL% %REQUESTED_SERVER_NAME%", "HTTP/1.1 sni.test"),
            ("%START_TIME%", "1970-01-01T00:00:00.000Z"),
            ("-%RESP(x-a)%%UPSTREAM_HOST%%UPSTREAM_LOCAL_ADDRESS%%UPSTREAM_CLUSTER%", "-"),
        ] {
            assert_eq!(value(text, false).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(value("%DOWNSTREAM_REMOTE_ADDRESS%", true).as_deref(), Some("203.0.113.9:0"));
        assert_eq!(value("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", true).as_deref(), Some("192.0.2.7:5000"));
        let facts = facts(false);
        facts.sent.set(HeaderMap::from_iter([("x-a".parse().unwrap(), "2".parse().unwrap())])).unwrap();
        facts.upstream.cluster.set("pool".into()).unwrap();
        facts.upstream.host.set(Some("192.0.2.9:8080".parse().unwrap()));
        facts.upstream.local.set(Some("192.0.2.2:40000".parse().unwrap()));
        let response = HeaderMap::from_iter([("x-a".parse().unwrap(), "3".parse().unwrap())]);
        for (text, expected) in [
            ("%REQ(X-A)% %RESP(X-A)% %RESP(x-b?x-a)%", "2 3 3"),
            ("%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "192.0.2.9:8080 192.0.2.9"),
            ("%UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_CLUSTER%", "192.0.2.2:40000 pool"),
        ] {
            let value = HeaderText::parse(text).unwrap();
            let value = value.with(|variable| facts.of_response(variable, &response));
            assert_eq!(value.as_deref(), Some(expected), "{text}");
        }
    }
}
