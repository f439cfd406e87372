//! Settings of the command line that override the files.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use crate::name::{HostName, NameError};

/// Overrides for every load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The addresses of destinations, before a `ServiceEntry` and DNS.
    pub resolve: Vec<Resolve>,
    /// The addresses of listener ports, instead of the configured ones.
    pub listen: Vec<Listen>,
    /// The namespace that a gateway's workload would have in a cluster, for `exportTo`. Without one, objects that are
    /// exported to any namespace are admitted.
    pub namespace: Option<String>,
    /// The labels that a gateway's workload would have in a cluster. A `Gateway` whose selector needs other labels is
    /// skipped. Without labels, every `Gateway` is served.
    pub selector: Vec<Label>,
    /// The location of certificates and keys, instead of the setting `secrets`.
    pub secrets: Option<PathBuf>,
}

/// `HOST:PORT:ADDR[,ADDR]...`, the notation of curl's `--resolve`.
///
/// `HOST` is a name or `*` for any name. `ADDR` is an IPv4 or IPv6 address. An IPv6 address may have brackets. Unlike
/// in curl, `ADDR:PORT` and `[ADDR]:PORT` also replace the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// The name of a destination or endpoint. `None` is `*`.
    pub host: Option<HostName>,
    /// The port of the destination or endpoint.
    pub port: u16,
    /// The addresses to connect to instead. Never empty.
    pub addresses: Vec<SocketAddr>,
}

impl FromStr for Resolve {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (Some((host, rest)), shape) = (text.split_once(':'), OptionError::ResolveShape) else {
            return Err(OptionError::ResolveShape);
        };
        let (port, addresses) = rest.split_once(':').ok_or(shape)?;
        let host = match host {
            "*" => None,
            name => Some(HostName::parse(name).map_err(|why| OptionError::Host(name.into(), why))?),
        };
        let port = nonzero_port(port)?;
        let addresses = addresses.split(',').map(|text| address(text, port)).collect::<Result<_, _>>()?;
        Ok(Self { host, port, addresses })
    }
}

impl std::fmt::Display for Resolve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}:{}:", self.port)?,
            None => write!(f, "*:{}:", self.port)?,
        }
        for (index, address) in self.addresses.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if address.port() == self.port {
                write!(f, "{comma}{}", address.ip())?;
            } else {
                write!(f, "{comma}{address}")?;
            }
        }
        Ok(())
    }
}

/// `PORT=IP:PORT`: the listener with the port on the left is bound to the address on the right. Routes still refer to
/// the port on the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The port in the configuration.
    pub port: u16,
    /// The address to bind. With port 0 the kernel chooses the port.
    pub address: SocketAddr,
}

impl FromStr for Listen {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (port, address) = text.split_once('=').ok_or(OptionError::ListenShape)?;
        let address = address.parse().map_err(|_| OptionError::ListenShape)?;
        Ok(Self { port: nonzero_port(port)?, address })
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.port, self.address)
    }
}

/// `KEY=VALUE`, a label of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The part before the `=`, never empty.
    pub key: String,
    /// The part after the `=`.
    pub value: String,
}

impl FromStr for Label {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.into(), value: value.into() }),
            _ => Err(OptionError::LabelShape),
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// The reason for which an argument of the command line is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not of the form `HOST:PORT:ADDR`.
    #[error("expected HOST:PORT:ADDR[,ADDR]..., for example shop.example.com:443:10.0.0.7")]
    ResolveShape,
    /// Not of the form `PORT=IP:PORT`.
    #[error("expected PORT=IP:PORT, for example 443=127.0.0.1:10443 or 443=[::1]:10443")]
    ListenShape,
    /// Not of the form `KEY=VALUE`.
    #[error("expected KEY=VALUE, for example istio=ingressgateway")]
    LabelShape,
    /// The host of `--resolve` is no name.
    #[error("'{0}' is not a host name: {1}")]
    Host(String, NameError),
    /// Not a port.
    #[error("'{0}' is not a port from 1 to 65535")]
    Port(String),
    /// Not an address.
    #[error("'{0}' is not an IP address (with a port it is written 10.0.0.7:8443 or [fd00::7]:8443)")]
    Address(String),
}

fn nonzero_port(text: &str) -> Result<u16, OptionError> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(OptionError::Port(text.into())),
    }
}

fn address(text: &str, port: u16) -> Result<SocketAddr, OptionError> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(ip) = bracketed.and_then(|ip| ip.parse::<Ipv6Addr>().ok()) {
        return Ok(SocketAddr::new(ip.into(), port));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(OptionError::Address(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolve_takes_what_curl_takes_and_a_port() {
        for (text, host, addresses) in [
            ("a.example:443:10.0.0.1", Some("a.example"), &["10.0.0.1:443"][..]),
            ("A.example.:443:10.0.0.1", Some("a.example."), &["10.0.0.1:443"]),
            ("*:443:::1", None, &["[::1]:443"]),
            ("a:443:[::1],127.0.0.1", Some("a"), &["[::1]:443", "127.0.0.1:443"]),
            ("a:443:127.0.0.1:8443", Some("a"), &["127.0.0.1:8443"]),
            ("a:443:[::1]:8443,::2", Some("a"), &["[::1]:8443", "[::2]:443"]),
        ] {
            let resolve: Resolve = text.parse().unwrap();
            assert_eq!(resolve.host.as_ref().map(HostName::as_str), host, "{text}");
            let expected: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(resolve.addresses, expected, "{text}");
            assert_eq!(resolve.to_string().parse(), Ok(resolve), "{text} prints as it parses");
        }
    }

    #[test]
    fn what_is_no_option_says_why() {
        for text in ["", "a", "a:443", "a:443:", "a:0:1.2.3.4", "a:x:1.2.3.4", "a b:443:1.2.3.4", "a:443:b"] {
            assert!(text.parse::<Resolve>().is_err(), "{text}");
        }
        assert!("a:443:1.2.3.4:0".parse::<Resolve>().is_err());
        assert_eq!("443=127.0.0.1:10443".parse::<Listen>().unwrap().to_string(), "443=127.0.0.1:10443");
        for text in ["", "443", "443=10443", "0=1.2.3.4:1", "x=1.2.3.4:1"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }
}
