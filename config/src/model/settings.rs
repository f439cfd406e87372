//! Settings that belong to no object.

use std::{net::SocketAddr, time::Duration};

/// How the names of endpoints are resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers, asked in this order, instead of those in `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
}

/// Which datapath the operator asked for; what is built in the end may be another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DatapathKind {
    /// The fastest one whose probes pass on this kernel.
    #[default]
    Auto,
    /// In the kernel from the first byte; refuses to start where the probes fail.
    Sockmap,
    /// In the kernel, by rewriting the headers of packets, for connections that allow it; a copy for the others.
    /// Refuses to start where the probes fail.
    Packet,
    /// A copy in userspace: no privilege needed.
    Relay,
}

/// Sizes and counts that bound what one client can cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest accepted `ClientHello`, records included; 512 to 65,536 bytes.
    pub hello_bytes: usize,
    /// Connections served at once over all listeners; further ones wait in the backlog.
    pub connections: usize,
    /// Connections at once from one source: an address, or all addresses of one prefix; 0 is no limit. See
    /// [`Limits::per_source`] for the default.
    pub connections_per_source: Option<usize>,
    /// Leading bits of an IPv4 address that make a source; 0 to 32.
    pub source_prefix_ipv4: u8,
    /// Leading bits of an IPv6 address that make a source; 0 to 128. Who is given a network is given 64 bits at least
    /// (RFC 6177), and may use them all.
    pub source_prefix_ipv6: u8,
    /// Connections at once whose hello is not complete; one more ends the oldest silent one. See
    /// [`Limits::unfinished_hellos`] for the default.
    pub hellos: Option<usize>,
    /// Worker threads; 0 is one for each core.
    pub workers: usize,
    /// Bytes one direction may hold in the kernel between the two sockets before the sender is slowed down.
    pub in_flight_bytes: u32,
    /// Bytes that all directions together may hold so.
    pub total_in_flight_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_bytes: 16 * 1024,
            connections: 8_192,
            connections_per_source: None,
            source_prefix_ipv4: 32,
            source_prefix_ipv6: 64,
            hellos: None,
            workers: 0,
            in_flight_bytes: 1024 * 1024,
            total_in_flight_bytes: 256 * 1024 * 1024,
        }
    }
}

impl Limits {
    /// Connections that one source may have at once; `None` is no limit. Half of all places unless it is written, so
    /// that no source can keep another one out.
    #[must_use]
    pub fn per_source(&self) -> Option<usize> {
        match self.connections_per_source {
            None => Some((self.connections / 2).max(Self::FEW)),
            Some(0) => None,
            most => most,
        }
    }

    /// Connections whose hello may be incomplete at once. A quarter of all places unless it is written.
    #[must_use]
    pub fn unfinished_hellos(&self) -> usize {
        self.hellos.unwrap_or_else(|| (self.connections / 4).max(Self::FEW))
    }

    /// Connections that may wait at once for an endpoint of a backend without [`Backend::max_pending`](super::Backend::max_pending). An eighth of all
    /// places: 1,024 by default, as in Envoy (`max_pending_requests`).
    #[must_use]
    pub fn pending(&self) -> usize {
        (self.connections / 8).max(Self::FEW)
    }

    /// So many connections are let in whatever share of few places that would be: a limit that follows from another
    /// one shall not refuse two clients that come at the same moment.
    pub const FEW: usize = 16;
}

/// What a direction must have moved in userspace before `auto` moves it into the kernel, of which either is enough; and
/// how it moves on there.
///
/// The defaults are where it begins to pay: see docs/internals/sockmap.md, "When the kernel takes over".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handover {
    /// Bytes.
    pub bytes: u64,
    /// Messages: times that something was read and written.
    pub messages: u32,
    /// Whether a connection goes over to packets where it allows that; the others are redirected.
    pub packet: bool,
}

impl Default for Handover {
    fn default() -> Self {
        Self { bytes: 512 * 1024, messages: 16, packet: true }
    }
}

/// How long each phase of a connection may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From accept to the complete hello.
    pub hello: Duration,
    /// From the hello to a connection with an endpoint, however many are tried.
    pub connect: Duration,
    /// Without a byte in either direction. Until the backend has sent one, also without a byte from it: a client alone
    /// keeps no connection open.
    pub idle: Duration,
    /// Without a byte of the side that still speaks, after the other one has sent FIN; [`Self::idle`] where that is
    /// shorter. Like `timeout client-fin` and `server-fin` of `HAProxy`.
    pub half_closed: Duration,
    /// Of silence of either peer before it is probed (`SO_KEEPALIVE`); zero never probes.
    pub keepalive: Duration,
    /// In which a peer must acknowledge what it was sent, or a probe (`TCP_USER_TIMEOUT`, RFC 5482); zero leaves it to
    /// the kernel. It also ends a peer that answers but has taken nothing for so long.
    pub unacknowledged: Duration,
    /// From accept to the end, however much is moved; zero is for ever.
    pub max_duration: Duration,
    /// From SIGTERM to the end of the last connection.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(3600),
            half_closed: Duration::from_secs(300),
            keepalive: Duration::from_secs(60),
            unacknowledged: Duration::ZERO,
            max_duration: Duration::ZERO,
            drain: Duration::from_secs(30),
        }
    }
}
