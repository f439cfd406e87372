//! The immutable model, the result of every configuration format.
//!
//! The model contains all values that a connection reads. They are validated and resolved as far as possible without
//! I/O: names are in lower case, references are indices, precedence is decided.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use self::{
    access::Access,
    balancing::{LoadBalancing, SourceAffinity},
    dynamic::Dynamic,
    health::Health,
    http::{BackendHttp, PlainHttp},
    proxy_protocol::{AcceptProxy, SendProxy},
    route_table::RouteTable,
    scope::ScopedTimeouts,
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

pub mod access;
pub mod balancing;
pub(crate) mod cipher_suites;
pub mod dynamic;
pub mod health;
pub mod http;
pub mod proxy_protocol;
pub mod rank;
pub mod route;
pub mod route_table;
pub mod rule;
pub mod scope;
pub mod secret;
pub mod settings;
pub mod termination;

/// One complete, valid configuration.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The listeners. There is at least one, names are unique, and no address is bound twice.
    pub listeners: Vec<Listener>,
    /// All backends. [`BackendId`] is an index into this list.
    pub backends: Vec<Backend>,
    /// The number of rules in all tables of the listeners. [`Route::id`] is below it.
    pub rules: usize,
    /// The number of terminations. [`Termination::id`](termination::Termination::id) is below it.
    pub terminations: usize,
    /// The `Secret` objects of the files that a termination or a backend names; see [`Model::secret`].
    pub secrets: Vec<Secret>,
    /// Unsupported requirements of servers of foreign objects, for [`crate::explain()`].
    pub claims: Vec<Claim>,
    /// Settings that are fixed at the start of the process.
    pub startup: Startup,
    /// Settings that follow a reload, beside listeners, routes and backends.
    pub runtime: Runtime,
}

impl Model {
    /// The `Secret` object of the files that a name refers to: that of its namespace, or else the only one of the
    /// name in any namespace. A Secret that is not in the files may be in the secrets directory.
    #[must_use]
    pub fn secret(&self, name: &SecretName) -> Option<&Secret> {
        secret::find(self.secrets.iter(), name)
    }
}

/// Names of a server that is not served.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The names.
    pub pattern: HostPattern,
    /// The server's port in the configuration.
    pub port: u16,
    /// The server, as `Gateway namespace/name servers[0]`.
    pub by: String,
    /// The location in the configuration.
    pub origin: Origin,
}

/// A named set of addresses with its routes.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Unique name; a metric label.
    pub name: String,
    /// The location in the configuration.
    pub origin: Origin,
    /// Addresses to bind, IPv4 and IPv6. `[::]` means IPv6 only (`IPV6_V6ONLY`). IPv4 has an address of its own.
    pub bind: Vec<SocketAddr>,
    /// Largest segment to announce to clients, in bytes without options (`TCP_MAXSEG`).
    pub mss: Option<u16>,
    /// Whether addresses are bound that this host does not have yet (`IP_FREEBIND`, ip(7)).
    pub freebind: bool,
    /// Whether the configuration names no address. An address family that the kernel lacks is then skipped.
    pub any_address: bool,
    /// The configured ports, which routes and `explain --port` refer to. They differ from those in `bind` if
    /// `--listen` overrides them.
    pub ports: Vec<u16>,
    /// The clients that are served, and how many. `None` is all.
    pub access: Option<Access>,
    /// The PROXY protocol of proxies in front.
    pub proxy_protocol: Option<AcceptProxy>,
    /// The rules by server name.
    pub routes: RouteTable,
    /// The service of connections that begin with an HTTP request instead of a TLS record.
    pub plain_http: Option<PlainHttp>,
    /// The policies for a connection that no rule serves, by verdict.
    pub policies: Policies,
    /// Time limits of its connections, if they differ from those of the process.
    pub timeouts: Option<Arc<ScopedTimeouts>>,
}

/// The policy for each verdict without a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policies {
    /// A valid hello without the `server_name` extension (and no `*` rule).
    pub no_sni: Policy,
    /// A valid hello whose name no rule serves.
    pub unknown_name: Policy,
    /// The first bytes are not those of a TLS handshake record.
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

/// The end or the target of a connection without a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// FIN without a byte. This is the default: Gateway API conformance accepts only EOF or RST as a rejection.
    #[default]
    Close,
    /// RST.
    Reset,
    /// A fatal TLS alert (`unrecognized_name` and so on, RFC 8446 section 6.2), then FIN.
    Alert,
    /// The bytes are forwarded to this backend.
    Backend(BackendId),
}

/// A named group of equivalent endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backend {
    /// Unique name; a metric label. For Istio destinations `host:port`.
    pub name: String,
    /// The endpoints. If there is none, connections are rejected, except with [`Self::dynamic`].
    pub endpoints: Vec<Endpoint>,
    /// Forwarding to the name that the client requests. Such a backend has no endpoints.
    pub dynamic: Option<Dynamic>,
    /// Source addresses for connections to endpoints, used in turn. With an empty list the kernel chooses.
    pub source: Vec<IpAddr>,
    /// Whether connections to endpoints have the client's address as their source (`IP_TRANSPARENT`, ip(7)).
    pub transparent: bool,
    /// Whether the backend's bytes may use the short cut, if the backend is on this host and the kernel supports it.
    pub same_host: bool,
    /// The limit of concurrent connections. `None` is no limit. Further ones are refused.
    pub max_connections: Option<usize>,
    /// The limit of concurrent connections that wait for an endpoint; 0 is no limit. See [`Limits::pending`] for the
    /// default.
    pub max_pending: Option<usize>,
    /// The distribution of its connections over its endpoints.
    pub load_balancing: LoadBalancing,
    /// Client affinity: a client's further connections go to the endpoint of its first one.
    pub affinity: Option<SourceAffinity>,
    /// Name servers for the names of its endpoints. With an empty list those of the process.
    pub resolver: Vec<SocketAddr>,
    /// The time limit of a connect to its endpoints in total. `None` is [`Timeouts::connect`].
    pub connect_timeout: Option<Duration>,
    /// Time limits of its connections, if they differ from those of the route.
    pub timeouts: Option<Arc<ScopedTimeouts>>,
    /// TLS to the backend, for terminated connections. Passthrough ignores it.
    pub tls: Option<Arc<UpstreamTls>>,
    /// The HTTP version towards the backend, for HTTP requests.
    pub http: BackendHttp,
    /// The PROXY protocol header that begins each connection to an endpoint.
    pub proxy_protocol: Option<SendProxy>,
    /// The rules for the endpoints that are used.
    pub health: Health,
}

/// One address of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A literal address, or a name that the daemon resolves.
    pub host: EndpointHost,
    /// TCP port. 0 if the records of [`EndpointHost::Srv`] contain it, otherwise never 0.
    pub port: u16,
    /// The weight among its siblings. With 0 the endpoint gets no connection.
    pub weight: u32,
    /// The priority. Endpoints of a higher number are used if none of a lower one is available.
    pub priority: u8,
}

impl Endpoint {
    /// The largest priority, the same as Envoy's.
    pub const MAX_PRIORITY: u8 = 128;
}

/// The host of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointHost {
    /// A literal address.
    Ip(IpAddr),
    /// A name to resolve by DNS.
    Dns(HostName),
    /// A name whose SRV records (RFC 2782) contain names, ports, priorities and weights.
    Srv(HostName),
}
