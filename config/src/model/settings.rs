//! Settings that belong to no object. One declaration contains the name, type, default, range and meaning of each
//! setting.
//!
//! The reader, the output of `check`, the rule for a restart, the reference and the JSON schema follow from the
//! declaration. Settings in [`Startup`] are fixed for the life of the process. Settings in [`Runtime`] follow a
//! reload.

use std::{net::SocketAddr, path::PathBuf, sync::LazyLock, time::Duration};

use crate::{
    admin::AdminAddress,
    decode::{Diagnostics, View},
    kind::{
        Choice, Codec, Count, Flag, HalfOf, Hosts, Kind, MOST, NameServers, NetworkList, Parsed, Place,
        Share, Size, Time, choices,
    },
    log_file::LogFile,
    model::access::Rate,
    name::HostName,
    networks::Networks,
};

/// A key of a section `S`.
pub(crate) struct Setting<S: 'static> {
    name: &'static str,
    doc: &'static [&'static str],
    since: Option<&'static str>,
    kind: fn() -> Kind,
    read: fn(&mut S, &View<'_>, &mut Diagnostics),
    show: fn(&S) -> String,
    same: fn(&S, &S) -> bool,
}

/// A struct whose fields are settings.
pub(crate) trait Section: Default + 'static {
    /// One setting per field.
    const SETTINGS: &'static [Setting<Self>];
}

/// Declares a section: the struct, its defaults, and the reading, printing and documentation of each field. Fields
/// after `and` are sections of their own, or are no settings.
macro_rules! section {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr, $codec:expr $(, since $since:literal)?; )*
        }
        $( and { $( $(#[doc = $part_doc:literal])+ $part:ident: $part_type:ty; )* } )?
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )*
            $( $( $(#[doc = $part_doc])+ pub $part: $part_type, )* )?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* $( $( $part: <$part_type>::default(), )* )? }
            }
        }

        impl Section for $name {
            const SETTINGS: &'static [Setting<Self>] = &[ $( Setting {
                name: stringify!($field),
                doc: &[ $($doc),+ ],
                since: since!($($since)?),
                kind: || Codec::<$type>::kind(&$codec),
                read: |section, view, diagnostics| {
                    if let Some(value) = Codec::<$type>::read(&$codec, view, diagnostics) {
                        section.$field = value;
                    }
                },
                show: |section| Codec::<$type>::show(&$codec, &section.$field),
                same: |a, b| a.$field == b.$field,
            }, )* ];
        }
    };
}

/// The oldest kernel, if one is given.
macro_rules! since {
    () => {
        None
    };
    ($kernel:literal) => {
        Some($kernel)
    };
}

section! {
    /// Settings that are fixed at the start of the process.
    pub struct Startup {
        /// The datapath that moves bytes.
        datapath: DatapathKind = DatapathKind::Auto, Choice { what: "datapath" };
    } and {
        /// The admin endpoint.
        admin: Admin;
        /// The thresholds at which `auto` offloads a direction.
        offload: Offload;
        /// The fate of connections in packets at the end of the process.
        flows: Flows;
        /// The capacity of the process.
        capacity: Capacity;
        /// The idle timeouts of peers.
        timeouts: PeerTimeouts;
        /// Whether a backend requests the short cut on this host; see
        /// [`Backend::same_host`](super::Backend::same_host).
        same_host: bool;
        /// The port of the status endpoint on all addresses that an Istio document names. [`Admin::status`] overrides
        /// it. If the port is in use, the process serves without it.
        named_status: Option<u16>;
    }
}

section! {
    /// Settings that follow a reload.
    pub struct Runtime {
        /// The deny list. Connections of these clients are reset, new ones and open ones.
        deny: Networks = Networks::default(), NetworkList::DENIED;
        /// The location of the certificates and keys that servers name. A directory contains Kubernetes Secrets in
        /// YAML, or files `NAME.crt` and `NAME.key`, or `NAME/tls.crt` and `NAME/tls.key`. A file contains Secrets.
        /// Changes are detected.
        secrets: Option<PathBuf> = None,
            Place { what: "a path", example: "/etc/snisplice/secrets" };
    } and {
        /// Sizes and counts that bound what one client can cost.
        limits: Limits;
        /// The time limits of a connection's phases.
        timeouts: Timeouts;
        /// The resolution of endpoints' names.
        dns: Dns;
        /// Requests of HTTP that are served here.
        http: Http;
        /// A line for each connection.
        access_log: AccessLog;
    }
}

section! {
    /// The admin endpoint.
    pub struct Admin {
        /// The address of `/ready`, `/metrics` and `/connections`, which has no authentication.
        address: Option<AdminAddress> = None,
            Parsed { what: "ip:port, [ipv6]:port or unix:/path", example: "127.0.0.1:9090" };
        /// The address of `/ready`, `/healthz/ready` and `/livez` only, for probes from other networks.
        ready: Option<SocketAddr> = None, Parsed { what: "ip:port or [ipv6]:port", example: "0.0.0.0:9091" };
        /// The status port, as in Istio's gateways: the address of `/healthz/ready` and `/livez`, for load balancers.
        status: Option<SocketAddr> = None, Parsed { what: "ip:port or [ipv6]:port", example: "0.0.0.0:15021" };
        /// Names that a `Host` header may contain, beside literal addresses and `localhost`.
        hosts: Vec<HostName> = Vec::new(), Hosts;
        /// Whether connections can be closed through this address.
        allow_close: bool = false, Flag;
        /// Whether the configuration can be reloaded, and endpoints drained and weighed, through this address.
        allow_changes: bool = false, Flag;
    }
}

section! {
    /// The bytes or messages that a direction must have moved in userspace before `auto` offloads it, and the further
    /// move to packets. Either amount is enough.
    ///
    /// The defaults are where it begins to pay: see docs/internals/sockmap.md, "Offload".
    #[derive(Copy)]
    pub struct Offload {
        /// Bytes copied in userspace.
        after_bytes: u64 = 512 * 1024, Size(1..=1 << 40);
        /// Messages copied in userspace: pairs of a read and a write.
        after_messages: u32 = 16, Count(1..=u64::from(u32::MAX));
        /// Whether a connection moves to packets if it is eligible. The others are redirected between sockets.
        packet: bool = true, Flag;
    }
}

section! {
    /// Connections that are carried in packets.
    #[derive(Copy)]
    pub struct Flows {
        /// Whether flows outlive a killed process. The next process adopts them. Without a next process, the peers
        /// end the connections, and the programs and maps stay in the kernel.
        persist: bool = false, Flag, since "6.6";
    }
}

section! {
    /// The capacity of the process.
    pub struct Capacity {
        /// Concurrent connections over all listeners. Further ones wait in the backlog.
        connections: usize = 8_192, Count(1..=MOST);
        /// Worker threads. 0 is one per core.
        workers: usize = 0, Count(0..=1_024);
        /// Bytes that one direction may hold in the kernel between the two sockets before the sender must wait.
        in_flight_bytes: u32 = 1024 * 1024, Size(16 << 10..=1 << 30);
        /// Bytes that all directions together may hold in the kernel.
        total_in_flight_bytes: u64 = 256 * 1024 * 1024, Size(1 << 20..=1 << 40);
    }
}

/// Half of all slots, so that no source can exclude the others.
const PER_SOURCE: Share = Share { least: 0, part: 2, none: true };
/// A quarter of all slots.
const HELLOS: Share = Share { least: 1, part: 4, none: false };
/// A quarter of all slots: handshakes take turns at the processors.
const HANDSHAKES: Share = Share { least: 1, part: 4, none: false };
/// A sixteenth of all slots.
const HANDSHAKES_PER_SOURCE: Share = Share { least: 0, part: 16, none: true };
/// An eighth of all slots: 1,024 by default, as in Envoy (`max_pending_requests`).
pub(crate) const PENDING: Share = Share { least: 0, part: 8, none: false };

section! {
    /// Sizes and counts that bound what one client can cost.
    pub struct Limits {
        /// The greatest size of a `ClientHello`, including record headers.
        hello_bytes: usize = 16 * 1024, Size(512..=65_536);
        /// Concurrent connections from one source: an address, or all addresses of one prefix. Further ones are
        /// refused.
        connections_per_source: Option<usize> = None, PER_SOURCE;
        /// Leading bits of an IPv4 address that identify a source.
        source_prefix_ipv4: u8 = 32, Count(0..=32);
        /// Leading bits of an IPv6 address that identify a source. A customer's network has at least 64 bits (RFC
        /// 6177), and may use all its addresses.
        source_prefix_ipv6: u8 = 64, Count(0..=128);
        /// Concurrent connections with an incomplete hello. A further one evicts the oldest silent one.
        hellos: Option<usize> = None, HELLOS;
        /// Concurrent connections from one source with an incomplete hello. A further one evicts the oldest silent
        /// one of the source.
        hellos_per_source: Option<usize> = None, HalfOf("limits.hellos");
        /// New connections from one source in a second, as a token bucket. Further ones are refused. 0 is no limit.
        connection_rate_per_source: u32 = 0, Count(0..=Rate::MOST);
        /// New connections from one source at once, after a pause: the size of the token bucket. 0 is the number of
        /// `connection_rate_per_source`.
        connection_burst_per_source: u32 = 0, Count(0..=Rate::MOST);
        /// Concurrent TLS handshakes. Further ones are refused.
        handshakes: Option<usize> = None, HANDSHAKES;
        /// Concurrent TLS handshakes with one source. Further ones are refused.
        handshakes_per_source: Option<usize> = None, HANDSHAKES_PER_SOURCE;
    }
}

impl Limits {
    /// A share of few slots is never smaller than this; see [`Self::per_source`].
    pub const FEW: usize = Share::FEW;

    /// The limit of connections from one source, for this number of connections in total. `None` is no limit. The
    /// default is half of all slots, so that no source can exclude the others.
    #[must_use]
    pub fn per_source(&self, connections: usize) -> Option<usize> {
        match self.connections_per_source {
            None => Some(PER_SOURCE.of(connections)),
            Some(0) => None,
            most => most,
        }
    }

    /// The limit of connections with an incomplete hello, for this number of connections in total. The default is a
    /// quarter of all slots.
    #[must_use]
    pub fn unfinished_hellos(&self, connections: usize) -> usize {
        self.hellos.unwrap_or_else(|| HELLOS.of(connections))
    }

    /// The limit of connections from one source with an incomplete hello, for this number of connections in total.
    /// `None` is no limit. The default is half of [`Self::unfinished_hellos`], so that no source can exclude the others.
    #[must_use]
    pub fn hellos_of_a_source(&self, connections: usize) -> Option<usize> {
        match self.hellos_per_source {
            None => Some((self.unfinished_hellos(connections) / 2).max(1)),
            Some(0) => None,
            most => most,
        }
    }

    /// The limit of new connections from one source. `None` is no limit.
    #[must_use]
    pub fn rate_of_a_source(&self) -> Option<Rate> {
        let per_second = self.connection_rate_per_source;
        let burst = match self.connection_burst_per_source {
            0 => per_second,
            burst => burst,
        };
        (per_second > 0).then_some(Rate { per_second, burst })
    }

    /// The limit of concurrent TLS handshakes, for this number of connections in total. The default is a quarter of
    /// all slots.
    #[must_use]
    pub fn handshakes_at_once(&self, connections: usize) -> usize {
        self.handshakes.unwrap_or_else(|| HANDSHAKES.of(connections))
    }

    /// The limit of concurrent TLS handshakes with one source. `None` is no limit. The default is a sixteenth of all
    /// slots.
    #[must_use]
    pub fn handshakes_of_a_source(&self, connections: usize) -> Option<usize> {
        match self.handshakes_per_source {
            None => Some(HANDSHAKES_PER_SOURCE.of(connections)),
            Some(0) => None,
            most => most,
        }
    }

    /// The limit of connections that wait for an endpoint of a backend without
    /// [`Backend::max_pending`](super::Backend::max_pending), for this number of connections in total: an eighth.
    #[must_use]
    pub fn pending(connections: usize) -> usize {
        PENDING.of(connections)
    }
}

section! {
    /// The idle timeouts of peers in an established connection.
    pub struct PeerTimeouts {
        /// The time without a byte in either direction. Until the backend has sent its first byte, only the backend's
        /// bytes count: a client alone keeps no connection open.
        idle: Duration = seconds(3600), Time::POSITIVE;
        /// The time without a byte of the open side after a FIN of the other side. If `idle` is shorter, `idle`
        /// applies. Like `timeout client-fin` and `server-fin` of `HAProxy`.
        half_closed: Duration = seconds(300), Time::POSITIVE;
        /// The silence of a peer before it is probed (`SO_KEEPALIVE`). `0s` disables probes.
        keepalive: Duration = seconds(60), Time::ANY;
        /// The time in which a peer must acknowledge data or a probe (`TCP_USER_TIMEOUT`, RFC 5482). `0s` is the
        /// kernel's default. The timeout also ends a connection whose peer replies but accepts no data for this time.
        tcp_user_timeout: Duration = Duration::ZERO, Time::ANY;
    }
}

section! {
    /// The time limits of a connection's phases.
    pub struct Timeouts {
        /// From accept to the complete hello.
        hello: Duration = seconds(10), Time::POSITIVE;
        /// From the hello to the end of the TLS handshake, if TLS is terminated.
        handshake: Duration = seconds(10), Time::POSITIVE;
        /// From the hello to a connection with an endpoint, for any number of attempts.
        connect: Duration = seconds(10), Time::POSITIVE;
        /// From accept to the end, with any traffic. `0s` is no limit.
        max_duration: Duration = Duration::ZERO, Time::ANY;
        /// Percent by which `max_duration` is longer at most, at random for each connection. So connections that began
        /// together do not end together, and they spread over new endpoints. As Envoy's
        /// `max_downstream_connection_duration_jitter_percentage`.
        max_duration_jitter: u8 = 0, Count(0..=100);
        /// From SIGTERM to the end of the last connection.
        drain: Duration = seconds(30), Time::ANY;
    }
}

/// A bound of the validity of an answer. A shorter one would be a flood of queries.
const TTL: Time = Time { least: seconds(1) };

section! {
    /// The resolution of endpoints' names.
    pub struct Dns {
        /// Name servers, queried in this order, instead of those in `/etc/resolv.conf`.
        servers: Vec<SocketAddr> = Vec::new(), NameServers;
        /// The least time between two lookups of a name, for answers with a shorter TTL.
        min_ttl: Duration = seconds(5), TTL;
        /// The longest time between two lookups of a name, for answers with a longer TTL.
        max_ttl: Duration = seconds(300), TTL;
    }
}

section! {
    /// Requests of HTTP that are served here.
    pub struct Http {
        /// Trusted proxies in front of this one. Their values of `X-Forwarded-For`, `X-Forwarded-Proto` and
        /// `X-Request-Id` are forwarded. Those of other clients are replaced.
        trusted_sources: Networks = Networks::default(), NetworkList::ANY;
        /// The silence of a client within the body of an unanswered request, except for gRPC. `0s` is no limit.
        body_timeout: Duration = seconds(60), Time::ANY;
    }
}

section! {
    /// A line for each connection that ends, and for each HTTP request.
    pub struct AccessLog {
        /// The file of the access log, or `/dev/stdout`. Lines are appended. Without a path there is no log. A reload
        /// opens the file again.
        path: Option<LogFile> = None,
            Parsed { what: "an absolute path, or /dev/stdout", example: "/var/log/snisplice/access.log" };
        /// The format of a line. Both formats have the fields of Istio's access log.
        format: AccessLogFormat = AccessLogFormat::Json, Choice { what: "format" };
    }
}

choices! {
    /// The format of a line of the access log.
    #[derive(Default)]
    pub enum AccessLogFormat {
        /// One JSON object.
        #[default]
        Json,
        /// Istio's default text format.
        Text,
    }
}

choices! {
    /// The configured datapath. The datapath in use may be another one.
    #[derive(Default)]
    pub enum DatapathKind {
        /// The fastest one whose probes pass on this kernel.
        #[default]
        Auto,
        /// In the kernel from the first byte. Refuses to start if the probes fail.
        Sockmap,
        /// In the kernel, by rewriting packet headers, for eligible connections. The others are copied. Refuses to start
        /// if the probes fail.
        Packet,
        /// A copy in userspace: no privilege needed.
        Relay,
    }
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) startup: Startup,
    pub(crate) runtime: Runtime,
}

/// The time at which a change takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applies {
    /// At the next start.
    Restart,
    /// At the next reload.
    Reload,
}

/// Reads a value into all settings.
type Read = dyn Fn(&mut Settings, &View<'_>, &mut Diagnostics) + Send + Sync;
/// Compares one setting of two configurations.
type Same = dyn Fn(&Settings, &Settings) -> bool + Send + Sync;

/// A setting with its key.
pub(crate) struct Declared {
    /// The key within its mapping.
    pub(crate) name: &'static str,
    /// The complete key, such as `limits.connections`.
    pub(crate) path: String,
    /// The time at which a change takes effect.
    pub(crate) applies: Applies,
    doc: &'static [&'static str],
    since: Option<&'static str>,
    kind: fn() -> Kind,
    read: Box<Read>,
    show: Box<dyn Fn(&Settings) -> String + Send + Sync>,
    same: Box<Same>,
}

impl Declared {
    /// The meaning, in Markdown.
    pub(crate) fn doc(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }

    /// The oldest kernel that supports the setting, if it is newer than the daemon's minimum.
    pub(crate) fn since(&self) -> Option<&'static str> {
        self.since
    }

    /// The type and range.
    pub(crate) fn kind(&self) -> Kind {
        (self.kind)()
    }

    /// The share of another limit that is the default, if any.
    pub(crate) fn share(&self) -> Option<Share> {
        match self.kind() {
            Kind::Share(share) => Some(share),
            _ => None,
        }
    }

    /// Reads a value. An invalid value changes nothing.
    pub(crate) fn read(&self, settings: &mut Settings, view: &View<'_>, diagnostics: &mut Diagnostics) {
        (self.read)(settings, view, diagnostics);
    }

    /// The value as written in a configuration.
    pub(crate) fn show(&self, settings: &Settings) -> String {
        (self.show)(settings)
    }

    /// Whether two configurations have the same value.
    pub(crate) fn same(&self, a: &Settings, b: &Settings) -> bool {
        (self.same)(a, b)
    }
}

/// Settings under one key, or at the top level.
pub(crate) struct Group {
    /// The key. Empty at the top level.
    pub(crate) name: &'static str,
    /// The subject of the settings.
    pub(crate) doc: &'static str,
    /// In the order of the reference.
    pub(crate) settings: Vec<Declared>,
}

/// All settings, in the order of the reference.
pub(crate) fn groups() -> &'static [Group] {
    static GROUPS: LazyLock<Vec<Group>> = LazyLock::new(declared);
    &GROUPS
}

/// Access to a section within all settings.
struct Lens<S> {
    applies: Applies,
    get: fn(&Settings) -> &S,
    get_mut: fn(&mut Settings) -> &mut S,
}

impl Group {
    fn new(name: &'static str, doc: &'static str) -> Self {
        Self { name, doc, settings: Vec::new() }
    }

    fn with<S: Section>(mut self, Lens { applies, get, get_mut }: Lens<S>) -> Self {
        self.settings.extend(S::SETTINGS.iter().map(
            |&Setting { name, doc, since, kind, read, show, same }| Declared {
                name,
                path: if self.name.is_empty() { name.into() } else { format!("{}.{name}", self.name) },
                applies,
                doc,
                since,
                kind,
                read: Box::new(move |settings, view, diagnostics| read(get_mut(settings), view, diagnostics)),
                show: Box::new(move |settings| show(get(settings))),
                same: Box::new(move |a, b| same(get(a), get(b))),
            },
        ));
        self
    }
}

/// The lens for a section.
macro_rules! lens {
    ($applies:ident $half:ident $($part:ident)?) => {
        Lens {
            applies: Applies::$applies,
            get: |settings| &settings.$half $(.$part)?,
            get_mut: |settings| &mut settings.$half $(.$part)?,
        }
    };
}

fn declared() -> Vec<Group> {
    // The pattern is exhaustive, so that a missing section does not compile.
    let Settings {
        startup:
            Startup {
                datapath: _,
                admin: _,
                offload: _,
                flows: _,
                capacity: _,
                timeouts: _,
                same_host: _,
                named_status: _,
            },
        runtime: Runtime { deny: _, secrets: _, limits: _, timeouts: _, dns: _, access_log: _, http: _ },
    } = Settings::default();
    vec![
        Group::new("", "Settings of their own").with(lens!(Restart startup)).with(lens!(Reload runtime)),
        Group::new("admin", "The admin endpoint. A text instead of a mapping is its `address`")
            .with(lens!(Restart startup admin)),
        Group::new("limits", "Sizes and counts that bound what clients can cost")
            .with(lens!(Restart startup capacity))
            .with(lens!(Reload runtime limits)),
        Group::new(
            "offload",
            "When `auto` moves a direction into the kernel: either of the two amounts is enough",
        )
        .with(lens!(Restart startup offload)),
        Group::new("flows", "Connections that are carried in packets").with(lens!(Restart startup flows)),
        Group::new("timeouts", "How long each phase of a connection may take")
            .with(lens!(Reload runtime timeouts))
            .with(lens!(Restart startup timeouts)),
        Group::new("dns", "How the names of endpoints are resolved").with(lens!(Reload runtime dns)),
        Group::new("http", "Requests of HTTP that are served here").with(lens!(Reload runtime http)),
        Group::new("access_log", "A line for each connection that ends, and for each HTTP request")
            .with(lens!(Reload runtime access_log)),
    ]
}

impl Startup {
    /// The keys of settings that differ in `then` and take effect at the next start only.
    #[must_use]
    pub fn needs_restart(&self, then: &Self) -> Vec<&'static str> {
        let settings = |startup: &Self| Settings { startup: startup.clone(), runtime: Runtime::default() };
        let (a, b) = (settings(self), settings(then));
        let all = groups().iter().flat_map(|group| &group.settings);
        let differing = all.filter(|setting| setting.applies == Applies::Restart && !setting.same(&a, &b));
        let mut names: Vec<&'static str> = differing.map(|setting| &*setting.path).collect();
        if then.named_status != self.named_status {
            names.push("status-port");
        }
        // A short cut that is loaded and no longer requested has no cost.
        if then.same_host && !self.same_host {
            names.push("backends[].same_host");
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_is_named_by_its_key() {
        let now = Startup::default();
        assert_eq!(now.needs_restart(&now), Vec::<&str>::new());
        let mut then = now.clone();
        then.datapath = DatapathKind::Relay;
        then.capacity.workers = 3;
        then.timeouts.tcp_user_timeout = seconds(5);
        then.flows.persist = true;
        then.same_host = true;
        let named = [
            "datapath",
            "limits.workers",
            "flows.persist",
            "timeouts.tcp_user_timeout",
            "backends[].same_host",
        ];
        assert_eq!(now.needs_restart(&then), named);
        then.same_host = false;
        assert!(
            !then
                .needs_restart(&Startup { same_host: false, ..then.clone() })
                .contains(&"backends[].same_host")
        );
    }

    #[test]
    fn every_setting_has_a_doc_and_shows_its_default() {
        for setting in groups().iter().flat_map(|group| &group.settings) {
            assert!(
                setting.doc().len() > 10 && setting.doc().ends_with('.'),
                "{}: {}",
                setting.path,
                setting.doc()
            );
            assert!(!setting.show(&Settings::default()).is_empty(), "{}", setting.path);
        }
    }

    #[test]
    fn shares_of_few_places_are_not_too_small() {
        let limits = Limits::default();
        assert_eq!((limits.per_source(8_192), limits.unfinished_hellos(8_192)), (Some(4_096), 2_048));
        assert_eq!((limits.per_source(4), Limits::pending(4)), (Some(Limits::FEW), Limits::FEW));
        assert_eq!(Limits { connections_per_source: Some(0), ..limits }.per_source(4), None);
    }

    #[test]
    fn one_source_has_at_most_half_of_the_hellos_by_default() {
        for (hellos, of_a_source) in [(None, 1_024), (Some(2_000), 1_000), (Some(2), 1), (Some(1), 1)] {
            let limits = Limits { hellos, ..Limits::default() };
            assert_eq!(limits.hellos_of_a_source(8_192), Some(of_a_source), "{hellos:?}");
        }
        let all = Limits { hellos_per_source: Some(0), ..Limits::default() };
        assert_eq!(all.hellos_of_a_source(8_192), None);
    }

    #[test]
    fn a_rate_without_a_burst_has_one_of_a_second() {
        let of = |connection_rate_per_source, connection_burst_per_source| {
            Limits { connection_rate_per_source, connection_burst_per_source, ..Limits::default() }
                .rate_of_a_source()
        };
        assert_eq!(of(0, 0), None);
        assert_eq!(of(0, 9), None, "no rate, no limit");
        assert_eq!(of(10, 0), Some(Rate { per_second: 10, burst: 10 }));
        assert_eq!(of(10, 50), Some(Rate { per_second: 10, burst: 50 }));
    }
}
