//! The immutable model that every configuration format becomes.
//!
//! Everything that is read while a connection is served is here, already validated and resolved as far as that
//! is possible without I/O: names are lower-cased, references are indexes, precedence is decided.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use crate::{
    admin::Admin,
    name::{HostName, HostPattern},
    networks::Networks,
    table::RouteTable,
};

/// One complete, valid configuration.
#[derive(Debug, Clone)]
pub struct Model {
    /// What to listen on; at least one, names unique, no address bound twice.
    pub listeners: Vec<Listener>,
    /// Everything a route can point at; [`BackendId`] is an index into this list.
    pub backends: Vec<Backend>,
    /// How many rules the listeners' tables hold in all; [`Rule::id`] is below it.
    pub rules: usize,
    /// What servers of foreign objects ask for that are not served, for [`crate::explain()`].
    pub claims: Vec<Claim>,
    /// Which datapath the operator asked for.
    pub datapath: DatapathKind,
    /// Where the process is asked how it is.
    pub admin: Admin,
    /// Sizes and counts that bound what one client can cost.
    pub limits: Limits,
    /// When `auto` moves a direction into the kernel.
    pub handover: Handover,
    /// Whether connections that are carried in packets outlive the process, unless it is asked to stop.
    pub survive: bool,
    /// Clients that are not served: their connections are reset, when they come and when they are there already.
    pub deny: Networks,
    /// How long each phase of a connection may take.
    pub timeouts: Timeouts,
    /// How the names of endpoints are resolved.
    pub dns: Dns,
}

/// How the names of endpoints are resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers, asked in this order, instead of those in `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
}

/// Names that a server asks for which is not served.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The names.
    pub pattern: HostPattern,
    /// The port of the server, as the configuration has it.
    pub port: u16,
    /// Which server, as `Gateway namespace/name servers[0]`.
    pub by: String,
    /// Where it was written.
    pub origin: Origin,
}

/// One named set of addresses and the routes reachable through it.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Unique name; a metric label.
    pub name: String,
    /// Where it was written.
    pub origin: Origin,
    /// Addresses to bind, IPv4 and IPv6. `[::]` means IPv6 alone (`IPV6_V6ONLY`): IPv4 has an address of its own.
    pub bind: Vec<SocketAddr>,
    /// Largest segment to announce to clients, in bytes without options (`TCP_MAXSEG`).
    pub mss: Option<u16>,
    /// Whether addresses are bound that this host does not have yet (`IP_FREEBIND`, ip(7)).
    pub freebind: bool,
    /// Whether the configuration names no address: a family that the kernel lacks is left out then.
    pub any_address: bool,
    /// The ports as the configuration has them, which is what routes and `explain --port` mean; they differ from
    /// those in `bind` where `--listen` moved them.
    pub ports: Vec<u16>,
    /// Which rule serves which server name.
    pub routes: RouteTable,
    /// What happens to a connection that no rule serves, by verdict.
    pub policies: Policies,
}

/// What to do with a connection for each way a hello can fail to name a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// A valid hello without the `server_name` extension (and no `*` rule).
    pub no_sni: Policy,
    /// A valid hello whose name no rule serves.
    pub unknown_name: Policy,
    /// The first bytes are not a TLS handshake record.
    pub not_tls: Policy,
    /// TLS, but not a valid `ClientHello`.
    pub malformed: Policy,
    /// The hello is longer than [`Limits::hello_bytes`].
    pub too_large: Policy,
    /// The hello was not complete within [`Timeouts::hello`].
    pub timeout: Policy,
}

impl Policies {
    /// Each verdict by its name in the configuration, with its policy.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Policy)> {
        let Self { no_sni, unknown_name, not_tls, malformed, too_large, timeout } = *self;
        [
            ("no_sni", no_sni),
            ("unknown_name", unknown_name),
            ("not_tls", not_tls),
            ("malformed", malformed),
            ("too_large", too_large),
            ("timeout", timeout),
        ]
        .into_iter()
    }
}

/// How to end, or where to send, a connection without a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// FIN without a byte. The default: Gateway API conformance counts only EOF or RST as a rejection.
    #[default]
    Close,
    /// RST.
    Reset,
    /// A fatal TLS alert (`unrecognized_name` and so on, RFC 8446 section 6.2), then FIN.
    Alert,
    /// Pass the bytes on to this backend all the same.
    Backend(BackendId),
}

/// Index into [`Model::backends`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub usize);

/// A named group of endpoints that serve the same thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backend {
    /// Unique name; a metric label. For Istio destinations `host:port`.
    pub name: String,
    /// Where it can be reached; may be empty, then connections are rejected.
    pub endpoints: Vec<Endpoint>,
    /// Source addresses for the connection to the endpoint, used in turn; empty lets the kernel choose.
    pub source: Vec<IpAddr>,
    /// Whether what it sends may take the short cut, where it is on this host and the kernel allows it.
    pub same_host: bool,
    /// Connections to it at once; `None` is no limit. Further ones are refused.
    pub max_connections: Option<usize>,
    /// Connections at once that wait for one of its endpoints to answer; 0 is no limit. See [`Limits::pending`] for the
    /// default.
    pub max_pending: Option<usize>,
}

/// One address of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Literal address, or a name that userspace resolves.
    pub host: EndpointHost,
    /// TCP port, never 0.
    pub port: u16,
    /// Share among its siblings; 0 receives nothing.
    pub weight: u32,
}

/// Where an endpoint lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointHost {
    /// A literal address.
    Ip(IpAddr),
    /// To be resolved by DNS.
    Dns(HostName),
}

/// What a matched name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Dense index over all rules of one model, from 0 to [`Model::rules`]; what changes while the configuration
    /// serves (counters, the turn of the round robin) is kept beside the model under it.
    pub id: usize,
    /// What people call it: `route NAME` or `VirtualService namespace/name tls[0]`; a metric label.
    pub name: String,
    /// Where it was written.
    pub origin: Origin,
    /// Where its connections go, in proportion to the weights; never empty.
    pub targets: Vec<Target>,
}

/// One weighted destination of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Share among its siblings. A sum of 0 over a rule rejects its connections.
    pub weight: u32,
    /// Where to go; `None` is a destination that cannot be served, which rejects its share of connections.
    pub backend: Option<BackendId>,
}

impl Target {
    /// The largest weight in a configuration, the one that the Gateway API allows: sums stay far from overflow.
    pub const MAX_WEIGHT: u32 = 1_000_000;
}

/// The place in a file that something came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
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

    /// Connections that may wait at once for an endpoint of a backend without [`Backend::max_pending`]. An eighth of all
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
