//! The value of a configured header, with Envoy's variables between percent signs.

use std::{borrow::Cow, fmt};

/// A text that may contain variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderText(Box<[Piece]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Variable(Variable, Option<usize>),
}

/// A value that comes from a request or its connection (Envoy's "command operators").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `%REQ(NAME?OTHER)%`: a header of the request, or else another one. Names are in lower case, including `:path`
    /// and similar ones.
    RequestHeader(Box<str>, Option<Box<str>>),
    /// The client's address and port, or the address that a trusted proxy declares.
    DownstreamRemoteAddress,
    /// The client's address without the port.
    DownstreamRemoteAddressWithoutPort,
    /// The address and port of the connection's peer.
    DownstreamDirectRemoteAddress,
    /// The address of the connection's peer without the port.
    DownstreamDirectRemoteAddressWithoutPort,
    /// The local address and port of the connection.
    DownstreamLocalAddress,
    /// The local address without the port.
    DownstreamLocalAddressWithoutPort,
    /// The local port.
    DownstreamLocalPort,
    /// `HTTP/1.1` or `HTTP/2`.
    Protocol,
    /// The server name in the client's hello.
    RequestedServerName,
    /// `%RESP(NAME?OTHER)%`: a header of the response, or else another one. Without a value in headers of requests.
    ResponseHeader(Box<str>, Option<Box<str>>),
    /// The time of the request's head in RFC 3339, with milliseconds.
    StartTime,
    /// The address and port of the endpoint. Like the following ones, without a value in headers of requests.
    UpstreamHost,
    /// The endpoint's address without the port.
    UpstreamHostWithoutPort,
    /// The local address and port towards the endpoint.
    UpstreamLocalAddress,
    /// The local address without the port.
    UpstreamLocalAddressWithoutPort,
    /// The name of the backend.
    UpstreamCluster,
}

/// The variables without arguments, by their names in Envoy.
const PLAIN: [(&str, Variable); 16] = [
    ("DOWNSTREAM_REMOTE_ADDRESS", Variable::DownstreamRemoteAddress),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Variable::DownstreamRemoteAddressWithoutPort),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Variable::DownstreamDirectRemoteAddress),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Variable::DownstreamDirectRemoteAddressWithoutPort),
    ("DOWNSTREAM_LOCAL_ADDRESS", Variable::DownstreamLocalAddress),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Variable::DownstreamLocalAddressWithoutPort),
    ("DOWNSTREAM_LOCAL_PORT", Variable::DownstreamLocalPort),
    ("PROTOCOL", Variable::Protocol),
    ("REQUESTED_SERVER_NAME", Variable::RequestedServerName),
    ("START_TIME", Variable::StartTime),
    ("UPSTREAM_HOST", Variable::UpstreamHost),
    // The address of the endpoint by its newer name.
    ("UPSTREAM_REMOTE_ADDRESS", Variable::UpstreamHost),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Variable::UpstreamHostWithoutPort),
    ("UPSTREAM_LOCAL_ADDRESS", Variable::UpstreamLocalAddress),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Variable::UpstreamLocalAddressWithoutPort),
    ("UPSTREAM_CLUSTER", Variable::UpstreamCluster),
];

impl HeaderText {
    /// The supported variables.
    pub(crate) const VARIABLES: &str = "%REQ(NAME)%, %RESP(NAME)%, %DOWNSTREAM_REMOTE_ADDRESS%, \
                                        %DOWNSTREAM_DIRECT_REMOTE_ADDRESS%, %DOWNSTREAM_LOCAL_ADDRESS%, \
                                        %UPSTREAM_REMOTE_ADDRESS%, %UPSTREAM_LOCAL_ADDRESS% (each address also with \
                                        _WITHOUT_PORT), %DOWNSTREAM_LOCAL_PORT%, %PROTOCOL%, %REQUESTED_SERVER_NAME%, \
                                        %START_TIME% and %UPSTREAM_CLUSTER%";

    /// Parses a text. `%%` is a percent sign.
    ///
    /// # Errors
    /// Returns an error for a percent sign that begins no variable, and for an unsupported variable.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            plain.push_str(before);
            let Some((name, after)) = after.split_once('%') else {
                return Err(format!("the '%' before '{after}' begins no variable"));
            };
            rest = after;
            if name.is_empty() {
                plain.push('%');
                continue;
            }
            let (variable, most) =
                variable(name).ok_or_else(|| format!("the variable '%{name}%' is not served"))?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
            }
            pieces.push(Piece::Variable(variable, most));
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain.into()));
        }
        Ok(Self(pieces.into()))
    }

    /// The text with the values of its variables. A variable without a value is empty. `None` if a text with
    /// variables becomes empty: the header is then not changed, as in Envoy.
    pub fn with(&self, value: impl Fn(&Variable) -> Option<String>) -> Option<Cow<'_, str>> {
        match &*self.0 {
            [] => return Some("".into()),
            [Piece::Text(text)] => return Some((&**text).into()),
            _ => {}
        }
        let mut whole = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => whole.push_str(text),
                Piece::Variable(variable, most) => {
                    let value = value(variable).unwrap_or_default();
                    whole.extend(value.chars().take(most.unwrap_or(usize::MAX)));
                }
            }
        }
        (!whole.is_empty()).then(|| whole.into())
    }
}

/// The text as written in a configuration.
impl fmt::Display for HeaderText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(&text.replace('%', "%%"))?,
                Piece::Variable(
                    variable @ (Variable::RequestHeader(name, other) | Variable::ResponseHeader(name, other)),
                    most,
                ) => {
                    let of = if matches!(variable, Variable::RequestHeader(..)) { "REQ" } else { "RESP" };
                    write!(f, "%{of}({name}")?;
                    other.iter().try_for_each(|other| write!(f, "?{other}"))?;
                    f.write_str(")")?;
                    most.iter().try_for_each(|most| write!(f, ":{most}"))?;
                    f.write_str("%")?;
                }
                Piece::Variable(variable, _) => {
                    let named = PLAIN.iter().find(|(_, known)| known == variable);
                    write!(f, "%{}%", named.map_or("", |(name, _)| name))?;
                }
            }
        }
        Ok(())
    }
}

/// A variable, and its maximum length if any.
fn variable(text: &str) -> Option<(Variable, Option<usize>)> {
    if let Some((_, variable)) = PLAIN.iter().find(|(name, _)| *name == text) {
        return Some((variable.clone(), None));
    }
    let (of, rest) = text.split_once('(')?;
    let make = match of {
        "REQ" => Variable::RequestHeader,
        "RESP" => Variable::ResponseHeader,
        _ => return None,
    };
    let (names, length) = rest.split_once(')')?;
    let most = match length {
        "" => None,
        length => Some(length.strip_prefix(':')?.parse().ok()?),
    };
    let (name, other) = match names.split_once('?') {
        Some((name, other)) => (name, Some(other)),
        None => (names, None),
    };
    let header = |name: &str| {
        let token = name.strip_prefix(':').unwrap_or(name);
        let good = !token.is_empty()
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        good.then(|| name.to_ascii_lowercase().into_boxed_str())
    };
    let other = match other {
        Some(other) => Some(header(other)?),
        None => None,
    };
    Some((make(header(name)?, other), most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(variable: &Variable) -> Option<String> {
        match variable {
            Variable::RequestHeader(name, _) if &**name == "x-a" => Some("abcdef".into()),
            Variable::RequestHeader(_, Some(other)) => Some(format!("other {other}")),
            Variable::Protocol => Some("HTTP/2".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_and_doubled_signs_are_one() {
        for (text, expected) in [
            ("plain", Some("plain")),
            ("", Some("")),
            ("100%%", Some("100%")),
            ("%PROTOCOL%", Some("HTTP/2")),
            ("a %REQ(X-A):3% b", Some("a abc b")),
            ("%REQ(x-b?X-C)%", Some("other x-c")),
            ("%REQ(x-b)%", None),
            ("%RESP(x-b?X-C):3%", None),
            ("%UPSTREAM_REMOTE_ADDRESS%%START_TIME%", None),
            ("%DOWNSTREAM_LOCAL_PORT%%%", Some("%")),
        ] {
            let parsed = HeaderText::parse(text).unwrap();
            assert_eq!(parsed.with(value).as_deref(), expected, "{text}");
            assert_eq!(HeaderText::parse(&parsed.to_string()).unwrap(), parsed, "{text}");
        }
    }

    #[test]
    fn a_sign_that_begins_no_variable_is_told() {
        for (text, fault) in [
            ("100%", "the '%' before '' begins no variable"),
            ("50% off", "the '%' before ' off' begins no variable"),
            ("%RESPONSE_FLAGS%", "the variable '%RESPONSE_FLAGS%' is not served"),
            ("%TRAILER(a)%", "the variable '%TRAILER(a)%' is not served"),
            ("%REQ(a b)%", "the variable '%REQ(a b)%' is not served"),
            ("%REQ(a):x%", "the variable '%REQ(a):x%' is not served"),
            ("%REQ(a?)%", "the variable '%REQ(a?)%' is not served"),
        ] {
            assert_eq!(HeaderText::parse(text).unwrap_err(), fault, "{text}");
        }
    }
}
