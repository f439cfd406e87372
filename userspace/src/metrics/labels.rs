//! The closed sets of label values.

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the backend.
    Up,
    /// From the backend to the client.
    Down,
}

/// What carried a connection; the `datapath` metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Copied in userspace.
    Relay,
    /// Redirected in the kernel between sockets.
    Sockmap,
    /// Sent on in the kernel, packet by packet.
    Packet,
}

impl Carrier {
    /// Metric and log label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Sockmap => "sockmap",
            Self::Packet => "packet",
        }
    }
}

/// Why packets do not carry a connection, so that it is relayed. The metric label of `packet_refused_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketRefusal {
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

impl PacketRefusal {
    /// Every reason there is.
    pub const ALL: [Self; 13] = [
        Self::PeerClosed,
        Self::Family,
        Self::Local,
        Self::Device,
        Self::Timestamps,
        Self::Sack,
        Self::Mss,
        Self::Nat,
        Self::Bypassed,
        Self::Pending,
        Self::Full,
        Self::Busy,
        Self::Other,
    ];

    /// Metric and log label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer_closed",
            Self::Family => "family",
            Self::Local => "local",
            Self::Device => "device",
            Self::Timestamps => "timestamps",
            Self::Sack => "sack",
            Self::Mss => "mss",
            Self::Nat => "nat",
            Self::Bypassed => "bypassed",
            Self::Pending => "pending",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Other => "other",
        }
    }
}
