//! The reasons for which a request is refused before a rule is looked up.

use hyper::StatusCode;
use thiserror::Error;

/// The reason for a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// RFC 9112 section 3.
    #[error("the request line is malformed")]
    RequestLine,
    /// RFC 9112 section 3.2.
    #[error("the request target is malformed")]
    Target,
    /// RFC 9112 section 5.
    #[error("a header line has no colon")]
    HeaderLine,
    /// RFC 9112 section 5.1.
    #[error("a header name is malformed, or has a space behind it")]
    HeaderName,
    /// RFC 9112 section 5.2.
    #[error("a header is folded")]
    ObsoleteFold,
    /// RFC 9110 section 5.5.
    #[error("a control character")]
    ControlCharacter,
    /// RFC 9112 section 2.2.
    #[error("a line ends without a carriage return")]
    BareLineFeed,
    /// RFC 9112 section 2.2.
    #[error("a carriage return within a line")]
    BareCarriageReturn,
    /// RFC 9112 section 6.3.
    #[error("Content-Length is malformed, or there are several")]
    ContentLength,
    /// RFC 9112 section 6.1.
    #[error("Transfer-Encoding is not 'chunked' alone")]
    TransferEncoding,
    /// RFC 9112 section 6.1.
    #[error("both Content-Length and Transfer-Encoding")]
    BothLengths,
    /// RFC 9112 section 7.1.
    #[error("a chunk is malformed")]
    Chunk,
    /// RFC 9110 section 6.5.1.
    #[error("a trailer that frames or routes the message")]
    Trailer,
    /// RFC 9112 section 3.2.
    #[error("Host is missing, malformed, or there are several that differ")]
    Host,
    /// RFC 9110 section 7.2: a request must have exactly one authority.
    #[error("the target's authority and Host differ")]
    Authority,
    /// RFC 9110 section 4.2.
    #[error("the scheme is neither http nor https")]
    Scheme,
    /// The path leaves the root, or has a NUL.
    #[error("the path leads out of the root, or cannot be normalised")]
    Path,
    /// RFC 9110 section 9.3.6: the balancer is no tunnel.
    #[error("CONNECT is not served")]
    Connect,
    /// RFC 8441 section 4.
    #[error("extended CONNECT for another protocol than websocket")]
    Protocol,
    /// Envoy's limit, which the HTTP/2 server does not have.
    #[error("more headers than may be")]
    TooManyHeaders,
}

impl Refused {
    /// The status code of the response.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::Protocol => StatusCode::NOT_IMPLEMENTED,
            Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}
