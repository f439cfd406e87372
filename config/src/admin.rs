//! The addresses of the admin endpoint.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;

/// The prefix of the path of a unix socket.
const UNIX: &str = "unix:";

/// The greatest length of a unix socket's path, in bytes (`sun_path` less the final zero, unix(7)).
const LONGEST_PATH: usize = 107;

/// An address for HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// The absolute path of a unix socket.
    Unix(PathBuf),
}

impl AdminAddress {
    /// The TCP address, if it is one.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

/// The reason for which a text is not an [`AdminAddress`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AdminAddressError {
    /// The text has neither form.
    #[error("neither IP:PORT nor unix:/PATH")]
    Neither,
    /// The path depends on the working directory.
    #[error("the path of a unix socket must be absolute, such as unix:/run/snisplice/admin.sock")]
    Relative,
    /// The path is too long for the kernel.
    #[error("the path of a unix socket has at most {LONGEST_PATH} bytes")]
    TooLong,
}

impl FromStr for AdminAddress {
    type Err = AdminAddressError;

    fn from_str(text: &str) -> Result<Self, AdminAddressError> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return text.parse().map(Self::Tcp).map_err(|_| AdminAddressError::Neither);
        };
        if !Path::new(path).is_absolute() || path.ends_with('/') {
            return Err(AdminAddressError::Relative);
        }
        if path.len() > LONGEST_PATH {
            return Err(AdminAddressError::TooLong);
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl From<SocketAddr> for AdminAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in ["127.0.0.1:9900", "[::1]:9900", "unix:/run/snisplice/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, error) in [
            ("localhost:9900", AdminAddressError::Neither),
            ("127.0.0.1", AdminAddressError::Neither),
            ("", AdminAddressError::Neither),
            ("unix:", AdminAddressError::Relative),
            ("unix:admin.sock", AdminAddressError::Relative),
            ("unix:/run/", AdminAddressError::Relative),
            (&long, AdminAddressError::TooLong),
        ] {
            assert_eq!(text.parse::<AdminAddress>(), Err(error), "{text}");
        }
        assert!(long[..long.len() - 1].parse::<AdminAddress>().is_ok());
    }
}
