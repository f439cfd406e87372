//! Whether a packet is certainly of no flow: a look at the counting Bloom filter, before anything else is read.
//!
//! Every packet of the host passes the programs. Most of them are of no flow where connections are short. For those this look
//! replaces the copy of the headers and the lookup in the hash.

use aya_ebpf::programs::TcContext;
use snisplice_common::packet::{
    maps::bloom_place,
    segment::{IPV4_BYTES, IPV6_BYTES, PROTOCOL_TCP, TCP_MIN, flag},
};

use crate::{
    maps::{NOTE_BEGUN, bloom_count},
    skb::{ETH_P_IP, ETH_P_IPV6, L3},
};

/// The side of a device that a packet passes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The device has received it: its destination is ours.
    Ingress,
    /// The device will send it: its source is ours.
    Egress,
}

/// Whether no flow can have this packet. False for whatever this function does not understand, and for a SYN that is to
/// be noted.
#[inline(always)]
pub(crate) fn is_of_no_flow(ctx: &TcContext, side: Side) -> bool {
    // SAFETY: the context is the one that the program was called with.
    let (protocol, vlan) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    if vlan != 0 {
        return false;
    }
    if protocol == ETH_P_IP {
        let Some(packet) = Packet::<{ L3 + IPV4_BYTES + TCP_MIN }>::of(ctx) else { return false };
        if packet.byte(L3) != 0x45 || packet.byte(L3 + 9) != PROTOCOL_TCP {
            return false;
        }
        let fold = packet.word(L3 + 12) ^ packet.word(L3 + 14) ^ packet.word(L3 + 16) ^ packet.word(L3 + 18);
        has_none(&packet, L3 + IPV4_BYTES, fold, side)
    } else if protocol == ETH_P_IPV6 {
        let Some(packet) = Packet::<{ L3 + IPV6_BYTES + TCP_MIN }>::of(ctx) else { return false };
        if packet.byte(L3 + 6) != PROTOCOL_TCP {
            return false;
        }
        let mut fold = 0;
        let mut at = L3 + 8;
        while at < L3 + IPV6_BYTES {
            fold ^= packet.word(at);
            at += 2;
        }
        has_none(&packet, L3 + IPV6_BYTES, fold, side)
    } else {
        false
    }
}

#[inline(always)]
fn has_none<const N: usize>(packet: &Packet<N>, l4: usize, fold: u16, side: Side) -> bool {
    let (source, destination) = (packet.word(l4), packet.word(l4 + 2));
    let place = match side {
        Side::Ingress if NOTE_BEGUN.load() != 0 && packet.byte(l4 + 13) & flag::SYN != 0 => return false,
        Side::Ingress => bloom_place(fold, source, destination),
        Side::Egress => bloom_place(fold, destination, source),
    };
    bloom_count(place) == Some(0)
}

/// The first `N` bytes of a packet, which are in the linear part of its buffer.
struct Packet<const N: usize>(*const u8);

impl<const N: usize> Packet<N> {
    /// `None` if they are not.
    #[inline(always)]
    fn of(ctx: &TcContext) -> Option<Self> {
        let data = ctx.data();
        (data + N <= ctx.data_end()).then_some(Self(data as *const u8))
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        debug_assert!(at < N);
        // SAFETY: the packet has so many bytes, which the verifier has seen.
        unsafe { self.0.add(at).read() }
    }

    /// 16 bits as they lie in memory. `at` is even, and so is the address of an Ethernet header.
    #[inline(always)]
    fn word(&self, at: usize) -> u16 {
        debug_assert!(at + 1 < N && at % 2 == 0);
        // SAFETY: as above, and the address is even.
        unsafe { self.0.add(at).cast::<u16>().read() }
    }
}
