//! `backends[]` and their endpoints.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    backend_tls::{BackendTls, Version},
    balancing::{Affinity, load_balancing},
    codec::{By, one_or_more, text},
    health::PERCENT,
    keys::{FromKeys, Nested, TextOr, mapping},
    proxy_protocol::version,
    reference::{WEIGHT, name},
    timeouts::BackendTimeouts,
};
use crate::{
    decode::{Diagnostics, View},
    kind::{Choice, Count, Flag, MOST, NameServers, NetworkList, Time},
    model::{
        Backend, Endpoint, EndpointHost,
        balancing::LoadBalancing,
        dynamic::Dynamic,
        health::{Health, HealthCheck, OutlierDetection},
        proxy_protocol::SendProxy,
        settings::PENDING,
    },
    name::HostName,
    networks::Networks,
};

const ENDPOINT: &str =
    "host:port, or {address: host:port, weight, priority}, or {srv: name, weight, priority}";

mapping! {
    /// Endpoints that serve the same thing
    pub(super) struct BackendKeys("backend", "backends[]") {
        /// Its name; a metric label.
        name: &'n str = required("a unique name"), By(text("a unique name", "shop"), name);
        /// Where it can be reached. Names are resolved by DNS. Either this key or `dynamic` is required.
        endpoints: Vec<Endpoint> = optional,
            one_or_more(TextOr(By(text("host:port", "10.0.0.1:8443"), endpoint_at)), ENDPOINT).or_none();
        /// Instead of `endpoints`: each connection goes to the server name that its client requests (see
        /// [dynamic forwarding](internals/connecting.md#dynamic-forwarding)).
        dynamic: Dynamic = optional("none"), Nested;
        /// Local addresses to connect from, in turn.
        source: Vec<IpAddr> = optional("the kernel's choice"),
            one_or_more(By(text("an IP address of this machine", "10.0.0.9"), own_address), OWN_ADDRESS).or_none();
        /// Whether its endpoints see the client's address as the source of a connection (`IP_TRANSPARENT`), like `usesrc
        /// clientip` of `HAProxy`. The endpoints' packets to clients must pass this host, and need routing rules here:
        /// `check` prints the rules, and `probe --config` verifies them. Client and endpoint need addresses of the same
        /// family.
        transparent: bool = default(false), Flag;
        /// Whether what it sends is handed to the client's socket at once, where it is on this host and the kernel
        /// allows it (see [same host](internals/same-host.md)). That the first backend asks for it takes effect at
        /// the next start.
        same_host: bool = default(false), Flag, restart;
        /// Connections to it at once. Further ones are refused.
        max_connections: usize = optional("no limit"), Count(1..=MOST);
        /// Connections at once that wait for one of its endpoints to answer; 0 is no limit.
        max_pending: usize =
            optional(format!("an eighth of `limits.connections`, at least {}", PENDING.of(0))), Count(0..=MOST);
        /// How long connecting to its endpoints may take in all.
        connect_timeout: Duration = optional("that of the route"), Time::POSITIVE;
        /// Time limits of its connections. HTTP requests have those of the route and the listener.
        timeouts: BackendTimeouts = optional("those of the route"), Nested;
        /// Name servers for the names of its endpoints, queried in this order, instead of the others.
        resolver: Vec<SocketAddr> = optional("those of `dns.servers`"), NameServers;
        /// TLS towards it, for what ends TLS here and for HTTP. What is passed through is not encrypted again.
        tls: BackendTls<'n> = optional("in clear"), Nested;
        /// The header of the PROXY protocol that begins each connection to it, before TLS (see
        /// [PROXY protocol](proxy-protocol.md)).
        proxy_protocol: SendProxy = optional("no header"), TextOr(version());
        /// The version of HTTP that requests are sent in.
        http: Version = default(Version::Http1), Choice { what: "version of HTTP" };
        /// How its connections are spread over its endpoints (see [balancing](internals/balancing.md)).
        load_balancing: LoadBalancing = optional("random_two_choices"), load_balancing();
        /// Whether a client's further connections go to the endpoint of its first one, while it is available.
        affinity: Affinity = optional("none"), Nested;
        /// Active checks of its endpoints (see [health](internals/health.md)).
        health_check: HealthCheck = optional("no checks"), Nested;
        /// Ejects endpoints whose connections or responses fail, for a while.
        outlier_detection: OutlierDetection = optional("no ejections"), Nested;
        /// Percent of the endpoints. While fewer are healthy and not ejected, all are used. With 0 never: connections
        /// are rejected while none is left.
        panic_threshold: u8 = default(Health::PANIC_THRESHOLD), PERCENT;
    }
}

/// Keys that have no meaning for a backend with `dynamic`.
const OF_ENDPOINTS: [&str; 7] = [
    "load_balancing",
    "affinity",
    "health_check",
    "outlier_detection",
    "panic_threshold",
    "transparent",
    "http",
];

impl BackendKeys<'_> {
    /// Whether the list of endpoints is there, and empty.
    pub(super) fn has_no_endpoints(&self) -> bool {
        self.state.view.written("endpoints").is_some_and(|list| list.is_empty_list())
    }

    /// A connection has one source. The version of HTTP has to fit the encryption. Name servers need names.
    pub(super) fn check(&self, diagnostics: &mut Diagnostics) {
        self.check_dynamic(diagnostics);
        if self.transparent == Some(true) && self.source.as_ref().is_some_and(|source| !source.is_empty()) {
            self.state
                .at("transparent")
                .error("'source' and 'transparent' both decide the source address of a connection")
                .remedy("remove one of them")
                .emit(diagnostics);
        }
        let is_literal = |endpoint: &Endpoint| matches!(endpoint.host, EndpointHost::Ip(_));
        let has_endpoints = self.state.is_written("endpoints");
        if self.resolver.is_some()
            && has_endpoints
            && self.state.sound
            && self.endpoints.iter().flatten().all(is_literal)
        {
            let at = self.state.at("resolver");
            at.warn("no endpoint of the backend is a name: 'resolver' has no effect").emit(diagnostics);
        }
        let Some(version) = self.http else { return };
        let wrong = match version {
            Version::H2 if self.state.lacks(&["tls"]) => {
                ("'h2' is HTTP/2 within TLS, and there is no 'tls'", "write h2c, or add tls: {}")
            }
            Version::H2c if self.state.view.written("tls").is_some() => {
                ("'h2c' is HTTP/2 without TLS, and there is 'tls'", "write h2, or remove 'tls'")
            }
            _ => return,
        };
        let (problem, remedy) = wrong;
        self.state.at("http").error(problem).remedy(remedy).emit(diagnostics);
    }

    /// A backend has endpoints or forwards dynamically. The keys about known endpoints mean nothing without them.
    fn check_dynamic(&self, diagnostics: &mut Diagnostics) {
        let state = &self.state;
        if state.lacks(&["endpoints", "dynamic"]) {
            state
                .view
                .error("neither 'endpoints' nor 'dynamic' is written")
                .expected(format!("endpoints: [{ENDPOINT}], or dynamic: {{port}}"))
                .emit(diagnostics);
        }
        if !state.is_written("dynamic") {
            return;
        }
        if state.is_written("endpoints") {
            (state.at("dynamic").error("both 'endpoints' and 'dynamic' are written"))
                .remedy("keep one of the two: the client's server name takes the place of the endpoints")
                .emit(diagnostics);
            return;
        }
        for key in OF_ENDPOINTS {
            if let Some(written) = state.view.written(key) {
                let problem = match key {
                    "http" => "a backend with 'dynamic' gets no HTTP requests".to_owned(),
                    _ => format!("'{key}' needs known endpoints, and a backend with 'dynamic' has none"),
                };
                written.error(problem).remedy(format!("remove '{key}'")).emit(diagnostics);
            }
        }
    }

    /// The backend of this name with these endpoints.
    pub(super) fn build(&self, name: &str, endpoints: Vec<Endpoint>) -> Backend {
        Backend {
            name: name.into(),
            endpoints,
            dynamic: self.dynamic.clone(),
            source: self.source.clone().unwrap_or_default(),
            transparent: self.transparent.unwrap_or_default(),
            same_host: self.same_host.unwrap_or_default(),
            max_connections: self.max_connections,
            max_pending: self.max_pending,
            load_balancing: self.load_balancing.clone().unwrap_or_default(),
            affinity: self.affinity.map(|Affinity(source)| source),
            resolver: self.resolver.clone().unwrap_or_default(),
            connect_timeout: self.connect_timeout,
            timeouts: self.timeouts.and_then(|BackendTimeouts(timeouts)| timeouts.shared()),
            tls: self.tls.as_ref().map(|tls| tls.settings.clone()),
            http: self.http.map(Into::into).unwrap_or_default(),
            proxy_protocol: self.proxy_protocol.clone(),
            health: Health {
                check: self.health_check.clone(),
                outliers: self.outlier_detection.clone(),
                panic_threshold: self.panic_threshold.unwrap_or(Health::PANIC_THRESHOLD),
            },
        }
    }
}

mapping! {
    /// Forwarding to the server name that a client requests
    pub(super) struct DynamicKeys("dynamic", "backends[].dynamic") {
        /// The port to connect to.
        port: u16 = default(Dynamic::PORT), Count(1..=65_535);
        /// Networks that may be reached although they are refused by default: loopback, link-local, multicast and
        /// broadcast addresses, metadata services of clouds, and the addresses of this host.
        allow: Networks = optional("none"), NetworkList::ANY;
        /// Further networks that are refused, such as private ones. It overrides `allow`.
        deny: Networks = optional("none"), NetworkList::ANY;
    }
}

impl<'n> FromKeys<'n> for Dynamic {
    type Keys = DynamicKeys<'n>;

    fn from_keys(keys: Self::Keys, _: &mut Diagnostics) -> Option<Self> {
        let (allow, deny) = (keys.allow.unwrap_or_default(), keys.deny.unwrap_or_default());
        Some(Self { port: keys.port?, allow, deny })
    }
}

const OWN_ADDRESS: &str = "IP addresses of this machine";

fn own_address(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<IpAddr> {
    view.parse(OWN_ADDRESS, diagnostics)
}

mapping! {
    /// One address of a backend. A text instead of a mapping is its `address`
    pub(super) struct EndpointKeys("endpoint", "backends[].endpoints[]") {
        /// Address or name, and port. Either this key or `srv` is required.
        address: (EndpointHost, u16) = optional, By(text("host:port", "shop.internal:8443"), address);
        /// Instead of `address`: a name whose SRV records contain names, ports, priorities and weights (RFC 2782; see
        /// [names](internals/connecting.md#names)). `weight` multiplies the weights, `priority` is added to the
        /// priorities.
        srv: HostName = optional, By(text("a name with SRV records", "_https._tcp.shop.internal"), service);
        /// Share among its siblings; 0 receives nothing.
        weight: u32 = default(1), WEIGHT;
        /// Endpoints of a higher number are backups: they are for when none of a lower number is available.
        /// `HAProxy`'s `backup` is 1.
        priority: u8 = default(0), Count(0..=Endpoint::MAX_PRIORITY.into());
    }
}

impl<'n> FromKeys<'n> for Endpoint {
    type Keys = EndpointKeys<'n>;

    fn from_keys(keys: Self::Keys, diagnostics: &mut Diagnostics) -> Option<Self> {
        let state = &keys.state;
        if state.lacks(&["address", "srv"]) {
            state.view.error("neither 'address' nor 'srv' is written").expected(ENDPOINT).emit(diagnostics);
        }
        if state.is_written("address") && state.is_written("srv") {
            (state.at("srv").error("both 'address' and 'srv' are written"))
                .remedy("keep one of the two: SRV records contain names and ports")
                .emit(diagnostics);
            return None;
        }
        let srv = keys.srv.map(|name| (EndpointHost::Srv(name), 0));
        let (host, port) = keys.address.or(srv)?;
        Some(Self { host, port, weight: keys.weight?, priority: keys.priority? })
    }
}

/// `_https._tcp.shop.internal`.
fn service(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<HostName> {
    view.parse("a name with SRV records, for example _https._tcp.shop.internal", diagnostics)
}

fn endpoint_at(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Endpoint> {
    let (host, port) = address(view, diagnostics)?;
    Some(Endpoint { host, port, weight: 1, priority: 0 })
}

/// `10.0.0.1:443`, `[fd00::1]:443` or `name:443`.
fn address(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<(EndpointHost, u16)> {
    let expected = "host:port, for example 10.0.0.1:8443, [fd00::1]:8443 or shop.internal:8443";
    let text = view.text(expected, diagnostics)?;
    let wrong = |why: &str, diagnostics: &mut Diagnostics| {
        view.error(format!("'{text}': {why}")).expected(expected).emit(diagnostics);
        None
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 {
            return wrong("the port is 0", diagnostics);
        }
        return Some((EndpointHost::Ip(address.ip()), address.port()));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong("the port is missing", diagnostics);
    };
    let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
        return wrong("the port is not a number from 1 to 65535", diagnostics);
    };
    match HostName::parse(host) {
        Ok(name) => Some((EndpointHost::Dns(name), port)),
        Err(why) => wrong(&why.to_string(), diagnostics),
    }
}
