//! Sets of networks, for lookups of an address.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// A network, or one address: `10.0.0.0/8`, `2001:db8::/32` or `192.0.2.7`. Bits after the prefix are ignored. A
/// network of mapped addresses (RFC 4291 section 2.5.5.2) is the IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse().map_err(|_| format!("'{text}' is neither a network nor an address"))?,
        };
        if let IpNet::V6(six) = net
            && let (Some(four), Some(prefix)) =
                (six.addr().to_ipv4_mapped(), six.prefix_len().checked_sub(96))
        {
            let mapped = IpNet::new(four.into(), prefix);
            return mapped.map(|net| Self(net.trunc())).map_err(|error| error.to_string());
        }
        Ok(Self(net.trunc()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Network {
    /// The first address, and the length of the prefix in bits.
    #[must_use]
    pub fn parts(&self) -> (IpAddr, u8) {
        (self.0.addr(), self.0.prefix_len())
    }
}

/// A set of networks. A lookup takes a few comparisons, for any number of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// Sorted. No network contains another.
    nets: Vec<IpNet>,
}

impl FromIterator<Network> for Networks {
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        let nets: Vec<_> = networks.into_iter().map(|Network(net)| net).collect();
        let mut nets = IpNet::aggregate(&nets);
        nets.sort_unstable();
        Self { nets }
    }
}

impl Networks {
    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nets.is_empty()
    }

    /// The networks, merged if possible.
    pub fn iter(&self) -> impl Iterator<Item = Network> {
        self.nets.iter().copied().map(Network)
    }

    /// Whether a network contains an address. A mapped IPv6 address is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let behind = self.nets.partition_point(|net| net.network() <= address);
        behind > 0 && self.nets[behind - 1].contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(written: &[&str]) -> Networks {
        written.iter().map(|text| text.parse::<Network>().unwrap()).collect()
    }

    #[test]
    fn addresses_are_found() {
        let set =
            networks(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.0/120", "10.1.2.3/16"]);
        for (address, is_in) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("198.51.100.9", true),
            ("::ffff:10.1.1.1", true),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::1", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), is_in, "{address}");
        }
        assert!(!Networks::default().contains("10.0.0.1".parse().unwrap()));
        assert!(networks(&["0.0.0.0/0"]).contains("10.0.0.1".parse().unwrap()));
        assert!(!networks(&["0.0.0.0/0"]).contains("::1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "example.com", "10.0.0.0/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_set_contains_what_one_of_its_networks_contains(
            nets in proptest::collection::vec((any::<u32>(), 0_u8..=32), 0..20),
            address: u32,
        ) {
            let nets: Vec<Network> = nets
                .into_iter()
                .map(|(address, bits)| Network(IpNet::new(IpAddr::V4(address.into()), bits).unwrap().trunc()))
                .collect();
            let address = IpAddr::V4(address.into());
            let is_in = nets.iter().any(|net| net.0.contains(&address));
            prop_assert_eq!(nets.into_iter().collect::<Networks>().contains(address), is_in);
        }
    }
}
