//! WebSocket over HTTP/2 (RFC 8441): a client's extended CONNECT becomes an HTTP/1.1 upgrade at the backend.

use hyper::{
    HeaderMap, Method, Request,
    ext::Protocol,
    header::{self, HeaderName, HeaderValue},
};

use super::refused::Refused;

/// The only supported protocol of extended CONNECT.
const WEBSOCKET: &str = "websocket";

const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// Turns an extended CONNECT into the GET request of an HTTP/1.1 upgrade, which rules then match (RFC 8441 section
/// 5). Returns the protocol, or `None` for any other request.
///
/// # Errors
/// Returns an error for any other protocol.
pub fn begin<B>(request: &mut Request<B>) -> Result<Option<HeaderValue>, Refused> {
    if request.method() != Method::CONNECT {
        return Ok(None);
    }
    let Some(protocol) = request.extensions().get::<Protocol>() else { return Ok(None) };
    if !protocol.as_str().eq_ignore_ascii_case(WEBSOCKET) {
        return Err(Refused::Protocol);
    }
    *request.method_mut() = Method::GET;
    Ok(Some(HeaderValue::from_static(WEBSOCKET)))
}

/// Completes the headers of a request to an HTTP/1.1 backend. HTTP/1.1 requires a key, which HTTP/2 does not have
/// (RFC 6455 section 4.1).
pub fn complete(headers: &mut HeaderMap, random: [u8; 16]) {
    let key = data_encoding::BASE64.encode(&random);
    if let Ok(key) = HeaderValue::try_from(key) {
        headers.insert(KEY, key);
    }
}

/// Removes the headers of a backend's response that HTTP/2 does not have.
pub fn answer(headers: &mut HeaderMap) {
    headers.remove(ACCEPT);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(protocol: Option<&'static str>) -> Request<()> {
        let mut request =
            Request::builder().method(Method::CONNECT).uri("https://a.test/chat").body(()).unwrap();
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
        request
    }

    #[test]
    fn an_extended_connect_is_an_upgrade() {
        let mut request = connect(Some("websocket"));
        assert_eq!(begin(&mut request).unwrap().unwrap(), "websocket");
        assert_eq!((request.method(), request.uri().path()), (&Method::GET, "/chat"));
        assert_eq!(begin(&mut connect(Some("connect-udp"))), Err(Refused::Protocol));
        let mut plain = connect(None);
        assert_eq!(begin(&mut plain), Ok(None));
        assert_eq!(plain.method(), Method::CONNECT);
    }

    #[test]
    fn a_key_has_sixteen_bytes() {
        let mut headers = HeaderMap::new();
        headers.insert(KEY, HeaderValue::from_static("foreign"));
        complete(&mut headers, [7; 16]);
        assert_eq!(headers.get_all(KEY).iter().collect::<Vec<_>>(), ["BwcHBwcHBwcHBwcHBwcHBw=="]);
        headers.insert(ACCEPT, HeaderValue::from_static("x"));
        answer(&mut headers);
        assert!(!headers.contains_key(ACCEPT));
    }
}
