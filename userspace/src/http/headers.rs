//! Headers of forwarded messages: hop-by-hop headers, the balancer's headers, and changes by the configuration.

use std::net::IpAddr;

use hyper::{
    HeaderMap, Version,
    header::{self, Entry, HeaderName, HeaderValue},
};
use snisplice_config::model::http::{HeaderChanges, HeaderText, Variable};

/// `X-Forwarded-For`.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Request-Id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The `Server` header of every response. It replaces the backend's value (Envoy's `OVERWRITE`).
pub const SERVER: HeaderValue = HeaderValue::from_static("snisplice");

/// The protocol of an upgrade (RFC 9110 section 7.8), if it is allowed. An upgrade to HTTP/2 is obsolete (RFC 9113
/// section 3.1).
#[must_use]
pub fn upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get(header::UPGRADE)?;
    let is_h2c = wanted
        .as_bytes()
        .split(|byte| *byte == b',')
        .any(|one| one.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    (version == Version::HTTP_11 && !is_h2c && has_token(headers, &header::CONNECTION, "upgrade"))
        .then(|| wanted.clone())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|one| one.eq_ignore_ascii_case(token))
}

fn tokens<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Removes hop-by-hop headers (RFC 9110 section 7.6.1), including those that `Connection` names. `TE: trailers`
/// stays, which gRPC requires.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let takes_trailers = has_token(headers, &header::TE, "trailers");
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> =
            tokens(headers, &header::CONNECTION).filter_map(|name| name.parse().ok()).collect();
        for name in named {
            // `Connection` cannot remove the host or the headers about the client.
            if name != header::HOST
                && name != header::CONTENT_LENGTH
                && name != FORWARDED_FOR
                && name != FORWARDED_PROTO
            {
                headers.remove(name);
            }
        }
    }
    for name in [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HTTP2_SETTINGS,
    ] {
        headers.remove(name);
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Joins the cookies of a request into one header. HTTP/2 may send them separately, and HTTP/1 may not (RFC 9113
/// section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).into_iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    // Each part is a valid value, and so is the whole.
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

/// The number of headers. The parts of a cookie count as one.
#[must_use]
pub fn count(headers: &HeaderMap) -> usize {
    let cookies = headers.get_all(header::COOKIE).into_iter().count();
    headers.len() - cookies.saturating_sub(1)
}

/// The sender of a request, and its scheme.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    /// The peer's address.
    pub address: IpAddr,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
    /// `http` or `https`.
    pub scheme: &'a str,
}

/// Sets the forwarding headers of a request. A client's own values are removed, unless it is trusted. `id` makes the
/// id of a request that has none, or whose sender is not trusted.
pub fn forwarded(headers: &mut HeaderMap, sender: &Sender<'_>, id: impl FnOnce() -> HeaderValue) {
    let mut address = sender.address.to_string();
    if sender.trusted {
        let before: Vec<&str> = tokens(headers, &FORWARDED_FOR).collect();
        if !before.is_empty() {
            address = format!("{}, {address}", before.join(", "));
        }
    } else {
        let foreign: Vec<HeaderName> =
            headers.keys().filter(|name| says_who(name.as_str())).cloned().collect();
        for name in foreign {
            headers.remove(name);
        }
    }
    if let Ok(value) = HeaderValue::try_from(address) {
        headers.insert(FORWARDED_FOR, value);
    }
    if let Ok(value) = HeaderValue::from_str(sender.scheme) {
        headers.insert(FORWARDED_PROTO, value);
    }
    if let Entry::Vacant(entry) = headers.entry(REQUEST_ID) {
        entry.insert(id());
    }
}

/// Whether only proxies may set a header.
fn says_who(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || name.starts_with("x-envoy-")
        || matches!(name, "x-request-id" | "x-real-ip" | "forwarded" | "x-original-forwarded-for")
}

/// The scheme that a trusted sender declares, or the connection's own.
#[must_use]
pub fn scheme_of<'h>(headers: &'h HeaderMap, trusted: bool, own: &'h str) -> &'h str {
    let said = headers.get(FORWARDED_PROTO).filter(|_| trusted).and_then(|value| value.to_str().ok());
    said.filter(|said| matches!(*said, "http" | "https")).unwrap_or(own)
}

/// The address that the previous proxy has appended.
#[must_use]
pub fn last_forwarded_for(headers: &HeaderMap) -> Option<&str> {
    tokens(headers, &FORWARDED_FOR).last()
}

/// Applies the configured changes. Invalid headers are skipped, since the configuration is already validated. `value`
/// returns the value of a variable, from the current headers.
pub fn change(
    headers: &mut HeaderMap,
    changes: &HeaderChanges,
    value: impl Fn(&Variable, &HeaderMap) -> Option<String>,
) {
    for name in &changes.remove {
        headers.remove(name);
    }
    let of = |(name, text): &(String, HeaderText), headers: &HeaderMap| {
        let name = HeaderName::try_from(name.as_str()).ok()?;
        let text = text.with(|variable| value(variable, headers))?;
        is_free(&name).then_some((name, HeaderValue::try_from(&*text).ok()?))
    };
    for change in &changes.set {
        if let Some((name, value)) = of(change, headers) {
            headers.insert(name, value);
        }
    }
    for change in &changes.add {
        if let Some((name, value)) = of(change, headers) {
            headers.append(name, value);
        }
    }
}

/// Whether a header does not affect the framing of the message.
fn is_free(name: &HeaderName) -> bool {
    ![header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::UPGRADE].contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let parse =
            |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in list.iter().map(parse) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn headers_of_one_hop_end_here() {
        let mut seen = headers(&[
            ("connection", "close, X-Own, host, x-forwarded-for"),
            ("x-own", "1"),
            ("host", "a"),
            ("x-forwarded-for", "10.0.0.1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-authorization", "x"),
            ("x-kept", "1"),
        ]);
        remove_hop_by_hop(&mut seen);
        let kept = [("host", "a"), ("x-forwarded-for", "10.0.0.1"), ("te", "trailers"), ("x-kept", "1")];
        assert_eq!(seen, headers(&kept));
    }

    #[test]
    fn the_parts_of_a_cookie_become_one() {
        let mut seen = headers(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3; d=4")]);
        assert_eq!(count(&seen), 2);
        join_cookies(&mut seen);
        assert_eq!(seen, headers(&[("cookie", "a=1; b=2; c=3; d=4"), ("x", "y")]));
        join_cookies(&mut seen);
        assert_eq!(count(&seen), 2);
    }

    #[test]
    fn a_client_does_not_say_who_it_is() {
        let said = [
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-host", "evil"),
            ("x-request-id", "mine"),
        ];
        let id = || HeaderValue::from_static("ours");
        let mut sender = Sender { address: IpAddr::from([192, 0, 2, 7]), trusted: false, scheme: "https" };
        let mut seen = headers(&said);
        forwarded(&mut seen, &sender, id);
        let ours =
            [("x-forwarded-for", "192.0.2.7"), ("x-forwarded-proto", "https"), ("x-request-id", "ours")];
        assert_eq!(seen, headers(&ours));
        sender.trusted = true;
        let mut seen = headers(&said);
        forwarded(&mut seen, &sender, id);
        let theirs = [
            ("x-forwarded-for", "10.0.0.1, 10.0.0.2, 192.0.2.7"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "mine"),
        ];
        assert_eq!(seen, headers(&theirs));
    }

    #[test]
    fn only_a_trusted_sender_names_the_scheme() {
        let said = headers(&[("x-forwarded-proto", "https")]);
        assert_eq!((scheme_of(&said, true, "http"), scheme_of(&said, false, "http")), ("https", "http"));
        assert_eq!(scheme_of(&headers(&[("x-forwarded-proto", "gopher")]), true, "http"), "http");
    }

    #[test]
    fn an_upgrade_is_for_one_that_asks_for_it() {
        let asks = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(upgrade(Version::HTTP_11, &asks).unwrap(), "websocket");
        assert_eq!(upgrade(Version::HTTP_10, &asks), None);
        assert_eq!(upgrade(Version::HTTP_11, &headers(&[("upgrade", "websocket")])), None);
        assert_eq!(
            upgrade(Version::HTTP_11, &headers(&[("connection", "upgrade"), ("upgrade", "h2c")])),
            None
        );
    }

    #[test]
    fn changes_are_made_in_their_order() {
        let pair = |name: &str, value: &str| (name.to_owned(), HeaderText::parse(value).unwrap());
        let changes = HeaderChanges {
            remove: vec!["a".into(), "b".into()],
            set: vec![pair("b", "2"), pair("c", "3"), pair("content-length", "7")],
            add: vec![pair("c", "4"), pair("e", "%PROTOCOL% b=%REQ(b)%"), pair("f", "%REQ(none)%")],
        };
        let mut seen = headers(&[("a", "1"), ("b", "1"), ("c", "1"), ("c", "2"), ("d", "1")]);
        change(&mut seen, &changes, |variable, headers| match variable {
            Variable::Protocol => Some("HTTP/2".into()),
            Variable::RequestHeader(name, _) => headers.get(&**name)?.to_str().ok().map(str::to_owned),
            _ => None,
        });
        let expected = [("b", "2"), ("c", "3"), ("c", "4"), ("d", "1"), ("e", "HTTP/2 b=2")];
        assert_eq!(seen, headers(&expected));
    }
}
