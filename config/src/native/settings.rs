//! `datapath`, `admin`, `policies`, `limits`, `handover`, `survive`, `deny`, `timeouts` and `dns`: each may be written once over all
//! documents.

use std::{
    net::{AddrParseError, IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use super::read::RawPolicies;
use crate::{
    admin::AdminAddress,
    decode::{Fields, Sink, View},
    draft::Settings,
    model::{DatapathKind, Limits, Origin, Timeouts},
    name::HostName,
    networks::{Network, Networks},
    units::{Bytes, Span},
};

/// More connections than any machine has.
pub(super) const MOST: usize = 100_000_000;

/// A year: long enough to mean "never", short enough to be added to any clock.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Networks in `deny`: as many as the kernel's map has room for.
const MOST_DENIED: usize = 65_536;

/// What the documents say; what they do not say keeps its default.
#[derive(Debug, Default)]
pub(crate) struct Given<'n> {
    pub(super) policies: RawPolicies<'n>,
    settings: Settings,
    /// Which setting was written where.
    written: Vec<(String, Origin)>,
}

impl<'n> Given<'n> {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }

    pub(super) fn read(&mut self, fields: &mut Fields<'n>, sink: &mut Sink) {
        if let Some(view) = fields.take("policies") {
            let policies = RawPolicies::read(&view, sink);
            for (own, new) in self.policies.0.iter_mut().zip(policies.0) {
                if own.is_some() && new.is_some() {
                    view.bad("a policy of all listeners is written in another place too")
                        .remedy("keep one of the two")
                        .to(sink);
                }
                *own = new.or(own.take());
            }
        }
        if let Some(view) = fields.take("datapath")
            && self.first(&view, sink)
            && let Some(kind) = datapath(&view, sink)
        {
            self.settings.datapath = kind;
        }
        if let Some(view) = fields.take("admin")
            && self.first(&view, sink)
        {
            self.read_admin(&view, sink);
        }
        if let Some(view) = fields.take("limits") {
            self.read_limits(&view, sink);
        }
        if let Some(view) = fields.take("handover") {
            self.read_handover(&view, sink);
        }
        // Not by default: where the process is killed and nobody starts it again, the connections end as their peers
        // like, but what carries them stays in the kernel.
        if let Some(view) = self.once(fields.take("survive"), sink) {
            self.settings.survive = view.flag(sink).unwrap_or(self.settings.survive);
        }
        if let Some(view) = self.once(fields.take("deny"), sink) {
            self.read_deny(&view, sink);
        }
        if let Some(view) = fields.take("timeouts") {
            self.read_timeouts(&view, sink);
        }
        if let Some(view) = fields.take("dns") {
            self.read_dns(&view, sink);
        }
    }

    fn read_admin(&mut self, view: &View<'n>, sink: &mut Sink) {
        let expected = "ip:port, [ipv6]:port or unix:/path, for example 127.0.0.1:9090";
        let admin = &mut self.settings.admin;
        if view.is_text() {
            admin.address = view.parse::<AdminAddress>(expected, sink);
            return;
        }
        let known = "ip:port, unix:/path, or {address, ready, hosts, allow_close}";
        let Some(mut fields) = view.fields(known, sink) else { return };
        if let Some(view) = fields.take("ready") {
            admin.ready = view.parse::<SocketAddr>("ip:port or [ipv6]:port", sink);
            admin.address = fields.take("address").and_then(|view| view.parse(expected, sink));
        } else {
            let address = fields.require("address", expected, sink);
            admin.address = address.and_then(|view| view.parse(expected, sink));
        }
        if let Some(view) = fields.take("hosts") {
            let expected = "a name such as balancer.example.com";
            for view in view.one_or_more(expected, sink) {
                let Some(text) = view.text(expected, sink) else { continue };
                match HostName::parse(text) {
                    Ok(name) => admin.hosts.push(name),
                    Err(error) => view.bad(error.to_string()).expected(expected).to(sink),
                }
            }
        }
        admin.allow_close = fields.take("allow_close").and_then(|view| view.flag(sink)).unwrap_or_default();
        fields.finish(sink);
    }

    fn read_limits(&mut self, view: &View<'n>, sink: &mut Sink) {
        let Some(mut fields) = view.fields("a mapping of limits", sink) else { return };
        let mut limits = self.settings.limits.clone();
        let Limits {
            hello_bytes,
            connections,
            connections_per_source,
            source_prefix_ipv4,
            source_prefix_ipv6,
            hellos,
            workers,
            in_flight_bytes,
            total_in_flight_bytes,
        } = &mut limits;
        if let Some(bytes) = self.size(fields.take("hello_bytes"), 512..=65_536, sink) {
            *hello_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if let Some(view) = self.once(fields.take("connections"), sink) {
            *connections = view.number(1..=MOST, sink).unwrap_or(*connections);
        }
        if let Some(view) = self.once(fields.take("connections_per_source"), sink) {
            *connections_per_source =
                if view.says("none") { Some(0) } else { number_or_auto(&view, 0, sink) };
        }
        if let Some(view) = self.once(fields.take("source_prefix_ipv4"), sink) {
            *source_prefix_ipv4 = view.number(0..=32, sink).unwrap_or(*source_prefix_ipv4);
        }
        if let Some(view) = self.once(fields.take("source_prefix_ipv6"), sink) {
            *source_prefix_ipv6 = view.number(0..=128, sink).unwrap_or(*source_prefix_ipv6);
        }
        if let Some(view) = self.once(fields.take("hellos"), sink) {
            *hellos = number_or_auto(&view, 1, sink);
        }
        if let Some(view) = self.once(fields.take("workers"), sink) {
            *workers = view.number(0..=1_024, sink).unwrap_or(*workers);
        }
        if let Some(bytes) = self.size(fields.take("in_flight_bytes"), 16 << 10..=1 << 30, sink) {
            *in_flight_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        }
        if let Some(bytes) = self.size(fields.take("total_in_flight_bytes"), 1 << 20..=1 << 40, sink) {
            *total_in_flight_bytes = bytes;
        }
        self.settings.limits = limits;
        fields.finish(sink);
    }

    fn read_handover(&mut self, view: &View<'n>, sink: &mut Sink) {
        let Some(mut fields) = view.fields("a mapping of bytes, messages and packet", sink) else { return };
        if let Some(bytes) = self.size(fields.take("bytes"), 1..=1 << 40, sink) {
            self.settings.handover.bytes = bytes;
        }
        if let Some(view) = self.once(fields.take("messages"), sink) {
            let messages = &mut self.settings.handover.messages;
            *messages = view.number(1..=u32::MAX, sink).unwrap_or(*messages);
        }
        if let Some(view) = self.once(fields.take("packet"), sink) {
            let packet = &mut self.settings.handover.packet;
            *packet = view.flag(sink).unwrap_or(*packet);
        }
        fields.finish(sink);
    }

    fn read_deny(&mut self, view: &View<'n>, sink: &mut Sink) {
        let expected = "networks or addresses, such as 192.0.2.0/24 or 2001:db8::7";
        let items = view.one_or_more(expected, sink);
        let deny: Networks = items.iter().filter_map(|item| item.parse::<Network>(expected, sink)).collect();
        if deny.iter().count() > MOST_DENIED {
            view.bad(format!("more than {MOST_DENIED} networks cannot be denied"))
                .remedy("name larger networks, or leave it to a firewall and set handover: {packet: false}")
                .to(sink);
        }
        self.settings.deny = deny;
    }

    fn read_timeouts(&mut self, view: &View<'n>, sink: &mut Sink) {
        let Some(mut fields) = view.fields("a mapping of timeouts", sink) else { return };
        let mut timeouts = self.settings.timeouts.clone();
        let Timeouts { hello, connect, idle, half_closed, keepalive, unacknowledged, max_duration, drain } =
            &mut timeouts;
        let least = Duration::from_millis(1);
        for (key, timeout, least) in [
            ("hello", hello, least),
            ("connect", connect, least),
            ("idle", idle, least),
            ("half_closed", half_closed, least),
            ("keepalive", keepalive, Duration::ZERO),
            ("unacknowledged", unacknowledged, Duration::ZERO),
            ("max_duration", max_duration, Duration::ZERO),
            ("drain", drain, Duration::ZERO),
        ] {
            if let Some(view) = self.once(fields.take(key), sink) {
                *timeout = duration(&view, least, sink).unwrap_or(*timeout);
            }
        }
        self.settings.timeouts = timeouts;
        fields.finish(sink);
    }

    fn read_dns(&mut self, view: &View<'n>, sink: &mut Sink) {
        let expected = "an address of a name server, for example 10.0.0.53 or [fd00::53]:5353";
        let Some(mut fields) = view.fields("a mapping: {servers}", sink) else { return };
        if let Some(view) = self.once(fields.take("servers"), sink) {
            let servers = view.list("a list of addresses of name servers", sink);
            let servers = servers.iter().filter_map(|view| view.parse::<NameServer>(expected, sink));
            self.settings.dns.servers = servers.map(|NameServer(address)| address).collect();
        }
        fields.finish(sink);
    }

    fn size(&mut self, view: Option<View<'n>>, range: RangeInclusive<u64>, sink: &mut Sink) -> Option<u64> {
        let view = self.once(view, sink)?;
        let expected = "a size such as 16KiB, 64k or 1MiB";
        let Bytes(bytes) = view.parse(expected, sink)?;
        if range.contains(&bytes) {
            return Some(bytes);
        }
        view.bad(format!("{bytes} bytes are not possible here"))
            .expected(format!("{} to {} bytes", range.start(), range.end()))
            .to(sink);
        None
    }

    fn once(&mut self, view: Option<View<'n>>, sink: &mut Sink) -> Option<View<'n>> {
        view.filter(|view| self.first(view, sink))
    }

    /// Whether no other document has written this setting.
    fn first(&mut self, view: &View<'_>, sink: &mut Sink) -> bool {
        let field = view.field();
        if let Some((_, origin)) = self.written.iter().find(|(written, _)| *written == field) {
            view.bad(format!("the setting is written already ({origin})"))
                .remedy("keep one of the two")
                .to(sink);
            return false;
        }
        self.written.push((field, view.origin()));
        true
    }
}

/// A name server's address; the port is 53 where there is none.
struct NameServer(SocketAddr);

impl FromStr for NameServer {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        let with_port = || text.parse().map(Self);
        text.parse().map(|ip: IpAddr| Self(SocketAddr::new(ip, 53))).or_else(|_| with_port())
    }
}

/// `None` is what follows from other limits.
fn number_or_auto(view: &View<'_>, least: usize, sink: &mut Sink) -> Option<usize> {
    if view.says("auto") { None } else { view.number(least..=MOST, sink) }
}

fn datapath(view: &View<'_>, sink: &mut Sink) -> Option<DatapathKind> {
    let expected = "auto, sockmap, packet or relay";
    match view.text(expected, sink)? {
        "auto" => Some(DatapathKind::Auto),
        "sockmap" => Some(DatapathKind::Sockmap),
        "packet" => Some(DatapathKind::Packet),
        "relay" => Some(DatapathKind::Relay),
        other => {
            view.bad(format!("there is no datapath '{other}'")).expected(expected).to(sink);
            None
        }
    }
}

fn duration(view: &View<'_>, least: Duration, sink: &mut Sink) -> Option<Duration> {
    let expected = "a duration such as 500ms, 10s or 1h30m";
    let Span(duration) = view.parse(expected, sink)?;
    if (least..=LONGEST).contains(&duration) {
        return Some(duration);
    }
    view.bad(format!("{} is not possible here", Span(duration)))
        .expected(format!("{} to 365d", Span(least)))
        .to(sink);
    None
}
