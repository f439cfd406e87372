//! Admits requests: refuses those that a web page could send through an operator's browser.
//!
//! A page can point a name of its own to this endpoint's address (DNS rebinding). Its requests then have that name in
//! `Host`, and non-simple requests have `Origin` (Fetch standard, 3.1). No operator's tool sends `Origin`.

use std::net::IpAddr;

use hyper::{
    Request, Version,
    header::{self, HeaderMap},
    http::uri::Authority,
};
use snisplice_config::name::HostName;

/// The reason for a refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The request is not valid HTTP/1.1 (RFC 9112, section 3.2).
    Invalid(&'static str),
    /// The request may come from a web page.
    Forbidden(String),
}

/// Whether a request is admitted. `hosts` are the names that `Host` may contain beside literal addresses and
/// `localhost`.
pub(super) fn check<B>(request: &Request<B>, hosts: &[HostName]) -> Result<(), Refused> {
    let headers = request.headers();
    no_origin(headers)?;
    let mut given = headers.get_all(header::HOST).iter();
    let host = match (given.next(), given.next()) {
        (Some(host), None) => host,
        (Some(_), Some(_)) => return Err(Refused::Invalid("more than one Host header\n")),
        // Browsers send HTTP/1.1 or later.
        (None, _) if request.version() < Version::HTTP_11 => return Ok(()),
        (None, _) => return Err(Refused::Invalid("the Host header is missing\n")),
    };
    let host = String::from_utf8_lossy(host.as_bytes());
    // A target in absolute form contains the host (RFC 9112, section 3.2.2).
    let authority = request.uri().authority().map(Authority::as_str);
    for host in [Some(&*host), authority].into_iter().flatten() {
        if !is_allowed(host, hosts) {
            let shown: String = host.chars().take(100).collect();
            return Err(Refused::Forbidden(format!(
                "the Host header says '{shown}': only IP addresses, localhost and the names in admin.hosts are served; \
                 ask by one of these, or add the name to admin.hosts\n"
            )));
        }
    }
    Ok(())
}

/// Whether a request is free of `Origin`, which only browsers send.
pub(super) fn no_origin(headers: &HeaderMap) -> Result<(), Refused> {
    if headers.contains_key(header::ORIGIN) {
        let why = "requests of web pages are refused: there is an Origin header; ask with curl or snisplice itself\n";
        return Err(Refused::Forbidden(why.to_owned()));
    }
    Ok(())
}

/// Whether `host`, as in a `Host` header, is an address or one of the known names.
fn is_allowed(host: &str, hosts: &[HostName]) -> bool {
    let Some(name) = without_port(host) else { return false };
    if let Some(address) = name.strip_prefix('[') {
        return address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    if name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()) {
        return true;
    }
    let Ok(name) = HostName::parse(name) else { return false };
    name.without_dot() == "localhost" || hosts.iter().any(|known| known.without_dot() == name.without_dot())
}

/// The host of `host[:port]`; `None` if the port is invalid.
fn without_port(host: &str) -> Option<&str> {
    let end = host.rfind(']').map_or(0, |at| at + 1);
    match host[end..].find(':') {
        None => Some(host),
        Some(at) => {
            let (name, port) = host.split_at(end + at);
            let port = &port[1..];
            (port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/ready");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn addresses_localhost_and_known_names_are_served() {
        let hosts = [HostName::parse("lb.example.com").unwrap()];
        for host in [
            "127.0.0.1:9900",
            "10.0.0.7",
            "[::1]:9900",
            "[fe80::1]",
            "localhost",
            "LOCALHOST:9900",
            "localhost.:1",
            "lb.example.com:9900",
            "LB.Example.com.",
        ] {
            assert_eq!(check(&request(&[("host", host)]), &hosts), Ok(()), "{host}");
        }
    }

    #[test]
    fn other_names_are_refused_with_a_remedy() {
        let hosts = [HostName::parse("lb.example.com").unwrap()];
        for host in [
            "evil.example",
            "evil.example:9900",
            "a.lb.example.com",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.1",
            "[::1",
            "[evil.example]:80",
            "[::1]evil.example",
            "::1",
            "",
            ":9900",
            "127.0.0.1:9900:1",
            "127.0.0.1:x",
            "user@127.0.0.1",
        ] {
            match check(&request(&[("host", host)]), &hosts) {
                Err(Refused::Forbidden(why)) => assert!(why.contains("admin.hosts"), "{host}: {why}"),
                other => panic!("{host}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_origin_is_refused_whatever_it_says() {
        for origin in ["http://evil.example", "null", "http://127.0.0.1:9900", ""] {
            let request = request(&[("host", "127.0.0.1"), ("origin", origin)]);
            assert!(matches!(check(&request, &[]), Err(Refused::Forbidden(_))), "{origin}");
        }
    }

    #[test]
    fn a_host_is_there_once() {
        assert!(matches!(check(&request(&[]), &[]), Err(Refused::Invalid(_))));
        let twice = request(&[("host", "127.0.0.1"), ("host", "evil.example")]);
        assert!(matches!(check(&twice, &[]), Err(Refused::Invalid(_))));
        let mut old = request(&[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(check(&old, &[]), Ok(()), "HTTP/1.0 knows no Host");
        let mut absolute = request(&[("host", "127.0.0.1")]);
        *absolute.uri_mut() = "http://evil.example/ready".parse().unwrap();
        assert!(matches!(check(&absolute, &[]), Err(Refused::Forbidden(_))));
    }
}
