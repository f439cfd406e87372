//! The packets that are dropped: those of denied clients, and those that arrive by a device on which the host would
//! drop them, too.

use std::{collections::BTreeSet, fs, net::IpAddr};

use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, lpm_trie::Key};
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name_inlined, socket};
use snisplice_common::packet::maps::mapped;
use snisplice_config::networks::{Network, Networks};

/// Bits of a mapped address before those of IPv4.
const MAPPED_BITS: u32 = 96;

/// The maps of both filters.
pub(super) struct Filters {
    denied: LpmTrie<MapData, [u32; 4], u32>,
    strict: HashMap<MapData, u32, u32>,
}

impl Filters {
    pub(super) fn new(denied: Map, strict: Map) -> Result<Self, MapError> {
        Ok(Self { denied: denied.try_into()?, strict: strict.try_into()? })
    }

    /// Denies these networks and no others. A network that stays is denied without a gap.
    pub(super) fn deny(&mut self, networks: &Networks) -> Result<(), MapError> {
        let before = self.denied.keys().map(|key| key.map(|key| (key.prefix_len(), key.data())));
        let before: BTreeSet<_> = before.collect::<Result<_, _>>()?;
        let wanted: BTreeSet<_> = networks.iter().map(|network| key(&network)).collect();
        for (bits, address) in wanted.difference(&before) {
            self.denied.insert(&Key::new(*bits, *address), 1, 0)?;
        }
        for (bits, address) in before.difference(&wanted) {
            self.denied.remove(&Key::new(*bits, *address))?;
        }
        Ok(())
    }

    /// Reads whether a device has a strict reverse-path filter.
    pub(super) fn heed_reverse_path(&mut self, device: u32) -> Result<(), MapError> {
        if is_strict(device) {
            return self.strict.insert(device, 1, 0);
        }
        match self.strict.remove(&device) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// A network as a key of the map.
fn key(network: &Network) -> (u32, [u32; 4]) {
    match network.parts() {
        (IpAddr::V4(address), bits) => {
            (MAPPED_BITS + u32::from(bits), mapped(u32::from_ne_bytes(address.octets())))
        }
        (IpAddr::V6(address), bits) => {
            let octets = address.octets();
            let word =
                |at: usize| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
            (bits.into(), [word(0), word(4), word(8), word(12)])
        }
    }
}

/// The larger of two settings counts (Documentation/networking/ip-sysctl.rst). IPv6 has none.
fn is_strict(device: u32) -> bool {
    // Any socket can be used for requests about devices.
    let Ok(asker) = socket(AddressFamily::INET, SocketType::DGRAM, None) else { return false };
    let Ok(name) = index_to_name_inlined(&asker, device) else { return false };
    let of = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        text.ok().and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0)
    };
    of("all").max(of(name.as_str())) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_their_place_among_mapped_addresses() {
        let bytes = |text: &str| {
            let (bits, address) = key(&text.parse().unwrap());
            (bits, address.map(u32::to_ne_bytes).concat())
        };
        let (bits, address) = bytes("192.0.2.0/24");
        assert_eq!((bits, &address[8..]), (120, &[0, 0, 0xff, 0xff, 192, 0, 2, 0][..]));
        let (bits, address) = bytes("2001:db8::/32");
        assert_eq!((bits, &address[..5]), (32, &[0x20, 0x01, 0x0d, 0xb8, 0][..]));
    }
}
