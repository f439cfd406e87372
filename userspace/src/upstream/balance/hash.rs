//! Hashes with fixed seeds, so that all nodes with the same configuration choose equally.
//!
//! The mixing step is the finalizer of `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators", 2014). A client can compute addresses that share an endpoint, since an equal choice on every node
//! excludes a secret. `hash_balance_factor` bounds the load of such clients on the endpoint.

use std::net::{IpAddr, SocketAddr};

/// The increment of `SplitMix64`, 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads the bits of a number over all bits of the result. The function is one to one.
#[must_use]
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(GOLDEN);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number from two, whose order matters.
#[must_use]
pub fn pair(one: u64, other: u64) -> u64 {
    mix(mix(one) ^ other)
}

/// The hash of an address. An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) is the IPv4 address.
#[must_use]
pub fn ip(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => pair(4, address.to_bits().into()),
        IpAddr::V6(address) => {
            let bytes = address.octets();
            let [high, low] = [&bytes[..8], &bytes[8..]].map(word);
            pair(pair(6, high), low)
        }
    }
}

/// The hash of an endpoint.
#[must_use]
pub fn endpoint(address: SocketAddr) -> u64 {
    pair(ip(address.ip()), address.port().into())
}

/// The hash of a server name, without regard to case and to a final dot.
#[must_use]
pub fn server_name(name: &str) -> u64 {
    let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
    let mut hash = name.len() as u64;
    for chunk in name.chunks(8) {
        // Bit 5 makes letters lower-case. The effect on other characters is equal on all nodes.
        hash = pair(hash, word(chunk) | 0x2020_2020_2020_2020);
    }
    mix(hash)
}

/// At most eight bytes as a little-endian number.
fn word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// A number below `bound` from a random one, without a division (Lemire, "Fast random integer generation in an
/// interval", 2019; the bias is below `bound` divided by 2^64).
#[must_use]
pub fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every node, of any architecture and version, must have the same hashes.
    #[test]
    fn the_hashes_never_change() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf, "the first number of SplitMix64 with the seed 0");
        let fixed = [
            endpoint("192.0.2.1:443".parse().unwrap()),
            endpoint("[2001:db8::1]:443".parse().unwrap()),
            server_name("www.example.com"),
        ];
        assert_eq!(fixed, FIXED, "{fixed:#x?}");
    }

    const FIXED: [u64; 3] = [0xdbe6_933b_e274_ce5d, 0x02c0_16a4_6dd0_05c8, 0xb199_93c4_59c0_1e5e];

    #[test]
    fn what_is_the_same_has_the_same_hash() {
        assert_eq!(ip("::ffff:192.0.2.1".parse().unwrap()), ip("192.0.2.1".parse().unwrap()));
        assert_eq!(server_name("WWW.Example.com."), server_name("www.example.com"));
        assert_ne!(server_name("a.test"), server_name("b.test"));
        assert_ne!(server_name(""), server_name("\0"));
        assert_ne!(endpoint("192.0.2.1:443".parse().unwrap()), endpoint("192.0.2.1:444".parse().unwrap()));
    }

    #[test]
    fn scaled_numbers_are_spread_evenly() {
        let mut counts = [0_u32; 7];
        for number in 0..70_000 {
            counts[usize::try_from(scale(mix(number), 7)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (9_700..10_300).contains(count)), "{counts:?}");
        assert_eq!(scale(u64::MAX, 5), 4);
        assert_eq!(scale(0, 5), 0);
    }
}
