//! The immutable model that every configuration format becomes.
//!
//! Everything that is read while a connection is served is here, already validated and resolved as far as that
//! is possible without I/O: names are lower-cased, references are indexes, precedence is decided.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use self::{
    balancing::{LoadBalancing, SourceAffinity},
    health::Health,
    http::{BackendHttp, PlainHttp},
    route_table::RouteTable,
    secret::Secret,
    termination::{SecretName, UpstreamTls},
};
pub use self::{
    route::{BackendId, Origin, Route, Target},
    rule::Rule,
    settings::{
        AccessLog, AccessLogFormat, Admin, Capacity, DatapathKind, Dns, Flows, Http, Limits, Offload,
        PeerTimeouts, Runtime, Startup, Timeouts,
    },
};
use crate::name::{HostName, HostPattern};

pub mod balancing;
pub(crate) mod cipher_suites;
pub mod health;
pub mod http;
pub mod rank;
pub mod route;
pub mod route_table;
pub mod rule;
pub mod secret;
pub mod settings;
pub mod termination;

/// One complete, valid configuration.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// What to listen on; at least one, names unique, no address bound twice.
    pub listeners: Vec<Listener>,
    /// Everything a route can point at; [`BackendId`] is an index into this list.
    pub backends: Vec<Backend>,
    /// How many rules the listeners' tables hold in all; [`Route::id`] is below it.
    pub rules: usize,
    /// How many ways of ending TLS there are; [`Termination::id`](termination::Termination::id) is below it.
    pub terminations: usize,
    /// The `Secret` objects of the files that a termination or a backend names; see [`Model::secret`].
    pub secrets: Vec<Secret>,
    /// What servers of foreign objects ask for that are not served, for [`crate::explain()`].
    pub claims: Vec<Claim>,
    /// What is fixed when the process starts.
    pub startup: Startup,
    /// What follows a reload, beside listeners, routes and backends.
    pub runtime: Runtime,
}

impl Model {
    /// The `Secret` object of the files that a name means: that of its namespace, else the only one of the name in any
    /// namespace. What is not among the files may be in the secrets directory.
    #[must_use]
    pub fn secret(&self, name: &SecretName) -> Option<&Secret> {
        secret::find(self.secrets.iter(), name)
    }
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
    /// What serves connections that begin with an HTTP request instead of a TLS record.
    pub plain_http: Option<PlainHttp>,
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
    /// How its connections are spread over its endpoints.
    pub load_balancing: LoadBalancing,
    /// Whether a client's further connections go to the endpoint of its first one.
    pub affinity: Option<SourceAffinity>,
    /// How long connecting to its endpoints may take in all; `None` is [`Timeouts::connect`].
    pub connect_timeout: Option<Duration>,
    /// TLS towards it, for what is terminated here; passthrough takes no notice of it.
    pub tls: Option<Arc<UpstreamTls>>,
    /// The version of HTTP to speak to it, for what is HTTP here.
    pub http: BackendHttp,
    /// Which of its endpoints are used.
    pub health: Health,
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
    /// Endpoints of a higher number are for when none of a lower one is available.
    pub priority: u8,
}

impl Endpoint {
    /// The largest priority, that of Envoy.
    pub const MAX_PRIORITY: u8 = 128;
}

/// Where an endpoint lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointHost {
    /// A literal address.
    Ip(IpAddr),
    /// To be resolved by DNS.
    Dns(HostName),
}
