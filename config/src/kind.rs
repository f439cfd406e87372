//! The types of values in the native format: for the reader, for `check`, for the reference and for the JSON schema.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use strum::{EnumMessage, VariantArray};

use crate::{
    decode::{Diagnostics, View},
    name::HostName,
    networks::{Network, Networks},
    units::{Bytes, Span},
};

/// More connections than any machine supports.
pub(crate) const MOST: u64 = 100_000_000;

/// A year: long enough to mean "never", short enough for any clock.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// The type of a value, for people and editors.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Number { least: u64, most: u64 },
    /// A number with decimals, above 0.
    Decimal { least: &'static str, most: u64 },
    /// A number of bytes.
    Size { least: u64, most: u64 },
    /// A duration. The longest one is a year.
    Duration { least: Duration },
    /// A whole number, or `auto` for a share of `limits.connections`.
    Share(Share),
    /// One of these words, each with its meaning.
    Choice(Vec<(&'static str, String)>),
    /// A text with a special form: a description and an example.
    Text { what: &'static str, example: &'static str },
    /// A list.
    List(Box<Kind>),
    /// A list, or one item of it.
    OneOrMore(Box<Kind>),
    /// A mapping with these keys.
    Mapping(&'static str),
    /// A mapping from arbitrary names to values of this type.
    Named(Box<Kind>),
    /// One of these types.
    Either(Vec<Kind>),
}

/// The reading and printing of a setting's type.
pub(crate) trait Codec<T> {
    /// The type for the reference.
    fn kind(&self) -> Kind;
    /// Reads the value. `None` after a finding.
    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<T>;
    /// The value as written in a configuration.
    fn show(&self, value: &T) -> String;
}

/// `true` or `false`.
pub(crate) struct Flag;

impl Codec<bool> for Flag {
    fn kind(&self) -> Kind {
        Kind::Flag
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<bool> {
        view.flag(diagnostics)
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// A whole number within a range.
pub(crate) struct Count(pub(crate) RangeInclusive<u64>);

impl<T: TryFrom<u64> + fmt::Display> Codec<T> for Count {
    fn kind(&self) -> Kind {
        Kind::Number { least: *self.0.start(), most: *self.0.end() }
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<T> {
        view.number(self.0.clone(), diagnostics).and_then(|number| T::try_from(number).ok())
    }

    fn show(&self, value: &T) -> String {
        value.to_string()
    }
}

/// A number that defaults to a share of `limits.connections`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// The smallest value that can be written.
    pub(crate) least: u64,
    /// The divisor of the limit of connections.
    pub(crate) part: usize,
    /// Whether `none` can be written, which is 0.
    pub(crate) none: bool,
}

impl Share {
    /// The least default, with any limit of connections. A derived limit must not refuse two clients that arrive at
    /// the same time.
    pub(crate) const FEW: usize = 16;

    /// `1/2`.
    pub(crate) fn in_words(&self) -> String {
        format!("1/{}", self.part)
    }

    /// The value of `auto`.
    pub(crate) fn of(&self, connections: usize) -> usize {
        (connections / self.part).max(Self::FEW)
    }
}

impl Codec<Option<usize>> for Share {
    fn kind(&self) -> Kind {
        Kind::Share(*self)
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Option<usize>> {
        if view.says("auto") {
            return Some(None);
        }
        if self.none && view.says("none") {
            return Some(Some(0));
        }
        let number = view.number(self.least..=MOST, diagnostics)?;
        usize::try_from(number).ok().map(Some)
    }

    fn show(&self, value: &Option<usize>) -> String {
        match value {
            None => "auto".into(),
            Some(0) if self.none => "none".into(),
            Some(number) => number.to_string(),
        }
    }
}

/// A number that defaults to half of another limit.
pub(crate) struct HalfOf(pub(crate) &'static str);

impl Codec<Option<usize>> for HalfOf {
    fn kind(&self) -> Kind {
        let auto = format!("Half of `{}`.", self.0);
        let words = vec![("auto", auto), ("none", "No limit, the same as 0.".into())];
        Kind::Either(vec![Kind::Choice(words), Kind::Number { least: 0, most: MOST }])
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Option<usize>> {
        if view.says("auto") {
            return Some(None);
        }
        if view.says("none") {
            return Some(Some(0));
        }
        let number = view.number(0..=MOST, diagnostics)?;
        usize::try_from(number).ok().map(Some)
    }

    fn show(&self, value: &Option<usize>) -> String {
        match value {
            None => "auto".into(),
            Some(0) => "none".into(),
            Some(number) => number.to_string(),
        }
    }
}

/// A number of bytes within a range.
pub(crate) struct Size(pub(crate) RangeInclusive<u64>);

impl<T: TryFrom<u64> + TryInto<u64> + Copy> Codec<T> for Size {
    fn kind(&self) -> Kind {
        Kind::Size { least: *self.0.start(), most: *self.0.end() }
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<T> {
        let Bytes(bytes) = view.parse("a size such as 16KiB, 64k or 1MiB", diagnostics)?;
        if !self.0.contains(&bytes) {
            view.error(format!("{bytes} bytes are out of range"))
                .expected(format!("{} to {} bytes", self.0.start(), self.0.end()))
                .emit(diagnostics);
            return None;
        }
        T::try_from(bytes).ok()
    }

    fn show(&self, value: &T) -> String {
        (*value).try_into().map(|bytes| Bytes(bytes).to_string()).unwrap_or_default()
    }
}

/// A duration of at most a year.
pub(crate) struct Time {
    /// The shortest duration.
    pub(crate) least: Duration,
}

impl Time {
    /// Zero is not allowed.
    pub(crate) const POSITIVE: Self = Self { least: Duration::from_millis(1) };
    /// Zero is allowed.
    pub(crate) const ANY: Self = Self { least: Duration::ZERO };
}

impl Codec<Duration> for Time {
    fn kind(&self) -> Kind {
        Kind::Duration { least: self.least }
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Duration> {
        let Span(duration) = view.parse("a duration such as 500ms, 10s or 1h30m", diagnostics)?;
        if (self.least..=LONGEST).contains(&duration) {
            return Some(duration);
        }
        view.error(format!("{} is out of range", Span(duration)))
            .expected(format!("{} to 365d", Span(self.least)))
            .emit(diagnostics);
        None
    }

    fn show(&self, value: &Duration) -> String {
        Span(*value).to_string()
    }
}

/// Declares the values of a [`Choice`] as an enum. A name in the configuration is the variant's in `snake_case`, unless
/// the variant has `#[strum(serialize = "...")]`. The comment above a variant is its text in the reference.
macro_rules! choices {
    ($(#[$attribute:meta])* $visibility:vis enum $name:ident { $($variants:tt)* }) => {
        $(#[$attribute])*
        #[derive(
            Debug,
            Clone,
            Copy,
            PartialEq,
            Eq,
            strum::EnumMessage,
            strum::EnumString,
            strum::IntoStaticStr,
            strum::VariantArray,
        )]
        #[strum(serialize_all = "snake_case")]
        $visibility enum $name { $($variants)* }
    };
}

pub(crate) use choices;

/// A variant of an enum, by its name. Its documentation is the meaning. [`choices!`] declares such an enum.
pub(crate) struct Choice {
    /// The subject of the choice, for messages.
    pub(crate) what: &'static str,
}

impl<T> Codec<T> for Choice
where
    T: VariantArray + EnumMessage + FromStr + Copy + Into<&'static str>,
{
    fn kind(&self) -> Kind {
        Kind::Choice(
            T::VARIANTS
                .iter()
                .map(|one| {
                    // The lines of the comment are one text.
                    let lines = one.get_documentation().unwrap_or_default().lines();
                    ((*one).into(), lines.map(str::trim).collect::<Vec<_>>().join(" "))
                })
                .collect(),
        )
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<T> {
        let names: Vec<&'static str> = T::VARIANTS.iter().map(|one| (*one).into()).collect();
        let expected = one_of(&names);
        let text = view.text(&expected, diagnostics)?;
        if let Ok(value) = text.parse() {
            return Some(value);
        }
        let mut found = view.error(format!("there is no {} '{text}'", self.what)).expected(expected);
        found.remedy =
            diagnostics.closest(text, names.into_iter()).map(|near| format!("did you mean '{near}'?"));
        found.emit(diagnostics);
        None
    }

    fn show(&self, value: &T) -> String {
        Into::<&'static str>::into(*value).into()
    }
}

/// `a, b or c`.
pub(crate) fn one_of(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).into(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A text with a special form. An empty value is `None`.
pub(crate) struct Parsed {
    /// The description.
    pub(crate) what: &'static str,
    /// A valid example.
    pub(crate) example: &'static str,
}

impl<T: FromStr<Err: fmt::Display> + fmt::Display> Codec<Option<T>> for Parsed {
    fn kind(&self) -> Kind {
        Kind::Text { what: self.what, example: self.example }
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Option<T>> {
        view.parse(&format!("{}, for example {}", self.what, self.example), diagnostics).map(Some)
    }

    fn show(&self, value: &Option<T>) -> String {
        value.as_ref().map_or_else(|| "none".into(), ToString::to_string)
    }
}

/// A path in the file system. An empty value is `None`.
pub(crate) struct Place {
    /// The description.
    pub(crate) what: &'static str,
    /// A valid example.
    pub(crate) example: &'static str,
}

impl Codec<Option<PathBuf>> for Place {
    fn kind(&self) -> Kind {
        Kind::Text { what: self.what, example: self.example }
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Option<PathBuf>> {
        let expected = format!("{}, for example {}", self.what, self.example);
        let text = view.text(&expected, diagnostics)?;
        if text.is_empty() || text.contains('\0') {
            view.error("the path is empty, or holds a zero byte").expected(expected).emit(diagnostics);
            return None;
        }
        Some(Some(text.into()))
    }

    fn show(&self, value: &Option<PathBuf>) -> String {
        value.as_ref().map_or_else(|| "none".into(), |path| path.display().to_string())
    }
}

/// Host names: one, or a list.
pub(crate) struct Hosts;

impl Codec<Vec<HostName>> for Hosts {
    fn kind(&self) -> Kind {
        Kind::OneOrMore(Box::new(Kind::Text { what: "the name of a host", example: "balancer.example.com" }))
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Vec<HostName>> {
        let expected = "a name such as balancer.example.com";
        let mut hosts = Vec::new();
        for item in view.one_or_more(expected, diagnostics) {
            let Some(text) = item.text(expected, diagnostics) else { continue };
            match HostName::parse(text) {
                Ok(name) => hosts.push(name),
                Err(error) => item.error(error.to_string()).expected(expected).emit(diagnostics),
            }
        }
        Some(hosts)
    }

    fn show(&self, value: &Vec<HostName>) -> String {
        list(value.iter().map(HostName::as_str))
    }
}

/// Networks: one, or a list.
pub(crate) struct NetworkList {
    /// The greatest number, and the remedy for more.
    pub(crate) most: Option<(usize, &'static str)>,
}

impl NetworkList {
    /// No limit.
    pub(crate) const ANY: Self = Self { most: None };
    /// The deny list: its limit is the size of the kernel's map.
    pub(crate) const DENIED: Self = Self {
        most: Some((
            65_536,
            "name larger networks, or leave it to a firewall and set offload: {packet: false}",
        )),
    };
}

impl Codec<Networks> for NetworkList {
    fn kind(&self) -> Kind {
        Kind::OneOrMore(Box::new(Kind::Text { what: "a network or an address", example: "192.0.2.0/24" }))
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Networks> {
        let expected = "networks or addresses, such as 192.0.2.0/24 or 2001:db8::7";
        let items = view.one_or_more(expected, diagnostics);
        let networks: Networks =
            items.iter().filter_map(|item| item.parse::<Network>(expected, diagnostics)).collect();
        if let Some((most, remedy)) = self.most
            && networks.iter().count() > most
        {
            view.error(format!("there are more than {most} networks")).remedy(remedy).emit(diagnostics);
        }
        Some(networks)
    }

    fn show(&self, value: &Networks) -> String {
        list(value.iter())
    }
}

/// Addresses of name servers. The default port is 53.
pub(crate) struct NameServers;

/// One name server.
struct NameServer(SocketAddr);

impl FromStr for NameServer {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_port = || text.parse().map(Self);
        text.parse().map(|ip: std::net::IpAddr| Self(SocketAddr::new(ip, 53))).or_else(|_| with_port())
    }
}

impl Codec<Vec<SocketAddr>> for NameServers {
    fn kind(&self) -> Kind {
        Kind::List(Box::new(Kind::Text {
            what: "an IP address, or IP:PORT; without a port it is 53",
            example: "10.0.0.53",
        }))
    }

    fn read(&self, view: &View<'_>, diagnostics: &mut Diagnostics) -> Option<Vec<SocketAddr>> {
        let expected = "an address of a name server, for example 10.0.0.53 or [fd00::53]:5353";
        let servers = view.list("a list of addresses of name servers", diagnostics);
        let servers = servers.iter().filter_map(|view| view.parse::<NameServer>(expected, diagnostics));
        Some(servers.map(|NameServer(address)| address).collect())
    }

    fn show(&self, value: &Vec<SocketAddr>) -> String {
        list(value)
    }
}

/// `[a, b]`, or `none`.
fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".into() } else { format!("[{}]", items.join(", ")) }
}
