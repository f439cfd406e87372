//! The closed sets of label values. A label is the variant's name in snake case, unless the variant says otherwise.

use snisplice_config::model::Policy;
use strum::{Display, EnumCount, IntoStaticStr, VariantArray};

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// The datapath that forwarded a connection: the metric label `datapath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Carrier {
    /// Copied in userspace.
    Relay,
    /// Redirected in the kernel between sockets.
    Sockmap,
    /// Forwarded in the kernel, packet by packet.
    Packet,
    /// Decrypted and encrypted in userspace.
    Terminate,
}

/// The reason for the end or refusal of a connection. It is the metric label `reason` of `connections_closed_total`,
/// and the label `verdict` of `unrouted_total`. `docs/close-reasons.md` explains each one for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum CloseReason {
    /// Both sides sent FIN and every byte was delivered.
    Finished,
    /// The client sent RST.
    ClientReset,
    /// The backend sent RST.
    BackendReset,
    /// The client no longer replied to probes or acknowledged bytes.
    ClientLost,
    /// The backend no longer replied to probes or acknowledged bytes.
    BackendLost,
    /// No byte moved for `timeouts.idle`.
    IdleTimeout,
    /// One side had sent FIN, and no byte moved for `timeouts.half_closed`.
    HalfClosedTimeout,
    /// The connection lasted for `timeouts.max_duration`.
    MaxDuration,
    /// The packets of the connection no longer arrived, and a move back to sockets was impossible.
    Stalled,
    /// Another process continues the connection.
    HandedOver,
    /// A socket failed in another way.
    IoError,
    /// The client closed or reset before it was connected to an endpoint.
    ClientGone,
    /// The hello has no server name, and no rule serves such clients.
    NoSni,
    /// No rule serves the server name.
    UnknownName,
    /// The client does not speak TLS.
    NotTls,
    /// The hello is not well-formed.
    Malformed,
    /// The hello is longer than `limits.hello_bytes`.
    TooLarge,
    /// The hello was not complete within `timeouts.hello`.
    HelloTimeout,
    /// The listener requires PROXY headers, and the client is none of its proxies.
    ProxyUntrusted,
    /// The client's connection begins without the required PROXY header.
    ProxyHeaderMissing,
    /// The PROXY header has an error.
    ProxyHeaderMalformed,
    /// The PROXY header is longer than 16 KiB.
    ProxyHeaderTooLarge,
    /// The PROXY header was not complete within `timeouts.hello`.
    ProxyHeaderTimeout,
    /// The head of an HTTP request was not complete within `timeouts.hello`.
    RequestTimeout,
    /// The client's bytes are not HTTP, or are ambiguous.
    BadRequest,
    /// The client sent too many HTTP/2 frames without effect, or reset too many streams.
    Flood,
    /// The limit of concurrent TLS handshakes is reached (`limits.handshakes`, `limits.handshakes_per_source`).
    HandshakeLimit,
    /// The TLS handshake was not complete within `timeouts.handshake`.
    HandshakeTimeout,
    /// Client and server have no common TLS version, protocol or algorithm, or the handshake has an invalid message.
    HandshakeFailed,
    /// The client can verify none of the server's certificates.
    NoCertificate,
    /// The client sent no certificate, or one that is not accepted.
    ClientCertificateRefused,
    /// A client's certificate was revoked.
    ClientCertificateRevoked,
    /// The client's TLS records could not be decrypted, or contained an alert.
    TlsFailed,
    /// The TLS handshake with the backend failed.
    BackendTlsFailed,
    /// The backend's TLS ended without a `close_notify`, so that its last bytes may be missing.
    BackendTruncated,
    /// The rule names a backend that the configuration does not have.
    BackendRejected,
    /// The backend has no endpoint with an address and a weight.
    NoEndpoint,
    /// A dynamic backend forwards to the requested name, and the hello has none.
    NoRequestedName,
    /// The requested name could not be resolved.
    NameUnresolved,
    /// Too many requested names are looked up.
    NameLimit,
    /// The last attempted endpoint refused the connection.
    ConnectRefused,
    /// The last attempted endpoint did not answer within `timeouts.connect`.
    ConnectTimeout,
    /// The connection to the last attempted endpoint failed for another reason.
    ConnectFailed,
    /// All local ports are in use towards the endpoint.
    NoLocalPort,
    /// No `source` of the backend is an address of this host.
    NoSourceAddress,
    /// The endpoint is a listener of this process.
    SelfLoop,
    /// The requested name leads to an address that a dynamic backend must not reach.
    AddressRefused,
    /// This host has no descriptor or memory left for a socket to the endpoint.
    ResourceExhausted,
    /// This host has no resources left for the client's socket.
    NoResources,
    /// The client's source is at its limit of connections (`limits.connections_per_source`).
    SourceLimit,
    /// The client's source opens connections faster than it may (`limits.connection_rate_per_source`).
    SourceRate,
    /// The listener is at its limit of connections (`max_connections`).
    ListenerLimit,
    /// Connections of the listener begin faster than they may (`connection_rate`).
    ListenerRate,
    /// The route is at its limit of connections (`max_connections`).
    RouteLimit,
    /// Connections of the route begin faster than they may (`connection_rate`).
    RouteRate,
    /// The hello was incomplete when a new client needed the slot (`limits.hellos`, `limits.hellos_per_source`,
    /// `limits.connections`).
    HelloLimit,
    /// The backend is at its limit of connections (`max_connections`).
    BackendLimit,
    /// The backend is at its limit of connections that wait for an endpoint (`max_pending`).
    PendingLimit,
    /// The listener stopped before a slot became free (`limits.connections`).
    ConnectionLimit,
    /// `deny`, or the source rules of the listener, do not admit the client's address.
    Denied,
    /// The source rules of the route do not admit the client's address.
    RouteDenied,
    /// A reload removed the listener before the connection was served.
    ListenerRemoved,
    /// An operator closed the connection through the admin address.
    ClosedByAdmin,
    /// The process ended before the connection.
    Aborted,
}

/// The reason for a failed attempt to connect to an endpoint: the metric label `reason` of `connect_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ConnectFailure {
    /// As [`CloseReason::ConnectRefused`].
    ConnectRefused,
    /// As [`CloseReason::ConnectTimeout`].
    ConnectTimeout,
    /// As [`CloseReason::ConnectFailed`].
    ConnectFailed,
    /// Another attempt succeeded first, after this one had exceeded its head start.
    ConnectOvertaken,
    /// As [`CloseReason::NoLocalPort`].
    NoLocalPort,
    /// As [`CloseReason::NoSourceAddress`].
    NoSourceAddress,
    /// As [`CloseReason::SelfLoop`].
    SelfLoop,
    /// As [`CloseReason::AddressRefused`].
    AddressRefused,
    /// As [`CloseReason::ResourceExhausted`].
    ResourceExhausted,
}

impl From<ConnectFailure> for CloseReason {
    fn from(failure: ConnectFailure) -> Self {
        match failure {
            ConnectFailure::ConnectRefused => Self::ConnectRefused,
            // An endpoint that another one overtakes was silent for too long.
            ConnectFailure::ConnectTimeout | ConnectFailure::ConnectOvertaken => Self::ConnectTimeout,
            ConnectFailure::ConnectFailed => Self::ConnectFailed,
            ConnectFailure::NoLocalPort => Self::NoLocalPort,
            ConnectFailure::NoSourceAddress => Self::NoSourceAddress,
            ConnectFailure::SelfLoop => Self::SelfLoop,
            ConnectFailure::AddressRefused => Self::AddressRefused,
            ConnectFailure::ResourceExhausted => Self::ResourceExhausted,
        }
    }
}

/// The PROXY header of a client: the metric label `header` of `proxy_headers_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ProxyHeader {
    /// Version 1 with the client's address.
    V1,
    /// Version 2 with the client's address.
    V2,
    /// A header without the client's address, such as `LOCAL` and `UNKNOWN`.
    Local,
    /// A trusted proxy sent no header.
    None,
}

/// The policy applied to a client that no rule serves: the metric label `policy` of `unrouted_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum AppliedPolicy {
    /// The connection was closed.
    Close,
    /// The connection was reset.
    Reset,
    /// The client got a TLS alert.
    Alert,
    /// The client was connected to the policy's backend.
    Backend,
}

impl From<Policy> for AppliedPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Close => Self::Close,
            Policy::Reset => Self::Reset,
            Policy::Alert => Self::Alert,
            Policy::Backend(_) => Self::Backend,
        }
    }
}

/// The reason for which the relay, and not the packet datapath, forwards a connection: the metric label of
/// `packet_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, IntoStaticStr, VariantArray, EnumCount)]
#[strum(serialize_all = "snake_case")]
pub enum PacketIneligible {
    /// One of the peers has already sent FIN or RST.
    PeerClosed,
    /// One leg is IPv4, the other IPv6.
    Family,
    /// A peer is on this host and in this network namespace.
    Local,
    /// A device has no Ethernet headers, or the programs cannot be attached to it.
    Device,
    /// Only one leg has negotiated timestamps.
    Timestamps,
    /// Only one leg has negotiated selective acknowledgements.
    Sack,
    /// A peer may send segments that are too large for the other leg.
    Mss,
    /// The kernel translates the addresses of a leg.
    Nat,
    /// Packets of an offloaded flow bypassed the program.
    Bypassed,
    /// The balancer's sockets have too many bytes left to deliver.
    Pending,
    /// All flow slots are taken.
    Full,
    /// Another flow with the same addresses has not ended yet.
    Busy,
    /// Anything else.
    Other,
}

impl Direction {
    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

impl Carrier {
    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

impl CloseReason {
    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

impl ConnectFailure {
    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

impl AppliedPolicy {
    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

impl PacketIneligible {
    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels in the first column of a table.
    fn first_column(text: &str) -> Vec<&str> {
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
    }

    #[test]
    fn the_documented_reasons_are_those_that_there_are() {
        let documented = first_column(include_str!("../../../docs/close-reasons.md"));
        let reasons: Vec<_> = CloseReason::VARIANTS.iter().map(|reason| reason.label()).collect();
        let failures = ConnectFailure::VARIANTS.iter().map(|failure| failure.label());
        assert_eq!(documented, reasons.into_iter().chain(failures).collect::<Vec<_>>());
    }

    #[test]
    fn no_two_reasons_have_one_label() {
        let labels: std::collections::HashSet<_> =
            CloseReason::VARIANTS.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), CloseReason::VARIANTS.len());
    }
}
