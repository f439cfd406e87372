//! The values of variables in configured headers.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
};

use hyper::{HeaderMap, Version, http::request::Parts};
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
    /// The forwarded headers, once they are known.
    pub sent: OnceCell<HeaderMap>,
}

impl Facts<'_> {
    /// The value of a variable. Headers are the forwarded ones, or the received ones if the request is not forwarded.
    #[must_use]
    pub fn value(&self, variable: &Variable) -> Option<String> {
        self.with(variable, self.sent.get().unwrap_or(&self.head.headers))
    }

    /// The value of a variable with these headers.
    #[must_use]
    pub fn with(&self, variable: &Variable, headers: &HeaderMap) -> Option<String> {
        Some(match variable {
            Variable::RequestHeader(name, other) => {
                let other = || self.header(other.as_deref()?, headers);
                return self.header(name, headers).or_else(other);
            }
            Variable::DownstreamRemoteAddress => self.remote().to_string(),
            Variable::DownstreamRemoteAddressWithoutPort => self.remote().ip().to_string(),
            Variable::DownstreamDirectRemoteAddress => self.client.to_string(),
            Variable::DownstreamDirectRemoteAddressWithoutPort => self.client.ip().to_string(),
            Variable::DownstreamLocalAddress => self.local().to_string(),
            Variable::DownstreamLocalAddressWithoutPort => self.local().ip().to_string(),
            Variable::DownstreamLocalPort => self.own.port().to_string(),
            Variable::Protocol => protocol(self.head.version).to_owned(),
            Variable::RequestedServerName => self.server_name?.to_owned(),
        })
    }

    fn header(&self, name: &str, headers: &HeaderMap) -> Option<String> {
        Some(match name {
            ":authority" | "host" => self.authority.to_owned(),
            ":method" => self.head.method.as_str().to_owned(),
            ":scheme" => self.scheme.to_owned(),
            ":path" => self.head.uri.path_and_query()?.as_str().to_owned(),
            _ => String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned(),
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
        let facts = |trusted| Facts {
            head: &head,
            scheme: "https",
            authority: "a.test",
            client: "192.0.2.7:5000".parse().unwrap(),
            own: "[::ffff:192.0.2.1]:443".parse().unwrap(),
            server_name: Some("sni.test"),
            trusted,
            sent: OnceCell::new(),
        };
        let value = |text: &str, trusted| {
            let facts = facts(trusted);
            let text = HeaderText::parse(text).unwrap();
            text.with(|variable| facts.value(variable)).map(std::borrow::Cow::into_owned)
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
        ] {
            assert_eq!(value(text, false).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(value("%DOWNSTREAM_REMOTE_ADDRESS%", true).as_deref(), Some("203.0.113.9:0"));
        assert_eq!(value("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", true).as_deref(), Some("192.0.2.7:5000"));
        let sent = facts(false);
        sent.sent.set(HeaderMap::from_iter([("x-a".parse().unwrap(), "2".parse().unwrap())])).unwrap();
        assert_eq!(sent.value(&Variable::RequestHeader("x-a".into(), None)).as_deref(), Some("2"));
    }
}
