//! The closed sets of label values. A label is the variant's name in snake case unless it says otherwise.

use snisplice_config::model::Policy;
use strum::{Display, EnumCount, IntoStaticStr, VariantArray};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// What carried a connection; the `datapath` metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Carrier {
    /// Copied in userspace.
    Relay,
    /// Redirected in the kernel between sockets.
    Sockmap,
    /// Sent on in the kernel, packet by packet.
    Packet,
    /// Decrypted and encrypted here, and copied in userspace.
    Terminate,
}

/// How a connection ended, or why it was refused: the metric label `reason` of `connections_closed_total`, and of
/// `unrouted_total` the label `verdict`. `docs/close-reasons.md` says what an operator makes of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum CloseReason {
    /// Both sides sent FIN and every byte was delivered.
    Finished,
    /// The client sent RST.
    ClientReset,
    /// The backend sent RST.
    BackendReset,
    /// The client answered neither probes nor bytes any more.
    ClientLost,
    /// The backend answered neither probes nor bytes any more.
    BackendLost,
    /// No byte moved for `timeouts.idle`.
    IdleTimeout,
    /// One side had sent FIN, and no byte moved for `timeouts.half_closed`.
    HalfClosedTimeout,
    /// The connection lasted for `timeouts.max_duration`.
    MaxDuration,
    /// Its packets got through no more, and sockets could not go on with it.
    Stalled,
    /// Another process goes on with it.
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
    /// The head of an HTTP request was not complete within `timeouts.hello`.
    RequestTimeout,
    /// What the client sent is no HTTP, or could be read in two ways.
    BadRequest,
    /// The client sent too many frames of HTTP/2 that ask for nothing, or reset too many streams.
    Flood,
    /// As many TLS handshakes are under way as may be (`limits.handshakes`, `limits.handshakes_per_source`).
    HandshakeLimit,
    /// The TLS handshake was not complete within `timeouts.handshake`.
    HandshakeTimeout,
    /// Client and server have no version, protocol or message in common that the TLS handshake needs.
    HandshakeFailed,
    /// No certificate of the server fits what the client can verify.
    NoCertificate,
    /// The client has shown no certificate, or one that is not accepted.
    ClientCertificateRefused,
    /// A client's certificate was revoked.
    ClientCertificateRevoked,
    /// What the client sent inside TLS could not be decrypted, or was an alert.
    TlsFailed,
    /// The TLS handshake with the backend failed.
    BackendTlsFailed,
    /// The backend's TLS ended without a `close_notify`, so that its last bytes may be missing.
    BackendTruncated,
    /// The rule leads to a backend that the configuration does not have.
    BackendRejected,
    /// The backend has no endpoint with an address and a weight.
    NoEndpoint,
    /// The last endpoint that was tried refused the connection.
    ConnectRefused,
    /// The last endpoint that was tried did not answer within `timeouts.connect`.
    ConnectTimeout,
    /// The last endpoint that was tried could not be connected to for another cause.
    ConnectFailed,
    /// All local ports are in use towards the endpoint.
    NoLocalPort,
    /// No `source` of the backend is an address of this host.
    NoSourceAddress,
    /// The endpoint is a listener of this process.
    SelfLoop,
    /// This host has no descriptor or memory left for a socket to the endpoint.
    ResourceExhausted,
    /// This host has no resources left for the client's socket.
    NoResources,
    /// The client's source has as many connections as it may (`limits.connections_per_source`).
    SourceLimit,
    /// The hello was not complete when a newcomer needed its place (`limits.hellos`, `limits.connections`).
    HelloLimit,
    /// The backend has as many connections as it may (`max_connections`).
    BackendLimit,
    /// As many connections as may wait for an endpoint of the backend (`max_pending`).
    PendingLimit,
    /// The listener stopped before a place became free (`limits.connections`).
    ConnectionLimit,
    /// `deny` names the client's address.
    Denied,
    /// A reload removed the listener before the connection was served.
    ListenerRemoved,
    /// Somebody closed it on the admin address.
    ClosedByAdmin,
    /// The process ended before the connection did.
    Aborted,
}

/// Why an attempt to connect to an endpoint failed; the metric label `reason` of `connect_failures_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ConnectFailure {
    /// As [`CloseReason::ConnectRefused`].
    ConnectRefused,
    /// As [`CloseReason::ConnectTimeout`].
    ConnectTimeout,
    /// As [`CloseReason::ConnectFailed`].
    ConnectFailed,
    /// Another attempt was answered first, although this one had its head start.
    ConnectOvertaken,
    /// As [`CloseReason::NoLocalPort`].
    NoLocalPort,
    /// As [`CloseReason::NoSourceAddress`].
    NoSourceAddress,
    /// As [`CloseReason::SelfLoop`].
    SelfLoop,
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
            ConnectFailure::ResourceExhausted => Self::ResourceExhausted,
        }
    }
}

/// What was done with a client that no rule serves; the metric label `policy` of `unrouted_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum AppliedPolicy {
    /// Its connection was closed.
    Close,
    /// Its connection was reset.
    Reset,
    /// It was sent a TLS alert.
    Alert,
    /// It was connected to a backend all the same.
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

/// Why packets do not carry a connection, so that it is relayed. The metric label of `packet_refused_total`.
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
    /// One leg has negotiated timestamps, the other not.
    Timestamps,
    /// One leg has negotiated selective acknowledgements, the other not.
    Sack,
    /// A peer may send segments that are too large for the other leg.
    Mss,
    /// The kernel translates the addresses of a leg.
    Nat,
    /// Packets of a flow that had begun did not come by the program.
    Bypassed,
    /// Too many bytes are still to be delivered by our own sockets.
    Pending,
    /// All places for flows are taken.
    Full,
    /// Another flow of the same addresses is not over yet.
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
