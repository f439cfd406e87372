//! Prefixes of addresses (RFC 4632, RFC 4291 section 2.3).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// All addresses with the same first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    first: IpAddr,
    bits: u8,
}

impl Cidr {
    /// The prefix of `bits` bits that contains `address`. A greater number stands for all bits of the family. An
    /// IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) must be passed as an IPv4 address.
    #[must_use]
    pub fn of(address: IpAddr, bits: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let bits = bits.min(32);
                // A shift by all bits is undefined.
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Self { first: Ipv4Addr::from_bits(address.to_bits() & mask).into(), bits }
            }
            IpAddr::V6(address) => {
                let bits = bits.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Self { first: Ipv6Addr::from_bits(address.to_bits() & mask).into(), bits }
            }
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.first.is_ipv4() { 32 } else { 128 };
        if self.bits == whole {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}/{}", self.first, self.bits)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str, bits: u8) -> String {
        Cidr::of(address.parse().unwrap(), bits).to_string()
    }

    #[test]
    fn cuts_at_any_bit_of_either_family() {
        assert_eq!(of("192.0.2.77", 32), "192.0.2.77");
        assert_eq!(of("192.0.2.77", 24), "192.0.2.0/24");
        assert_eq!(of("192.0.2.255", 31), "192.0.2.254/31");
        assert_eq!(of("192.0.2.77", 0), "0.0.0.0/0");
        assert_eq!(of("192.0.2.77", 99), "192.0.2.77");
        assert_eq!(of("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::/64");
        assert_eq!(of("2001:db8:1:2:3:4:5:6", 128), "2001:db8:1:2:3:4:5:6");
        assert_eq!(of("2001:db8::1", 0), "::/0");
    }

    #[test]
    fn addresses_share_a_prefix_if_they_begin_alike_and_are_of_one_family() {
        let prefix = Cidr::of("192.0.2.1".parse().unwrap(), 24);
        for (address, inside) in
            [("192.0.2.0", true), ("192.0.2.255", true), ("192.0.3.0", false), ("2001:db8::1", false)]
        {
            assert_eq!(Cidr::of(address.parse().unwrap(), 24) == prefix, inside, "{address}");
        }
        assert_ne!(Cidr::of("::".parse().unwrap(), 0), Cidr::of("192.0.2.1".parse().unwrap(), 0));
    }
}
