//! `datapath`, `admin`, `limits`, `handover`, `survive`, `deny`, `timeouts` and `dns`: each may be written once over all
//! documents.

use std::{
    net::{AddrParseError, IpAddr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use crate::{
    admin::AdminAddress,
    builder::Settings,
    decode::{Diagnostics, Fields, View},
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
pub(crate) struct Given {
    settings: Settings,
    /// Which setting was written where.
    written: Vec<(String, Origin)>,
}

impl Given {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }

    pub(super) fn read(&mut self, fields: &mut Fields<'_>, diagnostics: &mut Diagnostics) {
        if let Some(view) = fields.take("datapath")
            && self.first(&view, diagnostics)
            && let Some(kind) = datapath(&view, diagnostics)
        {
            self.settings.datapath = kind;
        }
        if let Some(view) = fields.take("admin")
            && self.first(&view, diagnostics)
        {
            self.read_admin(&view, diagnostics);
        }
        if let Some(view) = fields.take("limits") {
            self.read_limits(&view, diagnostics);
        }
        if let Some(view) = fields.take("handover") {
            self.read_handover(&view, diagnostics);
        }
        // Not by default: where the process is killed and nobody starts it again, the connections end as their peers
        // like, but what carries them stays in the kernel.
        if let Some(view) = self.once(fields.take("survive"), diagnostics) {
            self.settings.survive = view.flag(diagnostics).unwrap_or(self.settings.survive);
        }
        if let Some(view) = self.once(fields.take("deny"), diagnostics) {
            self.read_deny(&view, diagnostics);
        }
        if let Some(view) = fields.take("timeouts") {
            self.read_timeouts(&view, diagnostics);
        }
        if let Some(view) = fields.take("dns") {
            self.read_dns(&view, diagnostics);
        }
    }

    fn read_admin(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let expected = "ip:port, [ipv6]:port or unix:/path, for example 127.0.0.1:9090";
        let admin = &mut self.settings.admin;
        if view.is_text() {
            admin.address = view.parse::<AdminAddress>(expected, diagnostics);
            return;
        }
        let known = "ip:port, unix:/path, or {address, ready, hosts, allow_close}";
        let Some(mut fields) = view.fields(known, diagnostics) else { return };
        if let Some(view) = fields.take("ready") {
            admin.ready = view.parse::<SocketAddr>("ip:port or [ipv6]:port", diagnostics);
            admin.address = fields.take("address").and_then(|view| view.parse(expected, diagnostics));
        } else {
            let address = fields.require("address", expected, diagnostics);
            admin.address = address.and_then(|view| view.parse(expected, diagnostics));
        }
        if let Some(view) = fields.take("hosts") {
            let expected = "a name such as balancer.example.com";
            for view in view.one_or_more(expected, diagnostics) {
                let Some(text) = view.text(expected, diagnostics) else { continue };
                match HostName::parse(text) {
                    Ok(name) => admin.hosts.push(name),
                    Err(error) => view.error(error.to_string()).expected(expected).emit(diagnostics),
                }
            }
        }
        admin.allow_close =
            fields.take("allow_close").and_then(|view| view.flag(diagnostics)).unwrap_or_default();
        fields.finish(diagnostics);
    }

    fn read_limits(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let Some(mut fields) = view.fields("a mapping of limits", diagnostics) else { return };
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
        if let Some(bytes) = self.size(fields.take("hello_bytes"), 512..=65_536, diagnostics) {
            *hello_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if let Some(view) = self.once(fields.take("connections"), diagnostics) {
            *connections = view.number(1..=MOST, diagnostics).unwrap_or(*connections);
        }
        if let Some(view) = self.once(fields.take("connections_per_source"), diagnostics) {
            *connections_per_source =
                if view.says("none") { Some(0) } else { number_or_auto(&view, 0, diagnostics) };
        }
        if let Some(view) = self.once(fields.take("source_prefix_ipv4"), diagnostics) {
            *source_prefix_ipv4 = view.number(0..=32, diagnostics).unwrap_or(*source_prefix_ipv4);
        }
        if let Some(view) = self.once(fields.take("source_prefix_ipv6"), diagnostics) {
            *source_prefix_ipv6 = view.number(0..=128, diagnostics).unwrap_or(*source_prefix_ipv6);
        }
        if let Some(view) = self.once(fields.take("hellos"), diagnostics) {
            *hellos = number_or_auto(&view, 1, diagnostics);
        }
        if let Some(view) = self.once(fields.take("workers"), diagnostics) {
            *workers = view.number(0..=1_024, diagnostics).unwrap_or(*workers);
        }
        if let Some(bytes) = self.size(fields.take("in_flight_bytes"), 16 << 10..=1 << 30, diagnostics) {
            *in_flight_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        }
        if let Some(bytes) = self.size(fields.take("total_in_flight_bytes"), 1 << 20..=1 << 40, diagnostics) {
            *total_in_flight_bytes = bytes;
        }
        self.settings.limits = limits;
        fields.finish(diagnostics);
    }

    fn read_handover(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let Some(mut fields) = view.fields("a mapping of bytes, messages and packet", diagnostics) else {
            return;
        };
        if let Some(bytes) = self.size(fields.take("bytes"), 1..=1 << 40, diagnostics) {
            self.settings.handover.bytes = bytes;
        }
        if let Some(view) = self.once(fields.take("messages"), diagnostics) {
            let messages = &mut self.settings.handover.messages;
            *messages = view.number(1..=u32::MAX, diagnostics).unwrap_or(*messages);
        }
        if let Some(view) = self.once(fields.take("packet"), diagnostics) {
            let packet = &mut self.settings.handover.packet;
            *packet = view.flag(diagnostics).unwrap_or(*packet);
        }
        fields.finish(diagnostics);
    }

    fn read_deny(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let expected = "networks or addresses, such as 192.0.2.0/24 or 2001:db8::7";
        let items = view.one_or_more(expected, diagnostics);
        let deny: Networks =
            items.iter().filter_map(|item| item.parse::<Network>(expected, diagnostics)).collect();
        if deny.iter().count() > MOST_DENIED {
            view.error(format!("more than {MOST_DENIED} networks cannot be denied"))
                .remedy("name larger networks, or leave it to a firewall and set handover: {packet: false}")
                .emit(diagnostics);
        }
        self.settings.deny = deny;
    }

    fn read_timeouts(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let Some(mut fields) = view.fields("a mapping of timeouts", diagnostics) else { return };
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
            if let Some(view) = self.once(fields.take(key), diagnostics) {
                *timeout = duration(&view, least, diagnostics).unwrap_or(*timeout);
            }
        }
        self.settings.timeouts = timeouts;
        fields.finish(diagnostics);
    }

    fn read_dns(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) {
        let expected = "an address of a name server, for example 10.0.0.53 or [fd00::53]:5353";
        let Some(mut fields) = view.fields("a mapping: {servers}", diagnostics) else { return };
        if let Some(view) = self.once(fields.take("servers"), diagnostics) {
            let servers = view.list("a list of addresses of name servers", diagnostics);
            let servers = servers.iter().filter_map(|view| view.parse::<NameServer>(expected, diagnostics));
            self.settings.dns.servers = servers.map(|NameServer(address)| address).collect();
        }
        fields.finish(diagnostics);
    }

    fn size(
        &mut self,
        view: Option<View<'_>>,
        range: RangeInclusive<u64>,
        diagnostics: &mut Diagnostics,
    ) -> Option<u64> {
        let view = self.once(view, diagnostics)?;
        let expected = "a size such as 16KiB, 64k or 1MiB";
        let Bytes(bytes) = view.parse(expected, diagnostics)?;
        if range.contains(&bytes) {
            return Some(bytes);
        }
        view.error(format!("{bytes} bytes are not possible here"))
            .expected(format!("{} to {} bytes", range.start(), range.end()))
            .emit(diagnostics);
        None
    }

    fn once<'n>(&mut self, view: Option<View<'n>>, diagnostics: &mut Diagnostics) -> Option<View<'n>> {
        view.filter(|view| self.first(view, diagnostics))
    }

    /// Whether no other document has written this setting.
    fn first(&mut self, view: &View<'_>, diagnostics: &mut Diagnostics) -> bool {
        let field = view.field();
        if let Some((_, origin)) = self.written.iter().find(|(written, _)| *written == field) {
            view.error(format!("the setting is written already ({origin})"))
                .remedy("keep one of the two")
                .emit(diagnostics);
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
fn number_or_auto(view: &View<'_>, least: usize, diagnostics: &mut Diagnostics) -> Option<usize> {
    if view.says("auto") { None } else { view.number(least..=MOST, diagnostics) }
}

fn datapath(view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<DatapathKind> {
    let expected = "auto, sockmap, packet or relay";
    match view.text(expected, diagnostics)? {
        "auto" => Some(DatapathKind::Auto),
        "sockmap" => Some(DatapathKind::Sockmap),
        "packet" => Some(DatapathKind::Packet),
        "relay" => Some(DatapathKind::Relay),
        other => {
            view.error(format!("there is no datapath '{other}'")).expected(expected).emit(diagnostics);
            None
        }
    }
}

fn duration(view: &View<'_>, least: Duration, diagnostics: &mut Diagnostics) -> Option<Duration> {
    let expected = "a duration such as 500ms, 10s or 1h30m";
    let Span(duration) = view.parse(expected, diagnostics)?;
    if (least..=LONGEST).contains(&duration) {
        return Some(duration);
    }
    view.error(format!("{} is not possible here", Span(duration)))
        .expected(format!("{} to 365d", Span(least)))
        .emit(diagnostics);
    None
}
