//! The cells of the kind `terminate`: the contestant terminates TLS and forwards HTTP requests without TLS.

use super::{Cell, Extent, Work, size_name};
use crate::{
    contestants::{ECDSA_NAME, RSA_NAME},
    load::web::keys::Version,
};

/// The kind of handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshakes {
    /// Full ones, with an ECDSA P-256 certificate.
    Ecdsa,
    /// Full ones, with an RSA 2048 certificate.
    Rsa,
    /// Sessions resumed with tickets of TLS 1.3, with a new key exchange (`psk_dhe_ke`).
    Resumed,
}

impl Handshakes {
    /// The name with such a certificate.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ecdsa | Self::Resumed => ECDSA_NAME,
            Self::Rsa => RSA_NAME,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Ecdsa => "full ECDSA P-256",
            Self::Rsa => "full RSA 2048",
            Self::Resumed => "resumed",
        }
    }
}

/// The work of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminate {
    /// Handshake, one request, close, with this concurrency.
    Handshake { handshakes: Handshakes, at_once: usize },
    /// Requests on persistent connections, with responses of `size` bytes.
    Request { version: Version, size: u32, connections: usize },
    /// Endless responses on this number of connections.
    Download { streams: usize },
    /// Connections held after one request.
    Idle { version: Version, connections: usize },
}

impl Terminate {
    /// Whether the backend can do it without a balancer: it terminates TLS itself, but supports only HTTP/1.1.
    pub(crate) fn applies_to_direct(self) -> bool {
        !matches!(
            self,
            Self::Request { version: Version::Http2, .. } | Self::Idle { version: Version::Http2, .. }
        )
    }

    fn cell(self) -> Cell {
        let name = match self {
            Self::Handshake { handshakes, at_once } => format!("{} x {at_once}", handshakes.title()),
            Self::Request { version, size, connections } => {
                format!("{} {} x {connections}", title(version), size_name(size))
            }
            Self::Download { streams } => format!("down x {streams}"),
            Self::Idle { version, connections } => format!("{connections} idle {}", title(version)),
        };
        Cell::new(name, Work::Terminate(self))
    }
}

fn title(version: Version) -> &'static str {
    match version {
        Version::Http1 => "h1",
        Version::Http2 => "h2",
    }
}

/// The rows. Memory comes first, because it is best measured on a fresh process.
pub(super) fn cells(extent: Extent) -> Vec<Cell> {
    use Version::{Http1, Http2};
    const KB: u32 = 1 << 10;
    let idle = |version, connections| Terminate::Idle { version, connections };
    let handshake = |handshakes, at_once| Terminate::Handshake { handshakes, at_once };
    let request = |version, size, connections| Terminate::Request { version, size, connections };
    let all = match extent {
        Extent::Full => {
            let mut all = vec![
                idle(Http1, 2000),
                idle(Http2, 2000),
                handshake(Handshakes::Ecdsa, 32),
                handshake(Handshakes::Rsa, 32),
                handshake(Handshakes::Resumed, 32),
            ];
            for version in [Http1, Http2] {
                for size in [KB, 16 * KB] {
                    all.extend([32, 256].map(|connections| request(version, size, connections)));
                }
            }
            all.extend([1, 8].map(|streams| Terminate::Download { streams }));
            all
        }
        Extent::Quick => vec![
            idle(Http1, 1000),
            handshake(Handshakes::Ecdsa, 32),
            handshake(Handshakes::Resumed, 32),
            request(Http1, KB, 32),
            request(Http2, KB, 32),
            Terminate::Download { streams: 8 },
        ],
        Extent::Smoke => vec![
            idle(Http2, 20),
            handshake(Handshakes::Rsa, 4),
            handshake(Handshakes::Resumed, 4),
            request(Http1, 16 * KB, 4),
            request(Http2, 16 * KB, 4),
            Terminate::Download { streams: 2 },
        ],
    };
    all.into_iter().map(Terminate::cell).collect()
}
