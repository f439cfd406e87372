//! Dynamic forwarding: a backend whose connections go to the name that the client requests, and the addresses that
//! such a name may lead to.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::networks::Networks;

/// The settings of a backend without endpoints, whose connections go to the requested server name.
///
/// A client chooses the name, and whoever runs the name's zone chooses the addresses. So some addresses are refused
/// unless they are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dynamic {
    /// The TCP port to connect to.
    pub port: u16,
    /// Addresses that may be reached although they are refused by default.
    pub allow: Networks,
    /// Further addresses that are refused. They override `allow`.
    pub deny: Networks,
}

/// The reason for which an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// `deny` contains the address.
    Denied,
    /// `0.0.0.0/8` and `::`, which connect(2) takes for this host.
    Unspecified,
    /// `127.0.0.0/8` and `::1`.
    Loopback,
    /// `169.254.0.0/16` (RFC 3927) and `fe80::/10` (RFC 4291).
    LinkLocal,
    /// The metadata service of a cloud provider.
    Metadata,
    /// `224.0.0.0/4` and `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// An address of this host.
    Own,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Denied => "an address of 'deny'",
            Self::Unspecified => "the unspecified address",
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a metadata service",
            Self::Multicast => "a multicast address",
            Self::Broadcast => "the broadcast address",
            Self::Own => "an address of this host",
        })
    }
}

/// Metadata services outside of the link-local networks: Azure, Alibaba Cloud, Oracle Cloud, Amazon, Google.
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

impl Dynamic {
    /// The port without a setting: that of HTTPS.
    pub const PORT: u16 = 443;

    /// Whether a connection may go to this address. `is_own` returns whether an address belongs to this host.
    ///
    /// An IPv6 address that stands for an IPv4 address is refused if the IPv4 address is: a mapped address, and those
    /// of NAT64, 6to4 and Teredo. `deny` has precedence over `allow`, and `allow` over the other rules.
    ///
    /// # Errors
    /// Returns the reason for which the address is refused.
    pub fn judge(&self, address: IpAddr, is_own: impl Fn(IpAddr) -> bool) -> Result<(), Refused> {
        let address = address.to_canonical();
        let inner = match address {
            IpAddr::V4(_) => Vec::new(),
            IpAddr::V6(address) => inner(address),
        };
        let readings = || std::iter::once(address).chain(inner.iter().copied().map(IpAddr::V4));
        if readings().any(|reading| self.deny.contains(reading)) {
            return Err(Refused::Denied);
        }
        if self.allow.contains(address) {
            return Ok(());
        }
        for reading in readings().filter(|reading| !self.allow.contains(*reading)) {
            if let Some(why) = special(reading) {
                return Err(why);
            }
            if is_own(reading) {
                return Err(Refused::Own);
            }
        }
        Ok(())
    }
}

/// The reason for which an address is refused on every host.
fn special(address: IpAddr) -> Option<Refused> {
    match address {
        IpAddr::V4(address) => match address.octets() {
            [0, ..] => Some(Refused::Unspecified),
            [127, ..] => Some(Refused::Loopback),
            _ if METADATA_V4.contains(&address) => Some(Refused::Metadata),
            [169, 254, ..] => Some(Refused::LinkLocal),
            [224..=239, ..] => Some(Refused::Multicast),
            [255, 255, 255, 255] => Some(Refused::Broadcast),
            _ => None,
        },
        IpAddr::V6(address) if address.is_unspecified() => Some(Refused::Unspecified),
        IpAddr::V6(address) if address.is_loopback() => Some(Refused::Loopback),
        IpAddr::V6(address) if METADATA_V6.contains(&address) => Some(Refused::Metadata),
        IpAddr::V6(address) => match address.segments() {
            [0xfe80..=0xfebf, ..] => Some(Refused::LinkLocal),
            [0xff00..=0xffff, ..] => Some(Refused::Multicast),
            _ => None,
        },
    }
}

/// The IPv4 addresses that an IPv6 address may stand for.
fn inner(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let bytes = address.octets();
    let at = |places: [usize; 4]| Ipv4Addr::from(places.map(|place| bytes[place]));
    let last = at([12, 13, 14, 15]);
    match address.segments() {
        // IPv4-compatible (RFC 4291 section 2.5.5.1), where `::` and `::1` are themselves refused. NAT64 with the
        // well-known prefix (RFC 6052 section 2.1).
        [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => vec![last],
        // NAT64 with a prefix of the local network (RFC 8215): its length is unknown (RFC 6052 section 2.2). A prefix
        // of another length leaves zeros in the places, so they count as no address.
        [0x64, 0xff9b, 1, ..] => [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]]
            .map(at)
            .into_iter()
            .filter(|address| address.octets()[0] != 0)
            .collect(),
        // 6to4 (RFC 3056 section 2).
        [0x2002, ..] => vec![at([2, 3, 4, 5])],
        // Teredo (RFC 4380 section 4): the client's address, inverted.
        [0x2001, 0, ..] => vec![Ipv4Addr::from_bits(!last.to_bits())],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::networks::Network;

    fn networks(written: &[&str]) -> Networks {
        written.iter().map(|text| text.parse::<Network>().unwrap()).collect()
    }

    fn rule(allow: &[&str], deny: &[&str]) -> Dynamic {
        Dynamic { port: 443, allow: networks(allow), deny: networks(deny) }
    }

    fn judge(rule: &Dynamic, address: &str) -> Result<(), Refused> {
        rule.judge(address.parse().unwrap(), |_| false)
    }

    #[test]
    fn addresses_that_no_client_may_choose_are_refused() {
        let rule = rule(&[], &[]);
        for (address, why) in [
            ("0.0.0.0", Refused::Unspecified),
            ("0.1.2.3", Refused::Unspecified),
            ("127.0.0.1", Refused::Loopback),
            ("127.255.255.255", Refused::Loopback),
            ("169.254.169.254", Refused::Metadata),
            ("169.254.170.2", Refused::LinkLocal),
            ("100.100.100.200", Refused::Metadata),
            ("168.63.129.16", Refused::Metadata),
            ("224.0.0.1", Refused::Multicast),
            ("239.255.255.255", Refused::Multicast),
            ("255.255.255.255", Refused::Broadcast),
            ("::", Refused::Unspecified),
            ("::1", Refused::Loopback),
            ("fe80::1", Refused::LinkLocal),
            ("febf::1", Refused::LinkLocal),
            ("ff02::1", Refused::Multicast),
            ("fd00:ec2::254", Refused::Metadata),
            ("::ffff:127.0.0.1", Refused::Loopback),
            ("::127.0.0.1", Refused::Loopback),
            ("64:ff9b::7f00:1", Refused::Loopback),
            ("64:ff9b:1:7f00:0:100::", Refused::Loopback),
            ("64:ff9b:1::a9fe:a9fe", Refused::Metadata),
            ("2002:a9fe:a9fe::1", Refused::Metadata),
            ("2001:0:102:304::80ff:fffe", Refused::Loopback),
        ] {
            assert_eq!(judge(&rule, address), Err(why), "{address}");
        }
        for address in [
            "10.0.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "203.0.113.7",
            "240.0.0.1",
            "fd00::1",
            "2001:db8::1",
            "64:ff9b::a00:1",
            "64:ff9b:1::cb00:7107",
            "64:ff9b:1:cb00:71:700::",
            "2002:cb00:7107::1",
        ] {
            assert_eq!(judge(&rule, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn own_addresses_are_refused_in_every_form() {
        let own: IpAddr = "203.0.113.7".parse().unwrap();
        let judge = |allow: &[&str], address: &str| {
            rule(allow, &[]).judge(address.parse().unwrap(), |address| address == own)
        };
        for address in ["203.0.113.7", "::ffff:203.0.113.7", "64:ff9b::cb00:7107"] {
            assert_eq!(judge(&[], address), Err(Refused::Own), "{address}");
            assert_eq!(judge(&["203.0.113.0/24"], address), Ok(()), "{address}");
        }
        assert_eq!(judge(&[], "203.0.113.8"), Ok(()));
    }

    #[test]
    fn deny_overrides_allow() {
        let rule = rule(&["127.0.0.0/8", "10.0.0.0/8", "fe80::/10"], &["127.0.0.53", "10.1.0.0/16"]);
        assert_eq!(judge(&rule, "127.0.0.1"), Ok(()));
        assert_eq!(judge(&rule, "fe80::1"), Ok(()));
        for address in ["127.0.0.53", "10.1.2.3", "64:ff9b::a01:203", "2002:a01:203::", "::ffff:10.1.2.3"] {
            assert_eq!(judge(&rule, address), Err(Refused::Denied), "{address}");
        }
    }

    /// The forms of an IPv4 address in IPv6.
    fn forms(address: Ipv4Addr) -> [Ipv6Addr; 4] {
        let [a, b, c, d] = address.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        [
            address.to_ipv6_mapped(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low),
        ]
    }

    fn any_v4() -> impl Strategy<Value = Ipv4Addr> {
        let first = prop_oneof![Just(0_u8), Just(127), Just(169), Just(224), Just(255), any::<u8>()];
        (first, prop_oneof![Just(254_u8), any::<u8>()], any::<[u8; 2]>())
            .prop_map(|(a, b, [c, d])| Ipv4Addr::new(a, b, c, d))
    }

    proptest! {
        #[test]
        fn an_address_is_judged_alike_in_every_form(address in any_v4(), allowed: bool, denied: bool) {
            let this = address.to_string();
            let list = |is_in: bool| if is_in { vec![&*this] } else { Vec::new() };
            let rule = rule(&list(allowed), &list(denied));
            let expected = rule.judge(address.into(), |_| false);
            for form in forms(address) {
                prop_assert_eq!(rule.judge(form.into(), |_| false), expected, "{}", form);
            }
            prop_assert!(!denied || expected == Err(Refused::Denied));
            prop_assert!(denied || !allowed || expected == Ok(()));
        }

        #[test]
        fn what_is_neither_special_nor_own_nor_denied_is_admitted(bits: u128) {
            let address = IpAddr::from(Ipv6Addr::from_bits(bits | 1 << 125 | 1 << 112));
            let rule = rule(&[], &["2001:db8::/32"]);
            let admitted = rule.judge(address, |_| false).is_ok();
            let inner = match address { IpAddr::V6(address) => inner(address), IpAddr::V4(_) => Vec::new() };
            let is_special = special(address).is_some() || inner.into_iter().any(|one| special(one.into()).is_some());
            prop_assert_eq!(admitted, !is_special && !rule.deny.contains(address));
            prop_assert!(rule.judge(address, |_| true).is_err());
        }
    }
}
