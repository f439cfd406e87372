//! Names, keys and values of the packet datapath's maps, and the events in the programs' ring.

/// Names of the maps and programs. The kernel keeps the first 15 bytes of a name, so no name is longer.
pub mod name {
    /// Hash, [`super::Tuple`] → [`super::Slot`]: which flow a packet belongs to.
    pub const TUPLES: &str = "SNI_TUPLES";
    /// Array of one element with [`super::BLOOM`] counters: a counting Bloom filter over the keys of [`TUPLES`].
    pub const BLOOM: &str = "SNI_BLOOM";
    /// Array of [`crate::packet::flow::Rules`], by flow. Written by userspace.
    pub const RULES: &str = "SNI_RULES";
    /// Array of [`crate::packet::flow::State`], by flow. Written by the kernel while the flow lives.
    pub const STATES: &str = "SNI_STATES";
    /// Ring of [`super::Event`].
    pub const EVENTS: &str = "SNI_ENDINGS";
    /// Per-CPU array of one [`super::Totals`].
    pub const TOTALS: &str = "SNI_TOTALS";
    /// LRU hash, [`super::Tuple`] → 1: connections whose SYN passed the programs, with the addresses of the balancer's
    /// sockets.
    pub const BEGUN: &str = "SNI_BEGUN";
    /// Longest-prefix trie of networks: clients that are denied. IPv4 addresses are mapped into IPv6. Written by
    /// userspace.
    pub const DENIED: &str = "SNI_DENIED";
    /// Hash, index of a device → 1: devices with a strict reverse-path filter (`rp_filter`, RFC 3704 section 2.2).
    /// Written by userspace.
    pub const STRICT: &str = "SNI_STRICT";
    /// Set by the loader: 1 makes the programs record new connections in [`BEGUN`].
    pub const NOTE_BEGUN: &str = "NOTE_BEGUN";
    /// Version of the layout of the maps that outlive the process. A changed layout gets another number, so that no
    /// process adopts maps that it does not understand.
    pub const LAYOUT: &str = "v3";
    /// The program for packets that devices receive.
    pub const INGRESS: &str = "sni_ingress";
    /// The program for packets that devices send.
    pub const EGRESS: &str = "sni_egress";
    /// The program that userspace runs for a snapshot of sockets; see [`crate::packet::socket_info`].
    pub const SOCKET_INFO: &str = "sni_socket_info";
    /// A program that stands for programs of others: it writes a mark into all packets and passes them to the next
    /// program. For probes and tests.
    pub const MARK: &str = "sni_mark";
}

/// Flows that the maps have room for by default. The loader sets another number.
pub const FLOWS: u32 = 16_384;

/// Counters of the Bloom filter. One hash function is enough: with 3,000 flows, 9 of 10 packets of other connections find
/// a zero.
pub const BLOOM: usize = 1 << 16;

/// The counter of a tuple in the Bloom filter. `fold` is the exclusive or of all 16-bit words of both addresses, as the packet
/// has them; the ports too are as in the packet.
///
/// A program computes this from a packet without building a [`Tuple`]. An IPv4 address and its mapped form give the same
/// `fold`, since the prefix of the one address cancels that of the other.
#[inline(always)]
#[must_use]
pub const fn bloom_place(fold: u16, remote_port: u16, local_port: u16) -> usize {
    // The upper bits of a product depend on all bits of the factor. One round would not spread ports, whose bytes are
    // swapped here.
    const ROUNDS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
    let word = ((fold as u64) << 32 | (remote_port as u64) << 16 | local_port as u64).wrapping_mul(ROUNDS[0]);
    ((word ^ (word >> 32)).wrapping_mul(ROUNDS[1]) >> 48) as usize & (BLOOM - 1)
}

/// The greatest number of denied networks.
pub const DENIED: usize = 65_536;

/// Default size of the event ring. An event takes 24 bytes.
pub const RING_BYTES: usize = 512 * 1024;

/// [`Event::what`]: the first packet of a way was forwarded.
pub const FIRST: u32 = 1;
/// [`Event::what`]: a way has ended with FIN.
pub const FIN: u32 = 2;
/// [`Event::what`]: the flow may be over, by a reset or with both FINs acknowledged, so userspace checks it. This event
/// wakes userspace. The others wait in the ring until then.
pub const END: u32 = 4;

/// [`Event::what`]: one of the balancer's sockets has answered a packet that bypassed the programs: a fragment, a
/// packet with IP options, or one that arrived elsewhere. This event wakes userspace, too.
pub const BYPASS: u32 = 8;

/// An event of a flow, sent through the ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Userspace's identifier of the flow ([`super::flow::Rules::token`]).
    pub token: u64,
    /// [`FIRST`], [`FIN`], [`END`], [`BYPASS`], or several of them.
    pub what: u32,
    /// The way of the packet: 0 up, 1 down.
    pub way: u32,
}

const _: () = assert!(size_of::<Event>() == 16, "Event has padding");

/// The addresses of one of the balancer's connections, as in its incoming packets.
///
/// Addresses and ports are in network byte order. IPv4 addresses are mapped into IPv6 (RFC 4291 section 2.5.5.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple {
    /// The peer's address.
    pub remote: [u32; 4],
    /// The balancer's address.
    pub local: [u32; 4],
    /// The peer's port.
    pub remote_port: u16,
    /// The balancer's port.
    pub local_port: u16,
}

const _: () = assert!(size_of::<Tuple>() == 36, "Tuple has padding");

impl Tuple {
    /// The counter of this tuple in the Bloom filter.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "one of the two halves is wanted")]
    pub const fn bloom_place(&self) -> usize {
        let (remote, local) = (&self.remote, &self.local);
        let fold = remote[0] ^ remote[1] ^ remote[2] ^ remote[3] ^ local[0] ^ local[1] ^ local[2] ^ local[3];
        bloom_place((fold ^ (fold >> 16)) as u16, self.remote_port, self.local_port)
    }
}

/// The third word of an IPv4 address that is mapped into IPv6.
pub const MAPPED: u32 = 0xffff_u32.to_be();

/// Maps an IPv4 address, in network byte order, into IPv6.
#[inline(always)]
#[must_use]
pub const fn mapped(address: u32) -> [u32; 4] {
    [0, 0, MAPPED, address]
}

/// Whether the address is a mapped one.
#[inline(always)]
#[must_use]
pub const fn is_mapped(address: &[u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED
}

/// The flow and way that packets with a tuple belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// Index of the flow in the arrays.
    pub flow: u32,
    /// The way that the packet goes: 0 up, 1 down.
    pub way: u32,
}

const _: () = assert!(size_of::<Slot>() == 8, "Slot has padding");

/// Totals over all flows since the programs were loaded; each CPU has its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Totals {
    /// Packets (after GRO) forwarded to the other end.
    pub packets: u64,
    /// Bytes of payload in them, retransmissions included.
    pub bytes: u64,
    /// Packets dropped while their flow was set up, handed over or reset.
    pub dropped_setup: u64,
    /// Packets of the balancer's sockets that passed: bytes that the sockets still had to deliver, and probes of a
    /// peer.
    pub own_passed: u64,
    /// Packets of the balancer's sockets that were dropped.
    pub own_dropped: u64,
    /// Packets whose acknowledgement was mirrored to the balancer's socket.
    pub acks_mirrored: u64,
    /// Packets of a flow that were dropped because they could not be translated or forwarded.
    pub failed: u64,
    /// Events that were lost because the ring was full.
    pub lost_events: u64,
    /// ICMP errors that were sent to the sender of a flow's packet: errors of routers, and the programs' own about
    /// packets too large for a device.
    pub errors: u64,
    /// Packets of denied clients, dropped.
    pub denied: u64,
    /// Packets dropped because they arrived by a device on which their peer is not.
    pub strays: u64,
}

const _: () = assert!(size_of::<Totals>() == 88, "Totals has padding");

#[cfg(feature = "user")]
impl core::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.dropped_setup += other.dropped_setup;
        self.own_passed += other.own_passed;
        self.own_dropped += other.own_dropped;
        self.acks_mirrored += other.acks_mirrored;
        self.failed += other.failed;
        self.lost_events += other.lost_events;
        self.errors += other.errors;
        self.denied += other.denied;
        self.strays += other.strays;
    }
}

// SAFETY: `repr(C)`, integers only, no padding (asserted above): every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Tuple {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Slot {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Totals {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_packet_has_the_counter_of_its_tuple() {
        let (remote, local) = ([192, 0, 2, 7_u8], [198, 51, 100, 9_u8]);
        let word = |octets: [u8; 4]| mapped(u32::from_ne_bytes(octets));
        let tuple = Tuple { remote: word(remote), local: word(local), remote_port: 4_711, local_port: 443 };
        let half = |octets: [u8; 4], at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        let fold = half(remote, 0) ^ half(remote, 2) ^ half(local, 0) ^ half(local, 2);
        assert_eq!(bloom_place(fold, 4_711, 443), tuple.bloom_place());
    }

    #[test]
    fn connections_of_one_client_are_spread_over_the_counters() {
        let mut used = [0_u64; BLOOM / 64];
        for port in 32_768..49_152_u16 {
            let tuple = Tuple { remote_port: port.to_be(), local_port: 443_u16.to_be(), ..Tuple::default() };
            used[tuple.bloom_place() / 64] |= 1 << (tuple.bloom_place() % 64);
        }
        // So many would be expected of a random function: 1 - e^(-1/4) of the counters.
        assert!(used.iter().map(|word| word.count_ones()).sum::<u32>() as usize > BLOOM * 20 / 100);
    }
}
